"""Differentially private training: DP-SGD as a function of gradients and a source of batches.

Read `private_gradients` (clips each row's gradient, adds noise), `poisson_source` (draws rows),
then `train_privately`, which is `train` with these two; the settings and the record of a run are in
`promise`. What is private are the weights; what is not is listed in docs/lab.md.

Source: Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core import config, processes
from gptjax.core.arrays import Array, Key, Params
from gptjax.core.config import require
from gptjax.data import batches
from gptjax.data.layouts import Batch
from gptjax.data.packing import Packing
from gptjax.data.prepare import Prepared, prepare
from gptjax.data.rows import Plan
from gptjax.data.store import Store
from gptjax.lab.accounting import SPARED, epsilon_of, noise_for, room_for_draws
from gptjax.lab.examples import Example, per_example, squared_norm
from gptjax.lab.promise import (
    Known,
    Mechanism,
    Privacy,
    known_promise,
    promise,
    write_promise,
)
from gptjax.lab.secret import (
    make_secret,
    new_salt,
    noise_words,
    poisson_rows,
    read_secret,
    require_outside,
    salted,
    secret_fingerprint,
    secret_path,
)
from gptjax.losses import CrossEntropy
from gptjax.observe.hook import Hook
from gptjax.runs import Run
from gptjax.sharding.mesh import make_mesh, num_row_shards
from gptjax.train import identity
from gptjax.train import start as starts
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.sources import Source, row_plan
from gptjax.train.step import Gradients, Objective, TrainState

NOISE = "noise_key"
"""Column of a batch: the words of the step's noise key, the same in each row."""


def private_gradients(mechanism: Mechanism, at_once: int = 1) -> Gradients:
    """Returns the gradient function of a private step, for `train_step`: the sum over rows of their
    clipped gradients, plus Gaussian noise.

    A row whose loss or gradient is not finite counts as zeros. What the function returns as the
    weight is public, so that `train_step` divides by no property of the data. The loss that it
    returns is that of the rows drawn; no decision of a step depends on it, since it is finite, and
    it is not private.
    """
    clip, length = mechanism.clip, mechanism.length

    def clipped(example: Example) -> tuple[Params, Array, Array, Array]:
        mean = jax.tree.map(lambda g: g.astype(jnp.float32) / length, example.gradient)
        norm = jnp.sqrt(squared_norm(mean))
        sound = jnp.isfinite(norm) & jnp.isfinite(example.loss)
        factor = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-30))
        kept = jax.tree.map(lambda g: jnp.where(sound, g * factor, 0.0), mean)
        loss = jnp.where(sound, example.loss, 0.0)
        return kept, loss, jnp.where(sound, example.weight, 0.0), (sound & (norm > clip)) * 1.0

    def gradients(objective: Objective, trainable: Params, batch: Batch, key: Key | None) -> Any:
        columns = dict(batch.columns or {})
        words = columns.pop(NOISE)[0]
        rows = batch._replace(columns=columns or None)
        summed = per_example(
            objective, clipped, at_once=at_once, add=True, present=lambda row: row.weights.any()
        )
        total, loss, weight, _ = summed(trainable, rows, key)
        if mechanism.noise:
            drawn = jax.random.wrap_key_data(words, impl="threefry2x32")
            total = with_noise(total, drawn, mechanism.noise * clip)
        public = jnp.asarray(float(mechanism.expected * length))
        grads = jax.tree.map(lambda g, p: (g * length).astype(p.dtype), total, trainable)
        shown = loss * public / jnp.maximum(weight, 1.0)  # so that the mean is that of the tokens
        return (shown, (public, {})), grads

    return gradients


