"""Contrastive search: of the likeliest tokens, the one whose hidden state is least like those
before it. It is deterministic.

`open_contrast` reads the prompts, `contrast` is the compiled loop. The cache holds K copies of each
row, one for each candidate.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Keys, Params
from gptjax.generate.chain import ORDER, Sampling, shape, token_keys
from gptjax.generate.decode import Text, append, empty_rows, read_parts, within, writing
from gptjax.generate.history import History
from gptjax.model import Cache, KVCache, ModelConfig


class Contrasting(NamedTuple):
    """The state of the loop. Unlike in `Decoding`, the cache has read the last token too."""

    text: Text
    cache: Cache
    """B · K rows."""
    logits: Float[Array, "B V"]
    """Of the next token."""
    seen: Float[Array, "B S D"]
    """The direction of the hidden state of each token that was read: vectors of length 1."""


class Contrast(NamedTuple):
    """How candidates are compared; one value per row."""

    alpha: Float[Array, " B"]
    """Weight of being unlike what came before, in [0, 1]; 0 is greedy."""
    count: Int[Array, " B"]
    """Number of candidates, at most K."""


@functools.partial(
    jax.jit, static_argnames=("config", "slots", "candidates", "alternatives", "kv_cache")
)
def open_contrast(
    config: ModelConfig,
    params: Params,
    prompt: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    limit: Int[Array, " B"],
    *,
    slots: int,
    candidates: int,
    alternatives: int = 0,
    kv_cache: KVCache = "full",
    side: Any = None,
) -> Contrasting:
    """Reads ragged prompts into new rows and keeps every hidden state; side texts as in
    `prefill`."""
    rows, width = prompt.shape
    state = empty_rows(config, rows, slots, alternatives, kv_cache)
    cache = state.cache._replace(memory=model.encode(config, params, side))
    ids = state.text.history.ids.at[:, :width].set(prompt)
    cache, hidden = read_parts(config, params, cache, ids, lengths, lengths - 1, width)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    seen = jnp.zeros((rows, slots, config.width)).at[:, :width].set(_direction(hidden[:, :width]))
    text = state.text._replace(
        history=History(ids, lengths, lengths), limit=limit, finished=limit <= 0
    )
    copies = jnp.repeat(jnp.arange(rows), candidates)
    return Contrasting(
        text, model.take_rows(cache, copies), model.unembed(config, params, last), seen
    )


@functools.partial(jax.jit, static_argnames=("config", "order"), donate_argnames="state")
def contrast(
    config: ModelConfig,
    params: Params,
    state: Contrasting,
    keys: Keys,
    sampling: Sampling,
    settings: Contrast,
    stop: Int[Array, "B stops"],
    until: Int[Array, ""],
    vocabulary: Int[Array, ""],
    order: tuple[str, ...] = ORDER,
) -> Contrasting:
    """Writes until each row is finished or has `until` tokens. `state` is used up.

    Each candidate v is worth (1 − α) · p(v) − α · max over the tokens before of the cosine of their
    hidden states.

    Source: Su et al. 2022, A Contrastive Framework for Neural Text Generation, arXiv:2202.06417,
    equation 5.
    """

    def one(state):
        return _step(config, params, state, keys, sampling, settings, stop, vocabulary, order)

    return jax.lax.while_loop(lambda state: jnp.any(writing(state.text, until)), one, state)


def _step(config, params, state, keys, sampling, settings, stop, vocabulary, order) -> Contrasting:
    text, cache, _, seen = state
    rows, slots, width = seen.shape
    copies = cache.lengths.shape[0] // rows
    active = ~text.finished
    length = text.history.length
    logits = within(state.logits, vocabulary)
    shaped = shape(
        logits, sampling, text.history, token_keys(keys, length - text.history.prompt), stop, order
    )
    p, tokens = jax.lax.top_k(jax.nn.softmax(shaped, axis=-1), copies)

    positions = jnp.repeat(jnp.where(active, length, -1), copies)[:, None]
    out = model.forward(config, params, tokens.reshape(-1, 1), positions=positions, cache=cache)
    hidden = out.hidden[:, 0].reshape(rows, copies, width)
    alike = jnp.einsum("bkd,bsd->bks", _direction(hidden), seen)
    alike = jnp.where(jnp.arange(slots)[None, None] < length[:, None, None], alike, -1.0)
    worth = (1 - settings.alpha)[:, None] * p - settings.alpha[:, None] * jnp.max(alike, axis=-1)
    among = (jnp.arange(copies)[None] < settings.count[:, None]) & (p > 0)
    best = jnp.argmax(jnp.where(among, worth, -jnp.inf), axis=-1)

    def pick(leaf):
        return jnp.take_along_axis(leaf, best.reshape(-1, *(1,) * (leaf.ndim - 1)), axis=1)[:, 0]

    text = append(text, pick(tokens), logits, sampling, stop, active)
    cache = model.take_rows(out.cache, jnp.repeat(jnp.arange(rows) * copies + best, copies))
    place = jnp.where(active, length, slots)
    seen = seen.at[jnp.arange(rows), place].set(_direction(pick(hidden)), mode="drop")
    return Contrasting(text, cache, model.unembed(config, params, pick(hidden)), seen)


def _direction(hidden: Float[Array, "B T D"] | Float[Array, "B D"]) -> Float[Array, "..."]:
    """Each vector in float32, scaled to length 1."""
    hidden = hidden.astype(jnp.float32)
    return hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-12)
