"""KTO: answers that were judged alone; good ones become more likely, bad ones less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.answers import Compared, Reference, answer_sums, pair_weights
from gptjax.losses.loss import Frozen, Loss, Metrics, Reduction, Sum, Weight, ratio
from gptjax.losses.pairwise import Pair, kto
from gptjax.model import ModelConfig

_BASELINE = "baseline"
"""Column that `foresee` adds: float32 [B], the same in all rows."""


@dataclass(frozen=True)
class KTO(Compared):
    """KTO, without dropout. It needs the task `Feedback`.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.
    """

    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    good: float = 1.0
    """Weight of good answers."""
    bad: float = 1.0
    """Weight of bad answers; the paper keeps weight × number of both kinds within 1 to 4/3."""
    reference: str = "start"
    """What answers are compared with: `start`, the model that the run starts from; `base`, the
    model without its adapters; or the path of another model."""
    cached: bool = False
    """Compute the reference's log-probabilities once, before the first step, and keep them beside
    the prepared data, so that it is not in memory; otherwise in each step."""
    vocab_parts: int = 1
    """Parts of the vocabulary whose logits are computed one after the other."""

    batches: ClassVar[str] = "judged answers"

    def __post_init__(self) -> None:
        for name in ("beta", "good", "bad"):
            value = getattr(self, name)
            require(value > 0, f"loss.{name} is {value}; it needs a positive number.")
        require(
            self.reference != "none",
            "loss.reference is none, and KTO compares with a reference; use start, base, or a model"
            " (--loss.reference).",
        )

    def build(self, config: ModelConfig, **models: ModelConfig) -> KTOLoss:
        """Returns the loss for a model; `frozen["reference"]` holds the reference's weights.

        Raises:
          ConfigError: `start` was not replaced by what the run starts from.
        """
        return KTOLoss(config, Reference.of(self.reference, config, models, self.cached), self)


@dataclass(frozen=True)
class KTOLoss(Loss):
    """The sum of KTO's loss over judged answers; its weight is their number.

    The baseline, how far the policy has moved from the reference, is the mean gain of mismatched
    answers over the whole batch, at least 0. It is computed before the batch is split.

    Metrics: `kl`, the baseline; `good_reward` and `bad_reward`, β times the mean gain of each.
    """

    model: ModelConfig
    reference: Reference
    settings: KTO

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        return {
            "kl": ratio(_BASELINE, "answers"),
            "good_reward": ratio("good_reward", "good"),
            "bad_reward": ratio("bad_reward", "bad"),
        }

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Adds the baseline, without gradient."""
        gain = self.gains(jax.lax.stop_gradient(params), frozen, batch).rejected
        real = pair_weights(batch)
        mean = jnp.sum(jnp.where(real > 0, gain, 0.0)) / jnp.maximum(real.sum(), 1)
        rows = jnp.full(batch.tokens.shape[:1], jnp.maximum(mean, 0.0))
        return batch._replace(columns={**(batch.columns or {}), _BASELINE: rows})

    def gains(self, params: Params, frozen: Frozen, batch: Batch) -> Pair:
        """Returns the gains of the answers and of the mismatched ones [B P]."""
        sums = answer_sums(self.model, params, batch, self.settings.vocab_parts).log_probs
        known = self.reference.sums(params, frozen, batch, self.settings.vocab_parts)
        return Pair(*(x - r for x, r in zip(sums, known, strict=True)))

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over answers. The key is not used: dropout would tell policy and reference apart."""
        if batch.columns is None or _BASELINE not in batch.columns:  # an evaluation
            batch = self.foresee(params, frozen, batch)
        columns = batch.columns or {}
        gain = self.gains(params, frozen, batch).chosen
        real, good = pair_weights(batch), jnp.asarray(columns["good"]) > 0
        baseline = jnp.asarray(columns[_BASELINE])[:, None]
        losses = kto(gain, good, baseline, self.settings.beta)
        losses = losses * jnp.where(good, self.settings.good, self.settings.bad)

        def total(values: Float[Array, "B P"]) -> Sum:
            return jnp.sum(jnp.where(real > 0, values, 0.0))

        reward = self.settings.beta * gain
        return (
            total(losses),
            real.sum(),
            {
                _BASELINE: total(jnp.broadcast_to(baseline, real.shape)),
                "answers": real.sum(),
                "good_reward": total(reward * good),
                "bad_reward": total(reward * ~good),
                "good": total(1.0 * good),
                "bad": total(1.0 * ~good),
            },
        )
