"""The attention layer: projects to heads, attends with one of the implementations, projects back.

Read `attend` (the dispatcher), then `Attention`. The mask is in `mask`, the choice of an
implementation in `select`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from gptjax.core.arrays import Array, Float, Key, Share
from gptjax.model import positions as place
from gptjax.model.activations import Observed, Probe
from gptjax.model.attention.blockwise import blockwise
from gptjax.model.attention.causal_blocks import causal_blocks
from gptjax.model.attention.kernels import cudnn, splash, split_splash
from gptjax.model.attention.mask import EVERY, MaskInputs, ScoreConfig
from gptjax.model.attention.reference import reference
from gptjax.model.attention.select import select_attention
from gptjax.model.attention.sharded import over_mesh
from gptjax.model.cache import Cache, Memory, Slots, update
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import Linear, Norm, parameter, residual_std, to_heads, together
from gptjax.model.rope_scaling import magnitude
from gptjax.model.shortcuts import Entrance, values_with
from gptjax.sharding.constrain import ROWS, axis_size, constrain, current_mesh
from gptjax.sharding.zigzag import WHOLE, Starts
from gptjax.weights.virtual import Prefix


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K value"],
    mask_inputs: MaskInputs,
    how: ScoreConfig = ScoreConfig(),
    table: Float[Array, "..."] | None = None,
    sink: Float[Array, " N"] | None = None,
    *,
    implementation: str = "reference",
    rate: Share = 0.0,
    key: Key | None = None,
    starts: Starts = WHOLE,
    kernel: Any = None,
) -> Float[Array, "B T N value"]:
    """Softmax attention: each query's mean of the values that it sees, weighted by exp(score).

    Query head n reads key/value head n // (N/K). A query that sees no key gives a finite,
    meaningless row.

    Args:
      how: what a score is, and who sees whom in this layer.
      table: the bias that `how` names.
      sink: each head's logit of a virtual key whose value is 0.
      implementation: one that `select_attention` names. All but `reference` need the tokens of a
        row in order and no cache.
      rate: share of attention weights dropped; needs `key`.
      starts: where the queries stand among the keys, where they are a part of the tokens.
      kernel: splash attention's, where that is so.

    Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; groups: Ainslie et al. 2023, GQA,
    arXiv:2305.13245; attention
    sinks: OpenAI 2025, gpt-oss, arXiv:2508.10925, section 2.2.
    """
    match implementation:
        case "reference":
            return reference(q, k, v, mask_inputs, how, table, sink, rate, key)
        case "causal_blocks":
            return causal_blocks(q, k, v, mask_inputs, how, table, sink, rate, key)
        case "blockwise":
            return blockwise(q, k, v, mask_inputs, how, table, sink, rate, key, starts)
        case "splash":
            return splash(q, k, v, mask_inputs, how, sink, kernel)
        case "cudnn":
            return cudnn(q, k, v, mask_inputs, how)
    raise ValueError(f"{implementation!r} is not an attention implementation.")


# --- the layer ---


class LayerInputs(NamedTuple):
    """What all layers share about the tokens that are read."""

    mask_inputs: MaskInputs
    angles: dict[Layer, Float[Array, "#B T half"] | None]
    """RoPE's angle of each token in each kind of layer; `None` where the layer has no RoPE."""
    tables: dict[str, Float[Array, "..."]]
    """Biases by distance, by their kind."""
    slots: Slots | None = None
    """Where the tokens go in the cache."""
    memory: Memory | None = None
    """What an encoder has read."""
    probe: Probe = Probe()
    """Which activations are observed or changed."""
    virtual: Prefix | None = None
    """Keys and values of virtual tokens before every text."""
    zigzag: bool = False
    """The tokens are in zig-zag order (`order`)."""
    entrance: Entrance | None = None
    """What a model with shortcuts reads of the embedded tokens."""


