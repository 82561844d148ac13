"""Shortcuts from the embedded tokens to every layer, by learned factors: into the residual stream,
and into attention's values.

Read `with_shortcuts` (computed once, before the layers), then `stream_with` and `values_with`, by
which a layer takes its share. The choices are `config_parts.Shortcuts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.model.config import ModelConfig
from gptjax.model.layers import Table, norm, parameter, to_heads


class Entrance(NamedTuple):
    """What every layer may read of the tokens that entered the model."""

    stream: Float[Array, "B T D"]
    """The embedded tokens, as they enter the first layer."""
    values: Float[Array, "B T K H"] | None
    """What is mixed into the values of attention; `None` where nothing is."""


def source_of_values(config: ModelConfig) -> str:
    """`none`, `first` or `table`: what is mixed into the values of attention."""
    return "none" if config.shortcuts is None else config.shortcuts.values


def mixes_stream(config: ModelConfig) -> bool:
    """Whether layers read and add to a · stream + b · embedded tokens."""
    return config.shortcuts is not None and config.shortcuts.stream


def with_shortcuts(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    soft: Any,
    layer_inputs: Any,
) -> Any:
    """Returns the inputs of all layers with what these take their shortcuts from.

    Args:
      x: the residual stream as it enters the first layer.
      tokens: ids of the tokens.
      soft: embeddings that replace those of some tokens, whose values from a table are zeros.
    """
    values = None
    if source_of_values(config) == "first":
        values = _first_values(config, params["layers"], x)
    elif source_of_values(config) == "table":
        values = _table_values(config, params, tokens, None if soft is None else soft.index)
    return layer_inputs._replace(entrance=Entrance(x, values))


def _table_values(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    replaced: Int[Array, "B P"] | None,
) -> Float[Array, "B T K H"]:
    """The values that the table has for each token; zeros at places that are replaced."""
    values = value_table(config).apply({"params": params["values"]}, tokens)
    if replaced is not None:
        index = jnp.where(replaced >= 0, replaced, tokens.shape[1])  # past the end: dropped
        rows = jnp.arange(tokens.shape[0])[:, None]
        values = values.at[rows, index].set(0, mode="drop")
    return values.reshape(*values.shape[:2], config.kv_heads, config.head_dim)


def _first_values(config: ModelConfig, layers: Any, x: Array) -> Float[Array, "B T K H"]:
    """The values that the first layer makes of the embedded tokens."""
    if isinstance(layers, dict) and config.mixed:
        layers = layers[config.stack_of(config.stack[0])]
    prepared = isinstance(layers, tuple)  # for decoding
    first = layers[0] if prepared else jax.tree.map(lambda leaf: leaf[0], layers)
    if config.norm_placement in ("pre", "sandwich"):
        x = norm(config).apply({"params": first.get("attention_norm", {})}, x)
    return to_heads(config, config.kv_heads, "kv_heads").apply(
        {"params": first["attention"]["value"]}, x
    )


def value_table(config: ModelConfig) -> Table:
    """Values by token, of all heads side by side."""
    width = config.kv_heads * config.head_dim
    return Table(config.vocabulary, width, "vocab", config.init_std, config.compute)


def stream_with(
    module: nn.Module, config: ModelConfig, x: Float[Array, "B T D"], entrance: Entrance
) -> Float[Array, "B T D"]:
    """The stream as a layer reads it and adds to it: a · stream + b · embedded tokens."""
    if not mixes_stream(config):
        return x
    own = parameter(module, "stream", lambda *_: jnp.asarray([1.0, 0.0]), (2,), (None,))
    return mixed(own, x, entrance.stream)


def values_with(
    module: nn.Module, config: ModelConfig, v: Float[Array, "B T K H"], entrance: Entrance
) -> Float[Array, "B T K H"]:
    """A layer's values: a · own + b · those that all layers share."""
    if source_of_values(config) == "none":
        return v
    own = parameter(module, "values", lambda *_: jnp.asarray([0.5, 0.5]), (2,), (None,))
    return v if entrance.values is None else mixed(own, v, entrance.values)


def mixed(
    factors: Float[Array, "2"], own: Float[Array, "..."], shared: Float[Array, "..."]
) -> Float[Array, "..."]:
    """a · own + b · shared, in the type of the first."""
    a, b = (factors[i].astype(own.dtype).reshape((1,) * own.ndim) for i in (0, 1))
    return a * own + b * shared.astype(own.dtype)
