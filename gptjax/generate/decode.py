"""From prompts to new tokens: `prefill` reads the prompts, `decode` is one compiled loop, `generate` and `stream` drive them.

Compiled shapes depend on the number of rows and on two buckets (prompt length and new tokens, each rounded up to a power
of two), on nothing else. A row's tokens depend on its own prompt, key and settings, not on its neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.arrays import Array, Bool, Float, Int, Keys, Numbers, Params
from gptjax.generate.transforms import Sampling, choose
from gptjax.model import Cache, ModelConfig


class Decoding(NamedTuple):
    """Everything that the loop remembers."""

    cache: Cache
    logits: Float[Array, "B V"]
    """Of the next token."""
    positions: Int[Array, " B"]
    """Where the next token will stand."""
    ids: Int[Array, "B M"]
    logprobs: Float[Array, "B M"]
    count: Int[Array, ""]
    """Tokens written so far."""
    lengths: Int[Array, " B"]
    """Tokens of each row before its stop token."""
    finished: Bool[Array, " B"]


class Generated(NamedTuple):
    """What came out: the first `lengths[row]` of each row's ids and log-probabilities count."""

    ids: Int[Array, "B M"]
    logprobs: Float[Array, "B M"]
    """ln p of each token under the model itself, before any transform."""
    lengths: Int[Array, " B"]
    finished: Bool[Array, " B"]
    """The row met a stop token; otherwise it ended at the wanted length."""


@functools.partial(jax.jit, static_argnames=("config", "room"))
def prefill(config: ModelConfig, params: Params, prompt: Int[Array, "B T"], lengths: Int[Array, " B"], *, room: int) -> Decoding:
    """Reads ragged prompts (padded at the right) and makes room for as many new tokens."""
    rows, width = prompt.shape
    place = jnp.arange(width)[None]
    positions = jnp.where(place < lengths[:, None], place, -1)
    out = model.forward(config, params, prompt, positions=positions, cache=model.empty_cache(config, rows, width + room))
    last = jnp.take_along_axis(out.hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    zeros = jnp.zeros((rows,), jnp.int32)
    return Decoding(
        out.cache,
        model.unembed(config, params, last),
        lengths,
        jnp.zeros((rows, room), jnp.int32),
        jnp.zeros((rows, room), jnp.float32),
        jnp.zeros((), jnp.int32),
        zeros,
        zeros.astype(bool),
    )


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def decode(
    config: ModelConfig,
    params: Params,
    state: Decoding,
    keys: Keys,
    sampling: Sampling,
    stop: Int[Array, " stops"],
    until: Int[Array, ""],
    vocabulary: Int[Array, ""],
) -> Decoding:
    """Writes tokens until there are `until` of them in each row that has not met a stop token.

    Args:
      keys: one key a row; token number i is drawn with `fold_in(key, i)`.
      stop: ids that end a row.
      vocabulary: ids from here on (padding of the embedding) are never drawn.
    """

    def going(state: Decoding) -> Bool[Array, ""]:
        return (state.count < until) & ~jnp.all(state.finished)

    def one(state: Decoding) -> Decoding:
        known = jnp.arange(state.logits.shape[1])[None] < vocabulary
        logits = jnp.where(known, state.logits, -jnp.inf)
        token = choose(logits, sampling, jax.vmap(jax.random.fold_in, (0, None))(keys, state.count))
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=-1)[:, 0]
        finished = state.finished | jnp.any(token[:, None] == stop[None], axis=-1)
        positions = jnp.where(finished, -1, state.positions)[:, None]
        out = model.forward(config, params, token[:, None], positions=positions, cache=state.cache)
        return Decoding(
            out.cache,
            model.unembed(config, params, out.hidden[:, 0]),
            state.positions + 1,
            state.ids.at[:, state.count].set(token),
            state.logprobs.at[:, state.count].set(logprob),
            state.count + 1,
            state.lengths + ~finished,
            finished,
        )

    return jax.lax.while_loop(going, one, state)


def generate(
    config: ModelConfig,
    params: Params,
    prompt: Int[Numbers, "B T"],
    lengths: Int[Numbers, " B"],
    keys: Keys,
    *,
    sampling: Sampling,
    new_tokens: int,
    stop: tuple[int, ...] = (),
    vocabulary: int | None = None,
) -> Generated:
    """Continues each prompt by at most `new_tokens` tokens, in one compiled loop.

    Args:
      prompt: ids, padded at the right with anything; row i holds `lengths[i]` ≥ 1 of them.
      keys: one random key a row.
      vocabulary: ids from here on are never drawn; none allows all.

    Raises:
      ValueError: a prompt is empty, or prompt and new tokens together exceed the context.
    """
    *_, last = _run(config, params, prompt, lengths, keys, sampling, new_tokens, stop, vocabulary, chunk=new_tokens)
    return last


def stream(*args: Any, chunk: int = 8, **kwargs: Any) -> Iterator[Generated]:
    """Like `generate`, but gives what there is after every `chunk` tokens. The compiled functions are the same."""
    config, params, prompt, lengths, keys = args
    return _run(config, params, prompt, lengths, keys, chunk=chunk, **({"stop": (), "vocabulary": None} | kwargs))


def _run(config, params, prompt, lengths, keys, sampling, new_tokens, stop, vocabulary, chunk) -> Iterator[Generated]:
    lengths = np.asarray(lengths)
    longest = int(lengths.max())
    if lengths.min() < 1:
        raise ValueError("a prompt is empty; it needs at least one token.")
    if longest + new_tokens > config.context:
        raise ValueError(f"a prompt of {longest} tokens and {new_tokens} new ones exceed the context of {config.context}.")
    width = min(bucket(longest), config.context)
    padded = np.zeros((len(lengths), width), np.int32)
    padded[:, : min(width, prompt.shape[1])] = np.asarray(prompt)[:, :width]
    state = prefill(config, params, padded, lengths.astype(np.int32), room=min(bucket(new_tokens), config.context))
    ends = np.asarray(stop or (-1,), np.int32)
    limit = np.int32(config.vocabulary if vocabulary is None else vocabulary)
    for until in [*range(chunk, new_tokens, chunk), new_tokens]:
        state = decode(config, params, state, keys, sampling, ends, np.int32(until), limit)
        count = min(until, new_tokens)
        finished = np.asarray(state.finished)
        yield Generated(np.asarray(state.ids)[:, :count], np.asarray(state.logprobs)[:, :count], np.asarray(state.lengths), finished)
        if finished.all():
            return


def bucket(count: int, least: int = 16) -> int:
    """The power of two, at least `least`, that holds `count`."""
    return max(least, 1 << (count - 1).bit_length())
