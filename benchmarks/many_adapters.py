"""Trains many adapters, each with its own learning rate, in one compiled program beside one base:
the training step is mapped over adapters, all at once (`vmap`) or in turn (`lax.map`), with the
base as it is. Compares losses and processor time with as many runs, each with a program of its own.

    python benchmarks/many_adapters.py --adapters 16 --steps 20
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model, weights
from gptjax.core.trees import combine
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.train import optim, step

CONFIG = model.llama(
    "7b",
    num_layers=4,
    vocab_size=257,
    compute="float32",
    width=128,
    num_heads=4,
    num_kv_heads=4,
    feed_forward=384,
    context=64,
    layers="scan",
)
ROLES = model.roles(CONFIG)


def train_step(rate, state, frozen, batch):
    """One step with this learning rate."""
    optimizer = optim.build_optimizer(optim.AdamW(), lambda number: rate, ROLES)
    return step.train_step(
        state,
        frozen,
        batch,
        loss=CrossEntropy().build(CONFIG),
        optimizer=optimizer,
        rate=lambda number: rate,
        seed=0,
    )


def batch_at(number: int) -> Batch:
    """A batch of texts in which some token follows each one more often than others."""
    draws = np.random.default_rng(number)
    ids = np.cumsum(draws.integers(1, 4, (4, CONFIG.context + 1)), axis=1).astype(np.int32) % 257
    return Batch(ids[:, :-1], ids[:, 1:], np.ones((4, CONFIG.context), np.float32))


def at_once(rates: jax.Array, states: Any, frozen: dict, batch: Batch) -> tuple[Any, dict]:
    """One step of every adapter: the base is read once, activations are those of all."""
    return jax.vmap(train_step, in_axes=(0, 0, None, None))(rates, states, frozen, batch)


def in_turn(rates: jax.Array, states: Any, frozen: dict, batch: Batch) -> tuple[Any, dict]:
    """The same, one after the other, with the activations of one."""
    return jax.lax.map(lambda own: train_step(*own, frozen, batch), (rates, states))


def alone(states: list, rates: jax.Array, frozen: dict, steps: int) -> tuple[np.ndarray, float]:
    """Losses [adapters steps] of one run after the other, and the seconds of processor time that
    compiling the step of one took."""
    begun = time.process_time()
    one = jax.jit(train_step).lower(rates[0], states[0], frozen, batch_at(0)).compile()
    compiling, losses = time.process_time() - begun, []
    for state, rate in zip(states, rates, strict=True):
        losses.append([])
        for number in range(steps):
            state, metrics = one(rate, state, frozen, batch_at(number))  # noqa: PLW2901
            losses[-1].append(metrics["loss"])
    return np.asarray(jax.device_get(losses)), compiling


def together(
    way: Callable, states: list, rates: jax.Array, frozen: dict, steps: int
) -> tuple[np.ndarray, float]:
    """The same, of all runs in one program."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    begun = time.process_time()
    every = jax.jit(way).lower(rates, stacked, frozen, batch_at(0)).compile()
    compiling, losses = time.process_time() - begun, []
    for number in range(steps):
        stacked, metrics = every(rates, stacked, frozen, batch_at(number))
        losses.append(metrics["loss"])
    return np.asarray(jax.device_get(losses)).T, compiling


def main() -> None:
    """Prints the processor time of each way, and for each rate the largest difference of a loss: of
    one program from runs alone, and, as a measure of it, of runs alone whose frozen weights were
    changed by a rounding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    base = jax.jit(functools.partial(model.init, CONFIG))(jax.random.key(0))
    rates = jnp.geomspace(1e-4, 3e-2, given.adapters)

    @jax.jit
    def begin(seed):
        trainable, rest = weights.adapt(weights.LoRA(rank=8), base, ROLES, jax.random.key(seed))
        return step.init(
            trainable, optim.build_optimizer(optim.AdamW(), lambda _: 0.0, ROLES)
        ), rest

    frozen = {"params": begin(0)[1]}
    states = [begin(seed)[0] for seed in range(given.adapters)]
    nudged = jax.tree.map(lambda leaf: leaf * (1 + 1e-7), frozen)
    ways = {
        "alone": functools.partial(alone, states, rates, frozen, given.steps),
        "in turn": functools.partial(together, in_turn, states, rates, frozen, given.steps),
        "at once": functools.partial(together, at_once, states, rates, frozen, given.steps),
    }
    found, whole = {}, None
    for name, way in ways.items():
        begun = time.process_time()
        found[name], compiling = way()
        stepping = time.process_time() - begun - compiling
        total = stepping + compiling * (given.adapters if name == "alone" else 1)
        whole = total if whole is None else whole
        print(
            f"{name}: steps {stepping:.1f} s of processor time, compiling {compiling:.1f} s a"
            f" program; in all {total:.1f} s, {total / whole:.2f} of as many runs",
            flush=True,
        )
    nudged = jax.tree.map(lambda leaf: leaf * (1 + 1e-7), frozen)
    found["a rounding"], _ = alone(states, rates, nudged, given.steps)
    print("rate     first   last    in turn  at once  a rounding")
    for row, rate in enumerate(rates):
        own = found["alone"][row]
        names = ("in turn", "at once", "a rounding")
        apart = "  ".join(f"{np.abs(found[name][row] - own).max():.1e}" for name in names)
        print(f"{float(rate):.1e}  {own[0]:.4f}  {own[-1]:.4f}  {apart}")
    adapters = weights.detach(combine(frozen, states[0].trainable))[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    print(f"{count:,} values an adapter beside {sum(x.size for x in jax.tree.leaves(base)):,}")


if __name__ == "__main__":
    main()
