"""What an attacker learns from a model: canaries' exposure, membership by loss, and the epsilon
that these prove to be a lower bound.

An audit can only refute a promise: its bound is below the true epsilon, often far below. Without
noise it should be high, or it sees nothing. Read `row_losses`, then the three measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Array, Float, Params
from gptjax.data.layouts import Batch
from gptjax.train.step import Objective


def row_losses(objective: Objective) -> Callable[[Params, Batch], Float[Array, " B"]]:
    """Returns (params, batch) → the mean loss of each row, without dropout."""

    def losses(params: Params, batch: Batch) -> Array:
        def one(row: Batch) -> Array:
            total, (weight, _) = objective(params, jax.tree.map(lambda x: x[None], row), None)
            return total / weight

        return jax.lax.map(one, batch)

    return losses


def exposures(
    inserted: Float[np.ndarray, " n"], others: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """Returns the exposure of each canary in bits: log2 of the number of texts that could have
    stood in its place, minus log2 of its rank among them. 0 to log2(m + 1); about 1.4 if the model
    knows nothing of it.

    Args:
      inserted: losses of canaries that were trained on.
      others: losses of texts from the same distribution that were not.

    Source: Carlini et al. 2019, The Secret Sharer, arXiv:1802.08232, section 4.
    """
    below = (others[None] < inserted[:, None]).sum(1) + 0.5 * (
        others[None] == inserted[:, None]
    ).sum(1)
    return math.log2(len(others) + 1) - np.log2(1 + below)


class Roc(NamedTuple):
    """A membership attack: who has a lower loss is said to have been trained on."""

    false_positives: np.ndarray
    true_positives: np.ndarray
    """Shares at each threshold, both rising from 0 to 1."""
    area: float
    """0.5 is a guess."""


def membership(members: np.ndarray, others: np.ndarray) -> Roc:
    """Returns the curve of the attack by a threshold of the loss.

    Args:
      members: losses of rows that were trained on.
      others: of rows that were not.

    Source: Yeom et al. 2018, Privacy Risk in Machine Learning, arXiv:1709.01604, section 4.
    """
    at = np.unique(np.concatenate([members, others]))
    true = np.concatenate([[0.0], (members[:, None] <= at[None]).mean(0)])
    false = np.concatenate([[0.0], (others[:, None] <= at[None]).mean(0)])
    area = float(np.sum((false[1:] - false[:-1]) * (true[1:] + true[:-1]) / 2))
    return Roc(false, true, area)


def audited_epsilon(
    scores: np.ndarray,
    inserted: np.ndarray,
    delta: float,
    guesses: int,
    level: float = 0.05,
) -> float:
    """Returns a lower bound of epsilon that holds with confidence 1 − level, from one trained model
    whose canaries were inserted or not by fair coins.

    The attacker guesses `guesses` / 2 canaries with the lowest scores to be in, and as many with
    the highest to be out. Under (ε, δ) privacy each guess is right with a probability of at most
    e^ε / (1 + e^ε), whatever the canaries do to each other.

    Args:
      scores: of each canary, low if it seems to have been trained on: its loss.
      inserted: whether each was.
      guesses: chosen before the scores are looked at.

    Source: Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run,
    arXiv:2305.08846, theorem 5.2.
    """
    order, half, count = np.argsort(scores, kind="stable"), guesses // 2, len(scores)
    if not 0 < half <= count // 2:
        raise ValueError(f"guesses is {guesses}; it needs 2 to {count // 2 * 2}, two for two.")
    right = int(inserted[order[:half]].sum() + (~inserted[order[-half:]]).sum())
    low, high = 0.0, 50.0
    if _chance_of(right, 2 * half, 0.0, delta, count) > level:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        likely = _chance_of(right, 2 * half, middle, delta, count) > level
        low, high = (low, middle) if likely else (middle, high)
    return low


def _chance_of(right: int, guesses: int, epsilon: float, delta: float, count: int) -> float:
    """The largest probability with which an (ε, δ) private model allows as many right guesses."""
    q = 1 / (1 + math.exp(-epsilon))
    chances = np.exp(_log_binomial(guesses, q))
    at_least = np.cumsum(chances[::-1])[::-1]
    tail = float(at_least[right])
    before = np.cumsum(chances[:right][::-1])  # [i − 1]: right − i … right − 1 guesses
    numbers = np.arange(1, count + 1)
    reached = before[np.minimum(numbers, max(1, right)) - 1] if right else np.zeros(count)
    return tail + delta * count * float((2 * reached / numbers).max())


def _log_binomial(n: int, q: float) -> np.ndarray:
    """ln of the probability of 0 … n successes."""
    k = np.arange(n + 1)
    ways = np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in k])
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(k == n, 0.0, (n - k) * np.log1p(-q))
    return math.lgamma(n + 1) - ways + k * math.log(q) + lost


def clopper_pearson(right: int, n: int, level: float = 0.05) -> tuple[float, float]:
    """Returns the ends of the exact two-sided interval of a share of which `right` of n were seen.

    Source: Clopper and Pearson 1934, Biometrika 26.
    """

    def solve(wanted: float, tail: Callable[[float], float]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle) < wanted else (low, middle)
        return (low + high) / 2

    def at_least(q: float) -> float:
        return float(np.exp(_log_binomial(n, q))[right:].sum())

    def above(q: float) -> float:
        return float(np.exp(_log_binomial(n, q))[right + 1 :].sum())

    low = 0.0 if right == 0 else solve(level / 2, at_least)
    high = 1.0 if right == n else solve(1 - level / 2, above)
    return low, high


def epsilon_by_threshold(roc: Roc, members: int, others: int, delta: float, level: float) -> float:
    """Returns the largest epsilon that the intervals of an attack's errors prove, over all its
    thresholds: ln((true positives − δ) / false positives).

    It holds for canaries that were trained independently of each other, one in a model; the level
    is shared by all thresholds (Bonferroni). For one model use `audited_epsilon`.
    """
    best, tests = 0.0, len(roc.true_positives)
    for true, false in zip(roc.true_positives, roc.false_positives, strict=True):
        seen, wrong = round(true * members), round(false * others)
        least = clopper_pearson(seen, members, level / tests)[0]
        most = clopper_pearson(wrong, others, level / tests)[1]
        if least > delta and most > 0:
            best = max(best, math.log((least - delta) / most))
    return best
