"""`gptjax evaluate MODEL --tasks …`: tasks are read, asked, counted, shown and kept.

Read `run_tasks`, then `evaluate_model` and `evaluate_task`, which need no files.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import gptjax
from gptjax import formats
from gptjax.api import Model, load
from gptjax.core.config import require
from gptjax.data.tokenizers import chat as chats
from gptjax.data.tokenizers.chat import ChatTemplate
from gptjax.evaluate.compare import compare_reports, require_comparable
from gptjax.evaluate.counting import items_of
from gptjax.evaluate.figures.totals import centred_mean
from gptjax.evaluate.figures.written import package_versions
from gptjax.evaluate.identity import Hashes, hashes_of, identify, records_hash
from gptjax.evaluate.measures import measure
from gptjax.evaluate.options import TaskOptions, TaskPlan, names_of, plan_tasks, task_settings
from gptjax.evaluate.page import write_page
from gptjax.evaluate.report import (
    Average,
    Item,
    Report,
    TaskReport,
    as_json,
    read_evaluation,
    write_evaluation,
)
from gptjax.evaluate.requests import Request, Write
from gptjax.evaluate.respond import Progress, respond_and_count
from gptjax.evaluate.table import comparison_lines, report_lines
from gptjax.evaluate.tasks import Asked, Chat, ask

EVERY = 10.0
"""Seconds between lines of progress where they are kept."""

Say = Callable[[str], Any]


def run_tasks(path: Path, options: TaskOptions) -> None:
    """Evaluates a model and prints its figures; writes eval.json and eval.html.

    Raises:
      ConfigError: the model, a task or the other evaluation cannot be used.
    """
    plans = plan_tasks(options)
    against = options.against and Path(options.against)
    other = _other(against, plans, options) if against else None
    _say(f"{path}: {names_of(plans)}")
    model = load(path, options.step, live=options.live)
    report = evaluate_model(model, str(path), plans, options, say=_say)
    folder = Path(options.out) if options.out else _folder(path)
    write_evaluation(report, folder / "eval.json")  # kept, whatever comes of the comparison
    if against:
        if other is None:
            _say(f"{against}: {names_of(plans)}")
            other = evaluate_model(load(against), str(against), plans, options, say=_say)
        report = dataclasses.replace(report, comparisons=compare_reports(report, other))
    write_evaluation(report, folder / "eval.json")
    write_page(report, folder / "eval.html")
    if options.json:
        print(json.dumps(_without_items(report), ensure_ascii=False, allow_nan=False))
        return
    print("\n".join(report_lines(report)))
    print(f"written to {folder / 'eval.json'} and {folder / 'eval.html'}")
    print(f"next: gptjax evaluate OTHER --tasks {options.tasks} --against {folder}")


def _other(against: Path, plans: Sequence[TaskPlan], options: TaskOptions) -> Report | None:
    """The evaluation to compare with, or `None` for a model that is yet to be evaluated."""
    if not is_evaluation(against):
        require(
            formats.located(against).exists(),
            f"{against} is not there; give an evaluation or a model (--against).",
        )
        return None
    other = read_evaluation(against)
    folder = against if against.is_dir() else against.parent
    require(
        options.out is None or Path(options.out).resolve() != folder.resolve(),
        f"{options.out} holds the evaluation to compare with; write to another folder (--out DIR).",
    )
    require_comparable({p.task.name: records_hash(p.records) for p in plans}, other)
    return other


def run_comparison(path: Path, against: str, *, as_object: bool) -> None:
    """Prints a comparison of two evaluations that were made before."""
    made = compare_reports(read_evaluation(path), read_evaluation(against))
    if as_object:
        print(json.dumps(as_json(made), ensure_ascii=False, allow_nan=False))
        return
    print("\n".join(line for one in made for line in comparison_lines(one)))


def is_evaluation(path: Path) -> bool:
    """Whether a path is that of an evaluation rather than of a model."""
    return path.suffix == ".json" or (path / "eval.json").is_file()


def evaluate_model(
    model: Model,
    name: str,
    plans: Sequence[TaskPlan],
    options: TaskOptions,
    *,
    say: Say = str,
) -> Report:
    """Returns the evaluation of a model on tasks.

    Args:
      name: what the report calls the model.
      say: takes lines of progress.
    """
    created, begun = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), time.monotonic()
    template = task_template(model, options.template)
    hashes = hashes_of(model)
    writer = model.prepared() if any(plan.writes for plan in plans) else model
    tasks = [
        evaluate_task(
            writer if plan.writes else model,
            plan,
            options,
            hashes,
            template,
            _progress(plan.task.name, say),
        )
        for plan in plans
    ]
    return Report(
        model=name,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        tasks=tuple(tasks),
        averages=averages_of(tasks),
        versions=_versions(model),
        created=f"{created} UTC",
        seconds=time.monotonic() - begun,
    )


def evaluate_task(
    model: Model,
    plan: TaskPlan,
    options: TaskOptions,
    hashes: Hashes,
    template: ChatTemplate | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TaskReport:
    """Returns the figures of a model on one task.

    Args:
      hashes: of the model; where it writes, of the one whose weights were prepared for that.
      template: how conversations are written; `None` is plain text.
    """
    begun = time.monotonic()
    conversation = None if template is None else conversation_of(model, template)
    asked = ask(plan.task, plan.items, plan.pool, conversation)
    requests = [request for one in asked for request in one.requests]
    responses, cost = respond_and_count(model, requests, rows=options.rows, progress=progress)
    items = _marked(model, asked, items_of(plan.task, asked, responses))
    made = measure(plan.task, plan.items, items)
    return TaskReport(
        name=plan.task.name,
        file=plan.file.name,
        shape=plan.kind,
        headline=made.headline,
        measures=made.measures,
        n=len(plan.items),
        of=len(plan.records),
        sample=plan.sample,
        settings=task_settings(plan, options),
        identity=identify(plan.task, plan.items, plan.pool, hashes, template),
        items=tuple(items),
        calibration=made.calibration,
        confusion=made.confusion,
        content=records_hash(plan.records),
        requests=len(requests),
        tokens_read=cost.read,
        tokens_alone=cost.alone,
        tokens_written=cost.written,
        seconds=time.monotonic() - begun,
        truncated=len({item.id for item in items if item.truncated}),
        notes=made.notes,
    )


def _marked(model: Model, asked: Sequence[Asked], items: Sequence[Item]) -> list[Item]:
    """Returns items with those marked whose prompt leaves no room for an answer, which a completion
    does not say itself."""
    return [
        dataclasses.replace(item, truncated=item.truncated or _cut(model, one.requests[0]))
        for one, item in zip(asked, items, strict=True)
    ]


def _cut(model: Model, request: Request) -> bool:
    """Whether a prompt for an answer loses its beginning."""
    if not isinstance(request, Write) or model.task.answers:
        return False
    plain = isinstance(request.context, str)
    ids = model.tokenizer.encode(request.context) if plain else request.context
    begun = plain and model.tokenizer.begin_of_document is not None
    return len(ids) + begun > model.config.context - request.settings.new_tokens


SHARES = ("acc", "exact_match", "number_")
"""How the names of measures begin of which 1 is all."""


def averages_of(tasks: Sequence[TaskReport]) -> tuple[Average, ...]:
    """Returns the centred average of the tasks whose headline is a share of right answers, if
    there are several. Where nothing can be guessed chance is 0."""
    counted = [
        task for task in tasks if task.measures[0].name.removeprefix("letters/").startswith(SHARES)
    ]
    if len(counted) < 2:
        return ()
    figures = [task.measures[0].figure for task in counted]
    chances = [task.measures[0].chance or 0.0 for task in counted]
    names = tuple(task.name for task in counted)
    return (Average("centred", centred_mean(figures, chances), names),)


# --- conversations


def task_template(model: Model, name: str | None) -> ChatTemplate | None:
    """Returns the chat template of that name for a model; `own` is its own, `None` none.

    Raises:
      ConfigError: there is no such template, or the model lacks its control tokens.
    """
    if name is None:
        return None
    require(
        name != "own" or bool(model.tokenizer.template),
        "the model has no chat template of its own; name one (--template chatml), or omit"
        " --template.",
    )
    template = chats.choose_template(None if name == "own" else name, model.tokenizer)
    chats.require_controls(template, model.tokenizer)
    return template


def conversation_of(model: Model, template: ChatTemplate) -> Chat:
    """Returns how a chat template writes a task's prompts for a model."""
    closing = chats.ends(template, model.tokenizer)
    return Chat(
        write=lambda messages: chats.render(template, messages, model.tokenizer),
        text=model.tokenizer.decode,
        stop=closing.texts,
        stop_ids=closing.ids,
    )


