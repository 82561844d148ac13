"""Proofs about reward models: a text has the score that it has alone, whatever shares its row, and
the loss is that of the preferred answer's lead. (Setting) → Figure.

Read `scores_by_hand` (scores in float64), then the proofs.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import numpy as np

from gptjax.core.arrays import Key, Params
from gptjax.data import Batch
from gptjax.losses import BradleyTerry
from gptjax.losses.reward import pair_scores
from gptjax.verify import reading
from gptjax.verify.reading import ROUNDING
from gptjax.verify.setting import Figure, Setting, difference, precise


def scores_by_hand(setting: Setting) -> np.ndarray:
    """Returns the scores of both answers of each pair of the batch [n 2], the chosen one's first:
    each text is read alone, and the state of its first or last token, or the mean of all, as
    `model.pool` says, multiplied by the head in float64."""
    batch, head, pool = setting.batch, setting.params["classes"], setting.exact.pool
    assert batch.segments is not None
    length, found = batch.tokens.shape[1], []
    kernel, bias = (np.asarray(head[name], np.float64) for name in ("kernel", "bias"))
    for row, segments in enumerate(batch.segments):
        for number in range(1, int(segments.max()) + 1):
            ids = batch.tokens[row, segments == number]
            tokens = np.zeros((1, length), np.int32)
            tokens[0, : len(ids)] = ids
            place = np.arange(length, dtype=np.int32)[None]
            real = place < len(ids)
            hidden = setting.functions.hidden(
                setting.params, tokens, np.where(real, place, -1), real.astype(np.int32)
            )
            states = np.asarray(hidden[0, : len(ids)], np.float64)
            pooled = {"first": states[0], "last": states[-1]}.get(pool, states.mean(axis=0))
            found.append((pooled @ kernel + bias).item())
    return np.asarray(found).reshape(-1, 2)


def scores_alone(setting: Setting) -> Figure:
    """Takes the scores of a batch as training does, several texts in a row, and by hand."""
    wanted, batch = scores_by_hand(setting), setting.batch
    assert batch.columns is not None

    @jax.jit
    @precise
    def read(params: Params, batch: Batch) -> Any:
        return pair_scores(setting.exact, params, batch, None)

    real = np.asarray(batch.columns["pairs"]) > 0
    together = np.stack([np.asarray(one)[real] for one in read(setting.params, batch)], axis=-1)
    far = difference(together, wanted)
    return Figure(far, ROUNDING, f"relative difference of the scores of {wanted.size} texts alone")


def leads(setting: Setting) -> Figure:
    """Takes the loss of a batch, and −ln σ of the leads in float64, with scores by hand."""
    settings, score = cast(BradleyTerry, setting.small.loss), scores_by_hand(setting)
    lead = score[:, 0] - score[:, 1] - settings.margin
    each = np.logaddexp(0.0, -lead) + settings.centre * np.square(score.sum(axis=1))
    total, weight = _loss(setting)(setting.params, setting.batch, None)
    found, wanted = float(total) / float(weight), float(each.mean())
    return Figure(
        abs(found - wanted) / wanted,
        ROUNDING,
        f"relative difference of the loss of {len(score)} pairs, {found:.4f} nats, from −ln σ of"
        " their leads by hand",
    )


def loss_gradient(setting: Setting) -> Figure:
    """Compares the gradient of the config's own loss to finite differences, as `reading.gradients`
    does that of predictions."""
    loss = _loss(setting)
    slope = jax.jit(jax.value_and_grad(loss, has_aux=True))
    own = setting.functions._replace(loss=loss, gradient=slope)
    return reading.gradients(setting._replace(functions=own))


def _loss(setting: Setting) -> Any:
    """(params, batch, key) → total, weight of the config's loss."""
    built = cast(BradleyTerry, setting.small.loss).build(setting.exact)

    @jax.jit
    @precise
    def loss(params: Params, batch: Batch, key: Key | None) -> Any:
        return built(params, {}, batch, key)[:2]

    return loss
