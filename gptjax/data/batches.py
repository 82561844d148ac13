"""The batch of a given step: a pure function of (store, seed, step).

Each example of n ids has n − 1 pairs (id, next id). All pairs of a store, one example after another, are one long line; it
is cut into rows of T pairs, and the rows are read in an order that a permutation of (seed, epoch) gives. In every epoch
each pair is predicted exactly once. The cut is moved by a random shift in each epoch, so that row borders differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptjax.config import ConfigError
from gptjax.data import tasks
from gptjax.data.store import Store
from gptjax.data.tasks import LanguageModel, MaskedLanguageModel, SpanCorruption, Task


class Side(NamedTuple):
    """A text beside the one that is predicted; an encoder reads it."""

    tokens: Any
    """int32 [B S]."""
    positions: Any = None
    """int32 [B S]: none counts from 0; −1 is padding."""
    segments: Any = None
    """int32 [B S]: those of the text that is predicted see the same ones here; none where each row is one."""


class Batch(NamedTuple):
    """B rows of T positions. Everything is [B T]; segments and positions are none where each row is one plain text."""

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
    nudge: Any = None
    """float32 [B T D]: added to the embedded tokens, by adversarial training; never here."""


class Plan(NamedTuple):
    """How a store becomes rows."""

    length: int
    """T, the pairs in a row."""
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

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold all pairs under any shift."""
        return -(-self.pairs // self.length) + (0 if self.seed is None else 1)

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.rows_per_epoch // self.rows)


def plan(store: Store, *, length: int, rows: int, seed: int | None, isolated: bool = True, task: Task = LanguageModel()) -> Plan:  # noqa: B008 it is frozen
    """Lays the store's pairs out in rows. A store of one example needs no isolation."""
    starts = store.offsets - np.arange(len(store.offsets))
    return Plan(length, rows, seed, isolated and store.header.num_examples > 1, int(starts[-1]), starts, task)


def batch(store: Store, plan: Plan, step: int, rows: np.ndarray | None = None) -> Batch:
    """Gives rows `step · B …` of the endless sequence of epochs: numpy, [B T].

    Args:
      rows: only these of the batch, numbers from 0 to B − 1: what one of several processes needs. Nothing else is read.

    Raises:
      ConfigError: the store holds an id outside its vocabulary, or is shorter than when it was opened; names file and byte.
    """
    index = step * plan.rows + (np.arange(plan.rows) if rows is None else rows).astype(np.int64)
    epoch, row = index // plan.rows_per_epoch, index % plan.rows_per_epoch
    if plan.seed is not None:
        first = row * plan.length
        for e in np.unique(epoch):
            of_epoch = epoch == e
            row = np.where(of_epoch, permute(row, plan.rows_per_epoch, (plan.seed, int(e))), row)
            first = np.where(of_epoch, row * plan.length - _shift(plan, int(e)), first)
    else:
        first = np.where(epoch == 0, row * plan.length, plan.pairs)  # past the end of the only epoch there is nothing
    plain = _rows(store, plan, first)
    if isinstance(plan.task, LanguageModel):
        return plain
    draws = [np.random.default_rng([plan.seed or 0, int(plan.seed is not None), number]) for number in index]
    view = _masked if isinstance(plan.task, MaskedLanguageModel) else _corrupted
    return view(plan.task, plain, store.header.vocab_size - plan.task.extra_ids, draws)


def _masked(task: MaskedLanguageModel, rows: Batch, vocab_size: int, draws: list[np.random.Generator]) -> Batch:
    """Rows whose tokens are predicted where they are hidden."""
    both = [tasks.masked(task, ids, real > 0, vocab_size, draw) for ids, real, draw in zip(rows.tokens, rows.weights, draws, strict=True)]
    shown, chosen = (np.stack(part) for part in zip(*both, strict=True))
    return rows._replace(tokens=shown, targets=rows.tokens, weights=chosen.astype(np.float32))


def _corrupted(task: SpanCorruption, rows: Batch, vocab_size: int, draws: list[np.random.Generator]) -> Batch:
    """Rows as an encoder and a decoder see them: a row is one text, whatever documents it holds; both are padded at the right."""
    length, begin = rows.tokens.shape[1], vocab_size + task.extra_ids - 1
    read, write = np.zeros((2, len(rows.tokens), length), np.int32)
    write, lengths = write[:, : task.written(length)], []
    for row, (ids, real, draw) in enumerate(zip(rows.tokens, rows.weights, draws, strict=True)):
        source, target = tasks.corrupted(task, ids[real > 0], vocab_size, draw)
        read[row, : len(source)], write[row, : len(target)] = source, target
        lengths.append((len(source), len(target)))
    sources, targets = np.asarray(lengths).T[:, :, None]
    place = np.arange(length, dtype=np.int32)[None]
    where = lambda width, counts: np.where(place[:, :width] < counts, place[:, :width], -1).astype(np.int32)
    positions = where(write.shape[1], targets)
    tokens = np.concatenate([np.full((len(write), 1), begin, np.int32), write[:, :-1]], axis=1)
    return Batch(tokens, write, (positions >= 0).astype(np.float32), None, positions, Side(read, where(length, sources)))


def _shift(plan: Plan, epoch: int) -> int:
    return int(_mix(np.asarray([epoch], np.uint64), plan.seed, 0xA5)[0] % np.uint64(plan.length))


def _rows(store: Store, plan: Plan, first: np.ndarray) -> Batch:
    """The rows whose first pairs are `first` [B]; pairs outside the store are padding."""
    pair = first[:, None] + np.arange(plan.length)
    real = (pair >= 0) & (pair < plan.pairs)
    pair = np.clip(pair, 0, plan.pairs - 1)
    example = np.searchsorted(plan.starts, pair, side="right") - 1
    at = pair + example  # each earlier example has one id more than pairs
    stretches = [store.ids[row[0] : row[-1] + 2] for row in at]  # what lies between two examples is read too: a few ids
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
    """Refuses ids outside the vocabulary: on the devices they would be clamped, or wrap around, without a word."""
    size = store.header.vocab_size
    if ids.min() >= 0 and ids.max() < size:
        return
    row, column = np.argwhere((ids < 0) | (ids >= size))[0]
    byte = int(at[row, column]) * store.ids.dtype.itemsize
    found = f"{store.path}/ids.bin has at byte {byte} the id {ids[row, column]}, outside the vocabulary [0, {size})"
    raise ConfigError(f"{found}: it is damaged or another tokenizer's; delete the folder {store.path}, it is made again.")


# --- a permutation without a table -------------------------------------------------------------------------------


def permute(index: np.ndarray, count: int, key: tuple[int, int]) -> np.ndarray:
    """Gives where a pseudorandom permutation of range(count) sends each index, in constant memory.

    A Feistel network over the next even number of bits; values that fall outside walk on until they fall inside.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 3 (cycle walking) over a Feistel network.
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
    """A hash of 64 bits: the finaliser of SplitMix64 (Steele et al. 2014), applied to value, seed and salt in turn."""
    with np.errstate(over="ignore"):
        for word in (seed, salt):
            value = value + np.uint64(word % 2**64) + np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value = value ^ (value >> np.uint64(31))
    return value
