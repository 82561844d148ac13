"""Linear probes: what a layer's activations say of a label, on held-out items and beside a control.

A probe that learns labels that mean nothing shows its own capacity, not the model's knowledge: so
every accuracy stands beside that of control labels, one random label for each token (Hewitt and
Liang 2019, Designing and Interpreting Probes with Control Tasks, arXiv:1909.03368).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class LinearProbe(NamedTuple):
    """A linear classifier of activations."""

    weight: np.ndarray
    """[D classes]"""
    bias: np.ndarray
    """[classes]"""

    def classify(self, features: np.ndarray) -> np.ndarray:
        """Returns the class of each item of [n D]."""
        return (np.asarray(features, np.float64) @ self.weight + self.bias).argmax(1)


class ProbeFigures(NamedTuple):
    """What probes of one layer find on held-out items; shares of right answers."""

    accuracy: float
    stderr: float
    """Standard error of the accuracy over held-out items."""
    control: float
    """Accuracy on control labels."""
    commonest: float
    """Accuracy of always saying the commonest label of the training items."""
    held_out: int
    """Held-out items."""

    @property
    def selectivity(self) -> float:
        """Accuracy above that on control labels."""
        return self.accuracy - self.control


def fit_probe(features: Any, labels: Any, classes: int, ridge: float = 1e-2) -> LinearProbe:
    """Returns the ridge regression of one-hot labels on features, in closed form and float64.

    Args:
      features: [n D]
      labels: [n], in [0, classes).
      ridge: penalty, as a share of the features' mean variance.
    """
    x, y = np.asarray(features, np.float64), np.eye(classes)[np.asarray(labels)]
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    square = x.T @ x
    penalty = ridge * max(np.trace(square) / len(square), np.finfo(np.float64).tiny)
    weight = np.linalg.solve(square + penalty * np.eye(len(square)), x.T @ y)
    return LinearProbe(weight, mean_y - mean_x @ weight)


def control_labels(tokens: Any, labels: Any, seed: int = 0) -> np.ndarray:
    """Returns a random label for each kind of token, the same wherever it stands, drawn as often as
    labels occur.

    Args:
      tokens: [n] the token of each item.
      labels: [n] the labels whose frequencies are kept.
    """
    kinds, which = np.unique(np.asarray(tokens), return_inverse=True)
    drawn = np.random.default_rng(seed).choice(np.asarray(labels), len(kinds))
    return drawn[which.reshape(-1)]


def probe_layers(
    features: Any,
    labels: Any,
    tokens: Any,
    held_out: Any,
    *,
    ridge: float = 1e-2,
    seed: int = 0,
) -> list[ProbeFigures]:
    """Returns what a probe of each layer finds.

    Args:
      features: [levels n D], such as `residual_streams` of the items' tokens.
      labels: [n] whole numbers from 0 on.
      tokens: [n] the token of each item, for the control labels.
      held_out: [n] flags of the items that no probe is fitted to; split by text, not by token, or
        neighbours tell.

    Raises:
      ValueError: all items are held out, or none.
    """
    labels, held = np.asarray(labels), np.asarray(held_out, bool)
    if held.all() or not held.any():
        raise ValueError(
            f"{held.sum()} of {len(held)} items are held out; probes need some to fit and some to"
            " test."
        )
    classes = int(labels.max()) + 1
    control = control_labels(tokens, labels, seed)
    commonest = np.bincount(labels[~held], minlength=classes).argmax()
    found = []
    for layer in features:
        x = np.asarray(layer, np.float64)

        def accuracy(wanted: np.ndarray, x: np.ndarray = x) -> float:
            probe = fit_probe(x[~held], wanted[~held], classes, ridge)
            return float((probe.classify(x[held]) == wanted[held]).mean())

        share, count = accuracy(labels), int(held.sum())
        found.append(
            ProbeFigures(
                accuracy=share,
                stderr=math.sqrt(share * (1 - share) / count),
                control=accuracy(control),
                commonest=float((labels[held] == commonest).mean()),
                held_out=count,
            )
        )
    return found
