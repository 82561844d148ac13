"""The model as pure functions of a frozen config and a parameter tree: `init, axes, encode, forward, unembed, empty_cache`.

Linen lives behind them. Parameters are one tree for every way of running it:

    embedding/embedding [V D]   positions/embedding [context D]   distances/bias [buckets N]   layers/… [L …]   norm/…   head/kernel [D V]

An encoder beside a decoder has positions, distances, layers and norm of its own below `encoder`. Where only
some layers have experts, the two kinds are stacked apart: layers/dense/… and layers/sparse/….
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.arrays import Array, Axes, Float, Int, Key, Params
from gptjax.model import positions as place
from gptjax.model.attention import CrossAttention, Reading
from gptjax.model.cache import Cache, Memory, empty_cache, reserve
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.distances import slopes
from gptjax.model.layers import Linear, activate, dropout, norm
from gptjax.model.sight import Sight
from gptjax.model.stack import init_stack, run, scanned

__all__ = ["Cache", "Memory", "Output", "axes", "empty_cache", "encode", "forward", "init", "scanned", "unembed"]


class Output(NamedTuple):
    """What `forward` gives."""

    hidden: Float[Array, "B T D"]
    """Final hidden states, normalised; `unembed` turns them into logits."""
    cache: Cache | None
    """The cache that has read these tokens too; none if none was given."""
    aux: dict[str, Array]
    """What layers of experts tell, stacked by layer; empty without experts. For each token, so that an objective weighs them as
    it weighs its own losses: `balance` and `router_z` [L B T]. As sums over tokens: `load` [L E], `dropped` [L]."""


def init(config: ModelConfig, key: Key) -> Params:
    """Gives the initial parameters, float32. Layers are stacked: each leaf below `layers` has a leading dimension L."""
    return nn.meta.unbox(_boxed(config, key))


def axes(config: ModelConfig) -> Axes:
    """Gives the logical axis names of every parameter's dimensions; stacked layers begin with `layers`."""
    boxed = jax.eval_shape(functools.partial(_boxed, config), jax.random.key(0))
    names = jax.tree.map(lambda box: box.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))

    def stacked(tree: Axes) -> Axes:
        layers = jax.tree.map(lambda n: ("layers", *n), tree["layers"], is_leaf=lambda leaf: isinstance(leaf, tuple))
        return tree | {"layers": layers} | ({"encoder": stacked(tree["encoder"])} if "encoder" in tree else {})

    return stacked(names)


def _boxed(config: ModelConfig, key: Key) -> Params:
    """Parameters in Linen's boxes that hold the axis names."""
    keys = iter(jax.random.split(key, 5))
    config = dataclasses.replace(config, attention="reference")  # the one position below is no case for any other
    x, where = jnp.zeros((1, 1, config.width), config.compute), jnp.zeros((1, 1), jnp.int32)
    sight, params = Sight(where, where), {}
    if _biased_by_distance(config):
        table = config.init_std * jax.random.normal(jax.random.fold_in(key, 5), (config.t5_buckets, config.num_heads))
        params["distances"] = {"bias": nn.Partitioned(table, ("buckets", "heads"))}
    reading = _reading(config, nn.meta.unbox(params), sight)

    params |= {
        "embedding": _embedding(config, config.vocabulary, "vocab").init(next(keys), where)["params"],
        "layers": init_stack(config, next(keys), x, reading),
    }
    final = next(keys)
    if config.norm_placement != "post":
        params["norm"] = norm(config).init(final, x)["params"]
    if config.positions == "learned":
        params["positions"] = _embedding(config, config.context, "context").init(next(keys), where)["params"]
    if not config.tied:
        params["head"] = _head(config).init(next(keys), x)["params"]
    if config.embedding_norm:
        params["embedding_norm"] = norm(config).init(key, x)["params"]
    if config.head_transform:
        params["transform"] = {"linear": _transform(config).init(jax.random.fold_in(key, 6), x)["params"], "norm": norm(config).init(key, x)["params"]}
    if config.logit_bias:
        params["logits"] = {"bias": nn.Partitioned(jnp.zeros((config.vocabulary,)), ("vocab",))}
    if config.encoder_layers:
        beside = _boxed(config.encoder, jax.random.fold_in(key, 7))
        params["encoder"] = {name: beside[name] for name in _ENCODERS_OWN if name in beside}
    return params


_ENCODERS_OWN = ("positions", "distances", "embedding_norm", "layers", "norm")
"""What an encoder does not share with its decoder."""


def _embedding(config: ModelConfig, count: int, axis: str) -> nn.Embed:
    make = nn.with_partitioning(nn.initializers.normal(config.init_std), (axis, "embed"))
    return nn.Embed(count, config.width, embedding_init=make, dtype=config.compute)


def _head(config: ModelConfig) -> Linear:
    return Linear((config.width,), (config.vocabulary,), ("embed", "vocab"), config.init_std, False, config.compute)


def _transform(config: ModelConfig) -> Linear:
    return Linear((config.width,), (config.width,), ("embed", None), config.init_std, config.bias, config.compute)


def _biased_by_distance(config: ModelConfig) -> bool:
    return any(config.positions_in(layer) == "t5" for layer in config.stack)


