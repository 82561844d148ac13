"""Scores of texts, by a model that was trained to give one (a reward model)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.data.layouts import Piece, filled
from gptjax.generate.decode import padded_size
from gptjax.model import ModelConfig


def score_pieces(
    config: ModelConfig, params: Params, pieces: Iterable[Piece], batch: int = 8
) -> Iterator[float | None]:
    """Yields the score of each text, read at its last token as in training; `None` of one that is
    longer than the context.

    Args:
      batch: number of texts that are read together.
    """
    pieces = iter(pieces)
    while these := list(itertools.islice(pieces, batch)):
        fit = [piece for piece in these if len(piece.tokens) <= config.context]
        found: Iterator[float] = iter(())
        if fit:
            width = padded_size(max(len(piece.tokens) for piece in fit), config.context)
            rows = filled([[piece] for piece in fit + [fit[0]] * (batch - len(fit))], width)
            found = iter(np.asarray(_scores(config, params, rows)).tolist())
        for piece in these:
            yield next(found) if len(piece.tokens) <= config.context else None


@functools.partial(jax.jit, static_argnums=0)
def _scores(config: ModelConfig, params: Params, batch: Any) -> Any:
    hidden = model.forward(
        config, params, batch.tokens, positions=batch.positions, segments=batch.segments
    ).hidden
    scores = model.class_logits(config, params, hidden, batch.positions, batch.segments)[..., 0]
    last = jnp.argmax(batch.positions, axis=1)[:, None]
    return jnp.take_along_axis(scores, last, axis=1)[:, 0]
