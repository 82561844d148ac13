"""`gptjax evaluate`: the held-out figures of a trained model, on its own text or another one."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptjax.cli.arguments import first_path, read_experiment
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError

if TYPE_CHECKING:
    from gptjax.train.experiment import Experiment


@dataclass(frozen=True)
class EvaluateOptions:
    """Flags of `evaluate` besides those of the experiment."""

    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    rows: int | None = None
    """Number of rows to read; `None` means all."""
    json: bool = False
    """Print one JSON object."""


def evaluate_command(args: list[str]) -> None:
    """Prints the loss of a model on the text that its run held out, or on all of another text
    (`--data.source.path`)."""
    backend.configure()
    path, flags = first_path(
        args,
        "gptjax evaluate MODEL [flags]",
        "a run directory, a Hugging Face directory or a .gguf file",
    )
    from gptjax import formats
    from gptjax.data import DataConfig, Given
    from gptjax.train.experiment import Experiment

    is_run = path is not None and formats.kind(formats.located(path)) is None
    if path is not None and is_run:
        own = read_experiment(path)[0]
    else:
        own = Experiment(data=DataConfig(tokenizer=Given()))
    options, wanted = user_config.cli(
        EvaluateOptions,
        flags,
        prog="gptjax evaluate MODEL",
        description="Measures a model on the text that its run held out, or on all of another text"
        " (--data.source.path FILE).",
        base=own,
    )
    if path is None:
        raise ConfigError("evaluate needs a run directory, for example runs/quickstart.")
    other = not is_run or wanted.data.source != own.data.source
    figures = measured(path, options, wanted, whole=other)
    if options.json:
        print(json.dumps(figures))
        return
    named = (f"{value:.4f} {name.replace('_', ' ')}" for name, value in figures.items())
    print(", ".join(named))


def measured(
    path: Path, options: EvaluateOptions, experiment: Experiment, *, whole: bool
) -> dict[str, float]:
    """Returns the figures of a model on the data of an experiment.

    Args:
      whole: measure all of the text; otherwise what of it is held out.

    Raises:
      ConfigError: the model or the text cannot be used, or nothing is held out.
    """
    import jax

    from gptjax.data.prepare import prepare
    from gptjax.losses import CrossEntropy
    from gptjax.runs.open import open_model
    from gptjax.sharding.mesh import make_mesh, replicated, with_mesh
    from gptjax.train import step
    from gptjax.train.evaluate import evaluate, held_out_loss

    mesh = make_mesh(experiment.mesh)
    opened = open_model(path, options.step, mesh, live=options.live)
    share = 0.0 if whole else experiment.data.validation
    data = dataclasses.replace(experiment.data, validation=share, task=opened.task)
    note = functools.partial(print, file=sys.stderr)
    prepared = prepare(data, say=note, given=opened.tokenizer)
    store = prepared.train if whole else prepared.validation
    if store is None:
        raise ConfigError(
            f"{path} held out no text (data.validation 0); give one with --data.source.path FILE."
        )
    experiment = dataclasses.replace(
        experiment, model=opened.config, data=data, loss=CrossEntropy(), start=None, freeze=()
    )
    one_batch = functools.partial(step.evaluate_step, loss=held_out_loss(experiment))
    compiled = jax.jit(with_mesh(mesh, one_batch), out_shardings=replicated(mesh))
    figures = evaluate(compiled, mesh, experiment, store, opened.params, {}, options.rows)
    return {**(figures or {}), "tokens": store.header.num_tokens}
