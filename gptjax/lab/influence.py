"""Influence of training rows on predictions: how much a query's loss would rise without each row.

Retraining without a row says it exactly (`left_out`), and is affordable only for tiny models.
Gradients say it nearly: read `gradient_influence`, the similarity of a row's gradient and a
query's; then `projected_gradients` and `projected_influence`, which also take out what all rows
have in common. `rank_agreement` compares the two. A positive number is a row that helps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.data.layouts import Batch
from gptjax.lab.examples import Example, per_example, squared_norm
from gptjax.train.step import Objective


def gradient_influence(
    objective: Objective, kind: Literal["dot", "cosine"] = "dot", **how: Any
) -> Callable[[Params, Batch, Batch], Float[Array, "Q N"]]:
    """Returns (params, rows, queries) → the influence of each row on each query, without dropout.

    `dot`: by how many nats a step of size 1 against the gradient of the row's mean loss lowers the
    query's mean loss, to first order. Added up over checkpoints, each times its learning rate, it
    is TracIn. `cosine`: the same without the lengths of the gradients, so that rows that are hard
    for the model do not lead every list; 0 where a gradient is zero.

    Memory holds the gradients of all queries, and one of a row.

    Args:
      how: see `per_example`; it goes for the rows.

    Sources: Pruthi et al. 2020, Estimating Training Data Influence by Tracing Gradient Descent,
    arXiv:2002.08484; the cosine: Barshan et al. 2020, RelatIF, arXiv:2003.11630.
    """

    def influence(params: Params, rows: Batch, queries: Batch) -> Array:
        asked = per_example(objective, lambda e: _direction(e, kind))(params, queries)

        def against(example: Example) -> Array:
            own = _direction(example, kind)
            products = jax.tree.map(lambda q, g: q.reshape(len(q), -1) @ g.reshape(-1), asked, own)
            return sum(jax.tree.leaves(products), jnp.zeros(len(queries.tokens)))

        return per_example(objective, against, **how)(params, rows).T

    return influence


def _direction(example: Example, kind: str = "dot") -> Params:
    """The gradient of a row's mean loss in float32; for `cosine` of length 1."""
    mean = 1 / jnp.maximum(example.weight, 1e-30)
    gradient = jax.tree.map(lambda g: g.astype(jnp.float32) * mean, example.gradient)
    if kind != "cosine":
        return gradient
    norm = jnp.sqrt(squared_norm(gradient))
    return jax.tree.map(lambda g: jnp.where(norm > 0, g / jnp.maximum(norm, 1e-30), 0.0), gradient)


def projected_gradients(
    objective: Objective, size: int, **how: Any
) -> Callable[[Params, Batch, Key], Float[Array, "B K"]]:
    """Returns (params, batch, key) → the gradient of each row's mean loss in `size` numbers, whose
    inner products are those of the gradients: without bias over keys, with a variance of about
    their squared lengths / `size`.

    Each parameter is added, with a random sign, to one random number of the sketch, so that a row
    costs one pass over its gradient and there is no matrix. The same key gives the same sketch;
    rows and queries need that of one key. Dropout is off.

    Args:
      how: see `per_example`.

    Raises:
      ValueError: `size` is less than 1.

    Source: the sketch: Weinberger et al. 2009, Feature Hashing for Large Scale Multitask Learning,
    arXiv:0902.2206.
    """
    if size < 1:
        raise ValueError(f"size is {size}; a sketch needs at least 1 number.")

    def projected(params: Params, batch: Batch, key: Key) -> Array:
        leaves = jax.tree.leaves(params)
        keys = jax.random.split(key, 2 * len(leaves)).reshape(len(leaves), 2)
        places = [
            jax.random.randint(k[0], (leaf.size,), 0, size)
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        signs = [
            jax.random.rademacher(k[1], (leaf.size,), jnp.float32)
            for k, leaf in zip(keys, leaves, strict=True)
        ]

        def sketch(example: Example) -> Array:
            out = jnp.zeros(size)
            gradient = jax.tree.leaves(_direction(example))
            for leaf, place, sign in zip(gradient, places, signs, strict=True):
                out = out.at[place].add(sign * leaf.reshape(-1))
            return out

        return per_example(objective, sketch, **how)(params, batch)

    return projected


def projected_influence(
    rows: Float[Array, "N K"], queries: Float[Array, "Q K"], damping: float = 0.1
) -> Float[Array, "Q N"]:
    """Returns the influence of rows on queries from their gradients, or sketches of these: by how
    many nats a query's mean loss would rise without the row, if the loss were a parabola whose
    curvature is the mean outer product of the rows' gradients. Its order means more than its size.

    Directions that all rows share count less than by `gradient_influence`. TRAK takes gradients of
    the model's output and several models; add up influences of several checkpoints for the latter.

    Args:
      damping: added to the curvature, as a share of its mean eigenvalue over the rows' span; more
        brings the order nearer to that of plain inner products.

    Raises:
      ValueError: `damping` is not positive.

    Sources: Park et al. 2023, TRAK, arXiv:2303.14186; Koh and Liang 2017, Understanding Black-box
    Predictions via Influence Functions, arXiv:1703.04730.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; it needs a positive number.")
    count, size = rows.shape
    curvature = rows.T @ rows / count
    level = damping * jnp.trace(curvature) / min(count, size)
    solved = jnp.linalg.solve(curvature + jnp.maximum(level, 1e-30) * jnp.eye(size), queries.T)
    return (rows @ solved).T / count


def left_out(
    train: Callable[[Float[Array, " N"]], Any],
    losses: Callable[[Any], Float[Array, " Q"]],
    count: int,
) -> Float[Array, "Q N"]:
    """Returns by how much each query's loss rises when the model is trained without each row: N + 1
    trainings, one after the other, in one compiled program.

    Args:
      train: (weight of each row, 1 or 0) → parameters; the same weights give the same parameters.
      losses: parameters → the loss of each query.
      count: N.
    """
    masks = jnp.concatenate([1 - jnp.eye(count), jnp.ones((1, count))])
    found = jax.lax.map(lambda mask: losses(train(mask)), masks)  # the whole one in the same loop
    return (found[:-1] - found[-1:]).T


class Agreement(NamedTuple):
    """Spearman's rank correlation of two rankings of the rows, a mean over queries."""

    mean: float
    low: float
    high: float
    """Ends of a 95 % interval over queries, by bootstrap; the rows are taken as given."""
    each: tuple[float, ...]
    """Of each query; 0 where a ranking has all rows equal."""


def rank_agreement(
    scores: Float[np.ndarray, "Q N"], truth: Float[np.ndarray, "Q N"], draws: int = 2000
) -> Agreement:
    """Compares the order that scores give to the rows with the true one, query by query.

    Source: Spearman 1904; ties share the mean of their ranks.
    """
    pairs = zip(np.asarray(scores), np.asarray(truth), strict=True)
    each = np.asarray([_correlation(_ranks(a), _ranks(b)) for a, b in pairs])
    drawn = np.random.default_rng(0).integers(0, len(each), (draws, len(each)))
    low, high = np.quantile(each[drawn].mean(1), [0.025, 0.975])
    return Agreement(float(each.mean()), float(low), float(high), tuple(each.tolist()))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0
