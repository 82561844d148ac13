"""Constraints on whole answers: which tokens may come next, as masks that work inside the compiled
loop.

On the host, `compiled` turns a JSON schema, regular expression, grammar or choice into a
`TokenAutomaton` for a tokenizer, and `join` puts those of a batch side by side. On the device a row
remembers only its state: `allowed` gives the tokens that may come, `follow` the state after one. An
answer is always finished in time: where few tokens are left, only those of a shortest way to an end
may come.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Bool, Int, Numbers
from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.automaton import Automaton, Node, TooLarge, compile_expression
from gptjax.generate.grammar import DEPTH, choices, grammar, regex
from gptjax.generate.schema import json_schema

KINDS: dict[str, Callable[..., Node]] = {
    "schema": json_schema,
    "regex": regex,
    "grammar": grammar,
    "choices": choices,
}
"""The settings that constrain, and what reads them."""
NESTED = ("schema", "grammar")
"""Those that take a depth."""

GROUP = 1 << 23
"""Pairs of a state and a token that are looked at together, when masks are made."""

FREE = 0
"""The state of a row without a constraint: everything may come, and it stays."""


class Constraint(NamedTuple):
    """The automata of a batch side by side, Q states in all, with a bit for each token in W
    words."""

    masks: Int[Numbers, "Q W"]
    """The tokens that may come in a state."""
    shortest: Int[Numbers, "Q W"]
    """Those of them that lead to an end by a shortest way."""
    need: Int[Numbers, " Q"]
    """Tokens that must be left for any token of `masks` to come."""
    table: Int[Numbers, "Q 256"]
    """The state after a byte."""
    spelled: Int[Numbers, "V bytes"]
    """The bytes of each token; −1 after its end."""
    start: Int[Numbers, " B"]
    """The state in which each row's answer begins."""
    limit: Int[Numbers, " B"]
    """Most tokens of each row's answer."""


def allowed(
    constraint: Constraint, state: Int[Array, " B"], written: Int[Array, " B"], size: int
) -> Bool[Array, "B {size}"]:
    """The tokens that may come next in rows that have written so many."""
    enough = constraint.limit - written >= jnp.asarray(constraint.need)[state]
    words = jnp.where(
        enough[:, None],
        jnp.asarray(constraint.masks)[state],
        jnp.asarray(constraint.shortest)[state],
    )
    bits = ((words[:, :, None] >> jnp.arange(32)[None, None]) & 1).reshape(len(words), -1)
    return jnp.pad(bits, ((0, 0), (0, max(size - bits.shape[1], 0))))[:, :size] == 1


def follow(
    constraint: Constraint, state: Int[Array, " B"], token: Int[Array, " B"]
) -> Int[Array, " B"]:
    """The state of each row after a token. After one that was not allowed it means nothing."""
    spelled, table = jnp.asarray(constraint.spelled)[token], jnp.asarray(constraint.table)

    def going(carry: tuple[Array, Array]) -> Bool[Array, ""]:
        i, _ = carry
        return (i < spelled.shape[1]) & jnp.any(
            spelled[:, jnp.minimum(i, spelled.shape[1] - 1)] >= 0
        )

    def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, state = carry
        byte = spelled[:, i]
        return i + 1, jnp.where(byte >= 0, jnp.maximum(table[state, byte], FREE), state)

    return jax.lax.while_loop(going, one, (jnp.int32(0), state))[1]


# --- on the host
# -------------------------------------------------------------------------------------------------


class TokenAutomaton(NamedTuple):
    """What tokens may do in each state of an automaton; as in `Constraint`, for one constraint
    alone."""

    masks: np.ndarray
    shortest: np.ndarray
    need: np.ndarray
    table: np.ndarray
    least: int
    """Tokens of the shortest answer."""


