"""The norm of a tree of gradients, read once."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Params
from gptjax.sharding.constrain import current_mesh, platform

LARGE = 2**16
"""Numbers of a leaf from which on it is summed in stretches."""


def gradient_norm(grads: Params) -> Float[Array, ""]:
    """The root of the sum of all squares, as `optax.tree.norm` has it.

    XLA's CPU backend writes all squares out before it sums a large leaf. There eight stretches of a
    leaf are added up first, in one loop that writes an eighth. Not on a mesh, where stretches would
    have to be moved between devices.
    """
    return jnp.sqrt(sum(map(_squares, jax.tree.leaves(grads))))


def _squares(leaf: Float[Array, "..."]) -> Float[Array, ""]:
    if leaf.size < LARGE or leaf.size % 8 or platform() != "cpu" or current_mesh() is not None:
        return jnp.square(leaf).sum()
    return functools.reduce(operator.add, map(jnp.square, leaf.reshape(8, -1))).sum()
