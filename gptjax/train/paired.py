"""Whether one setting is better than another: runs of the same seeds, compared pair by pair.

Read `compare_runs`. Student's distribution is here in full, so that a statistic needs no further
package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core import config
from gptjax.core.config import require
from gptjax.observe.log import read_metrics

LEVEL = 0.05
"""Of the interval and of the seeds needed: 95 %."""
POWER = 0.8
"""Chance of seeing a difference as large as the one that was found, with the seeds needed."""


class Paired(NamedTuple):
    """The mean of a figure of runs a, minus that of runs b, over the seeds that both have."""

    difference: float
    low: float
    high: float
    """Ends of the 95 % interval of the difference."""
    p: float
    """Two-sided: how often chance alone makes so large a mean difference."""
    n: int
    """Number of pairs."""
    needed: int | None
    """Seeds that show a difference of this size at p < 0.05 four times in five; `None` if the pairs
    differ by nothing."""
    differences: tuple[float, ...]
    """Of each seed, in rising order of seeds."""
    unpaired: tuple[int, ...]
    """Seeds that only one side has."""


def compare_runs(
    runs_a: Iterable[Any], runs_b: Iterable[Any], figure: str = "validation_loss"
) -> Paired:
    """Compares two sets of runs by a figure of their last evaluation, paired by seed.

    The pairs share initial weights and order of the data where only other settings differ, so what
    a seed does to both cancels. A seed counts once: a repeated run has the same numbers, or differs
    by what is no draw of a seed.

    Args:
      runs_a: what `train_many` returned, run directories, or a mapping of seed → value.
      runs_b: likewise.
      figure: a name in metrics.jsonl.

    Raises:
      ConfigError: fewer than three seeds are in both, or a side has a seed twice.

    Source: Student 1908, The Probable Error of a Mean, Biometrika 6.
    """
    a, b = _by_seed(runs_a, figure, "the first"), _by_seed(runs_b, figure, "the second")
    shared = sorted(a.keys() & b.keys())
    require(
        len(shared) >= 3,
        f"{len(shared)} seeds are in both sets of runs; a comparison needs at least 3 (--seeds 3).",
    )
    differences = np.asarray([a[seed] - b[seed] for seed in shared], np.float64)
    require(
        bool(np.isfinite(differences).all()),
        f"{figure} is not finite in some runs, which diverged; compare others.",
    )
    n, mean, sd = len(shared), differences.mean(), differences.std(ddof=1)
    error = sd / math.sqrt(n)
    reach = student_quantile(1 - LEVEL / 2, n - 1) * error
    p = 1.0 if mean == 0 else 2 * student_tail(abs(mean) / error, n - 1) if error else 0.0
    return Paired(
        difference=float(mean),
        low=float(mean - reach),
        high=float(mean + reach),
        p=float(p),
        n=n,
        needed=seeds_needed(float(mean), float(sd)),
        differences=tuple(differences.tolist()),
        unpaired=tuple(sorted(a.keys() ^ b.keys())),
    )


def seeds_needed(difference: float, sd: float) -> int | None:
    """Returns the smallest number of pairs, at least 3, whose paired test finds a difference at
    p < 0.05 with a chance of 80 %; `None` if the difference is 0.

    Args:
      sd: standard deviation of the differences of single pairs.
    """
    if difference == 0:
        return None
    ratio = sd / abs(difference)

    def enough(n: int) -> bool:
        degrees = min(n - 1, 10**6)  # of more the distribution is the normal one
        reach = student_quantile(1 - LEVEL / 2, degrees) + student_quantile(POWER, degrees)
        return n >= (reach * ratio) ** 2

    few, many = 2, 3
    while not enough(many):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def _by_seed(runs: Iterable[Any], figure: str, side: str) -> dict[int, float]:
    """Seed → value.

    Raises:
      ConfigError: a seed is there twice, or a run has no such figure.
    """
    if isinstance(runs, Mapping):
        return {int(seed): float(value) for seed, value in runs.items()}
    found: dict[int, float] = {}
    for run in runs:
        seed, value = _read(Path(run)) if isinstance(run, str | Path) else (run.seed, run.figures)
        require(
            figure in value,
            f"{getattr(run, 'name', run)} has no {figure}; finish its training, or name another"
            " figure.",
        )
        require(
            seed not in found,
            f"{side} runs have the seed {seed} twice; repeats of one seed are no new evidence: use"
            " runs of different seeds (--seeds).",
        )
        found[int(seed)] = float(value[figure])
    return found


def _read(path: Path) -> tuple[int, dict[str, float]]:
    """The seed of a run directory, and its last evaluation."""
    file = path / "config.json"
    require(file.is_file(), f"{path} holds no config.json, so it is not a run.")
    seed = config.load_config(dict, file).get("seed")
    require(type(seed) is int, f"{file} has no seed, so {path} is not a run.")
    lines = [line for line in read_metrics(path) if "validation_loss" in line]
    last = lines[-1] if lines else {}
    return seed, {k: math.nan if v is None else v for k, v in last.items() if k != "sample"}


# --- Student's distribution


def student_tail(t: float, degrees: float) -> float:
    """Returns the probability that Student's t with these degrees of freedom is above t ≥ 0."""
    return 0.5 * _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def student_quantile(share: float, degrees: float) -> float:
    """Returns the t below which a share of Student's distribution lies; share in [0.5, 1)."""
    low, high = 0.0, 1.0
    while student_tail(high, degrees) > 1 - share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > 1 - share else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction.

    Source: Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 26.5.8; evaluated as
    Lentz 1976 does.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log1p(-x)) / a
    tiny, c, d, out = 1e-300, 1.0, 0.0, 1.0
    for i in range(300):
        m = i // 2
        if i == 0:
            numerator = 1.0
        elif i % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 + numerator * d
        d = 1 / (d if abs(d) > tiny else tiny)
        c = 1 + numerator / (c if abs(c) > tiny else tiny)
        out *= c * d
        if i and abs(1 - c * d) < 1e-15:
            break
    return front * (out - 1)
