"""Weights that measure what they multiply: second moments of inputs, as gradients.

A product with a `Measured` weight is that with its base; but the gradient of anything computed from
it, with respect to `moments`, is the sum of x xᵀ over all inputs x. So one `jax.grad` gives the
inputs' moments of every kernel of any model, in loops over layers and for each expert alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float
from gptjax.weights.weight import Leaf, dense


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["base", "moments"], meta_fields=[]
)
@dataclass(frozen=True)
class Measured:
    """A weight and the place of its inputs' second moments; stacked and sliced alike."""

    base: Leaf
    """A weight [*inputs *outputs]."""
    moments: Leaf
    """float32 [I I]: zeros, whose gradient is Σ x xᵀ."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape


@dense.register
def _(weight: Measured) -> Array:
    return dense(weight.base)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def observe_inputs(spec: str, x: Float[Array, "..."], moments: Float[Array, "..."]) -> Array:
    """x itself, of which the gradient with respect to `moments` is an einsum of x with itself.

    Args:
      spec: of that einsum.
    """
    del spec, moments
    return x


def _forward(spec: str, x: Array, moments: Array) -> tuple[Array, Array]:
    return observe_inputs(spec, x, moments), x


def _backward(spec: str, x: Array, back: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    return back, jnp.einsum(spec, wide, wide)


observe_inputs.defvjp(_forward, _backward)