# --- what is said


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _progress(name: str, say: Say) -> Callable[[Progress], None]:
    """Says how far a task is: on one line of a terminal, else every `EVERY` seconds."""
    lives, said = say is _say and sys.stderr.isatty(), 0.0

    def told(progress: Progress) -> None:
        nonlocal said
        ends = progress.done == progress.total
        if lives:
            print(f"\r{name}: {progress}\x1b[K", end="\n" if ends else "", file=sys.stderr)
        elif progress.seconds - said >= EVERY:
            said = progress.seconds
            say(f"{name}: {progress}")

    return told


def _versions(model: Model) -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "gptjax": gptjax.__version__,
        "jax": jax.__version__,
        "device": f"{device.platform} ({device.device_kind})",
        "compute": str(model.config.compute),
        **package_versions(),
    }


def _folder(path: Path) -> Path:
    """Where an evaluation is kept: in a run, or beside where one stands; never where there is one
    already."""
    is_run = path.is_dir() and formats.kind(formats.located(path)) is None
    first = path / "evaluation" if is_run else Path("evaluations") / path.stem
    numbered = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(f for f in itertools.chain([first], numbered) if not (f / "eval.json").exists())


def _without_items(report: Report) -> dict[str, Any]:
    plain = as_json(report)
    for task in plain["tasks"]:
        del task["items"]
    return plain
