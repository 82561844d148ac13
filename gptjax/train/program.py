"""Makes of an experiment the functions that run it, compiled and placed: `init`, `step`,
`evaluate`.

Nothing here touches files or terminals; `loop.py` calls it, and a planner can compile the same
program for other machines.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax import model
from gptjax.core import faults
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.data import batches
from gptjax.data.prepare import Prepared
from gptjax.data.store import Store
from gptjax.losses.cross_entropy import Loss, Teacher, cross_entropy, training
from gptjax.model.pipeline import parts_of, require_stages
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import (
    bytes_per_device,
    in_device_memory,
    in_host_memory,
    local_rows,
    make_mesh,
    num_row_shards,
    param_shardings,
    place_batch,
    replicated,
    with_mesh,
)
from gptjax.train import optim, step, teacher
from gptjax.train.experiment import Experiment


class Program(NamedTuple):
    """What an experiment does, step by step."""

    mesh: Mesh
    state: Any
    """The training state's shapes, types and shardings; nothing is allocated."""
    init: Callable[..., step.TrainState]
    """parameters to begin with, or none for random ones → the state of step 0"""
    step: Callable[[step.TrainState, Any], tuple[step.TrainState, dict]]
    evaluate: Callable[[Any, Any], dict[str, Any]]
    batch: Callable[[int], Any]
    """step → the batch, on the devices."""
    temporary_bytes: int
    """Memory that one step needs besides the state."""
    cut: int = 0
    """Examples that are longer than a row."""


def build(
    experiment: Experiment,
    data: Prepared,
    planned: tuple[faults.Fault, ...] = (),
    mesh: Mesh | None = None,
    fresh: bool = False,
) -> Program:
    """Compiles the training step of a resolved experiment.

    Args:
      planned: faults to build in; without any the program holds nothing of them.
      mesh: none makes that of the experiment, of all devices.
      fresh: random parameters will be wanted: what makes them is traced and compiled while XLA
        compiles the step.

    Raises:
      ConfigError: batch, mesh and data do not fit each other.
    """
    mesh = make_mesh(experiment.mesh) if mesh is None else mesh
    require_divides(experiment, mesh)
    plan = row_plan(experiment, data.train, seed=experiment.seed)
    teacher_model = teacher.load(experiment, data.tokenizer)
    read, state = _reader(data.train, plan, mesh), abstract(experiment, mesh)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), read(0)
    )
    known = teacher_model and teacher_model._replace(
        params=jax.device_put(teacher_model.params, replicated(mesh))
    )
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as beside:
        compiling = beside.submit(lowered(experiment, mesh, shapes, known, planned).compile)
        init = _beginning(experiment, state, fresh)
    compiled = compiling.result()
    memory = compiled.memory_analysis()
    held_out = cross_entropy(
        experiment.model,
        Loss(vocab_parts=experiment.loss.vocab_parts),
        auxiliary=False,
        accuracy=_tells_accuracy(experiment),
    )
    return Program(
        mesh,
        state,
        init,
        lambda state, batch: compiled(state, batch, known and known.params),
        jax.jit(
            with_mesh(mesh, functools.partial(step.evaluate_step, objective=held_out)),
            out_shardings=replicated(mesh),
        ),
        faults.in_batches(planned, read),
        memory.temp_size_in_bytes if memory else 0,
        plan.packing.cut if plan.packing else 0,
    )


def lowered(
    experiment: Experiment,
    mesh: Mesh,
    batch: Any,
    teacher_model: Teacher | None = None,
    planned: tuple[faults.Fault, ...] = (),
) -> jax.stages.Lowered:
    """The training step, traced for a mesh, whose devices need not be here, and a batch's shapes;
    ready to be compiled.

    It takes the state, the batch and the parameters of the teacher, if there is one: they are an
    argument, not a constant of the program.
    """
    state = abstract(experiment, mesh)
    rate = optim.learning_rate(experiment.schedule, experiment.optim.peak, experiment.steps)
    one = functools.partial(
        step.train_step,
        optimizer=optim.build(experiment.optim, rate),
        rate=rate,
        seed=experiment.seed,
        micro_batches=experiment.micro_batches,
        skip_norm=experiment.skip_norm,
        skip_score=experiment.spike_score if experiment.skip_spikes else math.inf,
        dropout=experiment.model.uses_dropout,
        settle=_settle(experiment),
        fault=faults.in_gradients(planned),
    )

    def taught(state: step.TrainState, batch: Any, known: Any) -> tuple[step.TrainState, dict]:
        if experiment.mesh.offload_optimizer:
            state = state._replace(
                opt_state=jax.device_put(state.opt_state, in_device_memory(out[0].opt_state))
            )
        return one(
            state,
            batch,
            objective=training(
                experiment.model,
                experiment.loss,
                teacher_model and teacher_model._replace(params=known),
            ),
        )

    out = jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh)
    return jax.jit(with_mesh(mesh, taught), donate_argnums=0, out_shardings=out).lower(
        state, batch, teacher_model and teacher_model.params
    )


