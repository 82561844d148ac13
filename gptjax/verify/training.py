"""Proofs about training: parts, devices, random numbers, learning, and going on after a stop.
(Setting) → Figure or Skipped."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import math
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.trees import paths
from gptjax.data import Batch
from gptjax.losses import CrossEntropy, Frozen, FunctionLoss
from gptjax.runs import Run
from gptjax.runs import manifest as manifests
from gptjax.sharding.mesh import describe_mesh
from gptjax.train import optim, program, saved, step
from gptjax.train.optim import SGD, Schedule
from gptjax.verify.reading import ROUNDING
from gptjax.verify.setting import (
    DROPOUTS,
    Figure,
    Setting,
    Skipped,
    apart,
    compile_functions,
    difference,
    on_devices,
    precise,
    without_dropout,
)
from gptjax.verify.writing import continue_rows

LONG = 2.0**20
"""A step so long that the old weights vanish in it: what is left is the gradient, to the last
bits."""


def descent() -> SGD:
    """Plain steps down the gradient: no optimizer's scaling hides an error."""
    return SGD(peak=LONG, momentum=0.0, clip_norm=None)


def slopes_from(before: Any, after: Any) -> Any:
    """The gradient that a step of `descent` took."""
    return jax.tree.map(
        lambda old, new: (np.asarray(old, np.float64) - np.asarray(new, np.float64)) / LONG,
        before,
        after,
    )


# --- parts and devices ---


def micro_batches(setting: Setting) -> Figure:
    """Takes a step over parts of a batch whose rows have unequal weights, against jax's gradient of
    the whole."""
    parts, rows = max(2, setting.small.micro_batches), len(setting.batch.tokens)
    kept = (
        np.random.default_rng(2).random(setting.batch.weights.shape)
        < np.linspace(0.1, 1, rows)[:, None]
    )
    batch = setting.batch._replace(weights=setting.batch.weights * kept.astype(np.float32))
    (total, weight), grads = setting.functions.gradient(setting.params, batch, None)
    rate = optim.learning_rate(Schedule("constant", warmup=0), LONG, 10)
    optimizer = optim.build_optimizer(descent(), rate)
    told = {
        "loss": CrossEntropy().build(setting.exact),
        "optimizer": optimizer,
        "rate": rate,
        "seed": 0,
        "micro_batches": parts,
        "dropout": False,
    }
    state, metrics = jax.jit(precise(functools.partial(step.train_step, **told)))(
        step.init(setting.params, optimizer), {}, batch
    )
    loss = difference(metrics["loss"], total / weight)
    found = apart(
        slopes_from(setting.params, state.trainable),
        jax.tree.map(lambda g: np.asarray(g) / float(weight), grads),
    )
    return Figure(
        max(loss, found),
        ROUNDING,
        f"relative difference of loss and gradient in {parts} parts of unequal weight from the"
        " whole",
    )


def devices(setting: Setting) -> Figure | Skipped:
    """Takes a step on all devices, split as the config's mesh says, against the gradient on one."""
    count = jax.device_count()
    if count == 1:
        return Skipped(
            "one device; XLA_FLAGS=--xla_force_host_platform_device_count=4 before the command"
            " shows a CPU as four"
        )
    twin = dataclasses.replace(
        setting.small,
        model=setting.exact,
        optim=descent(),
        schedule=Schedule("constant", warmup=0),
        micro_batch=None,
        skip_norm=1e30,
    )
    with jax.default_matmul_precision("highest"):
        built = setting.build(twin)
    begun = step.init(setting.params, optim.build_optimizer(descent(), lambda _: LONG))
    state, metrics = built.step(on_devices(begun, built), built.models, built.batch(0, begun))
    (total, weight), grads = setting.functions.gradient(setting.params, setting.batch, None)
    loss = difference(metrics["loss"], total / weight)
    found = apart(
        slopes_from(setting.params, state.trainable),
        jax.tree.map(lambda g: np.asarray(g) / float(weight), grads),
    )
    return Figure(
        max(loss, found),
        ROUNDING,
        f"relative difference of loss and gradient on {count} devices ({describe_mesh(built.mesh)})"
        " from one",
    )


