"""Deterministic automata over bytes, and how a `Language` becomes the smallest one.

`compile_language` builds a non-deterministic automaton (`nfa.py`), determinises it by the subset
construction, and joins equivalent states. All steps are bounded by counts rather than by a clock,
so that every machine accepts and refuses the same constraints.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.generate.constraints.languages import NOTHING, Automaton, Language
from gptjax.generate.constraints.nfa import Nfa, num_states, resolve_anchors

MAX_STATES = 20_000
"""Largest automaton; the masks of a larger one would not fit beside a model."""
MAX_NFA_STATES = 200_000
MAX_STEPS = 2_000_000
"""Elementary steps of one determinisation: a few seconds."""


class TooLarge(ConfigError):
    """A constraint exceeds one of the bounds above."""


def _require_size(fits: bool, excess: str) -> None:
    if not fits:
        raise TooLarge(
            f"the constraint {excess}; use shorter repetitions, fewer items or flatter nesting."
        )


def compile_language(language: Language) -> Automaton:
    """Returns the smallest automaton of a language.

    Raises:
      TooLarge: a bound is exceeded.
      ConfigError: the language is empty.
    """
    automaton = _compile(language)
    require(automaton is not None, "the constraint matches no text at all; loosen it.")
    return automaton


def intersect(left: Language, right: Language) -> Language:
    """The texts of both languages."""
    return _product(left, right, lambda a, b: a and b)


def subtract(left: Language, right: Language) -> Language:
    """The texts of `left` that are not in `right`."""
    return _product(left, right, lambda a, b: a and not b)


def _compile(language: Language) -> Automaton | None:
    """The smallest automaton; `None` for the empty language."""
    if isinstance(language, Automaton):
        return language
    _require_size(num_states(language) <= MAX_NFA_STATES, "repeats too much")
    nfa = Nfa()
    start = nfa.state()
    end = nfa.add(language, start)
    if any(nfa.anchors):
        nfa, start, end = resolve_anchors(nfa, start, end)
    table, accepting, column = _determinize(nfa, start, end)
    return _smallest(table, accepting, column)


# --- determinisation and minimisation -------------------------------------------------------------


def _determinize(nfa: Nfa, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The subset construction.

    Bytes that no step distinguishes share a column of the table.

    Returns:
      The table [Q K], the accepting states [Q], and the column of each byte [256], −1 for none.
    """
    columns, column = _byte_columns(nfa)
    steps = 0
    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """States reachable by free steps that have byte steps, or are the end."""
        if state not in closures:
            todo, seen = [state], {state}
            for current in todo:  # grows
                for other in nfa.free[current]:
                    if other not in seen:
                        seen.add(other)
                        todo.append(other)
            closures[state] = frozenset(s for s in seen if nfa.moves[s] or s == end)
        return closures[state]

    order = [closure(start)]
    known = {order[0]: 0}
    by_targets: dict[frozenset[int], int] = {}
    rows = []
    for states in order:  # grows
        targets: dict[int, set[int]] = {}
        for state in states:
            for values, other in nfa.moves[state]:
                for k in columns[values]:
                    targets.setdefault(k, set()).add(other)
        row = [-1] * (int(column.max()) + 1)
        for k, others in targets.items():
            key = frozenset(others)
            if key not in by_targets:
                union = frozenset().union(*map(closure, key))
                steps += len(union)
                if union not in known:
                    known[union] = len(order)
                    order.append(union)
                by_targets[key] = known[union]
            row[k] = by_targets[key]
            steps += len(key)
        rows.append(row)
        _require_size(steps < MAX_STEPS, "takes too long to compile")
        _require_size(len(order) <= MAX_STATES, f"needs more than {MAX_STATES} states")
    accepting = np.asarray([end in states for states in order])
    return np.asarray(rows, np.int32).reshape(len(order), -1), accepting, column


def _byte_columns(nfa: Nfa) -> tuple[dict[frozenset[int], list[int]], np.ndarray]:
    """The columns of each byte set, and the column of each byte; −1 for bytes of no step."""
    sets = list({values for moves in nfa.moves for values, _ in moves})
    member = np.zeros((256, len(sets)), bool)
    for i, values in enumerate(sets):
        member[list(values), i] = True
    used = np.flatnonzero(member.any(axis=1))
    _, first, inverse = np.unique(member[used], axis=0, return_index=True, return_inverse=True)
    column = np.full(256, -1, np.int32)
    column[used] = inverse.reshape(-1)
    kinds = member[used[first]]
    return {s: np.flatnonzero(kinds[:, i]).tolist() for i, s in enumerate(sets)}, column


