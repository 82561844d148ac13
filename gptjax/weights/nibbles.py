"""Kernels of four bits laid out for a CPU: two codes in a byte, which a product takes apart inside
its sums, so that memory is read as narrow as it is stored.

XLA's own arrays of four bits are read code by code there, fifty times as slowly. Read `Nibbles`,
then `laid_out`, then the rule of `multiply`.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float
from gptjax.weights.block_rounded import BlockRounded
from gptjax.weights.kernels import num_inputs
from gptjax.weights.linear import by_column, multiply
from gptjax.weights.narrow import add_up, in_blocks, sum_parts
from gptjax.weights.weight import Adapted, Quantized, Role, Weight, dense

MIDDLE = 8
"""What is added to a signed code before it lies in a byte."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scales", "offsets"],
    meta_fields=["inner", "inputs"],
)
@dataclass(frozen=True)
class Nibbles(Quantized):
    """An array of four bits in groups: number = (half of a byte − 8) · scale + offset.

    `values` are uint8 [… groups size/2 O]: lower halves are the first inputs of a group, upper ones
    the others, as in Q4_0. `scales` and `offsets` are [… groups O].
    """

    inner: tuple[int, ...] = ()
    """The shape of one weight of a stack."""
    inputs: int = 1
    """How many of these dimensions a product sums over."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return (*self.values.shape[:-3], *self.inner)


def laid_out(params: Any, roles: Any) -> Any:
    """The tree with its kernels of four bits laid out so, but for those of experts.

    Args:
      roles: `model.roles(config)`.
    """
    if isinstance(params, Adapted | BlockRounded):
        return dataclasses.replace(params, base=laid_out(params.base, roles))
    if isinstance(roles, Role):
        return in_bytes(params, roles) if type(params) is Quantized else params
    if not isinstance(params, dict):
        return params  # layers that are apart already
    return {name: laid_out(tree, roles[name]) for name, tree in params.items()}


def in_bytes(weight: Quantized, role: Role) -> Weight:
    """One kernel laid out so; one of other codes, or whose scales are not of an even number of
    consecutive inputs, stays as it is."""
    kind, signed = weight.values.dtype, weight.values.dtype == jnp.int4
    if not (signed or kind == jnp.uint4) or role.stacked > 1 or role.inputs == 0:
        return weight
    lead, inner = weight.shape[: role.stacked], weight.shape[role.stacked :]
    inputs = num_inputs(weight, role)

    def by_group(leaf: Array | None) -> Float[Array, "stack groups O"] | None:
        if leaf is None:
            return None
        apart = leaf.reshape(-1, *leaf.shape[role.stacked :])
        return jax.vmap(lambda one: by_column(one, inner, inputs))(apart)

    scales, offsets = by_group(weight.scales), by_group(weight.offsets)
    groups = 1 if scales is None else scales.shape[1]
    alike = weight.offsets is None or (offsets is not None and offsets.shape[1] == groups)
    if scales is None or not alike or inputs // groups % 2:
        return weight
    values = weight.values.reshape(len(scales), groups, inputs // groups, -1).astype(jnp.int8)
    codes = (values + MIDDLE if signed else values).astype(jnp.uint8)
    if not signed:
        offsets = scales * MIDDLE if offsets is None else scales * MIDDLE + offsets
    half = codes.shape[2] // 2
    leaves = codes[:, :, :half] | codes[:, :, half:] << 4, scales, offsets
    apart = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), leaves)
    return Nibbles(*apart, inner=inner, inputs=role.inputs)


# --- products


@multiply.register
def _(weight: Nibbles, x: Float[Array, "... I"], *, wide: bool = False) -> Float[Array, "... O"]:
    # else XLA widens the kernel once, before the loop over tokens, and reads that
    rows, weight = jax.lax.optimization_barrier((x.reshape(-1, x.shape[-1]), weight))
    rows = rows.astype(jnp.float32)
    y = _streamed(weight, rows[0])[None] if len(rows) == 1 else in_blocks(rows, weight, _matrix)
    return y.reshape(*x.shape[:-1], -1).astype(jnp.float32 if wide else x.dtype)


@dense.register
def _(weight: Nibbles) -> Array:
    stack = weight.values.shape[:-3]
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(stack) :]), weight)
    return jax.vmap(_matrix)(flat).reshape(weight.shape)


def _streamed(weight: Nibbles, x: Float[Array, " I"]) -> Float[Array, " O"]:
    """One row times the kernel; see `narrow.streamed`."""
    values, scales = weight.values, weight.scales
    groups, half = values.shape[:2]
    lower, upper = jnp.moveaxis(x.reshape(groups, 2, half), 1, 0)
    both = (values & 15, lower), (values >> 4, upper)
    sums = [sum_parts(codes, inputs) for codes, inputs in both]
    parts = sums[0].shape[1]
    inputs = (lower + upper).reshape(groups, -1, parts).sum(1)[..., None]
    rows = (sums[0] + sums[1] - MIDDLE * inputs) * scales[:, None]
    if weight.offsets is not None:
        rows = rows + inputs * weight.offsets[:, None]
    return add_up(rows.reshape(groups * parts, -1))


def _matrix(weight: Nibbles) -> Float[Array, "I O"]:
    """The numbers of one kernel in float32."""
    codes = jnp.concatenate([weight.values & 15, weight.values >> 4], axis=1)
    numbers = (codes.astype(jnp.int8) - MIDDLE).astype(jnp.float32) * weight.scales[:, None]
    if weight.offsets is not None:
        numbers = numbers + weight.offsets[:, None]
    return numbers.reshape(-1, numbers.shape[-1])
