"""The compiled functions of several runs: what `program` makes of one experiment, over a leading
axis of runs.

Read `Many`, then `build_many`, then `_one_by_one` and `_stacked`, the ways to compute the axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.data import batches
from gptjax.data.layouts import Batch
from gptjax.data.noise import Noisy
from gptjax.data.prepare import Prepared
from gptjax.sharding.mesh import make_mesh, with_mesh
from gptjax.train import optim, placement, program, saved, step
from gptjax.train.evaluate import held_out_loss
from gptjax.train.experiment import Experiment
from gptjax.train.halves import training_loss
from gptjax.train.sources import row_plan
from gptjax.train.traced import stacked, with_values

By = Literal["auto", "map", "vmap", "runs"]
"""How the runs of one program are computed: one after the other (`map`), side by side in each
operation (`vmap`), or each device its own share of them (`runs`). `auto` shares them among devices
if there are several; otherwise it is `map` on a CPU and `vmap` elsewhere.

`map` calls one compiled step for each run. `lax.map` inside the step was tried first: XLA fuses the
body of a loop in other ways, and a gradient's last bit then differs now and then.
"""


class Many(NamedTuple):
    """What runs of one program compute together. A tree of all runs is as `place` makes it."""

    count: int
    by: str
    """How the runs are computed, in words."""
    state: step.TrainState
    """Shapes of the state, with a leading axis of runs."""
    init: Callable[[], step.TrainState]
    """The states of step 0 on the host, with a leading axis of runs."""
    step: Callable[[Any, Batch], tuple[Any, Any]]
    """Placed states and the batch of each run → placed states and metrics."""
    evaluate: Callable[[Any, Batch], Any]
    """Placed states and one batch of held-out data, the same for all → placed sums."""
    batch: Callable[[int], Batch]
    """Number of finished steps → the batch of each run, in the order of its seed; on the host."""
    place: Callable[[Any], Any]
    """Puts a tree with a leading axis of runs on the devices."""
    fetch: Callable[[Any], Any]
    """What was placed, on the host with a leading axis of runs."""


def build_many(
    experiments: Sequence[Experiment],
    data: Prepared,
    by: By = "auto",
    devices: Sequence[Any] | None = None,
) -> Many:
    """Builds the functions of experiments that differ in nothing but `traced.TRACED`.

    Args:
      experiments: resolved.
      devices: those that share the runs; `None` means all.
    """
    base, count = _widest(experiments), len(experiments)
    values, runs, inside, said = _ways(experiments, by, list(devices or jax.devices()))
    lone = make_mesh(base.mesh, [runs.devices.flat[0]])
    dropped = any(placement.uses_dropout(one) for one in experiments)

    def one_step(run: Any, _: Any) -> Any:
        state, batch, own = run
        return _step(with_values(base, own), base, state, batch, dropped)

    def one_evaluation(state: step.TrainState, batch: Batch) -> dict:
        params = saved.weights(state, {})
        return step.evaluate_step(params, {}, batch, loss=held_out_loss(base))

    functions = one_step, one_evaluation
    if runs.size == 1:  # else `shard_map` says that each device computes for itself
        functions = with_mesh(lone, one_step), with_mesh(lone, one_evaluation)
    ways = _one_by_one if inside == "loop" else _stacked
    stepped, evaluated, place, fetch = ways(*functions, values, inside, runs, count)
    shapes = jax.eval_shape(lambda: program._initial(base)[0])
    return Many(
        count=count,
        by=said,
        state=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), shapes
        ),
        init=lambda: _initial_states(base, experiments),
        step=stepped,
        evaluate=evaluated,
        batch=_batches(experiments, data),
        place=place,
        fetch=fetch,
    )


def _one_by_one(
    one_step: Callable, one_evaluation: Callable, values: Any, _: str, runs: Mesh, count: int
) -> tuple[Callable, Callable, Callable, Callable]:
    """The four functions of `Many` by one compiled step, called for each run in turn."""
    compiled = jax.jit(lambda *run: one_step(run, None), donate_argnums=0)
    measured, device = jax.jit(one_evaluation), runs.devices.flat[0]

    def place(tree: Any) -> list:
        each = [jax.tree.map(lambda x: np.asarray(x)[index], tree) for index in range(count)]  # noqa: B023
        return [jax.device_put(one, device) for one in each]

    own = place(values)

    def stepped(states: list, batch: Batch) -> tuple[list, list]:
        each = zip(states, place(batch), own, strict=True)
        made = [compiled(state, rows, settings) for state, rows, settings in each]
        return [one[0] for one in made], [one[1] for one in made]

    def fetch(trees: list) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(trees))

    return stepped, lambda states, batch: [measured(one, batch) for one in states], place, fetch


def _stacked(
    one_step: Callable, one_evaluation: Callable, values: Any, by: str, runs: Mesh, count: int
) -> tuple[Callable, Callable, Callable, Callable]:
    """The four functions of `Many` by one step over a leading axis, which devices share evenly."""
    size = -(-count // runs.size) * runs.size
    # The step has a mesh of its own, and jax 0.10 takes no arrays of another, be it one device.
    where = NamedSharding(runs, P("runs")) if runs.size > 1 else runs.devices.flat[0]

    def pad(tree: Any) -> Any:
        return jax.tree.map(lambda x: _padded(np.asarray(x), size), tree)

    stepped = over_runs(one_step, by, runs)
    compiled = jax.jit(lambda state, *rest: stepped((state, *rest), None), donate_argnums=0)
    own = jax.device_put(pad(values), where)
    return (
        lambda state, batch: compiled(state, pad(batch), own),
        jax.jit(over_runs(one_evaluation, by, runs)),
        lambda tree: jax.device_put(pad(tree), where),
        lambda tree: jax.tree.map(lambda leaf: leaf[:count], jax.device_get(tree)),
    )


def _widest(experiments: Sequence[Experiment]) -> Experiment:
    """An experiment whose optimizer has the parts of all: a chain without decay has one less."""
    most = max(one.optim.weight_decay for one in experiments)
    return with_values(experiments[0], {"optim.weight_decay": most})


def _ways(
    experiments: Sequence[Experiment], by: By, devices: list
) -> tuple[dict[str, Any], Mesh, str, str]:
    """Returns the traced settings, the mesh of runs, how a device computes its share, and that in
    words."""
    count, cpu = len(experiments), devices[0].platform == "cpu"
    if by == "auto":
        by = "runs" if len(devices) > 1 and count > 1 else "map" if cpu else "vmap"
    shared = min(len(devices), count) if by == "runs" else 1
    runs = Mesh(np.asarray(devices[:shared], object), ("runs",))
    inside = {"map": "loop", "vmap": "vmap", "runs": "map" if cpu else "vmap"}[by]
    said = by if by != "runs" else f"{shared} devices, {-(-count // shared)} runs each"
    values = stacked(experiments)
    if not values:  # an axis of runs needs something that has it
        values = {"seed": np.asarray([one.seed for one in experiments], np.int32)}
    return values, runs, inside, said


def over_runs(
    function: Callable[[Any, Any], Any], by: str, runs: Mesh
) -> Callable[[Any, Any], Any]:
    """Returns a function of (one run, what all share) as one of (all runs, what they share).

    Args:
      by: `map` or `vmap`.
      runs: a mesh with the one axis `runs`, whose devices share the runs.
    """

    def together(several: Any, shared: Any) -> Any:
        if by == "vmap":
            return jax.vmap(lambda run: function(run, shared))(several)
        return jax.lax.map(lambda run: function(run, shared), several)

    if runs.size == 1:
        return together
    return jax.shard_map(
        together, mesh=runs, in_specs=(P("runs"), P()), out_specs=P("runs"), check_vma=False
    )


def _step(
    experiment: Experiment, base: Experiment, state: step.TrainState, batch: Batch, dropped: bool
) -> tuple[step.TrainState, dict]:
    """Takes a step of one run.

    Args:
      experiment: with traced settings.
      base: without.
    """
    share = optim.learning_rate(base.schedule, 1.0, base.steps)

    def rate(at: Any) -> Any:
        return experiment.optim.peak * share(at)

    return step.train_step(
        state,
        {},
        batch,
        loss=training_loss(experiment, {}),
        optimizer=placement.optimizer(experiment, rate, fixed=base),
        rate=rate,
        seed=experiment.seed,
        micro_batches=base.micro_batches,
        skip_norm=base.skip_norm,
        skip_score=base.spike_score if base.skip_spikes else math.inf,
        dropout=dropped,
        post_update=program._post_update(base),
        gradients=program.summed_in(base, step.default_gradients),
    )


def _initial_states(base: Experiment, experiments: Sequence[Experiment]) -> step.TrainState:
    """Returns the states of step 0, on the host; of each seed as a single run makes it."""

    def initial(seed: Any) -> step.TrainState:
        return program._initial(with_values(base, {"seed": seed}))[0]

    briefly = program._BRIEFLY if jax.default_backend() == "cpu" else None
    compiled = jax.jit(initial, compiler_options=briefly)
    made = {seed: jax.device_get(compiled(np.int32(seed))) for seed in _seeds(experiments)}
    states = [made[one.seed] for one in experiments]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def _batches(experiments: Sequence[Experiment], data: Prepared) -> Callable[[int], Batch]:
    """Returns number of finished steps → the batches of all runs, on the host."""
    base, noise = experiments[0], experiments[0].data.noise
    plans = {seed: row_plan(base, data.train, seed=seed) for seed in _seeds(experiments)}
    if noise.words:
        plans = {
            seed: plan._replace(task=Noisy(plan.task, noise, data.tokenizer))
            for seed, plan in plans.items()
        }

    def batch(done: int) -> Batch:
        made = {seed: batches.batch(data.train, plan, done) for seed, plan in plans.items()}
        return jax.tree.map(lambda *rows: np.stack(rows), *(made[one.seed] for one in experiments))

    return batch


def _seeds(experiments: Sequence[Experiment]) -> list[int]:
    return list(dict.fromkeys(one.seed for one in experiments))


def _padded(leaf: np.ndarray, size: int) -> np.ndarray:
    """The last run once more, until there are `size`."""
    more = size - len(leaf)
    return leaf if not more else np.concatenate([leaf, np.repeat(leaf[-1:], more, axis=0)])
