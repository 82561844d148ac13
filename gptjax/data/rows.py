"""The two row layouts of a store: one line of tokens that is cut into rows, or whole examples that
are packed into rows.

Read `Plan`, then `cut` and `packed_rows`. A task chooses between them and turns their rows into
what it predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.data.layouts import Batch, Piece
from gptjax.data.packing import Packing
from gptjax.data.permutation import splitmix64
from gptjax.data.store import Store

if TYPE_CHECKING:
    from gptjax.data.tasks.task import Task


class Plan(NamedTuple):
    """How a store becomes rows."""

    task: Task
    """What is predicted from what in a row."""
    length: int
    """(id, next id) pairs that one row takes of the line of tokens: T, or fewer where a task adds
    ids of its own."""
    width: int
    """T, positions of a row."""
    rows: int
    """B, rows of a batch."""
    seed: int | None
    """Order of the rows; `None` reads them in the order of the store, without a shift."""
    isolated: bool
    """Examples in one row do not see each other."""
    with_encoder: bool
    """The model has an encoder; without one, the text comes before its answer in the row."""
    pairs: int
    """Number of pairs in the store."""
    starts: np.ndarray
    """int64: the first pair of each example, then `pairs`."""
    shift: int = 0
    """Rows that batches of another size have read beyond step · B; may be negative."""
    packing: Packing | None = None
    """Which examples share a row; `None` cuts one line into rows."""
    draws: int = 1
    """Number of times that an epoch reads its rows, each time with other random numbers."""

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows of an epoch."""
        return self.draws * self.rows_once

    @property
    def rows_once(self) -> int:
        """Number of rows that hold all pairs under any shift, or all examples."""
        if self.packing is not None:
            return len(self.packing.firsts) - 1
        return -(-self.pairs // self.length) + (0 if self.seed is None else 1)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold `rows_per_epoch` rows."""
        return -(-self.rows_per_epoch // self.rows)


class RowNumbers(NamedTuple):
    """Which rows a batch holds; each array is int64 [B]."""

    number: np.ndarray
    """Place in the endless sequence of epochs."""
    epoch: np.ndarray
    row: np.ndarray
    """Row of the epoch, in the order of the store; `rows_per_epoch` is an empty row."""

    def read_once(self, plan: Plan) -> RowNumbers:
        """The numbers with the row of the store in place of that of an epoch which reads rows
        several times."""
        again = np.where(self.row < plan.rows_per_epoch, self.row % plan.rows_once, plan.rows_once)
        return self._replace(row=again)

    def draws(self, seed: int | None) -> Iterator[np.random.Generator]:
        """Yields the random numbers of each row: a function of seed and number alone."""
        for number in self.number:
            yield np.random.default_rng([seed or 0, int(seed is not None), number])


def cut(store: Store, plan: Plan, at: RowNumbers) -> Batch:
    """Reads rows of `plan.length` pairs of the line of tokens; pairs outside the store are padding.

    Each epoch moves the borders of the rows by a shift of its own.

    Raises:
      ConfigError: the store holds an id outside its vocabulary, or is shorter than when it was
        opened; names file and byte.
    """
    first = at.row * plan.length
    if plan.seed is not None:
        shifts = splitmix64(at.epoch.astype(np.uint64), plan.seed, 0xA5) % np.uint64(plan.length)
        first = first - shifts.astype(np.int64)
    pair = first[:, None] + np.arange(plan.length)
    real = (pair >= 0) & (pair < plan.pairs)
    pair = np.clip(pair, 0, plan.pairs - 1)
    example = np.searchsorted(plan.starts, pair, side="right") - 1
    place = pair + example  # each earlier example has one id more than pairs
    tokens, targets = _ids_and_next(store, place)
    tokens, targets = np.where(real, tokens, 0), np.where(real, targets, 0)
    weights = real.astype(np.float32)
    if not plan.isolated:
        return Batch(tokens, targets, weights)
    piece_start = np.maximum(plan.starts[example], first[:, None])
    positions = np.where(real, pair - piece_start, -1).astype(np.int32)
    segments = np.where(real, example - example[:, :1] + 1, 0).astype(np.int32)
    return Batch(tokens, targets, weights, segments=segments, positions=positions)


def _ids_and_next(store: Store, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids at increasing places [B T] of a store, and the ids after them.

    One stretch is read for each row. It holds what lies between two examples too: a few ids.
    """
    stretches = [store.ids[row[0] : row[-1] + 2] for row in place]
    ids = np.concatenate(stretches)
    begins = np.cumsum([0, *map(len, stretches[:-1])]) - place[:, 0]
    index = place + begins[:, None]
    tokens, targets = ids[index].astype(np.int32), ids[index + 1].astype(np.int32)
    require_known_ids(store, tokens, place)
    require_known_ids(store, targets, place + 1)
    return tokens, targets


def packed_rows(
    store: Store, plan: Plan, at: RowNumbers, piece: Callable[[np.ndarray], Piece]
) -> list[list[Piece]]:
    """Reads the packed rows with these numbers.

    Args:
      piece: turns the ids of one example into a piece.

    Raises:
      ConfigError: as `cut`.
    """
    return [
        [piece(example_ids(store, i)) for i in examples] for examples in packed_examples(plan, at)
    ]


def packed_examples(plan: Plan, at: RowNumbers) -> list[list[int]]:
    """Returns the numbers of the examples in each of these packed rows."""
    if plan.packing is None:
        raise ValueError("the plan cuts rows; it does not pack examples.")
    order, firsts = plan.packing.order, plan.packing.firsts
    return [
        order[slice(*firsts[row : row + 2])].tolist() if row < plan.rows_once else []
        for row in at.row
    ]


def example_ids(store: Store, i: int) -> np.ndarray:
    """Returns the ids of one example."""
    start = store.offsets[i]
    ids = store.ids[start : store.offsets[i + 1]].astype(np.int32)
    require_known_ids(store, ids[None], start + np.arange(len(ids))[None])
    return ids


STRETCH = 2**24
"""Ids that are searched at once, so that memory stays bounded."""


def places_of(store: Store, wanted: int) -> np.ndarray:
    """Returns all places of an id in a store, int64 and increasing."""
    found = [
        first + np.flatnonzero(store.ids[first : first + STRETCH] == wanted)
        for first in range(0, len(store.ids), STRETCH)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def require_known_ids(store: Store, ids: np.ndarray, place: np.ndarray) -> None:
    """Refuses ids [B T] outside the vocabulary, which devices would silently clamp or wrap."""
    size = store.header.vocab_size
    if ids.min() >= 0 and ids.max() < size:
        return
    row, column = np.argwhere((ids < 0) | (ids >= size))[0]
    byte = int(place[row, column]) * store.ids.dtype.itemsize
    raise ConfigError(
        f"{store.path}/ids.bin has at byte {byte} the id {ids[row, column]}, outside the vocabulary"
        f" [0, {size}): it is damaged or belongs to another tokenizer; delete the folder"
        f" {store.path}, it is made again."
    )
