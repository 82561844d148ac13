"""Products of activations in 8 bits with weights in 8 bits, summed in whole numbers (W8A8).

Only for generation: no gradient passes the rounding of activations.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int
from gptjax.weights.linear import multiply, one_cpu
from gptjax.weights.weight import Quantized, Role, Weight

Activations = Literal["w8a8", "w8a8-prefill"]
"""Which products round activations: all, or those of `PREFILL` tokens of a text and more."""

PREFILL = 16
"""Fewest tokens of a text that are read at once, by which reading a prompt differs from writing and
from checking guesses."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scales", "offsets"],
    meta_fields=["least"],
)
@dataclass(frozen=True)
class W8A8(Quantized):
    """An int8 array with a scale for each column, whose products round activations too.

    Experts' kernels, and those that are contracted over their outputs, multiply as `Quantized`.

    Source: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 2.2 (one scale a row of
    activations, one a column of weights), without outliers apart.
    """

    least: int = 1
    """Fewest tokens of a text in a product that rounds its activations."""


def rounds_activations(weight: Weight, role: Role, how: Activations) -> Weight:
    """The same weight, whose products round activations; one that is not int8 with a scale for each
    column stays as it is."""
    if not isinstance(weight, Quantized) or weight.scales is None or weight.offsets is not None:
        return weight
    before, after = role.stacked, role.stacked + role.inputs
    columns = (*weight.shape[:before], *(1,) * role.inputs, *weight.shape[after:])
    if weight.values.dtype != jnp.int8 or weight.scales.shape != columns:
        return weight
    return W8A8(weight.values, weight.scales, least=1 if how == "w8a8" else PREFILL)


def round_activations(
    x: Float[Array, "... I"],
) -> tuple[Int[Array, "... I"], Float[Array, "... 1"]]:
    """Each token's activations in whole numbers from −127 to 127, and what they are multiplied
    by."""
    wide = x.astype(jnp.float32)
    steps = jnp.max(jnp.abs(wide), axis=-1, keepdims=True) * jnp.float32(1 / 127)
    steps = jnp.maximum(steps, 1e-30)
    return jnp.round(wide / steps).astype(jnp.int8), steps


def integer_product(x: Int[Array, "... I"], kernel: Int[Array, "I O"]) -> Int[Array, "... O"]:
    """The int32 sums of products of 8 bits, exact up to 133,000 inputs."""
    flat = x.reshape(-1, x.shape[-1]) if one_cpu() else x
    axes = (((flat.ndim - 1,), (0,)), ((), ()))
    sums = jax.lax.dot_general(flat, kernel, axes, preferred_element_type=jnp.int32)
    return sums.reshape(*x.shape[:-1], kernel.shape[1])


@multiply.register
def _(weight: W8A8, x: Float[Array, "... I"], *, wide: bool = False) -> Float[Array, "... O"]:
    if weight.least > (x.shape[-2] if x.ndim > 2 else 1):
        return multiply(Quantized(weight.values, weight.scales), x, wide=wide)
    whole, steps = round_activations(x)
    inputs, outputs = x.shape[-1], math.prod(weight.shape) // x.shape[-1]
    sums = integer_product(whole, weight.values.reshape(inputs, outputs))
    scales = weight.scales.reshape((1,) * (x.ndim - 1) + (outputs,))
    y = sums.astype(jnp.float32) * steps * scales
    return y.astype(jnp.float32 if wide else x.dtype)
