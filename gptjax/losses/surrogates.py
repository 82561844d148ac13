"""What policies are trained with, as functions of log-probabilities: arrays in, arrays out, no
mean, no model.

Every surrogate is a loss for each token, of which the gradient is that of the expected reward. Read
`clipped` (PPO, GRPO), then the others, the ratios of whole answers, and `kl`.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float

KLKind = Literal["k1", "k2", "k3"]
"""Names of the estimators of `kl`."""

_LARGEST = 60.0
"""Ratios stop at e^60: the infinity of a larger one times an advantage of 0 would be NaN."""


def ratios(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns p / p of the policy that wrote the answer, of its logarithm."""
    return jnp.exp(jnp.minimum(log_ratio, _LARGEST))


def clipped(
    log_ratio: Float[Array, "*shape"], advantages: Float[Array, "*shape"], low: float, high: float
) -> Float[Array, "*shape"]:
    """−min(r·A, clip(r, 1 − low, 1 + high)·A), for advantages of both signs: what a ratio beyond
    the bounds would gain is not counted, what it would lose is.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7; two bounds as in Yu et al. 2025,
    DAPO, arXiv:2503.14476, section 3.1.
    """
    ratio = ratios(log_ratio)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)


def is_clipped(
    log_ratio: Float[Array, "*shape"], advantages: Float[Array, "*shape"], low: float, high: float
) -> Bool[Array, "*shape"]:
    """Returns where `clipped` has no slope."""
    ratio = ratios(log_ratio)
    return ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))


def capped(
    logp: Float[Array, "*shape"],
    log_ratio: Float[Array, "*shape"],
    advantages: Float[Array, "*shape"],
    ceiling: float,
) -> Float[Array, "*shape"]:
    """CISPO: −min(r, ceiling)·A·ln p with a ratio that takes no gradient, so that every token keeps
    its slope.

    Source: MiniMax 2025, arXiv:2506.13585, section 3.1, without its lower bound.
    """
    return -jax.lax.stop_gradient(jnp.minimum(ratios(log_ratio), ceiling)) * advantages * logp


def of_answer(
    log_ratio: Float[Array, "B T"], counted: Float[Array, "B T"], joint: bool = False
) -> Float[Array, "B 1"]:
    """Returns the logarithm of one ratio for each answer, that of its counted tokens.

    Args:
      joint: of the whole answer's probability, as in RLOO; otherwise the mean of its tokens' (the
        geometric mean of their ratios). Source: Zheng et al. 2025, GSPO, arXiv:2507.18071,
        section 4.1.
    """
    total = jnp.sum(jnp.where(counted > 0, log_ratio, 0.0), axis=1, keepdims=True)
    return total if joint else total / jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1.0)


def kl(
    logp: Float[Array, "*shape"], reference: Float[Array, "*shape"], kind: KLKind = "k3"
) -> Float[Array, "*shape"]:
    """Estimates KL(policy ‖ reference) from tokens that the policy drew, in nats for each token.

    `k1` is the difference and may be negative, `k2` half its square, which is biased, and `k3` has
    neither fault.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    behind = reference - logp
    if kind == "k1":
        return -behind
    if kind == "k2":
        return jnp.square(behind) / 2
    return jnp.exp(jnp.minimum(behind, _LARGEST)) - behind - 1


def truncated(
    old: Float[Array, "B T"], drawn: Float[Array, "B T"], cap: float
) -> Float[Array, "B T"]:
    """Returns the weight of a token drawn from another distribution, at most `cap`; no gradient.

    Args:
      old: ln p of the policy that should have drawn it.
      drawn: ln p with which it was drawn.

    Source: Ionides 2008, Truncated Importance Sampling, doi:10.1198/106186008X320456.
    """
    return jax.lax.stop_gradient(jnp.minimum(ratios(old - drawn), cap))


def value_losses(
    values: Float[Array, "B T"],
    old: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    clip: float | None,
) -> Float[Array, "B T"]:
    """Returns half the squared error of each value; with `clip` the larger one of it and that of
    the value held to within `clip` of the old one.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 9; the clip is of their code.
    """
    error = jnp.square(values - returns)
    if clip is not None:
        held = jnp.clip(values, old - clip, old + clip)
        error = jnp.maximum(error, jnp.square(held - returns))
    return error / 2
