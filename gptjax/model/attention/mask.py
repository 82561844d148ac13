"""Who sees whom, and the scores of those who do: what every implementation of attention has in
common.

Read `Sight` and `visible` (the mask as a function of positions and segments), then `scores`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Int
from gptjax.model.attention.biases import by_distance
from gptjax.model.config import Layer
from gptjax.weights.einsum import wide_einsum

EVERY = -1
"""The segment of keys that the queries of all segments see."""


class MaskInputs(NamedTuple):
    """What decides who sees whom. A query sees the keys of its own segment at its own position or
    before, as far as its layer looks; in an encoder, and where a decoder looks at one, also those
    after it.

    A key at position −1 is nobody: nothing sees it. Without segments all tokens of a row are one
    segment.

    A key of segment `EVERY` belongs to all segments.

    In a prefix LM, a query among the first `prefixes` of its piece sees all of these.
    """

    queries: Int[Array, "B T"]
    keys: Int[Array, "B S"]
    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    prefixes: Int[Array, "B T"] | None = None


def visible(
    mask_inputs: MaskInputs, layer: Layer = Layer(), causal: bool = True
) -> Bool[Array, "B T S"]:
    """True where the query may see the key.

    Args:
      causal: only keys at the query's own position or before.

    Sources: prefixes: Raffel et al. 2020, T5, arXiv:1910.10683, section 3.2.1; windows: Beltagy et
    al. 2020, Longformer, arXiv:2004.05150; strided and fixed (the two halves of each in one head):
    Child et al. 2019, Sparse Transformers, arXiv:1904.10509, section 4; sinks: Xiao et al. 2023,
    arXiv:2309.17453.
    """
    query, key = mask_inputs.queries[:, :, None], mask_inputs.keys[:, None, :]
    last = (
        query
        if mask_inputs.prefixes is None
        else jnp.maximum(
            query,
            jnp.where(
                query < mask_inputs.prefixes[:, :, None], mask_inputs.prefixes[:, :, None] - 1, -1
            ),
        )
    )
    seen = (key <= last) & (key >= 0) if causal else (key >= 0) & jnp.ones_like(query, bool)
    if mask_inputs.query_segments is not None and mask_inputs.key_segments is not None:
        segment = mask_inputs.key_segments[:, None, :]
        seen &= (mask_inputs.query_segments[:, :, None] == segment) | (segment == EVERY)
    span = layer.span
    match layer.sees:
        case "window":
            seen &= (query - key < span) & (key - query < span) | (key < layer.sinks)
        case "chunk":
            seen &= (query // span == key // span) | (key < layer.sinks)
        case "strided":
            seen &= (query - key < span) | ((query - key) % span == 0)
        case "fixed":
            seen &= (query // span == key // span) | (key % span >= span - layer.summary)
    return seen


@dataclass(frozen=True)
class ScoreConfig:
    """How a layer scores the keys that a query sees; no arrays, so that compiled functions can
    depend on it."""

    layer: Layer = Layer()
    """Who sees whom."""
    scale: float | None = None
    """Queries are multiplied by it; none is 1/√H."""
    cap: float | None = None
    """Scores s become cap · tanh(s / cap). Source: Gemma Team 2024, Gemma 2, arXiv:2408.00118,
    section 2."""
    bias: Literal["none", "alibi", "t5"] = "none"
    """What the table of `scores` means: a slope for each head, or a bias for each bucket of
    distances and head."""
    farthest: int = 128
    """The distance from which all are one bucket to T5."""
    causal: bool = True
    """A query sees only keys at its own position or before."""


HIDDEN = -1e30
"""The score of a key that is not seen: finite, so that a row that sees nobody is not NaN."""


def scores(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    mask_inputs: MaskInputs,
    how: ScoreConfig,
    table: Float[Array, "..."] | None = None,
) -> Float[Array, "B K G T S"]:
    """The score of each key for each query, in float32, by key/value head and the queries of its
    group.

    Query head n reads key head n // (N/K).
    """
    rows, length, heads, width = q.shape
    scale = width**-0.5 if how.scale is None else how.scale
    grouped = q.reshape(rows, length, k.shape[2], heads // k.shape[2], width) * jnp.asarray(
        scale, q.dtype
    )
    logits = wide_einsum("btkgh,bskh->bkgts", grouped, k)
    if how.cap is not None:
        logits = how.cap * jnp.tanh(logits / how.cap)
    if how.bias != "none":
        distance = mask_inputs.queries[:, :, None] - mask_inputs.keys[:, None, :]
        logits = logits + by_distance(how.bias, table, distance, how.farthest, how.causal).reshape(
            -1, *logits.shape[1:]
        )
    return jnp.where(visible(mask_inputs, how.layer, how.causal)[:, None, None], logits, HIDDEN)
