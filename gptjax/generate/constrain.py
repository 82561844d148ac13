"""Constraints on whole answers: which tokens may come next, as masks that work inside the compiled loop.

On the host, `compiled` turns a JSON schema, regular expression, grammar or choice into a `TokenAutomaton` for a tokenizer, and `join`
puts those of a batch side by side. On the device a row remembers only its state: `allowed` gives the tokens that may come, `follow` the
state after one. An answer is always finished in time: where few tokens are left, only those of a shortest way to an end may come.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.arrays import Array, Bool, Int, Numbers
from gptjax.config import require
from gptjax.data.tokenizer import Tokenizer
from gptjax.generate.automaton import Automaton, Node, compile_expression
from gptjax.generate.grammar import choices, grammar, regex
from gptjax.generate.schema import json_schema

KINDS: dict[str, Callable[[Any], Node]] = {"schema": json_schema, "regex": regex, "grammar": grammar, "choices": choices}
"""The settings that constrain, and what reads them."""

FREE = 0
"""The state of a row without a constraint: everything may come, and it stays."""


class Constraint(NamedTuple):
    """The automata of a batch side by side, Q states in all, with a bit for each token in W words."""

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


def allowed(constraint: Constraint, state: Int[Array, " B"], written: Int[Array, " B"], size: int) -> Bool[Array, "B {size}"]:
    """The tokens that may come next in rows that have written so many."""
    enough = constraint.limit - written >= jnp.asarray(constraint.need)[state]
    words = jnp.where(enough[:, None], jnp.asarray(constraint.masks)[state], jnp.asarray(constraint.shortest)[state])
    bits = (words[:, :, None] >> jnp.arange(32)[None, None]) & 1
    return bits.reshape(len(words), -1)[:, :size] == 1


def follow(constraint: Constraint, state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
    """The state of each row after a token. After one that was not allowed it means nothing."""
    spelled, table = jnp.asarray(constraint.spelled)[token], jnp.asarray(constraint.table)

    def going(carry: tuple[Array, Array]) -> Bool[Array, ""]:
        i, _ = carry
        return (i < spelled.shape[1]) & jnp.any(spelled[:, jnp.minimum(i, spelled.shape[1] - 1)] >= 0)

    def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, state = carry
        byte = spelled[:, i]
        return i + 1, jnp.where(byte >= 0, jnp.maximum(table[state, byte], FREE), state)

    return jax.lax.while_loop(going, one, (jnp.int32(0), state))[1]


# --- on the host -------------------------------------------------------------------------------------------------


class TokenAutomaton(NamedTuple):
    """What tokens may do in each state of an automaton; as in `Constraint`, for one constraint alone."""

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
    automaton = compile_expression(KINDS[kind](source))
    end = tokenizer.end_of_document
    require(end is not None, f"the tokenizer has no end-of-document id, with which an answer under a {kind} could end (--{kind}).")
    pieces = spell(tokenizer)
    after = functools.partial(_after, automaton.table, pieces, (pieces >= 0).sum(axis=1))
    following: dict[int, list[int]] = {}
    reached, seen = [0], {0}
    for state in reached:  # it grows
        following[state] = np.unique(after(state)[1]).tolist()
        reached += [s for s in following[state] if s not in seen]
        seen |= set(following[state])
    distance = _distances(following, automaton)
    require(np.isfinite(distance[0]), f"no tokens of this tokenizer spell a text that the {kind} allows (--{kind}).")
    size, count = len(automaton.table), -(-len(pieces) // 32)
    masks, shortest, need = np.zeros((size, count), np.int32), np.zeros((size, count), np.int32), np.zeros(size, np.int32)
    for state in reached:
        tokens, to = after(state)
        kept = np.isfinite(distance[to])
        tokens, steps = tokens[kept], distance[to[kept]]
        ends = [end] if automaton.accepting[state] else []
        masks[state] = _bits([*tokens, *ends], count)
        shortest[state] = _bits([*tokens[steps < distance[state]], *ends], count)
        need[state] = 1 + int(steps.max(initial=0))
    return TokenAutomaton(masks, shortest, need, automaton.table, int(distance[0]))


@functools.lru_cache(maxsize=2)
def spell(tokenizer: Tokenizer) -> np.ndarray:
    """The bytes of each token, −1 after its end, in a width that is a power of two."""
    pieces = [tokenizer.token_bytes([i]) for i in range(tokenizer.vocab_size)]
    table = np.full((len(pieces), 1 << (max(map(len, pieces)) - 1).bit_length()), -1, np.int32)
    for row, piece in zip(table, pieces, strict=True):
        row[: len(piece)] = list(piece)
    return table


def _after(table: np.ndarray, pieces: np.ndarray, lengths: np.ndarray, state: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may come in a state, and the state after each."""
    tokens = np.flatnonzero(lengths > 0)
    states, found = np.full(len(tokens), state), []
    for i in range(pieces.shape[1]):
        states = table[states, pieces[tokens, i]]
        alive = states >= 0
        tokens, states = tokens[alive], states[alive]
        whole = lengths[tokens] == i + 1
        found.append((tokens[whole], states[whole]))
        tokens, states = tokens[~whole], states[~whole]
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _distances(following: dict[int, list[int]], automaton: Automaton) -> np.ndarray:
    """Fewest tokens from each state to an accepting one; infinite where there is no way."""
    distance = np.where(automaton.accepting, 0.0, np.inf)
    before: dict[int, list[int]] = {}
    for state, others in following.items():
        for other in others:
            before.setdefault(other, []).append(state)
    layer = [s for s in following if automaton.accepting[s]]
    for state in layer:  # it grows: breadth first
        for other in before.get(state, ()):
            if distance[other] == np.inf:
                distance[other] = distance[state] + 1
                layer.append(other)
    return distance


def _bits(tokens: Sequence[int], words: int) -> np.ndarray:
    flags = np.zeros(words * 32, np.uint8)
    flags[np.asarray(tokens, int)] = 1
    return np.packbits(flags, bitorder="little").view("<i4")


def join(automata: Sequence[TokenAutomaton | None], tokenizer: Tokenizer, limits: Sequence[int]) -> Constraint:
    """The constraints of all rows of a batch; none is a row that is free. Each automaton is there once."""
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
