"""The subject of the proofs: the user's experiment as it would be trained, and its small twin,
which takes seconds.

Read `Setting`, then `shrink` (the rule that makes the twin), then the tools of the proofs:
`Functions`, `sharp`, `with_positions`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core import config
from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data import Batch, Prepared, batches
from gptjax.losses import CrossEntropy
from gptjax.model import Experts, Latent, ModelConfig
from gptjax.model.attention.layer import select_attention
from gptjax.model.config import DROPOUTS
from gptjax.sharding.mesh import MeshConfig, make_mesh, num_row_shards
from gptjax.train import program
from gptjax.train.experiment import Experiment
from gptjax.train.identity import resolve
from gptjax.train.optim import SGD, Lion, OptimConfig
from gptjax.train.sources import row_plan


class Setting(NamedTuple):
    """Everything that a proof needs. Functions are compiled anew for every setting, so that none is
    older than its code."""

    experiment: Experiment
    """What the user would train, resolved."""
    data: Prepared
    run: Path | None
    """The run directory to prove, if any."""
    small: Experiment
    """The same in a size that takes seconds, see `shrink`."""
    changes: tuple[str, ...]
    """The settings that differ, each as `name old → new`."""
    exact: ModelConfig
    """The small model in float32 and without dropout: two ways of computing it must agree to
    rounding."""
    params: Params
    """Weights of `exact` under which every part matters, see `sharp`."""
    batch: Batch
    """The first rows of the text."""
    functions: Functions
    """Functions of `exact`."""
    build: Callable[[Experiment], program.Program]
    """Compiles an experiment over the data, once."""


class Figure(NamedTuple):
    """The result of a proof. It passes if `value` is at most `limit`."""

    value: float
    limit: float
    words: str
    """Description of the value."""


class Skipped(NamedTuple):
    """The reason why a proof does not apply."""

    reason: str


def make(experiment: Experiment, data: Prepared, run: Path | None = None) -> Setting:
    """Returns the setting of an experiment over its prepared data.

    Raises:
      ConfigError: model, text and context do not fit each other.
    """
    experiment = resolve(experiment, data)
    require(
        experiment.model.context >= 16,
        f"model.context is {experiment.model.context}; the proofs need at least 16 positions"
        " (--model.context 16).",
    )
    small, changes = shrink(experiment)
    exact = without_dropout(dataclasses.replace(small.model, compute="float32"))
    plan = row_plan(small, data.train, seed=small.seed)
    batch = with_positions(batches.batch(data.train, plan, 0))
    batch = batch if small.rollout is None else with_weights(batch)
    build = functools.cache(lambda wanted: program.build(wanted, data))
    return Setting(
        experiment,
        data,
        run,
        small,
        changes,
        exact,
        sharp(exact),
        batch,
        compile_functions(exact),
        build,
    )


# --- the small twin ---


LAYERS, WIDTH, CONTEXT, ROWS, STEPS, WARMUP = 4, 256, 128, 4, 300, 10


def shrink(experiment: Experiment) -> tuple[Experiment, tuple[str, ...]]:
    """Returns the same experiment in a size that takes seconds on a CPU, and the changes.

    The rule: at most 4 layers, or as many more as the pattern of layers needs to come once, and 128
    positions (512 where texts are conversations); every width divided by the smallest whole number
    that brings the model's to 256 or less; 4 rows, or as few more as devices and micro-batches
    divide; a schedule over 300 steps with at most 10 of warm-up, and a peak that learns in so few.
    Kinds, numbers of heads, vocabulary, text and seed stay. The attention that serves the whole
    context is named, so that it serves the shorter one too. A mesh that is not this machine's gives
    way to all devices.
    """
    whole = experiment.data.task.conversations  # none is cut, so a short row would hold none
    small = smaller(experiment.model, 4 * CONTEXT if whole else CONTEXT)
    mesh = experiment.mesh
    try:
        make_mesh(mesh)
    except ConfigError:
        mesh = MeshConfig()
    parts, micro = num_row_shards(make_mesh(mesh)), min(experiment.micro_batches, 2)
    rows = parts * micro * -(-ROWS // (parts * micro))
    schedule = dataclasses.replace(
        experiment.schedule, warmup=min(experiment.schedule.warmup, WARMUP), steps=None
    )
    optimizer = dataclasses.replace(
        experiment.optim, peak=max(experiment.optim.peak, least_peak(experiment.optim, small.width))
    )
    steps, written = STEPS, {}
    if (rollout := experiment.rollout) is not None:
        answers, new = min(rollout.answers, ROWS), min(rollout.new_tokens, CONTEXT // 8)
        rollout = dataclasses.replace(rollout, answers=answers, new_tokens=new, rows=None)
        rows, steps = rows * answers, max(1, STEPS // rollout.updates) * rollout.updates
        written = {"rollout": rollout}
    sizes = {"batch": rows, "micro_batch": rows // micro if micro > 1 else None, "steps": steps}
    twin = dataclasses.replace(
        experiment, model=small, mesh=mesh, optim=optimizer, schedule=schedule, **sizes, **written
    )
    changed = config.differences(experiment, twin)
    return twin, tuple(f"{name} {old} → {new}" for name, (old, new) in changed.items())


def smaller(c: ModelConfig, context: int = CONTEXT) -> ModelConfig:
    """Shrinks a model by the rule of `shrink`, to at most `context` positions."""
    by = -(-c.width // WIDTH)
    even, kinds = (
        (lambda width: max(2, width // by // 2 * 2)),
        {select_attention(c, c.context, layer)[0] for layer in c.stack},
    )
    depth = min(c.num_layers, max(LAYERS, len(c.first) + len(c.pattern)))
    if c.context > context:
        c = dataclasses.replace(
            c, context=context, attention=kinds.pop() if len(kinds) == 1 else c.attention
        )
    if by == 1:
        return dataclasses.replace(c, num_layers=depth)
    widths = {
        "width": c.width // by // 2 * 2,
        "head_width": even(c.head_dim),
        "feed_forward": max(2, c.mlp_dim // by),
    }
    return dataclasses.replace(
        c,
        num_layers=depth,
        latent=_narrower(c.latent, even),
        experts=_narrower(c.experts, even),
        **widths,
    )


def _narrower(part: Latent | Experts | None, even: Callable[[int], int]) -> Latent | Experts | None:
    """Returns a part of a model with smaller widths."""
    if part is None:
        return None
    widths = [
        f.name
        for f in dataclasses.fields(part)
        if f.name.endswith(("width", "rank")) and getattr(part, f.name) is not None
    ]
    return dataclasses.replace(part, **{name: even(getattr(part, name)) for name in widths})


def least_peak(optimizer: OptimConfig, width: int) -> float:
    """Returns a learning rate with which a model of this width learns a batch in a few hundred
    steps; that of a long run may be too low."""
    match optimizer:
        case SGD():
            return 1.0 - optimizer.momentum
        case Lion():
            return 0.1 / width
    return 0.3 / width


def without_dropout(c: ModelConfig) -> ModelConfig:
    """Returns the same model without dropout."""
    return dataclasses.replace(c, **dict.fromkeys(DROPOUTS, 0.0))


# --- tools of the proofs ---


class Functions(NamedTuple):
    """Functions of a model, compiled when first called. Products are computed as precisely as the
    device can."""

    init: Callable
    """key → initial params"""
    hidden: Callable
    """(params, tokens, positions, segments) → hidden [B T D]"""
    cached: Callable
    """(params, tokens, positions, cache) → hidden, cache"""
    logits: Callable
    """(params, hidden) → logits [… V]"""
    loss: Callable
    """(params, batch, key) → total, weight"""
    gradient: Callable
    """(params, batch, key) → (total, weight), gradients"""


def compile_functions(c: ModelConfig) -> Functions:
    """Returns the functions of a model."""

    def init(key):
        return model.init(c, key)

    def hidden(params, tokens, positions, segments):
        return model.forward(c, params, tokens, positions=positions, segments=segments).hidden

    def cached(params, tokens, positions, cache):
        out = model.forward(c, params, tokens, positions=positions, cache=cache)
        return out.hidden, out.cache

    def logits(params, states):
        return model.unembed(c, params, states)

    def loss(params, batch, key):
        return CrossEntropy().build(c)(params, {}, batch, key)[:2]

    functions = init, hidden, cached, logits, loss, jax.value_and_grad(loss, has_aux=True)
    return Functions(*(jax.jit(precise(function)) for function in functions))


def precise(function: Callable) -> Callable:
    """Returns the function with float32 products computed in float32: devices other than CPUs round
    their inputs by default."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return inner


