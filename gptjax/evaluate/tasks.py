"""A task: records become requests. What the responses become is in `counting` and `measures`.

Read `TaskConfig`, then `sample_of` (which records), `examples_of` (few-shot) and `ask` (requests).
All of it is pure; a model is run by `respond` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers.chat import Message
from gptjax.evaluate.prompt_form import (
    LETTERS,
    PromptForm,
    as_messages,
    example,
    question_of,
    require_form,
    separator,
    shown_before,
    worded,
)
from gptjax.evaluate.records import Choices, Contexts, Pair, Record, Whole, kind_of
from gptjax.evaluate.requests import Request, Roll, Score, Write
from gptjax.generate import GenerateConfig

Forms = Literal["cloze", "letters", "both"]


@dataclass(frozen=True)
class TaskConfig:
    """How the records of a file are asked and counted."""

    name: str
    metric: str = ""
    """The measure by which the task counts; empty chooses by the records. Of choices it is the rule
    of the cloze form: acc, acc_norm, acc_bytes, acc_token or acc_pmi."""
    form: Forms = "cloze"
    """How choices are asked: `cloze` scores their texts, `letters` lists them and scores letters,
    `both` counts the better one."""
    shots: int = 0
    """Number of examples before each question."""
    seed: int = 0
    """Draws items and examples."""
    limit: int | None = None
    """Number of items; `None` is all."""
    first: bool = False
    """Take the first items of the file instead of drawing them."""
    prompt: PromptForm = PromptForm()
    new_tokens: int = 32
    """Maximum length of an answer, in tokens."""
    stop: tuple[str, ...] = ("\n",)
    """Texts at which an answer ends."""

    def __post_init__(self) -> None:
        require(self.shots >= 0, f"shots is {self.shots}; it needs 0 or more (--shots 0).")
        require(
            self.limit is None or self.limit >= 1,
            f"limit is {self.limit}; it needs 1 or more (--limit 100).",
        )
        require(self.seed >= 0, f"seed is {self.seed}; it needs 0 or more (--seed 0).")
        require_form(self.prompt)


class Chat(NamedTuple):
    """How a conversation is written for the model, and what ends its answers."""

    write: Callable[[Sequence[Message]], Sequence[int]]
    """Messages, the last of the user, → ids up to where the answer begins."""
    text: Callable[[Sequence[int]], str]
    """Ids → what they say."""
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()


class Asked(NamedTuple):
    """A record in one form, and the requests that ask for it."""

    record: Record
    form: str
    """`cloze` or `letters` for choices, else empty."""
    prompt: str
    """What is read, as text; of several contexts the first."""
    options: tuple[str, ...]
    requests: tuple[Request, ...]
    """One for each option, then of choices each without its context."""


def sample_of(
    records: Sequence[Record], limit: int | None, seed: int, first: bool = False
) -> tuple[list[Record], str]:
    """Returns the items to ask, in the order of the file, and which they are, in words."""
    if limit is None or limit >= len(records):
        return list(records), f"all {len(records):,} records"
    if first:
        return list(records[:limit]), f"the first {limit:,} of {len(records):,} records"
    chosen = np.random.default_rng(seed).permutation(len(records))[:limit]
    said = f"{limit:,} of {len(records):,} records, drawn with seed {seed}"
    return [records[at] for at in sorted(chosen)], said


def examples_of(
    record: Record, pool: Sequence[Record], order: Sequence[int], shots: int
) -> list[Record]:
    """Returns examples for a record: the first of the order that ask something else.

    So all records share their examples, apart from those that are one themselves, and a model
    reads them once.
    """
    own, chosen = question_of(record), []
    for at in order:
        if len(chosen) == shots:
            break
        if not set(own) & set(question_of(pool[at])):
            chosen.append(pool[at])
    require(
        len(chosen) == shots,
        f"there are {len(chosen)} examples to show before record {record.id}, and {shots} are"
        " wanted; use fewer (--shots), or another file of them (--shots-file).",
    )
    return chosen


def ask(
    task: TaskConfig,
    records: Sequence[Record],
    pool: Sequence[Record] = (),
    chat: Chat | None = None,
) -> list[Asked]:
    """Returns the requests of each record in each form.

    Args:
      pool: records from which examples are drawn.
      chat: writes prompts as conversations; `None` is plain text.

    Raises:
      ConfigError: the records can't be asked in this way, or there are too few for the examples.
    """
    _require_possible(task, records, pool, chat)
    # another stream of the seed than `sample_of` has: examples do not depend on the limit
    order = np.random.default_rng((task.seed, 1)).permutation(len(pool))
    asked = []
    for form in forms_of(task, records):
        for record in records:
            shown = examples_of(record, pool, order, task.shots) if task.shots else []
            asked.append(_asked(task, record, form, shown, chat))
    return asked


def forms_of(task: TaskConfig, records: Sequence[Record]) -> tuple[str, ...]:
    """Returns the forms in which the records are asked; choices that are letters already, listed
    in their question, have one."""
    if not isinstance(records[0], Choices):
        return ("",)
    if all(_are_letters(record) for record in records):
        return ("cloze",)
    return ("cloze", "letters") if task.form == "both" else (task.form,)


def _are_letters(record: Record) -> bool:
    return isinstance(record, Choices) and record.choices == tuple(LETTERS[: len(record.choices)])


def _asked(
    task: TaskConfig, record: Record, form: str, shown: Sequence[Record], chat: Chat | None
) -> Asked:
    text = worded(task.prompt, record, form)
    examples = [*task.prompt.examples, *(example(task.prompt, one, form) for one in shown)]
    prompts = [shown_before(task.prompt, examples, context) for context in text.contexts]
    contexts: list[str | tuple[int, ...]] = [*prompts]
    if chat is not None:
        told = (as_messages(task.prompt, examples, context) for context in text.contexts)
        contexts = [tuple(chat.write(messages)) for messages in told]
        prompts = [chat.text(ids) for ids in contexts]
    if isinstance(record, Whole):
        return Asked(record, form, "", text.options, (Roll(record.text),))
    if not text.options:
        return Asked(record, form, prompts[0], (), (Write(contexts[0], _settings(task, chat)),))
    requests = [
        Score(context, option if chat else _separated(task, record, prompt, option))
        for context, prompt in zip(contexts, prompts, strict=True)
        for option in text.options
    ]
    if isinstance(record, Choices):  # as the harness does: nothing before it, not even a space
        requests += [Score("", option) for option in text.options]
    options = record.contexts if isinstance(record, Contexts) else text.options
    return Asked(record, form, prompts[0], options, tuple(requests))


def _separated(task: TaskConfig, record: Record, prompt: str, option: str) -> str:
    """An option with what separates it from its context."""
    if isinstance(record, Pair) and task.prompt.delimiter is None:
        return option if record.bias else f" {option}"  # as the harness does
    return separator(task.prompt, prompt, option) + option


def _settings(task: TaskConfig, chat: Chat | None) -> GenerateConfig:
    stop = task.stop if chat is None else tuple(dict.fromkeys((*task.stop, *chat.stop)))
    return GenerateConfig(
        new_tokens=task.new_tokens,
        temperature=0.0,
        top_p=1.0,
        stop=stop,
        stop_ids=() if chat is None else chat.stop_ids,
    )


def _require_possible(
    task: TaskConfig, records: Sequence[Record], pool: Sequence[Record], chat: Chat | None
) -> None:
    """Refuses examples and conversations where records have no question, letters where there are
    too many choices, and examples of another kind."""
    kind = kind_of(records[0])
    asks = not isinstance(records[0], Pair | Whole)
    require(
        asks or not task.shots,
        f"{task.name} has records of the kind {kind}, which take no examples (--shots 0).",
    )
    require(
        asks or chat is None,
        f"{task.name} has records of the kind {kind}, which are no conversation; omit --template.",
    )
    require(
        not task.shots or not pool or kind_of(pool[0]) == kind,
        f"{task.name} has records of the kind {kind}, and the examples are of another"
        " (--shots-file).",
    )
    most = max((len(r.choices) for r in records if isinstance(r, Choices)), default=0)
    require(
        most <= len(LETTERS) or "letters" not in forms_of(task, records),
        f"{task.name} has a record with {most} choices, and there are {len(LETTERS)} letters; use"
        " --form cloze.",
    )
