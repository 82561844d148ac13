"""Non-deterministic automata: how expressions become states and steps.

`Nfa.add` builds the automaton of a `Language`; `resolve_anchors` replaces anchors, which look at
what stands before and after them, by states that remember the one and demand the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gptjax.generate.constraints.languages import (
    Alternation,
    Anchor,
    Automaton,
    Byte,
    Concatenation,
    Graph,
    Language,
    OneOrMore,
    UpTo,
)

_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_KINDS = {
    "word": _WORD,
    "other": frozenset(range(0x80)) - _WORD,
    "wide": frozenset(range(0x80, 0x100)),
}
"""Kinds of bytes around a word border. Engines disagree on which characters outside ASCII belong to
words, so next to these there is neither a border nor its opposite."""


def num_states(language: Language) -> int:
    """About how many states the non-deterministic automaton of a language has."""
    sizes: dict[int, int] = {}

    def size(part: Language) -> int:
        if id(part) not in sizes:
            match part:
                case Concatenation(parts) | Alternation(parts):
                    sizes[id(part)] = 1 + sum(map(size, parts))
                case OneOrMore(inner, separator):
                    sizes[id(part)] = 2 + size(inner) + size(separator)
                case UpTo(inner, count):
                    sizes[id(part)] = 1 + count * size(inner)
                case Graph(edges, _):
                    sizes[id(part)] = 1 + sum(1 + size(inner) for _, inner, _ in edges)
                case Automaton(table, _):
                    sizes[id(part)] = len(table)
                case _:
                    sizes[id(part)] = 1
        return sizes[id(part)]

    return size(language)


class Nfa:
    """A growing non-deterministic automaton: per state its free steps, byte steps and anchors."""

    def __init__(self) -> None:
        self.free: list[list[int]] = []
        self.moves: list[list[tuple[frozenset[int], int]]] = []
        self.anchors: list[list[tuple[str, int]]] = []

    def state(self) -> int:
        """Adds a state and returns its number."""
        self.free.append([])
        self.moves.append([])
        self.anchors.append([])
        return len(self.free) - 1

    def add(self, language: Language, start: int) -> int:
        """Adds the paths of a language from `start`; returns the state where they end."""
        if isinstance(language, Concatenation):
            for part in language.parts:
                start = self.add(part, start)
            return start
        end = self.state()
        match language:
            case Byte(values):
                self.moves[start].append((values, end))
            case Anchor(kind):
                self.anchors[start].append((kind, end))
            case Alternation(parts):
                for part in parts:
                    self.free[self.add(part, start)].append(end)
            case OneOrMore(part, separator):
                loop = self.state()
                self.free[start].append(loop)
                last = self.add(part, loop)
                self.free[last].append(end)
                self.free[self.add(separator, last)].append(loop)
            case UpTo(part, count):
                for _ in range(count):
                    self.free[start].append(end)
                    start = self.add(part, start)
                self.free[start].append(end)
            case Graph(edges, ends):
                self._add_graph(edges, ends, start, end)
            case Automaton():
                self._add_automaton(language, start, end)
        return end

    def _add_graph(self, edges: Iterable, ends: Iterable[int], start: int, end: int) -> None:
        vertices = {0: self.state()}
        self.free[start].append(vertices[0])
        for source, part, target in edges:
            for vertex in (source, target):
                if vertex not in vertices:
                    vertices[vertex] = self.state()
            self.free[self.add(part, vertices[source])].append(vertices[target])
        for vertex in ends:
            if vertex in vertices:
                self.free[vertices[vertex]].append(end)

    def _add_automaton(self, automaton: Automaton, start: int, end: int) -> None:
        states = [self.state() for _ in automaton.table]
        self.free[start].append(states[0])
        for state, row, accepting in zip(states, automaton.table, automaton.accepting, strict=True):
            for target in np.unique(row[row >= 0]).tolist():
                values = frozenset(np.flatnonzero(row == target).tolist())
                self.moves[state].append((values, states[target]))
            if accepting:
                self.free[state].append(end)


_AND = {
    ("any", "word"): "word",
    ("any", "other"): "other",
    ("any", "end"): "end",
    ("word", "word"): "word",
    ("other", "other"): "other",
    ("other", "end"): "end",
    ("end", "other"): "end",
    ("end", "end"): "end",
}
"""Demands on what follows, taken together; pairs that contradict each other are absent.

"other" is an ASCII byte outside words or the end of the text.
"""


def resolve_anchors(nfa: Nfa, start: int, end: int) -> tuple[Nfa, int, int]:
    """Replaces anchors by states that know what came before and what must come next."""
    resolved = Nfa()
    numbers: dict[tuple[int, str, str], int] = {}
    todo: list[tuple[int, str, str]] = []

    def number(state: int, before: str, demand: str) -> int:
        key = state, before, demand
        if key not in numbers:
            numbers[key] = resolved.state()
            todo.append(key)
        return numbers[key]

    first = number(start, "start", "any")
    last = resolved.state()
    for state, before, demand in todo:  # grows
        here = numbers[state, before, demand]
        resolved.free[here] += [number(other, before, demand) for other in nfa.free[state]]
        for kind, other in nfa.anchors[state]:
            new = _after_anchor(kind, before, demand)
            if new is not None:
                resolved.free[here].append(number(other, before, new))
        for values, other in nfa.moves[state]:
            for kind, members in _KINDS.items():
                part = values & members
                if part and demand in ("any", kind):
                    resolved.moves[here].append((part, number(other, kind, "any")))
        if state == end and demand != "word":
            resolved.free[here].append(last)
    return resolved, first, last


def _after_anchor(kind: str, before: str, demand: str) -> str | None:
    """The demand on what follows once an anchor was passed; `None` where it does not hold."""
    if kind == "^":
        return demand if before == "start" else None
    if kind == "$":
        return _AND.get((demand, "end"))
    if before == "wide":
        return None
    changes = kind == "b"
    return _AND.get((demand, "other" if (before == "word") == changes else "word"))
