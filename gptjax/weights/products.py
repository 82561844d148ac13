"""Activations times weights as they are stored, in the form that the backend at hand reads fastest.

Read `product`, then `narrow` and `streamed`: how rows on a CPU meet weights that are stored
narrower than they are computed with.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int
from gptjax.sharding.constrain import current_mesh, platform
from gptjax.weights.einsum import wide_einsum


def as_computed(kernel: Array, compute: Any) -> Array:
    """The kernel in the compute type, or as it is stored where that is narrower."""
    return kernel.astype(min(kernel.dtype, jnp.dtype(compute), key=lambda kind: kind.itemsize))


def product(
    x: Float[Array, "... I"],
    kernel: Float[Array, "I O"] | Int[Array, "I O"],
    scale: Float[Array, " O"] | None = None,
    wide: bool = False,
) -> Float[Array, "... O"]:
    """x times a kernel that is stored in any type, computed in x's; what comes out has x's type.

    On a CPU x is flattened to rows, because XLA's CPU backend transposes one operand of the
    kernel's gradient value by value if rows have two dimensions.

    Args:
      scale: what each column of an int8 kernel is multiplied by.
      wide: give float32.
    """
    out = jnp.float32 if wide else x.dtype
    one_cpu = (
        platform() == "cpu" and current_mesh() is None
    )  # rows that are split over two axes of a mesh would have to be moved to become one dimension
    flat = x.reshape(-1, x.shape[-1]) if one_cpu else x
    if one_cpu and kernel.dtype.itemsize < 4 and kernel.dtype != x.dtype:
        found = narrow(flat, kernel)
    else:
        kernel = kernel.astype(x.dtype)
        found = wide_einsum("...i,io->...o", flat, kernel) if wide else jnp.matmul(flat, kernel)
    found = (
        found
        if scale is None
        else found * scale.astype(found.dtype).reshape((1,) * (found.ndim - 1) + (-1,))
    )
    return found.astype(out).reshape(*x.shape[:-1], kernel.shape[-1])


def narrow(
    x: Float[Array, "C I"], kernel: Float[Array, "I O"] | Int[Array, "I O"]
) -> Float[Array, "C O"]:
    """Rows times the kernel, in float32: one is `streamed`, for more the kernel is written out in
    float32 each time.

    A kernel of more than `BLOCK` numbers is written and read in blocks of columns, one after the
    other: XLA puts each kernel in its own order before it multiplies, and a large one would go
    through memory three times.
    """
    x, kernel = jax.lax.optimization_barrier(
        (x, kernel)
    )  # or XLA widens the kernel once, before the loop over tokens, and reads that
    if len(x) == 1:
        return streamed(x[0], kernel)[None]
    (rows, inputs), outputs, x = x.shape, kernel.shape[1], x.astype(jnp.float32)

    def wide(part):
        return jnp.matmul(x, jax.lax.optimization_barrier(part.astype(jnp.float32)))

    width = max(BLOCK // inputs, LEAST)
    if width >= outputs:
        return wide(kernel)

    def block(i: Int[Array, ""], found: Array) -> Array:
        begin = jnp.minimum(
            i * width, outputs - width
        )  # the last one begins earlier and repeats some columns
        return jax.lax.dynamic_update_slice_in_dim(
            found, wide(jax.lax.dynamic_slice_in_dim(kernel, begin, width, axis=1)), begin, axis=1
        )

    return jax.lax.fori_loop(
        0, -(-outputs // width), block, jnp.zeros((rows, outputs), jnp.float32)
    )


BLOCK, LEAST = 2**20, 64
"""Numbers of a block of a kernel, which stays in the processor's caches, and the fewest columns of
one."""


def streamed(
    x: Float[Array, " I"], kernel: Float[Array, "I O"] | Int[Array, "I O"]
) -> Float[Array, " O"]:
    """One row times the kernel, widened value by value inside the sums, so that memory is read in
    the stored type alone; float32.

    XLA's CPU backend has no fast product of such operands. Sums of `PARTS` stretches of the kernel,
    row by row, are one loop over columns, which it compiles to vector instructions; the rows that
    are left, an eighth of the kernel's, are added up in the same way.
    """
    both = zip(
        _stretches(x.astype(jnp.float32)[:, None], PARTS), _stretches(kernel, PARTS), strict=True
    )
    sums = functools.reduce(
        operator.add, (row * stretch.astype(jnp.float32) for row, stretch in both)
    )
    while len(sums) > 1:
        stretches = _stretches(jax.lax.optimization_barrier(sums), 2 * PARTS)
        sums = functools.reduce(operator.add, stretches) if len(stretches) > 1 else stretches.sum(1)
    return sums[0]


def _stretches(
    rows: Float[Array, "I O"] | Int[Array, "I O"], most: int
) -> Float[Array, "parts _ O"] | Int[Array, "parts _ O"]:
    """The rows in equal stretches, as many as `most` allows."""
    return rows.reshape(
        next(n for n in range(most, 0, -1) if len(rows) % n == 0), -1, rows.shape[-1]
    )


PARTS = 8
"""Stretches of a kernel that are read side by side. With 16 and more the loop is up to twice as
slow."""
