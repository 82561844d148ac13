"""From hidden states to logits: of the next token, or of classes."""

from __future__ import annotations

import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.model.config import ModelConfig
from gptjax.model.layers import activate, norm
from gptjax.model.parameters import class_head, head_transform, output_projection
from gptjax.sharding.constrain import ROWS
from gptjax.weights.linear import linear
from gptjax.weights.weight import Weight, transposed


def unembed(
    config: ModelConfig, params: Params, hidden: Float[Array, "... D"]
) -> Float[Array, "... V"]:
    """Returns the logits of the next token, or in an encoder of the token itself; float32."""
    return logits_of(config, *to_output(config, params, hidden))


def to_output(
    config: ModelConfig, params: Params, hidden: Float[Array, "... D"]
) -> tuple[Float[Array, "... embedded"], Weight, Float[Array, " V"] | None]:
    """The arguments of `logits_of`: hidden states as the output reads them, its kernel [D V] and
    its bias [V]; with an `embedding_width`, that is the D here. Columns may be left out of both."""
    if config.head_transform:
        hidden = activate(
            config.activation,
            head_transform(config).apply({"params": params["transform"]["linear"]}, hidden),
        )
        last = norm(config, width=config.embedding_dim)
        hidden = last.apply({"params": params["transform"]["norm"]}, hidden)
    elif config.embedding_width is not None:
        weights = {"params": params["projection"]["out_of"]}
        hidden = output_projection(config).apply(weights, hidden)
    if config.logit_scale != 1.0:
        hidden = hidden * jnp.asarray(config.logit_scale, hidden.dtype)
    kernel = (
        transposed(params["embedding"]["embedding"]) if config.tied else params["head"]["kernel"]
    )
    return hidden, kernel, params["logits"]["bias"] if config.logit_bias else None


def logits_of(
    config: ModelConfig,
    hidden: Float[Array, "... D"],
    kernel: Weight,
    bias: Float[Array, " V"] | None,
) -> Float[Array, "... V"]:
    """The logits of the tokens whose columns are given; float32."""
    logits = linear(hidden, kernel, names=("embed", "vocab"), rows=(*ROWS, "stage"), wide=True)
    if bias is not None:
        logits = logits + bias.reshape((1,) * (logits.ndim - 1) + (-1,))
    return (
        logits
        if config.logit_cap is None
        else config.logit_cap * jnp.tanh(logits / config.logit_cap)
    )


def class_logits(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B T D"],
    positions: Int[Numbers, "B T"] | None = None,
    segments: Int[Numbers, "B T"] | None = None,
) -> Float[Array, "B T classes"]:
    """Returns at each position the logits of the class of its text, float32; a text is all tokens
    of a segment, padding is none.

    With `pool` `last` each position is classified from its own state, so only a text's last one has
    read all of it.

    Sources: first: Devlin et al. 2019, BERT, arXiv:1810.04805, section 4, without its pooler; last:
    Radford et al. 2018, GPT, section 3.2.
    """
    if config.pool != "last":
        rows, length = hidden.shape[:2]
        positions = (
            jnp.broadcast_to(jnp.arange(length)[None], (rows, length))
            if positions is None
            else positions
        )
        counted = (positions >= 0)[:, None, :] & (
            True if segments is None else segments[:, :, None] == segments[:, None, :]
        )
        counted = (
            counted & (positions == 0)[:, None, :]
            if config.pool == "first"
            else jnp.broadcast_to(counted, (rows, length, length))
        )
        share = counted / jnp.maximum(counted.sum(-1, keepdims=True), 1)
        hidden = jnp.einsum("bts,bsd->btd", share.astype(hidden.dtype), hidden)
    return class_head(config).apply({"params": params["classes"]}, hidden).astype(jnp.float32)
