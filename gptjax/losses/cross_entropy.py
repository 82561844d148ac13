"""Cross-entropy of a batch's targets, and the base of all losses of one forward pass.

Read `CrossEntropy` (the settings), `PredictionLoss` (one forward pass, then sums), and
`CrossEntropyLoss`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Key, Numbers, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.loss import (
    Frozen,
    Loss,
    LossConfig,
    Metrics,
    Reduction,
    Sum,
    Weight,
    per_weight,
    ratio,
)
from gptjax.losses.tokens import losses_in_parts, token_losses
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class CrossEntropy(LossConfig):
    """−ln p(target), with the extra terms of training. Evaluation uses plain cross-entropy."""

    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over the whole vocabulary. Source: Szegedy
    et al. 2016, arXiv:1512.00567, section 7."""
    z: float = 0.0
    """Weight of the squared log-sum-exp of the logits. Source: Chowdhery et al. 2022, PaLM,
    arXiv:2204.02311, section 5."""
    ahead: float = 1.0
    """Weight of each further token that a model with multi-token prediction (`model.ahead`)
    predicts."""
    vocab_parts: int = 1
    """Parts of the vocabulary whose logits are computed one after the other. More parts need less
    memory; the loss is the same up to rounding."""

    def __post_init__(self) -> None:
        require(
            0 <= self.label_smoothing < 1,
            f"loss.label_smoothing is {self.label_smoothing}; it needs a share in [0, 1).",
        )
        require(self.z >= 0, f"loss.z is {self.z}; it needs 0 or more.")
        require(
            self.vocab_parts >= 1, f"loss.vocab_parts is {self.vocab_parts}; it needs at least 1."
        )
        require(self.ahead >= 0, f"loss.ahead is {self.ahead}; it needs 0 or more.")

    def build(self, config: ModelConfig, **models: ModelConfig) -> CrossEntropyLoss:
        """Returns the training loss of a model."""
        return CrossEntropyLoss(config, self)


class Prediction(NamedTuple):
    """One forward pass over a batch."""

    output: model.Output
    logits: Float[Array, "B T V"] | None
    """`None` where the loss computes them in parts of the vocabulary."""


