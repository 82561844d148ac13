"""A finding: a figure beside the value that it would have if there were nothing to find.

Read `Finding`; then the intervals that a mean over items does not give: of paired differences, of
ratios over texts, of what chance alone makes larger than 0, of the area under a ROC curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.evaluate.figure import NORMAL, Figure, score_interval

PERCENT = 100.0


class Finding(NamedTuple):
    """A figure of a probe."""

    name: str
    figure: Figure
    null: float | None = None
    """Its value where there is no effect; `None` where no value means that."""
    unit: str = ""
    """`points` (per cent), `nats` or `bits`; empty for shares."""

    @property
    def found(self) -> bool:
        """Whether the interval excludes the value of no effect."""
        return self.null is not None and not self.figure.low <= self.null <= self.figure.high


def in_points(figure: Figure) -> Figure:
    """Returns a share, or a difference of shares, in per cent."""
    value, n, stderr, low, high = figure
    return Figure(PERCENT * value, n, PERCENT * stderr, PERCENT * low, PERCENT * high)


def signed_mean(values: Sequence[float] | np.ndarray) -> Figure:
    """Returns the mean of values in [−1, 1], one an item, such as differences of right and wrong.

    The interval is Wald's after half an item was added at −1, half at 1 and one at 0, so that it is
    no point where no item changes.

    Raises:
      ValueError: there are no values.

    Source: Agresti and Min 2005, Simple Improved Confidence Intervals for Comparing Matched
    Proportions, which has it for the values −1, 0 and 1.
    """
    array = np.asarray(values, np.float64)
    if not len(array):
        raise ValueError("a mean needs at least one item.")
    n = len(array) + 2
    middle = array.sum() / n
    stderr = math.sqrt(((np.square(array).sum() + 1) / n - middle**2) / n)
    low, high = max(-1.0, middle - NORMAL * stderr), min(1.0, middle + NORMAL * stderr)
    return Figure(float(array.mean()), len(array), stderr, float(low), float(high))


def share_of_counts(
    parts: Sequence[float] | np.ndarray, wholes: Sequence[float] | np.ndarray
) -> Figure:
    """Returns Σ parts / Σ wholes, where texts and not single words are independent.

    The interval is Wilson's for as many independent words as would give the linearised variance of
    the ratio over texts, but no more than there are texts: of a few texts that variance is unsure.

    Args:
      parts: counts in each text, at most `wholes`.

    Raises:
      ValueError: nothing was counted.

    Source: Cochran 1977, Sampling Techniques, section 6.4; Korn and Graubard 1998 for the effective
    number.
    """
    part, whole = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    part, whole = part[whole > 0], whole[whole > 0]
    if not len(whole):
        raise ValueError("a share needs something that was counted.")
    n, total = len(whole), whole.sum()
    share = float(part.sum() / total)
    variance = n / max(n - 1, 1) * np.square(part - share * whole).sum() / total**2
    independent = share * (1 - share) / variance if variance > 0 else n
    low, high = score_interval(share, min(independent, n))
    return Figure(share, n, math.sqrt(variance), low, high)


def beyond_chance(value: float, by_chance: Sequence[float], n: int) -> Figure:
    """Returns a statistic that is never below 0 and that chance alone makes larger, such as the
    largest of several differences.

    The interval is one-sided, from what chance leaves of the value to the value itself: its low end
    is the value minus the 95 % quantile of chance, and 0 where chance alone gives as much.

    Args:
      by_chance: the statistic in shuffles after which nothing is left but chance.
      n: items behind it.
    """
    most = float(np.quantile(np.asarray(by_chance, np.float64), 0.95))
    return Figure(value, n, float(np.std(by_chance)), max(0.0, value - most), value)


def area_under_roc(members: Sequence[float], others: Sequence[float]) -> Figure:
    """Returns the probability that a member's score exceeds another's; ties count half.

    The interval holds the areas from which the observed one is at most 1.96 standard deviations
    away; it stays inside [0, 1] and is no point where the two are wholly apart.

    Raises:
      ValueError: one of the two is empty.

    Source: Newcombe 2006, Confidence intervals for an effect size measure based on the
    Mann–Whitney statistic, part 2, method 5.
    """
    positive, negative = np.asarray(members, np.float64), np.sort(np.asarray(others, np.float64))
    m, n = len(positive), len(negative)
    if not (m and n):
        raise ValueError("an area needs members and others.")
    below = np.searchsorted(negative, positive, "left")
    not_above = np.searchsorted(negative, positive, "right")
    area = float((below + not_above).mean() / (2 * n))

    def variance(theta: float) -> float:
        more = (m + n) / 2 - 1
        pairs = more * (1 - theta) / (2 - theta) + more * theta / (1 + theta)
        return theta * (1 - theta) * (1 + pairs) / (m * n)

    def end(limit: float) -> float:
        inside, outside = area, limit
        for _ in range(60):
            theta = (inside + outside) / 2
            near = (theta - area) ** 2 <= NORMAL**2 * variance(theta)
            inside, outside = (theta, outside) if near else (inside, theta)
        return inside

    return Figure(area, m + n, math.sqrt(variance(area)), end(0.0), end(1.0))
