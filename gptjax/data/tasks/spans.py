"""Denoising: a row is split into a text that is read and one that is written.

Read `SplitTask`, then the tasks that say how: `SpanCorruption`, `PrefixLanguageModel`, `UL2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.core.config import formerly, require
from gptjax.data.layouts import Batch, answer, filled
from gptjax.data.rows import Plan
from gptjax.data.tasks.task import Shape, Task
from gptjax.data.tokenizers.tokenizer import Tokenizer

MARKS = 100
"""Ids that mark spans, as many as T5 has; the last one comes before the answer."""


class SplitTask(Task):
    """Base of tasks that split a row into a text that is read and one that is written."""

    shapes: ClassVar[tuple[Shape, ...]] = ("encoder-decoder", "decoder")
    answers: ClassVar[bool] = True
    writes: ClassVar[bool] = True

    def split(
        self, ids: np.ndarray, vocab_size: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is read of a row, and what is written.

        Args:
          vocab_size: of the tokenizer; the task's own ids begin here.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `split`.")

    def sizes(self, length: int) -> tuple[int, int, int]:
        """Returns the maximum number of ids that are read, that are written, and of both together,
        for a row of `length`."""
        raise NotImplementedError(f"{type(self).__name__} needs a method `sizes`.")

    def pairs_per_row(self, width: int, with_encoder: bool) -> int:
        """Returns the most ids of which both halves fit into a row."""

        def fits(length: int) -> bool:
            read, written, both = self.sizes(length)
            return max(read, written) <= width if with_encoder else both <= width

        return next((length for length in range(width, 2, -1) if fits(length)), 2)

    def rows(
        self, rows: Batch, *, draws: Iterator[np.random.Generator], vocab_size: int, plan: Plan
    ) -> Batch:
        """Splits each row; with an encoder the rows of the decoder are only as wide as what is
        written."""
        begin = vocab_size + self.extra_ids - 1
        tokens, real = np.asarray(rows.tokens), np.asarray(rows.weights) > 0
        pieces = []
        for ids, where, draw in zip(tokens, real, draws, strict=True):
            read, written = self.split(ids[where], vocab_size, draw)
            pieces.append([answer(read, written, begin, plan.with_encoder)])
        if plan.with_encoder:
            return filled(pieces, self.sizes(plan.length)[1], plan.width, packed=False)
        return filled(pieces, plan.width, packed=False)

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns the prompt as what is read, and the id before an answer as what is written."""
        begin = tokenizer.vocab_size + self.extra_ids - 1
        return ([*ids], [begin]) if with_encoder else ([], [*ids, begin])


@dataclass(frozen=True)
class SpanCorruption(SplitTask):
    """Spans of a row are predicted from the rest of it: the row with a mark in place of each span
    is read, marks and spans are written.

    Source: Raffel et al. 2020, T5, arXiv:1910.10683, section 3.1.4, with new spans in every epoch.
    """

    share: float = 0.15
    """Share of the tokens that are predicted."""
    span: float = 3.0
    """Mean length of a span, in tokens."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")
        require(self.span >= 1, f"data.task.span is {self.span}; it needs at least 1 token.")

    @property
    def extra_ids(self) -> int:
        """Marks of spans, and the id before an answer."""
        return MARKS

    @property
    def mode(self) -> int:
        """Mode of UL2: 2 (X) for spans that are long or cover much of the row, else 0 (R)."""
        return 2 if self.span >= 12 or self.share >= 0.3 else 0

    def counts(self, length: int) -> tuple[int, int]:
        """Returns (corrupted tokens, spans) for a row of `length` tokens."""
        hidden = min(max(1, round(length * self.share)), length - 1)
        spans = min(round(hidden / self.span), hidden, length - hidden, MARKS - 2)
        return hidden, max(1, spans)

    def sizes(self, length: int) -> tuple[int, int, int]:
        """Returns the number of ids that are read, that are written, and of both together, for a
        row of `length`."""
        hidden, spans = self.counts(length)
        return length - hidden + spans, hidden + spans + 1, length + 2 * spans + 1

    def split(
        self, ids: np.ndarray, vocab_size: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the row with its spans replaced by marks, and the spans, each after its mark."""
        if len(ids) < 2:
            return ids, ids[:0]
        hidden, spans = self.counts(len(ids))
        kept_lengths = _partition(len(ids) - hidden, spans, draw)
        span_lengths = _partition(hidden, spans, draw)
        borders = np.cumsum(np.stack([kept_lengths, span_lengths], axis=1).reshape(-1))
        pieces = np.split(ids, borders[:-1])
        marks = vocab_size + np.arange(spans + 1, dtype=np.int32)
        read, written = [], []
        for mark, kept, span in zip(marks[:-1], pieces[::2], pieces[1::2], strict=True):
            read += [kept, [mark]]
            written += [[mark], span]
        written.append(marks[-1:])
        return np.concatenate(read).astype(np.int32), np.concatenate(written).astype(np.int32)


