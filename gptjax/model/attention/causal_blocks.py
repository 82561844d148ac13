"""Attention without most of the masked half of the scores, a few heads at a time: for CPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key, Share
from gptjax.model.attention.mask import MaskInputs, ScoreConfig
from gptjax.model.attention.reference import reference
from gptjax.sharding.constrain import current_mesh

BLOCKS = 4
"""Query blocks: 4 skip 3/8 of the whole square, and more make the products too small for a CPU."""
IN_CACHE = 2**20
"""Scores of one block of queries that are held at a time: 4 MB. Where those of all heads are fewer,
nothing is gained by taking some."""


def causal_blocks(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K value"],
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    table: Float[Array, "..."] | None,
    sink: Float[Array, " N"] | None,
    rate: Share,
    key: Key | None,
) -> Float[Array, "B T N value"]:
    """Block i of the queries is multiplied only with the keys up to its own end, and from the begin
    of its window on.

    Where heads are alike and have many scores, a few heads at a time, whose scores are made once
    more in the backward pass and not kept for it.
    """
    (rows, length, _, _), heads = q.shape, k.shape[2]
    most = max(1, IN_CACHE // (q.shape[2] // heads * length * length // BLOCKS))
    if (
        rows * heads <= most
        or current_mesh() is not None
        or table is not None
        or sink is not None
        or (rate and key is not None)
    ):
        return _blocks(q, k, v, mask_inputs, how, table, sink, rate, key)

    def apart(x):
        return jnp.moveaxis(x.reshape(rows, length, heads, -1, x.shape[-1]), 2, 1).reshape(
            rows * heads, length, -1, x.shape[-1]
        )

    whose = [
        None if x is None else jnp.repeat(jnp.broadcast_to(x, (rows, length)), heads, axis=0)
        for x in mask_inputs
    ]
    given = apart(q), apart(k), apart(v), MaskInputs(*whose)
    few = max(n for n in range(1, most + 1) if rows * heads % n == 0)
    some = jax.checkpoint(lambda part: _blocks(*part, how, None, None, 0.0, None))
    mixed = jax.lax.map(some, jax.tree.map(lambda x: x.reshape(-1, few, *x.shape[1:]), given))
    return jnp.moveaxis(mixed.reshape(rows, heads, length, -1, v.shape[-1]), 1, 2).reshape(
        *q.shape[:3], v.shape[-1]
    )


def _blocks(
    q: Array,
    k: Array,
    v: Array,
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    table: Array | None,
    sink: Array | None,
    rate: Share,
    key: Key | None,
) -> Array:
    size = q.shape[1] // BLOCKS
    outputs = []
    for i in range(BLOCKS):
        begin = (
            max(0, i * size - how.layer.span + 1)
            if how.layer.sees == "window" and not how.layer.sinks
            else 0
        )
        rows, seen = slice(i * size, (i + 1) * size), slice(begin, (i + 1) * size)
        part = MaskInputs(
            mask_inputs.queries[:, rows],
            mask_inputs.keys[:, seen],
            None if mask_inputs.query_segments is None else mask_inputs.query_segments[:, rows],
            None if mask_inputs.key_segments is None else mask_inputs.key_segments[:, seen],
        )
        block_key = None if key is None else jax.random.fold_in(key, i)
        # or oneDNN takes the sum of their gradients into a product, for which it has only its slow
        # reference code
        keys, values = jax.lax.optimization_barrier((k[:, seen], v[:, seen]))
        outputs.append(reference(q[:, rows], keys, values, part, how, table, sink, rate, block_key))
    return jnp.concatenate(outputs, axis=1)
