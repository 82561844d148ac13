"""Ten training steps on any mesh of the eight CPU devices, from the same weights and batches, and
how far two of them are apart."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from gptjax import model
from gptjax.data import (
    Batch,
    DataConfig,
    MaskedLanguageModel,
    PrefixLanguageModel,
    Side,
    SpanCorruption,
)
from gptjax.losses import CrossEntropy
from gptjax.model import ModelConfig
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh, place_batch, replicated
from gptjax.train import optim, placement, program, step
from gptjax.train.experiment import Experiment
from gptjax.train.halves import halves

ROWS, STEPS = 8, 10


def experiment_of(config: ModelConfig, mesh: MeshConfig, **changes) -> Experiment:
    """A run with steps small enough that rounding stays rounding: a gradient that is zero but for
    it, as a key's bias has, must not become a step."""
    task = (
        SpanCorruption()
        if config.encoder_layers
        else (
            MaskedLanguageModel()
            if not config.causal
            else PrefixLanguageModel()
            if config.prefix_lm
            else None
        )
    )
    data = DataConfig(task=task) if task else DataConfig()
    told = {
        "data": data,
        "optim": optim.AdamW(peak=1e-3, epsilon=1e-4),
        "schedule": optim.Schedule(warmup=0),
        "steps": STEPS,
        "batch": ROWS,
        "loss": CrossEntropy(),
    } | changes
    return Experiment(model=dataclasses.replace(config, init_std=0.1), mesh=mesh, **told)


@functools.cache
def batch_of(config: ModelConfig, seed: int) -> Batch:
    """Rows of three pieces that do not see each other, with padding at the end."""
    draw, length = np.random.default_rng(seed), config.context
    tokens, targets = draw.integers(0, config.vocabulary, (2, ROWS, length)).astype(np.int32)
    ends = np.sort(draw.integers(1, length - 2, (ROWS, 2)), axis=1)
    where = np.broadcast_to(np.arange(length), (ROWS, length))
    segments = (where >= ends[:, :1]).astype(np.int32) + (where >= ends[:, 1:])
    begins = np.take_along_axis(
        np.concatenate([np.zeros((ROWS, 1), int), ends], 1), segments, axis=1
    )
    padded = where >= length - 2
    positions = np.where(padded, -1, where - begins).astype(np.int32)
    weights = (draw.random((ROWS, length)) * ~padded).astype(np.float32)
    side = (
        Side(
            draw.integers(0, config.vocabulary, (ROWS, length)).astype(np.int32),
            positions,
            segments,
        )
        if config.encoder_layers
        else None
    )
    prefix = np.full_like(positions, 2) if config.prefix_lm else None
    return Batch(tokens, targets, weights, segments, positions, side, prefix=prefix)


@functools.cache
def weights_of(config: ModelConfig):
    """Initial weights, on the host."""
    return jax.device_get(
        jax.jit(functools.partial(model.init, dataclasses.replace(config, init_std=0.1)))(
            jax.random.key(0)
        )
    )


def trained(
    config: ModelConfig,
    *,
    devices: int = 8,
    steps: int = STEPS,
    mesh: dict | None = None,
    **changes,
):
    """The state after some steps, and the loss of each."""
    experiment = experiment_of(config, MeshConfig(**mesh or {}), **changes)
    made = make_mesh(experiment.mesh, jax.devices()[:devices])
    placement.require_divides(experiment, made)

    def placed(number):
        return place_batch(batch_of(config, number), made, ROWS)

    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), placed(0)
    )
    compiled = program.lowered(experiment, made, shapes).compile()
    optimizer = placement.optimizer(experiment, lambda number: 1e-3)
    trainable, where = (
        halves(experiment, weights_of(config))[0],
        placement.abstract(experiment, made)[0],
    )
    begun = step.init(trainable, optimizer)
    state = jax.tree.map(
        lambda leaf, place: jax.device_put(np.asarray(leaf), place.sharding), begun, where
    )
    losses = []
    for number in range(steps):
        state, told = compiled(state, {}, placed(number))
        losses.append(float(told["loss"]))
    return jax.device_get(state), losses


def apart(found, wanted) -> tuple[float, float]:
    """Largest relative difference of a loss, and of any value of the state: relative to the largest
    of its array, and at least to a thousandth of the largest of its tree: the moments of a key's
    bias, which no softmax sees, are nothing but rounding.
    """
    (state, losses), (other, expected) = found, wanted
    loss = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))

    def trees(state):
        return [
            state.trainable,
            *(
                getattr(part, name)
                for part in state.opt_state
                for name in ("mu", "nu")
                if hasattr(part, name)
            ),
        ]

    error = 0.0
    for mine, theirs in zip(trees(state), trees(other), strict=True):
        floor = 1e-2 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
        pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
        error = max(
            error,
            *(
                float(np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), floor))
                for a, b in pairs
            ),
        )
    return loss, error


def loss_and_gradients(config: ModelConfig, packed: bool, mesh: dict | None = None):
    """The mean loss of one batch and its gradients; packed rows are three pieces and padding,
    others one text."""
    batch = batch_of(config, 0)
    if not packed:
        batch = batch._replace(segments=None, positions=None, weights=np.ones_like(batch.weights))
    objective = CrossEntropy().build(config)

    def total(params, batch):
        return objective(params, {}, batch, None)[0] / batch.weights.sum()

    count = 1 if mesh is None else int(np.prod(list(mesh.values())))
    made = make_mesh(MeshConfig(**{"data": 1, **(mesh or {})}), jax.devices()[:count])
    with use_mesh(made):
        placed = jax.device_put((weights_of(config), batch), replicated(made))
        return jax.device_get(jax.jit(jax.value_and_grad(total))(*placed))


def differences(found, wanted) -> tuple[float, float]:
    """Of two losses, relative; and the largest of any gradient, relative to the largest of its
    array, and at least to a hundredth of the largest of all."""
    (loss, grads), (other, expected) = found, wanted
    floor = 1e-2 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    errors = [
        float(np.abs(a - b).max() / max(np.abs(b).max(), floor))
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
    ]
    return abs(float(loss) / float(other) - 1), max(errors)
