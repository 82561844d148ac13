"""Minimum Bayes risk: of several answers, the one that is most like all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np


def minimum_risk(
    texts: Sequence[str], utility: Callable[[str, str], float] | None = None
) -> list[int]:
    """Orders texts by their mean utility with each of the others as the reference, best first.

    Ties keep their order.

    Args:
      utility: (text, reference) → how good the text is; `None` is `chrf`.

    Source: Eikema & Aziz 2020, Is MAP Decoding All You Need?, arXiv:2005.10283, section 7.
    """
    utility = utility or chrf
    known: dict[tuple[str, str], float] = {}
    for text in texts:
        known |= {
            (text, truth): utility(text, truth) for truth in texts if (text, truth) not in known
        }
    means = [
        sum(known[text, truth] for j, truth in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]
    return np.argsort(-np.asarray(means), kind="stable").tolist()


def chrf(text: str, truth: str, most: int = 6, beta: float = 2.0) -> float:
    """The F-score of two texts over sequences of 1 to `most` characters, from mean precision and
    mean recall.

    Recall counts `beta` times. White space counts too, unlike in the paper. Two empty texts score
    1.

    Source: Popović 2015, chrF, Proceedings of the Tenth Workshop on Statistical Machine
    Translation.
    """
    if text == truth:
        return 1.0
    shares = []
    for n in range(1, most + 1):
        mine, other = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (text, truth))
        if mine or other:
            shared = (mine & other).total()
            shares.append((shared / max(mine.total(), 1), shared / max(other.total(), 1)))
    precision, recall = (sum(values) / len(shares) for values in zip(*shares, strict=True))
    return (
        (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
        if precision and recall
        else 0.0
    )
