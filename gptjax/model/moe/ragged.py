"""Dropless experts on a mesh whose tokens travel: each choice of a token goes to the device of its
expert and comes back, however many there are (a ragged all-to-all).

Read `through_experts`, then `ragged_all_to_all`, which also says what it does on CPU.

Source: jax.lax.ragged_all_to_all, and XLA's instruction of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int
from gptjax.sharding.collectives import all_gather
from gptjax.sharding.constrain import platform


class Blocks(NamedTuple):
    """How many rows each device sends to each other one, and where they begin."""

    sizes: Int[Array, "devices devices"]
    """From a device (first) to another."""
    begin: Int[Array, "devices devices"]
    """Where they begin at the device that they come from."""
    end_up: Int[Array, "devices devices"]
    """Where they begin at the device that they go to."""

    def back(self) -> Blocks:
        """The same rows on their way back."""
        return Blocks(self.sizes.T, self.end_up.T, self.begin.T)


def through_experts(
    experts: Callable[[Float[Array, "R D"], Int[Array, " R"]], Float[Array, "R D"]],
    choices: Float[Array, "pairs D"],
    chosen: Int[Array, " pairs"],
    count: int,
    room: int,
) -> Float[Array, "pairs D"]:
    """Applies experts that lie on the devices along `expert`, `count` on each, to each choice.

    Args:
      experts: applies the local ones; the number of none, `count`, is of rows that nobody sent.
      chosen: number of the expert, among those of all devices.
      room: rows that a device receives at most.
    """
    devices, me = jax.lax.axis_size("expert"), jax.lax.axis_index("expert")
    order = jnp.argsort(chosen, stable=True)  # by expert, and so by device
    own = jnp.zeros(devices * count, jnp.int32).at[chosen].add(1)
    counts = all_gather(own[None], "expert", 0).reshape(devices, devices, count)
    sizes = counts.sum(-1)
    ways = Blocks(sizes, jnp.cumsum(sizes, 1) - sizes, jnp.cumsum(sizes, 0) - sizes)
    ends = jnp.cumsum(counts[:, me].reshape(-1))  # by sender, and by expert
    number = jnp.arange(room)
    whose = jnp.searchsorted(ends, number, side="right") % count
    whose = jnp.where(number < ends[-1], whose, count)
    received = ragged_all_to_all(choices[order], ways, room)
    returned = ragged_all_to_all(experts(received, whose), ways.back(), len(choices))
    return jnp.zeros_like(returned).at[order].set(returned)


def ragged_all_to_all(x: Float[Array, "rows D"], ways: Blocks, room: int) -> Float[Array, "R D"]:
    """Sends blocks of rows between the devices along `expert`; the rest of the `room` rows is 0.

    On CPU, where XLA has no such collective, each device gathers all rows and takes its own.
    """
    me, out = jax.lax.axis_index("expert"), jnp.zeros((room, x.shape[1]), x.dtype)
    if platform() != "cpu":
        into = ways.begin[me], ways.sizes[me], ways.end_up[me], ways.sizes[:, me]
        return jax.lax.ragged_all_to_all(x, out, *into, axis_name="expert")
    row = jnp.arange(x.shape[0])[None] - ways.begin[:, me, None]  # of each block for this device
    mine = (row >= 0) & (row < ways.sizes[:, me, None])
    place = jnp.where(mine, ways.end_up[:, me, None] + row, room)
    return out.at[place.reshape(-1)].set(all_gather(x, "expert", 0), mode="drop")