def _reader(store: Store, plan: batches.Plan, mesh: Mesh) -> Callable[[int], Any]:
    """number → the batch on the devices. Each process reads the rows of its own devices."""
    mine = local_rows(mesh, plan.rows)
    return lambda number: place_batch(batches.batch(store, plan, number, mine), mesh, plan.rows)


def _settle(experiment: Experiment) -> Callable | None:
    """What balances experts without a loss, where the model has that."""
    if experiment.model.experts is None or not experiment.model.experts.bias_step:
        return None
    return lambda params, sums: model.rebalance(experiment.model, params, sums["load"])


def _beginning(
    experiment: Experiment, state: step.TrainState, fresh: bool
) -> Callable[..., step.TrainState]:
    """What makes the state of step 0; compiled already, if it will be asked for random
    parameters."""
    briefly = _BRIEFLY if jax.default_backend() == "cpu" else None
    init = jax.jit(
        functools.partial(_initial, experiment),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
        compiler_options=briefly,
    )
    return init.lower(None).compile() if fresh else init


_BRIEFLY = {"xla_backend_optimization_level": 1}
"""For a program that runs once: it compiles in a third of the time, for the same numbers."""


def require_divides(experiment: Experiment, mesh: Mesh) -> None:
    """Refuses rows, positions and layers that the devices can't share evenly.

    Raises:
      ConfigError: names a number that can be shared.
    """
    rows, parts = experiment.batch // experiment.micro_batches, num_row_shards(mesh)
    require(
        rows % parts == 0,
        f"{rows} rows are read at once, which {parts} devices do not divide; use a multiple"
        f" (--batch {parts * -(-rows // parts)}).",
    )
    config, apart = experiment.model, mesh.shape["context"]
    near = apart * -(-config.context // apart)
    said = f"model.context is {config.context}, which mesh.context {apart} does not divide"
    require(config.context % apart == 0, f"{said}; use a multiple (--model.context {near}).")
    if mesh.shape["stage"] > 1:
        with use_mesh(mesh):
            require_stages(config, mesh.shape["stage"])
            parts_of(config, rows)


def laid_out(
    experiment: Experiment, room: int | float | None, devices: list | None = None
) -> tuple[Experiment, Mesh, step.TrainState]:
    """Gives the experiment with the mesh that it takes, that mesh, and the state's shapes there.

    Where nothing is said of the mesh, the batch is split over all devices, and the state too if it
    would fill more than a quarter of each.

    Args:
      room: bytes of a device; none where nobody tells, and then the state stays whole.
      devices: of a machine that may not be here; none is all that are.

    Raises:
      ConfigError: batch, positions, layers and devices do not fit each other.
    """
    mesh = make_mesh(experiment.mesh, devices)
    require_divides(experiment, mesh)
    state = abstract(experiment, mesh)
    if (
        not experiment.mesh.given
        and mesh.shape["data"] > 1
        and room is not None
        and bytes_per_device(state) > room // 4
    ):
        experiment = dataclasses.replace(
            experiment, mesh=dataclasses.replace(experiment.mesh, data=1, fsdp=mesh.shape["data"])
        )
        mesh = make_mesh(experiment.mesh, devices)
        state = placed(experiment, mesh, state)
    return experiment, mesh, state


def abstract(experiment: Experiment, mesh: Mesh) -> step.TrainState:
    """The training state's shapes, types and shardings; nothing is allocated."""
    return placed(
        experiment,
        mesh,
        jax.eval_shape(functools.partial(_initial, experiment), model.shapes(experiment.model)),
    )


def _initial(experiment: Experiment, params: Params | None = None) -> step.TrainState:
    optimizer = optim.build(
        experiment.optim,
        optim.learning_rate(experiment.schedule, experiment.optim.peak, experiment.steps),
    )
    return step.init(
        model.init(experiment.model, jax.random.key(experiment.seed)) if params is None else params,
        optimizer,
    )


def row_plan(
    experiment: Experiment, store: Store, *, seed: int | None, rows: int | None = None
) -> batches.Plan:
    """How a store becomes rows of this experiment's context.

    Raises:
      ConfigError: the store is shorter than one row.
    """
    told = {
        "isolated": experiment.data.isolated,
        "task": experiment.data.task,
        "with_encoder": experiment.model.encoder_layers > 0,
    }
    plan = batches.plan(
        store, length=experiment.model.context, rows=rows or experiment.batch, seed=seed, **told
    )
    if plan.packing is not None:
        return plan
    need = (
        "use more text (--data.source.path), or shorter rows (--model.context"
        f" {max(1, plan.pairs)})"
    )
    require(
        plan.pairs >= plan.length,
        f"the text has {plan.pairs + 1} tokens, fewer than one row of {plan.length + 1}; {need}.",
    )
    return plan


def placed(experiment: Experiment, mesh: Mesh, shapes: step.TrainState) -> step.TrainState:
    """The state's shapes with a sharding each. Optimizer state whose path ends in a parameter's, in
    its shape, lies where the parameter lies."""
    whole = replicated(mesh)
    params = param_shardings(
        mesh, model.axes(experiment.model), shapes.params, experiment.mesh.rules
    )

    paths = {
        _names(path): (leaf.shape, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(shapes.params), jax.tree.leaves(params), strict=True
        )
    }

    def beside(path: tuple, leaf: Any) -> Any:
        names = _names(path)
        match = next((paths[names[i:]] for i in range(len(names)) if names[i:] in paths), None)
        return match[1] if match and match[0] == leaf.shape else whole

    where = step.TrainState(
        whole, params, jax.tree_util.tree_map_with_path(beside, shapes.opt_state)
    )
    if experiment.mesh.offload_optimizer:
        where = where._replace(opt_state=in_host_memory(where.opt_state, mesh.devices.flat[0]))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        where,
    )


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(
        str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))
        for part in path
    )


