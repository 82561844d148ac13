"""How probes ask for the answer to a record, and which answer a model gave.

Choices are asked in the cloze form: of each the log-probability divided by its characters (acc_norm
of lm-evaluation-harness). A continuation is right if each of its tokens is the likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gptjax.core.config import require
from gptjax.evaluate.prompt_form import PromptForm, separator, worded
from gptjax.evaluate.records import Choices, Continuation, Record
from gptjax.evaluate.requests import Score, Scored

PLAIN = PromptForm()
Asked = Choices | Continuation
"""Records with a question beside what is scored."""


def askable(records: Sequence[Record]) -> list[Asked]:
    """Returns the records.

    Raises:
      ConfigError: one has no question beside what is scored.
    """
    return [_of_kind(record, Asked, "choices or a continuation") for record in records]


def with_choices(records: Sequence[Record]) -> list[Choices]:
    """Returns the records.

    Raises:
      ConfigError: one has no choices.
    """
    return [_of_kind(record, Choices, "choices") for record in records]


def _of_kind(record: Record, kinds: Any, parts: str) -> Any:
    require(
        isinstance(record, kinds),
        f"record {record.id} is of the kind {type(record).__name__.lower()}; this probe needs"
        f" records with {parts} (--tasks FILE).",
    )
    return record


def cloze_requests(record: Asked, form: PromptForm = PLAIN) -> list[Score]:
    """Returns the requests that ask for the answer to a record, one for each option."""
    text = worded(form, record)
    context = text.contexts[0]
    return [Score(context, separator(form, context, one) + one) for one in text.options]


def cloze_answer(record: Asked, scored: Sequence[Scored]) -> int:
    """Returns the number of the choice that the model takes; of a continuation, 0 if it is
    right, otherwise 1."""
    if isinstance(record, Continuation):
        return 0 if scored[0].greedy else 1
    pairs = zip(scored, record.choices, strict=True)
    return likeliest([one.logprob / max(len(choice), 1) for one, choice in pairs])


def cloze_answers(records: Sequence[Asked], responses: Sequence[Scored]) -> list[int]:
    """Returns the answer to each record, from the responses to all their requests."""
    answers, at = [], 0
    for record in records:
        count = len(record.choices) if isinstance(record, Choices) else 1
        answers.append(cloze_answer(record, responses[at : at + count]))
        at += count
    return answers


def right_answer(record: Asked) -> int:
    """Returns the number of the right answer, as `cloze_answer` counts."""
    return record.gold if isinstance(record, Choices) else 0


def with_question(record: Asked, change: Callable[[str], str]) -> Asked:
    """Returns a record whose question is changed; what is scored, and so the right answer, is
    not."""
    if isinstance(record, Choices):
        return record._replace(query=change(record.query))
    return record._replace(context=change(record.context))


def likeliest(scores: Sequence[float]) -> int:
    """Returns the number of the largest score; of equal ones, the first."""
    return max(range(len(scores)), key=scores.__getitem__)
