"""The model as pure functions of a frozen config and a parameter tree: `encode`, `forward`,
`look_ahead`. Linen lives behind them.

Read `forward`. What its parameters are is in `parameters`, what is made of its hidden states in
`output`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int, Key, Numbers, Params
from gptjax.model import positions as place
from gptjax.model.activations import Intervention, Observed, Probe, require_known_activations
from gptjax.model.attention.cross import CrossAttention
from gptjax.model.attention.mask import MaskInputs
from gptjax.model.cache import Cache, Memory, allocate
from gptjax.model.chained import chained_states
from gptjax.model.config import ModelConfig
from gptjax.model.inputs.frames import enter_frames, leave_frames
from gptjax.model.layers import norm
from gptjax.model.parameters import (
    embedding_projection,
    embedding_table,
    layer_inputs_of,
)
from gptjax.model.shortcuts import with_shortcuts
from gptjax.model.stack import Block, run_stack
from gptjax.sharding.constrain import constrain_residual
from gptjax.weights.dropout import dropout
from gptjax.weights.embed import embed
from gptjax.weights.virtual import Prefix, Prompt, split_virtual


class Output(NamedTuple):
    """What `forward` gives."""

    hidden: Float[Array, "B T D"]
    """Final hidden states, normalised; `unembed` turns them into logits."""
    cache: Cache | None
    """The cache that has read these tokens too; `None` if none was given."""
    aux: dict[str, Array]
    """Outputs of layers of experts, stacked by layer; empty without experts. For each token, so
    that a loss weighs them as it weighs its own terms: `balance` and `router_z` [L B T]. As sums
    over tokens: `load` [L E], `dropped` [L]."""
    observed: Observed
    """The activations that `observe` names; `activations.ACTIVATIONS` has their shapes."""


class Soft(NamedTuple):
    """Embeddings that take the place of some tokens': image patches, learned prompts."""

    embeddings: Float[Array, "B P entrance"]
    """As `embed_tokens` gives them."""
    index: Int[Array, "B P"]
    """The place in its row of the token that each replaces; −1 replaces none."""


class Frames(NamedTuple):
    """Continuous inputs of an encoder: log-mel frames, image patches."""

    values: Float[Array, "B F C"]
    positions: Int[Array, "B F"] | None = None
    """`None` counts from 0; −1 marks padding."""


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Numbers, "B T"],
    *,
    positions: Int[Numbers, "#B T"] | None = None,
    segments: Int[Numbers, "B T"] | None = None,
    memory: Memory | None = None,
    frames: Frames | None = None,
    cache: Cache | None = None,
    soft: Soft | None = None,
    perturbation: Float[Numbers, "B T entrance"] | None = None,
    prefix: Int[Numbers, "B T"] | None = None,
    observe: tuple[str, ...] = (),
    intervene: Intervention | None = None,
    key: Key | None = None,
) -> Output:
    """Reads tokens, after the virtual tokens that `params` may hold; gives their hidden states.

    Args:
      tokens: ids in [0, V); out-of-range ids are the caller's to refuse.
      positions: where each token stands; `None` counts from 0. A cache needs them; −1 is padding.
      segments: tokens of different segments do not see each other; not together with a cache.
      memory: the result of `encode`, for a model with an encoder; `None` takes the cache's.
      frames: what such an encoder reads, where `memory` is not given.
      cache: what was read before; the tokens see it and are added to it.
      soft: embeddings that replace those of some tokens.
      perturbation: added to the embedded tokens.
      prefix: number of tokens of its piece, from the first, that see each other in a prefix LM and
        are read at once; another model ignores it.
      observe: names of activations to return; see `activations.ACTIVATIONS`.
      intervene: a pure function (name, layer, x) → x for every named activation of the decoder.
      key: dropout's randomness; `None` turns dropout off.

    Raises:
      ValueError: arguments that this model has no use for, or an unknown name.
    """
    require_known_activations(observe)
    tokens, positions, segments, prefix = jax.tree.map(
        jnp.asarray, (tokens, positions, segments, prefix)
    )
    if frames is not None:
        memory = encode(config, params, frames=frames, key=key)
    memory = cache.memory if memory is None and cache is not None else memory
    _check(config, positions, segments, memory, cache)
    params, virtual = read_virtual(config, params, key)
    positions = _places(tokens, positions, 0 if virtual is None else virtual.count)
    cache, slots = (None, None) if cache is None else allocate(cache, positions)
    prefix = prefix if config.prefix_lm else None
    mask_inputs = MaskInputs(positions, positions, segments, segments, prefix)
    probe = Probe(tuple(observe), intervene)
    layer_inputs = layer_inputs_of(config, params, mask_inputs, slots, memory, probe, virtual)
    x = _embedded(config, params, tokens, soft, perturbation)
    x = _positioned(config, params, x, positions, _entrance_key(config, key))
    x, seen = probe("embedding", x, {})
    if config.shortcuts is not None:
        layer_inputs = with_shortcuts(config, params, x, tokens, soft, layer_inputs)
    x, cache, outputs = run_stack(config, params["layers"], x, layer_inputs, cache, key)
    hidden, seen = probe("hidden", _normalised(config, params, x), seen)
    return Output(hidden, cache, outputs.aux, outputs.observed | seen)