def with_cache(
    config: ModelConfig,
    layer: Layer,
    number: Any,
    cache: Cache,
    layer_inputs: LayerInputs,
    k: Array,
    v: Array,
) -> tuple[Cache, Array, Array, LayerInputs]:
    """The cache with a layer's new keys and values; all keys and values that it holds for the
    layer, and the mask_inputs of them."""
    cache, k, v, where = update(config, layer, number, cache, layer_inputs.slots.groups, k, v)
    return (
        cache,
        k,
        v,
        layer_inputs._replace(mask_inputs=layer_inputs.mask_inputs._replace(keys=where)),
    )


def after_virtual(
    number: Any, layer_inputs: LayerInputs, k: Array, v: Array
) -> tuple[Array, Array, LayerInputs]:
    """Keys and values after those of the virtual tokens in a layer, which all segments see at
    positions from 0 on, and the mask_inputs of them."""
    virtual, mask_inputs = layer_inputs.virtual, layer_inputs.mask_inputs

    def joined(whole: Array, x: Array) -> Array:
        shape = (x.shape[0], *whole.shape[1:])
        return jnp.concatenate([jnp.broadcast_to(whole[number], shape).astype(x.dtype), x], axis=1)

    def before(first: Array, x: Array | None) -> Array | None:
        shape = None if x is None else (x.shape[0], virtual.count)
        return x if x is None else jnp.concatenate([jnp.broadcast_to(first, shape), x], axis=1)

    mask_inputs = mask_inputs._replace(
        keys=before(jnp.arange(virtual.count, dtype=jnp.int32), mask_inputs.keys),
        key_segments=before(jnp.int32(EVERY), mask_inputs.key_segments),
    )
    k, v = joined(virtual.keys, k), joined(virtual.values, v)
    return k, v, layer_inputs._replace(mask_inputs=mask_inputs)


class Attention(nn.Module):
    """Projects to heads, turns them (RoPE), attends, projects back."""

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer_inputs: LayerInputs,
        cache: Cache | None,
        number: Any,
        key: Key | None,
        seen: Observed,
    ) -> tuple[Float[Array, "B T D"], Cache | None, Observed]:
        c, probe = self.config, layer_inputs.probe._replace(layer=number)
        three = (
            to_heads(c, c.num_heads, "heads", "query"),
            to_heads(c, c.kv_heads, "kv_heads", "key", c.key_bias),
            to_heads(c, c.kv_heads, "kv_heads", "value"),
        )
        if c.attention_gate:
            three += (to_heads(c, c.num_heads, "heads", "gate"),)
        q, k, v, *gate = together(x, three, joined=True)
        if layer_inputs.entrance is not None:
            v = values_with(self, c, v, layer_inputs.entrance)
        if c.qk_norm and not c.qk_norm_after_rope:
            q, k = head_norm(c, "query_norm", "heads", q), head_norm(c, "key_norm", "kv_heads", k)
        if c.qkv_clip is not None:
            q, k, v = (jnp.clip(x, -c.qkv_clip, c.qkv_clip) for x in (q, k, v))
        q, k = apply_rope(c, self.layer, layer_inputs, q, k)
        if c.qk_norm_after_rope or c.query_growth is not None:
            q, k = after_rope(c, self.layer, layer_inputs, q, k)
        if cache is not None:
            cache, k, v, layer_inputs = with_cache(c, self.layer, number, cache, layer_inputs, k, v)
        sink = None
        if c.attention_sink:
            sink = parameter(self, "sink", nn.initializers.zeros, (c.num_heads,), ("heads",))
        q, seen = probe.saved("query", q, seen)
        k, seen = probe.saved("key", k, seen)
        v, seen = probe.saved("value", v, seen)
        further = cache is not None or layer_inputs.virtual is not None
        if layer_inputs.virtual is not None:
            k, v, layer_inputs = after_virtual(number, layer_inputs, k, v)
        mixed = attend_in(c, self.layer, q, k, v, layer_inputs, sink, further, key)
        mixed, seen = probe("attention", mixed, seen)
        if gate:
            mixed = mixed * nn.sigmoid(gate[0])
        return from_heads(c, c.head_dim, "out")(mixed), cache, seen