def sharp(c: ModelConfig, seed: int = 0) -> Params:
    """Returns weights larger than the initial ones, biases and scales included: attention is sharp,
    and every part changes the result.

    Even larger ones would measure how much a model amplifies rounding, not whether two ways of
    computing agree.
    """
    draw = np.random.default_rng(seed)

    def one(path: tuple, leaf: Any) -> jax.Array:
        names = [part.key for part in path]
        sizes = leaf.shape[1:] if names[0] == "layers" else leaf.shape
        inputs = math.prod(sizes[:2] if names[-2] == "out" else sizes[:1])
        spread = {
            "kernel": 0.6 / math.sqrt(inputs),
            "embedding": 2.0 / math.sqrt(c.width),
            "bias": 0.1,
            "scale": 0.2,
            "sink": 1.0,
        }.get(names[-1], 0.5)
        return jnp.asarray(
            spread * draw.standard_normal(leaf.shape) + (names[-1] == "scale"), jnp.float32
        )

    return jax.tree_util.tree_map_with_path(one, model.shapes(c))


def on_devices(state: Any, built: program.Program) -> Any:
    """Places a training state on the devices of a program."""
    return jax.tree.map(
        lambda leaf, wanted: jax.device_put(np.array(leaf), wanted.sharding), state, built.state
    )


