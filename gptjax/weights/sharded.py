"""Activations times arrays that the devices of a mesh share: what is sent, and when, is written
here and not left to XLA.

A weight is gathered for each product from the devices that share it, in the type in which it is
used, and its gradient goes back to them summed by a reduce-scatter; nothing gathered is kept for
the backward pass. Positions that `tensor` splits between blocks are gathered before a product with
columns that it splits, and scattered after one with rows that it splits.

Sources: Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 5.3; Korthikanti et al. 2022,
arXiv:2205.05198, section 4.2.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Array, Float
from gptjax.sharding.collectives import (
    all_gather,
    axes_of,
    gather_shards,
    local_slice,
    reduce_scatter,
    scatter_sum,
)
from gptjax.sharding.constrain import partition_spec
from gptjax.weights.float8 import BACKWARD, FORWARD, Scaled, mixed_einsum, operand, scaled

WIDE = ("vocab", "heads", "kv_heads", "mlp")
"""Logical names of the dimensions that `tensor` splits."""

BETWEEN = ("context", "tensor")
"""Mesh axes that split positions between blocks."""

INSIDE = ("context",)
"""Mesh axes that split positions inside attention and MLP."""


class Matrix(NamedTuple):
    """A weight as a matrix of its inputs and outputs."""

    array: Float[Array, "I O"]
    names: tuple[str | None, str | None]
    """The logical names of rows and columns."""
    unit: int
    """How many neighbouring rows, or columns, stay on one device, as those of a head do."""


class _Plan(NamedTuple):
    """Where operands and results lie on the mesh."""

    x: P
    matrices: tuple[P, ...]
    out: tuple[P, ...]
    gathered: bool
    """Positions are gathered over `tensor` before the products."""
    summed: bool
    """Rows are split over `tensor`, so the products of its devices are parts of a sum."""
    scattered: bool
    """That sum is scattered over positions."""


def sharded_products(
    mesh: AbstractMesh,
    x: Float[Array, "B T I"],
    matrices: Sequence[Matrix],
    rows: Sequence[str],
    out_dtype: Any,
    float8: bool = False,
) -> tuple[Float[Array, "B T _"], ...]:
    """Multiplies the same x with each matrix.

    Args:
      rows: mesh axes that split B.
      float8: round operands and gradients as `float8_einsum` does; what is gathered is then as
        narrow as the device multiplies it.
    """
    plan = _plan(mesh, x.shape, matrices, tuple(rows))
    arrays = tuple(matrix.array for matrix in matrices)
    if float8:
        return _float8_products(mesh, plan, (x.dtype, out_dtype), x, arrays)
    return _products(mesh, plan, out_dtype, x, arrays)


def _plan(
    mesh: AbstractMesh, shape: tuple[int, ...], matrices: Sequence[Matrix], rows: tuple[str, ...]
) -> _Plan:
    specs = tuple(_matrix_spec(mesh, matrix) for matrix in matrices)
    between, inside = (
        partition_spec(mesh.shape, shape, (rows, positions, ())) for positions in (BETWEEN, INSIDE)
    )
    scattered = between != inside
    if matrices[0].names[0] in WIDE:
        summed = specs[0][0] == "tensor"
        return _Plan(
            x=P(*inside[:2], "tensor") if summed else inside,
            matrices=specs,
            out=(between if summed else inside,),
            gathered=False,
            summed=summed,
            scattered=summed and scattered,
        )
    gathered = scattered and any(spec[1] == "tensor" for spec in specs)
    outs = tuple(P(*inside[:2], spec[1] if spec[1] == "tensor" else None) for spec in specs)
    return _Plan(
        x=between,
        matrices=specs,
        out=outs if gathered or not scattered else (between,) * len(specs),
        gathered=gathered,
        summed=False,
        scattered=False,
    )


def _matrix_spec(mesh: AbstractMesh, matrix: Matrix) -> P:
    sizes, wanted = [], []
    for size, name in zip(matrix.array.shape, matrix.names, strict=True):
        sizes.append(size // matrix.unit if name in WIDE else size)
        wanted.append(
            ("tensor",) if name in WIDE else ("fsdp", "expert") if name == "embed" else ()
        )
    return partition_spec(mesh.shape, sizes, wanted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _products(
    mesh: AbstractMesh, plan: _Plan, out_dtype: Any, x: Array, matrices: tuple[Array, ...]
) -> tuple[Array, ...]:
    def own(x: Array, matrices: tuple[Array, ...]) -> tuple[Array, ...]:
        x = all_gather(x, "tensor", 1) if plan.gathered else x
        out = tuple(
            jnp.matmul(
                x, gather_shards(matrix, spec, keep="tensor"), preferred_element_type=out_dtype
            )
            for matrix, spec in zip(matrices, plan.matrices, strict=True)
        )
        if plan.scattered:
            return tuple(reduce_scatter(y, "tensor", 1) for y in out)
        return tuple(jax.lax.psum(y, "tensor") for y in out) if plan.summed else out

    return jax.shard_map(
        own, mesh=mesh, in_specs=(plan.x, plan.matrices), out_specs=plan.out, check_vma=False
    )(x, matrices)


_Saved = tuple[Array, tuple[Array, ...]]
"""x and the matrices, for the backward pass."""


def _forward(
    mesh: AbstractMesh, plan: _Plan, out_dtype: Any, x: Array, matrices: tuple[Array, ...]
) -> tuple[tuple[Array, ...], _Saved]:
    return _products(mesh, plan, out_dtype, x, matrices), (x, matrices)


def _backward(
    mesh: AbstractMesh, plan: _Plan, out_dtype: Any, saved: _Saved, grads: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """The gradient of x: products with the transposed matrices, summed where several devices have
    columns. The gradient of each matrix: its sum over all tokens."""
    grads = tuple(y.astype(saved[0].dtype) for y in grads)
    return _gradients(mesh, plan, jnp.einsum, saved, grads, ())


def _gradients(
    mesh: AbstractMesh,
    plan: _Plan,
    einsum: Callable[[str, Array, Array], Array],
    saved: _Saved,
    grads: tuple[Array, ...],
    scales: tuple[Any, ...],
) -> tuple[Array, tuple[Array, ...]]:
    """As `_backward`.

    Args:
      einsum: computes the products.
      scales: what multiplies each matrix's part of the gradient of x, if anything does.
    """
    reading = {axis for entry in plan.x[:2] for axis in axes_of(entry)}
    reading -= {"tensor"} if plan.gathered else set()

    def own(
        x: Array, matrices: tuple[Array, ...], grads: tuple[Array, ...], scales: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        if plan.gathered:
            x = all_gather(x, "tensor", 1)
        if plan.scattered:
            grads = tuple(all_gather(y, "tensor", 1) for y in grads)
        split, whole, to_matrices = [], [], []
        parts = zip(matrices, plan.matrices, grads, scales or (1,) * len(grads), strict=True)
        for matrix, spec, y, scale in parts:
            to_x = einsum("bto,oi->bti", y, gather_shards(matrix, spec, keep="tensor").T)
            to_x = (to_x * scale).astype(to_x.dtype) if scales else to_x
            (split if spec[1] == "tensor" else whole).append(to_x)
            to_matrix = einsum("bti,bto->io", x, y)
            to_matrices.append(scatter_sum(to_matrix, spec, reading, keep="tensor"))
        if split and plan.gathered:
            split = [reduce_scatter(sum(split[1:], split[0]), "tensor", 1)]
            whole = [local_slice(y, "tensor", 1) for y in whole]
        elif split:
            split = [jax.lax.psum(sum(split[1:], split[0]), "tensor")]
        both = split + whole
        return sum(both[1:], both[0]), tuple(to_matrices)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(plan.x, plan.matrices, plan.out, P()),
        out_specs=(plan.x, plan.matrices),
        check_vma=False,
    )(*saved, grads, scales)


_products.defvjp(_forward, _backward)


# --- of 8-bit floats

_Types = tuple[Any, Any]
"""Of x and of the products."""

_Rounded = tuple[Scaled, tuple[Scaled, ...]]
"""x and the matrices, for the backward pass."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _float8_products(
    mesh: AbstractMesh, plan: _Plan, types: _Types, x: Array, matrices: tuple[Array, ...]
) -> tuple[Array, ...]:
    return _float8_forward(mesh, plan, types, x, matrices)[0]


