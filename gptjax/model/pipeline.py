"""Pipeline parallelism: each stage of a mesh holds some of the layers, and micro-batches go through
the stages one after the other.

All stages compute at the same time, each on another micro-batch, and then pass their outputs to the
next stage. With S stages and M micro-batches that takes M + S − 1 turns, of which each stage works
M: the bubble is (S − 1) / (M + S − 1) of the time, in which results are computed and discarded.

Sources: the schedule: Huang et al. 2019, GPipe, arXiv:1811.06965, section 2.2; as one program over
a dimension of stages: Xu et al. 2021, GSPMD, arXiv:2105.04663, section 3.3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Key, Params
from gptjax.core.config import require
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.config import ModelConfig
from gptjax.sharding.constrain import ROWS, axis_size, constrain, constrain_residual
from gptjax.weights.linear import require_for_all_rows

Stage = Callable[[Params, Any, Array, Array], tuple[Array, Any]]
"""(layers of the stage, carried arrays, stage index, micro-batch index) → the next residual stream,
and the layers' `stack.LayerOutputs`."""


def require_stages(config: ModelConfig, stages: int) -> None:
    """Refuses a model whose layers can't be divided into that many stages.

    Raises:
      ConfigError: names a number that works.
    """
    period = len(config.pattern)
    near = stages * period * max(1, round(config.num_layers / (stages * period)))
    said = f"mesh.stage is {stages}, and the model has {config.num_layers} layers" + (
        f" in a pattern of {period}" if period > 1 else ""
    )
    require(
        config.num_layers % (stages * period) == 0,
        f"{said}; each stage needs the same layers (--model.num-layers {near}).",
    )
    require(
        not config.first,
        f"mesh.stage is {stages}, and model.first sets layers apart, so that stages would differ;"
        " use --mesh.stage 1.",
    )
    require(
        not config.has_encoder,
        f"mesh.stage is {stages}, and the model has an encoder beside its decoder; use"
        " --mesh.stage 1.",
    )


def parts_of(config: ModelConfig, rows: int) -> int:
    """Returns the number of micro-batches of the pipeline: `stage_parts`, or the largest divisor of
    the rows of a device that is at most four per stage."""
    own = max(1, rows // axis_size(*ROWS))
    if config.stage_parts is not None:
        said = f"model.stage_parts is {config.stage_parts}, and a device reads {own} rows at once"
        require(
            own % config.stage_parts == 0, f"{said}; use a divisor (--model.stage-parts {own})."
        )
        return config.stage_parts
    return max(count for count in range(1, 4 * axis_size("stage") + 1) if own % count == 0)


def run_in_stages(
    run: Callable,
    config: ModelConfig,
    layers: Params,
    x: Array,
    layer_inputs: LayerInputs,
    key: Key | None,
) -> tuple[Array, None, Any]:
    """Computes `stack.run_stack` in the stages of the traced mesh.

    Args:
      run: applies some of the model's layers to x.
    """
    require_for_all_rows(layers, "layers in stages (--mesh.stage)")
    part = dataclasses.replace(config, num_layers=config.num_layers // axis_size("stage"))

    def alike(leaf):
        return (
            leaf.ndim < 2 or leaf.shape[0] != x.shape[0]
        )  # shared by all rows, as positions may be

    kinds, turns = (
        tuple(layer_inputs.angles),
        tuple(layer_inputs.angles.values()),
    )  # keyed by layer; jax needs keys that can be sorted, and layers can't
    apart, tree = jax.tree.flatten((layer_inputs.mask_inputs, turns, layer_inputs.entrance))
    fixed = [leaf if alike(leaf) else None for leaf in apart]

    def stage(layers: Params, carried: tuple, number: Array, piece: Array) -> tuple[Array, Any]:
        x, *moving = carried
        moving = iter(moving)
        mask_inputs, turns, entrance = jax.tree.unflatten(
            tree, [next(moving) if leaf is None else leaf for leaf in fixed]
        )
        own = None if key is None else jax.random.fold_in(key, piece)
        x, _, outputs = run(
            config,
            part,
            number * part.num_layers,
            layers,
            x,
            layer_inputs._replace(
                mask_inputs=mask_inputs,
                angles=dict(zip(kinds, turns, strict=True)),
                entrance=entrance,
            ),
            None,
            own,
        )
        return x, outputs

    x, outputs = through_stages(
        config, stage, layers, (x, *(leaf for leaf in apart if not alike(leaf)))
    )
    return constrain_residual(x), None, outputs


def through_stages(
    config: ModelConfig, stage: Stage, layers: Params, carried: Any
) -> tuple[Array, Any]:
    """Sends a batch through all stages.

    Args:
      layers: each leaf with a leading dimension of layers, in order.
      carried: arrays passed from stage to stage; the first leaf is the residual stream [B T D], and
        all others have B rows too.
    """
    stages, rows = axis_size("stage"), jax.tree.leaves(carried)[0].shape[0]
    count = parts_of(config, rows)
    numbers, weights = (
        jnp.arange(stages),
        jax.tree.map(lambda leaf: leaf.reshape(stages, -1, *leaf.shape[1:]), layers),
    )
    waiting = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf.reshape(rows // count, count, *leaf.shape[1:]), 0, 1),
        carried,
    )
    every = jax.vmap(stage, spmd_axis_name="stage")

    def along(leaf):
        return constrain(
            leaf,
            ("stage",),
            ROWS,
            ("context", "tensor") if leaf.ndim == 4 else (),
            *((),) * (leaf.ndim - 3),
        )

    def turn(carried: Any, number: Array) -> tuple[Any, Any]:
        feed = jax.tree.map(
            lambda leaf: leaf[jnp.minimum(number, count - 1)], waiting
        )  # the last micro-batch is repeated while the pipeline drains
        moved = jax.tree.map(
            lambda leaf, new: along(jnp.roll(leaf, 1, axis=0).at[0].set(new)), carried, feed
        )
        x, outputs = every(weights, moved, numbers, jnp.clip(number - numbers, 0, count - 1))
        flat, tree = jax.tree.flatten(moved)
        return jax.tree.unflatten(tree, [x, *flat[1:]]), (x[-1], outputs)

    begin = jax.tree.map(
        lambda leaf: along(jnp.broadcast_to(leaf[:1], (stages, *leaf.shape[1:]))), waiting
    )
    _, (ready, outputs) = jax.lax.scan(turn, begin, jnp.arange(count + stages - 1))
    x = jnp.swapaxes(ready[stages - 1 :], 0, 1).reshape(rows, *ready.shape[2:])
    when = jnp.arange(count)[:, None] + numbers[None]
    return x, jax.tree_util.tree_map_with_path(
        lambda path, leaf: _collected(path[-1].key, leaf[when, numbers[None]]), outputs
    )


def _collected(name: str, output: Array) -> Array:
    """Returns one output of all layers [L …], from those of each micro-batch and stage [parts
    stages layers …]: summed over micro-batches if it is a sum over tokens, else with its rows [B …]
    in order."""
    _, stages, layers = output.shape[:3]
    if name in ("load", "dropped"):
        return output.sum(0).reshape(stages * layers, *output.shape[3:])
    return jnp.moveaxis(output, 0, 3).reshape(stages * layers, -1, *output.shape[4:])
