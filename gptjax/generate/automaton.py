"""Regular languages over bytes: expressions as plain values, and the smallest deterministic
automaton of each.

An expression is made by `text, chars, seq, alt, some, star, repeat`; `compile_expression` makes the
automaton. Numpy and Python alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require

Node = tuple
"""An expression: ("byte", set), ("seq", nodes), ("alt", nodes), ("some", (node, separator)),
("upto", (node, count)) or ("each", (parts, separator)).

An alternative of nothing matches nothing. The last three stand for what would be copies, so that
nesting stays small.
"""

EMPTY: Node = ("seq", ())
NOTHING: Node = ("alt", ())
LARGEST = 0x10FFFF
MOST_STATES = 20_000
"""A larger automaton is refused: its masks would not fit."""
MOST_LINKS = 20 * MOST_STATES
"""So are expressions with more parts, before they are looked at."""


def text(words: str) -> Node:
    """Just this text."""
    return ("seq", tuple(("byte", frozenset({b})) for b in words.encode()))


def seq(*parts: Node) -> Node:
    """One after the other."""
    return NOTHING if NOTHING in parts else parts[0] if len(parts) == 1 else ("seq", parts)


def alt(*parts: Node) -> Node:
    """Any of them."""
    kept = tuple(part for part in parts if part != NOTHING)
    return kept[0] if len(kept) == 1 else ("alt", kept)


def some(part: Node, separator: Node = EMPTY) -> Node:
    """At least once, with the separator between."""
    return part if part in (NOTHING, EMPTY) else ("some", (part, separator))


def star(part: Node) -> Node:
    """As often as wanted, or not at all."""
    return alt(some(part), EMPTY)


def repeat(part: Node, low: int, high: int | None) -> Node:
    """At least `low` and at most `high` times; none is any number of times."""
    rest = (
        star(part)
        if high is None
        else ("upto", (part, high - low))
        if high > low and part != NOTHING
        else EMPTY
    )
    return seq(*[part] * low, rest)


def each(parts: Sequence[tuple[Node, bool]], separator: Node) -> Node:
    """These in order, with the separator between; those without a mark may be left away."""
    if (NOTHING, True) in parts:
        return NOTHING
    return ("each", (tuple(part for part in parts if part[0] != NOTHING), separator))


def chars(ranges: Iterable[tuple[int, int]], inverted: bool = False) -> Node:
    """One character in these ranges of code points, ends included; surrogates are no characters."""
    ranges = sorted(ranges)
    if inverted:
        borders, last = [], -1
        for low, high in ranges:
            borders.append((last + 1, low - 1))
            last = max(last, high)
        ranges = [*borders, (last + 1, LARGEST)]
    parts = []
    for low, high in ranges:
        for first, end in (
            (0, 0x7F),
            (0x80, 0x7FF),
            (0x800, 0xD7FF),
            (0xE000, 0xFFFF),
            (0x10000, LARGEST),
        ):
            if max(low, first) <= min(high, end):
                parts.append(_between(chr(max(low, first)).encode(), chr(min(high, end)).encode()))
    return alt(*parts)


def _between(low: bytes, high: bytes) -> Node:
    """The UTF-8 of as many bytes from low to high."""

    def span(a, b):
        return ("byte", frozenset(range(a, b + 1)))

    if len(low) == 1:
        return span(low[0], high[0])
    rest = len(low) - 1
    least, most = b"\x80" * rest, b"\xbf" * rest
    if low[0] == high[0]:
        return seq(span(low[0], low[0]), _between(low[1:], high[1:]))
    parts, first, last = [], low[0], high[0]
    if low[1:] != least:
        parts.append(seq(span(first, first), _between(low[1:], most)))
        first += 1
    if high[1:] != most:
        parts.append(seq(span(last, last), _between(least, high[1:])))
        last -= 1
    if first <= last:
        parts.append(seq(span(first, last), *[span(0x80, 0xBF)] * rest))
    return alt(*parts)


class TooLarge(ConfigError):
    """An automaton would have too many states."""


def _require_size(fits: bool, fault: str) -> None:
    if not fits:
        raise TooLarge(f"the constraint {fault}; make repetitions shorter or nesting flatter.")


class Automaton(NamedTuple):
    """Deterministic; it starts in state 0. From every state some text leads to an accepting one."""

    table: np.ndarray
    """[Q 256]: the state after a byte; −1 is a byte that can't come."""
    accepting: np.ndarray
    """[Q]"""

    def accepts(self, data: bytes) -> bool:
        """Whether these bytes are in the language."""
        state = 0
        for byte in data:
            state = self.table[state, byte]
            if state < 0:
                return False
        return bool(self.accepting[state])


def compile_expression(node: Node) -> Automaton:
    """The smallest automaton of an expression.

    Raises:
      ConfigError: it matches nothing, or needs more than `MOST_STATES` states.
    """
    table, accepting = _determined(*_links(node))
    live = accepting.copy()
    while True:  # backwards from what accepts
        more = live | (live[table] & (table >= 0)).any(axis=1)
        if (more == live).all():
            break
        live = more
    require(bool(live[0]), "the constraint matches no text at all; loosen it.")
    table = np.where((table >= 0) & live[table], table, -1)
    return _smallest(table, accepting & live)


