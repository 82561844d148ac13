"""Distillation: learning from the predictions of another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import jax

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import formerly, require
from gptjax.data.layouts import Batch
from gptjax.losses.cross_entropy import (
    CrossEntropy,
    Prediction,
    PredictionLoss,
    predict,
    weighted_sum,
)
from gptjax.losses.loss import Frozen, Loss, LossConfig, Metrics, Reduction, Sum, per_weight
from gptjax.losses.pairwise import generalised_jsd
from gptjax.model import ModelConfig


@formerly(added=("mixture",))
@dataclass(frozen=True)
class Distillation(LossConfig):
    """Divergence from a teacher with the same tokenizer, mixed with another loss.

    Sources: Hinton et al. 2015, arXiv:1503.02531, section 2: KL(teacher ‖ student) of softened
    predictions, times the temperature squared; Agarwal et al. 2023, GKD, arXiv:2306.13649,
    equation 1: the generalised Jensen-Shannon divergence.
    """

    run: str
    """The teacher's run directory; its newest checkpoint is used."""
    temperature: float = 2.0
    """Both models' logits are divided by it."""
    share: float = 0.5
    """Weight of the divergence; the inner loss of the targets has the rest."""
    mixture: float = 0.0
    """Which divergence: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher); between them both
    are compared with a mixture that has this share of the teacher (GKD)."""
    inner: CrossEntropy | LossConfig = field(default_factory=CrossEntropy)
    """The loss of the targets."""

    def __post_init__(self) -> None:
        require(
            self.temperature > 0,
            f"loss.temperature is {self.temperature}; it needs a positive number.",
        )
        require(0 < self.share <= 1, f"loss.share is {self.share}; it needs a share in (0, 1].")
        require(
            0 <= self.mixture <= 1,
            f"loss.mixture is {self.mixture}; it needs a share in [0, 1].",
        )
        parts = getattr(self.inner, "vocab_parts", 1)
        require(
            parts == 1,
            f"loss.inner.vocab_parts is {parts}, and distillation needs the logits of the whole"
            " vocabulary at once; use 1.",
        )

    @property
    def models(self) -> Mapping[str, str]:
        """The teacher."""
        return {"teacher": self.run}

    def build(self, config: ModelConfig, *, teacher: ModelConfig, **models: ModelConfig) -> Loss:
        """Returns the loss; `frozen["teacher"]` holds the teacher's weights."""
        inner = cast(PredictionLoss, self.inner.build(config))  # of any class, from outside too
        return DistillationLoss(inner, teacher, self)


@dataclass(frozen=True)
class DistillationLoss(PredictionLoss):
    """See `Distillation`. Metric: `teacher_loss`, the divergence per token."""

    inner: PredictionLoss
    teacher: ModelConfig
    settings: Distillation

    def metrics(self) -> Mapping[str, Reduction]:
        """Adds the divergence to the inner loss's."""
        return {"teacher_loss": per_weight("teacher"), **self.inner.metrics()}

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """Evaluation ignores the teacher."""
        return self.inner.held_out(figures)

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Leaves it to the inner loss."""
        return self.inner.foresee(params, frozen, batch)

    def predict(self, params: Params, batch: Batch, key: Key | None) -> Prediction:
        """Runs the student once, for both losses."""
        return self.inner.predict(params, batch, key)

    def fit(
        self, params: Params, frozen: Frozen, batch: Batch, prediction: Prediction
    ) -> tuple[Sum, Metrics]:
        """Mixes the inner loss of the targets with the divergence.

        Raises:
          ValueError: the inner loss computes logits in parts.
        """
        if prediction.logits is None:
            raise ValueError("distillation needs the logits of the whole vocabulary at once.")
        total, sums = self.inner.fit(params, frozen, batch, prediction)
        teacher = weighted_sum(self._divergence(frozen["teacher"], batch, prediction.logits), batch)
        share = self.settings.share
        return (1 - share) * total + share * teacher, {**sums, "teacher": teacher}

    def extra(
        self, params: Params, batch: Batch, prediction: Prediction, key: Key | None
    ) -> tuple[list[tuple[float, Sum]], Metrics]:
        """Keeps the inner loss's."""
        return self.inner.extra(params, batch, prediction, key)

    def _divergence(
        self, params: Params, batch: Batch, logits: Float[Array, "B T V"]
    ) -> Float[Array, "B T"]:
        """The divergence at the temperature, times its square. The teacher reads the tokens without
        perturbation."""
        temperature = self.settings.temperature
        unperturbed = batch._replace(perturbation=None)
        target = predict(self.teacher, jax.lax.stop_gradient(params), unperturbed, None)[0]
        target = jax.nn.log_softmax(target / temperature)
        student = jax.nn.log_softmax(logits / temperature)
        return temperature**2 * generalised_jsd(student, target, self.settings.mixture)
