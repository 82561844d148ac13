"""Which items of a test set stand in the training text.

Items and text are compared as words, in lower case and without punctuation, so that neither line
breaks nor the tokenizer hide a copy. Nothing is estimated: every run of `n` words that an item
shares with a document is found, and its length is exact. Memory is bounded by the items.

Read `index_items`, then `find_overlaps`, then `contamination_findings`. Source of the 13 words:
Brown et al. 2020, arXiv:2005.14165, appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.probes.corpus import Documents, plain_words, word_pieces
from gptjax.evaluate.probes.finding import Finding

WORDS = 13
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it loses nothing modulo 2^64."""


class Index(NamedTuple):
    """The items of a test set, made ready to be looked for."""

    items: list[list[str]]
    """Their words."""
    n: int
    vocabulary: dict[str, int]
    """Word → number, from 1; 0 is any word that no item has."""
    places: dict[tuple[int, ...], list[tuple[int, int]]]
    """n numbers of words → (item, position) wherever they stand."""
    hashes: np.ndarray
    """Of the keys of `places`, sorted: most text is passed over by these alone."""


class Overlap(NamedTuple):
    """What an item shares with the training text."""

    item: int
    longest: int
    """Words of the longest run that stands in one document; 0 below n."""
    covered: float
    """Share of the item's words that are in such a run."""
    words: str
    """The longest run."""
    document: int
    """Number of the document in which it was found first; −1 if there is none."""


def index_items(texts: Sequence[str], n: int = WORDS) -> Index:
    """Returns an index of all runs of n words of the items.

    Raises:
      ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; an overlap needs at least 1 word.")
    items = [plain_words(text) for text in texts]
    vocabulary: dict[str, int] = {}
    places: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for item, words in enumerate(items):
        numbers = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words]
        for at in range(len(numbers) - n + 1):
            places.setdefault(tuple(numbers[at : at + n]), []).append((item, at))
    keys = np.asarray(list(places), np.uint64).reshape(len(places), n)
    hashes = np.sort(_hash(keys.T)) if places else np.zeros(0, np.uint64)
    return Index(items, n, vocabulary, places, hashes)


def _hash(columns: Iterable[np.ndarray]) -> np.ndarray:
    """A number for each n-gram, given by its first words, its second words, and so on."""
    total: np.ndarray = np.zeros((), np.uint64)
    for column in columns:
        total = (total + column) * _FACTOR
        total = total ^ (total >> np.uint64(29))
    return total


def find_overlaps(
    index: Index, documents: Documents, watch: Callable[[int, int], None] = lambda d, w: None
) -> list[Overlap]:
    """Returns for each item what it shares with the documents.

    Args:
      watch: gets the number of documents and of words that were read, after each piece.
    """
    longest = [(0, 0, -1)] * len(index.items)  # length, first word, document
    covered = [np.zeros(len(words), bool) for words in index.items]
    read = 0
    for number, document in enumerate(documents):
        runs: dict[tuple[int, int], int] = {}  # (item, position) of the previous n-gram → length
        at_before, begin, tail = -1, 0, np.zeros(0, np.uint64)
        for words in word_pieces(document):
            fresh = map(index.vocabulary.get, words, [0] * len(words))
            ids = np.concatenate([tail, np.fromiter(fresh, np.uint64, len(words))])
            for at in _candidates(index, ids):
                here = index.places.get(tuple(ids[at : at + index.n].tolist()), ())
                follows = runs if begin + at == at_before + 1 else {}
                runs = {(item, p): follows.get((item, p - 1), 0) + 1 for item, p in here}
                at_before = begin + at
                for (item, position), length in runs.items():
                    size, first = length + index.n - 1, position - length + 1
                    covered[item][position : position + index.n] = True
                    if size > longest[item][0]:
                        longest[item] = (size, first, number)
            kept = min(len(ids), index.n - 1)
            begin, tail = begin + len(ids) - kept, ids[len(ids) - kept :]
            read += len(words)
            watch(number + 1, read)
    return [
        Overlap(
            item,
            size,
            float(covered[item].mean()) if len(words) else 0.0,
            " ".join(words[first : first + size]),
            document,
        )
        for item, (words, (size, first, document)) in enumerate(
            zip(index.items, longest, strict=True)
        )
    ]


def shared_runs(index: Index, words: Sequence[str]) -> Iterator[int]:
    """Yields each position of a text at which a run of n words stands that an item has too.

    Args:
      words: of the text, as `plain_words` cuts it.
    """
    ids = np.fromiter(map(index.vocabulary.get, words, [0] * len(words)), np.uint64, len(words))
    for at in _candidates(index, ids):
        if tuple(ids[at : at + index.n].tolist()) in index.places:
            yield at


def _candidates(index: Index, ids: np.ndarray) -> list[int]:
    """Positions whose n-gram may be an item's."""
    count = len(ids) - index.n + 1
    if count <= 0 or not len(index.hashes):
        return []
    hashes = _hash(ids[k : k + count] for k in range(index.n))
    at = np.minimum(np.searchsorted(index.hashes, hashes), len(index.hashes) - 1)
    return np.flatnonzero(index.hashes[at] == hashes).tolist()


def contamination_findings(index: Index, overlaps: Sequence[Overlap]) -> list[Finding]:
    """Returns the share of items that share a run of n words with the training text, and the mean
    share of their words in such runs. Items shorter than n words are left out.

    A common phrase counts like a copy; `Overlap` says what an item shares.
    """
    whole = [one for one in overlaps if len(index.items[one.item]) >= index.n]
    if not whole:
        return []
    hits = mean_of([one.longest > 0 for one in whole])
    return [
        Finding(f"items with {index.n} words in the training text", hits, 0.0),
        Finding("words of items in such runs", mean_of([one.covered for one in whole])),
    ]
