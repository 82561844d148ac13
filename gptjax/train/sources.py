"""Where training batches come from: (step, state) → batch on the devices.

A store ignores the state. Another source may use it, for example to sample from the model. Both are
pure, so a resumed run sees the same batches as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from gptjax.core.config import require
from gptjax.data import batches
from gptjax.data.layouts import Batch
from gptjax.data.store import Store
from gptjax.sharding.mesh import local_rows, num_row_shards, place_batch, row_sharding
from gptjax.train.experiment import Experiment
from gptjax.train.step import TrainState

Source = Callable[[int, TrainState], Batch]
"""(number of finished steps, state) → the batch of the next step, on the devices."""


class Read(NamedTuple):
    """How much a run has read up to a step, over all the sizes that its batches have had."""

    step: int
    rows: int
    """Rows; of the context that the run has now."""
    tokens: int
    """Positions of batches, padding included."""

    def until(self, step: int, experiment: Experiment) -> Read:
        """What is read up to a later step, in batches of the experiment's size."""
        more = step - self.step
        return Read(
            step,
            self.rows + more * experiment.batch,
            self.tokens + more * experiment.tokens_per_step,
        )


def stored(store: Store, plan: batches.Plan, mesh: Mesh) -> Source:
    """Returns the source of a store's batches. Each process reads the rows of its own devices."""
    mine = local_rows(mesh, plan.rows)

    def source(step: int, state: TrainState) -> Batch:
        return place_batch(batches.batch(store, plan, step, mine), mesh, plan.rows)

    return source


def placed(source: Source, mesh: Mesh) -> Source:
    """Returns a source whose batches lie on the devices, wherever those of `source` are."""

    def onto_devices(step: int, state: TrainState) -> Batch:
        return jax.device_put(source(step, state), row_sharding(mesh))

    return onto_devices


def row_plan(
    experiment: Experiment, store: Store, *, seed: int | None, rows: int | None = None
) -> batches.Plan:
    """Plans how a store becomes rows of the experiment's context.

    Args:
      seed: of the order; `None` keeps the order of the store.
      rows: of one batch; `None` means the experiment's.

    Raises:
      ConfigError: the store is shorter than one row.
    """
    plan = batches.plan(
        store,
        length=experiment.model.context,
        rows=rows or experiment.batch,
        seed=seed,
        isolated=experiment.data.isolated,
        task=experiment.data.task,
        with_encoder=experiment.model.encoder_layers > 0,
    )
    require(
        plan.packing is not None or seed is None or plan.pairs >= plan.length,
        f"the text has {plan.pairs + 1} tokens, fewer than one row of {plan.length + 1}; use more"
        f" text (--data.source.path), or shorter rows (--model.context {max(1, plan.pairs)}).",
    )
    return plan


def evaluation_batches(
    experiment: Experiment, store: Store, mesh: Mesh
) -> tuple[batches.Plan, Callable[[int], Batch]]:
    """Returns the plan of batches that hold the whole store in order, and number → batch. They are
    larger than training batches."""
    shards = num_row_shards(mesh)
    rows = max(
        experiment.batch // experiment.micro_batches,
        4096 // experiment.model.context // shards * shards,
    )
    plan = row_plan(experiment, store, seed=None, rows=rows)
    mine = local_rows(mesh, plan.rows)
    return plan, lambda number: place_batch(
        batches.batch(store, plan, number, mine), mesh, plan.rows
    )
