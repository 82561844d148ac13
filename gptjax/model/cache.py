"""Keys and values of tokens already read. Each slot remembers the position of its token; −1 means nobody.

Masks come from positions, so ragged prompts, rollback and row gather need no special case.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from gptjax.arrays import Array, Float, Int
from gptjax.model.config import ModelConfig


class Memory(NamedTuple):
    """What a decoder attends to of a side text: every decoder layer's keys and values of the encoder's hidden states."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"] | None = None


class Cache(NamedTuple):
    """Keys and values of tokens already read, each with the position it stands at; −1 is an empty slot.

    With latent attention, `values` are the latents and `keys` the rotated keys that all heads share, as of one head (K is 1).

    A row's next token goes to slot `lengths[row]`. Rows are independent: gather, drop or roll back any of them.
    """

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K value"]
    positions: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    memory: Memory | None = None
    """What an encoder has read beside these rows."""


def empty_cache(config: ModelConfig, rows: int, slots: int) -> Cache:
    """A cache that remembers nobody, with room for `slots` tokens a row."""
    latent = config.latent
    key, value = 2 * ((config.kv_heads, config.heads),) if latent is None else ((1, latent.rope_width), (1, latent.rank))
    keys, values = (jnp.zeros((config.num_layers, rows, slots, *shape), config.compute) for shape in (key, value))
    return Cache(keys, values, jnp.full((rows, slots), -1, jnp.int32), jnp.zeros((rows,), jnp.int32))


def rollback(cache: Cache, lengths: Int[Array, " B"]) -> Cache:
    """Forgets every token from slot `lengths` on."""
    slot = jnp.arange(cache.positions.shape[1])[None]
    return cache._replace(lengths=lengths, positions=jnp.where(slot < lengths[:, None], cache.positions, -1))


def gather(cache: Cache, rows: Int[Array, " B"]) -> Cache:
    """The cache whose row i is the old row `rows[i]`."""
    memory = cache.memory
    if memory is not None:
        segments = None if memory.segments is None else memory.segments[rows]
        memory = Memory(memory.keys[:, rows], memory.values[:, rows], memory.positions[rows], segments)
    return Cache(cache.keys[:, rows], cache.values[:, rows], cache.positions[rows], cache.lengths[rows], memory)


def reserve(cache: Cache, positions: Int[Array, "B T"]) -> tuple[Cache, Int[Array, "B T"]]:
    """Gives new tokens their slots: the cache that knows their positions, and the slot of each.

    A token at position −1 is padding: it takes no slot (its slot number lies past the end, where writes are dropped).
    """
    real = positions >= 0
    slots = jnp.where(real, cache.lengths[:, None] + jnp.cumsum(real, axis=1) - 1, cache.positions.shape[1])
    rows = jnp.arange(positions.shape[0])[:, None]
    known = cache.positions.at[rows, slots].set(positions, mode="drop")
    return cache._replace(positions=known, lengths=cache.lengths + real.sum(axis=1)), slots


def remember(cache: Cache, layer: Any, slots: Int[Array, "B T"], k: Array, v: Array) -> Cache:
    """Writes one layer's new keys and values [B T K H] into their slots."""
    rows = jnp.arange(slots.shape[0])[:, None]
    return cache._replace(
        keys=cache.keys.at[layer, rows, slots].set(k, mode="drop"),
        values=cache.values.at[layer, rows, slots].set(v, mode="drop"),
    )