def _check(
    config: ModelConfig,
    positions: Array | None,
    segments: Array | None,
    memory: Memory | None,
    cache: Cache | None,
) -> None:
    if cache is not None and (positions is None or segments is not None):
        raise ValueError("forward with a cache needs positions and takes no segments.")
    if cache is not None and not config.causal:
        raise ValueError("an encoder's tokens see later ones: it has no use for a cache.")
    if (memory is not None) != config.has_encoder:
        raise ValueError(
            "a decoder beside an encoder needs memory, the result of `encode`; another model takes"
            " none."
        )


def _places(tokens: Array, positions: Array | None, begin: int) -> Int[Array, "#B T"]:
    """The positions after `begin` virtual tokens, which stand before each segment of each row."""
    if positions is None:
        return begin + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    return jnp.where(positions < 0, positions, begin + positions) if begin else positions


def read_virtual(
    config: ModelConfig, params: Params, key: Key | None = None
) -> tuple[Params, Prefix | None]:
    """The parameters without virtual tokens, and each layer's keys and values of these. A prompt is
    read once, whatever the rows are: it sees nothing but itself."""
    params, virtual = split_virtual(params)
    if not isinstance(virtual, Prompt):
        return params, virtual
    places = jnp.arange(virtual.count, dtype=jnp.int32)[None]
    soft = Soft(virtual.embeddings[None], places)
    observe = ("key", "value")
    seen = forward(
        config, params, jnp.zeros_like(places), soft=soft, observe=observe, key=key
    ).observed
    return params, Prefix(*(seen[name][:, 0] for name in observe))


# --- what enters the layers, and what leaves them ---


def embed_tokens(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "B T entrance"]:
    """The embeddings of tokens, scaled and projected, as positions are added to them."""
    x = embed(params["embedding"]["embedding"], tokens, config.compute)
    scale = config.embedding_scale * (math.sqrt(config.width) if config.scaled_embedding else 1.0)
    x = x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)
    return _projected(config, params, x, "tokens")


def _projected(config: ModelConfig, params: Params, x: Array, where: str) -> Array:
    """x from the width of embeddings to the model's, if that is done here."""
    if config.embedding_width and config.embedding_projection == where:
        x = embedding_projection(config).apply({"params": params["projection"]["into"]}, x)
    return x


def _embedded(
    config: ModelConfig, params: Params, tokens: Array, soft: Soft | None, added: Array | None
) -> Float[Array, "B T entrance"]:
    x = embed_tokens(config, params, tokens)
    if soft is not None:
        index = jnp.where(soft.index >= 0, soft.index, x.shape[1])  # past the end: dropped
        rows = jnp.arange(x.shape[0])[:, None]
        x = x.at[rows, index].set(soft.embeddings.astype(x.dtype), mode="drop")
    return x if added is None else x + added.astype(x.dtype)


def _positioned(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "B T entrance"],
    positions: Array,
    key: Key | None,
) -> Float[Array, "B T D"]:
    """The beginning of the residual stream: x with positions, where they are added to it."""
    if config.positions == "learned":
        table = params["positions"]
        count = table["embedding"].shape[0]  # virtual tokens have theirs beside the context's
        x = x + embedding_table(config, count, "context").apply({"params": table}, positions)
    if config.positions == "sinusoidal":
        x = x + place.sinusoidal(positions, config.entrance_dim).astype(x.dtype)
    if config.embedding_norm:
        weights = {"params": params.get("embedding_norm", {})}
        x = norm(config, width=config.entrance_dim).apply(weights, x)
    x = _projected(config, params, x, "stream")
    return constrain_residual(dropout(x, config.embedding_dropout, key))


def _entrance_key(config: ModelConfig, key: Key | None) -> Key | None:
    return None if key is None else jax.random.fold_in(key, config.num_layers)


def _normalised(config: ModelConfig, params: Params, x: Array) -> Array:
    weights = {"params": params.get("norm", {})}
    return x if config.norm_placement == "post" else norm(config).apply(weights, x)


# --- encoders ---


