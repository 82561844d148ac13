"""(params, batch, key) → (sum, weight, metrics). Sums, never means: micro-batches and devices with unequal weights then average rightly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.arrays import Array, Float, Key, Params
from gptjax.config import require
from gptjax.model import ModelConfig

Objective = Callable[[Params, Any, Key | None], tuple[Float[Array, ""], Float[Array, ""], dict[str, Array]]]


@dataclass(frozen=True)
class FGM:
    """Half of the loss is at embedded tokens that are moved a step up its slope.

    Source: Miyato et al. 2017, arXiv:1605.07725, section 3, without its normalised embeddings.
    """

    size: float = 1.0
    """Length of a row's step, over all of its embedded tokens."""

    def __post_init__(self) -> None:
        require(self.size > 0, f"loss.adversarial.size is {self.size}; it needs a positive length.")


@dataclass(frozen=True)
class FreeLB:
    """The loss is the mean over steps up its slope, from a random place near the embedded tokens. Source: Zhu et al. 2020, arXiv:1909.11764, algorithm 1."""

    steps: int = 3
    """Places at which the loss is taken."""
    size: float = 0.1
    """Length of a row's step."""
    radius: float = 0.2
    """No place is farther from the embedded tokens of a row; the first is up to so far."""

    def __post_init__(self) -> None:
        for name in ("steps", "size", "radius"):
            require(getattr(self, name) > 0, f"loss.adversarial.{name} is {getattr(self, name)}; it needs a positive number.")


@dataclass(frozen=True)
class Loss:
    """What training makes small besides −ln p(target). Evaluation is without it."""

    label_smoothing: float = 0.0
    """Share of a target that all tokens have in equal parts. Source: Szegedy et al. 2016, arXiv:1512.00567, section 7."""
    z: float = 0.0
    """Weight of the squared log-sum-exp of the logits. Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 5."""
    adversarial: FGM | FreeLB | None = None
    """Nudges of the embedded tokens that make the loss larger."""

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, f"loss.label_smoothing is {self.label_smoothing}; it needs a share in [0, 1).")
        require(self.z >= 0, f"loss.z is {self.z}; it needs 0 or more.")


def training(config: ModelConfig, loss: Loss) -> Objective:
    """What a run with these settings makes small."""
    plain = cross_entropy(config, loss)
    match loss.adversarial:
        case FGM(size):
            return adversarial(plain, steps=1, size=size, radius=size, around=True)
        case FreeLB(steps, size, radius):
            return adversarial(plain, steps=steps, size=size, radius=radius)
    return plain


def cross_entropy(config: ModelConfig, loss: Loss = Loss(), *, auxiliary: bool = True) -> Objective:  # noqa: B008 it is frozen
    """The weighted sum of −ln p(target), in nats, over all positions of a batch; the key turns dropout on.

    A weight of 0 is how a position is left out, whatever its target is. An unknown target that counts makes the sum NaN.

    Args:
      loss: smoothing and z are of this function, adversarial training is `adversarial`'s.
      auxiliary: add the losses with which layers of experts keep themselves balanced.
    """

    def objective(params: Params, batch: Any, key: Key | None) -> tuple[Array, Array, dict[str, Array]]:
        if batch.targets.shape != batch.tokens.shape or batch.weights.shape != batch.tokens.shape:
            shapes = f"tokens {batch.tokens.shape}, targets {batch.targets.shape}, weights {batch.weights.shape}"
            raise ValueError(f"a batch needs one shape [B T] for all: {shapes}.")
        memory = model.encode(config, params, batch.side, key=None if key is None else jax.random.fold_in(key, config.num_layers + 1))
        out = model.forward(config, params, batch.tokens, positions=batch.positions, segments=batch.segments, memory=memory, nudge=batch.nudge, key=key)
        losses = token_losses(model.unembed(config, params, out.hidden), batch.targets, loss.label_smoothing, loss.z)
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


def token_losses(logits: Float[Array, "B T V"], targets: Array, smoothing: float = 0.0, z: float = 0.0) -> Float[Array, "B T"]:
    """−ln softmax(logits)[target] of each position, in float32; NaN where the target is no class, which indexing would clamp or wrap.

    Args:
      smoothing: share of the target that all tokens have in equal parts.
      z: weight of the squared log-sum-exp.
    """
    known, total = (targets >= 0) & (targets < logits.shape[-1]), jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, jnp.where(known, targets, 0)[:, :, None], axis=-1)[:, :, 0]
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * logits.mean(-1)
    losses = jnp.where(known, total - chosen, jnp.nan)
    return losses + z * jnp.square(total) if z else losses


# --- adversarial training ----------------------------------------------------------------------------------------


def adversarial(objective: Objective, *, steps: int, size: float, radius: float, around: bool = False) -> Objective:
    """The objective's mean over `steps` nudges of each row's embedded tokens, each a step of length `size` up the slope from the last.

    A row is nudged by its own slope, so that a batch can be read in any parts. Each nudge costs a gradient more.

    Args:
      radius: no nudge of a row is longer.
      around: the first nudge is from nowhere and where it began counts too (FGM); otherwise from a random place (FreeLB), with a key.
    """

    def nudged(params: Params, batch: Any, key: Key | None) -> tuple[Array, Array, dict[str, Array]]:
        shape, fixed = (*batch.tokens.shape, params["embedding"]["embedding"].shape[1]), jax.lax.stop_gradient(params)
        slope = jax.grad(lambda nudge: objective(fixed, batch._replace(nudge=nudge), key)[0])
        nudge, found = jnp.zeros(shape), []
        if around:
            found.append(objective(params, batch, key))
        elif key is not None:
            draw = jax.random.uniform(jax.random.fold_in(key, _NUDGES), shape, minval=-1.0)
            nudge = radius * draw / math.sqrt(math.prod(shape[1:]))
        for i in range(steps):
            if around or i:
                nudge = _within(nudge + size * _unit(slope(nudge)), radius)
            found.append(objective(params, batch._replace(nudge=jax.lax.stop_gradient(nudge)), key))
        return jax.tree.map(lambda *parts: sum(parts) / len(parts), *found)

    return nudged


_NUDGES = 2**20
"""Sets the randomness of nudges apart from that of layers."""


def _unit(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Each row divided by its length."""
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True)), 1e-12)


def _within(x: Float[Array, "B T D"], radius: float) -> Float[Array, "B T D"]:
    """Each row shortened to at most `radius`."""
    length = jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True))
    return x * jnp.minimum(1.0, radius / jnp.maximum(length, 1e-12))
