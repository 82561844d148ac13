"""Attention where the devices of a mesh hold parts of it: each attends with its own rows, heads and
queries.

XLA splits plain products by itself. It can't split a kernel, or a loop over blocks, and it does not
know that a query needs the keys of all positions but only once; so here each device computes for
itself (`jax.shard_map`) and the keys are brought together by one gather.

Sources: heads: Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3; positions, with
gathered keys: Grattafiori et al. 2024, The Llama 3 Herd of Models, arXiv:2407.21783, section 3.3.2.
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
from gptjax.sharding.constrain import ROWS, axis_size, current_mesh, partition_spec
from gptjax.sharding.zigzag import Starts, part_starts, restore_order


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
    *,
    zigzag: bool = False,
) -> Float[Array, "B T N value"]:
    """What `attend(q, k, v, mask_inputs, table, sink, starts, kernel)` gives, by every device of
    the traced mesh for its own part.

    Args:
      attend: gets queries of some positions, which `starts` tells, and the keys of all, in the
        order of positions.
      kernel: arrays that it needs besides, split as `kernel_spec` says.
      zigzag: positions are in zig-zag order.
    """
    mesh, parts = current_mesh(), axis_size("context")
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
            if x is not None:
                x = all_gather(x, "context", 1)
            return x if x is None or not zigzag else restore_order(x, parts)

        if parts > 1:
            k, v, mask_inputs = (
                gather(k),
                gather(v),
                mask_inputs._replace(
                    keys=gather(mask_inputs.keys), key_segments=gather(mask_inputs.key_segments)
                ),
            )
        where = part_starts(parts * q.shape[1], parts, zigzag=zigzag)
        starts = Starts(where, jax.lax.axis_index("context"))
        return attend(q, k, v, mask_inputs, table, sink, starts, kernel)

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
