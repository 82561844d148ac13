"""How a record becomes text: its question, its options, its answer, and the examples before it.

Read `PromptForm`, then `worded` (one record), then `shown_before` (after examples, as plain text)
and `as_messages` (as a conversation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gptjax.core.config import require
from gptjax.data.tokenizers.chat import Message
from gptjax.evaluate.records import (
    Choices,
    Contexts,
    Continuation,
    Free,
    Pair,
    Question,
    Record,
    Whole,
)

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Form = Literal["cloze", "letters"]


@dataclass(frozen=True)
class PromptForm:
    """How records of a task are written."""

    question: str = "{question}"
    """The question, around what the record asks; `{group}` is what the record is about."""
    cue: str = ""
    """What follows the question and asks for the answer, such as a new line and `Answer:`."""
    option: str = "{letter}. {choice}"
    """A line for each choice, in the letter form."""
    letter_cue: str = "\nAnswer:"
    """What follows the lines of choices."""
    delimiter: str | None = None
    """What separates an answer from what asks for it; `None` is a space, or nothing where one of
    them has white space there already."""
    between: str = "\n\n"
    """What separates examples."""
    description: str = ""
    """What all prompts begin with; in a conversation, the system's message."""
    examples: tuple[tuple[str, str], ...] = ()
    """Pairs of what is asked and its answer, before all others."""


class Worded(NamedTuple):
    """A record as text."""

    contexts: tuple[str, ...]
    """What is read before an option: one for each option, or one for all."""
    options: tuple[str, ...]
    """What may follow; empty where the model writes."""
    right: str
    """What an example shows as the answer."""


def worded(form: PromptForm, record: Record, shape: str = "") -> Worded:
    """Returns a record as text, without the delimiter between a context and an option.

    Args:
      shape: `letters` puts the choices into the question and asks for a letter.
    """
    if isinstance(record, Choices):
        asked = _asked(form, record.query, record.group)
        if shape != "letters":
            return Worded((asked + form.cue,), record.choices, record.choices[record.gold])
        letters = LETTERS[: len(record.choices)]
        lines = (
            substituted(form.option, {"letter": letter, "choice": choice})
            for letter, choice in zip(letters, record.choices, strict=False)
        )
        context = "\n".join([asked.rstrip("\n"), *lines]) + form.letter_cue
        return Worded((context,), tuple(letters), letters[record.gold])
    if isinstance(record, Contexts):
        contexts = tuple(_asked(form, one, record.group) + form.cue for one in record.contexts)
        return Worded(contexts, (record.continuation,), record.continuation)
    if isinstance(record, Continuation):
        context = _asked(form, record.context, record.group) + form.cue
        return Worded((context,), (record.continuation,), record.continuation)
    if isinstance(record, Question):
        return Worded((_asked(form, record.context, record.group) + form.cue,), (), record.answer)
    if isinstance(record, Free):
        context = _asked(form, record.context, record.group) + form.cue
        return Worded((context,), (), record.references[0])
    if isinstance(record, Pair):
        return Worded(("",), (record.good, record.bad), record.good)
    return Worded(("",), (record.text,), record.text)


def example(form: PromptForm, record: Record, shape: str = "") -> tuple[str, str]:
    """Returns what a record asks and its right answer."""
    text = worded(form, record, shape)
    right = record.gold if isinstance(record, Contexts) else 0
    return text.contexts[right], text.right


def shown_before(form: PromptForm, examples: Sequence[tuple[str, str]], context: str) -> str:
    """Returns a context after examples, as plain text."""
    shown = [asked + separator(form, asked, right) + right for asked, right in examples]
    return form.description + form.between.join([*shown, context])


def as_messages(
    form: PromptForm, examples: Sequence[tuple[str, str]], context: str
) -> list[Message]:
    """Returns a context after examples, as a conversation that the model is to answer."""
    system = [Message("system", form.description.strip())] if form.description.strip() else []
    turns = [
        Message(role, text.strip())
        for asked, right in examples
        for role, text in (("user", asked), ("assistant", right))
    ]
    return [*system, *turns, Message("user", context.strip())]


def separator(form: PromptForm, context: str, option: str) -> str:
    """Returns what stands between a context and an option."""
    if form.delimiter is not None:
        return form.delimiter
    apart = not context or context[-1].isspace() or option[:1].isspace()
    return "" if apart else " "


def question_of(record: Record) -> tuple[str, ...]:
    """Returns what a record asks, by which examples of it are kept out of its own prompt."""
    if isinstance(record, Choices):
        return (record.query,)
    if isinstance(record, Contexts):
        return record.contexts
    if isinstance(record, Pair):
        return (record.good, record.bad)
    return (record.text,) if isinstance(record, Whole) else (record.context,)


def substituted(template: str, values: Mapping[str, str]) -> str:
    """Returns a template with each `{name}` replaced once; braces in a value stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def require_form(form: PromptForm) -> None:
    """Refuses a form whose question or options would not be shown."""
    require(
        "{question}" in form.question,
        f"question is {form.question!r}; it needs {{question}}, where a record's own text goes.",
    )
    require(
        "{letter}" in form.option and "{choice}" in form.option,
        f"option is {form.option!r}; it needs {{letter}} and {{choice}}.",
    )


def _asked(form: PromptForm, question: str, group: str) -> str:
    return substituted(form.question, {"question": question, "group": group})
