"""Look-up of the rows of a table, a weight [V D]."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int
from gptjax.sharding.constrain import ROWS, current_mesh
from gptjax.weights.linear import Names, adapters_of_rows, linear
from gptjax.weights.sharded import WIDE, sharded_rows
from gptjax.weights.storage import NormalFloat
from gptjax.weights.weight import Adapted, Quantized, Weight, dense


@functools.singledispatch
def embed(
    weight: Weight,
    ids: Int[Array, "B T"],
    dtype: Any = jnp.float32,
    names: Names = ("vocab", "embed"),
) -> Float[Array, "B T D"]:
    """The row of each id, in this type. Register a rule here for a kind of weight that need not
    become an array for it.

    Args:
      names: logical names of the table's dimensions.
    """
    table, mesh = dense(weight).astype(dtype), current_mesh()
    if mesh is None or names[0] not in WIDE:
        return jnp.take(table, ids, axis=0)
    return sharded_rows(mesh, table, ids, ROWS)


@embed.register(Quantized)
@embed.register(NormalFloat)
def _(
    weight: Quantized | NormalFloat,
    ids: Int[Array, "B T"],
    dtype: Any = jnp.float32,
    names: Names = ("vocab", "embed"),
) -> Float[Array, "B T D"]:
    leaves = jax.tree.leaves(weight)
    if any(len(leaf) != len(weight.values) for leaf in leaves):  # several rows share a scale
        return embed(dense(weight), ids, dtype, names)
    flat = jax.tree.map(lambda leaf: jnp.take(leaf, ids.reshape(-1), axis=0), weight)
    return dense(flat).astype(dtype).reshape(*ids.shape, -1)


@embed.register
def _(
    weight: Adapted,
    ids: Int[Array, "B T"],
    dtype: Any = jnp.float32,
    names: Names = ("vocab", "embed"),
) -> Float[Array, "B T D"]:
    base = embed(weight.base, ids, dtype, names)
    if weight.rows is None:
        inner = embed(weight.a, ids, dtype, (names[0], None))
        return base + weight.scale * linear(inner, weight.b, names=(None, names[1]))
    a, b = adapters_of_rows(weight, dtype)
    inner = jnp.take_along_axis(a, ids[:, :, None], axis=1)
    return base + weight.scale * jnp.einsum("btr,brd->btd", inner, b)
