"""Attention a block at a time: never a whole square of scores, so memory grows with T and not with
its square.

Read `blockwise`, then `_forward` (a running softmax over blocks of keys), then `_backward` (each
block's scores once more).

Sources: Milakov and Gimelshein 2018, arXiv:1805.02867 (the running softmax); Rabe and Staats 2021,
arXiv:2112.05682; the
gradient: Dao et al. 2022, FlashAttention, arXiv:2205.14135, appendix B.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.core.arrays import Array, Float, Int, Key
from gptjax.model.attention.mask import MaskInputs, ScoreConfig, scores
from gptjax.weights.dropout import dropout

LARGEST = 256
"""Queries, and keys, of a block. Shorter rows have four blocks."""


class Given(NamedTuple):
    """What attention reads: the arrays of `attention.attend`, in blocks along T."""

    q: Float[Array, "blocks B t N H"]
    k: Float[Array, "blocks B s K H"]
    v: Float[Array, "blocks B s K value"]
    table: Float[Array, "..."] | None
    sink: Float[Array, " N"] | None
    mask_inputs: MaskInputs
    key: Key | None
    begin: Int[Array, ""]


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
    begin: Int[Array, ""] | int = 0,
) -> Float[Array, "B T N value"]:
    """What `attention.attend` gives, by blocks. Tokens must stand in order: nobody sees an index
    further back than its window, nor, where `how` is causal, a later one."""
    rows, length = q.shape[:2]
    size = min(LARGEST, -(-length // 4))

    def cut(x: Array, empty: Any = 0) -> Array:
        """[B T …] → [blocks B t …], the last block filled up."""
        count = -(-x.shape[1] // size)
        full = jnp.pad(
            x,
            ((0, 0), (0, count * size - x.shape[1]), *((0, 0),) * (x.ndim - 2)),
            constant_values=empty,
        )
        return jnp.moveaxis(full.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    nobody = [None if x is None else cut(x, -1) for x in mask_inputs]
    out = _attend(
        how,
        rate if key is not None else 0.0,
        Given(
            cut(q),
            cut(k),
            cut(v),
            table,
            sink,
            MaskInputs(*nobody),
            key,
            jnp.asarray(begin, jnp.int32),
        ),
    )
    return jnp.moveaxis(out, 0, 1).reshape(rows, -1, *out.shape[3:])[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(how: ScoreConfig, rate: float, given: Given) -> Float[Array, "blocks B t N value"]:
    return _forward(how, rate, given)[0]


def _forward(how: ScoreConfig, rate: float, given: Given) -> tuple[Array, Any]:
    """The output, and what the backward pass needs: the input, the output, and each query's ln Σ
    exp(score)."""
    count, rows, size, heads, _ = given.q.shape
    groups = (given.k.shape[3], heads // given.k.shape[3])

    def row_of_blocks(i: Array) -> tuple[Array, Array]:
        def add(j: Array, running: tuple) -> tuple:
            most, total, mixed = running
            found = _scores(how, given, i, j, given.q[i], given.k[j], given.table)
            higher = jnp.maximum(most, found.max(-1))
            shrink, share = jnp.exp(most - higher), jnp.exp(found - higher[..., None])
            kept = dropout(share, rate, _key(given, i, j)).astype(given.v.dtype)
            values = jnp.einsum(
                "bkgts,bskh->bkgth", kept, given.v[j], preferred_element_type=jnp.float32
            )
            return higher, total * shrink + share.sum(-1), mixed * shrink[..., None] + values

        shape = (rows, *groups, size)
        if given.sink is None:
            most, total = jnp.full(shape, -jnp.inf), jnp.zeros(shape)
        else:
            most, total = (
                jnp.broadcast_to(given.sink.astype(jnp.float32).reshape(1, *groups, 1), shape),
                jnp.ones(shape),
            )
        begin = (most, total, jnp.zeros((*shape, given.v.shape[-1])))
        most, total, mixed = jax.lax.fori_loop(*_blocks(how, given, i), add, begin)
        return _to_heads(mixed / total[..., None]).astype(given.v.dtype), most + jnp.log(total)

    out, normaliser = (
        checkpoint_name(x, "attention") for x in jax.lax.map(row_of_blocks, jnp.arange(count))
    )
    return out, (given, out, normaliser)


def _backward(how: ScoreConfig, rate: float, kept: Any, d_out: Array) -> tuple[Given]:
    """Each block's weights again from its scores and the normaliser, and through them the
    gradients.

    With weights w, output o and their gradients: d_score = w · (d_w − d_o·o); the sum over keys of
    w · d_w is d_o·o, also under dropout.
    """
    given, out, normaliser = kept
    count, rows, size, heads, _ = given.q.shape
    groups = (given.k.shape[3], heads // given.k.shape[3])

    def row_of_blocks(i: Array, sums: tuple) -> tuple:
        by_group = _to_groups(d_out[i], groups)
        meant = jnp.einsum("btnh,btnh->btn", d_out[i], out[i], preferred_element_type=jnp.float32)
        meant = jnp.moveaxis(meant.reshape(rows, size, *groups), 1, -1)

        def add(j: Array, sums: tuple) -> tuple:
            dq, dk, dv, d_table = sums
            found, back = jax.vjp(
                functools.partial(_scores, how, given, i, j), given.q[i], given.k[j], given.table
            )
            share = jnp.exp(found - normaliser[i][..., None])
            through = jnp.einsum(
                "bkgth,bskh->bkgts", by_group, given.v[j], preferred_element_type=jnp.float32
            )
            d_found = share * (dropout(through, rate, _key(given, i, j)) - meant[..., None])
            weights = dropout(share, rate, _key(given, i, j)).astype(given.v.dtype)
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
        sums = jax.lax.fori_loop(*_blocks(how, given, i), add, tuple(sums))
        if given.sink is not None:
            to_nobody = jnp.exp(given.sink.reshape(1, *groups, 1) - normaliser[i])
            d_sink = d_sink - (to_nobody * meant).sum((0, 3)).reshape(-1)
        return (*sums, d_sink)

    begin = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.float32),
        (given.q, given.k, given.v, given.table, given.sink),
    )
    sums = jax.lax.fori_loop(0, count, row_of_blocks, begin)
    dq, dk, dv, d_table, d_sink = jax.tree.map(
        lambda x, like: x.astype(like.dtype),
        sums,
        (given.q, given.k, given.v, given.table, given.sink),
    )
    return (Given(dq, dk, dv, d_table, d_sink, None, None, None),)


_attend.defvjp(_forward, _backward)


def _scores(
    how: ScoreConfig, given: Given, i: Array, j: Array, q: Array, k: Array, table: Array | None
) -> Float[Array, "B K G t s"]:
    """Scores of the keys of block j for the queries of block i."""
    queries, keys, query_segments, key_segments, prefixes = given.mask_inputs
    mask_inputs = MaskInputs(
        queries[i],
        keys[j],
        *(
            None if x is None else x[n]
            for x, n in ((query_segments, i), (key_segments, j), (prefixes, i))
        ),
    )
    return scores(q, k, mask_inputs, how, table)


def _blocks(how: ScoreConfig, given: Given, i: Array) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The first block of keys that queries of block i may see, and the one after the last."""
    size, count = given.q.shape[2], jnp.asarray(given.k.shape[0], jnp.int32)
    query, looks_back = given.begin + i * size, how.causal and given.mask_inputs.prefixes is None
    end = jnp.minimum((query + size - 1) // size + 1, count) if looks_back else count
    if how.layer.sees != "window" or how.layer.sinks:
        return jnp.zeros((), jnp.int32), end
    return jnp.maximum(query - (how.layer.span - 1), 0) // size, end


def _key(given: Given, i: Array, j: Array) -> Key | None:
    """Dropout's randomness of a block; the same in both passes."""
    return None if given.key is None else jax.random.fold_in(jax.random.fold_in(given.key, i), j)


def _to_heads(x: Float[Array, "B K G t h"]) -> Float[Array, "B t N h"]:
    rows, kv_heads, group, size, width = x.shape
    return jnp.moveaxis(x, 3, 1).reshape(rows, size, kv_heads * group, width)


def _to_groups(x: Float[Array, "B t N h"], groups: tuple[int, int]) -> Float[Array, "B K G t h"]:
    return jnp.moveaxis(x.reshape(*x.shape[:2], *groups, x.shape[-1]), 1, 3)
