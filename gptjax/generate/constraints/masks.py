"""Constraints on the device: tables that say which tokens may come next in each row of a batch.

A row remembers one number, its state. `allowed` gives the tokens that may come, `next_states` the
state after one; both work inside a compiled loop. An answer always ends in time: where few tokens
are left, only those on a shortest way to an end are allowed.

On the host, `join_automata` puts the automata of a whole batch side by side, and `insert` gives one
row of a running batch another automaton. Tables grow by factors of four, so that few programs are
compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Bool, Int, Numbers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.constraints.tokens import TokenAutomaton, spell

FREE = 0
"""The state of a row without a constraint: every token is allowed, and it stays there."""
LEAST_STATES = 256
LEAST_MASKS = 64


class Constraint(NamedTuple):
    """The automata of B rows: Q states in all, and M distinct masks of V bits in W words."""

    masks: Int[Numbers, "M W"]
    """Tokens that may come next, a bit each."""
    shortest: Int[Numbers, "M W"]
    """Those of them that lie on a shortest way to an end."""
    mask: Int[Numbers, " Q"]
    """The row of `masks` and `shortest` that belongs to a state."""
    need: Int[Numbers, " Q"]
    """Tokens that must be left so that any token of `masks` may come."""
    table: Int[Numbers, "Q 256"]
    """The state after a byte."""
    spelled: Int[Numbers, "V bytes"]
    """The bytes of each token; −1 after its end."""
    start: Int[Numbers, " B"]
    """The state in which each row's answer begins."""
    limit: Int[Numbers, " B"]
    """Maximum number of tokens of each row's answer."""


def allowed(
    constraint: Constraint, state: Int[Array, " B"], written: Int[Array, " B"], size: int
) -> Bool[Array, "B {size}"]:
    """The tokens that may come next in rows that have written `written` tokens."""
    enough = constraint.limit - written >= jnp.asarray(constraint.need)[state]
    mask = jnp.asarray(constraint.mask)[state]
    words = jnp.where(
        enough[:, None],
        jnp.asarray(constraint.masks)[mask],
        jnp.asarray(constraint.shortest)[mask],
    )
    bits = ((words[:, :, None] >> jnp.arange(32)[None, None]) & 1).reshape(len(words), -1)
    return jnp.pad(bits, ((0, 0), (0, max(size - bits.shape[1], 0))))[:, :size] == 1


