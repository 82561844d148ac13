"""Attention as one softmax over all keys: what every other implementation is held to."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key, Share
from gptjax.model.attention.mask import MaskInputs, ScoreConfig, scores
from gptjax.weights.dropout import dropout


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K value"],
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    table: Float[Array, "..."] | None,
    sink: Float[Array, " N"] | None,
    rate: Share,
    key: Key | None,
) -> Float[Array, "B T N value"]:
    """What `attention.attend` gives, with the scores of all keys for all queries held at once."""
    logits = scores(q, k, mask_inputs, how, table)
    if sink is not None:
        virtual = jnp.broadcast_to(
            sink.astype(jnp.float32).reshape(1, *logits.shape[1:3], 1, 1), (*logits.shape[:4], 1)
        )
        logits = jnp.concatenate([logits, virtual], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)[..., : k.shape[1]].astype(v.dtype)
    # values first: einsum makes them the right operand, in the order in which a cache holds them;
    # the other way round XLA's CPU backend turns them all
    return jnp.einsum("bskh,bkgts->btkgh", v, dropout(weights, rate, key)).reshape(
        *q.shape[:3], v.shape[-1]
    )
