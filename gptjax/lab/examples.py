"""Gradients of single examples, and what is made of them.

`per_example` is the one primitive: a reduction of each row's gradient, stacked over the rows or
added up. Gradients themselves need B times the memory of one; their norms, cosines or clipped sum
do not, since each is reduced as soon as it is there. Read `Example`, then `per_example`, then the
reductions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.data.layouts import Batch
from gptjax.sharding.constrain import ROWS, axis_size, current_mesh
from gptjax.train.step import Objective


class Example(NamedTuple):
    """One row of a batch, differentiated."""

    loss: Float[Array, ""]
    """Its sum, as the objective gives it."""
    weight: Float[Array, ""]
    """What the sum is divided by: for most losses the number of tokens that count."""
    gradient: Params
    """Of the sum."""


Reduction = Callable[[Example], Any]


def whole(example: Example) -> Example:
    """Keeps everything."""
    return example


def per_example(
    objective: Objective,
    reduce: Reduction = whole,
    *,
    map: Literal["scan", "vmap"] = "scan",  # noqa: A002
    at_once: int = 1,
    add: bool = False,
    present: Callable[[Batch], Array] | None = None,
) -> Callable[..., Any]:
    """Returns (params, batch, key) → what `reduce` makes of each row, stacked over the rows [B …].

    Each row is differentiated as a batch of its own, with a random key of its own, so the result
    depends neither on the way the rows are mapped nor on the mesh. There each device differentiates
    its own rows, with the weights in full.

    Args:
      objective: (params, batch, key) → sum, (weight, metrics), as `train_step` has it.
      reduce: what to keep of a row.
      map: `scan` takes rows one after the other, `vmap` all at once. On a CPU the first is the
        faster, and needs memory for one gradient.
      at_once: rows that `scan` differentiates together; it has to divide the rows of a device.
      add: add up what `reduce` gives, instead of stacking it.
      present: (a batch of one row) → whether it counts. Rows that do not are not computed in `scan`
        with `at_once` 1; what `reduce` gives of them is zeros.
    """

    def several(params: Params, batch: Batch, key: Key | None, numbers: Array) -> Any:
        """The rows of one device."""

        def step(rows: tuple[Batch, Array]) -> Any:
            own = None if key is None else jax.random.fold_in(key, rows[1])
            return _one(objective, reduce, present, params, rows[0], own)

        if map == "vmap":
            made = jax.vmap(step)((batch, numbers))
            return _added(made) if add else made
        return _scanned(step, (batch, numbers), at_once, add)

    def own_rows(params: Params, batch: Batch, key: Key | None, numbers: Array) -> Any:
        made = several(params, batch, key, numbers)
        return jax.lax.psum(made, ROWS) if add else made

    def over_mesh(params: Params, batch: Batch, key: Key | None = None) -> Any:
        numbers = jnp.arange(len(batch.tokens), dtype=jnp.int32)
        if axis_size(*ROWS) == 1:
            return several(params, batch, key, numbers)
        out, specs = P() if add else P(ROWS), (P(), P(ROWS), P(), P(ROWS))
        mapped = jax.shard_map(
            own_rows, mesh=current_mesh(), in_specs=specs, out_specs=out, check_vma=False
        )
        return mapped(params, batch, key, numbers)

    return over_mesh


def _one(
    objective: Objective,
    reduce: Reduction,
    present: Callable[[Batch], Array] | None,
    params: Params,
    row: Batch,
    key: Key | None,
) -> Any:
    """What is kept of one row; zeros of one that is not present."""
    single = jax.tree.map(lambda x: x[None], row)

    def compute() -> Any:
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (weight, _)), grads = gradient(params, single, key)
        return reduce(Example(loss, weight, grads))

    if present is None:
        return compute()
    shapes = jax.eval_shape(compute)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.cond(present(single), compute, lambda: zeros)


def _scanned(step: Callable[[Any], Any], rows: Any, at_once: int, add: bool) -> Any:
    """Takes the rows one after the other, or a few at a time."""
    count = jax.tree.leaves(rows)[0].shape[0]
    if count % at_once:
        raise ValueError(f"at_once is {at_once}, which does not divide {count} rows.")
    parts = jax.tree.map(lambda x: x.reshape(count // at_once, at_once, *x.shape[1:]), rows)

    def made(part: Any) -> Any:
        if at_once > 1:
            return jax.vmap(step)(part)
        return jax.tree.map(lambda x: x[None], step(jax.tree.map(lambda x: x[0], part)))

    if not add:
        stacked = jax.lax.map(made, parts)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), stacked)
    shapes = jax.eval_shape(lambda: _added(made(jax.tree.map(lambda x: x[0], parts))))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def fold(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, _added(made(part))), None

    return jax.lax.scan(fold, zeros, parts)[0]


def _added(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sum(0), tree)


# --- reductions


def squared_norms(tree: Params) -> dict[str, Float[Array, "..."]]:
    """Returns the squared norm of each leaf by its path; of the stacked layers one for each
    layer [L]."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = tuple(range(1, leaf.ndim)) if is_stacked(name) else None
        found[name] = jnp.square(leaf.astype(jnp.float32)).sum(axes)
    return found


