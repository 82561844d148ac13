"""Ids in, ids out: `generate` and `stream` continue prompts that are all known at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from gptjax.core.arrays import Bool, Float, Int, Keys, Numbers, Params
from gptjax.generate import engine
from gptjax.generate.chain import Sampling
from gptjax.generate.decode import Text, padded, padded_size, prefill
from gptjax.generate.engine import Columns, advance
from gptjax.model import KVCache, ModelConfig
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import to_host


class Generated(NamedTuple):
    """The continuations: the first `lengths[row]` ids and log-probabilities of each row count."""

    ids: Int[Numbers, "B M"]
    logprobs: Float[Numbers, "B M"]
    """ln p of each token under the model itself, before any transform."""
    lengths: Int[Numbers, " B"]
    finished: Bool[Numbers, " B"]
    """The row met a stop token; otherwise it ended at the wanted length."""


def generate(*args: Any, **kwargs: Any) -> Generated:
    """Continues each prompt by at most `new_tokens` tokens, in one compiled loop: the last item of
    `stream` with a single chunk."""
    *_, last = stream(*args, **kwargs, chunk=None)
    return last


def stream(
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
    chunk: int | None = 8,
    kv_cache: KVCache = "full",
    side: Any = None,
    mesh: Mesh | None = None,
) -> Iterator[Generated]:
    """Continues each prompt by at most `new_tokens` tokens; yields the text so far after every
    `chunk` tokens.

    Args:
      prompt: ids, padded at the right with anything; row i holds `lengths[i]` ≥ 1 of them.
      keys: one random key per row.
      vocabulary: ids from here on are never drawn; `None` allows all.
      chunk: `None` yields only the end.
      kv_cache: how keys and values are kept, see `model.empty_cache`.
      side: the input of the model's encoder for each row, a `data.Side`, if it has one; its width
        is a compiled shape.
      mesh: the devices on which the parameters are placed.

    Raises:
      ValueError: the model is an encoder, a prompt is empty, or prompt and new tokens together
        exceed the context.
    """
    lengths = np.asarray(lengths)
    _check(config, lengths, new_tokens)
    rows = len(lengths)
    ids = [row[:length] for row, length in zip(np.asarray(prompt), lengths, strict=True)]
    known = config.vocabulary if vocabulary is None else vocabulary
    ends = np.broadcast_to(np.asarray(stop or (-1,), np.int32), (rows, max(len(stop), 1)))
    with use_mesh(mesh):
        reading = prefill(
            config,
            params,
            padded(ids, config.context),
            lengths.astype(np.int32),
            np.full(rows, new_tokens, np.int32),
            slots=padded_size(int(lengths.max()) + new_tokens, config.context),
            kv_cache=kv_cache,
            side=side,
        )
    slots = engine.fill(reading, None, Columns(keys, sampling, ends))
    steps = new_tokens if chunk is None else chunk
    for until in range(steps, new_tokens + steps, steps):
        with use_mesh(mesh):
            slots = advance(config, params, slots, steps, known)
        yield tokens_so_far(slots.text, min(until, new_tokens))
        if to_host(slots.text.finished).all():
            return


def _check(config: ModelConfig, lengths: Int[Numbers, " B"], new_tokens: int) -> None:
    if not config.causal:
        raise ValueError("an encoder does not write: its tokens see later ones.")
    if lengths.min() < 1:
        raise ValueError("a prompt is empty; it needs at least one token.")
    if (longest := int(lengths.max())) + new_tokens > config.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed the context of"
            f" {config.context}."
        )


def tokens_so_far(text: Text, most: int) -> Generated:
    """The continuations so far, at most `most` tokens of each, as numpy arrays."""
    ids, prompt, length = (to_host(leaf) for leaf in text.history[:3])
    place = np.minimum(prompt[:, None] + np.arange(most)[None], ids.shape[1] - 1)
    return Generated(
        ids=np.take_along_axis(ids, place, axis=1),
        logprobs=np.take_along_axis(to_host(text.logprobs), place, axis=1),
        lengths=np.minimum(length - prompt, most),
        finished=to_host(text.stopped),
    )
