"""Labels of texts, by a model that classifies."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data.layouts import filled
from gptjax.data.tasks import Classification
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.decode import padded_size
from gptjax.model import ModelConfig


class Labelled(NamedTuple):
    """A text and its likeliest label."""

    text: str
    label: str
    logprobs: dict[str, float]
    """ln p of every label."""


def classify(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    task: Classification,
    texts: Sequence[str],
    batch: int = 8,
) -> Iterator[Labelled]:
    """Yields the likeliest label of each text; longer texts than the context are cut at the end, as
    in training.

    Raises:
      ConfigError: the model was not trained to classify.
    """
    require(bool(config.classes), "this model has no labels; its task is not Classification.")
    for i in range(0, len(texts), batch):
        these = list(texts[i : i + batch])
        examples = [
            task.labelled(tokenizer.encode(text), task.labels[0], tokenizer) for text in these
        ]
        pieces = [
            [task.piece(ids, tokenizer.vocab_size, config.context)]
            for ids in examples + [examples[0]] * (batch - len(examples))
        ]
        rows = filled(
            pieces, padded_size(max(len(row[0].tokens) for row in pieces), config.context)
        )
        found = np.asarray(_logprobs(config, params, rows))
        for text, logprobs in zip(these, found, strict=False):
            yield Labelled(
                text,
                task.labels[int(logprobs.argmax())],
                dict(zip(task.labels, logprobs.tolist(), strict=True)),
            )


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(config: ModelConfig, params: Params, batch: Any) -> Any:
    hidden = model.forward(
        config, params, batch.tokens, positions=batch.positions, segments=batch.segments
    ).hidden
    logits = model.class_logits(config, params, hidden, batch.positions, batch.segments)
    last = jnp.argmax(batch.weights, axis=1)[:, None, None]
    return jax.nn.log_softmax(jnp.take_along_axis(logits, last, axis=1)[:, 0])
