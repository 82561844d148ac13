"""Passages as rows of few lengths: what several of them begin with is read once.

A row is either one beginning with the ends of all passages that share it, or whole passages side by
side. Attention keeps them apart: a token sees its own segment and the beginning, which all segments
see, so that each passage is read as if it were alone. Where tokens lie in a row does not depend on
the order of the requests.

Read `fill_rows` (passages → rows), `batched` (rows → batches of equal length), `batch_arrays` (a
batch as arrays).
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.evaluate.encoding import Passage
from gptjax.model.attention.mask import EVERY

DENSE = 256
"""Length of the rows in which short passages stand side by side, in tokens: longer ones spend more
on attention between passages, which the mask hides."""
SHARE = 4
"""A passage joins those before it if at least one in so many of its tokens is theirs too."""
LEAST_ROOM = 512
"""Places that passages with a shared beginning may always fill in a row; or, if that is more, so
many times the length of the first of them as `ROOM` says."""
ROOM = 4


class Row(NamedTuple):
    """Passages, by number, that are read in one row."""

    passages: list[int]
    shared: int = 0
    """Number of tokens that all of them begin with, read once."""
    used: int = 0
    """Places that the row needs, for its tokens and for what is scored."""


class Rows(NamedTuple):
    """A batch as arrays."""

    tokens: np.ndarray
    """int32 [B T]"""
    positions: np.ndarray
    """int32 [B T]; −1 is padding."""
    segments: np.ndarray
    """int32 [B T]"""
    prefix: np.ndarray
    """int32 [B T]: tokens of the passage that see each other in a prefix LM."""
    side: np.ndarray | None
    """int32 [B S]: what an encoder reads; −1 is padding."""
    index: np.ndarray
    """int32 [N]: place in the flattened batch of the token before each scored one."""
    target: np.ndarray
    """int32 [N]: the scored tokens."""
    count: np.ndarray
    """int32: how many of them there are; the rest is padding."""


def row_length(used: int) -> int:
    """The length of a row that holds so many tokens: 16, 24, 32, 48, 64, 96, …."""
    power = 16
    while power < used:
        if power + power // 2 >= used:
            return power + power // 2
        power *= 2
    return power


def fill_rows(
    passages: Sequence[Passage], *, longest: int | None = None, whole_contexts: bool = False
) -> list[Row]:
    """Returns rows that hold each passage once.

    Args:
      longest: length of rows in which passages may share their beginning; `None` is any.
      whole_contexts: only passages with the same context share it, as in a prefix LM.
    """
    order = sorted(
        range(len(passages)), key=lambda n: (passages[n].side, passages[n].ids, passages[n].first)
    )
    rows, alone = [], []
    for row in _grouped(passages, order, longest or sys.maxsize, whole_contexts):
        apart = sum(len(passages[n].read) for n in row.passages)
        if passages[row.passages[0]].side or row_length(row.used) < apart:
            rows.append(row)
        else:
            alone += row.passages
    return rows + list(_side_by_side(passages, alone))


def _grouped(
    passages: Sequence[Passage], order: Sequence[int], longest: int, whole: bool
) -> Iterator[Row]:
    """Cuts the passages, in alphabetical order, where sharing what both sides begin with would not
    save tokens, and where a row is full."""
    group, scored, room = Row([]), 0, 0
    for n in order:
        one = passages[n]
        here = len(one.ids) - one.first
        joined = _joined(group, passages, n, whole) if group.passages else None
        if joined is not None and row_length(max(joined.used, scored + here)) <= room:
            group, scored = joined, scored + here
            continue
        if group.passages:
            yield group._replace(used=max(group.used, scored))
        group, scored = Row([n], len(one.read), len(one.read)), here
        room = min(row_length(max(LEAST_ROOM, ROOM * len(one.read))), longest)
    if group.passages:
        yield group._replace(used=max(group.used, scored))


def _joined(group: Row, passages: Sequence[Passage], n: int, whole: bool) -> Row | None:
    """The row with one more passage, if that saves tokens, or the encoder reads the same."""
    one, last = passages[n], passages[group.passages[-1]]
    if last.side != one.side or (whole and last.ids[: last.first] != one.ids[: one.first]):
        return None
    shared = min(group.shared, _common(last.read, one.read))
    apart = group.used + len(one.read)
    used = apart - shared + len(group.passages) * (group.shared - shared)
    if not one.side and (shared * SHARE < len(one.read) or used >= apart):
        return None
    return Row([*group.passages, n], shared, used)


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of ids that both begin with."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)


def _side_by_side(passages: Sequence[Passage], numbers: Sequence[int]) -> Iterator[Row]:
    """Puts each passage, longest first, into the fullest row that has room for it."""
    size = {n: len(passages[n].read) for n in numbers}
    open_rows: list[tuple[int, int, Row]] = []  # room left, number of the row, row
    for count, n in enumerate(sorted(numbers, key=lambda n: (-size[n], passages[n].ids))):
        place = bisect.bisect_left(open_rows, (size[n],))
        if place < len(open_rows):
            room, number, row = open_rows.pop(place)
        else:
            room, number, row = row_length(max(DENSE, size[n])), count, Row([])
        row = Row([*row.passages, n], 0, row.used + size[n])
        bisect.insort(open_rows, (room - size[n], number, row))
    yield from (row for _, _, row in open_rows)


def batched(
    passages: Sequence[Passage], rows: Sequence[Row], positions: int, least: int = 1
) -> Iterator[tuple[int, int, list[Row]]]:
    """Yields batches: the length of their rows, the number of rows, and those that there are.

    Rows that do not fill a batch of their length stand in longer ones, where that costs less than
    the rows that would be missing.

    Args:
      positions: of a batch; a row that is longer has a batch of its own.
      least: number of devices that share the rows of a batch.
    """
    by_side: dict[int, dict[int, list[Row]]] = {}
    for row in rows:
        side = len(passages[row.passages[0]].side)
        lengths = by_side.setdefault(row_length(side) if side else 0, {})
        lengths.setdefault(row_length(row.used), []).append(row)
    for _, lengths in sorted(by_side.items()):
        left: list[Row] = []
        for length, longer in zip(sorted(lengths), [*sorted(lengths)[1:], None], strict=True):
            here = left + lengths[length]
            size = least * max(1, positions // length // least)
            whole = len(here) // size * size
            for first in range(0, whole, size):
                yield length, size, here[first : first + size]
            left = here[whole:]
            if left and (longer is None or len(left) * longer > positions):
                few = least << (-(-len(left) // least) - 1).bit_length()
                yield length, size if whole else min(size, few), left
                left = []


def batch_arrays(passages: Sequence[Passage], rows: Sequence[Row], length: int, size: int) -> Rows:
    """A batch as arrays; what is scored is in the order of the rows and their passages."""
    shape = (size, length)
    tokens, positions = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    segments, prefix = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    index, target = [], []
    for r, row in enumerate(rows):
        first = passages[row.passages[0]]
        place = row.shared
        tokens[r, :place] = first.read[:place]
        positions[r, :place] = np.arange(place)
        segments[r, :place] = EVERY
        prefix[r, :place] = first.prefix
        for segment, n in enumerate(row.passages):
            one = passages[n]
            end = place + len(one.read) - row.shared
            tokens[r, place:end] = one.read[row.shared :]
            positions[r, place:end] = np.arange(row.shared, len(one.read))
            segments[r, place:end] = segment
            prefix[r, place:end] = one.prefix
            before = np.arange(one.first - 1, len(one.read))
            where = np.where(before < row.shared, before, before + place - row.shared)
            index.append(r * length + where)
            target.append(one.ids[one.first :])
            place = end
    count = sum(map(len, target))
    every = np.zeros((2, -(-size * length // BLOCK) * BLOCK), np.int32)
    every[:, :count] = np.concatenate(index), np.concatenate(target)
    side = _sides([passages[row.passages[0]].side for row in rows], size)
    return Rows(tokens, positions, segments, prefix, side, *every, np.int32(count))


BLOCK = 64
"""Scored tokens whose logits are held at once."""


def _sides(sides: Sequence[tuple[int, ...]], size: int) -> np.ndarray | None:
    longest = max(map(len, sides))
    if not longest:
        return None
    texts = np.full((size, row_length(longest)), -1, np.int32)
    for row, side in zip(texts, sides, strict=False):
        row[: len(side)] = side
    return texts