# --- random numbers ---


def randomness(setting: Setting) -> Figure:
    """Every step, part, row and token draws its own random numbers, and the same seed draws them
    again."""
    once, twice = _drawn_by_parts(setting.small.seed), _drawn_by_parts(setting.small.seed)
    wrong = {"parts of steps that draw what another drew": once.size - len(np.unique(once))}
    wrong["parts of steps that draw otherwise the second time"] = int((once != twice).sum())
    nothing = jax.tree.map(
        jnp.zeros_like, setting.params
    )  # all tokens equally likely: what is written is the random numbers
    (first, *_), (again, *_), (other, *_) = (
        continue_rows(setting, nothing, np.ones(4, np.float32), seed) for seed in (0, 0, 1)
    )
    wrong["rows that draw the same for every token"] = int(
        (first.ids == first.ids[:, :1]).all(axis=1).sum()
    )
    wrong["rows that write what another wrote"] = len(first.ids) - len(np.unique(first.ids, axis=0))
    wrong["rows that another seed does not change"] = int(
        (first.ids == other.ids).all(axis=1).sum()
    )
    wrong["tokens that the same seed changes"] = int((first.ids != again.ids).sum())
    rates = {name: getattr(setting.small.model, name) for name in DROPOUTS}
    if any(rates.values()):
        dropping = compile_functions(dataclasses.replace(setting.exact, **rates)).loss
        one, same, another = (
            float(dropping(setting.params, setting.batch, jax.random.key(seed))[0])
            for seed in (0, 0, 1)
        )
        wrong["losses that dropout's key does not decide"] = int(one != same) + int(one == another)
    found = ", ".join(f"{count} {what}" for what, count in wrong.items() if count)
    return Figure(
        sum(wrong.values()), 0, found or "draws that should differ and do not, or should not and do"
    )


def _drawn_by_parts(seed: int, steps: int = 4, parts: int = 4) -> np.ndarray:
    """A number drawn by each part of each step [steps parts]. The objective is linear in a probe
    for each part, whose gradient is then what the part drew."""
    rate = optim.learning_rate(Schedule("constant", warmup=0), 1.0, 10)
    optimizer = optim.build_optimizer(SGD(peak=1.0, momentum=0.0, clip_norm=None), rate)

    def objective(params: Any, frozen: Frozen, batch: Batch, key: Any) -> Any:
        return (
            jnp.sum(params["probe"] * batch.weights[0]) * jax.random.uniform(key, ()),
            jnp.asarray(1 / parts),
            {},
        )

    told = {
        "loss": FunctionLoss(objective),
        "optimizer": optimizer,
        "rate": rate,
        "seed": seed,
        "micro_batches": parts,
    }
    run = jax.jit(functools.partial(step.train_step, **told))
    begun, none = (
        step.init({"probe": jnp.zeros(parts)}, optimizer),
        np.zeros((parts, parts), np.int32),
    )
    batch = Batch(none, none, np.eye(parts, dtype=np.float32))
    return np.stack(
        [
            -np.asarray(
                run(begun._replace(step=jnp.asarray(number, jnp.int32)), {}, batch)[0].trainable[
                    "probe"
                ]
            )
            for number in range(steps)
        ]
    )


# --- learning ---


OVERFITTED = 0.1
"""Nats a token."""


