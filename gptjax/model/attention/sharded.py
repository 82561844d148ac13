"""Attention where the devices of a mesh hold parts of it: each attends with its own rows, heads and
queries.

XLA splits plain products by itself. It can't split a kernel, or a loop over blocks, and it does not
know that a query needs the keys of all positions but only once; so here each device computes for
itself (`jax.shard_map`) and the keys are brought together by one gather.

Sources: heads: Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3; positions, with
gathered keys: Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv:2407.21783, section 3.3.2,
without its balancing of early and late positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Array, Float
from gptjax.model.attention.mask import MaskInputs
from gptjax.sharding.collectives import all_gather
from gptjax.sharding.constrain import ROWS, current_mesh, partition_spec


def over_mesh(
    attend: Callable[..., Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K value"],
    mask_inputs: MaskInputs,
    table: Float[Array, "..."] | None,
    sink: Float[Array, " N"] | None,
    kernel: Any = None,
    kernel_spec: Any = None,
) -> Float[Array, "B T N value"]:
    """What `attend(q, k, v, mask_inputs, table, sink, begin, kernel)` gives, by every device of the
    traced mesh for its own part.

    Args:
      attend: gets queries of some positions, from `begin` on, and the keys of all.
      kernel: arrays that it needs besides, split as `kernel_spec` says.
    """
    mesh = current_mesh()
    heads = ("tensor",) if q.shape[2] % mesh.shape["tensor"] == 0 else ()
    k, v = (repeated(x, q.shape[2], mesh.shape["tensor"] if heads else 1) for x in (k, v))

    def where(x, *axes):
        return None if x is None else partition_spec(mesh.shape, x.shape, axes)

    by_head = [where(x, ROWS, ("context",), heads, ()) for x in (q, k, v)]
    seen = MaskInputs(*(where(x, ROWS, ("context",)) for x in mask_inputs))
    biased = where(table, *((),) * (0 if table is None else table.ndim - 1), heads)

    def own(
        q: Array, k: Array, v: Array, mask_inputs: MaskInputs, table: Any, sink: Any, kernel: Any
    ) -> Array:
        def gather(x):
            return x if x is None else all_gather(x, "context", 1)

        begin = jax.lax.axis_index("context") * q.shape[1]
        if mesh.shape["context"] > 1:
            k, v, mask_inputs = (
                gather(k),
                gather(v),
                mask_inputs._replace(
                    keys=gather(mask_inputs.keys), key_segments=gather(mask_inputs.key_segments)
                ),
            )
        return attend(q, k, v, mask_inputs, table, sink, begin, kernel)

    specs = (*by_head, seen, biased, where(sink, heads), P() if kernel is None else kernel_spec)
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=by_head[0], check_vma=False)(
        q, k, v, mask_inputs, table, sink, kernel
    )


def repeated(x: Float[Array, "B T K H"], num_heads: int, parts: int) -> Float[Array, "B T more H"]:
    """Key/value heads, each as often as it takes for every part of the query heads to have its
    own."""
    kv_heads = x.shape[2]
    times = parts // math.gcd(kv_heads, parts)
    times = times if num_heads % (kv_heads * times) == 0 else num_heads // kv_heads
    return x if times == 1 else jnp.repeat(x, times, axis=2)
