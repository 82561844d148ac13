"""Held-out evaluation: the loss of a whole store, and the figures of its task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax.core.arrays import Params
from gptjax.data.layouts import Batch
from gptjax.data.store import Store
from gptjax.losses import Frozen, Loss
from gptjax.model import ModelConfig
from gptjax.train.experiment import Experiment
from gptjax.train.sources import evaluation_batches


def held_out_loss(experiment: Experiment, models: Mapping[str, ModelConfig] | None = None) -> Loss:
    """Builds the loss to evaluate with.

    Args:
      models: architectures of the models that the loss needs.
    """
    models = models or dict.fromkeys(experiment.objective.models, experiment.model)
    loss = experiment.objective.build(experiment.model, **models)
    return loss.held_out(experiment.data.task.figures)


def evaluate(
    measure: Callable[[Params, Frozen, Batch], Mapping[str, Any]],
    mesh: Mesh,
    experiment: Experiment,
    store: Store,
    params: Params,
    frozen: Frozen,
    rows: int | None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Measures a store; `None` if `stop`, asked after every batch, returned true.

    Args:
      measure: sums over one batch, see `step.evaluate_step`.
      rows: only the first ones; `None` means all.

    Returns:
      `loss`, nats per token; the metrics of the held-out loss: `accuracy`, the share of tokens (or
      labels) that are the most likely; `exact_match`, the share of answers that greedy decoding
      would write; of a language model `bits_per_byte` of the text behind the tokens.
    """
    plan, batch = evaluation_batches(experiment, store, mesh)
    count = plan.batches_per_epoch
    if rows is not None:
        count = min(count, -(-rows // len(batch(0).tokens)))
    sums: list[Any] = []
    for number in range(count):
        sums.append(measure(params, frozen, batch(number)))
        jax.block_until_ready(sums[-2:-1])  # one is in flight while the host reads the next
        if stop():
            return None
    total = jax.tree.map(
        lambda *parts: np.asarray(parts, np.float64).sum(axis=0), *jax.device_get(sums)
    )
    return figures_of(total, experiment, store)


def figures_of(total: Mapping[str, Any], experiment: Experiment, store: Store) -> dict[str, float]:
    """Returns what `evaluate` does, from the sums over all batches of a store."""
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = {"loss": float(total["loss"] / total["weight"])}
        for name, reduction in held_out_loss(experiment).metrics().items():
            figures[name] = float(reduction(total, total["weight"]))
    if "bits_per_byte" in experiment.data.task.figures:
        predicted = store.header.num_tokens - store.header.num_examples
        bits = figures["loss"] / math.log(2) * predicted
        figures["bits_per_byte"] = bits / store.header.num_bytes
    return figures | experiment.data.task.derived(figures["loss"])
