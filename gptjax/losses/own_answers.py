"""Losses of answers that the model writes itself: what each says of its rollouts (`OwnAnswers`),
and what they read of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from gptjax.core.arrays import Array, Float
from gptjax.data.layouts import Batch
from gptjax.losses.loss import LossConfig, Metrics


class OwnAnswers(LossConfig):
    """Settings of a loss of rollouts, with the task `Prompts`. Subclasses are frozen dataclasses
    that override what differs from here."""

    batches: ClassVar[str] = "rollouts"

    temperature: float
    """What logits are divided by, those of the sampler too."""

    @property
    def rewarded(self) -> bool:
        """Whether rewards decide what is learned, so that there have to be some."""
        return False

    @property
    def compares(self) -> bool:
        """Whether an answer teaches only if another one to its prompt is better or worse."""
        return False

    @property
    def any_sampler(self) -> bool:
        """Whether answers may be drawn from other distributions than the model's own."""
        return True

    def reads(self, updates: int) -> list[str]:
        """Returns the columns [B T] that are read off the model once it has written its answers.

        Args:
          updates: steps that learn from one rollout.
        """
        return []

    @property
    def adds(self) -> tuple[str, ...]:
        """Further columns [B T] that `learned` adds."""
        return ()

    def learned(self, batch: Batch, known: Mapping[str, Any], answers: int) -> Batch:
        """Returns a whole rollout with what is learned from it: columns, and weights of 0 where
        nothing is.

        Args:
          known: the columns of `reads`.
          answers: to each prompt.
        """
        return batch


def column_of(batch: Batch, name: str) -> Array:
    """Returns a column of a batch.

    Raises:
      ValueError: it has none of that name.
    """
    columns = batch.columns or {}
    if name not in columns:
        raise ValueError(f"a loss of rollouts needs the column {name!r}, which this batch lacks.")
    return jnp.asarray(columns[name], jnp.float32)


def lengths_of(batch: Batch) -> Float[Array, " B"]:
    """Returns the number of counted tokens of each answer."""
    return jnp.sum(jnp.asarray(batch.weights) > 0, axis=1, dtype=jnp.float32)


def sum_lengths(batch: Batch) -> Metrics:
    """Sums what is known of each answer without rewards."""
    lengths, finished = lengths_of(batch), column_of(batch, "finished")
    return {
        "unfinished": jnp.sum(1 - finished),
        "answers": jnp.sum(jnp.ones_like(finished)),
        "counted": jnp.sum(1.0 * (lengths > 0)),
        "tokens": jnp.sum(lengths),
    }


def sum_facts(batch: Batch) -> Metrics:
    """Sums what is known of each answer and of its reward."""
    lengths = lengths_of(batch)
    counted = 1.0 * (lengths > 0)
    judged, passed = column_of(batch, "judged"), column_of(batch, "passed")
    right, wrong = judged * passed, judged * (1 - passed)
    rows = {
        "reward": jnp.where(judged > 0, column_of(batch, "reward"), 0.0),
        "judged": judged,
        "passed": right,
        "flat": column_of(batch, "flat"),
        "right": right * counted,
        "wrong": wrong * counted,
        "right_tokens": right * lengths,
        "wrong_tokens": wrong * lengths,
    }
    return sum_lengths(batch) | {name: jnp.sum(values) for name, values in rows.items()}
