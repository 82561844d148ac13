"""One training step: (state, batch) → (state, metrics), pure, compiled whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Int, Params
from gptjax.losses.cross_entropy import Objective, summary
from gptjax.train import spikes
from gptjax.train.norm import gradient_norm
from gptjax.train.optim import Moments


class TrainState(NamedTuple):
    """All that training remembers. Batches and random keys are functions of `step`."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


def init(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def train_step(
    state: TrainState,
    batch: Any,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    seed: int,
    micro_batches: int = 1,
    skip_norm: float = jnp.inf,
    skip_score: float = jnp.inf,
    dropout: bool = True,
    settle: Callable[[Params, dict[str, Array]], Params] | None = None,
    fault: Callable[[Array, Params], Params] | None = None,
    axis: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Reads one batch and improves the parameters once.

    A step whose loss or gradient norm is not finite, whose norm is not below `skip_norm`, or whose
    `spikes.score` is not below `skip_score`, changes neither parameters nor optimizer state; it is
    still counted in `step`, so the next batch is another one.

    Args:
      micro_batches: the batch is read in this many equal parts, whose sums are added; memory falls,
        the result does not change.
      settle: changes the new parameters by the sums that the objective reports (balancing of
        experts without a loss).
      fault: changes the gradients, given how many steps are finished; only drills have one.
      axis: name of a mapped axis over whose parts of the batch all is summed (`jax.pmap`,
        `jax.shard_map`); on a mesh XLA does that unasked.

    Returns:
      The new state, and `loss` (nats a token), `weight` (tokens that count), `gradient_norm`,
      `spike` (its score), `learning_rate`, `skipped` (0 or 1), and what `objectives.summary` makes
      of the objective's sums.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
    found = _gradients(state.params, batch, key, objective, micro_batches)
    (total, (weight, sums)), grads = found if axis is None else jax.lax.psum(found, axis)
    share = 1.0 / jnp.maximum(weight, 1e-6)
    loss, grads = total * share, jax.tree.map(lambda g: g * share, grads)
    grads = grads if fault is None else fault(state.step, grads)
    norm = gradient_norm(grads)
    spike = spikes.score(state.opt_state, loss, norm)
    sound = jnp.isfinite(loss) & jnp.isfinite(norm) & (norm < skip_norm) & (spike < skip_score)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, loss=loss, norm=norm, sound=sound
    )
    moved = optax.apply_updates(state.params, updates)
    moved = moved if settle is None else settle(moved, sums)

    def keep(new, old):
        return jnp.where(sound, new, old)  # selection, not multiplication: 0 · NaN is NaN

    def done(part):
        return isinstance(part, Moments)

    opt_state = jax.tree.map(
        lambda new, old: new if done(new) else keep(new, old),
        opt_state,
        state.opt_state,
        is_leaf=done,
    )
    new = TrainState(state.step + 1, jax.tree.map(keep, moved, state.params), opt_state)
    metrics = {
        "loss": loss,
        "weight": weight,
        "gradient_norm": norm,
        "spike": spike,
        "learning_rate": rate(state.step),
        "skipped": 1 - sound.astype(jnp.int32),
        **summary(sums, weight),
    }
    return new, metrics


def _gradients(
    params: Params, batch: Any, key: Any, objective: Objective, micro_batches: int
) -> tuple[tuple[Array, Any], Params]:
    """Sums of losses, of weights and metrics, and of gradients over the batch, part by part."""

    def total(params: Params, part: Any, key: Any) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        loss, weight, sums = objective(params, part, key)
        return loss, (weight, sums)

    value_and_grad = jax.value_and_grad(total, has_aux=True)
    if micro_batches == 1:
        return value_and_grad(params, batch, key)

    def add(sums: Any, numbered: Any) -> tuple[Any, None]:
        part, i = numbered
        found = value_and_grad(params, part, None if key is None else jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, sums, found), None

    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))[0]


def evaluate_step(params: Params, batch: Any, *, objective: Objective) -> dict[str, Array]:
    """Sums over one batch, without dropout: `loss` in nats, `weight`, and what the objective
    tells."""
    loss, weight, sums = objective(params, batch, None)
    return {"loss": loss, "weight": weight, **sums}