class PredictionLoss(Loss):
    """A loss of one forward pass: how well it fits the targets, plus weighted terms.

    A wrapper can change `fit` without a second pass.
    """

    def predict(self, params: Params, batch: Batch, key: Key | None) -> Prediction:
        """Runs the model."""
        raise NotImplementedError

    def fit(
        self, params: Params, frozen: Frozen, batch: Batch, prediction: Prediction
    ) -> tuple[Sum, Metrics]:
        """Returns the summed loss of the targets, and further sums."""
        raise NotImplementedError

    def extra(
        self, params: Params, batch: Batch, prediction: Prediction, key: Key | None
    ) -> tuple[list[tuple[float, Sum]], Metrics]:
        """Returns further terms of the loss as (weight, sum), and further sums."""
        return [], {}

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over all positions. A position of weight 0 is left out, whatever its target is; an
        unknown target that counts makes the sum NaN.

        Raises:
          ValueError: tokens, targets and weights have different shapes.
        """
        if batch.targets.shape != batch.tokens.shape or batch.weights.shape != batch.tokens.shape:
            shapes = (
                f"tokens {batch.tokens.shape}, targets {batch.targets.shape}, weights"
                f" {batch.weights.shape}"
            )
            raise ValueError(f"a batch needs one shape [B T] for all: {shapes}.")
        prediction = self.predict(params, batch, key)
        total, sums = self.fit(params, frozen, batch, prediction)
        weight = jnp.sum(batch.weights)
        terms, more = self.extra(params, batch, prediction, key)
        for factor, term in terms:
            total = total + factor * term
        return total, weight, {**sums, **more}


@dataclass(frozen=True)
class CrossEntropyLoss(PredictionLoss):
    """The weighted sum of −ln p(target), in nats.

    Metrics: `ahead_loss`, of all further tokens, per token; of models with experts `balance_loss`
    (1 is perfect) and `router_z_loss` of the mean layer, `expert_load_max` and `expert_load_min`,
    the load of the busiest and the idlest expert of any layer relative to a fair share, and
    `dropped_share` of all expert choices. On held-out data `accuracy`, the share of targets that
    are the most likely token, and `exact_match`, the share of segments all of whose targets are.
    """

    model: ModelConfig
    settings: CrossEntropy = CrossEntropy()
    training: bool = True
    """Add the terms of training: experts' balance and further tokens."""
    figures: tuple[str, ...] = ()
    """Held-out figures that need the most likely tokens."""

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        reductions: dict[str, Reduction] = {
            name: reduction for name, reduction in _FIGURES.items() if name in self.figures
        }
        if self.training and self.model.ahead:
            reductions["ahead_loss"] = per_weight("ahead")
        if self.training and self.model.experts is not None:
            reductions |= _EXPERTS
        return reductions

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """Plain cross-entropy."""
        known = tuple(name for name in figures if name in _FIGURES)
        plain = CrossEntropy(vocab_parts=self.settings.vocab_parts)
        return CrossEntropyLoss(self.model, plain, training=False, figures=known)

    @property
    def _in_parts(self) -> bool:
        return self.settings.vocab_parts > 1 and not self.figures and not self.model.classes

    def predict(self, params: Params, batch: Batch, key: Key | None) -> Prediction:
        """Runs the model; logits of the whole vocabulary only where they are needed."""
        output = forward_batch(self.model, params, batch, key)
        whole = None if self._in_parts else predictions(self.model, params, batch, output)
        return Prediction(output, whole)

    def fit(
        self, params: Params, frozen: Frozen, batch: Batch, prediction: Prediction
    ) -> tuple[Sum, Metrics]:
        """Returns the loss of the targets, and the sums that `figures` need."""
        total = weighted_sum(self.nats(params, batch, prediction), batch)
        logits = prediction.logits if self.figures else None
        return total, {} if logits is None else _correct(logits, batch)

    def nats(self, params: Params, batch: Batch, prediction: Prediction) -> Float[Array, "B T"]:
        """Returns the loss of each target, with its terms of training."""
        terms = batch.targets, self.settings.label_smoothing, self.settings.z
        if prediction.logits is None:
            return self._losses(params)(prediction.output.hidden, *terms)
        return token_losses(prediction.logits, *terms)

    def extra(
        self, params: Params, batch: Batch, prediction: Prediction, key: Key | None
    ) -> tuple[list[tuple[float, Sum]], Metrics]:
        """Returns the terms of further tokens and of experts' balance."""
        terms: list[tuple[float, Sum]] = []
        sums: Metrics = {}
        if self.training and self.model.ahead:
            sums["ahead"] = self._ahead(params, batch, prediction.output, key)
            terms.append((self.settings.ahead, sums["ahead"]))
        aux = prediction.output.aux
        if self.training and aux:
            for name in ("balance", "router_z"):
                sums[name] = jnp.sum(aux[name] * batch.weights[None])
                terms.append((getattr(self.model.experts, name), sums[name]))
            sums |= {name: aux[name] for name in ("load", "dropped")}
        return terms, sums

    def _losses(self, params: Params) -> Callable:
        return functools.partial(losses_in_parts, self.model, params, self.settings.vocab_parts)

    def _ahead(self, params: Params, batch: Batch, output: model.Output, key: Key | None) -> Sum:
        """Returns the summed loss of the tokens after the target, without smoothing."""
        own = None if key is None else jax.random.fold_in(key, self.model.num_layers + 2)
        where = (batch.positions, batch.segments, batch.prefix)
        states = model.look_ahead(
            self.model, params, output.hidden, *where, own, following=batch.targets
        )
        further = zip(further_targets(batch, self.model.ahead), states, strict=True)
        losses = self._losses(params)
        sums = [_weighted(losses(hidden, to), weights) for (to, weights), hidden in further]
        return sum(sums[1:], sums[0])


def weighted_sum(losses: Float[Array, "B T"], batch: Batch) -> Sum:
    """Returns the weighted sum; what has weight 0 is left out even if it is NaN."""
    return _weighted(losses, batch.weights)


def _weighted(losses: Float[Array, "B T"], weights: Float[Numbers, "B T"]) -> Sum:
    return jnp.sum(jnp.where(weights == 0, 0.0, losses * weights))


