"""What an answer is worth beside right ones: equality, shared words, the number that it gives.

Read `exact_match`, `token_f1` and `contained`, which take texts as SQuAD does, then `right_number`;
the last number of a text (flexible extraction) is `rewards.numbers.last_number`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from gptjax.rewards.numbers import whole_number

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ALONE = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
"""Characters of Chinese and Japanese, which are words of their own."""


def normalised(text: str) -> str:
    """Returns a text in lower case, without punctuation, the articles of English and superfluous
    white space.

    Source: Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250, section 6.1.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """Returns 1 where an answer is one of the right ones, both normalised, else 0."""
    return float(normalised(answer) in {normalised(one) for one in right})


def contained(answer: str, right: Sequence[str]) -> float:
    """Returns 1 where one of the right answers stands in an answer as whole words, else 0."""
    words = f" {' '.join(words_of(answer))} "
    found = (f" {' '.join(words_of(one))} " for one in right)
    return float(any(one.strip() and one in words for one in found))


def token_f1(answer: str, right: Sequence[str]) -> float:
    """Returns the F1 of the words that an answer shares with a right one, the best of them.

    Of Chinese and Japanese each character is a word (as MLQA counts), which SQuAD does not say.
    """
    return max((_f1(words_of(answer), words_of(one)) for one in right), default=0.0)


def words_of(text: str) -> list[str]:
    """Returns the words of a normalised text."""
    return _ALONE.sub(r" \1 ", normalised(text)).split()


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    shared = sum((Counter(words) & Counter(right)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(right)
    return 2 * precision * recall / (precision + recall)


# --- numbers


def marked_number(text: str) -> Fraction | None:
    """Returns the number after `####`, as in the solutions of GSM8K, or `None`."""
    words = text.partition("####")[2].split()
    return whole_number(words[0].rstrip(".,")) if words else None


def right_number(text: str) -> Fraction | None:
    """Returns the number that a text gives and nothing else (strict extraction): after `####`, or
    as the whole of it, but for a full stop; else `None`."""
    if "####" in text:
        return marked_number(text)
    return whole_number(text.strip().removesuffix("."))


def same_number(one: Fraction | None, other: Fraction | None) -> float:
    """Returns 1 where both are the same number, else 0."""
    return float(one is not None and one == other)
