"""Products with kernels that are stored narrower than a CPU computes, so that memory is read in the
stored type alone. Decoding reads every weight once per token: its cost is bytes, not arithmetic.

XLA's CPU backend has no fast product of mixed types. Read `narrow`, then `streamed`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int, Num


def narrow(
    x: Float[Array, "C I"],
    kernel: Num[Array, "I O"],
    scales: Float[Array, "groups O"] | None = None,
) -> Float[Array, "C O"]:
    """Rows times the kernel, in float32: a single row is `streamed`; for more, the kernel is
    widened to float32 each time, `in_blocks`.

    Args:
      scales: of each column and group of rows of the kernel.
    """
    # else XLA widens the kernel once, before the loop over tokens, and reads that
    x, kernel, scales = jax.lax.optimization_barrier((x, kernel, scales))
    if len(x) == 1:
        return streamed(x[0], kernel, scales)[None]
    return in_blocks(x.astype(jnp.float32), (kernel, scales), lambda leaves: _widened(*leaves))


def in_blocks(
    x: Float[Array, "C I"], leaves: Any, widened: Callable[[Any], Float[Array, "I n"]]
) -> Float[Array, "C O"]:
    """Rows times a kernel that is widened each time.

    A kernel of more than `BLOCK` numbers is written and read in blocks of columns, one after the
    other: XLA puts each kernel in its own order before it multiplies, and a large one would go
    through memory three times.

    Args:
      leaves: arrays whose last dimension is the kernel's columns.
      widened: gives the kernel in float32, of all columns or some.
    """
    (rows, inputs), outputs = x.shape, jax.tree.leaves(leaves)[0].shape[-1]

    def multiplied(leaves: Any) -> Array:
        return jnp.matmul(x, jax.lax.optimization_barrier(widened(leaves)))

    width = max(BLOCK // inputs, MIN_COLUMNS)
    if width >= outputs:
        return multiplied(leaves)

    def block(i: Int[Array, ""], columns: Array) -> Array:
        # the last block begins earlier and repeats some columns
        begin = jnp.minimum(i * width, outputs - width)

        def part(leaf: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(leaf, begin, width, axis=leaf.ndim - 1)

        product = multiplied(jax.tree.map(part, leaves))
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
    or of each group of it, row by row, are one loop over columns, which it compiles to vector
    instructions; the rows that are left, an eighth of the kernel's, are added up in the same way.
    """
    groups = 1 if scales is None else len(scales)
    sums = sum_parts(kernel.reshape(groups, -1, kernel.shape[1]), x.reshape(groups, -1))
    if scales is not None:
        sums = sums * scales[:, None]
    return add_up(sums.reshape(-1, kernel.shape[1]))


def sum_parts(
    kernel: Num[Array, "groups I O"], x: Float[Array, "groups I"]
) -> Float[Array, "groups _ O"]:
    """The products of `PARTS` stretches of each group, added up row by row; not yet the sums over
    these rows."""
    groups, inputs, outputs = kernel.shape
    parts = _parts(inputs, PARTS)
    stretches = kernel.reshape(groups, parts, -1, outputs)
    along = x.astype(jnp.float32).reshape(groups, parts, -1, 1)
    return functools.reduce(
        operator.add,
        (along[:, i] * stretches[:, i].astype(jnp.float32) for i in range(parts)),
    )


def add_up(rows: Float[Array, "n O"]) -> Float[Array, " O"]:
    """The sum of all rows, stretches of them at a time."""
    while len(rows) > 1:
        parts = _parts(len(rows), 2 * PARTS)
        stretches = jax.lax.optimization_barrier(rows).reshape(parts, -1, rows.shape[1])
        rows = functools.reduce(operator.add, stretches) if parts > 1 else stretches.sum(1)
    return rows[0]


def _parts(count: int, most: int) -> int:
    """As many equal stretches as `most` allows."""
    return next(n for n in range(most, 0, -1) if count % n == 0)


PARTS = 8
"""Stretches of a kernel that are read side by side. With 16 and more the loop is up to twice as
slow."""