def encode(
    config: ModelConfig,
    params: Params,
    side: Any = None,
    *,
    frames: Frames | None = None,
    key: Key | None = None,
) -> Memory | None:
    """Reads a side text or frames into the keys and values that the decoder attends to; a model
    without an encoder has none.

    Args:
      side: a `data.Side` (tokens [B S], positions, segments) for a model with `encoder_layers`;
        `data.Heard`, or `Frames`, for one with `frames`.
      frames: the same as `side`, of a model with `frames`.
      key: dropout's randomness; `None` turns dropout off.

    Raises:
      ValueError: what is given is not what the model's encoder reads.
    """
    if config.frames is not None and side is not None:
        side, frames = None, Frames(side.values, side.positions)
    wanted = {"a side text": config.encoder_layers > 0, "frames": config.frames is not None}
    for (name, needed), given in zip(wanted.items(), (side, frames), strict=True):
        if (given is not None) != needed:
            raise ValueError(f"this model {'needs' if needed else 'has no encoder of'} {name}.")
    if frames is not None:
        return _encode_frames(config, params, frames, key)
    if side is None:
        return None
    own = {"embedding": params["embedding"], **params["encoder"]}
    positions = _counted(side.tokens.shape, side.positions)
    states = forward(
        config.encoder, own, side.tokens, positions=positions, segments=side.segments, key=key
    ).hidden
    return _remembered(config, params, states, positions, side.segments)


def _encode_frames(config: ModelConfig, params: Params, frames: Frames, key: Key | None) -> Memory:
    """Takes frames to the encoder's width, reads them, and takes them to the decoder's width."""
    encoder, own = config.frame_encoder, params["frames"]
    values = jnp.asarray(frames.values, config.compute)
    positions = _counted(frames.values.shape[:2], frames.positions)
    x, positions = enter_frames(config, own, values, positions)
    x = _positioned(encoder, own, x, positions, _entrance_key(encoder, key))
    layer_inputs = layer_inputs_of(encoder, own, MaskInputs(positions, positions))
    x, _, _ = run_stack(encoder, own["layers"], x, layer_inputs, None, key)
    states = leave_frames(config, own, _normalised(encoder, own, x))
    return _remembered(config, params, states, positions, None)


def _counted(shape: tuple[int, ...], positions: Array | None) -> Int[Array, "B S"]:
    """The positions, or where there are none a count from 0 in each row."""
    count = jnp.arange(shape[1], dtype=jnp.int32)[None]
    return jnp.broadcast_to(count, shape) if positions is None else positions


def _remembered(
    config: ModelConfig, params: Params, states: Array, positions: Array, segments: Array | None
) -> Memory:
    """Every decoder layer's keys and values of an encoder's hidden states."""

    def remember(layer: Params) -> tuple[Array, Array]:
        weights = {"params": layer["cross"]}
        return CrossAttention(config).apply(weights, states, method="remember")

    if isinstance(params["layers"], tuple):  # prepared for decoding
        keys, values = map(jnp.stack, zip(*map(remember, params["layers"]), strict=True))
    else:
        keys, values = jax.vmap(remember)(params["layers"])
    return Memory(keys, values, positions, segments)


# --- further tokens ---


def look_ahead(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B T D"],
    positions: Numbers | None,
    segments: Numbers | None,
    prefix: Numbers | None,
    key: Key | None,
    following: Int[Numbers, "B T"] | None = None,
) -> list[Float[Array, "B T D"]]:
    """Hidden states that predict the token after the next one, the one after that, and so on: each
    a block on the final hidden states, or with `ahead_chained` see `chained`.

    Args:
      following: the token after each, which chained blocks read.

    Norm and output are those of the model. Source: Gloeckle et al. 2024, arXiv:2404.19737, section
    2, whose heads read states before the final norm, and whose next-token head has such a block
    too.
    """
    positions, segments, prefix = jax.tree.map(jnp.asarray, (positions, segments, prefix))
    further = config.further
    if positions is None:
        positions = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None]
    prefix = prefix if config.prefix_lm else None
    mask_inputs = MaskInputs(positions, positions, segments, segments, prefix)
    layer_inputs = layer_inputs_of(further, params, mask_inputs)
    if config.ahead_chained:
        embed, weights = functools.partial(embed_tokens, config, params), params["ahead"]
        return chained_states(
            further, weights, hidden, jnp.asarray(following), embed, layer_inputs, key
        )
    outputs = []
    for number in range(config.ahead):
        own_key = None if key is None else jax.random.fold_in(key, number)
        weights = jax.tree.map(lambda leaf, number=number: leaf[number], params["ahead"])
        block = Block(further, further.stack[0])
        x, _, _ = block.apply({"params": weights}, hidden, layer_inputs, None, number, own_key)
        outputs.append(_normalised(config, params, x))
    return outputs
