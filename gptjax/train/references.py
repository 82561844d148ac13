"""Log-probabilities of answers under a loss's reference, computed once over the stores and kept
beside them.

Read `add`, then `compute`. A file holds one array for each store, float32 [num_examples 2]: ln p of
both answers of an example, NaN where the example is longer than a row.
"""

from __future__ import annotations

import functools
import json
import os
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gptjax.core import processes
from gptjax.core.arrays import Array, Params
from gptjax.core.trees import combine
from gptjax.data.layouts import Batch
from gptjax.data.prepare import Prepared, digest_of
from gptjax.data.rows import RowNumbers, packed_examples
from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import hash_tokenizer
from gptjax.losses import KTO, Frozen, Preference
from gptjax.losses.answers import BASE, REFERENCE
from gptjax.observe.progress import duration
from gptjax.sharding.mesh import replicated, with_mesh
from gptjax.train.experiment import Experiment
from gptjax.train.halves import halves
from gptjax.train.placement import abstract
from gptjax.train.sources import evaluation_batches
from gptjax.train.teacher import open_other

FORMAT = 1
EVERY = 10.0
"""Seconds between lines of progress."""

Say = Callable[[str], Any]
Measure = Callable[[Batch], Array]
"""Batch → ln p of both answers of each pair [B P 2], on every device."""


def add(
    experiment: Experiment,
    data: Prepared,
    mesh: Mesh,
    *,
    record: Mapping[str, Any],
    params: Params | None,
    say: Say,
) -> Prepared:
    """Returns the data with the column `reference` in its stores: read from beside them if it was
    computed from the same weights, data, tokenizer and type, else computed and kept there.

    Args:
      record: identity of the run, with the hashes of the models that it needs.
      params: the weights under the adapter of a run, for the reference `base`.
      say: prints a line.
    """
    stores = {"train": data.train, "validation": data.validation}
    stores = {name: store for name, store in stores.items() if store is not None}
    made_of = key(experiment, data, record)
    folder = None if data.train.path is None else data.train.path.parent
    file = folder and folder / f"reference-{digest_of(made_of)[:16]}.npz"
    known = file and read(file, made_of, stores)
    if not all(processes.gather("reference", known is not None)):
        measure = measuring(experiment, data, mesh, params)
        known = {
            name: compute(experiment, store, mesh, measure, lambda line: say(f"reference: {line}"))
            for name, store in stores.items()
        }
        if file is not None and processes.first():
            _keep(file, made_of, known, say)
    assert known is not None
    with_column = {
        name: store._replace(columns={REFERENCE: known[name]}) for name, store in stores.items()
    }
    return data._replace(**with_column)


def key(experiment: Experiment, data: Prepared, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that decides the log-probabilities, as plain values."""
    name, adapter = cast(Preference, experiment.objective).reference, experiment.adapter
    return {
        "format": FORMAT,
        "weights": record.get("start" if name == BASE else REFERENCE),
        "stored": getattr(adapter, "base", None) if name == BASE else None,
        "data": data.fingerprint,
        "tokenizer": hash_tokenizer(data.tokenizer),
        "compute": experiment.model.compute,
        "context": experiment.model.context,
    }


def read(
    file: Path, made_of: Mapping[str, Any], stores: Mapping[str, Store]
) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a file; `None` if it is absent, damaged or of something else."""
    try:
        with open(file, "rb") as stream, np.load(stream) as kept:
            same = json.loads(str(kept["key"])) == made_of
            found = {name: kept[name] for name in stores}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = all(found[name].shape == (s.header.num_examples, 2) for name, s in stores.items())
    return found if same and fits else None


def _keep(
    file: Path, made_of: Mapping[str, Any], known: Mapping[str, np.ndarray], say: Say
) -> None:
    staged = file.with_name(f".making-{file.name}-{os.getpid()}")
    try:
        with open(staged, "wb") as stream:
            np.savez(stream, key=np.asarray(json.dumps(made_of)), **known)
        staged.replace(file)
    except OSError as error:  # the run has them in memory
        staged.unlink(missing_ok=True)
        say(f"warning: the reference can't be kept in {file.parent} ({error.strerror})")


def measuring(experiment: Experiment, data: Prepared, mesh: Mesh, params: Params | None) -> Measure:
    """Returns the reference of an experiment's loss as a compiled function of a batch.

    Raises:
      ConfigError: the reference can't be opened, or reads something else than the model.
    """
    settings = cast(Preference | KTO, experiment.objective.computed())
    others = {
        name: open_other(name, path, experiment.model, data.tokenizer, mesh)
        for name, path in settings.models.items()
    }
    loss = settings.build(experiment.model, **{name: one.config for name, one in others.items()})
    frozen = {name: one.params for name, one in others.items()}
    own: Params = {}
    if settings.reference == BASE:
        own = _adapted(experiment, mesh, params)

    def measure(params: Params, frozen: Frozen, batch: Batch) -> Array:
        sums = loss.reference.sums(params, frozen, batch, settings.vocab_parts)
        return jnp.stack(sums, axis=-1)

    compiled = jax.jit(with_mesh(mesh, measure), out_shardings=replicated(mesh))
    return functools.partial(compiled, own, frozen)


def _adapted(experiment: Experiment, mesh: Mesh, params: Params) -> Params:
    """The weights of a run that has not begun, adapters included, on its devices."""
    state, frozen = abstract(experiment, mesh, {})
    where = jax.tree.map(lambda leaf: leaf.sharding, (state.trainable, frozen["params"]))
    host = jax.tree.map(np.asarray, params)  # it may lie on other devices
    make = jax.jit(functools.partial(halves, experiment), out_shardings=where)
    trainable, rest = make(host)
    return combine({"params": rest}, trainable)


def compute(
    experiment: Experiment, store: Store, mesh: Mesh, measure: Measure, say: Say
) -> np.ndarray:
    """Measures every example of a store that fits into a row [num_examples 2], and says how long
    it takes."""
    plan, batch = evaluation_batches(experiment, store, mesh)
    values = np.full((store.header.num_examples, 2), np.nan, np.float32)
    count, said, first = plan.batches_per_epoch, time.monotonic(), 0.0
    for number in range(count):
        sums = np.asarray(measure(batch(number)))
        rows = number * plan.rows + np.arange(plan.rows)
        for row, examples in enumerate(packed_examples(plan, RowNumbers(rows, 0 * rows, rows))):
            values[examples] = sums[row, : len(examples)]
        now = time.monotonic()
        first = first or now  # the first batch compiles
        if now - said >= EVERY and number and number + 1 < count:
            left = (now - first) / number * (count - number - 1)
            say(f"{number + 1:,} of {count:,} batches, eta {duration(left)}")
            said = now
    measured = np.isfinite(values[:, 0]).sum()
    say(f"{measured:,} examples of {store.path and store.path.name} data measured")
    return values
