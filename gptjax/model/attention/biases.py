"""Biases of attention scores by how far back a key stands: ALiBi's slopes and T5's learned
buckets."""

from __future__ import annotations

import math

import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int


def by_distance(
    kind: str,
    table: Float[Array, "..."],
    distance: Int[Array, "B T S"],
    farthest: int,
    causal: bool = True,
) -> Float[Array, "B N T S"]:
    """The bias of each head's score for a key so many tokens back; a negative distance is one
    ahead.

    Args:
      kind: `alibi`, with each head's slope [N] as table, or `t5`, with each bucket's and head's
        bias [buckets N].
      farthest: the distance from which all are one bucket to T5.
      causal: no key is ahead, or, within a prefix, as near as the token itself to T5; otherwise
        half of T5's buckets are for those.
    """
    if kind == "alibi":
        return -table[None, :, None, None] * jnp.abs(distance).astype(jnp.float32)[:, None]
    if causal:
        return jnp.moveaxis(table[distance_bucket(distance, table.shape[0], farthest)], -1, 1)
    half = table.shape[0] // 2
    ahead = jnp.where(distance < 0, half, 0)
    return jnp.moveaxis(table[ahead + distance_bucket(jnp.abs(distance), half, farthest)], -1, 1)


def alibi_slopes(num_heads: int) -> Float[Array, " N"]:
    """ALiBi's fall of each head's scores a token: 2^(−8/N), 2^(−16/N), …; between powers of two
    every second of the next one's.

    Source: Press et al. 2022, Train Short, Test Long, arXiv:2108.12409, section 3.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    whole = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    between = [2.0 ** (-4 * (i + 1) / below) for i in range(0, 2 * (num_heads - below), 2)]
    return jnp.asarray(whole + between, jnp.float32)


def distance_bucket(
    distance: Int[Array, "B T S"], buckets: int, farthest: int
) -> Int[Array, "B T S"]:
    """T5's bucket of each distance back: one for each of the first half, then ever wider ones up to
    `farthest`.

    Source: Raffel et al. 2020, T5, arXiv:1910.10683, section 2.1, and its code (one direction).
    """
    exact = buckets // 2
    distance = jnp.maximum(distance, 0)
    growth = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(
        farthest / exact
    )
    far = exact + (growth * (buckets - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))
