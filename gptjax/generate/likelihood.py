"""The log-probability of a text under a model. Pure and differentiable: its `jax.grad` trains a
model on its own answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.generate.decode import within
from gptjax.model import ModelConfig


def token_logprobs(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    vocabulary: Int[Array, ""] | None = None,
) -> Float[Array, "B T"]:
    """Returns ln p of each token given those before it; 0 for the first of a row, which follows
    nothing, and from `lengths` on.

    Args:
      vocabulary: ids from here on (padding of the embedding) have no probability; `None` means
        that all ids have some.
    """
    place = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(place < lengths[:, None], place, -1)
    hidden = model.forward(config, params, tokens, positions=positions).hidden
    size = jnp.int32(config.vocabulary) if vocabulary is None else vocabulary

    def one(
        row: tuple[Array, Array],
    ) -> Array:  # a row at a time: [B T V] logits may be more than the memory holds
        logits = within(model.unembed(config, params, row[0][:-1]), size)
        return jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), row[1][1:, None], axis=-1)[
            :, 0
        ]

    logprobs = jax.lax.map(one, (hidden, tokens))
    return jnp.where(
        (place > 0) & (place < lengths[:, None]), jnp.pad(logprobs, ((0, 0), (1, 0))), 0.0
    )
