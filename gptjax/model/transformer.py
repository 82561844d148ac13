"""The model as pure functions of a frozen config and a parameter tree: `init, shapes, axes, encode,
forward, unembed, empty_cache`.

Linen lives behind them. Parameters are one tree for every way of running it:

    embedding/embedding [V D]   positions/embedding [context D]   distances/bias [buckets N]
    layers/… [L …]   norm/…   head/kernel [D V]

A classifier has classes/kernel [D classes] and classes/bias instead of an output; blocks that
predict further tokens are stacked in ahead/….

An encoder beside a decoder has positions, distances, layers and norm of its own below `encoder`.
Where only some layers have experts, the two kinds are stacked apart: layers/dense/… and
layers/sparse/….
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Axes, Float, Int, Key, Params
from gptjax.model import positions as place
from gptjax.model.attention.biases import slopes
from gptjax.model.attention.cross import CrossAttention
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.attention.mask import MaskInputs
from gptjax.model.cache import Cache, Memory, allocate, empty_cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import Declared, Linear, Table, activate, dropout, norm
from gptjax.model.stack import Block, init_stack, run, scanned
from gptjax.sharding.constrain import ROWS, constrain_residual
from gptjax.weights.embed import embed
from gptjax.weights.linear import linear
from gptjax.weights.weight import Role, Weight, transposed

__all__ = [
    "Cache",
    "Memory",
    "Output",
    "axes",
    "classify",
    "empty_cache",
    "encode",
    "forward",
    "init",
    "logits_of",
    "look_ahead",
    "roles",
    "scanned",
    "shapes",
    "to_output",
    "unembed",
]


class Output(NamedTuple):
    """What `forward` gives."""

    hidden: Float[Array, "B T D"]
    """Final hidden states, normalised; `unembed` turns them into logits."""
    cache: Cache | None
    """The cache that has read these tokens too; none if none was given."""
    aux: dict[str, Array]
    """What layers of experts tell, stacked by layer; empty without experts. For each token, so that
    an objective weighs them as it weighs its own losses: `balance` and `router_z` [L B T]. As sums
    over tokens: `load` [L E], `dropped` [L]."""


Roles = Any
"""A tree like the parameters whose leaves are `weights.Role`."""


def init(config: ModelConfig, key: Key) -> Params:
    """Gives the initial parameters, float32. Layers are stacked: each leaf below `layers` has a
    leading dimension L."""
    return nn.meta.unbox(_boxed(config, key))


def shapes(config: ModelConfig) -> Params:
    """Gives the shapes and types of the parameters; nothing is allocated."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def axes(config: ModelConfig) -> Axes:
    """Gives the logical axis names of every parameter's dimensions; stacked layers begin with
    `layers`."""
    return _declared(config, lambda box, stack: ("layers", *box.names) if stack else box.names)


def roles(config: ModelConfig) -> Roles:
    """Gives the role of every parameter: how many dimensions are stacked, how many are inputs of a
    product, and whether weight decay shrinks it."""

    def role(box: Declared, stack: bool) -> Role:
        return box.role._replace(stacked=box.role.stacked + stack)

    return _declared(config, role)


def _declared(config: ModelConfig, of: Callable[[Declared, bool], Any]) -> Any:
    """A tree like the parameters of what a function gives of each box; its second argument says
    whether the parameter lies in a stack of layers."""
    boxed = jax.eval_shape(functools.partial(_boxed, config), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, box: of(box, any(key.key in ("layers", "ahead") for key in path)),
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, Declared),
    )


@functools.partial(jax.jit, static_argnums=0)
def _boxed(config: ModelConfig, key: Key) -> Params:
    """Parameters in Linen's boxes that hold the axis names. Compiled, and so traced once, though a
    start asks for shapes, axes and values by turns."""
    keys = iter(jax.random.split(key, 5))
    config = dataclasses.replace(
        config, attention="reference"
    )  # the one position below is no case for any other
    x, where = jnp.zeros((1, 1, config.width), config.compute), jnp.zeros((1, 1), jnp.int32)
    mask_inputs, params = MaskInputs(where, where), {}
    if _biased_by_distance(config):
        table = config.init_std * jax.random.normal(
            jax.random.fold_in(key, 5), (config.t5_buckets, config.num_heads)
        )
        params["distances"] = {"bias": Declared(table, ("buckets", "heads"))}
    layer_inputs = _layer_inputs(config, nn.meta.unbox(params), mask_inputs)

    params |= {
        "embedding": (
            _embedding(config, config.vocabulary, "vocab").init(next(keys), where)["params"]
        ),
        "layers": init_stack(config, next(keys), x, layer_inputs),
    }
    final = next(keys)
    if config.norm_placement != "post":
        params["norm"] = norm(config).init(final, x)["params"]
    if config.positions == "learned":
        params["positions"] = _embedding(config, config.context, "context").init(next(keys), where)[
            "params"
        ]
    if config.ahead:
        further = _ahead(config)
        params["ahead"] = init_stack(
            further,
            jax.random.fold_in(key, 8),
            x,
            _layer_inputs(further, nn.meta.unbox(params), mask_inputs),
        )
    if config.classes:
        params["classes"] = _classes(config).init(jax.random.fold_in(key, 9), x)["params"]
        config = dataclasses.replace(
            config, tied=True, head_transform=False, logit_bias=False
        )  # no output over tokens
    if not config.tied:
        params["head"] = _head(config).init(next(keys), x)["params"]
    if config.embedding_norm:
        params["embedding_norm"] = norm(config).init(key, x)["params"]
    if config.head_transform:
        params["transform"] = {
            "linear": _transform(config).init(jax.random.fold_in(key, 6), x)["params"],
            "norm": norm(config).init(key, x)["params"],
        }
    if config.logit_bias:
        params["logits"] = {"bias": Declared(jnp.zeros((config.vocabulary,)), ("vocab",))}
    if config.encoder_layers:
        beside = _boxed(config.encoder, jax.random.fold_in(key, 7))
        params["encoder"] = {name: beside[name] for name in _ENCODERS_OWN if name in beside}
    return params