def from_heads(config: ModelConfig, head_width: int, name: str | None = None) -> Linear:
    """The projection of all heads back to the residual stream."""
    sizes = (config.num_heads, head_width), (config.width,)
    axes = ("heads", "head", "embed")
    return Linear(*sizes, axes, residual_std(config), config.out_bias_enabled, name=name)


def apply_rope(
    config: ModelConfig, layer: Layer, layer_inputs: LayerInputs, q: Array, k: Array
) -> tuple[Array, Array]:
    """Queries and keys turned by their positions, if the layer has RoPE."""
    angles = layer_inputs.angles[layer]
    if angles is None:
        return q, k
    louder = magnitude(config.scaling_in(layer))
    return place.rotate(q, angles, louder), place.rotate(k, angles, louder)


def after_rope(
    config: ModelConfig, layer: Layer, layer_inputs: LayerInputs, q: Array, k: Array
) -> tuple[Array, Array]:
    """Queries and keys that are normalised once they are turned, and queries that grow."""
    if config.qk_norm_after_rope and config.positions_in(layer) == "rope":
        q = head_norm(config, "query_norm", "heads", q)
        k = head_norm(config, "key_norm", "kv_heads", k)
    return q if config.query_growth is None else grown(config, layer, layer_inputs, q), k


def grown(
    config: ModelConfig, layer: Layer, layer_inputs: LayerInputs, q: Float[Array, "B T N H"]
) -> Float[Array, "B T N H"]:
    """Queries that grow with their position, as `query_growth` says."""
    growth = config.query_growth
    if growth.unrotated_only and config.positions_in(layer) == "rope":
        return q
    steps = (jnp.maximum(layer_inputs.mask_inputs.queries, 0) + growth.first) // growth.span
    factor = 1 + growth.strength * jnp.log1p(steps.astype(jnp.float32))
    return q * factor[:, :, None, None].astype(q.dtype)


def head_norm(
    config: ModelConfig, name: str, axis: str, x: Float[Array, "B T N H"]
) -> Float[Array, "B T N H"]:
    """Queries or keys, normalised head by head or all heads as one vector."""
    joint = config.qk_norm_joint
    whole = x.reshape(*x.shape[:2], -1) if joint else x
    how = {"scaled": config.qk_norm_scale, "axis": axis if joint else "head", "name": name}
    return Norm("rmsnorm", whole.shape[-1], config.norm_epsilon, False, **how)(whole).reshape(
        x.shape
    )


def attend_in(
    config: ModelConfig,
    layer: Layer,
    q: Array,
    k: Array,
    v: Array,
    layer_inputs: LayerInputs,
    sink: Array | None,
    cached: bool,
    key: Key | None,
) -> Array:
    """Attends as a layer of this model does, with the implementation `select_attention` names."""
    bias = config.positions_in(layer)
    bias = bias if bias in ("alibi", "t5") else "none"
    how = ScoreConfig(
        layer, config.scale, config.attention_cap, bias, config.t5_distance, config.causal
    )
    implementation, _ = select_attention(config, q.shape[1], layer, cached=cached)
    table, rate = layer_inputs.tables.get(bias), config.attention_dropout
    told = {"implementation": implementation, "rate": rate, "key": key}
    plain = implementation in ("reference", "causal_blocks") and axis_size("context") == 1
    # XLA splits random bits, so that they are those of one device.
    random = rate and key is not None
    if current_mesh() is None or cached or plain or random:
        k, v = (constrain(x, ROWS, (), ("tensor",), ()) for x in (k, v))
        return checkpoint_name(
            attend(q, k, v, layer_inputs.mask_inputs, how, table, sink, **told), "attention"
        )
    kernel = (
        split_splash(q, how, zigzag=layer_inputs.zigzag)
        if implementation == "splash" and axis_size("context") > 1
        else (None, None)
    )

    def own(q, k, v, mask_inputs, table, sink, starts, kernel):
        return attend(q, k, v, mask_inputs, how, table, sink, **told, starts=starts, kernel=kernel)

    seen, zigzag = layer_inputs.mask_inputs, layer_inputs.zigzag
    mixed = over_mesh(own, q, k, v, seen, table, sink, *kernel, zigzag=zigzag)
    return checkpoint_name(mixed, "attention")
