"""Trains many adapters, each with its own learning rate, in one compiled program beside one base:
`vmap` of the training step over adapters, with the base as it is. Compares losses and time with as
many runs one after the other.

    python benchmarks/many_adapters.py --adapters 16 --steps 20
"""

from __future__ import annotations

import argparse
import functools
import time

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


def main() -> None:
    """Prints one line for each way, and the largest difference of a loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    base = jax.jit(functools.partial(model.init, CONFIG))(jax.random.key(0))
    rates = jnp.geomspace(1e-4, 3e-2, given.adapters)

    def begin(seed):
        trainable, rest = weights.adapt(weights.LoRA(rank=8), base, ROLES, jax.random.key(seed))
        return step.init(
            trainable, optim.build_optimizer(optim.AdamW(), lambda _: 0.0, ROLES)
        ), rest

    frozen = {"params": begin(0)[1]}
    states = [begin(seed)[0] for seed in range(given.adapters)]

    begun = time.perf_counter()
    alone, compiling = [], 0.0
    for state, rate in zip(states, rates, strict=True):
        compiled_at = time.perf_counter()
        one = jax.jit(functools.partial(train_step)).lower(rate, state, frozen, batch_at(0))
        one = one.compile()
        compiling += time.perf_counter() - compiled_at
        losses = []
        for number in range(given.steps):
            state, metrics = one(rate, state, frozen, batch_at(number))  # noqa: PLW2901
            losses.append(metrics["loss"])
        alone.append(jax.device_get(losses))
    seconds = time.perf_counter() - begun
    print(f"{given.adapters} runs: {seconds:.1f} s, of which compiling {compiling:.1f} s")

    begun = time.perf_counter()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    every = jax.jit(jax.vmap(train_step, in_axes=(0, 0, None, None)))
    every = every.lower(rates, stacked, frozen, batch_at(0)).compile()
    compiling = time.perf_counter() - begun
    losses = []
    for number in range(given.steps):
        stacked, metrics = every(rates, stacked, frozen, batch_at(number))
        losses.append(metrics["loss"])
    together = np.asarray(jax.device_get(losses)).T
    share = (time.perf_counter() - begun) / seconds
    print(
        f"one program: {share * seconds:.1f} s, of which compiling {compiling:.1f} s;"
        f" {share:.2f} of the time"
    )
    print(f"largest difference of a loss: {np.abs(together - np.asarray(alone)).max():.1e}")
    best = int(np.argmin(together[:, -1]))
    print(f"best rate {float(rates[best]):.1e}: loss {together[best, -1]:.4f}")
    adapters = weights.detach(combine(frozen, states[0].trainable))[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    print(f"{count:,} values an adapter beside {sum(x.size for x in jax.tree.leaves(base)):,}")


if __name__ == "__main__":
    main()
