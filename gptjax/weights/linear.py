"""Activations times weights, where the devices of a mesh share both: what is sent, and when, is
written here and not left to XLA.

A weight is gathered for each product from the devices that share it, in the type in which it is
used, and its gradient goes back to them summed by a reduce-scatter; nothing gathered is kept for
the backward pass. Positions that `tensor` splits between blocks are gathered before a product with
columns that it splits, and scattered after one with rows that it splits.

Sources: Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, section 5.3; Korthikanti et al. 2022,
arXiv:2205.05198, section 4.2.2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Array, Float, Int
from gptjax.sharding.constrain import ROWS, current_mesh, partition_spec
from gptjax.weights.products import product

Names = tuple[str | None, str | None]
"""What a matrix's rows and columns are, by the logical names of parameters: `embed`, `heads`,
`mlp`, …"""

WIDE = ("vocab", "heads", "kv_heads", "mlp")
"""What `tensor` splits."""


def products(
    x: Float[Array, "... I"],
    matrices: tuple[Float[Array, "I _"] | Int[Array, "I _"], ...],
    names: tuple[Names, ...],
    units: tuple[int, ...],
    *,
    scales: tuple[Float[Array, " _"] | None, ...] | None = None,
    rows: Sequence[str] = ROWS,
    exact: bool = False,
) -> tuple[Float[Array, "... _"], ...]:
    """x times each matrix.

    Args:
      units: how many columns of each belong together, as those of a head do, or rows, where rows
        are wide.
      scales: of the columns of matrices that are stored in 8 bits, for decoding.
      rows: the axes that split B.
      exact: the products in float32.
    """
    mesh = current_mesh()
    if (
        mesh is None or x.ndim != 3 or matrices[0].dtype != x.dtype
    ):  # the last two: a few states of a text that is written
        return tuple(
            product(x, matrix, scale, wide=exact)
            for matrix, scale in zip(matrices, scales or (None,) * len(matrices), strict=True)
        )
    return _products(
        mesh,
        _plan(mesh, x.shape, matrices, names, units, tuple(rows)),
        jnp.float32 if exact else x.dtype,
        x,
        matrices,
    )


class _Plan(NamedTuple):
    """Where everything lies."""

    x: P
    matrices: tuple[P, ...]
    out: tuple[P, ...]
    gathered: bool
    """Positions are gathered over `tensor` before the products."""
    summed: bool
    """Rows are split over `tensor`, so that the products of its devices are parts of a sum."""
    scattered: bool
    """Their sum is scattered over positions."""


def _plan(
    mesh: AbstractMesh,
    shape: tuple[int, ...],
    matrices: tuple[Array, ...],
    names: tuple[Names, ...],
    units: tuple[int, ...],
    rows: tuple[str, ...],
) -> _Plan:
    cut = []
    for matrix, both, unit in zip(matrices, names, units, strict=True):
        wanted = [
            ("tensor",) if name in WIDE else ("fsdp", "expert") if name == "embed" else ()
            for name in both
        ]
        cut.append(
            partition_spec(
                mesh.shape,
                [
                    size // unit if name in WIDE else size
                    for size, name in zip(matrix.shape, both, strict=True)
                ],
                wanted,
            )
        )
    between, inside = (
        partition_spec(mesh.shape, shape, (rows, positions, ()))
        for positions in (("context", "tensor"), ("context",))
    )
    scattered = between != inside
    if names[0][0] in WIDE:
        summed = cut[0][0] == "tensor"
        x = P(*inside[:2], "tensor") if summed else inside
        return _Plan(
            x, tuple(cut), (between if summed else inside,), False, summed, summed and scattered
        )
    gathered = scattered and any(spec[1] == "tensor" for spec in cut)
    outs = tuple(P(*inside[:2], spec[1] if spec[1] == "tensor" else None) for spec in cut)
    return _Plan(
        between,
        tuple(cut),
        outs if gathered or not scattered else (between,) * len(cut),
        gathered,
        False,
        False,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _products(
    mesh: AbstractMesh, plan: _Plan, kind: Any, x: Array, matrices: tuple[Array, ...]
) -> tuple[Array, ...]:
    def own(x: Array, matrices: tuple[Array, ...]) -> tuple[Array, ...]:
        x = all_gather(x, "tensor", 1) if plan.gathered else x
        out = tuple(
            jnp.matmul(x, _assembled(matrix, spec), preferred_element_type=kind)
            for matrix, spec in zip(matrices, plan.matrices, strict=True)
        )
        if plan.scattered:
            return tuple(
                jax.lax.psum_scatter(y, "tensor", scatter_dimension=1, tiled=True) for y in out
            )
        return tuple(jax.lax.psum(y, "tensor") for y in out) if plan.summed else out

    return jax.shard_map(
        own, mesh=mesh, in_specs=(plan.x, plan.matrices), out_specs=plan.out, check_vma=False
    )(x, matrices)


def _forward(
    mesh: AbstractMesh, plan: _Plan, kind: Any, x: Array, matrices: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple]:
    return _products(mesh, plan, kind, x, matrices), (x, matrices)


def _backward(
    mesh: AbstractMesh, plan: _Plan, kind: Any, kept: tuple, back: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """To x: the products with the turned matrices, summed where several devices have columns. To
    each matrix: its sum over all tokens."""

    def own(
        x: Array, matrices: tuple[Array, ...], back: tuple[Array, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        if plan.gathered:
            x = all_gather(x, "tensor", 1)
        if plan.scattered:
            back = tuple(all_gather(y, "tensor", 1) for y in back)
        parts, alike, grads = [], [], []
        for matrix, spec, y in zip(matrices, plan.matrices, back, strict=True):
            y = y.astype(x.dtype)
            (parts if spec[1] == "tensor" else alike).append(
                jnp.matmul(y, _assembled(matrix, spec).T)
            )
            grads.append(_returned(jnp.einsum("bti,bto->io", x, y), spec, plan))
        to_x = sum(parts[1:], parts[0]) if parts else None
        if parts and plan.gathered:
            to_x = jax.lax.psum_scatter(to_x, "tensor", scatter_dimension=1, tiled=True)
            alike = [local_slice(y, "tensor", 1) for y in alike]
        elif parts:
            to_x = jax.lax.psum(to_x, "tensor")
        both = [*([] if to_x is None else [to_x]), *alike]
        return sum(both[1:], both[0]), tuple(grads)

    specs = {
        "in_specs": (plan.x, plan.matrices, plan.out),
        "out_specs": (plan.x, plan.matrices),
        "check_vma": False,
    }
    return jax.shard_map(own, mesh=mesh, **specs)(*kept, back)


_products.defvjp(_forward, _backward)


def _assembled(matrix: Array, spec: P) -> Array:
    """A matrix, gathered from the devices that share it but for `tensor`."""
    for dimension, axes in enumerate(spec):
        for axis in reversed(_each(axes)):
            matrix = matrix if axis == "tensor" else all_gather(matrix, axis, dimension)
    return matrix


def _returned(grad: Array, spec: P, plan: _Plan) -> Array:
    """The sum of a matrix's gradient over all devices that read other tokens, of which each keeps
    its own part."""
    reading = {axis for axes in plan.x[:2] for axis in _each(axes)} - (
        {"tensor"} if plan.gathered else set()
    )
    for dimension, axes in enumerate(spec):
        for axis in (axis for axis in _each(axes) if axis != "tensor"):
            if axis in reading:
                grad = jax.lax.psum_scatter(grad, axis, scatter_dimension=dimension, tiled=True)
                reading.remove(axis)
            else:
                grad = local_slice(grad, axis, dimension)
    return jax.lax.psum(grad, tuple(sorted(reading))) if reading else grad


def _each(axes: Any) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def all_gather(x: Array, axis: str, dimension: int) -> Array:
    """What all devices along an axis have, side by side."""
    return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def local_slice(x: Array, axis: str, dimension: int) -> Array:
    """This device's own part of what all devices along an axis have."""
    size = x.shape[dimension] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, dimension)


