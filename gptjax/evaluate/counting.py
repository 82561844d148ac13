"""Responses become items: what a model chose or wrote, and what that counts.

Read `items_of`, then what each kind of record counts: `_of_choices`, `_of_text` and the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from gptjax.evaluate.figures import text as texts
from gptjax.evaluate.figures.written import available, rouge_scores
from gptjax.evaluate.records import Choices, Contexts, Free, Pair, Question, Record
from gptjax.evaluate.report import Item
from gptjax.evaluate.requests import Response, Rolled, Scored
from gptjax.evaluate.tasks import Asked, TaskConfig
from gptjax.generate import Completion
from gptjax.rewards.numbers import last_number

RULES = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi")
"""Rules that choose an option by its log-probability: as it is; per character; per UTF-8 byte; per
token; less the log-probability that it has without its context."""


def measure_name(form: str, name: str) -> str:
    """Returns the name of a measure of a form: those of the letter form say so."""
    return f"letters/{name}" if form == "letters" else name


def items_of(task: TaskConfig, asked: Sequence[Asked], responses: Sequence[Response]) -> list[Item]:
    """Returns each record as it was asked and answered.

    Args:
      responses: to all requests of `asked`, in their order.
    """
    rest: Iterator[Response] = iter(responses)
    return [_item(task, one, [next(rest) for _ in one.requests]) for one in asked]


def _item(task: TaskConfig, asked: Asked, responses: Sequence[Response]) -> Item:
    record = asked.record
    item = Item(record.id, asked.form, asked.prompt, asked.options)
    if isinstance(responses[0], Completion):
        return _of_text(task, record, item, responses[0].text)
    if isinstance(responses[0], Rolled):
        rolled, bits = responses[0], -responses[0].logprob / math.log(2)
        return dataclasses.replace(
            item, logprobs=(rolled.logprob,), tokens=(rolled.tokens,), values={"bits": bits}
        )
    scored = cast(Sequence[Scored], responses)
    item = dataclasses.replace(
        item,
        logprobs=tuple(one.logprob for one in scored[: len(asked.options)]),
        tokens=tuple(one.tokens for one in scored[: len(asked.options)]),
        truncated=any(one.truncated for one in scored),
    )
    if isinstance(record, Choices):
        return _of_choices(task, record, item, [one.logprob for one in scored])
    if isinstance(record, Contexts):
        chosen = int(np.argmax(item.logprobs))
        acc = float(chosen == record.gold)
        return dataclasses.replace(item, gold=record.gold, chosen=chosen, values={"acc": acc})
    if isinstance(record, Pair):
        return _of_pair(record, item)
    values = {"acc": float(scored[0].greedy), "nats": -scored[0].logprob}
    return dataclasses.replace(item, gold=0, values=values)


def option_scores(item: Item, without: Sequence[float] | None = None) -> dict[str, np.ndarray]:
    """Returns the scores of an item's options under each rule.

    Args:
      without: ln p of each option without its context; `None` leaves that rule out.
    """
    logprobs = np.array(item.logprobs)
    scores = {
        "acc": logprobs,
        "acc_norm": logprobs / [len(option) for option in item.options],
        "acc_bytes": logprobs / [len(option.encode()) for option in item.options],
        "acc_token": logprobs / np.maximum(item.tokens, 1),
    }
    return scores if without is None else {**scores, "acc_pmi": logprobs - np.array(without)}


def _of_choices(task: TaskConfig, record: Choices, item: Item, logprobs: Sequence[float]) -> Item:
    scores = option_scores(item, logprobs[len(item.options) :])
    if item.form == "letters":  # of which all are equally long
        scores = {name: scores[name] for name in ("acc", "acc_pmi")}
    takes = {name: int(np.argmax(score)) for name, score in scores.items()}
    return dataclasses.replace(
        item,
        gold=record.gold,
        chosen=takes.get(task.metric, takes["acc"]),
        values={
            measure_name(item.form, name): float(take == record.gold)
            for name, take in takes.items()
        },
    )


def _of_pair(record: Pair, item: Item) -> Item:
    good, bad = item.logprobs
    name = "stereotype" if record.bias else "acc"
    values = {name: float(good > bad) if good != bad else 0.5, "logprob_difference": good - bad}
    return dataclasses.replace(item, gold=0, chosen=int(bad > good), values=values)


# --- what a model wrote


def _of_text(task: TaskConfig, record: Record, item: Item, written: str) -> Item:
    right = right_answers(record)
    scores = text_scores(record)
    values = {name: score(written, right) for name, score in scores.items()}
    if isinstance(record, Free) and "rougeL" in available():
        values |= rouge_scores(written, right)
    return dataclasses.replace(item, answers=right, written=written, values=values)


def right_answers(record: Record) -> tuple[str, ...]:
    """Returns the right answers of a question, or the references of a text."""
    if isinstance(record, Question):
        return (record.answer, *record.aliases)
    return record.references if isinstance(record, Free) else ()


def text_scores(record: Record) -> Mapping[str, Callable[[str, Sequence[str]], float]]:
    """Returns what is counted of a written answer to a record: name → (answer, right ones) →
    value."""
    if isinstance(record, Free):
        return {"f1": texts.token_f1}
    words = {
        "exact_match": texts.exact_match,
        "f1": texts.token_f1,
        "contained": texts.contained,
    }
    if isinstance(record, Question) and texts.right_number(record.answer) is not None:
        return {**words, "number_flexible": _flexible, "number_strict": _strict}
    return words


def _flexible(written: str, right: Sequence[str]) -> float:
    found = last_number(written)
    return max(texts.same_number(found, texts.right_number(one)) for one in right)


def _strict(written: str, right: Sequence[str]) -> float:
    marked = "####" in right[0]
    found = texts.marked_number(written) if marked else texts.right_number(written)
    return max(texts.same_number(found, texts.right_number(one)) for one in right)


# --- whole texts


def bytes_and_words(text: str) -> tuple[int, int]:
    """Returns the bytes and the words of a text; words are what white space separates."""
    return len(text.encode()), len(text.split())


def nats_of(item: Item) -> float:
    """Returns −ln p of an item's first option."""
    return -item.logprobs[0] if item.logprobs else math.nan
