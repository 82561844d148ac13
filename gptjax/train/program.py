"""The compiled functions of an experiment: `init`, `step`, `evaluate`, `batch`.

Nothing here touches files or terminals; `loop.py` calls it, and `plan` compiles the same step for
other machines.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gptjax import model
from gptjax.core import faults
from gptjax.core.arrays import Params
from gptjax.data.layouts import Batch
from gptjax.data.noise import Noisy
from gptjax.data.prepare import Prepared
from gptjax.data.rows import Plan
from gptjax.losses import Diffusion, Frozen, LossConfig
from gptjax.model import ModelConfig
from gptjax.sharding.mesh import in_device_memory, make_mesh, replicated, with_mesh
from gptjax.train import placement, step, stochastic, teacher, transfer
from gptjax.train.evaluate import held_out_loss
from gptjax.train.experiment import Experiment
from gptjax.train.halves import freezes, halves, training_loss
from gptjax.train.sources import Source, placed, row_plan, stored


class Program(NamedTuple):
    """What an experiment computes, step by step."""

    mesh: Mesh
    state: step.TrainState
    """The state's shapes, types and shardings; nothing is allocated."""
    models: Frozen
    """Weights of the models that the loss needs besides its own, on the devices."""
    init: Callable[..., tuple[step.TrainState, Frozen]]
    """Initial parameters, or `None` for random ones → the state of step 0 and what is frozen."""
    step: Callable[[step.TrainState, Frozen, Batch], tuple[step.TrainState, dict]]
    evaluate: Callable[[Params, Frozen, Batch], dict[str, Any]]
    """Sums over one batch of held-out data."""
    batch: Source
    """The batches of a run whose batch has always had this size, if nothing of its own model is
    frozen."""
    batches: Callable[..., Source]
    """Rows that batches of another size have read beyond step · B, frozen weights, and who sees
    rollouts (see `rollouts.Seen`) → the run's batches."""
    frozen: Frozen
    """Shapes, types and shardings of the weights that do not train, `models` included."""
    temporary_bytes: int
    """Memory that one step needs besides state and frozen weights."""
    cut: int = 0
    """Number of training examples that are longer than a row, and lose their end."""
    left_out: int = 0
    """Number of training examples that are longer than a row, and are in none."""


def build(
    experiment: Experiment,
    data: Prepared,
    planned: tuple[faults.Fault, ...] = (),
    mesh: Mesh | None = None,
    fresh: bool = False,
    source: Callable[[Source], Source] | None = None,
    gradients: step.Gradients = step.default_gradients,
) -> Program:
    """Compiles the training step of a resolved experiment.

    Args:
      planned: faults to inject; without any the program contains nothing of them.
      mesh: `None` makes the experiment's own, of all devices.
      fresh: random parameters will be needed: their program is compiled beside the step.
      source: takes the source of stored batches and returns the one to train on.
      gradients: see `train_step`.

    Raises:
      ConfigError: batch, mesh and data do not fit each other.
    """
    mesh = make_mesh(experiment.mesh) if mesh is None else mesh
    placement.require_divides(experiment, mesh)
    plan = _training_plan(experiment, data)
    others = teacher.load_teachers(experiment, data.tokenizer, mesh)
    configs = {name: other.config for name, other in others.items()}
    state, frozen = placement.abstract(experiment, mesh, configs)
    models = {name: _onto(frozen[name], other.params) for name, other in others.items()}

    def batches(shift: int, frozen: Frozen = models, seen: Any = None) -> Source:
        if experiment.rollout is None:
            read = stored(data.train, plan._replace(shift=shift), mesh)
        else:
            read = _rollouts(experiment, data, mesh, configs, frozen, shift, seen)
        return read if source is None else placed(source(read), mesh)

    init = None if source is None else _init(experiment, state, frozen, fresh=True)
    first = batches(0)
    # a source may look at the state
    batch = _batch_shapes(experiment, mesh, lambda: first(0, init(None)[0] if init else state))
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as beside:
        traced = lowered(experiment, mesh, batch, configs, planned, gradients)
        compiling = beside.submit(traced.compile)
        init = init if init and fresh else _init(experiment, state, frozen, fresh)
    memory = (compiled := compiling.result()).memory_analysis()
    evaluate = functools.partial(step.evaluate_step, loss=held_out_loss(experiment, configs))
    return Program(
        mesh=mesh,
        state=state,
        frozen=frozen,
        models=models,
        init=functools.partial(_begin, init, models),
        step=compiled,
        evaluate=jax.jit(with_mesh(mesh, evaluate), out_shardings=replicated(mesh)),
        batch=faults.in_batches(planned, first),
        batches=lambda *args: faults.in_batches(planned, batches(*args)),
        temporary_bytes=memory.temp_size_in_bytes if memory else 0,
        cut=plan.packing.cut if plan.packing else 0,
        left_out=plan.packing.left_out if plan.packing else 0,
    )


