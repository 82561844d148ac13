"""Texts as vectors: the mean of their tokens' last hidden states, of length 1."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Params
from gptjax.core.config import require
from gptjax.data.layouts import Piece, filled
from gptjax.data.tasks import Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.decode import padded_size
from gptjax.generate.masked import between_marks
from gptjax.model import ModelConfig


def embed_texts(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    task: Task,
    texts: Sequence[str],
    batch: int = 8,
) -> np.ndarray:
    """Returns the embeddings of texts [texts, D], float32, of length 1 each.

    An encoder (BERT) reads a text between its two marks, as Reimers and Gurevych 2019,
    arXiv:1908.10084, do; a decoder reads it as a prompt. Longer texts than the context are cut at
    the end. Texts of similar length are read together; the result does not depend on it.

    Raises:
      ConfigError: the model has an encoder beside its decoder, or a text is empty.
    """
    require(
        not config.encoder_layers,
        "an encoder-decoder gives no embeddings; use a decoder or an encoder alone.",
    )
    rows = [_ids(config, tokenizer, task, text)[: config.context] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        require(bool(row), f"the text {text!r} has no token to embed; leave it out.")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.zeros((len(rows), config.width), np.float32)
    for start in range(0, len(order), batch):
        these = order[start : start + batch]
        arrays = [np.asarray(rows[i], np.int32) for i in these + these[:1] * (batch - len(these))]
        pieces = [[Piece(ids, ids, np.ones(len(ids)))] for ids in arrays]
        width = padded_size(max(map(len, arrays)), config.context)
        found = _means(config, params, filled(pieces, width, packed=False)._replace(prefix=None))
        out[these] = np.asarray(found)[: len(these)]
    return out


def _ids(config: ModelConfig, tokenizer: Tokenizer, task: Task, text: str) -> list[int]:
    ids = tokenizer.encode(text).tolist()
    if config.causal:
        return task.prompt(ids, tokenizer, with_encoder=False)[1]
    return between_marks(tokenizer, ids[: config.context - 2])


@functools.partial(jax.jit, static_argnums=0)
def _means(config: ModelConfig, params: Params, batch: Any) -> Float[Array, "B D"]:
    hidden = model.forward(config, params, batch.tokens, positions=batch.positions).hidden
    total = jnp.einsum("btd,bt->bd", hidden.astype(jnp.float32), batch.weights)
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)
