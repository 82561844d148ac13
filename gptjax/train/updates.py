"""Optax transformations of our own: Adam written in place, clipping, the learning rate of the step,
and averaged weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Int, Params
from gptjax.sharding.constrain import platform
from gptjax.train.norm import gradient_norm

if TYPE_CHECKING:
    from gptjax.train.optim import AdamW
    from gptjax.weights import Role


class Moments(NamedTuple):
    """State of `in_place`: Adam's, under the names that Optax gives it."""

    count: Int[Array, ""]
    mu: Params
    nu: Params


def in_place(
    adam: optax.GradientTransformation, config: AdamW
) -> optax.GradientTransformationExtraArgs:
    """Optax's Adam with its direction read from the new moments alone, which can then be written
    over the old ones.

    Of old moments that are read for the direction too, XLA keeps copies until it is made. For the
    same reason moments stay as they are here, not in `train_step`, where the caller tells that a
    step is not `sound`.
    """

    def init(params: Params) -> Moments:
        return Moments(*adam.init(params))

    def update(
        grads: Params,
        state: Moments,
        params: Params = None,
        *,
        sound: Array | bool = True,
        **_: Any,
    ) -> tuple[Params, Moments]:
        moments = Moments(*adam.update(grads, optax.ScaleByAdamState(*state))[1])
        moments = jax.tree.map(lambda new, old: jnp.where(sound, new, old), moments, state)
        moments = (
            jax.lax.optimization_barrier(moments) if platform() == "cpu" else moments
        )  # other backends write all three in one pass
        count = optax.safe_increment(state.count)
        mean, square = (
            optax.tree.bias_correction(moments.mu, config.beta1, count),
            optax.tree.bias_correction(moments.nu, config.beta2, count),
        )
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.epsilon), mean, square), moments

    return optax.GradientTransformationExtraArgs(init, update)


def clip_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients of a larger norm down to it. Source: Pascanu et al. 2013, arXiv:1211.5063.

    By one factor, where Optax divides: a quotient is written out before the two moments read it, a
    product is made again for each.
    """

    def update(
        grads: Params, state: Any, params: Params = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Params, Any]:
        factor = jnp.minimum(
            1.0, limit / jnp.maximum(gradient_norm(grads) if norm is None else norm, 1e-30)
        )
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by −rate(step), as `optax.scale_by_learning_rate` does.

    The caller's `step` counts skipped steps too, so the rate that is applied is the one of the
    schedule and of the log. Without it the transformation counts for itself.
    """

    def init(params: Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: Params,
        state: optax.ScaleByScheduleState,
        params: Params = None,
        *,
        step: Array | None = None,
        **_: Any,
    ) -> tuple[Params, optax.ScaleByScheduleState]:
        scale = -1 * rate(state.count if step is None else step)
        scaled = jax.tree.map(lambda u: jnp.array(scale, dtype=u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def clip_weights(limit: float) -> optax.GradientTransformation:
    """Changes updates so that every updated weight lies within ± limit."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u, p: jnp.clip(p + u, -limit, limit) - p, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def orthogonalised(role: Role, path: tuple) -> bool:
    """Whether Muon makes updates of the parameter at a path orthogonal."""
    return bool(role.stacked and role.inputs) and path[0].key != "ahead"


class Average(NamedTuple):
    """State of `average`: the running average of the weights."""

    ema: Any


def average(decay: float) -> optax.GradientTransformationExtraArgs:
    """Keeps an exponential moving average of the weights; updates stay unchanged.

    After t steps the decay is at most (1 + t) / (10 + t), so that initial weights do not dominate a
    short run. Source: Polyak and Juditsky 1992; the warm-up of the decay is TensorFlow's
    `ExponentialMovingAverage(num_updates)`.
    """

    def update(
        updates: Params,
        state: Average,
        params: Params = None,
        *,
        step: Array | None = None,
        **_: Any,
    ) -> tuple[Params, Average]:
        now = decay if step is None else jnp.minimum(decay, (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(
            lambda e, p, u: now * e + (1 - now) * (p + u), state.ema, params, updates
        )
        return updates, Average(ema)

    return optax.GradientTransformationExtraArgs(
        lambda params: Average(jax.tree.map(jnp.copy, params)), update
    )


def averaged(opt_state: Any) -> Any | None:
    """The averaged weights in an optimizer state, or none."""
    averages = [
        s
        for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, Average))
        if isinstance(s, Average)
    ]
    return averages[0].ema if averages else None
