"""What duplicates are found by: a hash of a text's words, MinHash bands of its n-grams, and hashes
of its lines (Broder 1997, On the resemblance and containment of documents).

Words are in lower case and without punctuation; a Chinese character or a kana is a word. Read
`ngram_hashes`, then `band_hashes`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from gptjax.data.cleaning import Duplicates

Hashes = np.ndarray
"""uint64."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 4096
"""n-grams that are hashed by all functions at once."""
_WORDS = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ]|[^\W_㐀-䶿一-鿿豈-﫿぀-ヿ]+")


def compared_words(text: str) -> list[str]:
    """Returns the words by which texts are compared."""
    return _WORDS.findall(text.lower())


def exact_hash(words: Sequence[str]) -> tuple[int, int]:
    """Returns 128 bits of the words, as two numbers."""
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def ngram_hashes(words: Sequence[str], n: int) -> Hashes:
    """Returns the different hashes of the runs of n words, sorted; a shorter text is one run."""
    if not words:
        return np.zeros(0, np.uint64)
    numbers = np.fromiter((zlib.crc32(w.encode()) for w in words), np.uint64, len(words))
    n = min(n, len(words))
    count = len(words) - n + 1
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = _mixed((total + numbers[k : k + count]) * _FACTOR)
    return np.unique(total)


def _mixed(values: Hashes) -> Hashes:
    return values ^ (values >> np.uint64(29))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Returns the size of the intersection of two sorted sets over that of their union."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


class Functions:
    """The hash functions of MinHash, drawn from a seed."""

    def __init__(self, settings: Duplicates, seed: int):
        count = settings.bands * settings.rows
        draws = np.random.default_rng([seed, 0x6D69]).integers(0, 2**64, (2, count, 1), np.uint64)
        self.factors, self.offsets = draws[0] | np.uint64(1), draws[1]
        self.bands, self.rows = settings.bands, settings.rows

    def minima(self, ngrams: Hashes) -> Hashes:
        """The least value of each function over the n-grams; of two sets as many are equal as
        their Jaccard similarity says."""
        least = np.full(len(self.factors), np.uint64(2**64 - 1))
        for at in range(0, len(ngrams), BLOCK):
            values = ngrams[at : at + BLOCK] * self.factors + self.offsets
            np.minimum(least, (values >> np.uint64(16)).min(1), out=least)
        return least

    def band_hashes(self, ngrams: Hashes) -> Hashes:
        """One hash for each band of minima; similar texts share some."""
        minima = self.minima(ngrams).reshape(self.bands, self.rows)
        total = np.arange(self.bands, dtype=np.uint64)
        for row in range(self.rows):
            total = _mixed((total + minima[:, row]) * _FACTOR)
        return total


def line_hashes(text: str, settings: Duplicates) -> Iterator[tuple[int, int]]:
    """Yields number and hash of each line that is long enough to be compared."""
    for number, line in enumerate(text.split("\n")):
        if len(line) >= settings.min_line:
            words = " ".join(compared_words(line)).encode()
            yield number, int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
