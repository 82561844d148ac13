"""The batch of a given step: a pure function of (store, seed, step).

Each example of n ids has n − 1 pairs (id, next id). All pairs of a store, one example after
another, are one long line; it is cut into rows of T pairs, and the rows are read in an order that a
permutation of (seed, epoch) gives. In every epoch each pair is predicted exactly once. The cut is
moved by a random shift in each epoch, so that row borders differ.

Records, a text and its answer each, are not cut: whole ones are packed into rows once, and these
rows are read in such an order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.data import packing
from gptjax.data.layouts import Batch, Piece, answer, filled, label
from gptjax.data.packing import Packing
from gptjax.data.store import Store
from gptjax.data.tasks import tasks
from gptjax.data.tasks.tasks import (
    Classification,
    Halved,
    LanguageModel,
    MaskedLanguageModel,
    SequenceToSequence,
    Task,
)


class Plan(NamedTuple):
    """How a store becomes rows."""

    length: int
    """The pairs in a row: T, or fewer where a task adds tokens of its own."""
    rows: int
    """B, the rows in a batch."""
    seed: int | None
    """Order of the rows; none reads them as they stand, without shift."""
    isolated: bool
    """Examples in one row do not see each other."""
    pairs: int
    """All pairs of the store."""
    starts: np.ndarray
    """int64: the first pair of each example, and behind the last one `pairs`."""
    task: Task = LanguageModel()
    """What is predicted from what in a row."""
    beside: bool = False
    """An encoder reads what is answered; otherwise it stands before the answer."""
    width: int = 0
    """T, the positions of a row; 0 is `length`."""
    packing: Packing | None = None
    """Which records share a row; none cuts one long line into rows."""

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold all pairs under any shift, or all records."""
        if self.packing is not None:
            return len(self.packing.firsts) - 1
        return -(-self.pairs // self.length) + (0 if self.seed is None else 1)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.rows_per_epoch // self.rows)


def plan(
    store: Store,
    *,
    length: int,
    rows: int,
    seed: int | None,
    isolated: bool = True,
    task: Task = LanguageModel(),  # noqa: B008 it is frozen
    beside: bool = False,
) -> Plan:
    """Lays the store's pairs out in rows of `length` positions. A store of one example needs no
    isolation.

    Args:
      beside: the model has an encoder.
    """
    starts = store.offsets - np.arange(len(store.offsets))
    found = Plan(
        length,
        rows,
        seed,
        isolated and store.header.num_examples > 1,
        int(starts[-1]),
        starts,
        task,
        beside,
        length,
    )
    if isinstance(task, Halved):
        return found._replace(length=_raw(task, length, beside))
    if isinstance(task, SequenceToSequence | Classification):
        order = np.arange(store.header.num_examples)
        order = order if seed is None else permute(order, len(order), (seed, -1))
        return found._replace(packing=packing.pack(_sizes(store, task, beside), order, length))
    return found


def _raw(task: Halved, length: int, beside: bool) -> int:
    """The most tokens of a text of which both halves fit into a row."""

    def fits(sizes):
        return max(sizes[:2]) <= length if beside else sizes[2] <= length

    return next((count for count in range(length, 2, -1) if fits(task.sizes(count))), 2)


def _sizes(store: Store, task: SequenceToSequence | Classification, beside: bool) -> np.ndarray:
    """What each record takes of a row's positions, and of the row that an encoder reads [n 1 or
    2]."""
    lengths = np.diff(store.offsets)[:, None] - 1
    if isinstance(task, Classification):
        return lengths
    begin, borders, most = store.header.vocab_size - 1, [], 2**24
    for first in range(0, len(store.ids), most):
        borders.append(first + np.flatnonzero(store.ids[first : first + most] == begin))
    read = (np.concatenate(borders) - store.offsets[:-1])[:, None]
    return np.concatenate([lengths - read, read], axis=1) if beside else lengths


def batch(store: Store, plan: Plan, step: int, rows: np.ndarray | None = None) -> Batch:
    """Gives rows `step · B …` of the endless sequence of epochs: numpy, [B T].

    Args:
      rows: only these of the batch, numbers from 0 to B − 1: what one of several processes needs.
        Nothing else is read.

    Raises:
      ConfigError: the store holds an id outside its vocabulary, or is shorter than when it was
        opened; names file and byte.
    """
    index = step * plan.rows + (np.arange(plan.rows) if rows is None else rows).astype(np.int64)
    epoch, row = index // plan.rows_per_epoch, index % plan.rows_per_epoch
    epochs = np.unique(epoch) if plan.seed is not None else ()
    for e in epochs:
        row = np.where(epoch == e, permute(row, plan.rows_per_epoch, (plan.seed, int(e))), row)
    if plan.packing is not None:
        return _records(
            store,
            plan,
            row if plan.seed is not None else np.where(epoch == 0, row, plan.rows_per_epoch),
        )
    first = (
        row * plan.length
        if plan.seed is not None
        else np.where(epoch == 0, row * plan.length, plan.pairs)
    )  # past the only epoch there is nothing
    for e in epochs:
        first = np.where(epoch == e, first - _shift(plan, int(e)), first)
    plain = _rows(store, plan, first)
    if isinstance(plan.task, LanguageModel):
        return plain
    draws = [
        np.random.default_rng([plan.seed or 0, int(plan.seed is not None), number])
        for number in index
    ]
    own = store.header.vocab_size - plan.task.extra_ids
    if isinstance(plan.task, MaskedLanguageModel):
        return _masked(plan.task, plain, own, draws)
    halves = [
        tasks.halves(plan.task, ids[real > 0], own, draw)
        for ids, real, draw in zip(plain.tokens, plain.weights, draws, strict=True)
    ]
    pieces = [[answer(*both, store.header.vocab_size - 1, plan.beside)] for both in halves]
    return filled(pieces, *_widths(plan), packed=False)


def _widths(plan: Plan) -> tuple[int, int | None]:
    """Positions of a row, and of a row that an encoder reads."""
    if not plan.beside:
        return plan.width, None
    return (
        plan.task.sizes(plan.length)[1] if isinstance(plan.task, Halved) else plan.width
    ), plan.width


def _records(store: Store, plan: Plan, rows: np.ndarray) -> Batch:
    """The packed rows of these numbers; a number past the last one is an empty row."""
    order, firsts, _ = plan.packing
    numbers = [
        order[slice(*firsts[row : row + 2])].tolist() if row < len(firsts) - 1 else []
        for row in rows
    ]
    return filled([[_piece(store, plan, i) for i in row] for row in numbers], *_widths(plan))


def _piece(store: Store, plan: Plan, i: int) -> Piece:
    """Record i; what does not fit into a row is cut off the end of a text, and of its answer only
    if that alone is longer."""
    at, most = store.offsets[i], plan.width
    ids = store.ids[at : store.offsets[i + 1]].astype(np.int32)
    _require_known(store, ids[None], at + np.arange(len(ids))[None])
    if isinstance(plan.task, Classification):
        return label(
            np.concatenate([ids[:-1][:most], ids[-1:]]),
            store.header.vocab_size - plan.task.extra_ids,
        )
    begin = store.header.vocab_size - 1
    border = int(np.flatnonzero(ids == begin)[0])
    written = ids[border + 1 :][:most]
    return answer(
        ids[:border][: most if plan.beside else most - len(written)],
        written,
        tasks.begins(plan.task, begin + 1),
        plan.beside,
    )


def _masked(
    task: MaskedLanguageModel, rows: Batch, vocab_size: int, draws: list[np.random.Generator]
) -> Batch:
    """Rows whose tokens are predicted where they are hidden."""
    both = [
        tasks.masked(task, ids, real > 0, vocab_size, draw)
        for ids, real, draw in zip(rows.tokens, rows.weights, draws, strict=True)
    ]
    shown, chosen = (np.stack(part) for part in zip(*both, strict=True))
    return rows._replace(tokens=shown, targets=rows.tokens, weights=chosen.astype(np.float32))


def _shift(plan: Plan, epoch: int) -> int:
    return int(_mix(np.asarray([epoch], np.uint64), plan.seed, 0xA5)[0] % np.uint64(plan.length))


def _rows(store: Store, plan: Plan, first: np.ndarray) -> Batch:
    """The rows whose first pairs are `first` [B]; pairs outside the store are padding."""
    pair = first[:, None] + np.arange(plan.length)
    real = (pair >= 0) & (pair < plan.pairs)
    pair = np.clip(pair, 0, plan.pairs - 1)
    example = np.searchsorted(plan.starts, pair, side="right") - 1
    at = pair + example  # each earlier example has one id more than pairs
    stretches = [
        store.ids[row[0] : row[-1] + 2] for row in at
    ]  # what lies between two examples is read too: a few ids
    begins = np.cumsum([0, *map(len, stretches[:-1])]) - at[:, 0]
    ids, at_ids = np.concatenate(stretches), at + begins[:, None]
    tokens, targets = ids[at_ids].astype(np.int32), ids[at_ids + 1].astype(np.int32)
    _require_known(store, tokens, at)
    _require_known(store, targets, at + 1)
    tokens, targets = np.where(real, tokens, 0), np.where(real, targets, 0)
    weights = real.astype(np.float32)
    if not plan.isolated:
        return Batch(tokens, targets, weights)
    piece_start = np.maximum(plan.starts[example], first[:, None])
    positions = np.where(real, pair - piece_start, -1).astype(np.int32)
    segments = np.where(real, example - example[:, :1] + 1, 0).astype(np.int32)
    return Batch(tokens, targets, weights, segments, positions)


def _require_known(store: Store, ids: np.ndarray, at: np.ndarray) -> None:
    """Refuses ids outside the vocabulary: on the devices they would be clamped, or wrap around,
    without a word."""
    size = store.header.vocab_size
    if ids.min() >= 0 and ids.max() < size:
        return
    row, column = np.argwhere((ids < 0) | (ids >= size))[0]
    byte = int(at[row, column]) * store.ids.dtype.itemsize
    found = (
        f"{store.path}/ids.bin has at byte {byte} the id {ids[row, column]}, outside the vocabulary"
        f" [0, {size})"
    )
    raise ConfigError(
        f"{found}: it is damaged or another tokenizer's; delete the folder {store.path}, it is made"
        " again."
    )


# --- a permutation without a table
# -------------------------------------------------------------------------------


def permute(index: np.ndarray, count: int, key: tuple[int, int]) -> np.ndarray:
    """Gives where a pseudorandom permutation of range(count) sends each index, in constant memory.

    A Feistel network over the next even number of bits; values that fall outside walk on until they
    fall inside.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 3 (cycle walking)
    over a Feistel network.
    """
    half = max(1, -(-max(1, int(count - 1).bit_length()) // 2))
    mask = np.uint64((1 << half) - 1)

    def network(value: np.ndarray) -> np.ndarray:
        left, right = value >> np.uint64(half), value & mask
        for turn in range(6):
            left, right = right, left ^ (_mix(right, key[0], (key[1] << 3) + turn) & mask)
        return (left << np.uint64(half)) | right

    value = network(index.astype(np.uint64))
    while (outside := value >= count).any():
        value = np.where(outside, network(value), value)
    return value.astype(np.int64)


def _mix(value: np.ndarray, seed: int, salt: int) -> np.ndarray:
    """A hash of 64 bits: the finaliser of SplitMix64 (Steele et al. 2014), applied to value, seed
    and salt in turn."""
    with np.errstate(over="ignore"):
        for word in (seed, salt):
            value = value + np.uint64(word % 2**64) + np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value = value ^ (value >> np.uint64(31))
    return value
