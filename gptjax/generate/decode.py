"""From prompts to new tokens: `prefill` and `extend` read prompts, `step` writes a token.

`Decoding` is the whole state of generation, and one invariant holds between any two calls: **the
cache has read every token of a row but the last**. So a prompt, its continuation, a second turn, a
shared prefix and the rows of a beam are one thing: `extend` adds tokens, `branch` copies rows.
`engine.advance` runs `step` in a compiled loop over rows that requests enter and leave.

Compiled shapes depend on the number of rows and on two buckets (the width of what is read, and the
slots of the cache, each rounded up to a power of two), on nothing else. The tokens of a row depend
on its own prompt, key and settings, not on its neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Bool, Float, Int, Keys, Numbers, Params
from gptjax.generate.chain import ORDER, Sampling, choose, token_keys, track
from gptjax.generate.history import History
from gptjax.generate.transforms import guidance
from gptjax.model import Cache, KVCache, ModelConfig

CHUNK = model.AT_ONCE
"""Longer prompts are read in parts of this many tokens, which bounds the memory of attention
scores."""


class Text(NamedTuple):
    """The tokens of all rows so far. S slots hold prompt and answer, each token at its position."""

    history: History
    limit: Int[Array, " B"]
    """Maximum number of tokens to write after the prompt."""
    logprobs: Float[Array, "B S"]
    """ln p of each written token, and of the stop token that a row met, under the model itself,
    before any transform."""
    alternatives: tuple[Int[Array, "B S A"], Float[Array, "B S A"]] | None
    """The ids of the most likely tokens at each place and their ln p; `None` if not asked for."""
    finished: Bool[Array, " B"]
    stopped: Bool[Array, " B"]
    """The row met a stop token; it stands behind the text and is no part of it."""


class Guide(NamedTuple):
    """The same answer after a negative prompt, for classifier-free guidance."""

    cache: Cache
    pending: Int[Array, " B"]
    """The token that the cache has not read yet."""
    positions: Int[Array, " B"]
    """Its position."""
    scale: Float[Array, " B"]


class Decoding(NamedTuple):
    """The state of the decoding loop."""

    text: Text
    cache: Cache
    guide: Guide | None = None


def empty_rows(
    config: ModelConfig, rows: int, slots: int, alternatives: int = 0, kv_cache: KVCache = "full"
) -> Decoding:
    """Rows that have read nothing, with room for `slots` tokens each; `kv_cache` as in
    `model.empty_cache`."""
    none = jnp.zeros((rows,), jnp.int32)
    history = History(jnp.zeros((rows, slots), jnp.int32), none, none)
    other = begin_alternatives(rows, slots, alternatives) if alternatives else None
    text = Text(
        history, none, jnp.zeros((rows, slots)), other, none.astype(bool), none.astype(bool)
    )
    return Decoding(
        text,
        model.empty_cache(
            config,
            rows,
            slots,
            kv_cache=kv_cache,
            at_once=slots if config.prefix_lm else CHUNK,
        ),
    )


def begin_alternatives(
    rows: int, slots: int, count: int
) -> tuple[Int[Array, "B S A"], Float[Array, "B S A"]]:
    """Room for the `count` most likely tokens at each place."""
    return jnp.zeros((rows, slots, count), jnp.int32), jnp.zeros((rows, slots, count))


def _extend(
    config: ModelConfig,
    params: Params,
    state: Decoding,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    limit: Int[Array, " B"],
) -> Decoding:
    """Adds tokens (padded at the right) to each row, as the prompt of a new answer of at most
    `limit` tokens.

    Long input is read in parts of `CHUNK` tokens; a prefix LM, whose tokens see each other, reads
    it whole, into new rows.
    """
    ids, _, length, _ = state.text.history
    rows, width = tokens.shape
    place = jnp.arange(width)[None]
    slots = jnp.where(place < lengths[:, None], length[:, None] + place, ids.shape[1])
    ids = ids.at[jnp.arange(rows)[:, None], slots].set(tokens, mode="drop")
    length = length + lengths
    cache = model.constrain_cache(state.cache)
    cache, _ = read_parts(config, params, cache, ids, length - 1, length - 1, width)
    text = state.text._replace(
        history=History(ids, length, length),
        limit=limit,
        finished=limit <= 0,
        stopped=jnp.zeros_like(state.text.stopped),
    )
    return state._replace(text=text, cache=model.constrain_cache(cache))


def read_parts(
    config: ModelConfig,
    params: Params,
    cache: Cache,
    ids: Int[Array, "B S"],
    end: Int[Array, " B"],
    prefix: Int[Array, " B"],
    width: int,
) -> tuple[Cache, Float[Array, "B wide D"]]:
    """Reads the tokens of each row that the cache has not read, up to `end`, in parts of `CHUNK`
    tokens.

    A prefix LM, whose first `prefix` tokens see each other, reads all at once, into new rows.

    Args:
      width: the maximum number of unread tokens; static.

    Returns:
      The cache, and the hidden states of the tokens read, padded at the right.
    """
    first, size = cache.lengths, width if config.prefix_lm else min(width, CHUNK)

    def part(cache: Cache, i: Array) -> tuple[Cache, Array]:
        positions = first[:, None] + i * size + jnp.arange(size)[None]
        known = jnp.take_along_axis(ids, jnp.minimum(positions, ids.shape[1] - 1), axis=1)
        where, shown = (
            jnp.where(positions < end[:, None], positions, -1),
            jnp.broadcast_to(prefix[:, None], positions.shape),
        )
        out = model.forward(config, params, known, positions=where, cache=cache, prefix=shown)
        return out.cache, out.hidden

    if width <= size:
        return part(cache, jnp.int32(0))
    cache, hidden = jax.lax.scan(part, cache, jnp.arange(-(-width // size)))
    return cache, jnp.moveaxis(hidden, 0, 1).reshape(len(ids), -1, hidden.shape[-1])


@functools.partial(jax.jit, static_argnames=("config", "slots", "alternatives", "kv_cache"))
def prefill(
    config: ModelConfig,
    params: Params,
    prompt: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    limit: Int[Array, " B"],
    *,
    slots: int,
    alternatives: int = 0,
    kv_cache: KVCache = "full",
    side: Any = None,
) -> Decoding:
    """Reads ragged prompts into new rows, and side texts if the model has an encoder for them."""
    state = empty_rows(config, prompt.shape[0], slots, alternatives, kv_cache)
    state = state._replace(cache=state.cache._replace(memory=model.encode(config, params, side)))
    return _extend(config, params, state, prompt, lengths, limit)


extend = jax.jit(_extend, static_argnames="config", donate_argnames="state")
"""`_extend`, compiled; `state` is used up."""


@jax.jit
def branch(state: Decoding, rows: Int[Array, " B"]) -> Decoding:
    """Returns the state whose row i is the old row `rows[i]`: several samples of one prompt, or
    several prompts after one prefix."""
    text = jax.tree.map(lambda leaf: leaf[rows], state.text)
    guide = state.guide and Guide(
        model.take_rows(state.guide.cache, rows), *(leaf[rows] for leaf in state.guide[1:])
    )
    return Decoding(text, model.take_rows(state.cache, rows), guide)


def guided(state: Decoding, negative: Decoding, scale: Float[Numbers, " B"]) -> Decoding:
    """Returns the state whose logits are moved away from those after `negative`, the same rows with
    negative prompts."""
    history = negative.text.history
    pending = jnp.take_along_axis(history.ids, history.length[:, None] - 1, axis=1)[:, 0]
    return state._replace(guide=Guide(negative.cache, pending, history.length - 1, scale))


def peek(
    config: ModelConfig, params: Params, cache: Cache, history: History, active: Bool[Array, " B"]
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads each row's last token and returns the logits of the next; rows that are not active read
    nothing."""
    last = jnp.take_along_axis(history.ids, history.length[:, None] - 1, axis=1)
    positions = jnp.where(active, history.length - 1, -1)[:, None]
    out = model.forward(config, params, last, positions=positions, cache=cache)
    return model.unembed(config, params, out.hidden[:, 0]), out.cache