def with_noise(tree: Params, key: Key, deviation: float) -> Params:
    """Adds independent Gaussian noise to each number of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation * jax.random.normal(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return structure.unflatten(noisy)


def fixed_rows(experiment: Experiment, store: Store) -> Plan:
    """Returns how a store becomes rows that are the same in every step: the unit of privacy. Text
    is cut without the shift of other runs; of records each has a row of its own."""
    plan = row_plan(experiment, store, seed=None)
    if plan.packing is None:
        return plan
    order = np.sort(plan.packing.order)
    alone = Packing(order, np.arange(len(order) + 1), plan.packing.cut, plan.packing.left_out)
    return plan._replace(packing=alone)


def poisson_source(store: Store, plan: Plan, mechanism: Mechanism, secret: bytes) -> Source:
    """Returns the source of a private run's batches: (step, state) → the rows that the secret draws
    for this step, then empty rows."""

    def source(step: int, state: TrainState) -> Batch:
        drawn = poisson_rows(secret, step, mechanism.rate, mechanism.rows)[: mechanism.capacity]
        empty = np.full(mechanism.capacity - len(drawn), plan.rows_per_epoch)
        made = batches.batch(store, plan, 0, np.concatenate([drawn, empty]))
        words = np.broadcast_to(noise_words(secret, step), (mechanism.capacity, 2))
        return made._replace(columns={**(made.columns or {}), NOISE: np.array(words)})

    return source


def mechanism_of(experiment: Experiment, privacy: Privacy, plan: Plan) -> Mechanism:
    """Works out noise and sizes for an experiment.

    Raises:
      ConfigError: the data is too small, or no noise is enough.
    """
    rows, expected, steps = plan.rows_per_epoch, experiment.batch, experiment.steps
    require(
        expected <= rows,
        f"batch is {expected} and the training text has {rows} rows; use fewer (--batch).",
    )
    require(
        privacy.delta < 1 / rows,
        f"delta is {privacy.delta}, and the data has {rows} rows: to give away one row of each"
        f" {1 / privacy.delta:.0f} would keep the promise; use less (--delta {0.1 / rows:.0e}).",
    )
    rate = expected / rows
    noise, left = privacy.noise, (1 - SPARED) * privacy.delta
    if noise is None:
        noise = noise_for(privacy.epsilon, rate, steps, left, privacy.accountant)
    spent = epsilon_of(noise, rate, steps, left, privacy.accountant)
    capacity = room_for_draws(spent, privacy.delta, rate, rows, steps)
    shards = num_row_shards(make_mesh(experiment.mesh)) * privacy.at_once
    return Mechanism(
        noise=noise,
        clip=privacy.clip,
        rate=rate,
        rows=rows,
        expected=expected,
        length=experiment.model.context,
        capacity=-(-capacity // shards) * shards,
        delta=privacy.delta,
        delta_of_noise=left,
        accountant=privacy.accountant,
    )


def require_private(experiment: Experiment) -> None:
    """Refuses what would void the promise.

    Raises:
      ConfigError: names it, and what to use instead.
    """
    lacks = {
        "several processes": processes.several(),
        "micro_batch (rows are taken one by one already; --at-once)": experiment.micro_batches > 1,
        "skip_spikes, which decides by losses (--skip-spikes False)": experiment.skip_spikes,
        "model.experts, whose balance mixes rows": experiment.model.experts is not None,
        "model.ahead": experiment.model.ahead > 0,
        "a rollout": experiment.rollout is not None,
        f"loss {type(experiment.loss).__name__}": type(experiment.loss) is not CrossEntropy,
        "data.noise": bool(experiment.data.noise.words),
    }
    wrong = next((what for what, here in lacks.items() if here), None)
    require(wrong is None, f"private training goes without {wrong}.")


class _Spent(Hook):
    """Says what is spent when the run ends."""

    name = "privacy"

    def __init__(self, mechanism: Mechanism):
        self._mechanism, self._step = mechanism, 0

    def finished(self, step: int, values: Mapping[str, float]) -> str | None:
        """Remembers the step."""
        self._step = step
        return None

    def close(self) -> str | None:
        """Says what the weights of the last step cost."""
        return promise(self._mechanism, self._step) if self._step else None


def train_privately(
    experiment: Experiment, privacy: Privacy, path: Path, *, key: Path | None = None, **more: Any
) -> Path:
    """Trains with differential privacy in a run directory, or resumes the run there; returns the
    path of its report. The promise is in privacy.json.

    Args:
      key: file of the secret; a new run makes it. `None` is `secret_path`.
      more: see `train`.

    Raises:
      ConfigError: something would void the promise, or the secret is not the run's.
    """
    resolved, data = _resolved(experiment, path)
    plan = fixed_rows(resolved, data.train)
    file = key or secret_path(path)
    require_outside(file, path)
    known = known_promise(path)
    mechanism = mechanism_of(resolved, privacy, plan) if known is None else known.mechanism
    steps = max(resolved.steps, *Run(path).steps(), 0)  # what was trained can't be taken back
    if known is not None:
        _require_same(path, mechanism, known.privacy, privacy, resolved, plan, steps)
        secret = read_secret(file)
        require(
            secret_fingerprint(secret) == known.secret,
            f"{file} holds another secret than the one {path} was trained with; name the right"
            " file (--key).",
        )
    else:
        secret = read_secret(file) if file.exists() else make_secret(file)
    salt = new_salt() if known is None else known.salt
    write_promise(path, steps, Known(mechanism, privacy, secret_fingerprint(secret), salt))
    source = poisson_source(data.train, plan, mechanism, salted(secret, salt))
    hooks = (*more.pop("hooks", ()), _Spent(mechanism))
    notes = (*more.pop("notes", ()), promise(mechanism, steps), f"secret: {file}")
    return train(
        experiment,
        path,
        source=lambda _: source,
        gradients=private_gradients(mechanism, privacy.at_once),
        hooks=hooks,
        notes=notes,
        **more,
    )


def _resolved(experiment: Experiment, path: Path) -> tuple[Experiment, Prepared]:
    """The experiment and its data as `train` will have them: with the architecture and the
    tokenizer of what it starts from."""
    require_private(experiment)
    experiment, start, _ = starts.begin_run(experiment, path, resuming=bool(Run(path).steps()))
    require_private(experiment)
    data = prepare(experiment.data, say=print, given=start.tokenizer, kept=start.kept)
    return identity.resolve(experiment, data), data


def _require_same(
    path: Path,
    mechanism: Mechanism,
    old: Privacy,
    privacy: Privacy,
    experiment: Experiment,
    plan: Plan,
    steps: int,
) -> None:
    """Refuses to resume with other settings. A longer run keeps its noise, and spends more."""
    changed = [name for name in config.differences(old, privacy) if name != "at_once"]
    here = (plan.rows_per_epoch, experiment.batch, experiment.model.context)
    changed += [] if here == (mechanism.rows, mechanism.expected, mechanism.length) else ["batch"]
    require(
        not changed,
        f"{path} was begun with another {', '.join(changed)}; use the same, or another --dir.",
    )
    together = num_row_shards(make_mesh(experiment.mesh)) * privacy.at_once
    require(
        mechanism.capacity % together == 0,
        f"{together} rows are to be differentiated together (devices of the mesh × --at-once), and"
        f" batches of {path} have {mechanism.capacity}; use a divisor of that.",
    )
    spent = mechanism.epsilon(steps)
    needed = room_for_draws(spent, mechanism.delta, mechanism.rate, mechanism.rows, 1)
    require(
        mechanism.capacity >= needed or math.isinf(spent),
        f"{steps} steps would spend an epsilon of {spent:.1f}; use fewer (--steps).",
    )
