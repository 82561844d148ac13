"""Which records repeat earlier ones: equal texts, similar texts, lines that stood before.

All is found from hashes that lie on disk: a pass reads one column of them, a part of its values at
a time, so that memory hardly grows with the number of records (four bytes for each, and those of
one part). Read `find_duplicates`, then `equal_places`.

A record is dropped for an earlier one that is kept and to which its similarity, computed from the
texts themselves, reaches the limit: similarity is not passed on from one to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gptjax.clean.minhash import Hashes, compared_words, jaccard, ngram_hashes
from gptjax.data.cleaning import Duplicates

PART = 2**17
"""Hashes that are sorted at once."""
CACHED = 512
"""Texts whose n-grams stay in memory."""
Columns = Callable[[], Iterable[Hashes]]
"""Reads a column of hashes from its beginning, shard by shard."""


class Repeats(NamedTuple):
    """Places of a column whose value stood before."""

    this: np.ndarray
    first: np.ndarray
    """Where it stood first."""
    before: np.ndarray
    """Where it stood last."""


def equal_places(
    column: Columns, count: int, wanted: np.ndarray | None = None
) -> Iterator[Repeats]:
    """Yields all places of a column whose value stood before, a part of the values at a time.

    Args:
      count: length of the column.
      wanted: which places are looked at.
    """
    parts = np.uint64(count // PART + 1)
    for part in range(int(parts)):
        places, values, at = [], [], 0
        for hashes in column():
            fits = hashes % parts == np.uint64(part)
            if wanted is not None:
                fits &= wanted[at : at + len(hashes)]
            found = np.flatnonzero(fits)
            places.append(found + at)
            values.append(hashes[found])
            at += len(hashes)
        place, value = np.concatenate(places or [[]]), np.concatenate(values or [[]])
        order = np.argsort(value, kind="stable")  # of equal values the earlier place comes first
        place, value = place[order].astype(np.int64), value[order]
        again = np.flatnonzero(value[1:] == value[:-1]) + 1
        starts = np.ones(len(value), bool)
        starts[again] = False
        group = np.maximum.accumulate(np.where(starts, np.arange(len(value)), 0))
        yield Repeats(place[again], place[group[again]], place[again - 1])


class Found(NamedTuple):
    """Which record each record repeats."""

    exact: np.ndarray
    """int32; −1 is none."""
    near: np.ndarray
    """Likewise; the record that is kept."""


def find_duplicates(
    exact: tuple[Columns, Columns],
    bands: list[Columns],
    count: int,
    settings: Duplicates,
    texts: Callable[[int], str],
) -> Found:
    """Returns the record that each record repeats.

    Args:
      exact: two columns of hashes of whole texts.
      bands: columns of MinHash bands.
      count: number of records.
      texts: gives the text of a record.
    """
    found = Found(np.full(count, -1, np.int32), np.full(count, -1, np.int32))
    if settings.exact:
        for one in equal_places(exact[0], count):
            found.exact[one.this] = one.first
        _without_collisions(found.exact, exact[1])
    if settings.near:
        pairs = _similar_pairs(bands, count, found.exact < 0)
        _drop_similar(found.near, pairs, settings, texts)
    return found


def _without_collisions(of: np.ndarray, column: Columns) -> None:
    """Takes back what only the first half of the hash says."""
    second = np.zeros(len(of), np.uint64)
    at = 0
    for hashes in column():
        second[at : at + len(hashes)] = hashes
        at += len(hashes)
    dropped = np.flatnonzero(of >= 0)
    of[dropped[second[dropped] != second[of[dropped]]]] = -1


def _similar_pairs(bands: list[Columns], count: int, wanted: np.ndarray) -> np.ndarray:
    """Pairs [P 2] (later, earlier) of records that share a band, sorted: each with the first and
    the previous one that has its value."""
    pairs = np.zeros(0, np.uint64)
    for column in bands:
        for one in equal_places(column, count, wanted):
            both = [
                one.this.astype(np.uint64) << np.uint64(32) | other.astype(np.uint64)
                for other in (one.first, one.before)
            ]
            pairs = np.unique(np.concatenate([pairs, *both]))
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(2**32 - 1)], 1).astype(np.int64)


def _drop_similar(
    of: np.ndarray, pairs: np.ndarray, settings: Duplicates, texts: Callable[[int], str]
) -> None:
    """Notes for each record the first kept one that it resembles."""

    @functools.lru_cache(maxsize=CACHED)
    def ngrams(number: int) -> Hashes:
        return ngram_hashes(compared_words(texts(number)), settings.ngram)

    refuted: tuple[int, set[int]] = (-1, set())
    for this, other in pairs.tolist():
        if of[this] >= 0:
            continue
        if refuted[0] != this:
            refuted = (this, set())
        kept = other if of[other] < 0 else int(of[other])
        if kept in refuted[1]:
            continue
        if jaccard(ngrams(this), ngrams(kept)) >= settings.similarity:
            of[this] = kept
        else:
            refuted[1].add(kept)


def repeated_lines(column: Columns, owners: Columns, count: int, kept: np.ndarray) -> np.ndarray:
    """Returns the places of lines that stood in an earlier kept record, sorted.

    Args:
      column: hashes of lines, record by record.
      owners: number of the record of each line.
      count: number of lines.
      kept: which records are kept.
    """
    owner = np.zeros(count, np.int32)
    at = 0
    for numbers in owners():
        owner[at : at + len(numbers)] = numbers
        at += len(numbers)
    found = [
        one.this[owner[one.this] != owner[one.first]]
        for one in equal_places(column, count, kept[owner])
    ]
    return np.sort(np.concatenate(found or [np.zeros(0, np.int64)]))
