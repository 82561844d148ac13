"""`gptjax evaluate`: the held-out figures of a trained model, on its own text or another one."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.cli.arguments import first_path, read_experiment
from gptjax.cli.evaluate_tasks import evaluate_tasks_command, wants_tasks
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jax.sharding import Mesh

    from gptjax.core.arrays import Params
    from gptjax.data.store import Store
    from gptjax.data.tasks import Task
    from gptjax.formats import OpenedModel
    from gptjax.losses import Frozen, LossConfig
    from gptjax.train.experiment import Experiment


@dataclass(frozen=True)
class EvaluateOptions:
    """Flags of `evaluate` besides those of the experiment."""

    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    rows: int | None = None
    """Number of rows to read, or of prompts to answer; `None` means all."""
    packed: bool = False
    """Keep the quantised weights of a published model as they are stored."""
    json: bool = False
    """Print one JSON object."""


def evaluate_command(args: list[str]) -> None:
    """Prints the loss of a model on the text that its run held out, or on all of another text
    (`--data.source.path`); of a run that learns from rewards what its answers earn. With `--tasks`
    it is `evaluate_tasks_command`."""
    if wants_tasks(args):
        evaluate_tasks_command(args)
        return
    backend.configure()
    path, flags = first_path(
        args,
        "gptjax evaluate MODEL [flags]",
        "a run directory, a Hugging Face directory or a .gguf file",
    )
    from gptjax import formats
    from gptjax.data import DataConfig, Given
    from gptjax.train import start
    from gptjax.train.experiment import Experiment

    is_run = path is not None and formats.kind(formats.located(path)) is None
    if path is not None and is_run:
        own = start.from_elsewhere(read_experiment(path)[0], path)
    else:
        own = Experiment(data=DataConfig(tokenizer=Given()))
    options, wanted = user_config.cli(
        EvaluateOptions,
        flags,
        prog="gptjax evaluate MODEL",
        description="Measures a model on the text that its run held out, or on all of another text"
        " (--data.source.path FILE), or on tasks (--tasks FILE,NAME; --tasks x --help has their"
        " flags).",
        base=own,
    )
    if path is None:
        raise ConfigError("evaluate needs a run directory, for example runs/quickstart.")
    other = not is_run or wanted.data.source != own.data.source
    figures = measured(path, options, wanted, whole=other)
    if options.json:
        print(json.dumps(figures))
        return
    print(", ".join(_named(name, value) for name, value in figures.items()))


def _named(name: str, value: float) -> str:
    """Returns a figure with its name; counts have no decimals."""
    digits = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    return f"{digits} {name.replace('_', ' ')}"


def measured(
    path: Path, options: EvaluateOptions, experiment: Experiment, *, whole: bool
) -> dict[str, float]:
    """Returns the figures of a model on the data of an experiment: the cross-entropy of what it
    predicts, the own loss of what compares answers, and of a run that learns from rewards what one
    answer to each prompt earns.

    Args:
      whole: measure all of the text; otherwise what of it is held out.

    Raises:
      ConfigError: the model or the text cannot be used, or nothing is held out.
    """
    from gptjax.data.prepare import prepare
    from gptjax.runs.open import open_model
    from gptjax.sharding.mesh import make_mesh

    mesh = make_mesh(experiment.mesh)
    opened = open_model(path, options.step, mesh, live=options.live, packed=options.packed)
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
        experiment, model=opened.config, data=data, loss=_loss(experiment, opened.task), freeze=()
    )
    if experiment.rollout is not None:
        from gptjax.train.rollout_columns import own_answers
        from gptjax.train.rollout_figures import held_out

        measure = None  # rewards are what is measured, if they decide
        if not own_answers(experiment).rewarded:
            measure = functools.partial(*_measuring(experiment, opened, mesh))
        prompts = min(options.rows or store.header.num_examples, store.header.num_examples)
        given = (experiment, opened.tokenizer, store, opened.params, mesh, prompts)
        return {**(held_out(*given, measure=measure) or {}), "prompts": prompts}
    figures = _held_out(experiment, opened, store, mesh, options.rows)
    return {**figures, "tokens": store.header.num_tokens}


def _loss(experiment: Experiment, task: Task) -> LossConfig:
    """Returns what a model is measured by: of predictions cross-entropy, whatever it learned from;
    of masks the bound; otherwise its own loss, with the reference in memory."""
    from gptjax.losses import CrossEntropy, Diffusion

    loss = experiment.loss
    if task.batches == Diffusion.batches:
        return Diffusion()
    return CrossEntropy() if loss.batches == CrossEntropy.batches else loss.computed()


def _held_out(
    experiment: Experiment, opened: OpenedModel, store: Store, mesh: Mesh, rows: int | None
) -> dict[str, float]:
    """Returns the figures of the experiment's loss over a store."""
    from gptjax.train.evaluate import evaluate

    measure, params, frozen = _measuring(experiment, opened, mesh)
    return evaluate(measure, mesh, experiment, store, params, frozen, rows) or {}


def _measuring(
    experiment: Experiment, opened: OpenedModel, mesh: Mesh
) -> tuple[Callable[..., dict[str, Any]], Params, Frozen]:
    """Returns the compiled sums of the experiment's loss over a batch, and the weights that it
    takes before the batch."""
    import jax

    from gptjax.sharding.mesh import replicated, with_mesh
    from gptjax.train import step, teacher
    from gptjax.train.evaluate import held_out_loss

    assert opened.tokenizer is not None
    others = teacher.load_teachers(experiment, opened.tokenizer, mesh)
    loss = held_out_loss(experiment, {name: other.config for name, other in others.items()})
    frozen = {name: other.params for name, other in others.items()}
    one_batch = functools.partial(step.evaluate_step, loss=loss)
    compiled = jax.jit(with_mesh(mesh, one_batch), out_shardings=replicated(mesh))
    return compiled, opened.params, frozen
