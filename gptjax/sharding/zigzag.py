"""Zig-zag order of the positions of a row: the row is cut in 2N chunks, of which device i of the N
along `context` has chunks i and 2N − 1 − i. Under a causal mask all devices then attend to as many
keys; in contiguous order the last one attends to almost twice the mean.

Source: Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv:2407.21783, section 3.3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Int
from gptjax.sharding.constrain import ROWS, axis_size, current_mesh, partition_spec


class Starts(NamedTuple):
    """Where the queries of a device stand among all positions: parts of equal length, from these
    on."""

    of_devices: tuple[tuple[int, ...], ...]
    """The first position of each part of each device."""
    device: Int[Array, ""] | int = 0
    """Which device this is."""


WHOLE = Starts(((0,),))
"""All positions are on one device."""


def part_starts(length: int, devices: int, *, zigzag: bool) -> tuple[tuple[int, ...], ...]:
    """Returns the first position of each part of each device, of a row of `length` positions."""
    if not zigzag:
        return tuple((i * (length // devices),) for i in range(devices))
    chunk = length // (2 * devices)
    return tuple((i * chunk, (2 * devices - 1 - i) * chunk) for i in range(devices))


def zigzag_positions(length: int, devices: int) -> np.ndarray:
    """Returns the positions [T] of a row in the order in which the devices hold them."""
    starts = np.asarray(part_starts(length, devices, zigzag=True)).reshape(-1, 1)
    return (starts + np.arange(length // (2 * devices))).reshape(-1)


def restore_order(x: Array, devices: int) -> Array:
    """Returns [B T …] that all devices' parts were gathered to, in the order of positions."""
    chunks = x.reshape(x.shape[0], devices, 2, -1, *x.shape[2:])
    return jnp.concatenate([chunks[:, :, 0], chunks[:, ::-1, 1]], axis=1).reshape(x.shape)


def exchange_chunks(x: Float[Array, "B T D"], *, back: bool = False) -> Float[Array, "B T D"]:
    """Takes activations to zig-zag order, or back to that of positions.

    Of the two chunks of a device one is even and one odd, in either order, so two permutations
    move everything; a device sends no more than it holds.
    """
    mesh, n = current_mesh(), axis_size("context")
    spec = partition_spec(mesh.shape, x.shape, (ROWS, ("context",), ("tensor",)))
    owners = [[min(2 * d + odd, 2 * n - 1 - 2 * d - odd) for d in range(n)] for odd in (0, 1)]

    def own(x: Array) -> Array:
        swap = jax.lax.axis_index("context") % 2 == 1

        def turned(pair: list[Array]) -> list[Array]:
            return [jnp.where(swap, pair[1 - place], pair[place]) for place in (0, 1)]

        pair = jnp.split(x, 2, axis=1)
        pair = turned(pair) if back else pair
        ways = [[(o, d) if back else (d, o) for d, o in enumerate(owner)] for owner in owners]
        pair = [jax.lax.ppermute(one, "context", way) for one, way in zip(pair, ways, strict=True)]
        return jnp.concatenate(pair if back else turned(pair), axis=1)

    return jax.shard_map(own, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)