# --- look-up
# -----------------------------------------------------------------------------------------------------


def embed(table: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The rows of a table that is shared as a matrix is; where `tensor` splits the rows, each
    device gives those that it has."""
    mesh = current_mesh()
    if mesh is None:
        return jnp.take(table, ids, axis=0)
    spec = partition_spec(mesh.shape, table.shape, (("tensor",), ("fsdp", "expert")))
    between, inside = (
        partition_spec(mesh.shape, ids.shape, (ROWS, positions))
        for positions in (("context", "tensor"), ("context",))
    )
    wide = spec[0] == "tensor"

    def own(table: Array, ids: Array) -> Array:
        table = _assembled(table, spec)
        if not wide:
            return jnp.take(table, ids, axis=0)
        at = ids - jax.lax.axis_index("tensor") * table.shape[0]
        here = (at >= 0) & (at < table.shape[0])
        found = jnp.where(
            here[..., None],
            jnp.take(table, jnp.where(here, at, 0), axis=0),
            jnp.zeros((), table.dtype),
        )
        return (
            jax.lax.psum(found, "tensor")
            if between == inside
            else jax.lax.psum_scatter(found, "tensor", scatter_dimension=1, tiled=True)
        )

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(spec, inside if wide else between),
        out_specs=P(*between, None),
        check_vma=False,
    )(table, ids)
