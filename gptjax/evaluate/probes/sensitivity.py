"""Whether the answer depends on the order of the choices and on the form of the prompt.

Orders are asked in the letters form (the choices are listed, the answer is a letter), forms in the
cloze form. Read `orders_of` and `order_findings`, then `FORMS` and `form_findings`. Sources:
Zheng et al. 2024, Large Language Models Are Not Robust Multiple Choice Selectors, arXiv:2309.03882;
Sclar et al. 2024, arXiv:2310.11324.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.probes.asking import PLAIN, cloze_answer, cloze_requests, likeliest
from gptjax.evaluate.probes.finding import (
    Finding,
    beyond_chance,
    in_points,
    share_of_counts,
    signed_mean,
)
from gptjax.evaluate.prompt_form import LETTERS, PromptForm, separator, worded
from gptjax.evaluate.records import Choices
from gptjax.evaluate.requests import Score, Scored

FORMS = {
    "bare": PLAIN,
    "Question/Answer": PromptForm("Question: {question}", "\nAnswer:"),
    "Q/A": PromptForm("Q: {question}", "\nA:"),
    "the answer is": PromptForm(cue="\nThe answer is"),
    "here is": PromptForm("Here is a question. {question}", "\nHere is the answer:"),
}
"""Prompt forms, by name; the question stands in them without its own labels."""

SHUFFLES = 999


class Turned(NamedTuple):
    """A record whose choices were moved on by some places, around the end."""

    record: Choices
    by: int

    def original(self, place: int) -> int:
        """Returns the number that the choice at a place has in the record as it was."""
        return (place + self.by) % len(self.record.choices)


def orders_of(record: Choices, most: int = len(LETTERS)) -> list[Turned]:
    """Returns a record in as many orders as it has choices, so that each choice is at each place
    once. A record with more than `most` choices has none."""
    count = len(record.choices)
    if count > min(most, len(LETTERS)):
        return []
    return [
        Turned(
            record._replace(
                choices=record.choices[by:] + record.choices[:by], gold=(record.gold - by) % count
            ),
            by,
        )
        for by in range(count)
    ]


def letters_requests(record: Choices) -> list[Score]:
    """Returns a request for the letter of each choice, after the question and the list of them."""
    text = worded(PLAIN, record, "letters")
    context = text.contexts[0]
    return [Score(context, separator(PLAIN, context, letter) + letter) for letter in text.options]


def bare_question(query: str) -> str:
    """Returns a question without the labels that its file puts around it."""
    text = re.sub(r"^\s*(?:question|q)\s*:\s*", "", query, flags=re.IGNORECASE)
    return re.sub(r"\s*\b(?:answer|a)\s*:\s*$", "", text, flags=re.IGNORECASE).strip()


def order_requests(records: Sequence[Choices]) -> list[Score]:
    """Returns the requests of all orders of all records."""
    return [
        request
        for record in records
        for turned in orders_of(record)
        for request in letters_requests(turned.record)
    ]


def order_findings(records: Sequence[Choices], responses: Sequence[Scored]) -> list[Finding]:
    """Returns accuracy over all orders; how far the best place of the right answer is above the
    worst in accuracy; how much oftener than its share each letter is chosen; and the share of
    records that keep their answer in every order.

    The largest difference is over the places that all records have.
    """
    logprobs = iter([response.logprob for response in responses])
    common = min((len(record.choices) for record in records if orders_of(record)), default=0)
    if not common:
        return []
    by_place: list[list[float]] = []  # right or not, by the place of the right answer
    kept: list[bool] = []
    above: dict[str, list[float]] = {}
    for record in records:
        turns = orders_of(record)
        if not turns:
            continue
        count = len(turns)
        places = [likeliest([next(logprobs) for _ in range(count)]) for _ in turns]
        answers = [turned.original(p) for turned, p in zip(turns, places, strict=True)]
        kept.append(len(set(answers)) == 1)
        row = [0.0] * count
        for turned, place in zip(turns, places, strict=True):
            row[turned.record.gold] = float(place == turned.record.gold)
        by_place.append(row)
        for place in range(count):
            above.setdefault(LETTERS[place], []).append(places.count(place) / count - 1 / count)
    table = np.asarray([row[:common] for row in by_place])
    right = share_of_counts(list(map(sum, by_place)), list(map(len, by_place)))
    return [
        Finding("accuracy over all orders", in_points(right), None, "points"),
        _spread("largest difference between places", table),
        *(
            Finding(f"{letter} chosen above its share", in_points(signed_mean(v)), 0.0, "points")
            for letter, v in sorted(above.items())
        ),
        Finding("same answer in every order", in_points(mean_of(kept)), None, "points"),
    ]


def form_requests(
    records: Sequence[Choices], forms: Mapping[str, PromptForm] = FORMS
) -> list[Score]:
    """Returns the requests of each record in all forms."""
    return [
        request
        for record in records
        for form in forms.values()
        for request in cloze_requests(record._replace(query=bare_question(record.query)), form)
    ]


def form_findings(
    records: Sequence[Choices],
    responses: Sequence[Scored],
    forms: Mapping[str, PromptForm] = FORMS,
) -> list[Finding]:
    """Returns the accuracy of each form, how far that of the best is above that of the worst, and
    the share of records that keep their answer in every form."""
    at = 0
    rows, kept = [], []
    for record in records:
        answers = []
        for _ in forms:
            count = len(record.choices)
            answers.append(cloze_answer(record, responses[at : at + count]))
            at += count
        rows.append([float(one == record.gold) for one in answers])
        kept.append(len(set(answers)) == 1)
    table = np.asarray(rows)
    accuracies = [
        Finding(f"accuracy, form {form}", in_points(mean_of(table[:, k])), None, "points")
        for k, form in enumerate(forms)
    ]
    return [
        *accuracies,
        _spread("largest difference between forms", table),
        Finding("same answer in every form", in_points(mean_of(kept)), None, "points"),
    ]


def _spread(name: str, table: np.ndarray, seed: int = 0) -> Finding:
    """Of right answers [items ways]: the best way's accuracy minus the worst's; by chance, that of
    ways exchanged at random in each item."""
    numbers = np.random.default_rng(seed)

    def spread(some: np.ndarray) -> float:
        return float(np.ptp(some.mean(0)))

    shuffled = [spread(numbers.permuted(table, axis=1)) for _ in range(SHUFFLES)]
    figure = in_points(beyond_chance(spread(table), shuffled, len(table)))
    return Finding(name, figure, 0.0, "points")