def _training_plan(experiment: Experiment, data: Prepared) -> Plan:
    """How the training store becomes rows, with slips of the keyboard if the data has any."""
    plan, noise = row_plan(experiment, data.train, seed=experiment.seed), experiment.data.noise
    return plan._replace(task=Noisy(plan.task, noise, data.tokenizer)) if noise.words else plan


def _rollouts(*args: Any) -> Source:
    """The source of answers that the model writes itself."""
    from gptjax.train.rollouts import rollouts  # other runs write nothing

    return rollouts(*args)


def _batch_shapes(experiment: Experiment, mesh: Mesh, first: Callable[[], Batch]) -> Batch:
    """Shapes, types and shardings of a batch; to know them, no answer is written."""
    if experiment.rollout is not None:
        from gptjax.train.rollout_columns import row_shapes  # other runs write nothing

        return row_shapes(experiment, mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), first()
    )


def lowered(
    experiment: Experiment,
    mesh: Mesh,
    batch: Batch,
    models: Mapping[str, ModelConfig] | None = None,
    planned: tuple[faults.Fault, ...] = (),
    gradients: step.Gradients = step.default_gradients,
) -> jax.stages.Lowered:
    """Traces the training step for a mesh, whose devices need not be here; ready to be compiled.

    It takes state, frozen weights and batch: frozen weights are arguments, not constants.

    Args:
      batch: shapes, types and shardings of a batch.
      models: see `placement.abstract`.
    """
    state, frozen = placement.abstract(experiment, mesh, models)
    if models is None:
        models = dict.fromkeys((name for name in frozen if name != "params"), experiment.model)
    loss = training_loss(experiment, models)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    # outside of `one`, where the roles of the weights would be traced anew for the mesh
    optimizer, rate = placement.optimizer(experiment), placement.learning_rate_of(experiment)

    def one(state: step.TrainState, frozen: Frozen, batch: Batch) -> tuple[step.TrainState, dict]:
        if experiment.mesh.offload_optimizer:
            onto = in_device_memory(shardings.opt_state)
            state = state._replace(opt_state=jax.device_put(state.opt_state, onto))
        return step.train_step(
            state,
            frozen,
            batch,
            loss=loss,
            optimizer=optimizer,
            rate=rate,
            seed=experiment.seed,
            micro_batches=experiment.micro_batches,
            skip_norm=experiment.skip_norm,
            skip_score=experiment.spike_score if experiment.skip_spikes else math.inf,
            dropout=placement.uses_dropout(experiment),
            post_update=_post_update(experiment),
            gradients=faults.in_gradients(planned, summed_in(experiment, gradients), state.step),
        )

    jitted = jax.jit(
        with_mesh(mesh, one), donate_argnums=0, out_shardings=(shardings, replicated(mesh))
    )
    return jitted.lower(state, frozen, batch)


def summed_in(experiment: Experiment, gradients: step.Gradients) -> step.Gradients:
    """The gradients in float32, whatever type the weights are kept in."""
    narrow = experiment.optim.weights == "bfloat16"
    return stochastic.widen_gradients(gradients) if narrow else gradients


def _post_update(experiment: Experiment) -> Callable | None:
    """Returns what balances experts without a loss, in models that have that. Where answers are
    compared or rewarded, experts are chosen as they were before."""
    config = experiment.model
    balanced = config.experts is not None and config.experts.bias_step > 0
    plain = (LossConfig.batches, Diffusion.batches)
    if not balanced or experiment.loss.batches not in plain:
        return None
    return lambda params, sums: model.rebalance(config, params, sums["load"])


def _init(
    experiment: Experiment, state: step.TrainState, frozen: Frozen, fresh: bool
) -> Callable[[Params | None], tuple[step.TrainState, Frozen]]:
    """Returns the function that makes the state of step 0 and the model's own frozen weights;
    compiled already, if random parameters will be needed."""
    own = {name: shapes for name, shapes in frozen.items() if name == "params"}
    briefly = _BRIEFLY if jax.default_backend() == "cpu" else None
    init = jax.jit(
        functools.partial(_initial, experiment),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, (state, own)),
        compiler_options=briefly,
    )
    return init.lower(None).compile() if fresh else init


def _initial(
    experiment: Experiment, params: Params | None = None
) -> tuple[step.TrainState, Frozen]:
    if params is None:
        params = model.init(experiment.model, jax.random.key(experiment.seed))
        params = transfer.initial(experiment, params)
    trainable, rest = halves(experiment, params)
    state = step.init(trainable, placement.optimizer(experiment))
    return state, {"params": rest} if freezes(experiment) else {}


def _begin(
    init: Callable, models: Frozen, params: Params | None = None
) -> tuple[step.TrainState, Frozen]:
    state, own = init(params)
    return state, {**models, **own}


_BRIEFLY = {"xla_backend_optimization_level": 1}
"""For a program that runs once: it compiles in a third of the time, for the same numbers."""


def _onto(shapes: Params, params: Params) -> Params:
    """Places parameters on the devices."""
    return jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), params, shapes)
