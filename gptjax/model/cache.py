"""Keys and values of tokens already read, and the states of recurrent layers, which are in
`recurrent.states`. Each slot holds the position of its token; −1 means an empty slot.

Masks come from positions, so ragged prompts, rollback and row gather need no special case. Layers
that look back equally far share a `CacheGroup`: those that see everything have a slot for every
token, those with a window or a chunk a ring of slots for the last tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Int
from gptjax.model.cache_bits import (
    KVCache,
    empty_vectors,
    quantise_vectors,
    stored_kind,
    widen_vectors,
)
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.recurrent import states as recurrent
from gptjax.model.recurrent.states import Placement, States, insert_states, take_states
from gptjax.sharding.constrain import ROWS, constrain

AT_ONCE = 512
"""Tokens that a ring can take at once beside its window, if nothing else is said."""


class Memory(NamedTuple):
    """Every decoder layer's keys and values of an encoder's hidden states."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    segments: Int[Array, "B S"] | None = None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keys", "values", "positions", "key_scales", "value_scales"],
    meta_fields=["sinks", "at_once", "reach"],
)
@dataclass(frozen=True)
class CacheGroup:
    """Keys and values of the L layers that look back equally far.

    With latent attention, `values` are the latents and `keys` the rotated keys that all heads
    share, as of one head (K is 1).
    """

    keys: Any
    """[L B K S H], of the compute type, or in 8 or 4 bits (`cache_bits`): head by head, as
    attention reads them."""
    values: Any
    """[L B K S value]"""
    positions: Any
    """int32 [B S]: where the token of each slot stands; −1 is an empty slot."""
    key_scales: Any = None
    """[L B K S groups]: what keys in few bits are multiplied by; none for the compute type."""
    value_scales: Any = None
    sinks: int = 0
    """Number of slots at the beginning that keep their tokens; the others are the ring."""
    at_once: int | None = None
    """In a ring, the maximum number of tokens that are read at once, or rolled back; `None` means
    a slot for every token."""
    reach: int | None = None
    """Number of slots, from the first on, that attention reads; `None` is all. See
    `within_reach`."""


class Cache(NamedTuple):
    """Keys and values of all layers. Rows are independent: gather, drop or roll back any of
    them."""

    groups: tuple[CacheGroup, ...]
    """In the order in which the stack first needs each."""
    lengths: Int[Array, " B"]
    """Tokens that each row has read."""
    memory: Memory | None = None
    """What an encoder has read beside these rows."""
    states: States | None = None
    """What recurrent layers remember."""


class Slots(NamedTuple):
    """Where the tokens of one reading go."""

    groups: tuple[Int[Array, "B T"], ...]
    """The slots in each group."""
    states: Placement | None


def _reach(layer: Layer) -> tuple[int, int] | None:
    """Window and sinks of a layer that never looks back farther; none for one that may see every
    token."""
    return (layer.span, layer.sinks) if layer.sees in ("window", "chunk") else None


@functools.lru_cache(maxsize=64)
def _places(config: ModelConfig) -> tuple[tuple[tuple[int, int] | None, ...], np.ndarray]:
    """The reach of each group, and the number of each layer of the stack among those of its
    group."""
    reaches = _reaches(config)
    return tuple(dict.fromkeys(one for one in reaches if one is not RECURRENT)), np.asarray(
        [reaches[:n].count(one) for n, one in enumerate(reaches)], np.int32
    )


RECURRENT = "recurrent"
"""In the place of a reach: the layer has no keys."""


def _reaches(config: ModelConfig) -> list[Any]:
    return [RECURRENT if layer.recurrent else _reach(layer) for layer in config.stack]


def empty_cache(
    config: ModelConfig,
    rows: int,
    slots: int,
    *,
    kv_cache: KVCache = "full",
    at_once: int = AT_ONCE,
) -> Cache:
    """An empty cache with `slots` entries per row; layers with a window keep only what it may
    still need.

    Args:
      kv_cache: how keys and values are kept. In 8 bits each number is off by 1/254 of its head's
        largest at most, in 4 bits by about 1/14 of the largest of its 32 features.
      at_once: most tokens that will be read at once, or rolled back, where layers have windows.
    """
    latent, reaches = config.latent, _reaches(config)
    key, value = (
        2 * ((config.kv_heads, config.head_dim),)
        if latent is None
        else ((1, latent.rope_width), (1, latent.rank))
    )

    def group(reach: tuple[int, int] | None) -> CacheGroup:
        size = slots if reach is None else min(slots, sum(reach) - 1 + at_once)
        shapes = [(reaches.count(reach), rows, heads, size, width) for heads, width in (key, value)]
        (keys, key_scales), (values, value_scales) = (
            empty_vectors(shape, kv_cache, config.compute) for shape in shapes
        )
        ring = {} if size == slots else {"sinks": reach[1], "at_once": at_once}
        positions = jnp.full((rows, size), -1, jnp.int32)
        return CacheGroup(keys, values, positions, key_scales, value_scales, **ring)

    groups = tuple(map(group, _places(config)[0]))
    states = recurrent.empty_states(config, rows)
    return Cache(groups, jnp.zeros((rows,), jnp.int32), states=states)