def next_states(
    constraint: Constraint, state: Int[Array, " B"], token: Int[Array, " B"]
) -> Int[Array, " B"]:
    """The state of each row after a token; unspecified after a token that was not allowed."""
    spelled = jnp.asarray(constraint.spelled)[token].astype(jnp.int32)
    table = jnp.asarray(constraint.table)

    def unfinished(carry: tuple[Array, Array]) -> Bool[Array, ""]:
        i, _ = carry
        here = spelled[:, jnp.minimum(i, spelled.shape[1] - 1)]
        return (i < spelled.shape[1]) & jnp.any(here >= 0)

    def one_byte(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, state = carry
        byte = spelled[:, i]
        return i + 1, jnp.where(byte >= 0, jnp.maximum(table[state, byte], FREE), state)

    return jax.lax.while_loop(unfinished, one_byte, (jnp.int32(0), state))[1]


# --- on the host --------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where the states and masks of an automaton begin in the tables of a `Constraint`."""

    automaton: TokenAutomaton
    state: int
    mask: int


def unconstrained(
    rows: int, tokenizer: Tokenizer, states: int = LEAST_STATES, masks: int = LEAST_MASKS
) -> Constraint:
    """Tables in which every row is free, with room for other automata.

    Args:
      states: capacity in states; rounded up to 256 times a power of four.
      masks: capacity in distinct masks; rounded up to 64 times a power of four.
    """
    spelled = spell(tokenizer)
    num_states, num_masks = _bucket(states, LEAST_STATES), _bucket(masks, LEAST_MASKS)
    words = -(-len(spelled) // 32)
    return Constraint(
        masks=np.full((num_masks, words), -1, np.int32),
        shortest=np.full((num_masks, words), -1, np.int32),
        mask=np.zeros(num_states, np.int32),
        need=np.zeros(num_states, np.int32),
        table=np.full((num_states, 256), FREE, np.int32),
        spelled=spelled,
        start=np.full(rows, FREE, np.int32),
        limit=np.zeros(rows, np.int32),
    )


def join_automata(
    automata: Sequence[TokenAutomaton | None], tokenizer: Tokenizer, limits: Sequence[int]
) -> Constraint:
    """The constraints of all rows of a batch; `None` is a free row. Equal automata share a place.

    Args:
      limits: maximum number of tokens of each row's answer.
    """
    places: list[Place | None] = []
    for automaton in automata:
        places.append(None if automaton is None else _place(automaton, places))
    states = max([p.state + len(p.automaton.table) for p in places if p], default=1)
    masks = max([p.mask + len(p.automaton.masks) for p in places if p], default=1)
    joined = unconstrained(len(automata), tokenizer, states, masks)
    for place in {(p.state, p.mask): p for p in places if p}.values():
        _write(joined, place)
    starts = [FREE if place is None else place.state for place in places]
    return joined._replace(start=np.asarray(starts, np.int32), limit=np.asarray(limits, np.int32))


def insert(
    constraint: Constraint,
    row: int,
    automaton: TokenAutomaton | None,
    limit: int,
    places: Sequence[Place | None],
) -> tuple[Constraint, list[Place | None]]:
    """Gives one row of a running batch another automaton; the states of all other rows stay
    valid.

    The row must then begin in `constraint.start[row]`. Tables on a device stay there: only the
    automaton's own rows are sent, padded to such a size too.

    Args:
      automaton: `None` frees the row.
      places: the place of each row's automaton, as returned before; all `None` at first.

    Returns:
      The tables, larger only if no gap was wide enough, and the places with this row's.
    """
    others = [*places[:row], None, *places[row + 1 :]]
    place = None if automaton is None else _place(automaton, others)
    if place is not None:
        constraint = _grown(
            constraint, place.state + len(automaton.table), place.mask + len(automaton.masks)
        )
        constraint = _scattered(constraint, place)
    start = FREE if place is None else place.state
    constraint = constraint._replace(
        start=jnp.asarray(constraint.start).at[row].set(start),
        limit=jnp.asarray(constraint.limit).at[row].set(limit),
    )
    return constraint, [*others[:row], place, *others[row + 1 :]]


def _place(automaton: TokenAutomaton, places: Sequence[Place | None]) -> Place:
    """Where an automaton stands already, or the first gap that is wide enough for it."""
    used = [place for place in places if place is not None]
    for place in used:
        if place.automaton is automaton:
            return place
    return Place(
        automaton,
        _gap([(p.state, len(p.automaton.table)) for p in used], len(automaton.table)),
        _gap([(p.mask, len(p.automaton.masks)) for p in used], len(automaton.masks)),
    )


def _gap(used: Sequence[tuple[int, int]], size: int) -> int:
    """The first offset after `FREE` from which `size` rows are unused."""
    offset = FREE + 1
    for start, length in sorted(used):
        if start - offset >= size:
            break
        offset = max(offset, start + length)
    return offset


def _block(place: Place) -> dict[str, np.ndarray]:
    """The rows of an automaton as they stand in the tables."""
    automaton = place.automaton
    return {
        "masks": automaton.masks,
        "shortest": automaton.shortest,
        "mask": automaton.mask + place.mask,
        "need": automaton.need,
        "table": np.where(automaton.table >= 0, automaton.table + place.state, FREE),
    }


def _offset(name: str, place: Place) -> int:
    return place.mask if name in ("masks", "shortest") else place.state


def _write(constraint: Constraint, place: Place) -> None:
    """Fills freshly made tables of the host."""
    for name, block in _block(place).items():
        start = _offset(name, place)
        getattr(constraint, name)[start : start + len(block)] = block


def _scattered(constraint: Constraint, place: Place) -> Constraint:
    changed = {}
    for name, block in _block(place).items():
        size = _bucket(len(block), LEAST_MASKS)
        target = getattr(constraint, name)
        index = np.full(size, len(target), np.int32)  # past the end: dropped
        index[: len(block)] = _offset(name, place) + np.arange(len(block))
        padding = [(0, size - len(block))] + [(0, 0)] * (block.ndim - 1)
        changed[name] = _set_rows(target, index, np.pad(block, padding).astype(np.int32))
    return constraint._replace(**changed)


@jax.jit
def _set_rows(target: Array, index: Int[Array, " n"], rows: Array) -> Array:
    return target.at[index].set(rows, mode="drop")


def _grown(constraint: Constraint, states: int, masks: int) -> Constraint:
    """Tables of at least this capacity; new rows are those of `FREE`."""
    sizes = {"masks": masks, "shortest": masks, "mask": states, "need": states, "table": states}
    larger = {}
    for name, size in sizes.items():
        rows = getattr(constraint, name)
        missing = _bucket(size, len(rows)) - len(rows)
        if missing > 0:
            xp = np if isinstance(rows, np.ndarray) else jnp
            padding = [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
            larger[name] = xp.pad(rows, padding, constant_values=rows[FREE].ravel()[0].item())
    return constraint._replace(**larger)


def _bucket(size: int, least: int) -> int:
    """The smallest of `least` times a power of four that holds `size`."""
    while least < size:
        least *= 4
    return least
