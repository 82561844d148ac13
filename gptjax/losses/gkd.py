"""On-policy distillation: a teacher's predictions for the answers that the student wrote itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.cross_entropy import forward_batch
from gptjax.losses.loss import Frozen, Loss, Metrics, Reduction, Sum, Weight, ratio
from gptjax.losses.own_answers import OwnAnswers, sum_lengths
from gptjax.losses.pairwise import generalised_jsd
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class GKD(OwnAnswers):
    """Divergence from a teacher on answers that the model wrote itself, without dropout. It needs
    the task `Prompts`, and `rollout`, whose rewards only measure.

    No gradient flows through the drawing. `Distillation` learns from given texts instead.

    Source: Agarwal et al. 2023, GKD, arXiv:2306.13649, algorithm 1 with λ = 1.
    """

    run: str
    """The teacher: a run, or another model, with the same tokenizer."""
    share: float = 0.5
    """β, the teacher's share of the mixture that both are compared with: 0 is KL(teacher ‖
    student), 1 is KL(student ‖ teacher)."""
    temperature: float = 1.0
    """What logits of both are divided by, and those of the sampler."""

    def __post_init__(self) -> None:
        require(
            0 <= self.share <= 1,
            f"loss.share is {self.share}; it needs a share in [0, 1] (--loss.share 0.5).",
        )
        require(
            self.temperature > 0,
            f"loss.temperature is {self.temperature}; it needs more than 0 (--loss.temperature 1).",
        )

    @property
    def models(self) -> Mapping[str, str]:
        """The teacher."""
        return {"teacher": self.run}

    def build(self, config: ModelConfig, *, teacher: ModelConfig, **models: ModelConfig) -> Loss:
        """Returns the loss; `frozen["teacher"]` holds the teacher's weights."""
        return GKDLoss(config, teacher, self)


@dataclass(frozen=True)
class GKDLoss(Loss):
    """The divergence of each counted token, summed, in nats; the weight is their number.

    Metrics: `unfinished`, share of all answers; `answer_length` of counted ones, in tokens.
    """

    model: ModelConfig
    teacher: ModelConfig
    settings: GKD

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        return {
            "unfinished": ratio("unfinished", "answers"),
            "answer_length": ratio("tokens", "counted"),
        }

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over tokens. The key is not used: answers were written without dropout."""
        student = self._log_probs(self.model, params, batch)
        others = jax.lax.stop_gradient(frozen["teacher"])
        teacher = self._log_probs(self.teacher, others, batch)
        counted = jnp.asarray(batch.weights) > 0
        losses = generalised_jsd(student, teacher, self.settings.share)
        sums = sum_lengths(batch)
        return jnp.sum(jnp.where(counted, losses, 0.0)), sums["tokens"], sums

    def _log_probs(
        self, config: ModelConfig, params: Params, batch: Batch
    ) -> Float[Array, "B T V"]:
        hidden = forward_batch(config, params, batch, None).hidden
        return jax.nn.log_softmax(model.unembed(config, params, hidden) / self.settings.temperature)