def with_undo(cache: Cache, tokens: int) -> Cache:
    """The same cache, of which recurrent layers can roll back so many tokens from now on, at the
    cost of reading these again with each reading. Other layers need no preparation."""
    known = cache.states
    return cache if known is None else cache._replace(states=recurrent.with_room(known, tokens))


def rollback(cache: Cache, lengths: Int[Array, " B"]) -> Cache:
    """Forgets every token of a row but the first `lengths`.

    Raises:
      ValueError: a ring has lost what would be needed again: more tokens would be forgotten than it
        can read at once, or than a recurrent layer keeps (`with_undo`). Inside a compiled function,
        where lengths are not known, that is the caller's to refuse.
    """
    if cache.states is not None:
        recurrent.require_known(cache.states, cache.lengths, lengths)
    most = min((group.at_once for group in cache.groups if group.at_once is not None), default=None)
    if (
        most is not None
        and not isinstance(lengths, jax.core.Tracer)
        and not isinstance(cache.lengths, jax.core.Tracer)
    ):
        back = int((cache.lengths - lengths).max())
        if back > most:
            raise ValueError(
                f"{back} tokens can't be rolled back: a layer with a window keeps room for {most};"
                " read the text again."
            )

    def forgetting(group: CacheGroup) -> CacheGroup:
        known = _number(group, cache.lengths) < lengths[:, None]
        return replace(group, positions=jnp.where(known, group.positions, -1))

    return cache._replace(lengths=lengths, groups=tuple(map(forgetting, cache.groups)))


def take_rows(cache: Cache, rows: Int[Array, " B"]) -> Cache:
    """The cache whose row i is the old row `rows[i]`."""
    memory = cache.memory
    if memory is not None:
        segments = None if memory.segments is None else memory.segments[rows]
        memory = Memory(
            memory.keys[:, rows], memory.values[:, rows], memory.positions[rows], segments
        )

    def moved(group):
        return replace(
            jax.tree.map(lambda leaf: leaf if leaf.ndim == 2 else leaf[:, rows], group),
            positions=group.positions[rows],
        )

    groups, states = tuple(map(moved, cache.groups)), take_states(cache.states, rows)
    return Cache(groups, cache.lengths[rows], memory, states)


def insert_rows(
    cache: Cache, rows: Int[Array, " R"], other: Cache, source: Int[Array, " R"]
) -> Cache:
    """The cache whose row `rows[i]` is row `source[i]` of another cache of the same slots.

    A number past the last row inserts nothing. Whatever the rows held before is gone.
    """

    def by_row(whole: Array, part: Array) -> Array:
        return whole.at[rows].set(part[source], mode="drop")

    def by_layer(whole: Array, part: Array) -> Array:
        return whole.at[:, rows].set(part[:, source], mode="drop")

    def inserted(group: CacheGroup, new: CacheGroup) -> CacheGroup:
        return jax.tree.map(
            lambda whole, part: (by_row if whole.ndim == 2 else by_layer)(whole, part), group, new
        )

    memory = cache.memory
    if memory is not None:
        new = other.memory
        memory = Memory(
            keys=by_layer(memory.keys, new.keys),
            values=by_layer(memory.values, new.values),
            positions=by_row(memory.positions, new.positions),
            segments=None if memory.segments is None else by_row(memory.segments, new.segments),
        )
    groups = tuple(map(inserted, cache.groups, other.groups))
    states = insert_states(cache.states, rows, other.states, source)
    return Cache(groups, by_row(cache.lengths, other.lengths), memory, states)


def within_reach(cache: Cache, reach: int | None) -> Cache:
    """The same cache, of which attention reads only the first `reach` slots; the caller knows that
    the others are empty. `None` reads all of them again. Rings are read whole."""

    def reaching(group: CacheGroup) -> CacheGroup:
        return group if group.at_once is not None else replace(group, reach=reach)

    return cache._replace(groups=tuple(map(reaching, cache.groups)))