def with_positions(batch: Batch) -> Batch:
    """Returns the batch with explicit segments and positions."""
    if batch.positions is not None:
        return batch
    positions = np.where(
        batch.weights > 0, np.arange(batch.tokens.shape[1], dtype=np.int32), -1
    ).astype(np.int32)
    return batch._replace(positions=positions, segments=np.ones_like(batch.tokens))


def with_weights(batch: Batch) -> Batch:
    """Returns a batch of prompts, of which nothing is learned, as one whose every token is."""
    positions = np.asarray(batch.positions)
    follows = np.append(positions[:, 1:] > 0, np.zeros((len(positions), 1), bool), axis=1)
    return batch._replace(weights=follows.astype(np.float32), columns=None)


def unpacked_places(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and segments [B T] of rows of one text each."""
    return np.tile(np.arange(length, dtype=np.int32), (rows, 1)), np.ones((rows, length), np.int32)


def pieces(length: int) -> tuple[int, int, int]:
    """Returns the lengths of three texts that fill a row of `length`."""
    return length * 5 // 16, length * 7 // 16, length - length * 5 // 16 - length * 7 // 16


def packed_places(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions and segments [B T] of rows of three texts each."""
    sizes = pieces(length)
    where = np.concatenate([np.arange(n, dtype=np.int32) for n in sizes])
    return np.tile(where, (rows, 1)), np.tile(
        np.repeat(np.arange(1, 4, dtype=np.int32), sizes), (rows, 1)
    )


def difference(found: Any, wanted: Any) -> float:
    """Returns the largest difference, relative to the largest wanted value; infinite if anything is
    not finite."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    largest = np.abs(found - wanted).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-30)
    return float(largest) if np.isfinite(largest) else math.inf


def apart(found: Any, wanted: Any) -> float:
    """Returns the Euclidean distance of two trees, relative to the wanted one; infinite if anything
    is not finite."""
    distance = euclidean_norm(
        jax.tree.map(
            lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), found, wanted
        )
    ) / euclidean_norm(wanted)
    return distance if math.isfinite(distance) else math.inf


def euclidean_norm(tree: Any) -> float:
    """Returns the Euclidean norm of all leaves."""
    return math.sqrt(
        sum(float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(tree))
    )
