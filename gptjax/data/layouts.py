"""How texts lie in the rows of a batch: as one line of tokens, or each beside the text that it
answers.

Read `Batch` and `Piece`, then the ways to make a piece (`answer`, `label`), then `filled`, which
lays pieces into rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Side(NamedTuple):
    """A text beside the one that is predicted; an encoder reads it."""

    tokens: Any
    """int32 [B S]."""
    positions: Any = None
    """int32 [B S]: none counts from 0; −1 is padding."""
    segments: Any = None
    """int32 [B S]: those of the text that is predicted see the same ones here; none where each row
    is one."""


class Batch(NamedTuple):
    """B rows of T positions. Everything is [B T]; segments and positions are none where each row is
    one plain text."""

    tokens: Any
    """int32: what the model reads."""
    targets: Any
    """int32: what it should predict at each position."""
    weights: Any
    """float32: how much each prediction counts; 0 is padding."""
    segments: Any = None
    """int32: positions of different segments do not see each other."""
    positions: Any = None
    """int32: place in its piece; −1 is padding."""
    side: Side | None = None
    """What an encoder reads; none without one."""
    perturbation: Any = None
    """float32 [B T D]: added to the embedded tokens, by adversarial training; never here."""
    prefix: Any = None
    """int32: the first so many tokens of its piece see each other both ways in a prefix LM; none
    where there are none."""


class Piece(NamedTuple):
    """One example on its way into a row."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    prefix: int = 0
    side: np.ndarray | None = None
    """What an encoder reads."""


def answer(read: np.ndarray, written: np.ndarray, begin: int, beside: bool) -> Piece:
    """A text and its answer; only the answer counts.

    Args:
      begin: stands before the answer.
      beside: an encoder reads the text; otherwise it stands in the row, as the prefix.
    """
    if beside:
        return Piece(
            np.concatenate([[begin], written])[:-1] if len(written) else written,
            written,
            np.ones(len(written)),
            side=read,
        )
    row = np.concatenate([read, [begin], written])
    return Piece(row[:-1], row[1:], np.repeat([0.0, 1.0], [len(read), len(written)]), len(read))


def label(ids: np.ndarray, first: int) -> Piece:
    """A text and its label, which its last position predicts.

    Args:
      ids: the text's, and `first` + the number of its label.
    """
    tokens, last = ids[:-1], np.arange(len(ids) - 1) == len(ids) - 2
    return Piece(tokens, np.where(last, ids[-1] - first, 0), last)


def filled(
    rows: Sequence[Sequence[Piece]], width: int, side_width: int | None = None, packed: bool = True
) -> Batch:
    """Lays pieces into rows, each row's from the left.

    Args:
      width: T, the positions of a row.
      side_width: S, those of a row that an encoder reads; none has no such rows.
      packed: rows may hold several pieces, which do not see each other.
    """
    shape = (len(rows), width)
    tokens, targets, segments, prefix = np.zeros((4, *shape), np.int32)
    positions, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    side = (
        None
        if side_width is None
        else [np.full((len(rows), side_width), empty, np.int32) for empty in (0, -1, 0)]
    )
    for row, pieces in enumerate(rows):
        at, beside = 0, 0
        for number, piece in enumerate(pieces, 1):
            here = (row, slice(at, at + len(piece.tokens)))
            tokens[here], targets[here], weights[here], segments[here], prefix[here] = (
                *piece[:3],
                number,
                piece.prefix,
            )
            positions[here] = np.arange(len(piece.tokens))
            at += len(piece.tokens)
            if side is not None:
                here = (row, slice(beside, beside + len(piece.side)))
                side[0][here], side[1][here], side[2][here] = (
                    piece.side,
                    np.arange(len(piece.side)),
                    number,
                )
                beside += len(piece.side)
    if not packed:
        segments, side = None, side and [*side[:2], None]
    return Batch(
        tokens,
        targets,
        weights,
        segments,
        positions,
        side and Side(*side),
        None,
        prefix if side is None else None,
    )
