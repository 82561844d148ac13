"""What a token costs, counted from the config alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from gptjax.model.config import Layer, ModelConfig
from gptjax.model.shortcuts import source_of_values


def flops_per_token(config: ModelConfig, length: int, *, training: bool = True) -> float:
    """Returns the floating-point operations of one token in a row of `length` tokens; with an
    encoder, of one more token there.

    Counts matrix products only, of experts those that read the token, attention where a token sees
    a key, of a recurrent layer its convolution and what a token reads and writes of the state, and
    the backward pass as twice the forward pass. Embedding look-ups, norms, softmax and
    recomputation (remat) are not counted.

    Source: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B, with attention at what is
    seen.
    """
    attention = sum(
        config.recurrent.products(config.width)[1]
        if layer.recurrent
        else products_per_key(config) * seen(layer, length, config.causal)
        for layer in config.stack
    )
    if config.ahead and training:
        each = flops_per_token(dataclasses.replace(config.further, num_layers=1), length)
        if config.ahead_chained:
            each += 3 * 2.0 * 2 * config.width**2  # both inputs are projected to one
        return flops_per_token(_without_ahead(config), length) + config.ahead * each
    if config.encoder_layers:
        attention += products_per_key(config) * length * (config.num_layers + config.encoder_layers)
    return (3 if training else 1) * 2.0 * (products_per_token(config) + attention)


def _without_ahead(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, ahead=0)


def products_per_token(config: ModelConfig) -> int:
    """Returns the multiplications of one token with weights: attention's projections, MLPs or
    experts, the output; with an encoder, of one more there."""
    if config.encoder_layers:
        beside, alone = config.encoder, dataclasses.replace(config, encoder_layers=0)
        cross = config.num_layers * _projections(config)
        return products_per_token(alone) + cross + products_per_token(beside) - _output(config)
    mlp = (3 if config.gated else 2) * config.width
    total = _output(config)
    if source_of_values(config) == "first":
        total += config.width * config.kv_heads * config.head_dim  # once more, for all layers
    for layer in config.stack:
        total += (
            config.recurrent.products(config.width)[0] if layer.recurrent else _projections(config)
        )
        if config.sparse(layer):
            e = config.experts
            total += config.width * (e.count + e.shared_gate)
            total += mlp * config.expert_width * (e.active + e.shared)
        else:
            total += mlp * config.mlp_dim
    return total


def _output(config: ModelConfig) -> int:
    if config.classes:
        return config.width * config.classes
    embedded, projected = config.embedding_dim, config.embedding_width is not None
    before = config.width * embedded * (config.head_transform or projected)
    return embedded * config.vocabulary + before + config.width * embedded * projected


def products_per_key(config: ModelConfig) -> int:
    """Returns the multiplications of one token with one key and its value, in all heads of one
    layer."""
    return config.num_heads * (config.query_width + config.value_width)


def _projections(config: ModelConfig) -> int:
    latent, width = config.latent, config.width
    if latent is None:
        of_queries = 3 if config.attention_gate else 2
        return width * config.head_dim * (of_queries * config.num_heads + 2 * config.kv_heads)
    source = latent.query_rank or width
    query = (
        width * source if latent.query_rank else 0
    ) + source * config.num_heads * config.query_width
    keys_and_values = width * (latent.rank + latent.rope_width) + latent.rank * config.num_heads * (
        config.head_dim + config.value_width
    )
    return query + keys_and_values + config.num_heads * config.value_width * width


def seen(layer: Layer, length: int, causal: bool = True) -> float:
    """Returns the number of keys that a token sees, itself included, on average over a text of
    `length` tokens."""
    return float(seen_by_each(layer, length, causal).mean())


def seen_by_each(layer: Layer, length: int, causal: bool = True) -> np.ndarray:
    """Returns the number of keys that each of `length` tokens sees."""
    t = np.arange(length)
    if not causal:
        return _seen_both_ways(layer, t)
    match layer.sees:
        case "all":
            keys = t + 1
        case "window":
            keys = np.minimum(t + 1, layer.span) + np.clip(t + 1 - layer.span, 0, layer.sinks)
        case "chunk":
            keys = t % layer.span + 1 + np.minimum(t - t % layer.span, layer.sinks)
        case "strided":
            keys = np.minimum(t + 1, layer.span) + t // layer.span
        case "fixed":
            keys = t % layer.span + 1 + layer.summary * (t // layer.span)
    return keys


def _seen_both_ways(layer: Layer, t: np.ndarray) -> np.ndarray:
    """The same where a token sees later ones too."""
    length, span, sinks = len(t), layer.span, layer.sinks
    match layer.sees:
        case "window":
            first, last = np.maximum(t - span + 1, 0), np.minimum(t + span, length)
        case "chunk":
            first, last = t // span * span, np.minimum(t // span * span + span, length)
        case _:
            first, last = 0 * t, 0 * t + length
    return last - first + np.minimum(first, sinks)
