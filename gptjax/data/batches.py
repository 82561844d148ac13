"""The batch of a given step: a pure function of (store, seed, step).

Each example of n ids has n − 1 pairs (id, next id). All pairs of a store, one example after
another, form one line; it is cut into rows of T pairs, which are read in the order that a
permutation of (seed, epoch) gives. In every epoch each pair is predicted exactly once. A random
shift moves the cuts in each epoch, so that row borders differ.

Records (a text and its answer) are not cut: whole ones are packed into rows once, and these rows
are read in such an order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gptjax.data.layouts import Batch
from gptjax.data.permutation import permute
from gptjax.data.rows import Plan, RowNumbers
from gptjax.data.store import Header, Store
from gptjax.data.tasks.language_model import LanguageModel
from gptjax.data.tasks.task import Task


def plan(
    store: Store,
    *,
    length: int,
    rows: int,
    seed: int | None,
    isolated: bool = True,
    task: Task = LanguageModel(),
    with_encoder: bool = False,
) -> Plan:
    """Plans batches of `rows` rows with `length` positions each.

    Args:
      seed: order of the rows; `None` reads them in the order of the store, once.
      isolated: examples in one row do not see each other.
      with_encoder: the model has an encoder.
    """
    starts = store.offsets - np.arange(len(store.offsets))
    return task.plan(
        store,
        Plan(
            task=task,
            length=length,
            width=length,
            rows=rows,
            seed=seed,
            isolated=isolated and store.header.num_examples > 1,
            with_encoder=with_encoder,
            pairs=int(starts[-1]),
            starts=starts,
        ),
    )


def batch(store: Store, plan: Plan, step: int, rows: np.ndarray | None = None) -> Batch:
    """Returns rows `shift + step · B …` of the endless sequence of epochs, as numpy arrays.

    Args:
      rows: only these rows of the batch, numbers from 0 to B − 1: what one of several processes
        needs. Nothing else is read.

    Raises:
      ConfigError: the store holds an id outside its vocabulary, or is shorter than when it was
        opened; names file and byte.
    """
    within = np.arange(plan.rows) if rows is None else rows
    number = plan.shift + step * plan.rows + within.astype(np.int64)
    epoch, row = np.divmod(number, plan.rows_per_epoch)
    if plan.seed is None:
        row = np.where(epoch == 0, row, plan.rows_per_epoch)  # nothing follows the only epoch
    else:
        for e in np.unique(epoch):
            order = permute(row, plan.rows_per_epoch, (plan.seed, int(e)))
            row = np.where(epoch == e, order, row)
    return plan.task.batch(store, plan, RowNumbers(number, epoch, row))


def empty(
    task: Task,
    *,
    length: int,
    isolated: bool,
    with_encoder: bool,
    columns: Mapping[str, tuple[int, ...]] | None = None,
) -> Batch:
    """Returns one row of padding as `task` lays it out: the fields and shapes of its batches, known
    before there is data.

    Args:
      columns: of the store: name → shape of one example's values, which are float32.
    """
    one = task.blank
    store = Store(
        header=Header(
            dtype="int32",
            vocab_size=task.extra_ids + 1,
            num_tokens=2 * len(one),
            num_examples=2,
            num_bytes=0,
            fingerprint="",
            facts={},
        ),
        ids=np.asarray([*one, *one], np.int32),
        offsets=np.arange(3) * len(one),
        columns={name: np.zeros((2, *each), np.float32) for name, each in (columns or {}).items()},
    )
    layout = plan(
        store,
        length=length,
        rows=1,
        seed=None,
        isolated=isolated,
        task=task,
        with_encoder=with_encoder,
    )
    return batch(store, layout, layout.batches_per_epoch)