def append(
    text: Text,
    token: Int[Array, " B"],
    logits: Float[Array, "B V"],
    sampling: Sampling,
    stop: Int[Array, "B stops"],
    active: Bool[Array, " B"],
) -> Text:
    """Writes a token to each active row, with its log-probability; a stop token ends the row
    instead, and stands behind its text."""
    ids, prompt, length, known = text.history
    known = (
        known if known is None else jnp.where(active, track(sampling, text.history, token), known)
    )
    rows, place = jnp.arange(len(ids)), jnp.where(active, length, ids.shape[1])
    hit = active & jnp.any(token[:, None] == stop, axis=-1)
    active &= ~hit
    logp = jax.nn.log_softmax(logits, axis=-1)
    own = jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
    other = text.alternatives
    if other is not None:
        best, names = jax.lax.top_k(logp, other[0].shape[-1])
        other = (
            other[0].at[rows, place].set(names, mode="drop"),
            other[1].at[rows, place].set(best, mode="drop"),
        )
    history = History(ids.at[rows, place].set(token, mode="drop"), prompt, length + active, known)
    finished = text.finished | hit | (active & (history.length - prompt >= text.limit))
    return Text(
        history,
        text.limit,
        text.logprobs.at[rows, place].set(own, mode="drop"),
        other,
        finished,
        text.stopped | hit,
    )


