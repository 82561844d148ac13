"""Whether the model continues a training text word for word from its beginning.

Read `continuation_requests`, then `continuation_findings`. Sources: Carlini et al. 2023,
Quantifying Memorization Across Neural Language Models, arXiv:2202.07646 (a text is extractable if
the most likely continuation of its k-token prefix is its own); longest common prefix and edit
similarity as in Liang et al. 2022, arXiv:2211.09110, section 4.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.probes.finding import Finding
from gptjax.evaluate.requests import Write
from gptjax.generate import Completion, SampleConfig


def continuation_requests(pieces: Sequence[Sequence[int]], prefix: int) -> list[Write]:
    """Returns for each piece a greedy continuation of its first `prefix` ids, as long as the
    rest."""
    return [
        Write(list(piece[:prefix]), SampleConfig(new_tokens=len(piece) - prefix, temperature=0))
        for piece in pieces
    ]


class Recall(NamedTuple):
    """How much of the rest of a piece was written."""

    exact: bool
    common: int
    """Length of the longest common prefix, in tokens."""
    similarity: float
    """1 − edit distance / length of the longer, over tokens."""


def recalls(
    pieces: Sequence[Sequence[int]], prefix: int, responses: Sequence[Completion]
) -> list[Recall]:
    """Compares each continuation with the rest of its piece."""
    found = []
    for piece, written in zip(pieces, responses, strict=True):
        rest = list(piece[prefix:])
        ids = [*written.ids, *(() if written.end is None else (written.end[0],))]
        same = [a == b for a, b in zip(rest, ids, strict=False)]
        common = same.index(False) if False in same else len(same)
        longer = max(len(rest), len(ids), 1)
        found.append(Recall(ids == rest, common, 1 - edit_distance(rest, ids) / longer))
    return found


def continuation_findings(train: Sequence[Recall], held_out: Sequence[Recall]) -> list[Finding]:
    """Returns the share of exact continuations, the mean common prefix and edit similarity of
    training text, and, where there is held-out text, by how much each exceeds it there."""
    findings = []
    for name, unit, values in (
        ("exact continuation", "", [[r.exact for r in some] for some in (train, held_out)]),
        ("common prefix", "tokens", [[r.common for r in some] for some in (train, held_out)]),
        ("edit similarity", "", [[r.similarity for r in some] for some in (train, held_out)]),
    ):
        own = mean_of(values[0])
        findings.append(Finding(f"{name}, training text", own, None, unit))
        if held_out:
            other = mean_of(values[1])
            findings.append(Finding(f"{name}, held-out text", other, None, unit))
            difference = difference_of(own, other)
            findings.append(Finding(f"{name}, training − held-out", difference, 0.0, unit))
    return findings


def difference_of(one: Figure, other: Figure) -> Figure:
    """Returns the difference of two figures of different items; the interval is made of both
    intervals, so that it is no point where all items of each agree.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions,
    method 10; Donner and Zou 2012 for other figures.
    """
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    stderr = math.hypot(one.stderr, other.stderr)
    return Figure(value, min(one.n, other.n), stderr, value - below, value + above)


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many ids have to be inserted, deleted or replaced (Levenshtein)."""
    row = np.arange(len(other) + 1)
    letters, steps = np.asarray(other, np.int64), np.arange(len(other) + 1)
    for i, letter in enumerate(one, 1):
        best = np.minimum(row[:-1] + (letters != letter), row[1:] + 1)
        best = np.concatenate([[i], best])
        row = np.minimum.accumulate(best - steps) + steps  # insertions, from left to right
    return int(row[-1])
