"""(params, batch, key) → (sum, weight, metrics). Sums, never means: micro-batches and devices with unequal weights then average rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.arrays import Array, Float, Key, Params
from gptjax.model import ModelConfig

Objective = Callable[[Params, Any, Key | None], tuple[Float[Array, ""], Float[Array, ""], dict[str, Array]]]


def cross_entropy(config: ModelConfig) -> Objective:
    """The weighted sum of −ln p(target), in nats, over all positions of a batch; the key turns dropout on.

    A weight of 0 is how a position is left out, whatever its target is. An unknown target that counts makes the sum NaN.
    """

    def objective(params: Params, batch: Any, key: Key | None) -> tuple[Array, Array, dict[str, Array]]:
        if batch.targets.shape != batch.tokens.shape or batch.weights.shape != batch.tokens.shape:
            shapes = f"tokens {batch.tokens.shape}, targets {batch.targets.shape}, weights {batch.weights.shape}"
            raise ValueError(f"a batch needs one shape [B T] for all: {shapes}.")
        out = model.forward(config, params, batch.tokens, positions=batch.positions, segments=batch.segments, key=key)
        losses = token_losses(model.unembed(config, params, out.hidden), batch.targets)
        return jnp.sum(jnp.where(batch.weights == 0, 0.0, losses * batch.weights)), jnp.sum(batch.weights), {}

    return objective


def token_losses(logits: Float[Array, "B T V"], targets: Array) -> Float[Array, "B T"]:
    """−ln softmax(logits)[target] of each position, in float32; NaN where the target is no class, which indexing would clamp or wrap."""
    known = (targets >= 0) & (targets < logits.shape[-1])
    chosen = jnp.take_along_axis(logits, jnp.where(known, targets, 0)[:, :, None], axis=-1)[:, :, 0]
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)
