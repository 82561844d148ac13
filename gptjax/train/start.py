"""A model that an experiment starts from: a run, a Hugging Face directory, a GGUF file, or one that
a package ships.

Read `Start`, then `of`, which the loop asks, and `adopted`, which says whose word counts where the
model and the experiment differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gptjax import formats as interop
from gptjax import model
from gptjax.core import config
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.tasks.tasks import Task
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig
from gptjax.model.config import DROPOUTS
from gptjax.runs import Run
from gptjax.train.experiment import Experiment


class Start(NamedTuple):
    """What a run begins with, or, where it goes on, what it began with."""

    config: ModelConfig
    params: Params | None
    """None where a run goes on: its checkpoint has them."""
    tokenizer: Tokenizer
    fingerprint: str | None = None
    """sha256 of the parameters; it is part of what a run is."""


def of(experiment: Experiment, path: Path, *, resuming: bool) -> Start | None:
    """Gives the model that an experiment starts from; none where it starts from nothing. A run that
    goes on needs it no more.

    Raises:
      ConfigError: there is no such model.
    """
    if experiment.start is None:
        return None
    if resuming:
        return Start(
            config.load(Experiment, path / "config.json").model,
            None,
            tokenizers.load(path / "tokenizer"),
        )
    return read(experiment.start)


def read(name: str) -> Start:
    """Reads a model, and counts its bits.

    Raises:
      ConfigError: there is none, or it has no tokenizer.
    """
    path = interop.located(name)
    known, params, tokenizer, *_ = (
        restored(path) if interop.kind(path) is None else interop.load(path)
    )
    require(
        tokenizer is not None,
        f"{path} has no tokenizer, so no text can be read with it; start from another model"
        " (--start).",
    )
    digest = hashlib.sha256()
    for where, leaf in jax.tree_util.tree_leaves_with_path(params):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(where)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.data)
    return Start(known, params, tokenizer, digest.hexdigest())


def restored(path: Path, step: int | None = None) -> tuple[ModelConfig, Params, Tokenizer, Task]:
    """Reads the model of a run, and what it has learned: averaged weights where it kept them, and
    no optimizer state.

    Args:
      step: the checkpoint to use; none is the newest whole one.

    Raises:
      ConfigError: the directory is not a run, or has no such checkpoint.
    """
    needed = (
        "give a run directory, for example runs/quickstart (python train.py makes one), a Hugging"
        " Face directory or a .gguf file"
    )
    require(path.is_dir(), f"{path} is not a directory; {needed}.")
    require(
        (path / "config.json").is_file(), f"{path} holds no config.json, so it is no run; {needed}."
    )
    experiment = config.load(Experiment, path / "config.json")
    params = weights(path, experiment, step) if Run(path).steps() else None
    require(
        params is not None,
        f"{path} has no checkpoint yet; train it first: python train.py {path}/config.json",
    )
    return experiment.model, params, _tokenizer(path), experiment.data.task


def weights(path: Path, experiment: Experiment, step: int | None = None) -> Params | None:
    """The weights of the run of an experiment, averaged where it kept such; none where there is no
    whole checkpoint."""
    tree = "params" if experiment.optim.ema is None else "ema"
    found = Run(path).restore({tree: model.shapes(experiment.model)}, step=step)
    return found and found[1][tree]


def _tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a run, if it is still the one that the run was trained with."""
    found = tokenizers.load(path / "tokenizer")
    recorded = path / "identity.json"
    same = not recorded.is_file() or json.loads(recorded.read_text())[
        "tokenizer"
    ] == tokenizers.fingerprint(found)
    require(
        same,
        f"{path / 'tokenizer'} is not the tokenizer that this run was trained with ({recorded} has"
        " its hash); restore it from a copy.",
    )
    return found


TRAINING = (
    "context",
    *DROPOUTS,
    "compute",
    "attention",
    "layers",
    "remat",
    "remat_names",
    "stage_parts",
)
"""What of a model's config says how it is trained and computed, not what it is: there the
experiment's word counts."""


def adopted(experiment: Experiment, start: Start | None) -> Experiment:
    """Gives the experiment with the architecture of the model that it starts from.

    Raises:
      ConfigError: the experiment asks for another architecture, which would need other parameters.
    """
    if start is None:
        return experiment
    asked, own, plain = (
        experiment.model,
        start.config,
        Experiment.__dataclass_fields__["model"].default_factory(),
    )
    kept = (
        (*TRAINING,)
        if own.positions != "learned"
        else tuple(name for name in TRAINING if name != "context")
    )
    for name in (f.name for f in dataclasses.fields(ModelConfig) if f.name not in kept):
        wanted, has = getattr(asked, name), getattr(own, name)
        said = f"model.{name} is {wanted!r}, and the model that this run starts from has {has!r}"
        require(
            wanted in (has, getattr(plain, name)),
            f"{said}; leave it away (--model.{name.replace('_', '-')}), or start from nothing.",
        )
    return dataclasses.replace(
        experiment, model=dataclasses.replace(own, **{name: getattr(asked, name) for name in kept})
    )
