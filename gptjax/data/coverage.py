"""How much of a text a tokenizer can write."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from gptjax.data.tokenizers.tokenizer import Tokenizer

SAMPLE = 2**20
"""Characters that are looked at."""
EACH = 2**14
"""Characters of one text that are looked at."""


class Coverage:
    """Measures, on a sample, the share of a text's bytes that a tokenizer loses.

    Case, accents and spaces may change: that is a tokenizer's normalisation, not a loss.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._read = 0
        self._bytes = 0
        self._lost: Counter[str] = Counter()

    def add(self, texts: Sequence[str]) -> None:
        """Looks at further texts, until the sample is full."""
        sample = []
        for text in texts:
            if self._read >= SAMPLE:
                break
            sample.append(text[:EACH])
            self._read += len(sample[-1])
        for text, ids in zip(sample, self._tokenizer.encode_all(sample), strict=True):
            characters = Counter(_letters(text))
            self._lost += characters - Counter(_letters(self._tokenizer.decode(ids)))
            self._bytes += _size(characters)

    def lost(self) -> float:
        """Returns the share of bytes that are lost."""
        return _size(self._lost) / max(1, self._bytes)

    def examples(self) -> str:
        """Returns the characters that are lost most often."""
        return " ".join(character for character, _ in self._lost.most_common(5))


def _letters(text: str) -> str:
    """The text without case, accents and spaces."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in folded if not (c.isspace() or unicodedata.combining(c)))


def _size(characters: Counter[str]) -> int:
    return sum(len(c.encode("utf-8", "replace")) * n for c, n in characters.items())
