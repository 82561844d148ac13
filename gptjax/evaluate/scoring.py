"""Log-probabilities of passages: rows are read by one compiled program for each of few lengths.

Read `score_passages`, then `score_rows`, the program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.api import Model
from gptjax.core.arrays import Array, Bool, Float, Int, Params
from gptjax.core.config import require
from gptjax.data import Side
from gptjax.evaluate.encoding import Passage
from gptjax.evaluate.layout import BLOCK, Row, Rows, batch_arrays, batched, fill_rows
from gptjax.generate.decode import within
from gptjax.model import ModelConfig
from gptjax.sharding.constrain import ROWS, use_mesh
from gptjax.sharding.mesh import to_host

SHARED_MOST = 2048
"""Longest row in which passages share a beginning where kernels that find keys by their place in
the row would not see it."""


class Found(NamedTuple):
    """What the model says of one passage."""

    passage: int
    """Its number."""
    logprobs: np.ndarray
    """float32: ln p of each scored token."""
    best: np.ndarray
    """bool: it is the likeliest."""


class ScoredBatch(NamedTuple):
    """The passages of one batch, and what reading them took."""

    found: list[Found]
    tokens: int
    """Tokens that were read."""
    positions: int
    """Places of the batch, padding included."""
    shape: tuple[int, ...]
    """Of the program."""


def check_scores(one: Model) -> None:
    """Refuses a model that gives no probability to a continuation.

    Raises:
      ConfigError: it sees later tokens, classifies, reads frames or text backward, or holds several
        adapters.
    """
    config = one.config
    require(
        config.causal and not config.classes and config.frames is None,
        "this model does not predict the next token of a text, so it gives no continuation a"
        " probability; evaluate a decoder, or one beside an encoder of texts.",
    )
    require(
        not getattr(one.task, "backward", False),
        "this model reads texts from their end, so it gives no continuation a probability.",
    )
    require(
        not one.adapters,
        f"the model holds the adapters {', '.join(one.adapters)}; choose one: model.using(NAME).",
    )


def score_passages(
    one: Model, passages: Sequence[Passage], positions: int
) -> tuple[int, Iterator[ScoredBatch]]:
    """Returns the number of positions of all batches, and the batches as they are read.

    Args:
      positions: of a batch.
    """
    rows = fill_rows(
        passages,
        longest=SHARED_MOST if _windowed(one.config) else None,
        whole_contexts=one.config.prefix_lm,
    )
    least = 1 if one.mesh is None else int(np.prod([one.mesh.shape.get(a, 1) for a in ROWS]))
    batches = list(batched(passages, rows, positions, least))
    total = sum(length * size for length, size, _ in batches)
    return total, (_read(one, passages, *batch) for batch in batches)


def _windowed(config: ModelConfig) -> bool:
    return any(layer.sees == "window" for layer in config.stack)


def config_for_rows(config: ModelConfig, length: int) -> ModelConfig:
    """The config of the program that reads rows of this length.

    Experts take every token, as in generation, so that a passage does not depend on those beside
    it. Kernels that find keys of a window by their place in the row, or compare segments alone, do
    not know a shared beginning; other implementations stand for them. Layers are a compiled loop
    where nothing else is said: for a 30-layer model on a CPU a program then compiles in an eighth
    of the time, and runs no slower.
    """
    experts = config.experts and dataclasses.replace(config.experts, capacity=None)
    attention = "auto"
    if _windowed(config) and length <= SHARED_MOST:
        attention = "reference"
    elif jax.default_backend() == "tpu":
        attention = "blockwise"
    layers = "scan" if config.layers == "auto" else config.layers
    return dataclasses.replace(config, attention=attention, experts=experts, layers=layers)


def _read(
    one: Model, passages: Sequence[Passage], length: int, size: int, rows: Sequence[Row]
) -> ScoredBatch:
    batch = batch_arrays(passages, rows, length, size)
    config = config_for_rows(one.config, length)
    with use_mesh(one.mesh):
        logprobs, best = map(
            to_host, score_rows(config, one.params, batch, np.int32(one.tokenizer.vocab_size))
        )
    found, place = [], 0
    for n in (n for row in rows for n in row.passages):
        end = place + len(passages[n].ids) - passages[n].first
        found.append(Found(n, logprobs[place:end], best[place:end]))
        place = end
    side = 0 if batch.side is None else batch.side.shape[1]
    read = int((batch.positions >= 0).sum()) + (int((batch.side >= 0).sum()) if side else 0)
    return ScoredBatch(found, read, size * length, (size, length, side))


@functools.partial(jax.jit, static_argnums=0)
def score_rows(
    config: ModelConfig, params: Params, rows: Rows, vocabulary: Int[Array, ""]
) -> tuple[Float[Array, " N"], Bool[Array, " N"]]:
    """Returns ln p of each scored token, from a softmax in float32 over ids below `vocabulary`, and
    whether it is the likeliest; arbitrary from `rows.count` on."""
    memory = None
    if rows.side is not None:
        known = rows.side >= 0
        places = jnp.where(known, jnp.arange(rows.side.shape[1])[None], -1)
        memory = model.encode(config, params, Side(jnp.where(known, rows.side, 0), places))
    hidden = model.forward(
        config,
        params,
        rows.tokens,
        positions=rows.positions,
        segments=rows.segments,
        prefix=rows.prefix,
        memory=memory,
    ).hidden
    flat = hidden.reshape(-1, hidden.shape[-1])

    def block(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        here, target = (
            jax.lax.dynamic_slice(x, (i * BLOCK,), (BLOCK,)) for x in (rows.index, rows.target)
        )
        logits = within(model.unembed(config, params, flat[here]), vocabulary)
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=-1)[:, 0]
        best = jnp.argmax(logits, axis=-1) == target
        return tuple(
            jax.lax.dynamic_update_slice(whole, part, (i * BLOCK,))
            for whole, part in zip(found, (logprobs, best), strict=True)
        )

    size = rows.index.shape
    begin = (jnp.zeros(size, jnp.float32), jnp.zeros(size, bool))
    return jax.lax.fori_loop(0, -(-rows.count // BLOCK), block, begin)
