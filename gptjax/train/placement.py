"""Where a training run's arrays lie: its mesh, and shapes, types and shardings of its state and of
what is frozen. Nothing is allocated.

Read `Layout` and `lay_out`, then `abstract`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from gptjax import model, weights
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.core.trees import combine
from gptjax.losses import Frozen
from gptjax.model import ModelConfig
from gptjax.model.attention.order import zigzag_lacks
from gptjax.model.pipeline import parts_of, require_stages
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import (
    bytes_per_device,
    in_host_memory,
    make_mesh,
    num_row_shards,
    param_shardings,
    replicated,
)
from gptjax.train import optim, step, stochastic, transfer
from gptjax.train.experiment import Experiment
from gptjax.train.halves import freezes, halves


class Layout(NamedTuple):
    """An experiment on its mesh."""

    experiment: Experiment
    """With the mesh that it uses."""
    mesh: Mesh
    state: step.TrainState
    """Of `jax.ShapeDtypeStruct` with shardings."""
    frozen: Frozen
    """Likewise."""


def lay_out(
    experiment: Experiment, memory: int | float | None, devices: list | None = None
) -> Layout:
    """Chooses the mesh of an experiment and places its state.

    If nothing is set of the mesh, the batch is split over all devices, and so is the state if it
    would fill more than a quarter of each.

    Args:
      memory: bytes of a device. `None` means unknown; the state is then replicated.
      devices: those of a machine that may not be here; `None` means all that are.

    Raises:
      ConfigError: batch, positions, layers and devices do not fit each other.
    """
    mesh = make_mesh(experiment.mesh, devices)
    require_divides(experiment, mesh)
    state, frozen = abstract(experiment, mesh)
    if (
        not experiment.mesh.given
        and mesh.shape["data"] > 1
        and memory is not None
        and bytes_per_device(state) > memory // 4
    ):
        split = dataclasses.replace(experiment.mesh, data=1, fsdp=mesh.shape["data"])
        experiment = dataclasses.replace(experiment, mesh=split)
        mesh = make_mesh(split, devices)
        state, frozen = abstract(experiment, mesh)
    return Layout(experiment, mesh, state, frozen)


def require_divides(experiment: Experiment, mesh: Mesh) -> None:
    """Refuses rows, positions and layers that the devices cannot share evenly.

    Raises:
      ConfigError: suggests a number that they can.
    """
    rows, shards = experiment.batch // experiment.micro_batches, num_row_shards(mesh)
    require(
        rows % shards == 0,
        f"{rows} rows are read at once, which {shards} devices do not divide; use a multiple"
        f" (--batch {shards * -(-rows // shards)}).",
    )
    config, split = experiment.model, mesh.shape["context"]
    near = split * -(-config.context // split)
    require(
        config.context % split == 0,
        f"model.context is {config.context}, which mesh.context {split} does not divide; use a"
        f" multiple (--model.context {near}).",
    )
    with use_mesh(mesh):
        lacks = zigzag_lacks(config, config.context) if config.context_order == "zigzag" else None
    require(
        lacks is None or split == 1,
        f"model.context_order is zigzag, which does not support {lacks}; use --model.context-order"
        " auto.",
    )
    if mesh.shape["stage"] > 1:
        with use_mesh(mesh):
            require_stages(config, mesh.shape["stage"])
            parts_of(config, rows)


def abstract(
    experiment: Experiment, mesh: Mesh, models: Mapping[str, ModelConfig] | None = None
) -> tuple[step.TrainState, Frozen]:
    """Returns shapes, types and shardings of the state and of everything that is frozen.

    Args:
      models: architectures of the models that the loss needs; `None` takes them to be like the
        trained one.
    """
    own, rules = experiment.model, experiment.mesh.rules
    if models is None:
        models = dict.fromkeys(experiment.objective.resident, own)
    params = parameters(own, mesh, rules)
    both = jax.eval_shape(functools.partial(halves, experiment), params)
    trainable, rest = _placed_halves(experiment, mesh, both)
    frozen = {name: parameters(config, mesh, rules) for name, config in models.items()}
    if freezes(experiment):
        frozen["params"] = rest
    state = jax.eval_shape(functools.partial(step.init, optimizer=optimizer(experiment)), trainable)
    return _placed(experiment, mesh, state, trainable), frozen


def _placed_halves(
    experiment: Experiment, mesh: Mesh, both: tuple[Params, Params]
) -> tuple[Params, Params]:
    """Adds shardings to the shapes of both halves: bases, adapters and scales are split along the
    logical axes of the weight that they are part of."""
    trainable, rest = both
    whole = combine({"params": rest}, trainable)
    heads = jax.eval_shape(lambda: experiment.objective.heads(experiment.model))
    own = {name: tree for name, tree in whole.items() if name not in heads}
    axes = weights.axes_within(own, model.axes(experiment.model))
    axes = {**axes, **jax.tree.map(lambda leaf: (None,) * leaf.ndim, heads)}
    where = param_shardings(mesh, axes, whole, experiment.mesh.rules)

    def placed(half: Params) -> Params:
        present = jax.tree.map(
            lambda leaf, one: leaf if leaf is None else one,
            half,
            where,
            is_leaf=lambda leaf: leaf is None,
        )
        return _with_shardings(half, present)

    return placed(trainable), placed(rest)


def uses_dropout(experiment: Experiment) -> bool:
    """Whether the training step draws random numbers."""
    adapter = experiment.adapter
    return experiment.model.uses_dropout or bool(adapter and adapter.dropout)


def optimizer(
    experiment: Experiment, rate: optax.Schedule | None = None, fixed: Experiment | None = None
) -> optax.GradientTransformation:
    """Builds the optimizer of an experiment, for the type in which its weights are kept.

    Args:
      rate: step → learning rate; `None` is the experiment's own.
      fixed: the same experiment with no traced settings; `None` if it has none.
    """
    fixed = fixed or experiment
    roles, wider = model.roles(fixed.model), transfer.scaled_updates(fixed)
    rate = rate or learning_rate_of(experiment)
    built = optim.build_optimizer(experiment.optim, rate, roles, fixed.prune, wider)
    if fixed.optim.weights == "float32":
        return built
    return stochastic.keep_narrow(built, experiment.seed)


def learning_rate_of(experiment: Experiment) -> optax.Schedule:
    """Returns step → learning rate."""
    return optim.learning_rate(experiment.schedule, experiment.optim.peak, experiment.steps)


def parameters(config: ModelConfig, mesh: Mesh, rules: Any) -> Params:
    """Returns shapes, types and shardings of a model's parameters."""
    shapes = model.shapes(config)
    return _with_shardings(shapes, param_shardings(mesh, model.axes(config), shapes, rules))


def _placed(
    experiment: Experiment, mesh: Mesh, shapes: step.TrainState, trainable: Params
) -> step.TrainState:
    """Adds shardings to a state's shapes. Optimizer state whose path ends in a parameter's, in its
    shape, lies where the parameter lies."""
    whole = replicated(mesh)
    known = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trainable)}

    def beside(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        match = next((known[names[i:]] for i in range(len(names)) if names[i:] in known), None)
        return match.sharding if match is not None and match.shape == leaf.shape else whole

    opt_state = jax.tree_util.tree_map_with_path(beside, shapes.opt_state)
    if experiment.mesh.offload_optimizer:
        opt_state = in_host_memory(opt_state, mesh.devices.flat[0])
    return step.TrainState(
        jax.ShapeDtypeStruct(shapes.step.shape, shapes.step.dtype, sharding=whole),
        trainable,
        _with_shardings(shapes.opt_state, opt_state),
    )


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def total_bytes(tree: Any) -> int:
    """Returns the bytes of a tree over all devices, each value counted once."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
