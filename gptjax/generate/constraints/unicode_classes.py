"""Classes of characters as ranges of code points: `\\d`, `\\p{L}`, and both cases of a letter."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable

from gptjax.generate.constraints.languages import LAST_CODE_POINT

ASCII_CLASSES = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x09, 0x0D), (0x20, 0x20)],
}
"""The classes of one letter as JavaScript and Python's `re.ASCII` read them."""

CATEGORIES = {
    "letter": "L",
    "uppercase_letter": "Lu",
    "lowercase_letter": "Ll",
    "mark": "M",
    "number": "N",
    "decimal_number": "Nd",
    "punctuation": "P",
    "symbol": "S",
    "separator": "Z",
    "space_separator": "Zs",
    "other": "C",
    "control": "Cc",
}
_SHORT = set("LMNPSZC") | {
    *("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe"),
    *("Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"),
}
_LAST_CASED = 0x1E943
"""No code point from here on has a lower or upper case."""


def category(name: str) -> list[tuple[int, int]] | None:
    """The characters of a Unicode general category, by short or long name; `None` if unknown."""
    short = CATEGORIES.get(name.lower().replace(" ", "_").replace("-", "_"), name)
    return _category(short) if short in _SHORT else None


@functools.cache
def wide_class(letter: str) -> list[tuple[int, int]]:
    """The class `\\d`, `\\w` or `\\s` of all of Unicode, as Python's `re` reads it by default."""
    belongs = {
        "d": str.isdecimal,
        "s": str.isspace,
        "w": lambda one: one.isalnum() or one == "_",
    }[letter]
    return _ranges(point for point in range(LAST_CODE_POINT + 1) if belongs(chr(point)))


@functools.cache
def _category(short: str) -> list[tuple[int, int]]:
    points = (
        point
        for point in range(LAST_CODE_POINT + 1)
        if unicodedata.category(chr(point)).startswith(short)
    )
    return _ranges(points)


def both_cases(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """These characters, and those that differ from them by simple case alone."""
    ranges = list(ranges)
    more = [
        (other, other)
        for point, others in _cased().items()
        if any(low <= point <= high for low, high in ranges)
        for other in others
    ]
    return ranges + more


@functools.lru_cache(maxsize=1)
def _cased() -> dict[int, tuple[int, ...]]:
    """Each character that has another case, with that other case."""
    cased = {}
    for point in range(_LAST_CASED + 1):
        one = chr(point)
        others = {other for other in (one.lower(), one.upper()) if other != one}
        if others and all(len(other) == 1 for other in others):
            cased[point] = tuple(map(ord, others))
    return cased


def _ranges(points: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending code points as ranges."""
    ranges = []
    for _, run in itertools.groupby(enumerate(points), lambda pair: pair[1] - pair[0]):
        listed = [point for _, point in run]
        ranges.append((listed[0], listed[-1]))
    return ranges
