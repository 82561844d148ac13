"""What each row has read and written so far, how often each id stands in it, and where its end has
stood before.

Penalties, no-repeat-n-gram, DRY and prompt look-up all look back through these three.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Int


class History(NamedTuple):
    """The tokens of each row, its prompt first. Only the first `length` count; past them stands
    anything."""

    ids: Int[Array, "B S"]
    prompt: Int[Array, " B"]
    """Tokens that were read before writing began."""
    length: Int[Array, " B"]
    """Tokens in all."""
    state: Int[Array, " B"] | None = None
    """Where the answer stands in its constraint; none if nothing is constrained."""


def counts(history: History, size: int, first: Int[Array, " B"]) -> Int[Array, "B {size}"]:
    """How often each of `size` ids stands in each row, from place `first` on."""
    rows, slots = history.ids.shape
    place = jnp.arange(slots)[None]
    counted = (place >= first[:, None]) & (place < history.length[:, None])
    found = jnp.where(counted, history.ids, size)
    return (
        jnp.zeros((rows, size), jnp.int32).at[jnp.arange(rows)[:, None], found].add(1, mode="drop")
    )


def repeats(
    history: History, barrier: Bool[Array, "B V"] | None = None, most: int | None = None
) -> Int[Array, "B S"]:
    """How many tokens just before each place are the row's last tokens; −1 from the row's end on.

    Where it is m at place j, the last m tokens have stood before, and the token at j came after
    them.

    Args:
      barrier: ids at which a match ends; they are never part of it.
      most: matches are counted up to this length.
    """
    slots = history.ids.shape[1]
    place, end = jnp.arange(slots)[None], history.length[:, None]

    def going(state: tuple) -> Bool[Array, ""]:
        size, _, alive, _ = state
        return jnp.any(alive) & (size <= (slots if most is None else most))

    def longer(state: tuple) -> tuple:
        size, shifted, alive, matched = state
        last = jnp.take_along_axis(history.ids, jnp.maximum(end - size, 0), axis=1)
        shifted = jnp.roll(shifted, 1, axis=1)
        alive &= (place >= size) & (shifted == last)
        if barrier is not None:
            alive &= ~jnp.take_along_axis(barrier, last, axis=1)
        return size + 1, shifted, alive, matched + alive

    known = place < end
    start = (jnp.int32(1), history.ids, known, jnp.where(known, 0, -1))
    return jax.lax.while_loop(going, longer, start)[-1]
