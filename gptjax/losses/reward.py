"""Reward models: of two answers to a prompt the preferred one gets the higher score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Key, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.answers import by_pair, pair_weights
from gptjax.losses.cross_entropy import forward_batch
from gptjax.losses.loss import Frozen, Loss, LossConfig, Metrics, Reduction, Sum, Weight, per_weight
from gptjax.losses.pairwise import Pair, bradley_terry
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class BradleyTerry(LossConfig):
    """−ln σ of the lead in score. It needs the task `Preferences` with `score`.

    Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1.
    """

    margin: float = 0.0
    """Score by which the preferred answer should lead."""
    centre: float = 0.0
    """Weight of the squared sum of both scores, which keeps them around 0."""

    batches: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        require(self.centre >= 0, f"loss.centre is {self.centre}; it needs 0 or more.")

    def build(self, config: ModelConfig, **models: ModelConfig) -> BradleyTerryLoss:
        """Returns the loss for a model.

        Raises:
          ConfigError: the model gives no score.
        """
        require(
            config.classes == 1,
            "loss BradleyTerry trains scores, and the model gives none; set data.task.score"
            " (--data.task.score).",
        )
        return BradleyTerryLoss(config, self)


@dataclass(frozen=True)
class BradleyTerryLoss(Loss):
    """The sum over pairs; its weight is their number.

    Metrics: `preference_accuracy`, the share of pairs whose preferred answer has the higher score
    (a tie counts half); `score_margin`, the mean lead; `chosen_score` and `rejected_score`.
    """

    model: ModelConfig
    settings: BradleyTerry

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        names = ("preference_accuracy", "score_margin", "chosen_score", "rejected_score")
        return {name: per_weight(name) for name in names}

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over pairs."""
        real = pair_weights(batch) > 0
        score = pair_scores(self.model, params, batch, key)
        losses = bradley_terry(score, self.settings.margin, self.settings.centre)
        lead = score.difference
        sums = {
            "preference_accuracy": (lead > 0) + 0.5 * (lead == 0),
            "score_margin": lead,
            "chosen_score": score.chosen,
            "rejected_score": score.rejected,
        }
        sums = {name: jnp.sum(jnp.where(real, x, 0.0)) for name, x in sums.items()}
        return jnp.sum(jnp.where(real, losses, 0.0)), real.sum(dtype=jnp.float32), sums


def pair_scores(config: ModelConfig, params: Params, batch: Batch, key: Key | None) -> Pair:
    """Returns the scores of both texts of each pair [B P], read at their last token."""
    hidden = forward_batch(config, params, batch, key).hidden
    scores = model.class_logits(config, params, hidden, batch.positions, batch.segments)[..., 0]
    segments = jnp.asarray(batch.segments)
    last = segments != jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
    return by_pair(batch, jnp.where(last, scores, 0.0))