def overfit(setting: Setting) -> Figure:
    """Reads one batch again and again, with the config's optimizer, until it knows by heart about
    two tokens for each unit of width.

    What cannot be known is left out: after equal beginnings of two texts the next tokens differ.
    """
    built = setting.build(
        dataclasses.replace(setting.small, model=without_dropout(setting.small.model))
    )
    rows, length = setting.batch.tokens.shape
    some = setting.batch._replace(
        weights=setting.batch.weights
        * (np.arange(length) < max(8, 2 * setting.exact.width // rows)).astype(np.float32)
    )
    least = unavoidable(some)
    state, loss, done = initial_state(setting, built), math.inf, 0
    batch = built.batch(0, state)
    batch = batch._replace(weights=jax.device_put(some.weights, batch.weights.sharding))
    for done in range(1, setting.small.steps + 1):
        state, metrics = built.step(state, built.models, batch)
        if done % 10 == 0 and (loss := float(metrics["loss"]) - least) <= OVERFITTED:
            break
    return Figure(
        loss, OVERFITTED, f"nats a token above what can be known, after {done} steps on one batch"
    )


def initial_state(setting: Setting, built: program.Program) -> step.TrainState:
    """The state before the first step."""
    rate = optim.learning_rate(
        setting.small.schedule, setting.small.optim.peak, setting.small.steps
    )
    params = setting.functions.init(jax.random.key(setting.small.seed))
    optimizer = optim.build_optimizer(setting.small.optim, rate, model.roles(setting.small.model))
    return on_devices(step.init(params, optimizer), built)


def unavoidable(batch: Batch) -> float:
    """The nats a token that no reader can avoid: equal beginnings of texts in a batch, followed by
    different tokens."""
    after: dict[bytes, collections.Counter] = collections.defaultdict(collections.Counter)
    for row, column in zip(*np.nonzero(batch.weights), strict=True):
        begun = column - batch.positions[row, column]
        after[batch.tokens[row, begun : column + 1].tobytes()][int(batch.targets[row, column])] += 1
    nats = -sum(
        n * math.log(n / counts.total()) for counts in after.values() for n in counts.values()
    )
    return nats / float(batch.weights.sum())


# --- going on ---


def resume(setting: Setting) -> Figure:
    """Trains three steps, saves, trains three more; then restores and trains those three again:
    every leaf has the same sha256."""
    built = setting.build(setting.small)
    state, skipped = _train(built, initial_state(setting, built), 3)
    with tempfile.TemporaryDirectory(prefix="gptjax-verify-") as folder:
        run = Run(folder)
        with run.lock():
            run.save(3, saved.trees(state))
            run.wait()
        state, more = _train(built, state, 3)
        with contextlib.redirect_stdout(io.StringIO()):
            resumed = saved.restore_or_init(Run(folder), built, setting.small, None).state
    wanted, found = digests(state), digests(_train(built, resumed, 3)[0])
    if skipped + more:
        return Figure(skipped + more, 0, "of 6 steps had no finite loss and gradient")
    wrong = [name for name in wanted if found[name] != wanted[name]]
    seal = hashlib.sha256("".join(wanted.values()).encode()).hexdigest()[:12]
    return Figure(
        len(wrong),
        0,
        f"of {len(wanted)} leaves differ after save and restore"
        + (f", the first is {wrong[0]}" if wrong else f"; sha256 {seal}"),
    )


def checkpoints(setting: Setting) -> Figure | Skipped:
    """Reads every file of every step that the run has saved, and compares it with the hashes that
    the step carries."""
    if setting.run is None:
        return Skipped("no run directory was given")
    folder = setting.run / "checkpoints"
    steps = (
        sorted(
            (place for place in folder.iterdir() if place.name.isdecimal()),
            key=lambda place: int(place.name),
        )
        if folder.is_dir()
        else []
    )
    damaged = []
    for place in steps:
        try:
            manifests.verify(place)
        except manifests.Damaged as damage:
            damaged.append(f"{place.name} ({damage})")
    return Figure(
        len(damaged),
        0,
        f"of {len(steps)} saved steps are damaged" + (f": {', '.join(damaged)}" if damaged else ""),
    )


def _train(
    built: program.Program, state: step.TrainState, count: int
) -> tuple[step.TrainState, int]:
    """The state after `count` more steps, and how many of them were skipped."""
    skipped = 0
    for number in range(int(state.step), int(state.step) + count):
        state, metrics = built.step(state, built.models, built.batch(number, state))
        skipped += int(metrics["skipped"])
    return state, skipped


def digests(tree: Any) -> dict[str, str]:
    """The sha256 of each leaf: its bytes, type and shape."""
    leaves = zip(paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True)
    return {
        name: hashlib.sha256(f"{leaf.dtype} {leaf.shape} ".encode() + leaf.tobytes()).hexdigest()
        for name, leaf in leaves
    }
