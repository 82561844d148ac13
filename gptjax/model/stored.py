"""Activations times weights as they are stored, in the form that the backend at hand reads fastest.

Read `product`, then `streamed`: how a few rows meet weights that are stored narrower than they are computed with.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.arrays import Array, Float, Int
from gptjax.model.spread import platform, traced
from gptjax.model.wide import wide_einsum

FEW = 16
"""Rows up to which weights are read as they are stored. With more of them arithmetic costs more than reading, and weights are widened first."""


def as_computed(kernel: Array, compute: Any) -> Array:
    """The kernel in the compute type, or as it is stored where that is narrower."""
    return kernel.astype(min(kernel.dtype, jnp.dtype(compute), key=lambda kind: kind.itemsize))


def product(
    x: Float[Array, "... I"], kernel: Float[Array, "I O"] | Int[Array, "I O"], scale: Float[Array, " O"] | None = None, wide: bool = False
) -> Float[Array, "... O"]:
    """x times a kernel that is stored in any type, computed in x's; what comes out has x's type.

    On a CPU x is flattened to rows, because XLA's CPU backend transposes one operand of the kernel's gradient value by value if rows have two dimensions.

    Args:
      scale: what each column of an int8 kernel is multiplied by.
      wide: give float32.
    """
    out = jnp.float32 if wide else x.dtype
    one_cpu = platform() == "cpu" and traced() is None  # rows that are split over two axes of a mesh would have to be moved to become one dimension
    flat = x.reshape(-1, x.shape[-1]) if one_cpu else x
    if one_cpu and kernel.dtype.itemsize < 4 and kernel.dtype != x.dtype and len(flat) <= FEW:
        found = streamed(flat, kernel)
    else:
        kernel = kernel.astype(x.dtype)
        found = wide_einsum("...i,io->...o", flat, kernel) if wide else jnp.matmul(flat, kernel)
    found = found if scale is None else found * scale.astype(found.dtype).reshape((1,) * (found.ndim - 1) + (-1,))
    return found.astype(out).reshape(*x.shape[:-1], kernel.shape[-1])


def streamed(x: Float[Array, "C I"], kernel: Float[Array, "I O"] | Int[Array, "I O"]) -> Float[Array, "C O"]:
    """x times the kernel, widened value by value inside the sums, so that memory is read in the stored type alone; float32.

    XLA's CPU backend has no product of such operands: it would write the widened kernel out and read it again. Sums over `UNROLLED` rows
    of the kernel are one loop over columns, which it compiles to vector instructions.
    """
    x, kernel = jax.lax.optimization_barrier((x, kernel))  # or XLA widens the kernel once, before the loop over tokens, and reads that
    parts = next((n for n in range(UNROLLED, 0, -1) if kernel.shape[0] % n == 0), 1)
    groups, x = kernel.shape[0] // parts, x.astype(jnp.float32).reshape(len(x), -1, parts)
    kernel = kernel.reshape(groups, parts, -1)
    if len(x) > 1:
        add = lambda total, part: (functools.reduce(operator.add, (part[0][:, j, None] * part[1][j].astype(jnp.float32)[None] for j in range(parts)), total), None)
        return jax.lax.scan(add, jnp.zeros((len(x), kernel.shape[-1])), (jnp.moveaxis(x, 1, 0), kernel))[0]
    sums = functools.reduce(operator.add, (x[0, :, j, None] * kernel[:, j].astype(jnp.float32) for j in range(parts)))
    while len(sums) > 1:  # in a tree: each level is a loop of its own
        parts = next((n for n in range(UNROLLED, 1, -1) if len(sums) % n == 0), len(sums))
        sums = jax.lax.optimization_barrier(sums).reshape(-1, parts, sums.shape[-1])
        sums = functools.reduce(operator.add, (sums[:, j] for j in range(parts)))
    return sums


UNROLLED = 8
"""Rows of a kernel in one sum. From 16 on XLA splits the loop in two, and it is three times slower."""
