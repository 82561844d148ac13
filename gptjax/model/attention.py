"""The implementations of attention, and the layer that projects, attends and projects back.

Read `attend` and `choose` (the dispatcher), then the implementations, then `Attention`. Who sees whom is in `sight`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.arrays import Array, Float, Int, Key
from gptjax.model import positions as place
from gptjax.model.blockwise import blockwise
from gptjax.model.cache import Cache, Memory, remember
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.kernels import cudnn, cudnn_lacks, splash, splash_lacks
from gptjax.model.layers import Linear, Norm, dropout, residual_std
from gptjax.model.products import multiply
from gptjax.model.scaling import magnitude
from gptjax.model.sight import Scoring, Sight, scores


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K value"],
    sight: Sight,
    how: Scoring = Scoring(),
    table: Float[Array, "..."] | None = None,
    sink: Float[Array, " N"] | None = None,
    *,
    implementation: str = "reference",
    rate: float = 0.0,
    key: Key | None = None,
) -> Float[Array, "B T N value"]:
    """Softmax attention: each query's mean of the values that it sees, weighted by exp(score).

    Query head n reads key/value head n // (N/K). A query that sees nobody gives a finite, meaningless row.

    Args:
      how: what a score is, and who sees whom in this layer.
      table: the bias that `how` names.
      sink: each head's score for looking at nobody, who has the value 0.
      implementation: one that `choose` names. All but `reference` need the tokens of a row in order and no cache.
      rate: share of attention weights dropped; needs `key`.

    Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; groups: Ainslie et al. 2023, GQA, arXiv:2305.13245; a score for
    nobody: OpenAI 2025, gpt-oss, arXiv:2508.10925, section 2.2.
    """
    match implementation:
        case "reference":
            return _reference(q, k, v, sight, how, table, sink, rate, key)
        case "causal_blocks":
            return _causal_blocks(q, k, v, sight, how, table, sink, rate, key)
        case "blockwise":
            return blockwise(q, k, v, sight, how, table, sink, rate, key)
        case "splash":
            return splash(q, k, v, sight, how, sink)
        case "cudnn":
            return cudnn(q, k, v, sight, how)
    raise ValueError(f"{implementation!r} is not an attention implementation.")


def choose(config: ModelConfig, length: int, layer: Layer = Layer(), *, cached: bool = False, backend: str | None = None) -> tuple[str, str]:
    """Gives the implementation that serves a row of `length` queries, and why.

    Args:
      backend: where it will run; none is where JAX runs by default, and then a named one is not held to its own backend, so
        that a program can be lowered for another machine.

    Raises:
      ValueError: the config names an implementation that can't serve this case.
    """
    here = backend or jax.default_backend()
    if cached:
        return "reference", "decoding with a cache, which the other implementations are not for"
    if config.attention != "auto":
        lacks = _lacks(config.attention, config, length, layer)
        home = {"splash": "tpu", "cudnn": "gpu"}.get(config.attention, backend)
        lacks = lacks or (None if backend is None or home == backend else f"{backend}, only {home}")
        if lacks:
            raise ValueError(f"attention {config.attention!r} can't serve {lacks}; use --model.attention auto.")
        return config.attention, "the config names it"
    if here == "tpu" and jax.device_count() == 1 and _lacks("splash", config, length, layer) is None:
        return "splash", "Pallas' kernel for one TPU"
    if here == "gpu" and _lacks("cudnn", config, length, layer) is None:
        return "cudnn", "cuDNN's kernel for GPUs"
    if length >= LONG:
        return "blockwise", f"from {LONG} positions on, the square of scores takes too much memory"
    if here == "cpu" and length >= 256 and _lacks("causal_blocks", config, length, layer) is None:
        return "causal_blocks", f"it skips most of the masked half, which pays from 256 positions on a CPU (here {length})"
    return "reference", "short rows" if length < 256 else "the plain product, which XLA fuses on this backend"


LONG = 4096
"""Positions from which a row's scores are never held whole."""


