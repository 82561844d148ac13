"""Filling in the middle: a row is cut in three, and its middle is predicted after both ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gptjax.core.config import require
from gptjax.data.layouts import Batch, Piece, filled
from gptjax.data.rows import Plan, RowNumbers, cut
from gptjax.data.store import Store
from gptjax.data.tasks.task import Task, answer_end
from gptjax.data.tokenizers.tokenizer import Tokenizer

CURSOR = "<fill>"
"""How a prompt names the place to fill in; without it the model continues the prompt."""


@dataclass(frozen=True)
class FillInMiddle(Task):
    """Rows whose middle comes last, so that a decoder completes code at a cursor; all tokens are
    predicted, and what is filled in ends like a document.

    The rows are cut, not the documents (`LanguageModel.middle` does that), so both ends always fit
    the context, and at other places in every epoch. Source: Bavarian et al. 2022, arXiv:2207.14255,
    sections 3 and 4.4 (context level; half of the rows with the suffix first).
    """

    share: float = 0.5
    """Share of the rows that are cut; the others are plain text."""
    suffix_first: float = 0.5
    """Share of the cut rows that begin with the suffix, and whose middle follows the prefix."""

    writes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("share", "suffix_first"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"data.task.{name} is {value}; it needs a share in [0, 1].")

    @property
    def extra_ids(self) -> int:
        """Marks before prefix, suffix and middle."""
        return 3

    def equip(self, tokenizer: Tokenizer) -> Tokenizer:
        """Returns the tokenizer as it is.

        Raises:
          ConfigError: it has no id to end a middle with.
        """
        answer_end(tokenizer)
        return tokenizer

    def pairs_per_row(self, width: int, with_encoder: bool) -> int:
        """Returns how many pairs fit beside three marks and the end."""
        return max(1, width - 4)

    def batch(self, store: Store, plan: Plan, at: RowNumbers) -> Batch:
        """Returns the rows with these numbers, its share of them cut."""
        first_mark = store.header.vocab_size - self.extra_ids
        last = int(store.offsets[1]) - 1
        end = int(store.ids[last : last + 1][0])  # as every document ends
        rows, pieces = cut(store, plan, at), []
        real = np.asarray(rows.weights) > 0
        for number, draw in enumerate(at.draws(plan.seed)):
            where = number, real[number]
            ids = np.concatenate([rows.tokens[where], rows.targets[where][-1:]])
            row = self.arranged(ids, first_mark, end, draw)
            pieces.append([Piece(row[:-1], row[1:], np.ones(max(0, len(row) - 1)))])
        return filled(pieces, plan.width, packed=False)._replace(prefix=None)

    def arranged(
        self, ids: np.ndarray, first_mark: int, end: int, draw: np.random.Generator
    ) -> np.ndarray:
        """Returns ids with their middle last, or as they are."""
        if len(ids) < 2 or draw.random() >= self.share:
            return ids
        start, stop = np.sort(draw.integers(0, len(ids) + 1, 2))
        read = _read(ids[:start], ids[stop:], first_mark, draw.random() < self.suffix_first)
        return np.concatenate([read, ids[start:stop], [end]]).astype(np.int32)

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """Returns what is read before a middle where the prompt names a place to fill in, else the
        prompt."""
        before, cursor, after = tokenizer.decode(np.asarray(ids, np.int32)).partition(CURSOR)
        if not cursor:
            return super().prompt(ids, tokenizer, with_encoder)
        parts = tokenizer.encode(before), tokenizer.encode(after)
        return [], _read(*parts, tokenizer.vocab_size, suffix_first=True).tolist()


def _read(
    prefix: np.ndarray, suffix: np.ndarray, first_mark: int, suffix_first: bool
) -> np.ndarray:
    """Prefix and suffix after their marks, and the mark of the middle; where the suffix is first,
    the prefix follows that mark, so that prefix and middle are one text."""
    before, after, middle = ([first_mark + i] for i in range(3))
    if suffix_first:
        return np.concatenate([before, after, suffix, middle, prefix]).astype(np.int32)
    return np.concatenate([before, prefix, after, suffix, middle]).astype(np.int32)
