"""A figure: a value with the number of items behind it, its standard error and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NORMAL = 1.959963984540054
"""A normal variable lies within this many standard deviations of its mean 95 times in 100."""


class Figure(NamedTuple):
    """A mean over items, or another statistic of them."""

    value: float
    n: int
    """Items behind it."""
    stderr: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def mean_of(values: Sequence[float] | np.ndarray) -> Figure:
    """Returns the mean of one value an item.

    The standard error divides by n − 1. The interval of values that are all 0 or 1 is Wilson's,
    which stays inside [0, 1] and is no point where all items agree; of others it is normal.

    Raises:
      ValueError: there are no values.

    Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    array = np.asarray(values, np.float64)
    n = len(array)
    if not n:
        raise ValueError("a mean needs at least one item.")
    mean = float(array.mean())
    stderr = float(array.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    if np.isin(array, (0.0, 1.0)).all():
        low, high = score_interval(mean, n)
    else:
        low, high = mean - NORMAL * stderr, mean + NORMAL * stderr
    return Figure(mean, n, stderr, low, high)


def score_interval(share: float, n: float) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share of n, which need not be a whole number."""
    square = NORMAL**2 / n
    middle = (share + square / 2) / (1 + square)
    half = NORMAL * math.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    # rounding must not put the value outside of its own interval
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))
