"""One training step, pure and compiled whole: (state, frozen, batch) → (state, metrics)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax.core.arrays import Array, Int, Key, Params
from gptjax.core.trees import combine, trainable_part
from gptjax.data.layouts import Batch
from gptjax.losses import Frozen, Loss, Metrics
from gptjax.train import spikes
from gptjax.train.norm import gradient_norm
from gptjax.train.updates import Moments

Objective = Callable[[Params, Batch, Key | None], tuple[Array, tuple[Array, Metrics]]]
"""(trainable, batch, key) → sum, (weight, metrics): the loss as a function of what trains."""

Gradients = Callable[
    [Objective, Params, Batch, Key | None], tuple[tuple[Array, tuple[Array, Metrics]], Params]
]
"""(objective, trainable, batch, key) → what the objective returns, and its summed gradients."""


class TrainState(NamedTuple):
    """Everything that training changes. Batches and random keys are functions of `step`."""

    step: Int[Array, ""]
    """Number of finished steps."""
    trainable: Params
    """The weights that train; `None` in place of each that is frozen."""
    opt_state: optax.OptState


def init(trainable: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def default_gradients(
    objective: Objective, trainable: Params, batch: Batch, key: Key | None
) -> tuple[tuple[Array, tuple[Array, Metrics]], Params]:
    """Differentiates the sum over the whole batch."""
    return jax.value_and_grad(objective, has_aux=True)(trainable, batch, key)


def train_step(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    seed: int | Int[Array, ""],
    micro_batches: int = 1,
    skip_norm: float = jnp.inf,
    skip_score: float = jnp.inf,
    dropout: bool = True,
    post_update: Callable[[Params, Metrics], Params] | None = None,
    gradients: Gradients = default_gradients,
    axis: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one optimizer step on one batch.

    A step is skipped if no weight of its batch counts, its loss or gradient norm is not finite, the
    norm is not below `skip_norm`, or `spikes.score` is not below `skip_score`. It then changes
    neither parameters nor optimizer state, but counts in `step`, so that the next batch is another
    one.

    Args:
      frozen: weights that do not train, see `losses.Frozen`; `{}` if there are none.
      micro_batches: number of equal parts in which the batch is processed. Their sums are added up:
        memory falls, the result stays the same.
      post_update: changes the updated parameters by the summed metrics (balancing of experts
        without a loss).
      gradients: differentiates the objective of a micro-batch, for example clipping each example.
      axis: name of a mapped axis over whose parts of the batch everything is summed (`jax.pmap`,
        `jax.shard_map`). On a mesh XLA does that by itself.

    Returns:
      The new state, and `loss` (nats per token), `weight` (tokens that count), `gradient_norm`,
      `spike` (its score), `learning_rate`, `skipped` (0 or 1), and the metrics of the loss.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
    batch = loss.foresee(combine(frozen, state.trainable), frozen, batch)
    objective = _objective(loss, frozen)
    outputs = _summed(gradients, objective, state.trainable, batch, key, micro_batches)
    (total, (weight, sums)), grads = outputs if axis is None else jax.lax.psum(outputs, axis)
    share = 1.0 / jnp.where(weight > 0, weight, 1.0)
    mean, grads = total * share, jax.tree.map(lambda g: g * share, grads)
    norm = gradient_norm(grads)
    spike = spikes.score(state.opt_state, mean, norm)
    finite = jnp.isfinite(mean) & jnp.isfinite(norm)
    sound = (weight > 0) & finite & (norm < skip_norm) & (spike < skip_score)
    facts = {"step": state.step, "loss": mean, "norm": norm, "sound": sound}
    new = _updated(state, frozen, grads, sums, optimizer, post_update, facts)
    metrics = {name: reduction(sums, weight) for name, reduction in loss.metrics().items()}
    metrics |= {"loss": jnp.where(weight > 0, mean, jnp.nan), "weight": weight}
    metrics |= {"gradient_norm": norm, "spike": spike, "learning_rate": rate(state.step)}
    return new, metrics | {"skipped": 1 - sound.astype(jnp.int32)}


def _updated(
    state: TrainState,
    frozen: Frozen,
    grads: Params,
    sums: Metrics,
    optimizer: optax.GradientTransformation,
    post_update: Callable[[Params, Metrics], Params] | None,
    facts: dict[str, Array],
) -> TrainState:
    """Applies the optimizer; a step that is not `sound` changes `step` alone.

    Args:
      facts: what transformations may know of the step: `step`, `loss`, `norm`, `sound`.
    """
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.trainable, **facts
    )
    updated: Any = optax.apply_updates(state.trainable, updates)
    if post_update is not None:
        updated = trainable_part(post_update(combine(frozen, updated), sums), updated)
    sound = facts["sound"]
    kept = _where(sound, (updated, opt_state), (state.trainable, state.opt_state))
    return TrainState(state.step + 1, *kept)


def _objective(loss: Loss, frozen: Frozen) -> Objective:
    """Returns a loss as a function of what trains."""

    def objective(
        trainable: Params, part: Batch, key: Key | None
    ) -> tuple[Array, tuple[Array, Metrics]]:
        total, weight, sums = loss(combine(frozen, trainable), frozen, part, key)
        return total, (weight, sums)

    return objective


def _where(sound: Array, new: Any, old: Any) -> Any:
    """Selects (a product would make NaN of 0 · NaN). `Moments` have done so themselves."""

    def select(new: Any, old: Any) -> Any:
        return new if isinstance(new, Moments) else jnp.where(sound, new, old)

    return jax.tree.map(select, new, old, is_leaf=lambda part: isinstance(part, Moments))


def _summed(
    gradients: Gradients,
    objective: Objective,
    trainable: Params,
    batch: Batch,
    key: Key | None,
    micro_batches: int,
) -> tuple[tuple[Array, tuple[Array, Metrics]], Params]:
    """Adds up losses, weights, metrics and gradients over the micro-batches."""
    if micro_batches == 1:
        return gradients(objective, trainable, batch, key)

    def add(sums: Any, numbered: Any) -> tuple[Any, None]:
        part, i = numbered
        own = None if key is None else jax.random.fold_in(key, i)
        return jax.tree.map(jnp.add, sums, gradients(objective, trainable, part, own)), None

    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda: gradients(objective, trainable, first, key))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))[0]


def evaluate_step(params: Params, frozen: Frozen, batch: Batch, *, loss: Loss) -> Metrics:
    """Returns sums over one batch, without dropout: `loss` in nats, `weight`, and the loss's."""
    total, weight, sums = loss(params, frozen, batch, None)
    return {"loss": total, "weight": weight, **sums}
