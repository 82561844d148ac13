"""How much privacy a private run spends: the door to `dp_accounting`.

A step adds Gaussian noise to a clipped sum over rows that were drawn independently of each other.
Neighbouring data sets differ by one row, added or removed, so the sum's sensitivity is the clipping
norm. Source: Abadi et al. 2016, arXiv:1607.00133; its accountants: Mironov 2017, arXiv:1702.07476
(rdp), and Koskela et al. 2020, arXiv:1906.03049 (pld).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from gptjax.core.config import ConfigError, require

Accountant = Literal["pld", "rdp"]
"""`pld` composes the privacy loss itself and is the tighter; `rdp` goes by Rényi divergences."""

LEAST_NOISE, MOST_NOISE = 0.2, 1e4
"""Where a noise is looked for; below the first, epsilon is beyond any meaning."""
LONGER = 100
"""A run may become this many times as long, and its batches still have room for its draws."""
SPARED = 0.01
"""Share of delta that is kept for steps whose draw is larger than a batch."""


def _accounting() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise ConfigError(
            "dp-accounting, which counts epsilon, is not installed: pip install 'gptjax[privacy]'."
        ) from None
    return dp_accounting


def epsilon_of(
    noise: float, rate: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """Returns the epsilon of a number of steps; infinite without noise.

    Args:
      noise: standard deviation of the noise over the clipping norm.
      rate: probability with which a row is in a step.

    Raises:
      ConfigError: dp-accounting is not installed.
    """
    if steps == 0:
        return 0.0
    if noise == 0:
        return math.inf
    library = _accounting()
    step = library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(noise))
    made = library.pld.PLDAccountant() if accountant == "pld" else library.rdp.RdpAccountant()
    made.compose(library.SelfComposedDpEvent(step, steps))
    return float(made.get_epsilon(delta))


def noise_for(
    epsilon: float, rate: float, steps: int, delta: float, accountant: Accountant = "pld"
) -> float:
    """Returns the smallest noise, to 1e-3 of it, whose epsilon is at most the one asked for.

    Raises:
      ConfigError: no noise that would leave anything to learn is enough.
    """

    def spends(noise: float) -> float:
        return epsilon_of(noise, rate, steps, delta, accountant)

    low, high = LEAST_NOISE, 1.0
    while spends(high) > epsilon:
        low, high = high, 2 * high
        require(
            high <= MOST_NOISE,
            f"an epsilon of {epsilon} over {steps} steps with {rate:.2%} of the rows each needs a"
            f" noise above {MOST_NOISE:g}; use fewer steps, or a larger epsilon (--epsilon).",
        )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spends(middle) > epsilon else (low, middle)
    return high


def largest_draw(rate: float, count: int, steps: int, chance: float) -> int:
    """Returns the least number of rows that a draw exceeds in none of `steps` steps, but for a
    probability of at most `chance`.

    Args:
      count: rows that there are.
    """
    if rate >= 1:
        return count
    numbers = np.arange(count + 1)
    logs = (
        math.lgamma(count + 1)
        - np.array([math.lgamma(k + 1) + math.lgamma(count - k + 1) for k in numbers])
        + numbers * math.log(rate)
        + (count - numbers) * math.log1p(-rate)
    )
    above = np.cumsum(np.exp(logs)[::-1])[::-1]  # [k]: probability of at least k rows
    enough = np.flatnonzero(steps * np.append(above[1:], 0.0) <= chance)
    return int(enough[0])


def room_for_draws(epsilon: float, delta: float, rate: float, count: int, steps: int) -> int:
    """Returns how many rows a batch holds so that the share `SPARED` of delta pays for draws that
    are larger, which lose their last rows; also if the run becomes `LONGER` times as long.

    A mechanism that differs from an (ε, δ) private one by β in total variation is
    (ε, δ + (1 + e^ε) β) private.
    """
    if math.isinf(epsilon):
        return largest_draw(rate, count, steps, 1e-6)
    chance = SPARED * delta / (1 + math.exp(min(epsilon, 50.0)))
    return largest_draw(rate, count + 1, LONGER * steps, chance)
