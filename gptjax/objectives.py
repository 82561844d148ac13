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


def cross_entropy(config: ModelConfig, *, auxiliary: bool = True) -> Objective:
    """The weighted sum of −ln p(target), in nats, over all positions of a batch; the key turns dropout on.

    A weight of 0 is how a position is left out, whatever its target is. An unknown target that counts makes the sum NaN.

    Args:
      auxiliary: add the losses with which layers of experts keep themselves balanced.
    """

    def objective(params: Params, batch: Any, key: Key | None) -> tuple[Array, Array, dict[str, Array]]:
        if batch.targets.shape != batch.tokens.shape or batch.weights.shape != batch.tokens.shape:
            shapes = f"tokens {batch.tokens.shape}, targets {batch.targets.shape}, weights {batch.weights.shape}"
            raise ValueError(f"a batch needs one shape [B T] for all: {shapes}.")
        out = model.forward(config, params, batch.tokens, positions=batch.positions, segments=batch.segments, key=key)
        losses = token_losses(model.unembed(config, params, out.hidden), batch.targets)
        total, weight = jnp.sum(jnp.where(batch.weights == 0, 0.0, losses * batch.weights)), jnp.sum(batch.weights)
        if not (auxiliary and out.aux):
            return total, weight, {}
        sums = {name: jnp.sum(out.aux[name] * batch.weights[None]) for name in ("balance", "router_z")}
        total = total + config.experts.balance * sums["balance"] + config.experts.router_z * sums["router_z"]
        return total, weight, sums | {name: out.aux[name] for name in ("load", "dropped")}

    return objective


def summary(sums: dict[str, Array], weight: Float[Array, ""]) -> dict[str, Array]:
    """What an objective's metrics, summed over all parts of a batch, mean: one number each, over all layers of experts.

    Returns:
      `balance_loss` (1 is perfect) and `router_z_loss` of the mean layer; `expert_load_max` and `_min`, the load of the busiest and
      the idlest expert of any layer relative to a fair share; `dropped_share` of all choices. Nothing without experts.
    """
    if not sums:
        return {}
    load, layers = sums["load"], sums["load"].shape[0]
    fair = load / jnp.maximum(load.mean(-1, keepdims=True), 1e-6)
    means = {f"{name}_loss": sums[name] / jnp.maximum(weight * layers, 1e-6) for name in ("balance", "router_z")}
    dropped = sums["dropped"].sum() / jnp.maximum(load.sum(), 1e-6)
    return means | {"expert_load_max": fair.max(), "expert_load_min": fair.min(), "dropped_share": dropped}


def token_losses(logits: Float[Array, "B T V"], targets: Array) -> Float[Array, "B T"]:
    """−ln softmax(logits)[target] of each position, in float32; NaN where the target is no class, which indexing would clamp or wrap."""
    known = (targets >= 0) & (targets < logits.shape[-1])
    chosen = jnp.take_along_axis(logits, jnp.where(known, targets, 0)[:, :, None], axis=-1)[:, :, 0]
    return jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.nan)
