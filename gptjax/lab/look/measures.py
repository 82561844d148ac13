"""What is measured of an answer: functions of the final hidden states, one number a row.

They are what patching, path patching and gradient attribution ask about; a function of one's own
[B T D] → [B] does as well.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.model import ModelConfig

Measure = Callable[[Float[Array, "B T D"]], Float[Array, " B"]]
"""Final hidden states → one number a row."""


def logit_difference(
    config: ModelConfig,
    params: Params,
    right: Int[Numbers, " B"],
    wrong: Int[Numbers, " B"],
    at: int | Int[Array, " B"] = -1,
) -> Measure:
    """Returns the measure logit(right) − logit(wrong) at one position of each row."""

    def measure(hidden: Float[Array, "B T D"]) -> Float[Array, " B"]:
        logits = answer_logits(config, params, hidden, at)
        return _of(logits, right) - _of(logits, wrong)

    return measure


def answer_logprob(
    config: ModelConfig,
    params: Params,
    right: Int[Numbers, " B"],
    at: int | Int[Array, " B"] = -1,
) -> Measure:
    """Returns the measure ln p(right) at one position of each row, in nats."""

    def measure(hidden: Float[Array, "B T D"]) -> Float[Array, " B"]:
        return _of(jax.nn.log_softmax(answer_logits(config, params, hidden, at)), right)

    return measure


def answer_logits(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B T D"],
    at: int | Int[Array, " B"] = -1,
) -> Float[Array, "B V"]:
    """Returns the logits at one position of each row; the other positions are not unembedded."""
    return model.unembed(config, params, at_position(hidden, at))


def at_position(x: Float[Array, "B T ..."], at: int | Int[Array, " B"]) -> Float[Array, "B ..."]:
    """Returns one position of each row."""
    index = jnp.broadcast_to(jnp.asarray(at), x.shape[:1])
    index = jnp.where(index < 0, index + x.shape[1], index)
    return x[jnp.arange(x.shape[0]), index]


def _of(values: Float[Array, "B V"], ids: Int[Numbers, " B"]) -> Float[Array, " B"]:
    return values[jnp.arange(values.shape[0]), jnp.asarray(ids)]
