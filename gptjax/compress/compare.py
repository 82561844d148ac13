"""What a changed model costs: its loss and its predictions beside those of the model it was made
of."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.model import ModelConfig

ROWS = 2
"""Rows whose logits are held at once."""


class Change(NamedTuple):
    """Means over the tokens of a text."""

    loss: float
    """Of the changed model, in nats per token."""
    change: float
    """How much more that is than the model's."""
    divergence: float
    """KL(model ‖ changed), in nats per token."""
    agreement: float
    """Share of positions at which both find the same token most likely."""
    num_tokens: int


def compared(
    config: ModelConfig,
    params: Params,
    changed_config: ModelConfig,
    changed: Params,
    rows: Int[Numbers, "R T"],
) -> Change:
    """Compares a changed model with the one it was made of, on rows of tokens, in float32."""
    pair = tuple(
        dataclasses.replace(c, compute="float32", layers="scan") for c in (config, changed_config)
    )
    sums = np.zeros(4)
    for begin in range(0, len(rows), ROWS):
        part = _sums(pair, (params, changed), jnp.asarray(rows[begin : begin + ROWS]))
        sums += np.asarray(part, np.float64)
    count = rows.shape[0] * (rows.shape[1] - 1)
    own, other, divergence, same = sums / count
    return Change(float(other), float(other - own), float(divergence), float(same), count)


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    configs: tuple[ModelConfig, ModelConfig], models: tuple[Any, Any], ids: Int[Array, "B T"]
) -> Float[Array, "4"]:
    p, q = (_logprobs(c, params, ids) for c, params in zip(configs, models, strict=True))
    own, other = (_taken(x, ids[:, 1:]) for x in (p, q))
    divergence = (jnp.exp(p) * (p - q)).sum()
    same = (p.argmax(-1) == q.argmax(-1)).sum().astype(jnp.float32)
    return jnp.stack([-own, -other, divergence, same])


def _logprobs(config: ModelConfig, params: Any, ids: Array) -> Float[Array, "B T V"]:
    hidden = model.forward(config, params, ids).hidden[:, :-1]
    return jax.nn.log_softmax(model.unembed(config, params, hidden))


def _taken(logprobs: Array, targets: Array) -> Float[Array, ""]:
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1).sum()