def _float8_forward(
    mesh: AbstractMesh, plan: _Plan, types: _Types, x: Array, matrices: tuple[Array, ...]
) -> tuple[tuple[Array, ...], _Rounded]:
    compute, out = types
    saved = scaled(x, FORWARD), tuple(scaled(matrix, FORWARD) for matrix in matrices)
    outputs = cast(tuple[Array, ...], _products(mesh, plan, out, *_operands(saved, compute)))
    scales = [saved[0].scale * matrix.scale for matrix in saved[1]]
    rescaled = zip(outputs, scales, strict=True)
    return tuple((y * scale).astype(out) for y, scale in rescaled), saved


def _float8_backward(
    mesh: AbstractMesh, plan: _Plan, types: _Types, saved: _Rounded, grads: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    (x, matrices), compute = saved, types[0]
    backs = tuple(scaled(y, BACKWARD) for y in grads)
    to_x, to_matrices = _gradients(
        mesh,
        plan,
        functools.partial(mixed_einsum, out=compute),
        _operands(saved, compute),
        tuple(operand(y, compute) for y in backs),
        tuple(m.scale * y.scale for m, y in zip(matrices, backs, strict=True)),
    )
    rescaled = zip(to_matrices, backs, strict=True)
    return to_x, tuple((one * (x.scale * y.scale)).astype(compute) for one, y in rescaled)


def _operands(saved: _Rounded, compute: Any) -> _Saved:
    return operand(saved[0], compute), tuple(operand(matrix, compute) for matrix in saved[1])


_float8_products.defvjp(_float8_forward, _float8_backward)


def sharded_rows(
    mesh: AbstractMesh, table: Float[Array, "V D"], ids: Array, rows: Sequence[str]
) -> Float[Array, "B T D"]:
    """The rows of a table that the mesh splits as `ShardingRules` says of `vocab` and `embed`;
    where `tensor` splits the rows, each device gives those that it holds.

    Args:
      rows: mesh axes that split B.
    """
    spec = partition_spec(mesh.shape, table.shape, (("tensor",), ("fsdp", "expert")))
    between, inside = (
        partition_spec(mesh.shape, ids.shape, (rows, positions)) for positions in (BETWEEN, INSIDE)
    )
    split = spec[0] == "tensor"

    def own(table: Array, ids: Array) -> Array:
        table = gather_shards(table, spec, keep="tensor")
        if not split:
            return jnp.take(table, ids, axis=0)
        row = ids - jax.lax.axis_index("tensor") * table.shape[0]
        held = (row >= 0) & (row < table.shape[0])
        vectors = jnp.take(table, jnp.where(held, row, 0), axis=0)
        vectors = jnp.where(held[..., None], vectors, jnp.zeros((), table.dtype))
        if between == inside:
            return jax.lax.psum(vectors, "tensor")
        return reduce_scatter(vectors, "tensor", 1)

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(spec, inside if split else between),
        out_specs=P(*between, None),
        check_vma=False,
    )(table, ids)
