"""Curvature of the loss without its Hessian: products with it, its largest eigenvalues, the density
of all, its trace; how the loss looks along a plane.

All are functions over (params, batch). Read `hessian_product`, on which the rest stands, then
`lanczos`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from gptjax.core.arrays import Array, Float, Key, Params
from gptjax.data.layouts import Batch
from gptjax.lab.examples import dot, is_stacked, squared_norm
from gptjax.train.step import Objective


def mean_loss(objective: Objective, batch: Batch) -> Callable[[Params], Float[Array, ""]]:
    """Returns the mean loss of a batch as a function of the parameters, without dropout."""

    def loss(params: Params) -> Array:
        total, (weight, _) = objective(params, batch, None)
        return total / jnp.maximum(weight, 1e-30)

    return loss


def hessian_product(objective: Objective) -> Callable[[Params, Batch, Params], Params]:
    """Returns (params, batch, direction) → the Hessian of the mean loss times a direction, a tree
    like the parameters.

    Forward-mode differentiation of the gradient: about the cost of three gradients. It is for one
    device: the products of a mesh have no forward mode. Source:
    Pearlmutter 1994, Fast Exact Multiplication by the Hessian, Neural Computation 6.
    """

    def product(params: Params, batch: Batch, direction: Params) -> Params:
        gradient = jax.grad(mean_loss(objective, batch))
        return jax.jvp(gradient, (params,), (direction,))[1]

    return product


class Spectrum(NamedTuple):
    """What `lanczos` found: approximate eigenvalues, the largest of which are near true ones."""

    eigenvalues: Float[Array, " m"]
    """Rising."""
    weights: Float[Array, " m"]
    """Share of the density that each stands for; they add up to 1."""
    errors: Float[Array, " m"]
    """Upper bound of the distance of each to a true eigenvalue."""


def lanczos(product: Callable[[Params], Params], like: Params, key: Key, steps: int) -> Spectrum:
    """Runs Lanczos' iteration from a random direction, with full reorthogonalisation.

    The extreme eigenvalues converge first. As a quadrature, eigenvalues and weights approximate the
    density of the whole spectrum; average over several keys for that.

    Args:
      product: symmetric and linear, from a tree like `like` to one.
      steps: m, products that it takes; memory holds as many trees.

    Sources: Lanczos 1950; Golub and Meurant 2010, Matrices, Moments and Quadrature, chapter 6.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(like))
    steps = min(steps, size)
    flat, unflat = ravel_pytree(jax.tree.map(jnp.zeros_like, like))
    first = jax.random.normal(key, flat.shape)
    basis = jnp.zeros((steps, size)).at[0].set(first / jnp.linalg.norm(first))

    def flat_product(v: Array) -> Array:
        return ravel_pytree(product(unflat(v.astype(flat.dtype))))[0].astype(jnp.float32)

    def step(i: Array, carried: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, alphas, betas = carried
        next_one = flat_product(basis[i])
        alphas = alphas.at[i].set(next_one @ basis[i])
        for _ in range(2):  # once leaves rounding errors that grow; twice is enough (Parlett)
            next_one = next_one - basis.T @ (basis @ next_one)
        beta = jnp.linalg.norm(next_one)
        betas = betas.at[i].set(beta)
        unit = next_one / jnp.maximum(beta, 1e-30)
        basis = jax.lax.cond(
            i + 1 < steps, lambda: basis.at[jnp.minimum(i + 1, steps - 1)].set(unit), lambda: basis
        )
        return basis, alphas, betas

    zeros = jnp.zeros(steps)
    _, alphas, betas = jax.lax.fori_loop(0, steps, step, (basis, zeros, zeros))
    inner = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, vectors = jnp.linalg.eigh(inner)
    return Spectrum(values, jnp.square(vectors[0]), betas[-1] * jnp.abs(vectors[-1]))


def hessian_spectrum(
    objective: Objective, steps: int = 20
) -> Callable[[Params, Batch, Key], Spectrum]:
    """Returns (params, batch, key) → the spectrum of the Hessian of the mean loss, by `steps`
    iterations."""

    def spectrum(params: Params, batch: Batch, key: Key) -> Spectrum:
        multiply = hessian_product(objective)
        return lanczos(lambda v: multiply(params, batch, v), params, key, steps)

    return spectrum


def density(spectrum: Spectrum, at: Float[Array, " n"], width: float) -> Float[Array, " n"]:
    """Returns the density of eigenvalues at some places: each spread as a Gaussian of a width.

    Source: Ghorbani et al. 2019, An Investigation into Neural Net Optimization via Hessian
    Eigenvalue Density, arXiv:1901.10159, section 2.
    """
    apart = (at[:, None] - spectrum.eigenvalues[None]) / width
    bumps = jnp.exp(-0.5 * jnp.square(apart)) / (width * jnp.sqrt(2 * jnp.pi))
    return bumps @ spectrum.weights


class Estimate(NamedTuple):
    """A mean over random directions."""

    mean: Float[Array, ""]
    error: Float[Array, ""]
    """Its standard error."""


def hessian_trace(
    objective: Objective, directions: int = 16
) -> Callable[[Params, Batch, Key], Estimate]:
    """Returns (params, batch, key) → the trace of the Hessian of the mean loss, estimated from
    random directions of ±1.

    Source: Hutchinson 1990, A Stochastic Estimator of the Trace of the Influence Matrix.
    """
    if directions < 2:
        raise ValueError(f"directions is {directions}; an error needs 2 at least.")

    def trace(params: Params, batch: Batch, key: Key) -> Estimate:
        multiply = hessian_product(objective)

        def one(key: Key) -> Array:
            signs = random_like(params, key, jax.random.rademacher)
            return dot(signs, multiply(params, batch, signs))

        found = jax.lax.map(one, jax.random.split(key, directions))
        return Estimate(found.mean(), found.std(ddof=1) / jnp.sqrt(directions))

    return trace


def random_like(tree: Params, key: Key, draw: Callable[..., Array]) -> Params:
    """Returns a tree of random numbers, each leaf by a key of its own."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [draw(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def sharpness(
    objective: Objective, radius: float = 0.05
) -> Callable[[Params, Batch], Float[Array, ""]]:
    """Returns (params, batch) → by how much the mean loss rises at a distance of `radius` along its
    gradient.

    Source: Foret et al. 2021, Sharpness-Aware Minimization, arXiv:2010.01412, section 2. The
    sharpness of Cohen et al. 2021, arXiv:2103.00065, is the largest eigenvalue of
    `hessian_spectrum`.
    """

    def rise(params: Params, batch: Batch) -> Array:
        loss = mean_loss(objective, batch)
        here, gradient = jax.value_and_grad(loss)(params)
        step = radius / jnp.maximum(jnp.sqrt(squared_norm(gradient)), 1e-30)
        return loss(jax.tree.map(lambda p, g: p + step * g, params, gradient)) - here

    return rise


def random_directions(params: Params, key: Key) -> tuple[Params, Params]:
    """Returns two random directions whose leaves have the norms of the parameters' own, so that a
    step means the same for weights of any size; biases and scales stay where they are.

    Source: Li et al. 2018, Visualizing the Loss Landscape of Neural Nets, arXiv:1712.09913,
    section 4, by leaf and layer where they take filters.
    """

    def one(key: Key) -> Params:
        drawn = random_like(params, key, jax.random.normal)
        return jax.tree_util.tree_map_with_path(_of_same_norm, params, drawn)

    first, second = jax.random.split(key)
    return one(first), one(second)


def _of_same_norm(path: Any, leaf: Array, drawn: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    stacked = is_stacked(name)
    if name.endswith(("/bias", "/scale")) or leaf.ndim - stacked < 2:
        return jnp.zeros_like(leaf)
    axes = tuple(range(int(stacked), leaf.ndim))
    wanted = jnp.sqrt(jnp.square(leaf).sum(axes, keepdims=True))
    given = jnp.sqrt(jnp.square(drawn).sum(axes, keepdims=True))
    return drawn * wanted / jnp.maximum(given, 1e-30)


def landscape(objective: Objective) -> Callable[..., Float[Array, "n m"]]:
    """Returns (params, batch, first, second, along [n], across [m]) → the mean loss at
    params + a · first + b · second for each a of `along` and b of `across`.

    A slice of one direction has `across` of a single 0.
    """

    def losses(
        params: Params,
        batch: Batch,
        first: Params,
        second: Params,
        along: Float[Array, " n"],
        across: Float[Array, " m"],
    ) -> Array:
        loss = mean_loss(objective, batch)

        def at(place: Any) -> Array:
            moved = jax.tree.map(
                lambda p, u, v: p + place[0] * u + place[1] * v, params, first, second
            )
            return loss(moved)

        grid = jnp.stack(jnp.meshgrid(along, across, indexing="ij"), -1).reshape(-1, 2)
        return jax.lax.map(at, grid).reshape(len(along), len(across))

    return losses