def _smallest(table: np.ndarray, accepting: np.ndarray, column: np.ndarray) -> Automaton | None:
    """Drops states that lead nowhere and joins equivalent ones; `None` if state 0 leads nowhere."""
    before = predecessors(table)
    live = accepting.copy()
    todo = np.flatnonzero(accepting).tolist()
    for state in todo:  # grows
        for other in before[state]:
            if not live[other]:
                live[other] = True
                todo.append(other)
    if not live[0]:
        return None
    table = np.where((table >= 0) & live[table], table, -1)
    block = _equivalent(table, accepting, before)
    _, first, block = np.unique(block, return_index=True, return_inverse=True)
    joined = np.append(block, -1)[table[first]]
    order = _reached(joined, int(block[0]))
    number = np.full(len(joined) + 1, -1, np.int32)
    number[order] = np.arange(len(order))
    compact = np.append(number[joined[order]], np.full((len(order), 1), -1, np.int32), axis=1)
    return Automaton(compact[:, column].astype(np.int32), accepting[first][order])


def predecessors(table: np.ndarray) -> list[list[int]]:
    """The states that have a step to each state."""
    source, _ = np.nonzero(table >= 0)
    pairs = np.unique(table[table >= 0].astype(np.int64) * len(table) + source)
    before: list[list[int]] = [[] for _ in table]
    for target, state in zip(
        (pairs // len(table)).tolist(), (pairs % len(table)).tolist(), strict=True
    ):
        before[target].append(state)
    return before


def _equivalent(table: np.ndarray, accepting: np.ndarray, before: list[list[int]]) -> np.ndarray:
    """The block of each state; states of one block accept the same continuations.

    Partition refinement in which only states with a changed successor are looked at again, and the
    largest part of a split block keeps its number, so that a state changes block O(log Q) times
    (Hopcroft 1971).
    """
    block = np.append(accepting.astype(np.int32), -1)  # index −1: no successor
    members = [set(np.flatnonzero(block[:-1] == kind).tolist()) for kind in (0, 1)]
    dirty = set(range(len(table)))
    while dirty:
        listed = list(dirty)
        signatures = block[table[listed]]
        splits: dict[int, dict[bytes, set[int]]] = {}
        for state, signature in zip(listed, signatures, strict=True):
            parts = splits.setdefault(int(block[state]), {})
            parts.setdefault(signature.tobytes(), set()).add(state)
        moved: list[int] = []
        for number, by_signature in splits.items():
            parts = sorted(by_signature.values(), key=len)
            if len(members[number]) - sum(map(len, parts)) >= len(parts[-1]):
                members[number].difference_update(*parts)
            else:
                untouched = members[number].difference(*parts)
                members[number] = parts.pop()
                parts += [untouched] if untouched else []
            for part in parts:
                block[list(part)] = len(members)
                members.append(part)
                moved += part
        dirty = {other for state in moved for other in before[state]}
    return block[:-1]


def _reached(table: np.ndarray, start: int) -> list[int]:
    """The states that can be reached, in breadth-first order."""
    order, seen = [start], {start, -1}
    for state in order:  # grows
        for other in table[state].tolist():
            if other not in seen:
                seen.add(other)
                order.append(other)
    return order


def _product(left: Language, right: Language, accept: Callable[[bool, bool], bool]) -> Language:
    """The texts for which `accept(in left, in right)` holds; all of them are in `left`."""
    one, two = _compile(left), _compile(right)
    if one is None:
        return NOTHING
    if two is None:
        two = Automaton(np.full((1, 256), -1, np.int32), np.zeros(1, bool))
    tables = np.append(one.table, two.table, axis=0)
    columns, column = one._replace(table=tables).symbols()
    first, second = columns[: len(one.table)].tolist(), columns[len(one.table) :].tolist()
    second.append([-1] * columns.shape[1])  # state −1 of the right one stays there
    order, known, rows = [(0, 0)], {(0, 0): 0}, []
    for a, b in order:  # grows
        row = []
        for pair in zip(first[a], second[b], strict=True):
            if pair[0] >= 0 and pair not in known:
                known[pair] = len(order)
                order.append(pair)
            row.append(known[pair] if pair[0] >= 0 else -1)
        rows.append(row)
        _require_size(len(order) <= MAX_STATES, f"needs more than {MAX_STATES} states")
    final = np.append(two.accepting, False)
    accepting = np.asarray([accept(bool(one.accepting[a]), bool(final[b])) for a, b in order])
    automaton = _smallest(np.asarray(rows, np.int32), accepting, column)
    return NOTHING if automaton is None else automaton
