"""Tasks that a run answers while it trains: their requests are made once, before training, and
answered with the weights of each evaluation.

Read `watch_tasks`, then `Watching.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from gptjax.api import Model
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.tasks import Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.command import conversation_of, task_template
from gptjax.evaluate.counting import items_of
from gptjax.evaluate.encoding import encode_scores, prompts_of
from gptjax.evaluate.measures import measure
from gptjax.evaluate.options import TaskOptions, TaskPlan, plan_tasks
from gptjax.evaluate.report import Measure
from gptjax.evaluate.requests import Score, Write
from gptjax.evaluate.respond import Progress, respond
from gptjax.evaluate.scoring import check_scores
from gptjax.evaluate.tasks import Asked, ask
from gptjax.model import ModelConfig
from gptjax.train.experiment import WatchedTasks


class WatchedTask(NamedTuple):
    """A task, its records, and how they are asked."""

    plan: TaskPlan
    asked: list[Asked]


class Watching(NamedTuple):
    """Tasks, and the model that answers them, without its weights."""

    tasks: list[WatchedTask]
    model: Model

    def figures(self, params: Params, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Returns the figures of the tasks; see `train.watched.Tasks`."""
        model, figures = self.model._replace(params=params), {}
        for task in self.tasks:
            try:
                found = _headline(task, model, stop)
            except _Stopped:
                return None
            values = {
                found.name: found.figure.value,
                "low": found.figure.low,
                "high": found.figure.high,
                "chance": found.chance,
                "majority": found.majority,
            }
            figures |= {
                f"tasks/{task.plan.task.name}/{name}": value
                for name, value in values.items()
                if value is not None and math.isfinite(value)
            }
        return figures


class _Stopped(Exception):
    """The run was asked to stop while a task was answered."""


def watch_tasks(
    watched: WatchedTasks,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    task: Task,
    mesh: Mesh | None = None,
) -> Watching:
    """Opens the tasks that a run watches.

    Args:
      task: what the model is trained for.

    Raises:
      ConfigError: a file is absent or malformed, a request does not fit, or the model cannot
        answer.
    """
    options = TaskOptions(
        tasks=",".join(watched.files),
        tasks_dir=watched.folder,
        limit=watched.limit,
        shots=watched.shots,
        form=watched.form,
        template=watched.template,
    )
    model = Model(config, {}, tokenizer, task=task, mesh=mesh)
    template = task_template(model, options.template)
    chat = None if template is None else conversation_of(model, template)
    opened = [
        WatchedTask(one, ask(one.task, one.items, one.pool, chat)) for one in plan_tasks(options)
    ]
    for one in opened:
        _require_answerable(model, one)
    return Watching(opened, model)


def _require_answerable(model: Model, one: WatchedTask) -> None:
    """Encodes all requests, which refuses what the model would refuse after hours of training."""
    requests = [request for asked in one.asked for request in asked.requests]
    writes = [request for request in requests if isinstance(request, Write)]
    if len(writes) < len(requests):
        check_scores(model)
        encode_scores(model, [request for request in requests if isinstance(request, Score)])
    if writes:
        require(
            model.task.writes,
            f"{one.plan.task.name} asks for written answers, and this model writes no text; omit it"
            " (--evaluation.tasks.files).",
        )
        prompts_of(model, writes)


def _headline(one: WatchedTask, model: Model, stop: Callable[[], bool]) -> Measure:
    def asked_to_stop(_: Progress) -> None:
        if stop():
            raise _Stopped

    requests = [request for asked in one.asked for request in asked.requests]
    responses = respond(model, requests, progress=asked_to_stop)
    items = items_of(one.plan.task, one.asked, responses)
    return measure(one.plan.task, one.plan.items, items).measures[0]
