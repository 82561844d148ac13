"""The model as pure functions of a frozen config and a parameter tree: `init, axes, encode, forward, unembed, empty_cache`.

Linen lives behind them. Parameters are one tree for every way of running it:

    embedding/embedding [V D]   positions/embedding [context D]   layers/… [L …]   norm/…   head/kernel [D V]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.arrays import Array, Axes, Float, Int, Key, Params
from gptjax.model import positions as place
from gptjax.model.attention import Attention, Cache, Sight, empty_cache, reserve
from gptjax.model.config import ModelConfig
from gptjax.model.layers import MLP, Linear, dropout, norm

__all__ = ["Block", "Cache", "Output", "axes", "empty_cache", "encode", "forward", "init", "unembed"]


class Output(NamedTuple):
    """What `forward` gives."""

    hidden: Float[Array, "B T D"]
    """Final hidden states, normalised; `unembed` turns them into logits."""
    cache: Cache | None
    """The cache that has read these tokens too; none if none was given."""
    aux: dict[str, Array]
    """Losses that layers add of their own, as sums over tokens."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Source: Radford et al. 2019 (pre-norm placement: Xiong et al. 2020, arXiv:2002.04745).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x, sight, angles, cache=None, layer=0, slots=None, key=None):
        c = self.config
        for_attention, after_attention, after_mlp = (None,) * 3 if key is None else jax.random.split(key, 3)
        mixed, cache = Attention(c, name="attention")(norm(c, "attention_norm")(x), sight, angles, cache, layer, slots, for_attention)
        x = x + dropout(mixed, c.residual_dropout, after_attention)
        x = x + dropout(MLP(c, name="mlp")(norm(c, "mlp_norm")(x)), c.residual_dropout, after_mlp)
        return x, cache


def init(config: ModelConfig, key: Key) -> Params:
    """Gives the initial parameters, float32. Layers are stacked: each leaf below `layers` has a leading dimension L."""
    return nn.meta.unbox(_boxed(config, key))


def axes(config: ModelConfig) -> Axes:
    """Gives the logical axis names of every parameter's dimensions; stacked layers begin with `layers`."""
    boxed = jax.eval_shape(functools.partial(_boxed, config), jax.random.key(0))
    names = jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    stacked = jax.tree.map(lambda n: ("layers", *n), names["layers"], is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {**names, "layers": stacked}


def _boxed(config: ModelConfig, key: Key) -> Params:
    """Parameters in Linen's boxes that hold the axis names."""
    keys = iter(jax.random.split(key, 5))
    config = dataclasses.replace(config, attention="reference")  # the one position below is no case for any other
    x, where = jnp.zeros((1, 1, config.width), config.compute), jnp.zeros((1, 1), jnp.int32)
    angles = _angles(config, where)

    def one_block(key: Key) -> Params:
        return Block(config).init(key, x, Sight(where, where), angles)["params"]

    params = {
        "embedding": _embedding(config, config.vocabulary, "vocab").init(next(keys), where)["params"],
        "layers": jax.vmap(one_block)(jax.random.split(next(keys), config.num_layers)),
        "norm": norm(config).init(next(keys), x)["params"],
    }
    if config.positions == "learned":
        params["positions"] = _embedding(config, config.context, "context").init(next(keys), where)["params"]
    if not config.tied:
        params["head"] = _head(config).init(next(keys), x)["params"]
    return params


def _embedding(config: ModelConfig, count: int, axis: str) -> nn.Embed:
    make = nn.with_partitioning(nn.initializers.normal(config.init_std), (axis, "embed"))
    return nn.Embed(count, config.width, embedding_init=make, dtype=config.compute)


def _head(config: ModelConfig) -> Linear:
    return Linear((config.width,), (config.vocabulary,), ("embed", "vocab"), config.init_std, False, config.compute)


def _angles(config: ModelConfig, positions: Int[Array, "B T"]) -> Array | None:
    return place.turns(positions, config.heads, config.rope_base) if config.positions == "rope" else None


def encode(config: ModelConfig, params: Params, side: Array | None) -> None:
    """Reads the side input into what the decoder attends to. A decoder-only model has none.

    Raises:
      ValueError: a side input was given.
    """
    if side is not None:
        raise ValueError("this model is decoder-only: it has no encoder for a side input.")


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    cache: Cache | None = None,
    key: Key | None = None,
) -> Output:
    """Reads tokens and gives their final hidden states.

    Args:
      tokens: ids in [0, V); out-of-range ids are the caller's to refuse.
      positions: where each token stands; none counts from 0. With a cache it is needed, and −1 marks padding.
      segments: tokens of different segments do not see each other; not together with a cache.
      cache: what was read before; the tokens see it and are added to it.
      key: dropout's randomness; none turns dropout off.
    """
    if cache is not None and (positions is None or segments is not None):
        raise ValueError("forward with a cache needs positions and takes no segments.")
    if positions is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    slots = None
    if cache is None:
        sight = Sight(positions, positions, segments, segments)
    else:
        cache, slots = reserve(cache, positions)
        sight = Sight(positions, cache.positions)

    x = _embedding(config, config.vocabulary, "vocab").apply({"params": params["embedding"]}, tokens)
    if config.positions == "learned":
        x = x + _embedding(config, config.context, "context").apply({"params": params["positions"]}, positions)
    if config.positions == "sinusoidal":
        x = x + place.sinusoidal(positions, config.width).astype(x.dtype)
    x = dropout(x, config.embedding_dropout, None if key is None else jax.random.fold_in(key, config.num_layers))
    x, cache = _stack(config, params["layers"], x, sight, _angles(config, positions), cache, slots, key)
    return Output(norm(config).apply({"params": params["norm"]}, x), cache, {})


def _stack(config: ModelConfig, layers: Params, x: Array, sight: Sight, angles: Array | None, cache: Any, slots: Any, key: Any):
    """Runs the blocks one after another: unrolled, or as one compiled loop over the stacked parameters."""

    def block(state, weights, layer):
        x, cache = state
        layer_key = None if key is None else jax.random.fold_in(key, layer)
        return Block(config).apply({"params": weights}, x, sight, angles, cache, layer, slots, layer_key)

    if config.remat != "none":
        keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
        block = jax.checkpoint(block, policy=keep, prevent_cse=not scanned(config))
    if scanned(config):
        numbered = (layers, jnp.arange(config.num_layers))
        return jax.lax.scan(lambda state, xs: (block(state, *xs), None), (x, cache), numbered)[0]
    state = (x, cache)
    for layer in range(config.num_layers):
        state = block(state, jax.tree.map(lambda leaf, i=layer: leaf[i], layers), layer)
    return state


def scanned(config: ModelConfig, backend: str | None = None) -> bool:
    """The stack is a compiled loop: always where it is asked for; by itself on anything but a CPU, where a loop costs about 30 %."""
    return config.layers == "scan" or (config.layers == "auto" and (backend or jax.default_backend()) != "cpu")


def unembed(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Gives the logits of the next token, float32."""
    if config.tied:
        kernel = params["embedding"]["embedding"].astype(config.compute).T
    else:
        kernel = params["head"]["kernel"].astype(config.compute)
    return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
