"""Losses of single tokens, as functions of logits or of hidden states."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.model import ModelConfig
from gptjax.weights.weight import dense


def token_losses(
    logits: Float[Array, "B T V"],
    targets: Int[Numbers, "B T"],
    smoothing: float = 0.0,
    z: float = 0.0,
) -> Float[Array, "B T"]:
    """−ln softmax(logits)[target] of each position, in float32; NaN where the target is no class,
    which indexing would clamp or wrap.

    Args:
      smoothing: share of the target that all tokens have in equal parts.
      z: weight of the squared log-sum-exp.
    """
    known = (targets >= 0) & (targets < logits.shape[-1])
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, jnp.where(known, targets, 0)[:, :, None], axis=-1)[:, :, 0]
    return _lost(known, total, chosen, logits.mean(-1), smoothing, z)


def _lost(
    known: Numbers, total: Array, chosen: Array, mean: Array, smoothing: float, z: float
) -> Float[Array, "B T"]:
    """The loss of a position by its log-sum-exp, its target's logit and the mean of all; NaN where
    the target is not known."""
    chosen = (1 - smoothing) * chosen + smoothing * mean if smoothing else chosen
    losses = jnp.where(known, total - chosen, jnp.nan)
    return losses + z * jnp.square(total) if z else losses


def losses_in_parts(
    config: ModelConfig,
    params: Params,
    parts: int,
    hidden: Float[Array, "B T D"],
    targets: Int[Numbers, "B T"],
    smoothing: float = 0.0,
    z: float = 0.0,
    temperature: float = 1.0,
) -> Float[Array, "B T"]:
    """Returns `token_losses` of hidden states, with only one part of the vocabulary's logits in
    memory at a time. Logits are divided by the temperature.

    A running log-sum-exp goes over the parts; the backward pass computes each part's logits again.
    The vocabulary is split, not the positions, so that the gradient of the output kernel is summed
    over the devices once and not once per part.
    """
    if parts == 1:
        logits = model.unembed(config, params, hidden)
        return token_losses(_tempered(logits, temperature), targets, smoothing, z)
    hidden, kernel, bias = model.to_output(config, params, hidden)
    tokens = kernel.shape[1]
    size = -(-tokens // parts)
    whole = dense(kernel).astype(hidden.dtype)
    kernels = jnp.moveaxis(_in_parts(whole, parts), 1, 0)
    biases = None if bias is None else _in_parts(bias, parts)
    wide = hidden.astype(jnp.float32)  # its gradient, a sum over parts, is added up in this type

    @jax.checkpoint
    def add(running: tuple[Array, ...], part: tuple[Any, ...]) -> tuple[tuple[Array, ...], None]:
        (highest, total, chosen, summed), (kernel, bias, begin) = running, part
        logits = model.logits_of(config, wide.astype(hidden.dtype), kernel, bias)
        logits = _tempered(logits, temperature)
        ids = (begin + jnp.arange(size))[None, None]
        known = jnp.where(ids < tokens, logits, -jnp.inf)
        higher = jnp.maximum(highest, jax.lax.stop_gradient(known.max(-1)))
        total = total * jnp.exp(highest - higher) + jnp.exp(known - higher[..., None]).sum(-1)
        chosen = chosen + jnp.where(ids == targets[..., None], logits, 0.0).sum(-1)
        summed = summed + jnp.where(ids < tokens, logits, 0.0).sum(-1)
        return (higher, total, chosen, summed), None

    zeros = jnp.zeros(targets.shape)
    begin = jnp.full(targets.shape, -jnp.inf), zeros, zeros, zeros
    (highest, total, chosen, summed), _ = jax.lax.scan(
        add, begin, (kernels, biases, size * jnp.arange(parts))
    )
    valid = (targets >= 0) & (targets < tokens)
    return _lost(valid, highest + jnp.log(total), chosen, summed / tokens, smoothing, z)


def _tempered(logits: Float[Array, "..."], temperature: float) -> Float[Array, "..."]:
    return logits if temperature == 1 else logits / temperature


def _in_parts(x: Float[Array, "... V"], parts: int) -> Float[Array, "... parts size"]:
    """Splits the vocabulary into equal parts, padded with zeros."""
    tokens = x.shape[-1]
    size = -(-tokens // parts)
    padding = (*((0, 0),) * (x.ndim - 1), (0, parts * size - tokens))
    return jnp.pad(x, padding).reshape(*x.shape[:-1], parts, size)
