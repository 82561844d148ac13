"""Settings of `gptjax evaluate MODEL --tasks`, and the tasks that they name.

Read `TaskOptions`, then `plan_tasks`: everything that can be refused is, before a model is opened.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core.config import require, to_dict
from gptjax.data.documents.text import typed
from gptjax.data.prompt_library import ANSWER, choose_prompt, fill_prompt, read_library
from gptjax.evaluate.catalogue import Entry, Located, located_task
from gptjax.evaluate.measures import chosen_metric
from gptjax.evaluate.prompt_form import PromptForm
from gptjax.evaluate.records import Record, kind_of, read_task_records
from gptjax.evaluate.tasks import Chat, Forms, TaskConfig, ask, sample_of


@dataclass(frozen=True)
class TaskOptions:
    """Flags of `evaluate --tasks`. What is `None` is as the catalogue has it."""

    tasks: str
    """Files of records (.jsonl, .json, .csv, also compressed) and names of known tasks, with commas
    between them."""
    tasks_dir: str | None = None
    """Folder with the files of known tasks."""
    limit: int | None = None
    """Number of items of each task; `None` is all."""
    first: bool = False
    """With --limit, take the first items of a file instead of drawing them."""
    shots: int | None = None
    """Number of examples before each question."""
    shots_file: str | None = None
    """File of the examples; by default they are other records of the task's own file."""
    seed: int = 0
    """Draws items and examples."""
    form: Forms | None = None
    """How choices are asked: `cloze` scores their texts, `letters` lists them and scores letters,
    `both` counts the better one. `None` is cloze."""
    metric: str | None = None
    """The measure by which a task counts, such as acc, acc_norm, acc_pmi, f1, rougeL or bleu."""
    template: str | None = None
    """Write prompts as conversations: `own` is the model's chat template, or a name, or a .jinja
    file. `None` is plain text."""
    question: str | None = None
    """Text around what a record asks, which stands for {question}."""
    cue: str | None = None
    """Text that follows a question and asks for the answer."""
    prompts: str | None = None
    """Library of prompts (TOML), for --named."""
    named: str | None = None
    """Name of a prompt of the library; its one variable without a default is what a record asks."""
    new_tokens: int | None = None
    """Maximum length of an answer, in tokens."""
    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""
    against: str | None = None
    """Compare with another evaluation (an eval.json or its folder), or with another model, which is
    then evaluated too."""
    out: str | None = None
    """Folder for eval.json and eval.html, which are replaced; `None` is a new one: RUN/evaluation
    for a run, else evaluations/MODEL."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    rows: int = 4
    """Rows of 256 tokens, or answers, that are computed together."""
    json: bool = False
    """Print one JSON object, without the items; eval.json has them."""


class TaskPlan(NamedTuple):
    """A task whose records are read."""

    task: TaskConfig
    """With its metric chosen."""
    file: Path
    records: list[Record]
    """All of the file."""
    items: list[Record]
    """Those that are asked."""
    sample: str
    """Which they are, in words."""
    pool: list[Record]
    """Records from which examples are drawn; empty without examples."""

    @property
    def kind(self) -> str:
        """The kind of its records."""
        return kind_of(self.records[0])

    @property
    def writes(self) -> bool:
        """Whether the model writes answers."""
        return self.kind in ("question", "free")


def plan_tasks(options: TaskOptions) -> list[TaskPlan]:
    """Returns the tasks that the options name, their records read.

    Raises:
      ConfigError: a file or a setting cannot be used, or two tasks have one name.
    """
    words = [word.strip() for word in options.tasks.split(",") if word.strip()]
    require(bool(words), "tasks is empty; give files of records or names of tasks (--tasks FILE).")
    folder = None if options.tasks_dir is None else Path(options.tasks_dir)
    plans = [plan_task(located_task(word, folder), options) for word in words]
    names = [plan.task.name for plan in plans]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two tasks are called {twice}; rename one of the files (--tasks).")
    return plans


def plan_task(located: Located, options: TaskOptions) -> TaskPlan:
    """Returns a task with its records."""
    records = read_task_records(located.file, options.encoding)
    entry = located.entry
    if entry is not None and entry.kind != kind_of(records[0]):
        entry = None  # another file of that name
    task = task_config(located.name, options, entry)
    task = dataclasses.replace(task, metric=chosen_metric(task, records))
    items, sample = sample_of(records, task.limit, task.seed, task.first)
    pool: list[Record] = []
    if task.shots:
        pool = records
        if options.shots_file is not None:
            pool = read_task_records(options.shots_file, options.encoding)
    # what cannot be asked is refused here; the model that is not open yet would write the rest
    silent = Chat(write=lambda messages: (0,), text=lambda ids: "")
    ask(task, items[:1], pool, silent if options.template else None)
    return TaskPlan(task, located.file, records, items, sample, pool)


def task_config(name: str, options: TaskOptions, entry: Entry | None) -> TaskConfig:
    """Returns the settings of a task: what the options give, else what the catalogue has."""
    known = entry or Entry("", "", "")
    return TaskConfig(
        name=name,
        metric=known.metric if options.metric is None else options.metric,
        form=options.form or "cloze",
        shots=known.shots if options.shots is None else options.shots,
        seed=options.seed,
        limit=options.limit,
        first=options.first,
        prompt=_prompt_form(options, known.prompt),
        new_tokens=known.new_tokens if options.new_tokens is None else options.new_tokens,
        stop=known.stop,
    )


def _prompt_form(options: TaskOptions, known: PromptForm) -> PromptForm:
    form = known
    if options.named is not None:
        require(options.question is None, "question and named are both given; omit one of them.")
        require(
            options.prompts is not None,
            "named is a prompt of a library, and there is none; give one (--prompts FILE).",
        )
        form = _library_form(str(options.prompts), options.named)
    if options.question is not None:
        form = dataclasses.replace(form, question=typed(options.question))
    if options.cue is not None:
        form = dataclasses.replace(form, cue=typed(options.cue))
    return form


def _library_form(file: str, name: str) -> PromptForm:
    """A prompt of a library, with its own examples; its only variable without a default stands for
    what a record asks."""
    template = choose_prompt(read_library(file), name, file)
    open_ones = [one for one in template.variables if one not in template.defaults]
    require(
        len(open_ones) == 1,
        f"{file}: {name} has {len(open_ones)} variables without a default; evaluate fills in one"
        " alone, with what a record asks.",
    )
    filled = fill_prompt(template, {open_ones[0]: "{question}"})
    system = filled.system.strip()
    examples = tuple(
        (fill_prompt(template, _without(one, ANSWER)).prompt.strip(), str(one[ANSWER]))
        for one in template.examples
    )
    return PromptForm(
        question=filled.prompt.strip(),
        description=f"{system}\n\n" if system else "",
        examples=examples,
    )


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def task_settings(plan: TaskPlan, options: TaskOptions) -> dict[str, object]:
    """Returns what eval.json says of a task's settings."""
    task = plan.task
    settings: dict[str, object] = {
        "metric": task.metric,
        "shots": task.shots,
        "seed": task.seed,
        "limit": task.limit,
        "first": task.first,
        "template": options.template,
        **to_dict(task.prompt),
    }
    if task.shots:
        settings["shots_file"] = options.shots_file and Path(options.shots_file).name
    if plan.kind == "choices":
        settings["form"] = task.form
    if plan.writes:
        settings |= {"new_tokens": task.new_tokens, "stop": list(task.stop)}
    return settings


def names_of(plans: Sequence[TaskPlan]) -> str:
    """Returns the names of tasks, as a sentence has them."""
    return ", ".join(plan.task.name for plan in plans)
