"""The loss of masked diffusion: cross-entropy of what is masked, by the number of all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from gptjax.core.arrays import Key, Params
from gptjax.data.layouts import Batch
from gptjax.data.tasks.diffusion import NOISED
from gptjax.losses.cross_entropy import CrossEntropy, CrossEntropyLoss, Prediction
from gptjax.losses.loss import Frozen, Loss, LossConfig, Metrics, Reduction, Sum, Weight
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class Diffusion(LossConfig):
    """−ln p of the masked tokens, each by the weight that its task gives it (1/t, or L/l), a token
    of the text: an upper bound of the nats a token.

    Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, equation 3; Sahoo et al. 2024, MDLM,
    arXiv:2406.07524, equation 11.
    """

    z: float = 0.0
    """Weight of the squared log-sum-exp of the logits."""
    vocab_parts: int = 1
    """Parts of the vocabulary whose logits are computed one after the other. More parts need less
    memory; the loss is the same up to rounding."""

    batches: ClassVar[str] = NOISED

    def __post_init__(self) -> None:
        self._terms()  # which checks them

    def _terms(self) -> CrossEntropy:
        return CrossEntropy(z=self.z, vocab_parts=self.vocab_parts)

    def build(self, config: ModelConfig, **models: ModelConfig) -> DiffusionLoss:
        """Returns the training loss of a model."""
        return DiffusionLoss(config, self._terms())


@dataclass(frozen=True)
class DiffusionLoss(CrossEntropyLoss):
    """The weighted sum of −ln p(target) over masked tokens, in nats; its normaliser is the number
    of all tokens that could have been masked, the column `tokens` of the batch.

    On held-out data the metric `interval` is half of a 95 % interval of the loss, in nats a token:
    1.96 standard errors over rows, of which each has its own masks. It covers the draw of the masks
    and how rows differ, so it is wider than the error of the estimate for this text.
    """

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        return super().metrics() if self.training else {"interval": _interval}

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """The same bound without the terms of training."""
        plain = CrossEntropy(vocab_parts=self.settings.vocab_parts)
        return DiffusionLoss(self.model, plain, training=False)

    def fit(
        self, params: Params, frozen: Frozen, batch: Batch, prediction: Prediction
    ) -> tuple[Sum, Metrics]:
        """Returns the loss of what is masked, and on held-out data the sums of the interval."""
        if self.training:
            return super().fit(params, frozen, batch, prediction)
        losses = self.nats(params, batch, prediction)
        rows = jnp.sum(jnp.where(batch.weights == 0, 0.0, losses * batch.weights), axis=1)
        tokens = _tokens(batch)
        return jnp.sum(rows), {
            "squares": jnp.sum(rows * rows),
            "products": jnp.sum(rows * tokens),
            "lengths": jnp.sum(tokens * tokens),
        }

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over what is masked; the weight is the number of all tokens."""
        total, _, sums = super().__call__(params, frozen, batch, key)
        return total, jnp.sum(_tokens(batch)), sums


def _tokens(batch: Batch) -> Any:
    """The number of tokens of each row that could have been masked [B].

    Raises:
      ValueError: the batch is of another task.
    """
    if batch.columns is None or "tokens" not in batch.columns:
        raise ValueError("a batch for Diffusion needs a column `tokens`; see data.tasks.diffusion.")
    return batch.columns["tokens"]


def _interval(sums: Mapping[str, Any], weight: Any) -> Any:
    """1.96 standard errors of the ratio of two sums over rows."""
    mean = sums["loss"] / weight
    squares = sums["squares"] - 2 * mean * sums["products"] + mean**2 * sums["lengths"]
    return 1.96 * max(0.0, squares) ** 0.5 / weight
