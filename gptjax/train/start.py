"""What a run begins from: nothing, a trained model (`--start`), or, on a resume, its own past.

Read `Start`, then `of`, then `adopted`, which gives the experiment the model's architecture.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from gptjax.core import config, user_config
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data.prepare import Kept
from gptjax.data.tokenizers.tokenizer import Given, Tokenizer
from gptjax.model import ModelConfig, init, with_output
from gptjax.model.config import DROPOUTS
from gptjax.train.experiment import Experiment, is_place
from gptjax.weights import PromptTuning, merge


class Start(NamedTuple):
    """What a run begins from. Every field is `None` in a run that begins from nothing."""

    config: ModelConfig | None = None
    """Architecture that the run has to have."""
    params: Params | None = None
    """Parameters of step 0, or under the adapter of a resumed run; `None` on any other resume,
    whose checkpoint has them."""
    tokenizer: Tokenizer | None = None
    """Tokenizer that the run has to use: that of the model, or, on a resume, the run's own."""
    fingerprint: str | None = None
    """SHA-256 of the parameters of the model; part of the run's identity."""
    kept: Kept | None = None
    """The data that a resumed run has prepared, if the experiment wants no other."""


def of(experiment: Experiment, run: Path, *, resuming: bool) -> Start:
    """Opens what a run begins from. A resume no longer needs the model that the run started from,
    unless it trains an adapter of it.

    Raises:
      ConfigError: there is no such model, or it has no tokenizer.
    """
    if not resuming and experiment.start is None:
        require(
            experiment.adapter is None,
            "an adapter stands beside the weights of a trained model; name it (--start PATH).",
        )
        return Start()
    # A run that begins from nothing need not wait for the readers of every format.
    from gptjax.runs import adapted
    from gptjax.runs.open import open_base, open_model, read_config, read_tokenizer

    if resuming:
        recorded = config.load_config(dict, run / "identity.json")
        found = read_config(run, config.classes_in(experiment))
        base = None
        if experiment.adapter is not None and found.adapter is not None:
            base = open_base(
                run, found._replace(start=experiment.start, adapter=experiment.adapter)
            )
        return Start(
            found.model if experiment.start else None,
            base and base.params,
            tokenizer=read_tokenizer(run),
            fingerprint=_fingerprint(experiment.start, found.start, recorded.get("start")),
            kept=_kept(experiment, run, recorded),
        )
    assert experiment.start is not None
    model = open_model(experiment.start)
    require(
        model.tokenizer is not None,
        f"{experiment.start} has no tokenizer, so it cannot read text; start from another model"
        " (--start).",
    )
    fingerprint = model.fingerprint()
    if experiment.adapter is not None:
        model = adapted.plain_base(model, experiment.adapter)
    return Start(model.config, merge(model.params), model.tokenizer, fingerprint)


def from_elsewhere(experiment: Experiment, run: Path) -> Experiment:
    """Returns the experiment with its relative paths taken against the folder in which its run was
    first started, where they lead nowhere from here."""
    file = run / "identity.json"
    first = config.load_config(dict, file).get("folder") if file.is_file() else None
    return user_config.relocated(experiment, [Path(first)]) if first else experiment


def _fingerprint(named: str | None, before: str | None, recorded: str | None) -> str | None:
    """That of the model in which a run began; where another is named now, that one's, and none if
    it can't be opened."""
    from gptjax.runs.open import open_model

    if named == before:
        return recorded
    try:
        return open_model(named).fingerprint() if named else None
    except ConfigError:
        return None


def _kept(experiment: Experiment, run: Path, recorded: dict) -> Kept | None:
    old = config.load_config(Experiment, run / "config.json", known=config.classes_in(experiment))
    changed = (f"data.{name}" for name in config.differences(old.data, experiment.data))
    free = ("data.cache", "data.max_lost")
    if "prepared" not in recorded or any(n not in free and not is_place(n) for n in changed):
        return None
    return Kept(recorded["data"], recorded["prepared"])


def begin_run(
    experiment: Experiment, run: Path, *, resuming: bool
) -> tuple[Experiment, Start, list[str]]:
    """Returns the experiment as it begins in a run directory, what it begins from, and notes; see
    `from_elsewhere`, `of` and `adopted`."""
    experiment = from_elsewhere(experiment, run)
    start = of(experiment, run, resuming=resuming)
    experiment, notes = adopted(experiment, start)
    return experiment, start, notes


def with_classes(experiment: Experiment, start: Start) -> Start:
    """Returns the start with a fresh output over the classes of a resolved experiment (one is a
    score), where the model that it begins from has none.

    Raises:
      ConfigError: virtual tokens would leave that output random.
    """
    own, params = experiment.model, start.params
    if params is None or not own.classes or "classes" in params:
        return start
    require(
        not isinstance(experiment.adapter, PromptTuning),
        f"{experiment.start} predicts tokens, and this task needs an output of its own, which"
        " virtual tokens would leave random; use --adapter lora, or train all weights (omit"
        " --adapter).",
    )
    fresh = jax.jit(lambda key: init(own, key)["classes"])(jax.random.key(experiment.seed))
    return start._replace(params=with_output(params, own, fresh))


TRAINING = (
    "context",
    *DROPOUTS,
    "compute",
    "attention",
    "context_order",
    "layers",
    "remat",
    "remat_names",
    "stage_parts",
)
"""Settings of a model that say how it is trained and computed rather than what it is. The
experiment decides them."""


def adopted(experiment: Experiment, start: Start) -> tuple[Experiment, list[str]]:
    """Returns the experiment with the architecture and the tokenizer of what it starts from, and a
    note on every setting of its own that gave way."""
    if experiment.start is None or start.config is None:
        return experiment, []
    asked, own = experiment.model, start.config
    default = Experiment.__dataclass_fields__["model"].default_factory()
    kept = [name for name in TRAINING if name != "context" or own.positions != "learned"]
    if experiment.data.task.classes is not None and not own.classes:
        kept.append("pool")  # of an output that is not there yet
    model = dataclasses.replace(own, **{name: getattr(asked, name) for name in kept})
    changed = [
        f"model.{name} is {getattr(model, name)!r}, as in {experiment.start}, not {wanted!r}"
        for name in (field.name for field in dataclasses.fields(ModelConfig))
        if (wanted := getattr(asked, name)) not in (getattr(model, name), getattr(default, name))
    ]
    if not isinstance(experiment.data.tokenizer, Given):
        kind = type(experiment.data.tokenizer).__name__
        changed.append(f"the tokenizer is that of {experiment.start}, not the config's {kind}")
    data = dataclasses.replace(experiment.data, tokenizer=Given())
    return dataclasses.replace(experiment, model=model, data=data), changed
