"""Training batches from a pipeline of your own: Grain, or anything that can be indexed or iterated.

Each function returns what `train(…, source=…)` takes. The experiment's `data` still gives the
tokenizer and the held-out text; what the pipeline holds is not part of the run's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from gptjax.core.config import require
from gptjax.data.layouts import Batch, Piece, filled
from gptjax.data.permutation import permute

Wrapped = Callable[[Any], Callable[[int, Any], Batch]]
"""Takes the source of stored batches, which is not used, and returns (step, state) → batch."""

FIELDS = ("tokens", "targets", "weights", "segments", "positions")


class Indexed(Protocol):
    """A data set with random access, such as `grain.python.RandomAccessDataSource`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def from_examples(dataset: Indexed, *, batch: int, context: int, seed: int | None = 0) -> Wrapped:
    """Makes batches of examples, one a row. Step s reads rows s · B … of the endless sequence of
    epochs, so a resumed run continues where it was, at no cost.

    Args:
      dataset: `dataset[i]` is an example: its ids, one after another, or a dict with them in
        `tokens`. What is longer than a row of `context` + 1 ids is cut.
      batch: B, rows of a batch; that of the experiment.
      context: T, positions of a row; that of the model.
      seed: of each epoch's order; `None` keeps the order of the data set.

    Raises:
      ConfigError: the data set is empty; or on reading, an example has no ids.
    """
    size = len(dataset)
    require(size > 0, "the data set has no examples; give one that has some.")

    def source(step: int, state: Any) -> Batch:
        epochs, rows = np.divmod(step * batch + np.arange(batch, dtype=np.int64), size)
        if seed is not None:
            for epoch in np.unique(epochs):
                order = permute(rows, size, (seed, int(epoch)))
                rows = np.where(epochs == epoch, order, rows)
        pieces = [[_piece(dataset[int(row)], int(row), context)] for row in rows]
        return filled(pieces, context, packed=False)._replace(prefix=None)

    return lambda stored: source


def from_batches(pipeline: Any) -> Wrapped:
    """Takes batches as they are: `pipeline[step]` where it can be indexed, such as a batched
    `grain.MapDataset`; otherwise it is iterated, and a resumed run reads again what it has read
    before, so that it continues with the batch that would have come.

    A batch is ids [B T + 1], or a dict of arrays [B T]: `tokens` and `targets`, and where there
    are any `weights` (1 by default; 0 is padding), `segments` and `positions`.

    Raises:
      ConfigError: on reading: a batch is not of this form, or there are fewer than steps.
    """
    if hasattr(pipeline, "__getitem__"):
        return lambda stored: lambda step, state: _batch(pipeline[step])
    return lambda stored: _Replayed(pipeline)


class _Replayed:
    """Batches of an iterable by number. Going back begins anew."""

    def __init__(self, pipeline: Iterable[Any]):
        self.pipeline = pipeline
        self.iterator: Iterator[Any] = iter(pipeline)
        self.following = 0
        self.last: Batch | None = None

    def __call__(self, step: int, state: Any) -> Batch:
        if step + 1 == self.following and self.last is not None:
            return self.last
        if step < self.following:
            self.iterator, self.following = iter(self.pipeline), 0
        item = None
        while self.following <= step:
            item = next(self.iterator, None)
            require(
                item is not None,
                f"the pipeline ends after {self.following} batches, and step {step + 1} needs one"
                " more; repeat it, or train for fewer steps (--steps).",
            )
            self.following += 1
        self.last = _batch(item)
        return self.last


def _piece(example: Any, number: int, context: int) -> Piece:
    """An example as a row that predicts each id from those before it."""
    ids = example["tokens"] if isinstance(example, Mapping) else example
    ids = np.asarray(ids)
    require(
        ids.ndim == 1 and len(ids) > 1 and np.issubdtype(ids.dtype, np.integer),
        f"example {number} is {ids.dtype} {list(ids.shape)}; it needs two ids or more, [n] of an"
        " integer type.",
    )
    ids = ids[: context + 1]
    return Piece(ids[:-1], ids[1:], np.ones(len(ids) - 1))


def _batch(item: Any) -> Batch:
    """A batch of numpy arrays."""
    if not isinstance(item, Mapping):
        ids = np.asarray(item)
        require(
            ids.ndim == 2 and ids.shape[1] > 1,
            f"a batch is {list(ids.shape)}; it needs ids [B T + 1], or a dict with tokens [B T].",
        )
        item = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
    known = {name: np.asarray(item[name]) for name in FIELDS if name in item}
    require(
        {"tokens", "targets"} <= set(known),
        f"a batch has {', '.join(map(str, item)) or 'nothing'}; it needs tokens and targets.",
    )
    shape = known["tokens"].shape
    wrong = [f"{name} {list(a.shape)}" for name, a in known.items() if a.shape != shape]
    require(
        not wrong and len(shape) == 2,
        f"a batch has tokens {list(shape)} and {', '.join(wrong)}; all need to be [B T].",
    )
    weights = known.pop("weights", np.ones(shape)).astype(np.float32)
    ids = {name: array.astype(np.int32) for name, array in known.items()}
    batch = Batch(ids["tokens"], ids["targets"], weights)
    return batch._replace(segments=ids.get("segments"), positions=ids.get("positions"))
