"""Spikes: steps whose loss or gradient norm lies far above those of the steps before.

A step's score is the larger of two robust z-scores, (x − median) / (1.4826 · median distance from
the median), of the loss and of the logarithm of the gradient norm over the last `WINDOW` steps that
were taken. What it looks back on is part of the optimizer's state, so a run that was interrupted
judges its steps exactly as one that was not. Only what lies above is a spike; falling fast is no
fault.

Source of the robust score: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers, chapter 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Float, Int

WINDOW = 64
"""Number of previous steps to compare with; until then nothing is a spike."""

LEAST = (0.05, 0.1)
"""Lower bounds of the spread of the loss (nats) and of ln norm: in a quiet stretch a small
wiggle is no spike."""


class Recent(NamedTuple):
    """State of `watch`: loss and ln gradient norm of the last steps that were taken, oldest
    first."""

    count: Int[Array, ""]
    values: Float[Array, "2 64"]


def watch() -> optax.GradientTransformationExtraArgs:
    """Remembers each step's `loss` and gradient `norm`, where the caller tells them; updates stay
    as they are."""

    def init(params: Any) -> Recent:
        return Recent(jnp.zeros((), jnp.int32), jnp.zeros((2, WINDOW), jnp.float32))

    def update(
        updates: Any,
        state: Recent,
        params: Any = None,
        *,
        loss: Array | None = None,
        norm: Array | None = None,
        **_: Any,
    ) -> tuple[Any, Recent]:
        if loss is None or norm is None:
            return updates, state
        values = jnp.concatenate([state.values[:, 1:], _measured(loss, norm)[:, None]], axis=1)
        return updates, Recent(jnp.minimum(state.count + 1, WINDOW), values)

    return optax.GradientTransformationExtraArgs(init, update)


def score(opt_state: Any, loss: Array, norm: Array) -> Array:
    """How many robust deviations a step lies above the ones before; 0 as long as too few were
    taken, or if the optimizer does not `watch`."""
    found = [
        s
        for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, Recent))
        if isinstance(s, Recent)
    ]
    if not found:
        return jnp.zeros(())
    count, values = found[0]
    center = jnp.median(values, axis=1)
    spread = 1.4826 * jnp.median(jnp.abs(values - center[:, None]), axis=1)
    return jnp.where(
        count < WINDOW,
        0.0,
        jnp.max((_measured(loss, norm) - center) / jnp.maximum(spread, jnp.asarray(LEAST))),
    )


def _measured(loss: Array, norm: Array) -> Array:
    return jnp.stack([loss, jnp.log(jnp.maximum(norm, 1e-30))]).astype(jnp.float32)
