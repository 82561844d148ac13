"""The tokens of each row so far: how often each id occurs, and where the row's end occurred before.

Penalties, no-repeat-n-gram, DRY and prompt look-up are all made of these.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Int


class History(NamedTuple):
    """The tokens of each row, its prompt first. Only the first `length` count; the rest is
    anything."""

    ids: Int[Array, "B S"]
    prompt: Int[Array, " B"]
    """Number of tokens that were read before writing began."""
    length: Int[Array, " B"]
    """Number of tokens in all."""
    state: Int[Array, " B"] | None = None
    """The state of the answer in its constraint; `None` if nothing is constrained."""


def counts(history: History, size: int, first: Int[Array, " B"]) -> Int[Array, "B {size}"]:
    """Counts each of `size` ids in each row, from place `first` on."""
    rows, slots = history.ids.shape
    place = jnp.arange(slots)[None]
    counted = (place >= first[:, None]) & (place < history.length[:, None])
    ids = jnp.where(counted, history.ids, size)
    return jnp.zeros((rows, size), jnp.int32).at[jnp.arange(rows)[:, None], ids].add(1, mode="drop")


def repeats(
    history: History, barrier: Bool[Array, "B V"] | None = None, most: int | None = None
) -> Int[Array, "B S"]:
    """The number of tokens just before each place that equal the row's last tokens; −1 from the
    row's end on.

    If it is m at place j, the last m tokens occur before j too, and the token at j came after them.

    Args:
      barrier: ids at which a match ends; they are never part of it.
      most: maximum length of a match.
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
