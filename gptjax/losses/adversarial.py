"""Adversarial training: another loss at perturbed token embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.cross_entropy import CrossEntropy
from gptjax.losses.distillation import Distillation
from gptjax.losses.loss import Frozen, Loss, LossConfig, Metrics, Reduction, Sum, Weight
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class FGM(LossConfig):
    """The mean of a loss at the token embeddings and one gradient step away from them.

    Source: Miyato et al. 2017, arXiv:1605.07725, section 3, without its normalised embeddings.
    """

    size: float = 1.0
    """Length of the step, over all embeddings of a row."""
    inner: CrossEntropy | Distillation | LossConfig = field(default_factory=CrossEntropy)
    """The loss that is perturbed."""

    def __post_init__(self) -> None:
        require(self.size > 0, f"loss.size is {self.size}; it needs a positive length.")

    @property
    def models(self) -> Mapping[str, str]:
        """Those of the inner loss."""
        return self.inner.models

    def build(self, config: ModelConfig, **models: ModelConfig) -> Loss:
        """Returns the loss for a model."""
        inner = self.inner.build(config, **models)
        return AdversarialLoss(inner, config.entrance_dim, 1, self.size, self.size, around=True)


@dataclass(frozen=True)
class FreeLB(LossConfig):
    """The mean of a loss over gradient ascent steps from a random perturbation of the embeddings.

    Source: Zhu et al. 2020, arXiv:1909.11764, algorithm 1.
    """

    steps: int = 3
    """Number of perturbations at which the loss is taken."""
    size: float = 0.1
    """Length of a step, over all embeddings of a row."""
    radius: float = 0.2
    """Maximum length of a row's perturbation; the first is drawn within it."""
    inner: CrossEntropy | Distillation | LossConfig = field(default_factory=CrossEntropy)
    """The loss that is perturbed."""

    def __post_init__(self) -> None:
        for name in ("steps", "size", "radius"):
            value = getattr(self, name)
            require(value > 0, f"loss.{name} is {value}; it needs a positive number.")

    @property
    def models(self) -> Mapping[str, str]:
        """Those of the inner loss."""
        return self.inner.models

    def build(self, config: ModelConfig, **models: ModelConfig) -> Loss:
        """Returns the loss for a model."""
        inner = self.inner.build(config, **models)
        return AdversarialLoss(inner, config.entrance_dim, self.steps, self.size, self.radius)


@dataclass(frozen=True)
class AdversarialLoss(Loss):
    """The mean of a loss over perturbations of each row's embedded tokens, each a step of length
    `size` along the gradient from the last.

    A row's perturbation depends on that row alone, so a batch can be split in any way. Each step
    costs one more gradient.
    """

    inner: Loss
    width: int
    """Of the embeddings."""
    steps: int
    size: float
    radius: float
    """Maximum length of a row's perturbation."""
    around: bool = False
    """Start at the embeddings and count the loss there too (FGM); otherwise start from a random
    perturbation (FreeLB), if there is a key."""

    def metrics(self) -> Mapping[str, Reduction]:
        """Those of the inner loss, as means over the perturbations."""
        return self.inner.metrics()

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """Evaluation is without perturbation."""
        return self.inner.held_out(figures)

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Leaves it to the inner loss."""
        return self.inner.foresee(params, frozen, batch)

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Returns means over all perturbations."""
        fixed = jax.lax.stop_gradient(params)

        def perturbed(params: Params, perturbation: Array) -> tuple[Sum, Weight, Metrics]:
            return self.inner(params, frozen, batch._replace(perturbation=perturbation), key)

        def total(perturbation: Array) -> Sum:
            return perturbed(fixed, perturbation)[0]

        shape = (*batch.tokens.shape, self.width)
        perturbation, parts = jnp.zeros(shape), []
        if self.around:
            parts.append(self.inner(params, frozen, batch, key))
        elif key is not None:
            draw = jax.random.uniform(jax.random.fold_in(key, _FOLD), shape, minval=-1.0)
            perturbation = self.radius * draw / math.sqrt(math.prod(shape[1:]))
        for i in range(self.steps):
            if self.around or i:
                step = self.size * _normalized(jax.grad(total)(perturbation))
                perturbation = _clipped(perturbation + step, self.radius)
            parts.append(perturbed(params, jax.lax.stop_gradient(perturbation)))
        return jax.tree.map(lambda *values: sum(values) / len(values), *parts)


_FOLD = 2**20
"""Folded into the key of perturbations, to separate them from those of layers."""


def _normalized(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Each row divided by its norm."""
    return x / jnp.maximum(jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True)), 1e-12)


def _clipped(x: Float[Array, "B T D"], radius: float) -> Float[Array, "B T D"]:
    """Each row scaled down to a norm of at most `radius`."""
    norm = jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True))
    return x * jnp.minimum(1.0, radius / jnp.maximum(norm, 1e-12))