@functools.lru_cache(maxsize=16)
def compiled(kind: str, source: Any, tokenizer: Tokenizer) -> TokenAutomaton:
    """The token masks of a constraint; made once for a source and a tokenizer.

    Raises:
      ConfigError: the source is wrong, or no tokens of this tokenizer spell such a text.
    """
    try:
        automaton = _automaton(kind, source)
    except RecursionError:
        raise ConfigError(f"the {kind} is nested too deep; make it flatter (--{kind}).") from None
    end = tokenizer.end_of_document
    require(
        end is not None,
        f"the tokenizer has no end-of-document id, with which an answer under a {kind} could end"
        f" (--{kind}).",
    )
    table, symbol = np.unique(
        automaton.table, axis=1, return_inverse=True
    )  # bytes that no state tells apart are one symbol
    pieces = spell(tokenizer)
    levels, word = _trie(np.where(pieces >= 0, symbol.reshape(-1)[pieces], -1))
    after = functools.partial(_after, table, levels, int(word.max()) + 1)
    groups = np.array_split(np.arange(len(table)), -(-len(table) * len(pieces) // GROUP))
    following = [
        np.flatnonzero(np.bincount(to[to >= 0])).tolist()
        for states in groups
        for to in after(states)
    ]
    distance = _distances(following, automaton.accepting)
    require(
        np.isfinite(distance[0]),
        f"no tokens of this tokenizer spell a text that the {kind} allows (--{kind}).",
    )
    parts = [
        _masks(
            np.append(distance, np.inf)[after(states)][:, word],
            distance[states],
            automaton.accepting[states],
            end,
        )
        for states in groups
    ]
    return TokenAutomaton(
        *map(np.concatenate, zip(*parts, strict=True)), automaton.table, int(distance[0])
    )


def _automaton(kind: str, source: Any) -> Automaton:
    """The automaton of a constraint, nested as deep as its size allows."""
    if kind not in NESTED:
        return compile_expression(KINDS[kind](source))
    for depth in range(DEPTH, 2, -1):
        with contextlib.suppress(TooLarge):
            return compile_expression(KINDS[kind](source, depth))
    return compile_expression(KINDS[kind](source, 2))


@functools.lru_cache(maxsize=2)
def spell(tokenizer: Tokenizer) -> np.ndarray:
    """The bytes of each token, −1 after its end, in a width that is a power of two."""
    pieces = [tokenizer.token_bytes([i]) for i in range(tokenizer.vocab_size)]
    table = np.full((len(pieces), 1 << (max(map(len, pieces)) - 1).bit_length()), -1, np.int32)
    for row, piece in zip(table, pieces, strict=True):
        row[: len(piece)] = list(piece)
    return table


class _Level(NamedTuple):
    """Beginnings of words that are so many symbols long, each there once."""

    before: np.ndarray
    """The beginning one symbol shorter, as its place in the level before."""
    symbol: np.ndarray
    """The last one."""
    words: np.ndarray
    """The words that end here."""
    place: np.ndarray
    """The beginning that each of them is."""


def _trie(pieces: np.ndarray) -> tuple[list[_Level], np.ndarray]:
    """All beginnings of all words, the shortest first, and the word of each token: tokens of the
    same symbols are one; −1 has none."""
    levels, word, count = [], np.full(len(pieces), -1), 0
    lengths, place = (pieces >= 0).sum(axis=1), np.zeros(len(pieces), np.int64)
    for i in range(lengths.max()):
        longer, ending = np.flatnonzero(lengths > i), lengths == i + 1
        known, place[longer] = np.unique(
            place[longer] * 256 + pieces[longer, i], return_inverse=True
        )
        ends, same = np.unique(place[ending], return_inverse=True)
        word[ending] = count + same
        levels.append(_Level(known // 256, known % 256, count + np.arange(len(ends)), ends))
        count += len(ends)
    return levels, word


def _after(table: np.ndarray, levels: list[_Level], words: int, states: np.ndarray) -> np.ndarray:
    """The state after each word in each of these states, and after none in the last column; −1
    where it can't come."""
    symbols = table.shape[1]
    flat = np.append(table, np.full((1, symbols), -1)).astype(np.int32)  # state −1 is the last row
    found, here, column = (
        np.full((len(states), words + 1), -1, np.int32),
        states.astype(np.int32)[:, None],
        np.zeros(1, np.int64),
    )
    for level in levels:
        kept = np.flatnonzero(column[level.before] >= 0)
        here = np.take(
            flat,
            here[:, column[level.before[kept]]] * symbols
            + level.symbol[kept].astype(np.int32)[None],
        )
        alive = (here >= 0).any(axis=0)
        here, column = here[:, alive], np.full(len(level.symbol), -1)
        column[kept[alive]] = np.arange(here.shape[1])
        ending = column[level.place]
        found[:, level.words[ending >= 0]] = here[:, ending[ending >= 0]]
    return found


def _distances(following: list[list[int]], accepting: np.ndarray) -> np.ndarray:
    """Fewest tokens from each state to an accepting one; infinite where there is no way."""
    distance, before = np.where(accepting, 0.0, np.inf), [[] for _ in following]
    for state, others in enumerate(following):
        for other in others:
            before[other].append(state)
    layer = np.flatnonzero(accepting).tolist()
    for state in layer:  # it grows: breadth first
        for other in before[state]:
            if distance[other] == np.inf:
                distance[other] = distance[state] + 1
                layer.append(other)
    return distance


def _masks(
    steps: np.ndarray, distance: np.ndarray, accepting: np.ndarray, end: int
) -> tuple[np.ndarray, ...]:
    """The masks, shortest ways and needs of some states; `steps` are the distances after each
    token, infinite where it can't come."""
    ways = []
    for allowed in (np.isfinite(steps), steps < distance[:, None]):
        flags = np.zeros((len(steps), -(-allowed.shape[1] // 32) * 32), bool)
        flags[:, : allowed.shape[1]] = allowed
        flags[:, end] = accepting
        ways.append(np.packbits(flags, axis=1, bitorder="little").view("<i4"))
    return *ways, 1 + np.where(np.isfinite(steps), steps, 0).max(axis=1).astype(np.int32)


def join(
    automata: Sequence[TokenAutomaton | None], tokenizer: Tokenizer, limits: Sequence[int]
) -> Constraint:
    """The constraints of all rows of a batch; none is a row that is free. Each automaton is there
    once."""
    spelled = spell(tokenizer)
    words, offset, parts = -(-len(spelled) // 32), {}, []
    place = FREE + 1
    for one in automata:
        if one is not None and id(one) not in offset:
            offset[id(one)] = place
            parts.append(one)
            place += len(one.table)
    size = max(64, 1 << (place - 1).bit_length())
    masks, shortest = np.full((size, words), -1, np.int32), np.full((size, words), -1, np.int32)
    need, table = np.zeros(size, np.int32), np.full((size, 256), FREE, np.int32)
    for one in parts:
        rows = slice(offset[id(one)], offset[id(one)] + len(one.table))
        masks[rows], shortest[rows], need[rows] = one.masks, one.shortest, one.need
        table[rows] = np.where(one.table >= 0, one.table + rows.start, FREE)
    start = np.asarray([FREE if one is None else offset[id(one)] for one in automata], np.int32)
    return Constraint(masks, shortest, need, table, spelled, start, np.asarray(limits, np.int32))