def _lacks(implementation: str, config: ModelConfig, length: int, layer: Layer) -> str | None:
    """What an implementation can't serve in this case, or none."""
    match implementation:
        case "causal_blocks":
            if not config.causal:
                return "an encoder, whose tokens see later ones"
            if config.prefix_lm:
                return "a prefix LM, whose prefix sees later tokens"
            divides = length % BLOCKS == 0 and length >= BLOCKS
            return None if divides else f"{length} queries, which are not a multiple of {BLOCKS}"
        case "splash":
            return splash_lacks(config, length, layer)
        case "cudnn":
            return cudnn_lacks(config, length, layer)
    return None


def _reference(
    q: Array, k: Array, v: Array, sight: Sight, how: Scoring, table: Array | None, sink: Array | None, rate: float, key: Key | None
) -> Array:
    found = scores(q, k, sight, how, table)
    if sink is not None:
        nobody = jnp.broadcast_to(sink.astype(jnp.float32).reshape(1, *found.shape[1:3], 1, 1), (*found.shape[:4], 1))
        found = jnp.concatenate([found, nobody], axis=-1)
    weights = jax.nn.softmax(found, axis=-1)[..., : k.shape[1]].astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", dropout(weights, rate, key), v).reshape(*q.shape[:3], v.shape[-1])


BLOCKS = 4
"""Query blocks of `causal_blocks`: 4 skip 3/8 of the whole square, and more make the products too small for a CPU."""


def _causal_blocks(
    q: Array, k: Array, v: Array, sight: Sight, how: Scoring, table: Array | None, sink: Array | None, rate: float, key: Key | None
) -> Array:
    """Block i of the queries is multiplied only with the keys up to its own end, and from the begin of its window on."""
    size = q.shape[1] // BLOCKS
    outputs = []
    for i in range(BLOCKS):
        begin = max(0, i * size - how.layer.span + 1) if how.layer.sees == "window" and not how.layer.sinks else 0
        rows, seen = slice(i * size, (i + 1) * size), slice(begin, (i + 1) * size)
        part = Sight(
            sight.queries[:, rows],
            sight.keys[:, seen],
            None if sight.query_segments is None else sight.query_segments[:, rows],
            None if sight.key_segments is None else sight.key_segments[:, seen],
        )
        block_key = None if key is None else jax.random.fold_in(key, i)
        outputs.append(_reference(q[:, rows], k[:, seen], v[:, seen], part, how, table, sink, rate, block_key))
    return jnp.concatenate(outputs, axis=1)


def _together(x: Float[Array, "B T D"], layers: tuple[Linear, ...]) -> list[Array]:
    """What each layer makes of x, by one product with their kernels side by side: on a CPU, one large product is
    faster than three small ones. On a mesh that splits heads it would move data, so other backends do not.
    """
    each = [layer.weights() for layer in layers]
    if each[0][0].dtype != x.dtype:  # stored for decoding, where to put them side by side would cost as much as to read them
        return [multiply(x, *one).reshape(*x.shape[:2], *layer.outputs) for one, layer in zip(each, layers, strict=True)]
    kernels, biases, _ = zip(*each, strict=True)
    bias = None if biases[0] is None else jnp.concatenate(biases)
    widths = [kernel.shape[1] for kernel in kernels]
    parts = jnp.split(multiply(x, jnp.concatenate(kernels, axis=1), bias), [widths[0], widths[0] + widths[1]], axis=-1)
    return [part.reshape(*x.shape[:2], *layer.outputs) for part, layer in zip(parts, layers, strict=True)]


# --- the layer ---------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What all layers know of the tokens that are read."""

    sight: Sight
    angles: dict[Layer, Float[Array, "#B T half"] | None]
    """How far RoPE turns each token in a layer of each kind; none where it does not."""
    tables: dict[str, Float[Array, "..."]]
    """Biases by distance, by their kind."""
    slots: tuple[Int[Array, "B T"], ...] | None = None
    """Where the tokens go on each shelf of the cache."""
    memory: Memory | None = None
    """What an encoder has read."""


def recalled(
    config: ModelConfig, layer: Layer, number: Any, cache: Cache, reading: Reading, k: Array, v: Array
) -> tuple[Cache, Array, Array, Reading]:
    """The cache with a layer's new keys and values; all keys and values that it holds for the layer, and the sight of them."""
    cache, k, v, where = remember(config, layer, number, cache, reading.slots, k, v)
    return cache, k, v, reading._replace(sight=reading.sight._replace(keys=where))