def is_stacked(name: str) -> bool:
    """Returns whether the leaf at a path has a leading dimension of layers."""
    return "layers" in name.split("/")


def squared_norm(tree: Params) -> Float[Array, ""]:
    """Returns the sum of the squares of all leaves, in float32."""
    return sum(
        (jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(tree)),
        jnp.zeros(()),
    )


def dot(a: Params, b: Params) -> Float[Array, ""]:
    """Returns the inner product of two trees, in float32."""
    products = jax.tree.map(
        lambda x, y: jnp.vdot(x.astype(jnp.float32), y.astype(jnp.float32)), a, b
    )
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def gradient_norms(objective: Objective, **how: Any) -> Callable[..., Float[Array, " B"]]:
    """Returns (params, batch, key) → the norm of each row's gradient of its mean loss.

    Args:
      how: see `per_example`.
    """

    def norm(example: Example) -> Array:
        return jnp.sqrt(squared_norm(example.gradient)) / jnp.maximum(example.weight, 1e-30)

    return per_example(objective, norm, **how)


def gradient_cosines(objective: Objective, **how: Any) -> Callable[..., Float[Array, " B"]]:
    """Returns (params, direction, batch, key) → the cosine of each row's gradient and a direction,
    a tree like the parameters, such as the gradient of a batch; 0 where either is zero.

    Args:
      how: see `per_example`.
    """

    def cosines(params: Params, direction: Params, batch: Batch, key: Key | None = None) -> Array:
        length = jnp.sqrt(squared_norm(direction))

        def cosine(example: Example) -> Array:
            norm = jnp.sqrt(squared_norm(example.gradient)) * length
            inner = dot(example.gradient, direction)
            return jnp.where(norm > 0, inner / jnp.where(norm > 0, norm, 1.0), 0.0)

        return per_example(objective, cosine, **how)(params, batch, key)

    return cosines


def fisher_diagonal(objective: Objective, **how: Any) -> Callable[..., Params]:
    """Returns (params, batch, key) → the diagonal of the empirical Fisher matrix: the mean over
    rows of the squared gradient of each parameter.

    It takes the targets of the data; Fisher's own matrix takes those that the model would draw.
    Source: Kunstner et al. 2019, Limitations of the Empirical Fisher Approximation,
    arXiv:1905.12558, which says how far the two can be apart.

    Args:
      how: see `per_example`.
    """

    def square(example: Example) -> Params:
        mean = 1 / jnp.maximum(example.weight, 1e-30)
        return jax.tree.map(lambda g: jnp.square(g * mean), example.gradient)

    def diagonal(params: Params, batch: Batch, key: Key | None = None) -> Params:
        total = per_example(objective, square, add=True, **how)(params, batch, key)
        return jax.tree.map(lambda x: x / len(batch.tokens), total)

    return diagonal
