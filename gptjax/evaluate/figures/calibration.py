"""How far the probabilities that a model gives to choices can be believed.

The probability of a choice is the softmax of the log-probabilities of all choices; confidence is
the largest of an item. Read `calibrate`, then the figures it is made of. About 300 items are needed
for ten bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.figures.totals import bootstrap_of

BINS = 10
ENOUGH = 300
"""Items from which ten bins say something.

Source: Liang et al. 2022, HELM, arXiv:2211.09110, whose code has this number."""


class Reliability(NamedTuple):
    """Figures of calibration."""

    ece: Figure
    """Expected calibration error over ten bins of equal mass."""
    ece_1: Figure
    """Over one bin: |mean confidence − accuracy|."""
    brier: Figure
    """Mean over items of the sum over choices of (probability − rightness)²."""
    selective_acc_10: Figure
    """Accuracy of the most confident tenth."""
    selective_area: Figure
    """Mean over k of the accuracy of the k most confident items: the area under the curve of
    accuracy against coverage."""
    temperature: float
    """Divides log-probabilities; fitted on every other item."""
    ece_unscaled: Figure
    """`ece` of the other half alone."""
    ece_scaled: Figure
    """`ece` of the other half, after scaling."""
    bins: tuple[tuple[float, float, int], ...]
    """Confidence, accuracy and items of each bin."""


def calibrate(logprobs: Sequence[Sequence[float]], gold: Sequence[int]) -> Reliability:
    """Returns the calibration of choices.

    Args:
      logprobs: of the choices of each item, whose number may differ.
    """
    scores = padded_scores(logprobs)
    right = np.asarray(gold)
    chances = option_probabilities(scores)
    sure, hit = chances.max(1), (chances.argmax(1) == right).astype(np.float64)
    temperature = fitted_temperature(scores[::2], right[::2]) if len(right) > 1 else 1.0
    other = slice(1, None, 2) if len(right) > 1 else slice(None)
    scaled = option_probabilities(scores[other] / temperature)
    order = np.argsort(-sure, kind="stable")
    tenth = max(1, round(0.1 * len(order)))
    return Reliability(
        ece=ece(sure, hit),
        ece_1=ece(sure, hit, bins=1),
        brier=mean_of(brier_scores(chances, right)),
        selective_acc_10=mean_of(hit[order[:tenth]]),
        selective_area=_selective_area(sure, hit),
        temperature=temperature,
        ece_unscaled=ece(sure[other], hit[other]),
        ece_scaled=ece(scaled.max(1), hit[other]),
        bins=reliability_bins(sure, hit),
    )


def padded_scores(logprobs: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns log-probabilities [items, choices]; −inf where an item has fewer choices."""
    most = max(len(one) for one in logprobs)
    return np.array([[*one, *[-np.inf] * (most - len(one))] for one in logprobs], np.float64)


def option_probabilities(scores: np.ndarray) -> np.ndarray:
    """Returns the softmax of each row."""
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def ece(sure: np.ndarray, hit: np.ndarray, bins: int = BINS) -> Figure:
    """Returns the expected calibration error: the mean over items of |confidence − accuracy| of
    their bin. Bins hold equally many items, in the order of confidence.

    Few items in a bin make it larger than it is: with n items it expects about
    0.8 √(accuracy (1 − accuracy) bins / n) even of perfect probabilities.

    Source: Guo et al. 2017, arXiv:1706.04599; equal mass: Nguyen and O'Connor 2015.
    """

    def value(items: np.ndarray) -> float:
        parts = _parts(sure[items], bins)
        gaps = [abs(float((sure[items][p] - hit[items][p]).sum())) for p in parts]
        return sum(gaps) / len(items)

    return bootstrap_of(value, len(sure))


def reliability_bins(
    sure: np.ndarray, hit: np.ndarray, bins: int = BINS
) -> tuple[tuple[float, float, int], ...]:
    """Returns mean confidence, accuracy and items of each bin of equal mass, by confidence."""
    parts = (part for part in _parts(sure, bins) if len(part))
    return tuple((float(sure[p].mean()), float(hit[p].mean()), len(p)) for p in parts)


def brier_scores(chances: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Returns of each item the sum over choices of (probability − rightness)²: 0 is right and
    sure, 2 is wrong and sure.

    Source: Brier 1950, Verification of Forecasts Expressed in Terms of Probability.
    """
    right = np.zeros_like(chances)
    right[np.arange(len(gold)), gold] = 1
    return ((chances - right) ** 2).sum(1)


def fitted_temperature(scores: np.ndarray, gold: np.ndarray) -> float:
    """Returns the temperature in [0.05, 20] under which right choices are likeliest.

    The mean log-probability is concave in 1 / temperature, so that a search by thirds of its
    logarithm finds the best one.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """

    def loss(log: float) -> float:
        chances = option_probabilities(scores / np.exp(log))[np.arange(len(gold)), gold]
        return -float(np.log(np.maximum(chances, 1e-300)).mean())

    low, high = np.log(0.05), np.log(20.0)
    for _ in range(60):
        third = (high - low) / 3
        if loss(low + third) <= loss(high - third):
            high -= third
        else:
            low += third
    return float(np.exp((low + high) / 2))


def _parts(sure: np.ndarray, bins: int) -> list[np.ndarray]:
    return np.array_split(np.argsort(sure, kind="stable"), bins)


def _selective_area(sure: np.ndarray, hit: np.ndarray) -> Figure:
    def value(items: np.ndarray) -> float:
        ordered = hit[items][np.argsort(-sure[items], kind="stable")]
        return float((np.cumsum(ordered) / np.arange(1, len(items) + 1)).mean())

    return bootstrap_of(value, len(sure))