# --- the forward pass of a batch


def predict(
    config: ModelConfig, params: Params, batch: Batch, key: Key | None
) -> tuple[Float[Array, "B T V"], model.Output]:
    """Returns the logits of every position of a batch, and the output of `forward`."""
    output = forward_batch(config, params, batch, key)
    return predictions(config, params, batch, output), output


def forward_batch(
    config: ModelConfig, params: Params, batch: Batch, key: Key | None
) -> model.Output:
    """Runs `forward` on a batch, with its encoder if it has one."""
    own = None if key is None else jax.random.fold_in(key, config.num_layers + 1)
    return model.forward(
        config,
        params,
        batch.tokens,
        positions=batch.positions,
        segments=batch.segments,
        memory=model.encode(config, params, batch.side, key=own),
        soft=config.vision and model.look(config, params, batch.columns),
        perturbation=batch.perturbation,
        prefix=batch.prefix,
        key=key,
    )


def predictions(
    config: ModelConfig, params: Params, batch: Batch, output: model.Output
) -> Float[Array, "B T V"]:
    """Returns the logits of every position: of classes for a classifier, else of tokens."""
    if config.classes:
        return model.class_logits(config, params, output.hidden, batch.positions, batch.segments)
    return model.unembed(config, params, output.hidden)


# --- metrics


def _correct(logits: Float[Array, "B T V"], batch: Batch) -> Metrics:
    """Returns the weight of positions whose most likely token is the target (`correct`), the number
    of segments all of whose targets are (`exact`), and of all segments (`pieces`)."""
    right = jnp.argmax(logits, axis=-1) == batch.targets
    counts = batch.weights > 0
    segment = jnp.zeros_like(batch.targets) if batch.segments is None else batch.segments

    def any_in_segment(flags: Numbers, segment: Numbers) -> Array:
        return jax.ops.segment_max(flags.astype(jnp.int32), segment, segment.shape[0] + 1)

    present = jax.vmap(any_in_segment)(counts, segment) > 0
    wrong = jax.vmap(any_in_segment)(counts & ~right, segment) > 0
    return {
        "correct": jnp.sum(batch.weights * right),
        "exact": jnp.sum(present & ~wrong),
        "pieces": jnp.sum(present),
    }


def further_targets(
    batch: Batch, ahead: int
) -> list[tuple[Int[Array, "B T"], Float[Array, "B T"]]]:
    """Returns targets and weights of the token after the target, the one after that, and so on; the
    weight is 0 beyond the end of a segment."""

    def shifted(x: Numbers, by: int) -> Array:
        return jnp.pad(x[:, by:], ((0, 0), (0, min(by, x.shape[1]))))

    shifts = []
    for by in range(1, ahead + 1):
        weights = shifted(batch.weights, by)
        if batch.segments is not None:
            weights = weights * (shifted(batch.segments, by) == batch.segments)
        if batch.positions is not None:
            same_text = shifted(batch.positions, by) == batch.positions + by
            weights = weights * same_text * (batch.positions >= 0)
        shifts.append((shifted(batch.targets, by), weights))
    return shifts


def _of_mean_layer(name: str) -> Reduction:
    def reduce(sums: Mapping[str, Any], weight: Any) -> Any:
        return sums[name] / (weight * sums["load"].shape[0])

    return reduce


def _fair_load(sums: Mapping[str, Any]) -> Any:
    """Each expert's load relative to the mean of its layer [L E]."""
    return sums["load"] / jnp.maximum(sums["load"].mean(-1, keepdims=True), 1e-6)


_FIGURES: dict[str, Reduction] = {
    "accuracy": per_weight("correct"),
    "exact_match": ratio("exact", "pieces"),
}

_EXPERTS: dict[str, Reduction] = {
    "balance_loss": _of_mean_layer("balance"),
    "router_z_loss": _of_mean_layer("router_z"),
    "expert_load_max": lambda sums, weight: _fair_load(sums).max(),
    "expert_load_min": lambda sums, weight: _fair_load(sums).min(),
    "dropped_share": lambda sums, weight: (
        sums["dropped"].sum() / jnp.maximum(sums["load"].sum(), 1e-6)
    ),
}
