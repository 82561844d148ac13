"""Slips of the keyboard in training rows: letters that are swapped, left out, doubled, or hit
beside their key. Each time a row is read it has others, a function of the seed and the row alone.

Read `CharacterNoise`, then `Noisy`, the task that reads rows with slips, then `with_slips`. Source:
Belinkov and Bisk 2018, Synthetic and Natural Noise Both Break Neural Machine Translation,
arXiv:1711.02173.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.data.rows import Plan, RowNumbers
from gptjax.data.store import Store
from gptjax.data.tasks.classification import Classification
from gptjax.data.tasks.language_model import LanguageModel
from gptjax.data.tasks.task import Task
from gptjax.data.tokenizers.tokenizer import Tokenizer

KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
TASKS: tuple[type[Task], ...] = (LanguageModel, Classification)
"""Tasks whose rows can be made anew from a changed text."""

_LONG = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True)
class CharacterNoise:
    """Character noise (`data.noise`): words of training rows get slips of the keyboard, others in
    every epoch. Held-out text stays as it is."""

    words: float = 0.0
    """Share of the words of four letters or more that get a slip; 0 changes nothing."""
    rows: float = 0.5
    """Share of the rows that have any; the rest are clean."""

    def __post_init__(self) -> None:
        for name in ("words", "rows"):
            value = getattr(self, name)
            require(
                0 <= value <= 1,
                f"data.noise.{name} is {value}; it needs a share in [0, 1]"
                f" (--data.noise.{name} 0.1).",
            )


@dataclass(frozen=True)
class Noisy(Task):
    """Reads the rows of another task with slips. What a row gains in tokens it loses at its end, so
    that its size stays as it is."""

    inner: Task
    noise: CharacterNoise
    tokenizer: Tokenizer

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, as numpy arrays. It depends on nothing else."""
        clean = self.inner.batch(store, plan._replace(task=self.inner), at)
        labels = self.inner.classes is not None
        noisy = clean._replace(
            **{
                name: np.array(value)
                for name, value in clean._asdict().items()
                if name in ("tokens", "targets", "weights", "segments", "positions")
                and value is not None
            }
        )
        for row, draw in enumerate(at.draws(plan.seed)):
            if draw.random() >= self.noise.rows:
                continue
            for where in _pieces(clean, row):
                ids = np.asarray(clean.tokens[row, where])
                ids = ids if labels else np.append(ids, clean.targets[row, where][-1])
                made = respelled(ids, self.tokenizer, functools.partial(self._slips, draw=draw))
                if made is not None:
                    (_labelled if labels else _predicted)(noisy, row, where, made)
        return noisy

    def _slips(self, text: str, draw: np.random.Generator) -> str:
        return with_slips(text, self.noise.words, draw)


def _predicted(batch: Batch, row: int, where: slice, ids: np.ndarray) -> None:
    """Puts a text whose tokens are predicted in the place of another. One that is shorter is filled
    up with its last id, which is not predicted."""
    size = where.stop - where.start + 1
    short = max(0, size - len(ids))
    whole = np.append(ids[:size], np.full(short, ids[-1]))
    batch.tokens[row, where], batch.targets[row, where] = whole[:-1], whole[1:]
    if short:
        batch.weights[row, where.stop - short : where.stop] = 0


def _labelled(batch: Batch, row: int, where: slice, ids: np.ndarray) -> None:
    """Puts a text with a label in the place of another: the label is read at the last place, so one
    that is shorter has padding before it."""
    size, last = where.stop - where.start, batch.tokens[row, where.stop - 1]
    kept = ids[:size]
    first = where.stop - len(kept)
    batch.tokens[row, first : where.stop] = kept
    batch.tokens[row, where.stop - 1] = last
    assert batch.positions is not None  # rows of records always count them
    batch.positions[row, first : where.stop] = np.arange(len(kept))
    batch.positions[row, where.start : first] = -1
    if batch.segments is not None:
        batch.segments[row, where.start : first] = 0


def _pieces(batch: Batch, row: int) -> list[slice]:
    """The places of each text of a row."""
    if batch.segments is None:
        real = np.flatnonzero(batch.weights[row] > 0)
        return [slice(0, int(real[-1]) + 1)] if len(real) else []
    segments = np.asarray(batch.segments[row])
    borders = np.flatnonzero(np.diff(segments)) + 1
    edges = [0, *borders.tolist(), len(segments)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if segments[a] > 0]


def respelled(
    ids: np.ndarray, tokenizer: Tokenizer, change: Callable[[str], str]
) -> np.ndarray | None:
    """Returns the ids of a changed text between the control tokens around it; `None` where they
    spell no whole text, or the tokenizer would write the text otherwise, or nothing changes."""
    spelled = [bool(tokenizer.pieces[i]) if i < len(tokenizer.pieces) else False for i in ids]
    real = np.flatnonzero(spelled)
    if not len(real) or not all(spelled[real[0] : real[-1] + 1]):
        return None
    before, middle, after = np.split(ids, [real[0], real[-1] + 1])
    try:
        text = tokenizer.token_bytes(middle.tolist()).decode("utf-8")
    except UnicodeDecodeError:
        return None
    for spelling in (text, text.removeprefix(" ")):
        if np.array_equal(tokenizer.encode(spelling), middle):
            changed = change(spelling)
            if changed == spelling:
                return None
            return np.concatenate([before, tokenizer.encode(changed), after]).astype(ids.dtype)
    return None


def with_slips(text: str, share: float, draw: np.random.Generator) -> str:
    """Returns a text in which this share of its longer words has a slip each, never in the first
    letter."""

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if draw.random() >= share:
            return word
        kind, at = draw.integers(4), int(draw.integers(1, len(word) - 1))
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        if kind == 1:
            return word[:at] + word[at + 1 :]
        if kind == 2:
            return word[:at] + word[at] + word[at:]
        return word[:at] + _beside(word[at], draw) + word[at + 1 :]

    return _LONG.sub(slip, text)


def _beside(letter: str, draw: np.random.Generator) -> str:
    """A letter beside this one on the keyboard; another's own."""
    row = next((row for row in KEYBOARD if letter.lower() in row), None)
    if row is None:
        return letter
    at = row.index(letter.lower())
    near = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    other = near[int(draw.integers(len(near)))]
    return other.upper() if letter.isupper() else other
