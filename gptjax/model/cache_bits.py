"""Keys and values in 8 or 4 bits: how a cache stores vectors, and how it reads them again.

Both kinds are whole numbers with scales for groups of neighbouring features; 8 bits have one group,
4 bits have several and lie two in a byte. (`jnp.int4` is no smaller on the CPU of jax 0.10: it
takes a byte there.)
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Num

KVCache = Literal["full", "int8", "int4"]
"""How keys and values are kept: in the compute type, in 8 bits with a scale for each token and
head, or in 4 bits with one for each `GROUP` features of these."""

GROUP = 32
"""Features of a head that share a scale of 4 bits; the last group has what is left."""

_LARGEST = {"int8": 127, "int4": 7}
_SCALES = {"int8": jnp.float32, "int4": jnp.bfloat16}
"""A step of 4 bits is coarse: 8 digits of a scale lose nothing beside it."""


def empty_vectors(shape: tuple[int, ...], kind: KVCache, full: Any) -> tuple[Array, Array | None]:
    """Room for vectors [… H], and for their scales; `full` is the type of those in no fewer
    bits."""
    if kind == "full":
        return jnp.zeros(shape, full), None
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda: quantise_vectors(jnp.zeros(shape), kind)),
    )


def stored_kind(stored: Array) -> KVCache:
    """How a cache keeps vectors, told by the type of what it stores."""
    kinds: dict[str, KVCache] = {"int8": "int8", "uint8": "int4"}
    return kinds.get(stored.dtype.name, "full")


def quantise_vectors(
    x: Float[Array, "... H"], kind: KVCache
) -> tuple[Num[Array, "... bytes"], Float[Array, "... groups"]]:
    """Each vector in whole numbers, and what those of a group are multiplied by; off by half of
    that at most.

    Source: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 3.1 (one scale a vector),
    for keys and values; groups as in Sheng et al. 2023, FlexGen, arXiv:2303.06865, section 5, but
    symmetric around 0.
    """
    width, size = x.shape[-1], _group(x.shape[-1], kind)
    wide = _padded(x.astype(jnp.float32), size).reshape(*x.shape[:-1], -1, size)
    scales = (jnp.max(jnp.abs(wide), axis=-1) / _LARGEST[kind]).astype(_SCALES[kind])
    steps = jnp.maximum(scales.astype(jnp.float32), 1e-30)[..., None]
    values = jnp.round(wide / steps).astype(jnp.int8).reshape(*x.shape[:-1], -1)[..., :width]
    return (values if kind == "int8" else _packed(values)), scales


def widen_vectors(
    values: Num[Array, "... bytes"], scales: Float[Array, "... groups"], width: int
) -> Float[Array, "... H"]:
    """The vectors of `width` features that `quantise_vectors` stored, in float32."""
    kind = stored_kind(values)
    if kind == "int4":
        values = _unpacked(values, width)
    every = jnp.repeat(scales.astype(jnp.float32), _group(width, kind), axis=-1)
    return values * every[..., :width]


def _group(width: int, kind: KVCache) -> int:
    return width if kind == "int8" else min(GROUP, width)


def _padded(x: Array, size: int) -> Array:
    """The array, its last axis filled up with zeros to a multiple of `size`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])


def _packed(values: Array) -> Array:
    """Numbers of 4 bits, the first half of them in the low halves of bytes."""
    low, high = jnp.split(_padded(values, 2), 2, axis=-1)
    return jax.lax.bitcast_convert_type((low & 15) | (high << 4), jnp.uint8)


def _unpacked(values: Array, width: int) -> Array:
    both = jax.lax.bitcast_convert_type(values, jnp.int8)
    return jnp.concatenate([both << 4 >> 4, both >> 4], axis=-1)[..., :width]
