"""Tasks that a run answers while it trains.

What a task is belongs to a client room, `gptjax.evaluate`; here is how a run asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from jax.sharding import Mesh

from gptjax.core import processes
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.prepare import Prepared
from gptjax.sharding.mesh import writing_mesh
from gptjax.train.experiment import Experiment


class Tasks(Protocol):
    """Tasks whose requests are made."""

    def figures(self, params: Params, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Returns the figures of a model with these weights: `tasks/NAME/MEASURE`, and of each task
        `low`, `high`, `chance` and `majority` beside it; `None` if `stop`, asked after every batch,
        returned true."""


def tasks_of(experiment: Experiment, data: Prepared, mesh: Mesh) -> Tasks | None:
    """Opens the tasks that a run watches; `None` if it watches none.

    Raises:
      ConfigError: a file is absent or malformed, or the model cannot answer.
    """
    watched = experiment.evaluation.tasks
    if not watched.files:
        return None
    require(
        not processes.several(),
        "tasks are watched by a run in one process; omit --evaluation.tasks.files, and evaluate"
        " checkpoints: gptjax evaluate RUN --step N --tasks FILE.",
    )
    from gptjax.evaluate.watched import watch_tasks  # a client room: most runs need none

    return watch_tasks(
        watched,
        experiment.model,
        data.tokenizer,
        task=experiment.data.task,
        mesh=writing_mesh(mesh),
    )


def due(experiment: Experiment, done: int) -> bool:
    """Whether the evaluation after a step answers the tasks."""
    every = experiment.evaluation.tasks.every
    return every is None or done % every == 0 or done == experiment.steps


BESIDE = ("low", "high", "chance", "majority")
"""Names beside the measure of a task."""


def lines(figures: Mapping[str, float]) -> list[str]:
    """Returns a line for each task: its measure with the 95 % interval, and what costs nothing."""
    tasks: dict[str, dict[str, float]] = {}
    for path, value in figures.items():
        name, measure = path.removeprefix("tasks/").split("/", 1)
        tasks.setdefault(name, {})[measure] = value
    said = []
    for name, values in tasks.items():
        measure = next(one for one in values if one not in BESIDE)
        line = f"{name} {values[measure]:.3f} {measure}"
        if "low" in values:
            line += f", {values['low']:.3f} to {values['high']:.3f}"
        beside = [f"{one} {values[one]:.3f}" for one in BESIDE[2:] if one in values]
        said.append(line + (f" ({', '.join(beside)})" if beside else ""))
    return said
