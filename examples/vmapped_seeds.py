"""Trains eight seeds as one program: `jax.vmap` over initialisation and step.

    python examples/vmapped_seeds.py            (half a minute of one core)

A model is a function and its parameters are a tree, so eight models are the same tree with one more
axis. One seed says little: the spread printed at the end is what two settings have to differ by
before the difference means anything. What to type next:

    gptjax sweep configs/quickstart.py --seeds 8 --optim.peak 1e-3 3e-3   (the same as a command)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from gptjax import model
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.train import step

SEEDS, ROWS, LENGTH, VOCABULARY = 8, 16, 24, 16
CONFIG = model.small("tiny", vocab_size=VOCABULARY, context=LENGTH)


def batch(number: jax.Array, seed: jax.Array) -> Batch:
    """Rows that repeat a random pattern of six tokens: after six steps all can be known."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    pattern = jax.random.randint(key, (ROWS, 6), 0, VOCABULARY)
    ids = jnp.tile(pattern, (1, LENGTH // 6 + 1))[:, : LENGTH + 1]
    return Batch(ids[:, :-1], ids[:, 1:], jnp.ones((ROWS, LENGTH)).at[:, :5].set(0))


def main(steps: int = 300) -> None:
    """Trains all seeds, then one of them alone."""
    optimizer = optax.adam(3e-3)
    advance = functools.partial(
        step.train_step,
        loss=CrossEntropy().build(CONFIG),
        optimizer=optimizer,
        rate=optax.constant_schedule(3e-3),
    )

    def begin(seed: jax.Array) -> step.TrainState:
        return step.init(model.init(CONFIG, jax.random.key(seed)), optimizer)

    def advance_many(state: step.TrainState, seed: jax.Array) -> tuple[step.TrainState, jax.Array]:
        """All steps of one seed in one compiled loop; returns the losses [steps]."""

        def body(state: step.TrainState, number: jax.Array) -> tuple[step.TrainState, jax.Array]:
            state, metrics = advance(state, {}, batch(number, seed), seed=seed)
            return state, metrics["loss"]

        return jax.lax.scan(body, state, jnp.arange(steps))

    seeds = jnp.arange(SEEDS)
    states = jax.vmap(begin)(seeds)
    kernel = states.trainable["layers"]["mlp"]["up"]["kernel"]
    print(f"{SEEDS} models in one tree; one of its leaves: {kernel.shape}")
    states, losses = jax.jit(jax.vmap(advance_many))(states, seeds)  # [seeds steps]

    for number in sorted({0, steps // 3, 2 * steps // 3, steps - 1}):
        row = " ".join(f"{x:6.3f}" for x in losses[:, number])
        print(f"step {number + 1:4}  {row}")
    last = losses[:, -10:].mean(1)
    spread = last.std(ddof=1)
    print(
        f"last ten steps: {last.mean():.3f} ± {spread:.3f} nats (standard deviation of the seeds)"
    )

    _, alone = jax.jit(advance_many)(begin(seeds[3]), seeds[3])
    apart = jnp.abs(alone - losses[3])  # rounding differs, and training makes it grow
    print(f"seed 3 alone and among eight: {apart[:20].max():.1g} nats apart in 20 steps, ", end="")
    print(f"{apart.max():.1g} in all")


if __name__ == "__main__":
    main()
