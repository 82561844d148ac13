"""Figures of labels that all items share: confusion, and macro F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptjax.evaluate.figure import Figure
from gptjax.evaluate.figures.totals import bootstrap_of


def confusion_of(
    gold: Sequence[int], chosen: Sequence[int], labels: int
) -> tuple[tuple[int, ...], ...]:
    """Returns how often each label was right (rows) and chosen (columns)."""
    counts = _counts(np.asarray(gold), np.asarray(chosen), labels)
    return tuple(tuple(int(count) for count in row) for row in counts)


def macro_f1(gold: Sequence[int], chosen: Sequence[int], labels: int) -> Figure:
    """Returns the mean over labels of the F1 between right and chosen ones.

    A label that is neither right nor chosen anywhere does not count, as in scikit-learn.
    """
    right, taken = np.asarray(gold), np.asarray(chosen)

    def value(items: np.ndarray) -> float:
        counts = _counts(right[items], taken[items], labels)
        either = counts.sum(0) + counts.sum(1)
        return float((2 * np.diag(counts)[either > 0] / either[either > 0]).mean())

    return bootstrap_of(value, len(right))


def _counts(gold: np.ndarray, chosen: np.ndarray, labels: int) -> np.ndarray:
    return np.bincount(gold * labels + chosen, minlength=labels**2).reshape(labels, labels)