_ENCODERS_OWN = ("positions", "distances", "embedding_norm", "layers", "norm")
"""What an encoder does not share with its decoder."""


def _embedding(config: ModelConfig, count: int, axis: str) -> Table:
    return Table(count, config.width, axis, config.init_std, config.compute)


def _head(config: ModelConfig) -> Linear:
    names = ("embed", "vocab")
    return Linear((config.width,), (config.vocabulary,), names, config.init_std, bias=False)


def _classes(config: ModelConfig) -> Linear:
    names = ("embed", None)
    return Linear((config.width,), (config.classes,), names, config.init_std, bias=True)


def _ahead(config: ModelConfig) -> ModelConfig:
    """The blocks that predict further tokens, as a stack of their own."""
    return dataclasses.replace(
        config,
        num_layers=config.ahead,
        pattern=(config.ahead_layer,),
        first=(),
        experts=None,
        ahead=0,
    )


def _transform(config: ModelConfig) -> Linear:
    names = ("embed", None)
    return Linear((config.width,), (config.width,), names, config.init_std, config.bias)


def _biased_by_distance(config: ModelConfig) -> bool:
    return any(config.positions_in(layer) == "t5" for layer in config.stack)


def _layer_inputs(
    config: ModelConfig,
    params: Params,
    mask_inputs: MaskInputs,
    slots: tuple[Array, ...] | None = None,
    memory: Memory | None = None,
) -> LayerInputs:
    """Makes of positions what the layers need, once for all of them."""

    def angles(layer: Layer) -> Array | None:
        if config.positions_in(layer) != "rope":
            return None
        return place.turns(
            mask_inputs.queries,
            config.rotary_dim,
            layer.rope_base or config.rope_base,
            config.scaling_in(layer),
        )

    tables = {"alibi": slopes(config.num_heads)} | (
        {"t5": params["distances"]["bias"]} if _biased_by_distance(config) else {}
    )
    return LayerInputs(
        mask_inputs, {layer: angles(layer) for layer in config.stack}, tables, slots, memory
    )


def encode(
    config: ModelConfig, params: Params, side: Any, *, key: Key | None = None
) -> Memory | None:
    """Reads the side text into what the decoder attends to; a model without an encoder has none.

    Args:
      side: a `data.Side`: tokens [B S], positions, segments; none has none.
      key: dropout's randomness; none turns dropout off.

    Raises:
      ValueError: a side text was given to a model without an encoder, or none to one with an
        encoder.
    """
    if (side is not None) != (config.encoder_layers > 0):
        raise ValueError(
            "this model has no encoder for a side text."
            if side is not None
            else "this model's encoder needs a side text."
        )
    if side is None:
        return None
    own = {"embedding": params["embedding"], **params["encoder"]}
    count = jnp.arange(side.tokens.shape[1], dtype=jnp.int32)[None]
    positions = (
        jnp.broadcast_to(count, side.tokens.shape) if side.positions is None else side.positions
    )
    states = forward(
        config.encoder, own, side.tokens, positions=positions, segments=side.segments, key=key
    ).hidden

    def remember(layer: Params) -> tuple[Array, Array]:
        weights = {"params": layer["cross"]}
        return CrossAttention(config).apply(weights, states, method="remember")

    if isinstance(params["layers"], tuple):  # prepared for decoding
        keys, values = map(jnp.stack, zip(*map(remember, params["layers"]), strict=True))
    else:
        keys, values = jax.vmap(remember)(params["layers"])
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
    perturbation: Float[Array, "B T D"] | None = None,
    prefix: Int[Array, "B T"] | None = None,
    key: Key | None = None,
) -> Output:
    """Reads tokens and gives their final hidden states.

    Args:
      tokens: ids in [0, V); out-of-range ids are the caller's to refuse.
      positions: where each token stands; none counts from 0. With a cache it is needed, and −1
        marks padding.
      segments: tokens of different segments do not see each other; not together with a cache.
      memory: what `encode` gives, for a model with an encoder beside its decoder; none takes the
        cache's.
      cache: what was read before; the tokens see it and are added to it.
      perturbation: added to the embedded tokens.
      prefix: how many tokens of its piece, from the first, a prefix LM lets see each other; all of
        these are read at once. Another model sees none of it.
      key: dropout's randomness; none turns dropout off.
    """
    if cache is not None and (positions is None or segments is not None):
        raise ValueError("forward with a cache needs positions and takes no segments.")
    if cache is not None and not config.causal:
        raise ValueError("an encoder's tokens see later ones: it has no use for a cache.")
    if cache is not None and memory is None:
        memory = cache.memory
    if (memory is not None) != (config.encoder_layers > 0):
        raise ValueError(
            "a decoder beside an encoder needs memory, what `encode` gives; another model takes"
            " none."
        )
    if positions is None:
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    slots = None
    if cache is None:
        mask_inputs = MaskInputs(
            positions, positions, segments, segments, prefix if config.prefix_lm else None
        )
    else:
        cache, slots = allocate(cache, positions)
        mask_inputs = MaskInputs(
            positions, positions, prefixes=prefix if config.prefix_lm else None
        )  # each layer looks at its own group

    x = _enter(
        config,
        params,
        tokens,
        positions,
        perturbation,
        None if key is None else jax.random.fold_in(key, config.num_layers),
    )
    x, cache, told = run(
        config,
        params["layers"],
        x,
        _layer_inputs(config, params, mask_inputs, slots, memory),
        cache,
        key,
    )
    return Output(_leave(config, params, x), cache, told)