class Attention(nn.Module):
    """Projects to heads, turns them (RoPE), attends, projects back."""

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], reading: Reading, cache: Cache | None, number: Any, key: Key | None
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        c = self.config

        def linear(name: str, heads: int, axis: str) -> Linear:
            return Linear((c.width,), (heads, c.heads), ("embed", axis, "head"), c.init_std, c.biased, c.compute, name=name)

        three = linear("query", c.num_heads, "heads"), linear("key", c.kv_heads, "kv_heads"), linear("value", c.kv_heads, "kv_heads")
        q, k, v = _together(x, three) if jax.default_backend() == "cpu" else (one(x) for one in three)
        if c.qk_norm:
            q, k = head_norm(c, "query_norm", "heads", q), head_norm(c, "key_norm", "kv_heads", k)
        angles = reading.angles[self.layer]
        if angles is not None:
            louder = magnitude(c.scaling_in(self.layer))
            q, k = place.rotate(q, angles, louder), place.rotate(k, angles, louder)
        if cache is not None:
            cache, k, v, reading = recalled(c, self.layer, number, cache, reading, k, v)
        sink = self.param("sink", nn.with_partitioning(nn.initializers.zeros, ("heads",)), (c.num_heads,), jnp.float32) if c.attention_sink else None
        mixed = attend_in(c, self.layer, q, k, v, reading, sink, cache is not None, key)
        out = Linear((c.num_heads, c.heads), (c.width,), ("heads", "head", "embed"), residual_std(c), c.bias, c.compute, name="out")
        return out(mixed), cache


class CrossAttention(nn.Module):
    """Attends to what an encoder has read: queries from the decoder, keys and values from the encoder's hidden states.

    No positions are turned or biased here. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3.
    """

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        make = lambda heads, axis: Linear((c.width,), (heads, c.heads), ("embed", axis, "head"), c.init_std, c.biased, c.compute)
        self.query, self.key, self.value = make(c.num_heads, "heads"), make(c.kv_heads, "kv_heads"), make(c.kv_heads, "kv_heads")
        self.out = Linear((c.num_heads, c.heads), (c.width,), ("heads", "head", "embed"), residual_std(c), c.bias, c.compute)

    def remember(self, states: Float[Array, "B S D"]) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """This layer's keys and values of the encoder's hidden states."""
        return self.key(states), self.value(states)

    def __call__(self, x: Float[Array, "B T D"], reading: Reading, number: Any, key: Key | None) -> Float[Array, "B T D"]:
        c, memory = self.config, reading.memory
        k, v = self.remember(x) if memory is None else (memory.keys[number], memory.values[number])  # none: parameters are made
        sight = reading.sight
        if memory is not None:
            sight = Sight(sight.queries, memory.positions, sight.query_segments, memory.segments)
        how = Scoring(scale=c.scale, cap=c.attention_cap, causal=False)
        return self.out(attend(self.query(x), k, v, sight, how, rate=c.attention_dropout, key=key))


def head_norm(config: ModelConfig, name: str, axis: str, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Queries or keys, normalised head by head or all heads as one vector."""
    if not config.qk_norm_joint:
        return Norm("rmsnorm", config.heads, config.norm_epsilon, False, "head", name=name)(x)
    whole = x.reshape(*x.shape[:2], -1)
    return Norm("rmsnorm", whole.shape[-1], config.norm_epsilon, False, axis, name=name)(whole).reshape(x.shape)


def attend_in(config: ModelConfig, layer: Layer, q: Array, k: Array, v: Array, reading: Reading, sink: Array | None, cached: bool, key: Key | None) -> Array:
    """Attends as a layer of this model does, with the implementation that `choose` names."""
    bias = config.positions_in(layer)
    bias = bias if bias in ("alibi", "t5") else "none"
    how = Scoring(layer, config.scale, config.attention_cap, bias, config.t5_distance, config.causal)
    implementation, _ = choose(config, q.shape[1], layer, cached=cached)
    table, rate = reading.tables.get(bias), config.attention_dropout
    return attend(q, k, v, reading.sight, how, table, sink, implementation=implementation, rate=rate, key=key)
