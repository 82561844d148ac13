"""Who sees whom, the implementations of attention, the cache, and the layer that joins them.

Read `Sight` and `visible` (the mask as a function of positions and segments), then `attend` (the dispatcher) and the
implementations, then `Cache`, then `Attention`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.arrays import Array, Bool, Float, Int, Key
from gptjax.model import positions as place
from gptjax.model.config import ModelConfig
from gptjax.model.layers import Linear, Norm, dropout, multiply, residual_std


class Sight(NamedTuple):
    """What decides who sees whom. A query sees the keys of its own segment at its own position or before.

    A key at position −1 is nobody: nothing sees it. Without segments all tokens of a row are one segment.
    """

    queries: Int[Array, "B T"]
    keys: Int[Array, "B S"]
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None


def visible(sight: Sight) -> Bool[Array, "B T S"]:
    """True where the query may see the key."""
    seen = (sight.keys[:, None, :] <= sight.queries[:, :, None]) & (sight.keys >= 0)[:, None, :]
    if sight.query_segments is not None and sight.key_segments is not None:
        seen &= sight.query_segments[:, :, None] == sight.key_segments[:, None, :]
    return seen


def choose(config: ModelConfig, length: int, *, cached: bool = False, backend: str | None = None) -> tuple[str, str]:
    """Gives the implementation that serves a row of `length` queries, and why.

    Raises:
      ValueError: the config names an implementation that can't serve this case.
    """
    divides = length % BLOCKS == 0 and length >= BLOCKS
    if cached:
        return "reference", "decoding with a cache, which the other implementations are not for"
    if config.attention == "causal_blocks" and not divides:
        raise ValueError(f"attention 'causal_blocks' can't serve {length} queries, which are not a multiple of {BLOCKS}; use --model.attention auto.")
    if config.attention != "auto":
        return config.attention, "the config names it"
    if divides and length >= 256 and (backend or jax.default_backend()) == "cpu":
        return "causal_blocks", f"it skips most of the masked half, which pays from 256 positions on a CPU (here {length})"
    return "reference", "short rows" if length < 256 else "the plain product, which XLA fuses on this backend"


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    sight: Sight,
    *,
    implementation: str = "reference",
    rate: float = 0.0,
    key: Key | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention: each query's mean of the values that it sees, weighted by exp(q·k / √H).

    Query head n reads key/value head n // (N/K). A query that sees nobody gives a finite, meaningless row.

    Args:
      implementation: `reference`, or `causal_blocks` (keys must not come before their own index; no cache).
      rate: share of attention weights dropped; needs `key`.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; groups: Ainslie et al. 2023, GQA, arXiv:2305.13245.
    """
    if implementation == "reference":
        return _reference(q, k, v, sight, rate, key)
    if implementation == "causal_blocks":
        return _causal_blocks(q, k, v, sight, rate, key)
    raise ValueError(f"{implementation!r} is not an attention implementation.")


