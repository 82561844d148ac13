"""Products whose activations are rounded to 8 bits in blocks of 32, as llama.cpp rounds those that
meet narrow weights.

Only for generation: no gradient passes the rounding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int
from gptjax.weights.kernels import num_inputs
from gptjax.weights.linear import multiply
from gptjax.weights.weight import Leaf, Quantized, Role, Weight, dense

BLOCK = 32
"""Consecutive activations that share a scale."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=[])
@dataclass(frozen=True)
class BlockRounded:
    """A weight whose products round their activations first.

    Products of `contract` and `ragged`, of experts and of latent attention's heads, do not round.

    Source: ggml's `ggml-quants.c`, quantize_row_q8_0.
    """

    base: Leaf
    """A weight [*inputs *outputs] of any kind."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape


def rounds_blocks(weight: Weight, role: Role) -> Weight:
    """The same weight, whose products round activations; one that is not narrow, those of experts,
    and one whose inputs blocks do not divide, stay as they are."""
    narrow = isinstance(weight, Quantized) and weight.values.dtype.itemsize == 1
    fits = role.stacked <= 1 and num_inputs(weight, role) % BLOCK == 0
    return BlockRounded(weight) if narrow and fits else weight


def round_blocks(
    x: Float[Array, "... I"],
) -> tuple[Int[Array, "... blocks 32"], Float[Array, "... blocks 1"]]:
    """Each block's activations in whole numbers from −127 to 127, and what they are multiplied by:
    the very codes and float16 scales of Q8_0, in float32."""
    blocks = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, BLOCK)
    largest = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    # a divisor that the compiler knows would become a factor, which is rounded otherwise
    steps = largest / jax.lax.optimization_barrier(jnp.float32(127))
    inverse = jnp.where(steps > 0, 1 / steps, 0)
    codes = jax.lax.round(blocks * inverse, jax.lax.RoundingMethod.AWAY_FROM_ZERO)
    return codes.astype(jnp.int8), steps.astype(jnp.float16).astype(jnp.float32)


def on_blocks(x: Float[Array, "... I"]) -> Float[Array, "... I"]:
    """The rounded activations, in float32."""
    codes, scales = round_blocks(x)
    return (codes.astype(jnp.float32) * scales).reshape(x.shape)


@dense.register
def _(weight: BlockRounded) -> Array:
    return dense(weight.base)


@multiply.register
def _(weight: BlockRounded, x: Float[Array, "... I"], *, wide: bool = False) -> Array:
    y = multiply(weight.base, on_blocks(x), wide=True)
    return y.astype(jnp.float32 if wide else x.dtype)