def _leave(config: ModelConfig, params: Params, x: Array) -> Array:
    return norm(config).apply({"params": params["norm"]}, x) if "norm" in params else x


def look_ahead(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B T D"],
    positions: Array | None,
    segments: Array | None,
    prefix: Array | None,
    key: Key | None,
) -> list[Float[Array, "B T D"]]:
    """Hidden states that predict the token after the next one, the one after that, and so on: each
    a block on the final hidden states.

    Norm and output are those of the model. Source: Gloeckle et al. 2024, arXiv:2404.19737, section
    2, whose heads read states before the final norm, and whose next-token head has such a block
    too.
    """
    further, (layer, *_) = _ahead(config), _ahead(config).stack
    if positions is None:
        positions = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
    layer_inputs = _layer_inputs(
        further,
        params,
        MaskInputs(positions, positions, segments, segments, prefix if config.prefix_lm else None),
    )
    found = []
    for number in range(config.ahead):
        own = None if key is None else jax.random.fold_in(key, number)
        weights = jax.tree.map(lambda leaf, number=number: leaf[number], params["ahead"])
        found.append(
            _leave(
                config,
                params,
                Block(further, layer).apply(
                    {"params": weights}, hidden, layer_inputs, None, number, own
                )[0],
            )
        )
    return found


def _enter(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    perturbation: Array | None,
    key: Key | None,
) -> Array:
    """The residual stream's beginning: what tokens, and positions where they are added, embed
    as."""
    x = embed(params["embedding"]["embedding"], tokens, config.compute)
    if config.scaled_embedding:
        x = x * jnp.asarray(math.sqrt(config.width), x.dtype)
    if perturbation is not None:
        x = x + perturbation.astype(x.dtype)
    if config.positions == "learned":
        x = x + _embedding(config, config.context, "context").apply(
            {"params": params["positions"]}, positions
        )
    if config.positions == "sinusoidal":
        x = x + place.sinusoidal(positions, config.width).astype(x.dtype)
    if config.embedding_norm:
        x = norm(config).apply({"params": params["embedding_norm"]}, x)
    return constrain_residual(dropout(x, config.embedding_dropout, key))


def unembed(
    config: ModelConfig, params: Params, hidden: Float[Array, "... D"]
) -> Float[Array, "... V"]:
    """Gives the logits of the next token, or in an encoder of the token itself; float32."""
    return logits_of(config, *to_output(config, params, hidden))


def to_output(
    config: ModelConfig, params: Params, hidden: Float[Array, "... D"]
) -> tuple[Float[Array, "... D"], Weight, Float[Array, " V"] | None]:
    """The arguments of `logits_of`: hidden states as the output reads them, its kernel [D V] and its
    bias [V]. Columns may be left out of both."""
    if config.head_transform:
        hidden = activate(
            config.activation,
            _transform(config).apply({"params": params["transform"]["linear"]}, hidden),
        )
        hidden = norm(config).apply({"params": params["transform"]["norm"]}, hidden)
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


def classify(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B T D"],
    positions: Int[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T classes"]:
    """Gives at each position the logits of the class of its text, float32; a text is all tokens of
    a segment, padding is none.

    With `pool` `last` they are told from the position itself, so that only a text's last one knows
    all of it.

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
    return _classes(config).apply({"params": params["classes"]}, hidden).astype(jnp.float32)
