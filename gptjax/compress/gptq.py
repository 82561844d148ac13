"""Rounding that makes up for itself (GPTQ): inputs are rounded one after the other, and what one
loses is added to those that are left, as far as the inputs' moments say that they can replace it.

Source: Frantar et al. 2022, GPTQ, arXiv:2210.17323, algorithm 1, without reordering of inputs.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float
from gptjax.weights import NormalFloat, Quantized, Role
from gptjax.weights.rounding import (
    Rounding,
    Steps,
    codes_of,
    fit_steps,
    group_size,
    numbers_of,
    packed_weight,
)

DAMPING = 0.01
"""Share of the mean moment that is added to each, so that they can be inverted."""

BLOCK = 128
"""Most inputs after which the rest of a kernel is brought up to date."""


class _Solved(NamedTuple):
    codes: Float[Array, "I O"]
    steps: Steps
    """Of each group, in rows."""


def gptq(
    grid: Rounding,
    weight: Float[Array, "..."],
    role: Role,
    moments: Float[Array, "... I I"],
    damping: float = DAMPING,
) -> Quantized | NormalFloat:
    """A weight on a grid, with the sum of squared errors of its outputs made small.

    Args:
      moments: Σ x xᵀ of its inputs, see `moments.input_moments`.
      damping: share of the mean moment that is added to each.
    """
    group, lead = group_size(grid, weight.shape, role), weight.shape[: role.stacked]
    inputs = moments.shape[-1]
    matrices = jnp.asarray(weight, jnp.float32).reshape(math.prod(lead), inputs, -1)
    factors = np.asarray(moments, np.float64).reshape(-1, inputs, inputs)
    solved = [
        _solved(grid, group, matrix, jnp.asarray(inverse_factor(own, damping), jnp.float32))
        for matrix, own in zip(matrices, factors, strict=True)
    ]
    codes = jnp.stack([one.codes for one in solved])
    steps = jax.tree.map(lambda *each: jnp.stack(each), *[one.steps for one in solved])
    return _as_weight(grid, codes, steps, weight, role, group)


def inverse_factor(moments: Float[np.ndarray, "I I"], damping: float) -> Float[np.ndarray, "I I"]:
    """The upper Cholesky factor of the inverse of damped moments, in float64. An input that was
    never seen has nothing to make up for."""
    diagonal = np.diag(moments).copy()
    unseen = diagonal <= 0
    mean = diagonal[~unseen].mean() if (~unseen).any() else 1.0
    damped = moments + np.diag(np.where(unseen, mean, damping * mean))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solved(
    grid: Rounding, group: int | None, weight: Float[Array, "I O"], factor: Float[Array, "I I"]
) -> _Solved:
    inputs = weight.shape[0]
    size = group or next(n for n in range(min(BLOCK, inputs), 0, -1) if inputs % n == 0)
    shared = fit_steps(grid, weight, (0,)) if group is None else None

    def block(weight: Array, number: Array) -> tuple[Array, tuple[Array, Steps]]:
        begin = number * size
        rows = jax.lax.dynamic_slice_in_dim(weight, begin, size)
        factors = jax.lax.dynamic_slice_in_dim(factor, begin, size)
        own = jax.lax.dynamic_slice_in_dim(factors, begin, size, axis=1)
        steps = fit_steps(grid, rows, (0,)) if shared is None else shared

        def row(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            rows, codes, errors = state
            code = codes_of(grid, steps, rows[i][None])
            error = (rows[i] - numbers_of(grid, steps, code)[0]) / own[i, i]
            later = jnp.where(jnp.arange(size) > i, own[i], 0.0)
            rows = rows - later[:, None] * error[None]
            return rows, codes.at[i].set(code[0]), errors.at[i].set(error)

        zeros = jnp.zeros_like(rows)
        _, codes, errors = jax.lax.fori_loop(0, size, row, (rows, zeros, zeros))
        later = jnp.where(jnp.arange(inputs) >= begin + size, factors, 0.0)
        return weight - later.T @ errors, (codes, steps)

    _, (codes, steps) = jax.lax.scan(block, weight, jnp.arange(inputs // size))
    steps = jax.tree.map(lambda x: x[:1, 0] if group is None else x[:, 0], steps)
    return _Solved(codes.reshape(weight.shape), steps)


def _as_weight(
    grid: Rounding, codes: Array, steps: Steps, weight: Array, role: Role, group: int | None
) -> Quantized | NormalFloat:
    """Codes [weights I O] and steps [weights groups O] in the weight's own dimensions."""
    counts = _group_counts(weight.shape, role, group)
    shape = [n for size in counts for n in (size, 1)]
    steps = jax.tree.map(lambda x: x.reshape(shape), steps)
    return packed_weight(grid, steps, codes.reshape(weight.shape), weight.shape)


def _group_counts(shape: tuple[int, ...], role: Role, group: int | None) -> list[int]:
    """The number of blocks of each dimension of a weight."""
    counts, left = list(shape), group or math.prod(shape[role.stacked :][: role.inputs])
    for dimension in reversed(range(role.stacked, role.stacked + role.inputs)):
        block = math.gcd(left, shape[dimension])
        counts[dimension], left = shape[dimension] // block, left // block
    return counts