def _reading(config: ModelConfig, params: Params, sight: Sight, slots: tuple[Array, ...] | None = None, memory: Memory | None = None) -> Reading:
    """Makes of positions what the layers need, once for all of them."""

    def angles(layer: Layer) -> Array | None:
        if config.positions_in(layer) != "rope":
            return None
        return place.turns(sight.queries, config.turned_width, layer.rope_base or config.rope_base, config.scaling_in(layer))

    tables = {"alibi": slopes(config.num_heads)} | ({"t5": params["distances"]["bias"]} if _biased_by_distance(config) else {})
    return Reading(sight, {layer: angles(layer) for layer in config.stack}, tables, slots, memory)


def encode(config: ModelConfig, params: Params, side: Any, *, key: Key | None = None) -> Memory | None:
    """Reads the side text into what the decoder attends to; a model without an encoder has none.

    Args:
      side: a `data.Side`: tokens [B S], positions, segments; none has none.
      key: dropout's randomness; none turns dropout off.

    Raises:
      ValueError: a side text was given to a model without an encoder, or none to one with an encoder.
    """
    if (side is not None) != (config.encoder_layers > 0):
        raise ValueError("this model has no encoder for a side text." if side is not None else "this model's encoder needs a side text.")
    if side is None:
        return None
    own = {"embedding": params["embedding"], **params["encoder"]}
    count = jnp.arange(side.tokens.shape[1], dtype=jnp.int32)[None]
    positions = jnp.broadcast_to(count, side.tokens.shape) if side.positions is None else side.positions
    states = forward(config.encoder, own, side.tokens, positions=positions, segments=side.segments, key=key).hidden
    remember = lambda weights: CrossAttention(config).apply({"params": weights}, states, method="remember")
    keys, values = jax.vmap(remember)(params["layers"]["cross"])
    return Memory(keys, values, positions, side.segments)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    memory: Memory | None = None,
    cache: Cache | None = None,
    nudge: Float[Array, "B T D"] | None = None,
    key: Key | None = None,
) -> Output:
    """Reads tokens and gives their final hidden states.

    Args:
      tokens: ids in [0, V); out-of-range ids are the caller's to refuse.
      positions: where each token stands; none counts from 0. With a cache it is needed, and −1 marks padding.
      segments: tokens of different segments do not see each other; not together with a cache.
      memory: what `encode` gives, for a model with an encoder beside its decoder; none takes the cache's.
      cache: what was read before; the tokens see it and are added to it.
      nudge: added to the embedded tokens.
      key: dropout's randomness; none turns dropout off.
    """
    if cache is not None and (positions is None or segments is not None):
        raise ValueError("forward with a cache needs positions and takes no segments.")
    if cache is not None and not config.causal:
        raise ValueError("an encoder's tokens see later ones: it has no use for a cache.")
    if cache is not None and memory is None:
        memory = cache.memory
    if (memory is not None) != (config.encoder_layers > 0):
        raise ValueError("a decoder beside an encoder needs memory, what `encode` gives; another model takes none.")
    if positions is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    slots = None
    if cache is None:
        sight = Sight(positions, positions, segments, segments)
    else:
        cache, slots = reserve(cache, positions)
        sight = Sight(positions, positions)  # each layer looks at its own shelf

    x = _enter(config, params, tokens, positions, nudge, None if key is None else jax.random.fold_in(key, config.num_layers))
    x, cache, told = run(config, params["layers"], x, _reading(config, params, sight, slots, memory), cache, key)
    return Output(norm(config).apply({"params": params["norm"]}, x) if "norm" in params else x, cache, told)


def _enter(config: ModelConfig, params: Params, tokens: Array, positions: Array, nudge: Array | None, key: Key | None) -> Array:
    """The residual stream's beginning: what tokens, and positions where they are added, embed as."""
    x = _embedding(config, config.vocabulary, "vocab").apply({"params": params["embedding"]}, tokens)
    if config.scaled_embedding:
        x = x * jnp.asarray(math.sqrt(config.width), x.dtype)
    if nudge is not None:
        x = x + nudge.astype(x.dtype)
    if config.positions == "learned":
        x = x + _embedding(config, config.context, "context").apply({"params": params["positions"]}, positions)
    if config.positions == "sinusoidal":
        x = x + place.sinusoidal(positions, config.width).astype(x.dtype)
    if config.embedding_norm:
        x = norm(config).apply({"params": params["embedding_norm"]}, x)
    return dropout(x, config.embedding_dropout, key)


def unembed(config: ModelConfig, params: Params, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """Gives the logits of the next token, or in an encoder of the token itself; float32."""
    if config.head_transform:
        hidden = activate(config.activation, _transform(config).apply({"params": params["transform"]["linear"]}, hidden))
        hidden = norm(config).apply({"params": params["transform"]["norm"]}, hidden)
    if config.logit_scale != 1.0:
        hidden = hidden * jnp.asarray(config.logit_scale, hidden.dtype)
    if config.tied:
        kernel = params["embedding"]["embedding"].astype(config.compute).T
    else:
        kernel = params["head"]["kernel"].astype(config.compute)
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    if config.logit_bias:
        logits = logits + params["logits"]["bias"].reshape((1,) * (logits.ndim - 1) + (-1,))
    return logits if config.logit_cap is None else config.logit_cap * jnp.tanh(logits / config.logit_cap)
