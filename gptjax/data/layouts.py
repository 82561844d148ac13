"""The arrays of a batch, and how texts are laid out in its rows.

Read `Batch` and `Piece`, then the two ways to make a piece (`answer`, `label`), then `filled`,
which lays pieces out in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gptjax.core.arrays import Float, Int, Numbers


class Side(NamedTuple):
    """The text that an encoder reads."""

    tokens: Int[Numbers, "B S"]
    positions: Int[Numbers, "B S"] | None = None
    """`None` counts from 0; −1 is padding."""
    segments: Int[Numbers, "B S"] | None = None
    """A predicted token sees the side tokens of its own segment; `None` lets each row see all of
    its side."""


class Heard(NamedTuple):
    """The frames that an encoder of frames reads."""

    values: Float[Numbers, "B F C"]
    positions: Int[Numbers, "B F"] | None = None
    """`None` counts from 0; −1 is padding."""


class Batch(NamedTuple):
    """B rows of T positions: numpy arrays on the host, jax arrays on devices."""

    tokens: Int[Numbers, "B T"]
    """Input of the model."""
    targets: Int[Numbers, "B T"]
    """What each position should predict."""
    weights: Float[Numbers, "B T"]
    """How much each prediction counts; 0 is padding."""
    segments: Int[Numbers, "B T"] | None = None
    """Positions of different segments do not see each other; `None` makes each row one text."""
    positions: Int[Numbers, "B T"] | None = None
    """Place in the segment, −1 is padding; `None` counts from 0."""
    side: Side | Heard | None = None
    """What an encoder reads; `None` without one."""
    perturbation: Float[Numbers, "B T D"] | None = None
    """Added to the embedded tokens by adversarial training; always `None` in data."""
    prefix: Int[Numbers, "B T"] | None = None
    """Length of the bidirectional prefix of each position's segment, for prefix LMs."""
    columns: dict[str, Float[Numbers, "B ..."] | Int[Numbers, "B ..."]] | None = None
    """Further arrays with one entry a row, by name, that a loss asks for (advantages, log-
    probabilities of a reference, …). They are split over devices and micro-batches like rows."""


class Piece(NamedTuple):
    """One example, before it is laid out in a row."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    prefix: int = 0
    side: np.ndarray | None = None
    """What an encoder reads."""


def answer(read: np.ndarray, written: np.ndarray, begin: int, with_encoder: bool) -> Piece:
    """Returns a text and its answer as a piece; only the answer is predicted.

    Args:
      begin: id before the answer.
      with_encoder: an encoder reads the text; otherwise it is the prefix of the piece.
    """
    if with_encoder:
        tokens = np.concatenate([[begin], written])[:-1] if len(written) else written
        return Piece(tokens, written, np.ones(len(written)), side=read)
    row = np.concatenate([read, [begin], written])
    weights = np.repeat([0.0, 1.0], [len(read), len(written)])
    return Piece(row[:-1], row[1:], weights, prefix=len(read))


def label(ids: np.ndarray, first: int) -> Piece:
    """Returns a text as a piece whose last position predicts its label.

    Args:
      ids: of the text, then `first` + the number of its label.
    """
    tokens = ids[:-1]
    last = np.arange(len(tokens)) == len(tokens) - 1
    return Piece(tokens, np.where(last, ids[-1] - first, 0), last)


def filled(
    rows: Sequence[Sequence[Piece]], width: int, side_width: int | None = None, packed: bool = True
) -> Batch:
    """Lays pieces out in rows, each row from the left.

    Args:
      width: T, positions of a row.
      side_width: S, positions of a row of the encoder; `None` without one.
      packed: rows may hold several pieces, which do not see each other.
    """
    shape = (len(rows), width)
    tokens, targets, segments, prefix = np.zeros((4, *shape), np.int32)
    positions, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    for row, pieces in enumerate(rows):
        start = 0
        for segment, piece in enumerate(pieces, 1):
            where = (row, slice(start, start + len(piece.tokens)))
            tokens[where] = piece.tokens
            targets[where] = piece.targets
            weights[where] = piece.weights
            positions[where] = np.arange(len(piece.tokens))
            segments[where] = segment
            prefix[where] = piece.prefix
            start += len(piece.tokens)
    return Batch(
        tokens=tokens,
        targets=targets,
        weights=weights,
        segments=segments if packed else None,
        positions=positions,
        side=None if side_width is None else _side(rows, side_width, packed),
        prefix=prefix if side_width is None else None,
    )


def _side(rows: Sequence[Sequence[Piece]], width: int, packed: bool) -> Side:
    """The rows that an encoder reads."""
    shape = (len(rows), width)
    tokens, segments = np.zeros((2, *shape), np.int32)
    positions = np.full(shape, -1, np.int32)
    for row, pieces in enumerate(rows):
        start = 0
        for segment, piece in enumerate(pieces, 1):
            read = () if piece.side is None else piece.side
            where = (row, slice(start, start + len(read)))
            tokens[where] = read
            positions[where] = np.arange(len(read))
            segments[where] = segment
            start += len(read)
    return Side(tokens, positions, segments if packed else None)