def constrain_cache(cache: Cache) -> Cache:
    """The cache, its rows split over the mesh as those of a batch and its heads over `tensor`, as
    far as they divide; without a mesh nothing changes."""

    def split(leaf: Array) -> Array:
        if leaf.ndim == 2:
            return constrain(leaf, ROWS, ())
        return constrain(leaf, (), ROWS, ("tensor",), *((),) * (leaf.ndim - 3))

    groups = tuple(jax.tree.map(split, group) for group in cache.groups)
    states = None if cache.states is None else recurrent.constrain_states(cache.states)
    return cache._replace(groups=groups, lengths=constrain(cache.lengths, ROWS), states=states)


def allocate(cache: Cache, positions: Int[Array, "B T"]) -> tuple[Cache, Slots]:
    """Assigns new tokens their slots: the cache that knows their positions, and the slot of each on
    every group.

    A token at position −1 is padding: it takes no slot (its slot number lies past the end, where
    writes are dropped).

    Raises:
      ValueError: more tokens than a ring takes at once.
    """
    real, rows = positions >= 0, jnp.arange(positions.shape[0])[:, None]
    number = cache.lengths[:, None] + jnp.cumsum(real, axis=1) - 1

    def reserved(group: CacheGroup) -> tuple[CacheGroup, Array]:
        if group.at_once is not None and positions.shape[1] > group.at_once:
            raise ValueError(
                f"{positions.shape[1]} tokens are read at once, and a layer with a window has room"
                f" for {group.at_once}; read them in parts."
            )
        slots = jnp.where(real, _slot(group, number), group.positions.shape[1])
        return (
            replace(group, positions=group.positions.at[rows, slots].set(positions, mode="drop")),
            slots,
        )

    both, states, placement = tuple(map(reserved, cache.groups)), cache.states, None
    if states is not None:
        states, placement = recurrent.place(states, cache.lengths, real)
    groups, slots = tuple(one for one, _ in both), tuple(one for _, one in both)
    lengths = cache.lengths + real.sum(axis=1)
    return cache._replace(groups=groups, lengths=lengths, states=states), Slots(slots, placement)


def _slot(group: CacheGroup, number: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Where token number n of a row goes."""
    ring = group.positions.shape[1] - group.sinks
    return (
        number
        if group.at_once is None
        else jnp.where(number < group.sinks, number, group.sinks + (number - group.sinks) % ring)
    )


def _number(group: CacheGroup, lengths: Int[Array, " B"]) -> Int[Array, "#B S"]:
    """The number of the token in each slot, in rows of these lengths; arbitrary in empty slots."""
    slot = jnp.arange(group.positions.shape[1])[None]
    if group.at_once is None:
        return slot
    ring, last = slot.shape[1] - group.sinks, lengths[:, None] - 1
    return jnp.where(slot < group.sinks, slot, last - (last - slot) % ring)


def update(
    config: ModelConfig,
    layer: Layer,
    number: Any,
    cache: Cache,
    slots: tuple[Int[Array, "B T"], ...],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K V"],
) -> tuple[Cache, Float[Array, "B S K H"], Float[Array, "B S K V"], Int[Array, "B S"]]:
    """Writes one layer's new keys and values into their slots; gives all that the layer remembers
    now, and the positions.

    Args:
      number: the layer's place in the stack; a number, or one that only the compiled loop knows.
    """
    reaches, places = _places(config)
    at = reaches.index(_reach(layer))
    group, rows = cache.groups[at], jnp.arange(k.shape[0])[:, None]
    reach = group.reach
    place = int(places[number]) if isinstance(number, int) else jnp.asarray(places)[number]

    def write(whole, new):
        return whole.at[place, rows, :, slots[at]].set(new, mode="drop")

    if group.key_scales is None:
        group = replace(group, keys=write(group.keys, k), values=write(group.values, v))
        k, v = group.keys[place][:, :, :reach], group.values[place][:, :, :reach]
    else:
        kind, widths = stored_kind(group.keys), (k.shape[-1], v.shape[-1])
        (k, key_scales), (v, value_scales) = (quantise_vectors(x, kind) for x in (k, v))
        group = replace(
            group,
            keys=write(group.keys, k),
            values=write(group.values, v),
            key_scales=write(group.key_scales, key_scales),
            value_scales=write(group.value_scales, value_scales),
        )
        leaves = (group.keys, group.key_scales), (group.values, group.value_scales)
        k, v = (
            widen_vectors(*(leaf[place][:, :, :reach] for leaf in pair), width).astype(
                config.compute
            )
            for pair, width in zip(leaves, widths, strict=True)
        )
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    return (
        cache._replace(groups=(*cache.groups[:at], group, *cache.groups[at + 1 :])),
        k,
        v,
        group.positions[:, :reach],
    )
