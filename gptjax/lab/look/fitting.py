"""Adam on a function of parameters and random draws: how lenses, autoencoders and toy models are
fitted here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Key
from gptjax.train.optim import Adam, Schedule, build_optimizer, learning_rate

COSINE = Schedule("cosine", warmup=20, floor=0.0)


class Fitted(NamedTuple):
    """Parameters after some steps, and what was seen on the way."""

    params: Any
    losses: Float[Array, " steps"]
    watched: Any
    """What `watch` gave after every `every` steps, stacked; `None` without one."""


def minimise(
    objective: Callable[[Any, Any, Key], Float[Array, ""]],
    params: Any,
    data: Any,
    *,
    steps: int,
    peak: float,
    seed: int = 0,
    schedule: Schedule = COSINE,
    watch: Callable[[Any], Any] | None = None,
    every: int = 1,
) -> Fitted:
    """Takes Adam steps, all in one compiled loop.

    Args:
      objective: (params, data, key) → loss; the key of step s is folded from the seed and s.
      steps: rounded up to a multiple of `every`.
      peak: highest learning rate.
    """
    optimizer = build_optimizer(Adam(peak=peak), learning_rate(schedule, peak, steps))

    def step(carry: Any, number: Array, data: Any) -> tuple[Any, Array]:
        params, state = carry
        key = jax.random.fold_in(jax.random.key(seed), number)
        loss, grads = jax.value_and_grad(objective)(params, data, key)
        updates, state = optimizer.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), loss

    @jax.jit
    def fitted(params: Any, data: Any) -> Fitted:
        def stretch(carry: Any, numbers: Array) -> tuple[Any, tuple[Array, Any]]:
            carry, losses = jax.lax.scan(lambda c, n: step(c, n, data), carry, numbers)
            return carry, (losses, None if watch is None else watch(carry[0]))

        numbers = jnp.arange(-(-steps // every) * every).reshape(-1, every)
        (params, _), (losses, watched) = jax.lax.scan(
            stretch, (params, optimizer.init(params)), numbers
        )
        return Fitted(params, losses.ravel(), watched)

    return fitted(params, data)
