"""Two evaluations of the same items, item by item.

Read `compare_reports`, then `compare_values` and `mcnemar`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.evaluate.figure import Figure
from gptjax.evaluate.figures.totals import bootstrap_of
from gptjax.evaluate.report import Comparison, Flip, Report, TaskReport


class Difference(NamedTuple):
    """One evaluation minus another over the same items."""

    figure: Figure
    p: float | None
    gained: int
    lost: int
    flips: tuple[Flip, ...]


def compare_reports(report: Report, other: Report) -> tuple[Comparison, ...]:
    """Returns a comparison of each task that both have, by its headline.

    Raises:
      ConfigError: they share no task, or a task of theirs was measured on other records or on none
        in common.
    """
    others = {task.name: task for task in other.tasks}
    require_comparable({task.name: task.content for task in report.tasks}, other)
    shared = [task for task in report.tasks if task.name in others]
    return tuple(_compared(task, others[task.name], other.model) for task in shared)


def require_comparable(contents: Mapping[str, str], other: Report) -> None:
    """Refuses an evaluation that shares no task, or has other records in one.

    Args:
      contents: task → hash of all its records.
    """
    others = {task.name: task for task in other.tasks}
    require(
        bool(contents.keys() & others.keys()),
        f"the other evaluation has the tasks {', '.join(others)}, and this one"
        f" {', '.join(contents)}; compare evaluations that share one (--against).",
    )
    for name in contents.keys() & others.keys():
        require(
            contents[name] == others[name].content,
            f"{name} was measured on other records, those of another {others[name].file}; evaluate"
            " both on the same file.",
        )


def _compared(task: TaskReport, other: TaskReport, model: str) -> Comparison:
    name, before_name = _measures(task, other)
    now, before = _values(task, name), _values(other, before_name)
    both = {key: (now[key], before[key]) for key in now if key in before}
    require(
        bool(both),
        f"{task.name} was measured on other items; evaluate both with the same --limit and --seed.",
    )
    made = compare_values(both)
    return Comparison(
        task=task.name,
        measure=name if name == before_name else f"{name} against {before_name}",
        other=model,
        figure=made.figure,
        p=made.p,
        gained=made.gained,
        lost=made.lost,
        flips=made.flips,
        notes=tuple(_differences(task, other, len(both))),
    )


def compare_values(both: Mapping[str, tuple[float, float]]) -> Difference:
    """Returns the mean of the first value less the second, and the items in which they differ.

    The interval is that of 1,000 bootstraps over items. Where all values are 0 or 1, p is that of
    McNemar's exact test.

    Args:
      both: item → its values in this evaluation and in the other.
    """
    now = np.array([pair[0] for pair in both.values()], np.float64)
    before = np.array([pair[1] for pair in both.values()], np.float64)
    change = now - before
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    binary = bool(np.isin(now, (0, 1)).all() and np.isin(before, (0, 1)).all())
    flips = [Flip(key, old, new) for key, (new, old) in both.items() if new != old]
    return Difference(
        bootstrap_of(lambda items: float(change[items].mean()), len(change)),
        mcnemar(gained, lost) if binary else None,
        gained,
        lost,
        tuple(sorted(flips, key=lambda flip: -abs(flip.after - flip.before))),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Returns the two-sided p of McNemar's exact test: how often as uneven a split of the items
    that differ would come of fair coins.

    Source: McNemar 1947, Note on the Sampling Error of the Difference Between Correlated
    Proportions or Percentages.
    """
    n, least = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


def _measures(task: TaskReport, other: TaskReport) -> tuple[str, str]:
    """The headline of one, or the first measure, that all items of both have; or, where they were
    asked in different forms, the headline of each."""
    names = (task.headline, other.headline, *(one.name for one in task.measures))
    for name in names:
        if _values(task, name) and _values(other, name):
            return name, name
    require(
        bool(_values(task, task.headline) and _values(other, other.headline)),
        f"{task.name} has no figure in both evaluations that is a mean over items; evaluate both"
        " with the same --metric.",
    )
    return task.headline, other.headline


def _values(task: TaskReport, name: str) -> dict[str, float]:
    return {item.id: item.values[name] for item in task.items if name in item.values}


def _differences(task: TaskReport, other: TaskReport, n: int) -> Iterator[str]:
    drawn = task.settings.get("shots") or other.settings.get("shots")
    idle = {"limit", "first", *(() if drawn else ("seed",))}  # which items: both are in both
    for key in dict.fromkeys((*task.settings, *other.settings)):
        if key in idle:
            continue
        new, old = task.settings.get(key), other.settings.get(key)
        if new != old:
            yield f"{key} is {new!r} here and {old!r} there"
    if n < max(task.n, other.n):
        yield f"only {n:,} items are in both"
    if task.identity.parts.get("code") != other.identity.parts.get("code"):
        yield "the code differs"
