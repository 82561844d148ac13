"""A trained model that another one learns from: found, checked and loaded from its run
directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gptjax.core import config
from gptjax.core.config import require
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.losses.cross_entropy import Teacher
from gptjax.runs import Run
from gptjax.train import start
from gptjax.train.experiment import Experiment


def load(experiment: Experiment, tokenizer: Tokenizer) -> Teacher | None:
    """The teacher of a resolved experiment, its averaged weights where the run kept them; none
    without distillation.

    Raises:
      ConfigError: the directory is no run, has no checkpoint, or its model can't read what this one
        reads.
    """
    told = experiment.loss.distillation
    if told is None:
        return None
    path, step = _newest(told.run)
    theirs, ours = config.load(Experiment, path / "config.json"), experiment.model
    same = tokenizers.fingerprint(tokenizers.load(path / "tokenizer")) == tokenizers.fingerprint(
        tokenizer
    )
    mend = "distil from a run of the same (loss.distillation.run)"
    require(same, f"the teacher {path} has another tokenizer; {mend}.")
    for name in ("vocab_size", "classes", "causal"):
        found, wanted = getattr(theirs.model, name), getattr(ours, name)
        require(
            found == wanted,
            f"the teacher {path} has model.{name} {found}, this model {wanted}; {mend}.",
        )
    require(
        bool(theirs.model.encoder_layers) == bool(ours.encoder_layers),
        f"of the teacher {path} and this model one has an encoder beside its decoder; {mend}.",
    )
    require(
        theirs.model.context >= ours.context,
        f"the teacher {path} has a context of {theirs.model.context}, this model {ours.context}; it"
        " needs as much.",
    )
    params = start.weights(path, theirs, step)
    require(
        params is not None,
        f"the teacher {path} has no whole checkpoint; train it first: python train.py"
        f" {path}/config.json",
    )
    return Teacher(theirs.model, params, told)


def fingerprint(experiment: Experiment) -> str:
    """sha256 of the teacher's model and of what vouches for its newest checkpoint; empty without
    distillation."""
    if experiment.loss.distillation is None:
        return ""
    path, step = _newest(experiment.loss.distillation.run)
    described = json.dumps(
        json.loads((path / "config.json").read_text())["model"], sort_keys=True
    ).encode()
    return hashlib.sha256(
        described + (path / "checkpoints" / str(step) / "manifest.json").read_bytes()
    ).hexdigest()


def _newest(run: str) -> tuple[Path, int]:
    path = Path(run)
    require(
        (path / "config.json").is_file(),
        f"{path} holds no config.json, so it is no run to learn from; name one"
        " (loss.distillation.run).",
    )
    steps = Run(path).steps()
    require(
        bool(steps),
        f"the teacher {path} has no checkpoint yet; train it first: python train.py"
        f" {path}/config.json",
    )
    return path, max(steps)
