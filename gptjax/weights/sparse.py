"""Which of a kernel's weights stay when the others become zero."""

from __future__ import annotations

import re

import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float
from gptjax.core.config import require


def parse_pattern(pattern: str) -> tuple[int, int]:
    """Returns N and M of N:M: of M consecutive inputs N stay.

    Raises:
      ConfigError: it is something else.
    """
    found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", pattern)
    some, many = (0, 0) if found is None else (int(found[1]), int(found[2]))
    require(
        0 < some < many,
        f"the pattern is {pattern!r}; it needs N:M with 0 < N < M, such as 2:4.",
    )
    return some, many


def keep_largest(
    scores: Float[Array, "S I O"],
    share: float | Array,
    pattern: str | None = None,
    *,
    by_output: bool = False,
) -> Bool[Array, "S I O"]:
    """Which scores stay if a share of each matrix, or of each output's inputs, becomes zero: the
    largest. Those that equal the last that goes all go.

    Args:
      share: that does not stay; not used with a pattern.
      pattern: N:M, of M consecutive inputs of each output N stay; of equal ones the first.

    Raises:
      ConfigError: M does not divide the inputs.
    """
    lead, inputs, outputs = scores.shape
    if pattern is not None:
        some, many = parse_pattern(pattern)
        require(
            inputs % many == 0,
            f"the pattern {pattern} needs inputs that {many} divides, and a kernel has {inputs}.",
        )
        apart = scores.reshape(lead, inputs // many, many, outputs)
        return (_ranks(apart, axis=2) < some).reshape(scores.shape)
    flat = scores if by_output else scores.reshape(lead, inputs * outputs, 1)
    dropped = jnp.round(share * flat.shape[1]).astype(jnp.int32)
    last = jnp.take(jnp.sort(flat, axis=1), jnp.maximum(dropped - 1, 0), axis=1)
    return ((flat > last[:, None]) | (dropped == 0)).reshape(scores.shape)


def _ranks(scores: Array, axis: int) -> Array:
    """The place of each score among those along an axis, from the largest; of equal ones the first
    is before."""
    order = jnp.argsort(-scores, axis=axis, stable=True)
    return jnp.argsort(order, axis=axis, stable=True)
