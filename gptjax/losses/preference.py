"""Preferences: of two answers to a prompt the chosen one becomes more likely.

Every normaliser is a column of the batch, so that any split of it gives the same loss. Read
`Preference` (the settings), then `PreferenceLoss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.core.config import ConfigError, require
from gptjax.data.layouts import Batch
from gptjax.losses.answers import (
    NONE,
    START,
    Compared,
    Reference,
    answer_sums,
    by_pair,
    pair_weights,
)
from gptjax.losses.loss import (
    Frozen,
    Loss,
    Metrics,
    Reduction,
    Sum,
    Weight,
    per_weight,
    ratio,
)
from gptjax.losses.pairwise import PAIR_LOSSES, Pair, PairSettings
from gptjax.model import ModelConfig

PairKind = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "exo",
    "nca",
    "bco",
    "sppo",
    "apo_zero",
    "apo_down",
    "sigmoid_norm",
    "discopop",
    "orpo",
]
"""Names of `PAIR_LOSSES`."""

_NLL = "nll_scale"
"""Column that `foresee` adds: float32 [B], pairs of the whole batch over its chosen tokens."""


@dataclass(frozen=True)
class Preference(Compared):
    """A loss of pairs of answers (DPO and its relatives), without dropout. It needs the task
    `Preferences`.

    DPO is `sigmoid`, cDPO that with `smoothing`. Without a reference (`none`) `sigmoid_norm` with
    `gamma` is SimPO, and `sigmoid` with `nll` 1 is CPO; ORPO is `orpo` with `nll` 1.
    """

    loss: PairKind = "sigmoid"
    """Which function of the log-probabilities; see `losses.pairwise`."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    smoothing: float = 0.0
    """Probability that a label is wrong; for `exo` it has to be positive."""
    gamma: float = 0.0
    """Reward by which the chosen answer should lead, for `sigmoid_norm`."""
    nll: float = 0.0
    """Weight of the chosen answers' negative log-likelihood per token, which is added."""
    nll_prompts: bool = False
    """Count the tokens of their prompts in it too, as TRL's ORPO does."""
    reference: str = START
    """What answers are compared with: `start`, the model that the run starts from; `base`, the
    model without its adapters; the path of another model; or `none`."""
    cached: bool = False
    """Compute the reference's log-probabilities once, before the first step, and keep them beside
    the prepared data, so that it is not in memory; otherwise in each step."""
    vocab_parts: int = 1
    """Parts of the vocabulary whose logits are computed one after the other."""

    batches: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        require(self.beta > 0, f"loss.beta is {self.beta}; it needs a positive number.")
        require(
            0 <= self.smoothing < 0.5,
            f"loss.smoothing is {self.smoothing}; it needs a probability in [0, 0.5).",
        )
        require(self.nll >= 0, f"loss.nll is {self.nll}; it needs 0 or more.")
        require(
            self.nll > 0 or not self.nll_prompts,
            "loss.nll_prompts counts tokens of a term that loss.nll leaves out; set loss.nll, such"
            " as 1 (--loss.nll 1).",
        )
        require(
            self.loss != "exo" or self.smoothing > 0,
            "loss.loss exo needs labels that may be wrong; set loss.smoothing, such as 1e-3.",
        )
        require(
            self.loss == "sigmoid_norm" or not self.gamma,
            f"loss.gamma is {self.gamma}, which loss.loss {self.loss} does not use; set it to 0 or"
            " choose sigmoid_norm.",
        )
        if self.loss == "orpo" and self.reference != NONE:
            raise ConfigError(
                f"loss.loss orpo compares with no reference, and loss.reference is"
                f" {self.reference!r}; set it to none (--loss.reference none)."
            )
        require(
            not (self.cached and self.reference == NONE),
            "loss.cached is set, and loss.reference none has nothing to keep; omit --loss.cached.",
        )

    def build(self, config: ModelConfig, **models: ModelConfig) -> PreferenceLoss:
        """Returns the loss for a model; `frozen["reference"]` holds the reference's weights.

        Raises:
          ConfigError: `start` was not replaced by what the run starts from.
        """
        return PreferenceLoss(
            config, Reference.of(self.reference, config, models, self.cached), self
        )


@dataclass(frozen=True)
class PreferenceLoss(Loss):
    """The sum of a loss over pairs; its weight is their number.

    Metrics: `preference_accuracy`, the share of pairs whose chosen answer has the higher reward (a
    tie counts half); `reward_margin`, β times the mean lead of its gain; `chosen_reward` and
    `rejected_reward`; `chosen_log_prob` and `rejected_log_prob` per token; with `nll` that loss per
    token.
    """

    model: ModelConfig
    reference: Reference
    settings: Preference

    def metrics(self) -> Mapping[str, Reduction]:
        """See the class."""
        plain = ("preference_accuracy", "reward_margin", "chosen_reward", "rejected_reward")
        return {
            **{name: per_weight(name) for name in plain},
            "chosen_log_prob": ratio("chosen_log_prob", "chosen_tokens"),
            "rejected_log_prob": ratio("rejected_log_prob", "rejected_tokens"),
        }

    def held_out(self, figures: tuple[str, ...] = ()) -> Loss:
        """Evaluation leaves out the term `nll`."""
        settings = dataclasses.replace(self.settings, nll=0.0, nll_prompts=False)
        return dataclasses.replace(self, settings=settings)

    def foresee(self, params: Params, frozen: Frozen, batch: Batch) -> Batch:
        """Adds the factor that turns a sum over chosen tokens into pairs times its mean."""
        if not self.settings.nll:
            return batch
        counted = (batch.weights > 0) | self.settings.nll_prompts  # padding is of no pair
        chosen = by_pair(batch, jnp.asarray(counted, jnp.float32)).chosen
        scale = pair_weights(batch).sum() / jnp.maximum(chosen.sum(), 1)
        rows = jnp.full(batch.tokens.shape[:1], scale)
        return batch._replace(columns={**(batch.columns or {}), _NLL: rows})

    def __call__(
        self, params: Params, frozen: Frozen, batch: Batch, key: Key | None
    ) -> tuple[Sum, Weight, Metrics]:
        """Sums over pairs. The key is not used: dropout would tell policy and reference apart."""
        settings, real = self.settings, pair_weights(batch)
        sums, lengths, texts = answer_sums(self.model, params, batch, settings.vocab_parts)
        reference = self.reference.sums(params, frozen, batch, settings.vocab_parts)
        gain = Pair(*(x - r for x, r in zip(sums, reference, strict=True)))
        function = PAIR_LOSSES[settings.loss]
        options = PairSettings(settings.beta, settings.smoothing, settings.gamma)

        def total(values: Float[Array, "B P"]) -> Sum:
            return jnp.sum(jnp.where(real > 0, values, 0.0))

        loss = total(function(gain, lengths, options))
        if settings.nll:
            scale = jnp.asarray(batch.columns[_NLL]) if batch.columns else 0.0
            learned = (texts if settings.nll_prompts else sums).chosen
            loss = loss - settings.nll * jnp.sum(scale * learned.sum(-1))
        lead = gain.difference
        return (
            loss,
            real.sum(),
            {
                "preference_accuracy": total((lead > 0) + 0.5 * (lead == 0)),
                "reward_margin": total(settings.beta * lead),
                "chosen_reward": total(settings.beta * gain.chosen),
                "rejected_reward": total(settings.beta * gain.rejected),
                "chosen_log_prob": total(sums.chosen),
                "rejected_log_prob": total(sums.rejected),
                "chosen_tokens": total(lengths.chosen),
                "rejected_tokens": total(lengths.rejected),
            },
        )
