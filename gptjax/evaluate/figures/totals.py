"""Figures that are no mean over items: ratios of sums, exponentials of means, and any statistic by
resampling items.

Read `bootstrap_of`, which `figures.calibration` and `figures.classes` use, and `jackknife_of`,
which `figures.written` does, then `ratio_of`, `exp_of` and `centred_mean`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.evaluate.figure import NORMAL, Figure, mean_of

ROUNDS = 1000
"""Resamplings of a bootstrap."""


def bootstrap_of(
    statistic: Callable[[np.ndarray], float], n: int, *, rounds: int = ROUNDS, seed: int = 0
) -> Figure:
    """Returns a statistic of items, with the standard error and the interval of resampled items.

    Args:
      statistic: numbers of items, of which some may be there twice → its value.

    Source: Efron 1979, Bootstrap Methods: Another Look at the Jackknife; percentile interval.
    """
    value = statistic(np.arange(n))
    if n < 2:
        return Figure(value, n, math.nan, math.nan, math.nan)
    draw = np.random.default_rng(seed)
    values = np.array([statistic(draw.integers(0, n, n)) for _ in range(rounds)])
    low, high = np.quantile(values, (0.025, 0.975))
    return Figure(value, n, float(values.std(ddof=1)), float(low), float(high))


def jackknife_of(
    statistic: Callable[[np.ndarray], float], n: int, *, groups: int = 20, seed: int = 0
) -> Figure:
    """Returns a statistic of items that takes long to compute: its standard error comes from
    leaving out one group of items at a time, its interval is normal.

    Args:
      statistic: numbers of items → its value.

    Source: Kott 2001, The Delete-a-Group Jackknife.
    """
    value, order = statistic(np.arange(n)), np.random.default_rng(seed).permutation(n)
    if n < 2:
        return Figure(value, n, math.nan, math.nan, math.nan)
    left_out = np.array_split(order, min(groups, n))
    values = np.array([statistic(np.setdiff1d(order, group)) for group in left_out])
    count = len(values)
    stderr = float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))
    return Figure(value, n, stderr, value - NORMAL * stderr, value + NORMAL * stderr)


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Figure:
    """Returns the sum of one value an item over the sum of another, such as bits over bytes.

    The standard error is that of a ratio estimator (to first order), the interval normal.

    Source: Cochran 1977, Sampling Techniques, section 2.11.
    """
    a, b = np.asarray(above, np.float64), np.asarray(below, np.float64)
    n, value = len(a), float(a.sum() / b.sum())
    if n < 2:
        return Figure(value, n, math.nan, math.nan, math.nan)
    stderr = float((a - value * b).std(ddof=1) / math.sqrt(n) / b.mean())
    return Figure(value, n, stderr, value - NORMAL * stderr, value + NORMAL * stderr)


def exp_of(figure: Figure) -> Figure:
    """Returns the exponential of a figure, such as the perplexity of a mean of nats; its interval
    is that of the figure, through the same function, its standard error to first order."""
    value = _exp(figure.value)
    return Figure(value, figure.n, value * figure.stderr, _exp(figure.low), _exp(figure.high))


def centred_mean(accuracies: Sequence[Figure], chances: Sequence[float]) -> Figure:
    """Returns the mean over tasks of (accuracy − chance) / (1 − chance): 0 is chance, 1 is all.

    The standard error joins those of the tasks, as if their items were independent: it says how
    far the figure would move with other items of these tasks, not with other tasks.

    Source: Li et al. 2024, DataComp-LM, arXiv:2406.11794, section 3.5 (CORE).
    """
    pairs = list(zip(accuracies, chances, strict=True))
    values = [(figure.value - chance) / (1 - chance) for figure, chance in pairs]
    errors = [figure.stderr / (1 - chance) for figure, chance in pairs]
    value = mean_of(values).value
    stderr = math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)
    return Figure(value, len(values), stderr, value - NORMAL * stderr, value + NORMAL * stderr)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
