"""Log-probabilities of pairs of answers under the policy and under a reference.

A row holds pairs as segments that do not see each other: the first text of a pair, then its second,
then the next pair. A pair is never torn when a batch is split.

Read `answer_sums`, then `Reference`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Numbers, Params
from gptjax.core.config import require
from gptjax.data.layouts import Batch
from gptjax.losses.cross_entropy import forward_batch
from gptjax.losses.loss import Frozen, LossConfig
from gptjax.losses.pairwise import Pair
from gptjax.losses.tokens import losses_in_parts
from gptjax.model import ModelConfig
from gptjax.weights.adapters import detach

PAIRS = "pairs"
"""Column of a batch: float32 [B P], 1 for each pair of the row and 0 for none."""
REFERENCE = "reference"
"""Column of a batch: float32 [B P 2], ln p of both answers under the reference."""
START, BASE, NONE = "start", "base", "none"


class AnswerSums(NamedTuple):
    """Sums over the counted tokens of both answers of each pair; each is a `Pair` of [B P]."""

    log_probs: Pair
    """ln p, float32."""
    lengths: Pair
    """Number of counted tokens."""
    texts: Pair
    """ln p of the prompt and the answer together."""


def answer_sums(
    config: ModelConfig, params: Params, batch: Batch, vocab_parts: int = 1
) -> AnswerSums:
    """Sums the log-probabilities of the answers of every pair of a batch, without dropout."""
    hidden = forward_batch(config, params, batch, None).hidden
    losses = losses_in_parts(config, params, vocab_parts, hidden, batch.targets)
    counts = batch.weights > 0
    answers, lengths = jnp.where(counts, -losses, 0.0), counts.astype(jnp.float32)
    return AnswerSums(*(by_pair(batch, x) for x in (answers, lengths, -losses)))


def by_pair(batch: Batch, values: Float[Numbers, "B T"]) -> Pair:
    """Sums values over the segments of each row, as chosen and rejected [B P]."""
    pairs = pair_weights(batch).shape[1]
    assert batch.segments is not None  # `Preferences` isolates its answers
    summed = jax.vmap(lambda x, s: jax.ops.segment_sum(x, s, 2 * pairs + 1))(
        values, jnp.asarray(batch.segments)
    )
    return Pair(summed[:, 1::2], summed[:, 2::2])


def pair_weights(batch: Batch) -> Float[Array, "B P"]:
    """Returns 1 for each pair of each row, 0 for none.

    Raises:
      ValueError: the batch holds no pairs.
    """
    if batch.columns is None or PAIRS not in batch.columns:
        raise ValueError(
            "a loss of pairs needs the column `pairs`, which the task Preferences has."
        )
    return jnp.asarray(batch.columns[PAIRS], jnp.float32)


class Compared(LossConfig):
    """Base of the settings of losses that compare answers with a reference."""

    reference: str
    cached: bool

    @property
    def models(self) -> Mapping[str, str]:
        """The reference, where it is another model."""
        return other_reference(self.reference)

    @property
    def columns(self) -> Mapping[str, tuple[int, ...]]:
        """With `cached`, ln p of both answers under the reference."""
        return {REFERENCE: (2,)} if self.cached else {}

    def started(self: Any, start: str | None, adapted: bool) -> Any:
        """Returns the settings with the reference by name, if it is what the run starts from: the
        base of a run that trains adapters, else the model itself."""
        return dataclasses.replace(self, reference=reference_name(self.reference, start, adapted))

    def computed(self: Any) -> Any:
        """Returns the settings with the reference in memory."""
        return dataclasses.replace(self, cached=False)


def other_reference(name: str) -> Mapping[str, str]:
    """Returns the path of a reference by its name among `models`, where it is another model."""
    return {} if name in (START, BASE, NONE) else {REFERENCE: name}


def reference_name(reference: str, start: str | None, adapted: bool) -> str:
    """Returns the name of a reference; that of what the run starts from in place of `start`: the
    base of a run that trains adapters, else the model itself, if there is one."""
    return reference if reference != START else BASE if adapted else start or START


@dataclass(frozen=True)
class Reference:
    """What answers are compared with."""

    name: str
    """`base`, `none`, or the path of a model."""
    policy: ModelConfig
    other: ModelConfig | None = None
    """Of another model, whose weights are `frozen["reference"]`. It is computed as the policy is,
    or equal weights would not have equal log-probabilities."""
    cached: bool = False
    """Its log-probabilities are a column of the batch."""

    @classmethod
    def of(
        cls,
        name: str,
        policy: ModelConfig,
        models: Mapping[str, ModelConfig],
        cached: bool = False,
    ) -> Reference:
        """Returns the reference of a name, as the settings have it.

        Raises:
          ConfigError: it is `start`, which was not replaced by what the run starts from.
        """
        require(
            name != START,
            "loss.reference is start, and this run starts from random weights; name a model"
            " (--start MODEL), or another reference (--loss.reference MODEL).",
        )
        other = models.get(REFERENCE)
        if other is not None:
            way = {name: getattr(policy, name) for name in ("compute", "attention", "layers")}
            other = dataclasses.replace(other, **way)
        return cls(name, policy, other, cached)

    def weights(self, params: Params, frozen: Frozen) -> tuple[ModelConfig, Params]:
        """Returns architecture and weights of the reference, which take no gradient."""
        if self.name != BASE:
            return self.other or self.policy, jax.lax.stop_gradient(frozen[REFERENCE])
        weights, adapters = detach(params)
        require(
            bool(adapters),
            "loss.reference is base, the model without its adapters, and it has none; use"
            " start, or train an adapter (--adapter).",
        )
        return self.policy, jax.lax.stop_gradient(weights)

    def sums(self, params: Params, frozen: Frozen, batch: Batch, vocab_parts: int = 1) -> Pair:
        """Returns ln p of the answers under the reference [B P], without gradient: from the batch
        where it was computed before, by the same function of other weights, or 0 for `none`."""
        zeros = jnp.zeros_like(pair_weights(batch))
        if self.name == NONE:
            return Pair(zeros, zeros)
        known = (batch.columns or {}).get(REFERENCE)
        if known is not None:
            return Pair(jnp.asarray(known)[..., 0], jnp.asarray(known)[..., 1])
        require(
            not self.cached,
            "loss.cached is set, and these batches have no log-probabilities of the reference;"
            " gptjax train computes them, or set it to False (--loss.cached False).",
        )
        return answer_sums(*self.weights(params, frozen), batch, vocab_parts).log_probs
