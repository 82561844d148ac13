"""Products with kernels that are stored narrower than a CPU computes, so that memory is read in the
stored type alone. Decoding reads every weight once per token: its cost is bytes, not arithmetic.

XLA's CPU backend has no fast product of mixed types. Read `narrow`, then `streamed`.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int, Num


def narrow(
    x: Float[Array, "C I"],
    kernel: Num[Array, "I O"],
    scales: Float[Array, "groups O"] | None = None,
) -> Float[Array, "C O"]:
    """Rows times the kernel, in float32: a single row is `streamed`; for more, the kernel is
    widened to float32 each time.

    A kernel of more than `BLOCK` numbers is written and read in blocks of columns, one after the
    other: XLA puts each kernel in its own order before it multiplies, and a large one would go
    through memory three times.

    Args:
      scales: of each column and group of rows of the kernel.
    """
    # else XLA widens the kernel once, before the loop over tokens, and reads that
    x, kernel, scales = jax.lax.optimization_barrier((x, kernel, scales))
    if len(x) == 1:
        return streamed(x[0], kernel, scales)[None]
    (rows, inputs), outputs, x = x.shape, kernel.shape[1], x.astype(jnp.float32)

    def multiplied(kernel: Array, scales: Array | None) -> Array:
        return jnp.matmul(x, jax.lax.optimization_barrier(_widened(kernel, scales)))

    width = max(BLOCK // inputs, MIN_COLUMNS)
    if width >= outputs:
        return multiplied(kernel, scales)

    def block(i: Int[Array, ""], columns: Array) -> Array:
        # the last block begins earlier and repeats some columns
        begin = jnp.minimum(i * width, outputs - width)

        def part(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, begin, width, axis=1)

        product = multiplied(part(kernel), None if scales is None else part(scales))
        return jax.lax.dynamic_update_slice_in_dim(columns, product, begin, axis=1)

    return jax.lax.fori_loop(
        0, -(-outputs // width), block, jnp.zeros((rows, outputs), jnp.float32)
    )


def _widened(kernel: Array, scales: Array | None) -> Array:
    wide = kernel.astype(jnp.float32)
    if scales is None:
        return wide
    by_group = wide.reshape(len(scales), -1, wide.shape[1]) * scales[:, None]
    return by_group.reshape(wide.shape)


BLOCK = 2**20
"""Numbers in a block of a kernel, which fits the processor's caches."""

MIN_COLUMNS = 64
"""Columns of the narrowest block."""


def streamed(
    x: Float[Array, " I"],
    kernel: Num[Array, "I O"],
    scales: Float[Array, "groups O"] | None = None,
) -> Float[Array, " O"]:
    """One row times the kernel, widened value by value inside the sums, so that memory is read in
    the stored type alone; float32.

    XLA's CPU backend has no fast product of such operands. Sums of `PARTS` stretches of the kernel,
    row by row, are one loop over columns, which it compiles to vector instructions; the rows that
    are left, an eighth of the kernel's, are added up in the same way.
    """
    if scales is not None:  # each group is a row of its own of one more sum
        groups = len(scales)
        sums = jax.vmap(streamed)(x.reshape(groups, -1), kernel.reshape(groups, -1, len(scales[0])))
        return (sums * scales).sum(0)
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


def _stretches(rows: Num[Array, "I O"], most: int) -> Num[Array, "parts _ O"]:
    """The rows in equal stretches, as many as `most` allows."""
    return rows.reshape(
        next(n for n in range(most, 0, -1) if len(rows) % n == 0), -1, rows.shape[-1]
    )


PARTS = 8
"""Stretches of a kernel that are read side by side. With 16 and more the loop is up to twice as
slow."""