def step(
    config: ModelConfig,
    params: Params,
    state: Decoding,
    keys: Keys,
    sampling: Sampling,
    stop: Int[Array, "B stops"],
    vocabulary: Int[Array, ""],
    order: tuple[str, ...] = ORDER,
) -> Decoding:
    """Writes the next token of each row that is not finished; `engine.advance` runs it in a loop.

    Args:
      keys: one key per row; token number i is drawn with `fold_in(key, i)`.
      stop: ids that end a row; −1 matches none.
      vocabulary: ids from here on (padding of the embedding) are never drawn.
    """
    text, cache, guide = state
    active = ~text.finished
    logits, cache = peek(config, params, cache, text.history, active)
    logits = within(logits, vocabulary)
    wanted = logits
    if guide is not None:
        out = model.forward(
            config,
            params,
            guide.pending[:, None],
            positions=jnp.where(active, guide.positions, -1)[:, None],
            cache=guide.cache,
        )
        negative = within(model.unembed(config, params, out.hidden[:, 0]), vocabulary)
        wanted, guide = (
            guidance(logits, negative, guide.scale),
            guide._replace(cache=out.cache, positions=guide.positions + 1),
        )
    number = text.history.length - text.history.prompt
    token = choose(wanted, sampling, text.history, token_keys(keys, number), stop, order)
    guide = guide and guide._replace(pending=token)
    return Decoding(append(text, token, logits, sampling, stop, active), cache, guide)


def within(logits: Float[Array, "... V"], vocabulary: Int[Array, ""]) -> Float[Array, "... V"]:
    """The logits, those of ids from `vocabulary` on at -inf."""
    known = jnp.arange(logits.shape[-1]) < vocabulary
    return jnp.where(known.reshape((1,) * (logits.ndim - 1) + known.shape), logits, -jnp.inf)


def writing(text: Text, until: Int[Array, ""] | Int[Array, " B"]) -> Bool[Array, " B"]:
    """The rows that are not finished and have written fewer than `until` tokens."""
    return ~text.finished & (text.history.length - text.history.prompt < until)


def padded(prompts: Sequence[Any], context: int) -> Int[Numbers, "B T"]:
    """Prompts (ids each) side by side in an array whose width is a bucket."""
    tokens = np.zeros((len(prompts), padded_size(max(map(len, prompts)), context)), np.int32)
    for row, ids in zip(tokens, prompts, strict=True):
        row[: len(ids)] = ids
    return tokens


def padded_size(count: int, most: int, least: int = 16) -> int:
    """The power of two, at least `least` and at most `most`, that holds `count`."""
    return min(max(least, 1 << (count - 1).bit_length()), most)
