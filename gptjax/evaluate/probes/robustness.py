"""How much accuracy a small change of the question costs.

Read `robustness_cases`, then `robustness_requests` and `robustness_findings`. Only the question is
changed, never what is scored; only records whose question does change count, each beside itself
unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.probes.asking import (
    Asked,
    cloze_answers,
    cloze_requests,
    right_answer,
    with_question,
)
from gptjax.evaluate.probes.finding import Finding, in_points, signed_mean
from gptjax.evaluate.probes.perturbations import DRAWN, Perturbation, perturbed
from gptjax.evaluate.records import Choices
from gptjax.evaluate.requests import Score, Scored


class Case(NamedTuple):
    """The records that one perturbation changes with one seed."""

    name: str
    seed: int
    numbers: list[int]
    """Of the records that it changes."""
    records: list[Asked]
    """These, changed."""


def robustness_cases(
    records: Sequence[Asked], perturbations: Mapping[str, Perturbation], seeds: int = 3
) -> list[Case]:
    """Returns a case for each perturbation and seed; of one that draws nothing there is one.

    Choices that stand in the question, and a continuation's own words in it, are left as they are.
    """
    cases = []
    for name, change in perturbations.items():
        for seed in range(seeds if name in DRAWN else 1):
            numbers, changed = [], []
            for number, record in enumerate(records):
                other = _changed(record, change, f"{name} {seed} {number}")
                if other != record:
                    numbers.append(number)
                    changed.append(other)
            cases.append(Case(name, seed, numbers, changed))
    return cases


def _changed(record: Asked, change: Perturbation, key: str) -> Asked:
    return with_question(record, lambda text: perturbed(text, change, key, _protected(record)))


def _protected(record: Asked) -> tuple[str, ...]:
    return record.choices if isinstance(record, Choices) else (record.continuation,)


def robustness_requests(records: Sequence[Asked], cases: Sequence[Case]) -> list[Score]:
    """Returns the requests of the records as they are, then those of each case."""
    asked = [*records, *(record for case in cases for record in case.records)]
    return [request for record in asked for request in cloze_requests(record)]


def robustness_findings(
    records: Sequence[Asked], cases: Sequence[Case], responses: Sequence[Scored]
) -> list[Finding]:
    """Returns the accuracy without changes, then for each perturbation the drop, over the records
    that it changes: the mean over seeds, and, where there are several, the worst, which counts a
    record as right only if it is right unchanged and with every seed.

    The worst drop is never below 0: an unsure model loses some records in it by chance alone.
    """
    asked = [*records, *(record for case in cases for record in case.records)]
    answers = cloze_answers(asked, responses)
    right = [a == right_answer(r) for a, r in zip(answers, asked, strict=True)]
    plain, at = right[: len(records)], len(records)
    lost: dict[str, dict[int, list[int]]] = {}
    for case in cases:
        rows = lost.setdefault(case.name, {})
        for number, still in zip(case.numbers, right[at : at + len(case.numbers)], strict=True):
            rows.setdefault(number, []).append(plain[number] - still)
        at += len(case.numbers)
    findings = [Finding("accuracy, unchanged", in_points(mean_of(plain)), None, "points")]
    for name, rows in lost.items():
        if not rows:
            continue
        mean = signed_mean([sum(drops) / len(drops) for drops in rows.values()])
        findings.append(Finding(f"drop, {name}", in_points(mean), 0.0, "points"))
        if name in DRAWN:
            worst = mean_of([max(0, *drops) for drops in rows.values()])
            findings.append(Finding(f"worst drop, {name}", in_points(worst), None, "points"))
    return findings
