"""DoRA: the lengths of a weight's columns train apart from their directions.

    column = magnitude · (W + scale · a b) / ‖W + scale · a b‖

Functions of plain matrices; leading dimensions are independent weights. Source: Liu et al. 2024,
DoRA, arXiv:2402.09353, section 4; as there in section 4.3, the norm has no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float


def column_squares(matrix: Float[Array, "... I O"]) -> Float[Array, "... O"]:
    """The squared length of each column."""
    return jnp.square(matrix.astype(jnp.float32)).sum(-2)


def adapted_squares(
    squares: Float[Array, "... O"],
    matrix: Float[Array, "... I O"],
    a: Float[Array, "... I R"],
    b: Float[Array, "... R O"],
    scale: float,
) -> Float[Array, "... O"]:
    """The squared length of each column of matrix + scale · a b, without that matrix.

    Args:
      squares: those of the matrix. A product of zero gives them back to the last bit.
    """
    matrix = matrix.astype(jnp.float32)
    cross = jnp.einsum("...io,...ir,...ro->...o", matrix, a, b, optimize=[(0, 1), (0, 1)])
    inner = jnp.einsum("...ir,...is->...rs", a, a)
    own = (b * (inner @ b)).sum(-2)
    return squares + (2 * scale * cross + scale**2 * own)


def length_ratio(magnitude: Float[Array, "... O"], squared: Float[Array, "... O"]) -> Array:
    """What multiplies each column: its magnitude over its length. It is 1 for a column of zeros,
    and where the magnitude is NaN, which stands for an adapter without magnitudes."""
    squared = jax.lax.stop_gradient(squared)
    plain = (squared <= 0) | jnp.isnan(magnitude)
    # else XLA multiplies by the reciprocal root, and the ratio of equal lengths is not 1
    length = jax.lax.optimization_barrier(jnp.sqrt(jnp.where(plain, 1.0, squared)))
    return jnp.where(plain, 1.0, jnp.where(plain, 1.0, magnitude) / length)
