"""Attention in blocks. The T × T matrix of scores is never materialised, so memory is linear in T.

Read `blockwise`, then `_forward` (an online softmax over blocks of keys), then `_backward` (which
recomputes each block's scores).

Sources: Milakov and Gimelshein 2018, arXiv:1805.02867 (the online softmax); Rabe and Staats 2021,
arXiv:2112.05682; the gradient: Dao et al. 2022, FlashAttention, arXiv:2205.14135, appendix B.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from gptjax.core.arrays import Array, Float, Int, Key
from gptjax.model.attention.mask import MaskInputs, ScoreConfig, scores
from gptjax.model.config import Layer
from gptjax.sharding.zigzag import WHOLE, Starts
from gptjax.weights.dropout import dropout

LARGEST = 256
"""Maximum number of queries, and of keys, in a block. Shorter rows are cut into four blocks."""


class Inputs(NamedTuple):
    """The arrays that `attention.attend` takes, in blocks along T."""

    q: Float[Array, "blocks B t N H"]
    k: Float[Array, "blocks B s K H"]
    v: Float[Array, "blocks B s K value"]
    table: Float[Array, "..."] | None
    sink: Float[Array, " N"] | None
    mask_inputs: MaskInputs
    key: Key | None
    bounds: Int[Array, "blocks 2"]
    """First and end of the blocks of keys that each block of queries visits."""


def blockwise(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K value"],
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    table: Float[Array, "..."] | None,
    sink: Float[Array, " N"] | None,
    rate: float,
    key: Key | None,
    starts: Starts = WHOLE,
) -> Float[Array, "B T N value"]:
    """Computes `attention.attend` block by block. Tokens must be in order of position: the blocks
    outside a query's window, and later ones where `how` is causal, are skipped."""
    rows, length = q.shape[:2]
    size, parts = min(LARGEST, -(-length // 4)), len(starts.of_devices[0])

    def cut(x: Array, parts: int, empty: Any = 0) -> Array:
        """[B T …] → [blocks B t …], with the last block of each part padded."""
        part = x.shape[1] // parts
        count, rest = -(-part // size), x.shape[2:]
        full = jnp.pad(
            x.reshape(x.shape[0], parts, part, *rest),
            ((0, 0), (0, 0), (0, count * size - part), *((0, 0),) * len(rest)),
            constant_values=empty,
        )
        return jnp.moveaxis(full.reshape(x.shape[0], parts * count, size, *rest), 1, 0)

    padded = {
        name: None if x is None else cut(x, 1 if "key" in name else parts, -1)
        for name, x in mask_inputs._asdict().items()
    }
    looks_back = how.causal and mask_inputs.prefixes is None
    table_of_visits = visited(how.layer, starts.of_devices, length, size, k.shape[1], looks_back)
    each = np.diff(table_of_visits).mean((1, 2))  # block of a device
    out = _attend(
        how,
        rate if key is not None else 0.0,
        f"visits_{each.max():g}_{each.mean():g}",
        Inputs(
            cut(q, parts),
            cut(k, 1),
            cut(v, 1),
            table,
            sink,
            MaskInputs(**padded),
            key,
            jnp.asarray(table_of_visits, jnp.int32)[starts.device],
        ),
    )
    whole = jnp.moveaxis(out, 0, 1).reshape(rows, parts, -1, *out.shape[3:])
    return whole[:, :, : length // parts].reshape(rows, length, *out.shape[3:])


def visited(
    layer: Layer,
    of_devices: tuple[tuple[int, ...], ...],
    length: int,
    size: int,
    num_keys: int,
    looks_back: bool,
) -> np.ndarray:
    """Returns [devices blocks 2]: first and end of the blocks of keys that each block of a device's
    queries can attend to.

    Args:
      of_devices: see `Starts`.
      length: queries of a device.
      size: queries, and keys, of a block.
      looks_back: no query sees a key after it.
    """
    starts = np.asarray(of_devices)[:, :, None]
    part, count = length // starts.shape[1], -(-num_keys // size)
    query = starts + np.arange(0, part, size)
    last = np.minimum(query + size, starts + part) - 1
    end = last // size + 1 if looks_back else np.full_like(query, count)
    span = layer.span if layer.sees == "window" and not layer.sinks else num_keys
    first = np.maximum(query - (span - 1), 0) // size
    return np.stack([first, end], -1).reshape(len(starts), -1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(
    how: ScoreConfig, rate: float, visits: str, inputs: Inputs
) -> Float[Array, "blocks B t N value"]:
    return _forward(how, rate, visits, inputs)[0]


def _forward(how: ScoreConfig, rate: float, visits: str, inputs: Inputs) -> tuple[Array, Any]:
    """Returns the output, and the residuals of the backward pass: inputs, output, and each query's
    log-sum-exp of scores.

    Args:
      visits: names the loop over keys, whose length no compiler can know: its mean over the queries
        of the device that has most of them, and of all devices.
    """
    count, rows, size, heads, _ = inputs.q.shape
    groups = (inputs.k.shape[3], heads // inputs.k.shape[3])

    def row_of_blocks(i: Array) -> tuple[Array, Array]:
        def add(j: Array, running: tuple) -> tuple:
            peak, total, weighted = running
            found = _scores(how, inputs, i, j, inputs.q[i], inputs.k[j], inputs.table)
            higher = jnp.maximum(peak, found.max(-1))
            shrink, share = jnp.exp(peak - higher), jnp.exp(found - higher[..., None])
            kept = dropout(share, rate, _key(inputs, i, j)).astype(inputs.v.dtype)
            values = jnp.einsum(
                "bkgts,bskh->bkgth", kept, inputs.v[j], preferred_element_type=jnp.float32
            )
            return higher, total * shrink + share.sum(-1), weighted * shrink[..., None] + values

        shape = (rows, *groups, size)
        if inputs.sink is None:
            peak, total = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
        else:
            peak, total = (
                jnp.broadcast_to(inputs.sink.astype(jnp.float32).reshape(1, *groups, 1), shape),
                jnp.ones(shape),
            )
        begin = (peak, total, jnp.zeros((*shape, inputs.v.shape[-1])))
        with jax.named_scope(visits):
            peak, total, weighted = jax.lax.fori_loop(*inputs.bounds[i], add, begin)
        return _to_heads(weighted / total[..., None]).astype(inputs.v.dtype), peak + jnp.log(total)

    out, normaliser = (
        checkpoint_name(x, "attention") for x in jax.lax.map(row_of_blocks, jnp.arange(count))
    )
    return out, (inputs, out, normaliser)


def _backward(how: ScoreConfig, rate: float, visits: str, kept: Any, d_out: Array) -> tuple[Inputs]:
    """Recomputes each block's weights from its scores and the log-sum-exp, and from them the
    gradients.

    With weights w, output o and their gradients, d_score = w · (d_w − d_o·o), because the sum over
    keys of w · d_w equals d_o·o, with dropout too.
    """
    inputs, out, normaliser = kept
    count, rows, size, heads, _ = inputs.q.shape
    groups = (inputs.k.shape[3], heads // inputs.k.shape[3])

    def row_of_blocks(i: Array, sums: tuple) -> tuple:
        by_group = _to_groups(d_out[i], groups)
        meant = jnp.einsum("btnh,btnh->btn", d_out[i], out[i], preferred_element_type=jnp.float32)
        meant = jnp.moveaxis(meant.reshape(rows, size, *groups), 1, -1)

        def add(j: Array, sums: tuple) -> tuple:
            dq, dk, dv, d_table = sums
            found, back = jax.vjp(
                functools.partial(_scores, how, inputs, i, j),
                inputs.q[i],
                inputs.k[j],
                inputs.table,
            )
            share = jnp.exp(found - normaliser[i][..., None])
            through = jnp.einsum(
                "bkgth,bskh->bkgts", by_group, inputs.v[j], preferred_element_type=jnp.float32
            )
            d_found = share * (dropout(through, rate, _key(inputs, i, j)) - meant[..., None])
            weights = dropout(share, rate, _key(inputs, i, j)).astype(inputs.v.dtype)
            part_q, part_k, part_table = back(d_found)
            part_v = jnp.einsum(
                "bkgts,bkgth->bskh", weights, by_group, preferred_element_type=jnp.float32
            )
            return (
                dq.at[i].add(part_q),
                dk.at[j].add(part_k),
                dv.at[j].add(part_v),
                jax.tree.map(jnp.add, d_table, part_table),
            )

        *sums, d_sink = sums
        with jax.named_scope(visits):
            sums = jax.lax.fori_loop(*inputs.bounds[i], add, tuple(sums))
        if inputs.sink is not None:
            to_sink = jnp.exp(inputs.sink.reshape(1, *groups, 1) - normaliser[i])
            d_sink = d_sink - (to_sink * meant).sum((0, 3)).reshape(-1)
        return (*sums, d_sink)

    begin = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        (inputs.q, inputs.k, inputs.v, inputs.table, inputs.sink),
    )
    sums = jax.lax.fori_loop(0, count, row_of_blocks, begin)
    dq, dk, dv, d_table, d_sink = jax.tree.map(
        lambda x, like: x.astype(like.dtype),
        sums,
        (inputs.q, inputs.k, inputs.v, inputs.table, inputs.sink),
    )
    return (Inputs(dq, dk, dv, d_table, d_sink, None, None, None),)


_attend.defvjp(_forward, _backward)


def _scores(
    how: ScoreConfig, inputs: Inputs, i: Array, j: Array, q: Array, k: Array, table: Array | None
) -> Float[Array, "B K G t s"]:
    """Scores of the queries in block i against the keys in block j."""
    queries, keys, query_segments, key_segments, prefixes = inputs.mask_inputs
    mask_inputs = MaskInputs(
        queries[i],
        keys[j],
        *(
            None if x is None else x[n]
            for x, n in ((query_segments, i), (key_segments, j), (prefixes, i))
        ),
    )
    return scores(q, k, mask_inputs, how, table)


def _key(inputs: Inputs, i: Array, j: Array) -> Key | None:
    """The dropout key of a pair of blocks, the same in both passes."""
    return None if inputs.key is None else jax.random.fold_in(jax.random.fold_in(inputs.key, i), j)


def _to_heads(x: Float[Array, "B K G t h"]) -> Float[Array, "B t N h"]:
    rows, kv_heads, group, size, width = x.shape
    return jnp.moveaxis(x, 3, 1).reshape(rows, size, kv_heads * group, width)


def _to_groups(x: Float[Array, "B t N h"], groups: tuple[int, int]) -> Float[Array, "B K G t h"]:
    return jnp.moveaxis(x.reshape(*x.shape[:2], *groups, x.shape[-1]), 1, 3)