class _Links:
    """A non-deterministic automaton that grows: free steps, and steps over a set of bytes."""

    def __init__(self) -> None:
        self.free: list[list[int]] = []
        self.moves: list[tuple[frozenset[int], int] | None] = []

    def state(self) -> int:
        _require_size(len(self.free) < MOST_LINKS, "repeats too much")
        self.free.append([])
        self.moves.append(None)
        return len(self.free) - 1

    def add(self, node: Node, start: int) -> int:
        """Adds what the node matches after `start`, and gives the state at its end."""
        kind, inner = node
        if kind == "byte":
            end = self.state()
            step = self.state()
            self.free[start].append(step)
            self.moves[step] = (inner, end)
            return end
        if kind == "seq":
            for part in inner:
                start = self.add(part, start)
            return start
        end = self.state()
        if kind == "alt":
            for part in inner:
                self.free[self.add(part, start)].append(end)
            return end
        part, rest = inner
        if kind == "each":
            return self.add_each(part, rest, start)
        if kind == "some":
            around = self.state()
            self.free[start].append(around)
            last = self.add(part, around)
            self.free[last].append(end)
            self.free[self.add(rest, last)].append(around)
            return end
        for _ in range(rest):
            self.free[start].append(end)
            start = self.add(part, start)
        self.free[start].append(end)
        return end

    def add_each(self, parts: Sequence[tuple[Node, bool]], separator: Node, start: int) -> int:
        """Adds a list; `none` is where nothing was written yet, `some` where something was."""
        none: int | None = start
        some: int | None = None
        for part, needed in parts:
            begin, after = self.state(), self.state()
            if none is not None:
                self.free[none].append(begin)
            if some is not None:
                self.free[self.add(separator, some)].append(begin)
                if not needed:
                    self.free[some].append(after)
            self.free[self.add(part, begin)].append(after)
            none, some = None if needed else none, after
        end = self.state()
        for last in (none, some):
            if last is not None:
                self.free[last].append(end)
        return end


def _links(node: Node) -> tuple[_Links, int, int]:
    links = _Links()
    start = links.state()
    return links, start, links.add(node, start)


def _determined(links: _Links, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Sets of states become states. Bytes that no step tells apart go together."""
    sets = list(dict.fromkeys(move[0] for move in links.moves if move))
    kinds: dict[Any, list[int]] = {}
    for byte in range(256):
        kinds.setdefault(tuple(i for i, s in enumerate(sets) if byte in s), []).append(byte)
    members = {s: [k for k, kind in enumerate(kinds) if i in kind] for i, s in enumerate(sets)}

    def closed(states: Iterable[int]) -> frozenset[int]:
        todo = list(states)
        seen = set(todo)
        while todo:
            for other in links.free[todo.pop()]:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return frozenset(s for s in seen if links.moves[s] or s == end)

    known = {closed([start]): 0}
    order, rows = list(known), []
    for state in order:
        steps: list[set[int]] = [set() for _ in kinds]
        for move in (links.moves[s] for s in state):
            for kind in members[move[0]] if move else ():
                steps[kind].add(move[1])
        row = np.full(256, -1, np.int32)
        for targets, those in zip(steps, kinds.values(), strict=True):
            if targets:
                new = closed(targets)
                if new not in known:
                    known[new] = len(order)
                    order.append(new)
                    _require_size(
                        len(order) <= MOST_STATES, f"needs more than {MOST_STATES} states"
                    )
                row[those] = known[new]
        rows.append(row)
    return np.stack(rows), np.asarray([end in state for state in order])


def _smallest(table: np.ndarray, accepting: np.ndarray) -> Automaton:
    """Joins states that no text tells apart, and leaves those out that none reaches. (Moore's
    refinement.)"""
    kind, count = accepting.astype(np.int32), 0
    while len(np.unique(kind)) != count:
        count = len(np.unique(kind))
        seen = np.column_stack([kind, np.where(table >= 0, kind[table], -1)])
        _, kind = np.unique(seen, axis=0, return_inverse=True)
        kind = kind.reshape(-1).astype(np.int32)
    _, first = np.unique(kind, return_index=True)
    joined = np.where(table[first] >= 0, kind[table[first]], -1)
    order = _reached(joined, int(kind[0]))
    place = np.full(len(joined), -1, np.int32)
    place[order] = np.arange(len(order))
    return Automaton(
        np.where(joined[order] >= 0, place[joined[order]], -1).astype(np.int32),
        accepting[first][order],
    )


def _reached(table: np.ndarray, start: int) -> Sequence[int]:
    order, seen = [start], {start}
    for state in order:
        for other in np.unique(table[state]).tolist():
            if other >= 0 and other not in seen:
                seen.add(other)
                order.append(other)
    return order
