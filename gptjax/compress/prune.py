"""Weights set to zero: the smallest ones, or those whose absence changes the outputs least.

Zeros alone make no dense product cheaper and no array smaller: they serve machines that skip them,
files that are compressed, and as the start of a run that keeps them (`--optim.prune`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.compress.moments import Moments
from gptjax.core.arrays import Array, Bool, Float, Params
from gptjax.core.config import require
from gptjax.model import ModelConfig
from gptjax.weights import Role
from gptjax.weights.kernels import kernels_of, num_inputs, replace_weights
from gptjax.weights.sparse import keep_largest, parse_pattern


@dataclass(frozen=True)
class Pruning:
    """Which weights become zero."""

    share: float = 0.5
    """Of each kernel; a pattern has its own."""
    pattern: str | None = None
    """N:M keeps the N best of M consecutive inputs, such as 2:4; `None` keeps the best of all."""
    score: Literal["magnitude", "wanda"] = "magnitude"
    """The absolute weight, compared over a kernel; or that times the norm of its input, compared
    over each output. Source: Sun et al. 2023, Wanda, arXiv:2306.11695, section 3."""
    targets: tuple[str, ...] = ("*layers",)
    """Patterns of the kernels to prune; never routers."""

    def __post_init__(self) -> None:
        require(
            0 < self.share < 1, f"prune is {self.share}; it needs a share in (0, 1) (--prune 0.5)."
        )
        if self.pattern is not None:
            parse_pattern(self.pattern)


def prune_weights(
    config: ModelConfig, params: Params, how: Pruning, moments: Moments | None = None
) -> Params:
    """Returns the parameters with zeros.

    Args:
      moments: of the inputs, which `wanda` needs.

    Raises:
      ConfigError: no kernel matches the targets, a pattern does not divide the inputs, or the score
        needs calibration.
    """
    require(
        how.score == "magnitude" or moments is not None,
        "the score wanda needs text to calibrate with (--calibrate FILE).",
    )
    changed: dict[str, Any] = {}
    for path, leaf, role in kernels_of(params, model.roles(config), how.targets):
        own = moments[path] if how.score == "wanda" and moments is not None else None
        changed[path] = jnp.where(kept_weights(leaf, role, how, own), leaf, 0.0)
    require(
        bool(changed),
        f"no kernel matches {' '.join(how.targets)}; `gptjax inspect` lists the paths.",
    )
    return replace_weights(params, changed)


@functools.partial(jax.jit, static_argnums=(1, 2))
def kept_weights(
    weight: Float[Array, "..."],
    role: Role,
    how: Pruning,
    moments: Float[Array, "... I I"] | None = None,
) -> Bool[Array, "..."]:
    """Which weights of a kernel stay."""
    lead = math.prod(weight.shape[: role.stacked])
    inputs = num_inputs(weight, role)
    scores = jnp.abs(weight).reshape(lead, inputs, -1)
    if moments is not None:
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(moments, axis1=-2, axis2=-1), 0.0))
        scores = scores * norms.reshape(lead, inputs, 1)
    kept = keep_largest(scores, how.share, how.pattern, by_output=moments is not None)
    return kept.reshape(weight.shape)
