"""Regular languages as expressions: the values that pattern, grammar and schema readers build.

A `Language` describes a set of byte strings. Build one with `exactly`, `chars`, `seq`, `alt`,
`some`, `star`, `repeat` and `in_order`; `automaton.compile_language` turns it into the smallest
deterministic automaton. Expressions compare by identity, so `x is NOTHING` is the emptiness test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LAST_CODE_POINT = 0x10FFFF


@dataclass(frozen=True, eq=False, slots=True)
class Byte:
    """Any one of these bytes."""

    values: frozenset[int]


@dataclass(frozen=True, eq=False, slots=True)
class Concatenation:
    """The parts in order."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Alternation:
    """Any one of the parts; no parts is the empty language."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, eq=False, slots=True)
class OneOrMore:
    """The part at least once, with the separator between occurrences."""

    part: Language
    separator: Language


@dataclass(frozen=True, eq=False, slots=True)
class UpTo:
    """The part at most `count` times."""

    part: Language
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    """The paths from vertex 0 to one of `ends`; each edge is a language.

    A part that several paths share is stored once, where an expression would need copies.
    """

    edges: tuple[tuple[int, Language, int], ...]
    ends: frozenset[int]


@dataclass(frozen=True, eq=False, slots=True)
class Anchor:
    """A position rather than text: "^" start, "$" end, "b" a word border, "B" none.

    Words are runs of ASCII letters, digits and underscores.
    """

    kind: str


class Automaton(NamedTuple):
    """A deterministic automaton that starts in state 0; an accepting state is always reachable."""

    table: np.ndarray
    """[Q 256]: the state after a byte; −1 where the byte is not possible."""
    accepting: np.ndarray
    """[Q] bool."""

    def accepts(self, data: bytes) -> bool:
        """Whether these bytes are in the language."""
        state = 0
        for byte in data:
            state = self.table[state, byte]
            if state < 0:
                return False
        return bool(self.accepting[state])

    def symbols(self) -> tuple[np.ndarray, np.ndarray]:
        """The table [Q S] with one column for all bytes that no state distinguishes, and the column
        of each byte [256]."""
        known: dict[bytes, int] = {}
        columns = np.ascontiguousarray(self.table.T)
        # a sort of columns compares their long common beginnings many times
        symbol = [known.setdefault(column.tobytes(), len(known)) for column in columns]
        _, first = np.unique(symbol, return_index=True)
        return self.table[:, first], np.asarray(symbol)


Language = Byte | Concatenation | Alternation | OneOrMore | UpTo | Graph | Anchor | Automaton

EMPTY: Language = Concatenation(())
"""Only the empty text."""
NOTHING: Language = Alternation(())
"""No text at all."""


def exactly(literal: str) -> Language:
    """Exactly this text."""
    return seq(*(Byte(frozenset({value})) for value in literal.encode()))


def token(number: int) -> Language:
    """Exactly this control token, which spells nothing that a text could say."""
    return seq(*(Byte(frozenset({value})) for value in token_mark(number)))


def token_mark(number: int) -> bytes:
    """What stands for a control token in an automaton: bytes that no UTF-8 has."""
    return b"\xff" + number.to_bytes(3)


def seq(*parts: Language) -> Language:
    """The parts in order."""
    if any(part is NOTHING for part in parts):
        return NOTHING
    kept = tuple(part for part in parts if part is not EMPTY)
    if not kept:
        return EMPTY
    return kept[0] if len(kept) == 1 else Concatenation(kept)


def alt(*parts: Language) -> Language:
    """Any one of the parts."""
    kept = tuple(part for part in parts if part is not NOTHING)
    if not kept:
        return NOTHING
    return kept[0] if len(kept) == 1 else Alternation(kept)


def some(part: Language, separator: Language = EMPTY) -> Language:
    """The part at least once, with the separator between occurrences."""
    return part if part is NOTHING or part is EMPTY else OneOrMore(part, separator)


def star(part: Language) -> Language:
    """The part any number of times."""
    return alt(some(part), EMPTY)


def repeat(part: Language, low: int, high: int | None) -> Language:
    """The part `low` to `high` times; `None` means without an upper bound."""
    if part is NOTHING or part is EMPTY:
        return EMPTY if low == 0 else part
    if high is None:
        rest = star(part)
    elif isinstance(part, UpTo):
        return UpTo(part.part, part.count * high)
    elif low == 1 and _optional_tail(part) and high > 1:
        # (x x{0,m}){1,n} = x x{0,(m+1)n-1}: bounded repetitions multiply instead of nesting
        once, tail = part.parts
        return seq(once, UpTo(once, (tail.count + 1) * high - 1))
    else:
        rest = UpTo(part, high - low) if high > low else EMPTY
    return seq(*[part] * low, rest)


def _optional_tail(part: Language) -> bool:
    """Whether this is x followed by UpTo(x, m), the shape of x{1,m+1}."""
    if not (isinstance(part, Concatenation) and len(part.parts) == 2):
        return False
    once, tail = part.parts
    return isinstance(tail, UpTo) and tail.part is once


def in_order(parts: Sequence[tuple[Language, bool]], separator: Language) -> Language:
    """Parts in this order with separators between; a part may be omitted unless its flag is set."""
    edges: list[tuple[int, Language, int]] = []
    none_yet: int | None = 0  # the vertex where no part has been written so far
    written: int | None = None  # and where at least one has
    vertices = 1
    for part, required in parts:
        begin, after = vertices, vertices + 1
        vertices += 2
        if none_yet is not None:
            edges.append((none_yet, EMPTY, begin))
        if written is not None:
            edges.append((written, separator, begin))
            if not required:
                edges.append((written, EMPTY, after))
        edges.append((begin, part, after))
        none_yet, written = None if required else none_yet, after
    return Graph(tuple(edges), frozenset({none_yet, written} - {None}))


def complement(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """All code points outside these ranges."""
    gaps, last = [], -1
    for low, high in sorted(ranges):
        gaps.append((last + 1, low - 1))
        last = max(last, high)
    gaps.append((last + 1, LAST_CODE_POINT))
    return [(low, high) for low, high in gaps if low <= high]


_ENCODED_LENGTHS = (
    (0, 0x7F),
    (0x80, 0x7FF),
    (0x800, 0xD7FF),
    (0xE000, 0xFFFF),
    (0x10000, LAST_CODE_POINT),
)
"""Ranges of code points that UTF-8 writes with equally many bytes; surrogates are in none."""


def chars(ranges: Iterable[tuple[int, int]]) -> Language:
    """One character in these ranges of code points, as UTF-8. Surrogates are not characters."""
    parts, ascii_values = [], set()
    for low, high in sorted(ranges):
        ascii_values.update(range(low, min(high, 0x7F) + 1))
        for first, last in _ENCODED_LENGTHS[1:]:
            if max(low, first) <= min(high, last):
                ends = chr(max(low, first)), chr(min(high, last))
                parts.append(_between(ends[0].encode(), ends[1].encode()))
    if ascii_values:
        parts.append(Byte(frozenset(ascii_values)))
    return alt(*parts)


def _between(low: bytes, high: bytes) -> Language:
    """The UTF-8 sequences from `low` to `high`, both of one length."""
    if len(low) == 1:
        return _span(low[0], high[0])
    tail = len(low) - 1
    lowest, highest = b"\x80" * tail, b"\xbf" * tail
    if low[0] == high[0]:
        return seq(_span(low[0], low[0]), _between(low[1:], high[1:]))
    parts, first, last = [], low[0], high[0]
    if low[1:] != lowest:
        parts.append(seq(_span(first, first), _between(low[1:], highest)))
        first += 1
    if high[1:] != highest:
        parts.append(seq(_span(last, last), _between(lowest, high[1:])))
        last -= 1
    if first <= last:
        parts.append(seq(_span(first, last), *[_span(0x80, 0xBF)] * tail))
    return alt(*parts)


def _span(first: int, last: int) -> Language:
    return Byte(frozenset(range(first, last + 1)))


ANY_CHARACTER = chars([(0, LAST_CODE_POINT)])
ANY_TEXT = star(ANY_CHARACTER)