def evaluation_batches(
    experiment: Experiment, store: Store, mesh: Mesh
) -> tuple[int, Callable[[int], Any]]:
    """Gives how many batches hold the whole store in order, and number → batch. They are larger
    than a training batch."""
    parts = num_row_shards(mesh)
    rows = max(
        experiment.batch // experiment.micro_batches,
        4096 // experiment.model.context // parts * parts,
    )
    told = {
        "isolated": experiment.data.isolated,
        "task": experiment.data.task,
        "with_encoder": experiment.model.encoder_layers > 0,
    }
    plan = batches.plan(store, length=experiment.model.context, rows=rows, seed=None, **told)
    return plan.batches_per_epoch, _reader(store, plan, mesh)


def _tells_accuracy(experiment: Experiment) -> bool:
    """Whether evaluation looks at the likeliest tokens too; a plain language model's loss says
    all."""
    return "accuracy" in experiment.data.task.figures


def evaluate(
    program: Program,
    experiment: Experiment,
    store: Store,
    params: Any,
    rows: int | None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Gives figures over the first `rows` rows of a store (none: all of them); none if `stop`,
    asked after every batch, said so.

    Returns:
      `loss`, nats per token; `accuracy`, the share of tokens, or labels, that are the likeliest;
      for answers `exact_match`, the share of them that greedy decoding would write.
    """
    count, batch = evaluation_batches(experiment, store, program.mesh)
    if rows is not None:
        per_batch = len(batch(0).tokens)
        count = min(count, -(-rows // per_batch))
    sums: list[Any] = []
    for number in range(count):
        sums.append(program.evaluate(params, batch(number)))
        jax.block_until_ready(
            sums[-2:-1]
        )  # the one before: the devices have work while the host looks up
        if stop():
            return None
    found = jax.tree.map(
        lambda *parts: float(np.asarray(parts, np.float64).sum()), *jax.device_get(sums)
    )
    weight = max(found["weight"], 1.0)
    figures = {"loss": found["loss"] / weight}
    if _tells_accuracy(experiment):
        figures["accuracy"] = found["correct"] / weight
    if "exact_match" in experiment.data.task.figures:
        figures["exact_match"] = found["exact"] / max(found["pieces"], 1.0)
    return figures


def state_bytes(state: Any) -> int:
    """Bytes of a state over all devices, each value counted once."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