def _partition(total: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """Lengths of `count` parts of at least one that sum to `total`, all divisions equally
    likely."""
    if count == 1:
        return np.asarray([total])
    cuts = np.sort(draw.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


@dataclass(frozen=True)
class PrefixLanguageModel(SplitTask):
    """The end of a row is predicted from its beginning, which may see itself both ways; the border
    differs in every epoch.

    Source: Raffel et al. 2020, T5, arXiv:1910.10683, sections 3.2.1 and 3.2.2.
    """

    share: float = 0.5
    """Mean share of the tokens that are predicted. The share of a row is drawn uniformly from the
    widest interval around it."""

    shapes: ClassVar[tuple[Shape, ...]] = ("decoder", "encoder-decoder")
    mode: ClassVar[int] = 1
    """Mode of UL2: S."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, f"data.task.share is {self.share}; it needs a share in (0, 1).")

    @property
    def extra_ids(self) -> int:
        """The id before an answer."""
        return 1

    def bounds(self, length: int) -> tuple[int, int]:
        """Returns the fewest and the most tokens that are predicted of a row of `length`."""
        mean = self.share * length
        least = max(1, round(2 * mean - length))
        return least, max(least, min(length - 1, round(2 * mean) - 1))

    def sizes(self, length: int) -> tuple[int, int, int]:
        """Returns the maximum number of ids that are read, that are written, and of both together,
        for a row of `length`."""
        least, most = self.bounds(length)
        return length - least, most, length

    def split(
        self, ids: np.ndarray, vocab_size: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cuts the row in two at a random place."""
        if len(ids) < 2:
            return ids, ids[:0]
        least, most = self.bounds(len(ids))
        border = len(ids) - int(draw.integers(least, most + 1))
        return ids[:border], ids[border:]


@formerly("Denoisers")
@dataclass(frozen=True)
class UL2(SplitTask):
    """A mixture of denoisers: each row is split by one of them and begins with the id of its mode:
    R, short and few spans; S, a prefix; X, spans that are long (12 tokens and more) or many (30 %
    and more).

    Source: Tay et al. 2022, UL2, arXiv:2205.05131, section 3.1 and table 1, whose seven denoisers
    are the default.
    """

    parts: tuple[SpanCorruption | PrefixLanguageModel, ...] = (
        SpanCorruption(0.15, 3.0),
        SpanCorruption(0.15, 8.0),
        PrefixLanguageModel(0.25),
        SpanCorruption(0.5, 3.0),
        SpanCorruption(0.5, 8.0),
        SpanCorruption(0.15, 64.0),
        SpanCorruption(0.5, 64.0),
    )
    """The denoisers."""
    weights: tuple[float, ...] = ()
    """How often each is drawn, up to a common factor; empty draws all equally often."""

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "data.task.parts is empty; it needs at least one denoiser.")
        one_each = len(self.weights) == len(self.parts) and all(w > 0 for w in self.weights)
        require(
            not self.weights or one_each,
            f"data.task.weights is {self.weights} for {len(self.parts)} parts; it needs a number"
            " above 0 for each, or none at all.",
        )

    @property
    def extra_ids(self) -> int:
        """Marks of spans, then R, S and X, then the id before an answer."""
        return MARKS + 3

    def mode_id(self, vocab_size: int, mode: int) -> int:
        """Returns the id of R (0), S (1) or X (2)."""
        return vocab_size + MARKS - 1 + mode

    def sizes(self, length: int) -> tuple[int, int, int]:
        """Returns the maximum number of ids that are read, that are written, and of both together,
        for a row of `length`."""
        sizes = [part.sizes(length) for part in self.parts]
        read, written, both = (max(each) for each in zip(*sizes, strict=True))
        return 1 + read, written, 1 + both

    def split(
        self, ids: np.ndarray, vocab_size: int, draw: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws one of the denoisers, which splits the row."""
        odds = np.asarray(self.weights or [1.0] * len(self.parts))
        part = self.parts[draw.choice(len(odds), p=odds / odds.sum())]
        read, written = part.split(ids, vocab_size, draw)
        mode = self.mode_id(vocab_size, part.mode)
        return np.concatenate([[mode], read]).astype(np.int32), written

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns a prompt in mode S, which continues a text."""
        mode = self.mode_id(tokenizer.vocab_size, PrefixLanguageModel.mode)
        return super().prompt([mode, *ids], tokenizer, with_encoder)
