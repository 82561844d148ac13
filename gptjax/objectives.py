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
    """The weighted sum of −ln p(target), in nats, over all positions of a batch; the key turns dropout on."""

    def objective(params: Params, batch: Any, key: Key | None) -> tuple[Array, Array, dict[str, Array]]:
        if batch.targets.shape != batch.tokens.shape or batch.weights.shape != batch.tokens.shape:
            shapes = f"tokens {batch.tokens.shape}, targets {batch.targets.shape}, weights {batch.weights.shape}"
            raise ValueError(f"a batch needs one shape [B T] for all: {shapes}.")
        out = model.forward(config, params, batch.tokens, positions=batch.positions, segments=batch.segments, key=key)
        losses = token_losses(model.unembed(config, params, out.hidden), batch.targets)
        return jnp.sum(losses * batch.weights), jnp.sum(batch.weights), {}

    return objective


def token_losses(logits: Float[Array, "B T V"], targets: Array) -> Float[Array, "B T"]:
    """−ln softmax(logits)[target] of each position, in float32."""
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