def _reference(q: Array, k: Array, v: Array, sight: Sight, rate: float, key: Key | None) -> Array:
    rows, length, heads, width = q.shape
    grouped = q.reshape(rows, length, k.shape[2], heads // k.shape[2], width) * jnp.asarray(width**-0.5, q.dtype)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible(sight)[:, None, None], scores, HIDDEN)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(v.dtype), rate, key)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)


BLOCKS = 4
"""Query blocks of `causal_blocks`: 4 skip 3/8 of the whole square, and more make the products too small for a CPU."""

HIDDEN = -1e30
"""The score of a key that is not seen: finite, so that a row that sees nobody is not NaN."""


def _causal_blocks(q: Array, k: Array, v: Array, sight: Sight, rate: float, key: Key | None) -> Array:
    """Block i of the queries is multiplied only with the keys up to its own end."""
    size = q.shape[1] // BLOCKS
    outputs = []
    for i in range(BLOCKS):
        rows, seen = slice(i * size, (i + 1) * size), slice(0, (i + 1) * size)
        part = Sight(
            sight.queries[:, rows],
            sight.keys[:, seen],
            None if sight.query_segments is None else sight.query_segments[:, rows],
            None if sight.key_segments is None else sight.key_segments[:, seen],
        )
        block_key = None if key is None else jax.random.fold_in(key, i)
        outputs.append(_reference(q[:, rows], k[:, seen], v[:, seen], part, rate, block_key))
    return jnp.concatenate(outputs, axis=1)


# --- the cache ---------------------------------------------------------------------------------------------------


class Cache(NamedTuple):
    """Keys and values of tokens already read, each with the position it stands at; −1 is an empty slot.

    A row's next token goes to slot `lengths[row]`. Rows are independent: gather, drop or roll back any of them.
    """

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    positions: Int[Array, "B S"]
    lengths: Int[Array, " B"]


def empty_cache(config: ModelConfig, rows: int, slots: int) -> Cache:
    """A cache that remembers nobody, with room for `slots` tokens a row."""
    shape = (config.num_layers, rows, slots, config.kv_heads, config.heads)
    nobody = jnp.full((rows, slots), -1, jnp.int32)
    return Cache(jnp.zeros(shape, config.compute), jnp.zeros(shape, config.compute), nobody, jnp.zeros((rows,), jnp.int32))


def rollback(cache: Cache, lengths: Int[Array, " B"]) -> Cache:
    """Forgets every token from slot `lengths` on."""
    slot = jnp.arange(cache.positions.shape[1])[None]
    return cache._replace(lengths=lengths, positions=jnp.where(slot < lengths[:, None], cache.positions, -1))


def gather(cache: Cache, rows: Int[Array, " B"]) -> Cache:
    """The cache whose row i is the old row `rows[i]`."""
    return Cache(cache.keys[:, rows], cache.values[:, rows], cache.positions[rows], cache.lengths[rows])


def reserve(cache: Cache, positions: Int[Array, "B T"]) -> tuple[Cache, Int[Array, "B T"]]:
    """Gives new tokens their slots: the cache that knows their positions, and the slot of each.

    A token at position −1 is padding: it takes no slot (its slot number lies past the end, where writes are dropped).
    """
    real = positions >= 0
    slots = jnp.where(real, cache.lengths[:, None] + jnp.cumsum(real, axis=1) - 1, cache.positions.shape[1])
    rows = jnp.arange(positions.shape[0])[:, None]
    known = cache.positions.at[rows, slots].set(positions, mode="drop")
    return cache._replace(positions=known, lengths=cache.lengths + real.sum(axis=1)), slots


def remember(cache: Cache, layer: Any, slots: Int[Array, "B T"], k: Array, v: Array) -> Cache:
    """Writes one layer's new keys and values [B T K H] into their slots."""
    rows = jnp.arange(slots.shape[0])[:, None]
    return cache._replace(
        keys=cache.keys.at[layer, rows, slots].set(k, mode="drop"),
        values=cache.values.at[layer, rows, slots].set(v, mode="drop"),
    )


def _together(x: Float[Array, "B T D"], layers: tuple[Linear, ...]) -> list[Array]:
    """What each layer makes of x, by one product with their kernels side by side: on a CPU, one large product is
    faster than three small ones. On a mesh that splits heads it would move data, so other backends do not.
    """
    kernels, biases = zip(*(layer.weights() for layer in layers), strict=True)
    bias = None if biases[0] is None else jnp.concatenate(biases)
    widths = [kernel.shape[1] for kernel in kernels]
    product = multiply(x, jnp.concatenate(kernels, axis=1), bias)
    parts = jnp.split(product, [widths[0], widths[0] + widths[1]], axis=-1)
    return [part.reshape(*x.shape[:2], *layer.outputs) for part, layer in zip(parts, layers, strict=True)]


# --- the layer ---------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Projects to heads, turns them (RoPE), attends, projects back."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        sight: Sight,
        angles: Float[Array, "#B T half"] | None,
        cache: Cache | None,
        layer: Any,
        slots: Int[Array, "B T"] | None,
        key: Key | None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        c = self.config

        def linear(name: str, heads: int, axis: str) -> Linear:
            return Linear((c.width,), (heads, c.heads), ("embed", axis, "head"), c.init_std, c.bias, c.compute, name=name)

        three = linear("query", c.num_heads, "heads"), linear("key", c.kv_heads, "kv_heads"), linear("value", c.kv_heads, "kv_heads")
        q, k, v = _together(x, three) if jax.default_backend() == "cpu" else (one(x) for one in three)
        if c.qk_norm:
            q = Norm("rmsnorm", c.heads, c.norm_epsilon, False, "head", name="query_norm")(q)
            k = Norm("rmsnorm", c.heads, c.norm_epsilon, False, "head", name="key_norm")(k)
        if angles is not None:
            q, k = place.rotate(q, angles), place.rotate(k, angles)
        if cache is not None:
            cache = remember(cache, layer, slots, k, v)
            k, v = cache.keys[layer], cache.values[layer]
        implementation, _ = choose(c, x.shape[1], cached=cache is not None)
        mixed = attend(q, k, v, sight, implementation=implementation, rate=c.attention_dropout, key=key)
        out = Linear((c.num_heads, c.heads), (c.width,), ("heads", "head", "embed"), residual_std(c), c.bias, c.compute, name="out")
        return out(mixed), cache
