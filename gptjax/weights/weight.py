"""Weights as values. A parameter tree holds a weight at each leaf: an array, or a pytree that
stands in its place.

    Array | Quantized | Adapted | any other registered pytree with a `shape`

What differs between kinds is one rule each of `weights.linear.multiply` (the product with an
activation), and, where it is asked for, of `dense` (the array itself). Leaves of every kind may
have further leading dimensions, such as layers, over which they are stacked, sliced and scanned
alike.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float
from gptjax.weights import dora


@runtime_checkable
class Weight(Protocol):
    """An array, or a registered pytree that stands in its place."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        ...


class Role(NamedTuple):
    """What a parameter is for, declared where it is created.

    Its dimensions are `stacked`, then `inputs`, then those of its outputs.
    """

    stacked: int = 0
    """Leading dimensions that hold independent weights: layers, experts."""
    inputs: int = 0
    """Dimensions that a product with an activation sums over. Zero: a vector, a table or a bias,
    which multiplies no activation."""
    decays: bool = False
    """Weight decay shrinks it."""
    exact: bool = False
    """Computed in float32 whatever the model computes in (routers): neither quantised nor adapted
    by default."""


Leaf = Any
"""A field that holds arrays. JAX also rebuilds pytrees with other leaves: shapes, specs, `None`."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scales", "offsets"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Quantized:
    """An array in a narrow type: number = value · scale + offset.

    Scales have as many dimensions as values, and each holds for a block of them: scales [1 O] of
    values [I O] are one scale per column, scales [I/32 O] one per column and 32 inputs. A stack, a
    slice of it and a transpose are those of each leaf.
    """

    values: Leaf
    """[…] of int8, int4 or a narrow float."""
    scales: Leaf = None
    """float32 […]: divides `values` into blocks. `None` means 1."""
    offsets: Leaf = None
    """float32 […]: divides `values` into blocks. `None` means 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return self.values.shape


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "a", "b", "rows", "magnitude", "squares", "key"],
    meta_fields=["scale", "dropout"],
)
@dataclass(frozen=True)
class Adapted:
    """A base weight plus `scale` times a low-rank product a · b; R is its rank.

    With `rows`, `a`, `b` and `magnitude` hold several adapters [A …], one of which serves each row
    of the batch.

    Source: Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1.
    """

    base: Leaf
    """A weight [*inputs *outputs]."""
    a: Leaf
    """float32 [*inputs R], or [A *inputs R]."""
    b: Leaf
    """float32 [R *outputs], or [A R *outputs]."""
    scale: float = 1.0
    rows: Leaf = None
    """int32 [B]: the adapter of each row; −1 selects the base alone. `None` means one adapter for
    all rows."""
    magnitude: Leaf = None
    """float32 [*outputs], or [A *outputs]: the length of each column, see `dora`. `None` leaves the
    lengths as they come out; so does NaN, for one adapter of several."""
    squares: Leaf = None
    """float32 [*outputs]: the squared length of each column of the base, where there are
    magnitudes."""
    dropout: float = 0.0
    """Share of the activations that the product does not see while `key` is set."""
    key: Leaf = None
    """uint32 […]: data of the random key of dropout."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape

    @property
    def stacked(self) -> int:
        """The number of leading dimensions that hold independent weights."""
        several = 0 if self.rows is None else 2
        return self.a.ndim + self.b.ndim - 2 - several - len(self.shape)


# --- the array that a weight stands for


@functools.singledispatch
def dense(weight: Weight) -> Array:
    """The array that a weight stands for; differentiable in every floating-point leaf.

    Raises:
      TypeError: the kind has no rule for it, or each row of the batch has an array of its own.
    """
    if hasattr(weight, "astype"):
        return cast(Array, weight)
    raise TypeError(f"{type(weight).__name__} has no rule of `weights.dense`; register one.")


@dense.register
def _(weight: Quantized) -> Array:
    numbers = weight.values.astype(jnp.float32)
    if weight.scales is not None:
        numbers = numbers * per_block(weight.scales, weight.shape)
    return numbers if weight.offsets is None else numbers + per_block(weight.offsets, weight.shape)


@dense.register
def _(weight: Adapted) -> Array:
    if weight.rows is not None:
        raise TypeError("weights of several adapters, one for each row, are not one array.")
    base, product = dense(weight.base), weight.scale * _low_rank(weight)
    if weight.magnitude is None:
        return base + product.astype(base.dtype)
    lead, outputs = weight.shape[: weight.stacked], weight.magnitude.shape[weight.stacked :]
    matrix, added = (x.reshape(*lead, -1, math.prod(outputs)) for x in (base, product))
    ratio = column_ratio(weight).reshape(*lead, 1, -1)
    return ((matrix + added) * ratio).astype(base.dtype).reshape(weight.shape)


def _low_rank(weight: Adapted) -> Array:
    """The product a · b of each weight of a stack, with the base's shape."""
    lead, rank = weight.shape[: weight.stacked], weight.a.shape[-1]
    product = weight.a.reshape(*lead, -1, rank) @ weight.b.reshape(*lead, rank, -1)
    return product.reshape(weight.shape)


def column_ratio(weight: Adapted) -> Float[Array, "..."]:
    """What multiplies the columns of a weight with magnitudes, in their shape [… *outputs]; of
    several adapters [A *outputs]."""
    lead, rank = weight.shape[: weight.stacked], weight.a.shape[-1]
    several = () if weight.rows is None else weight.a.shape[len(lead) : len(lead) + 1]
    a = weight.a.reshape(*lead, *several, -1, rank)
    b = weight.b.reshape(*lead, *several, rank, -1)
    matrix = dense(weight.base).reshape(*lead, *(1,) * len(several), a.shape[-2], -1)
    squares = weight.squares.reshape(*lead, *(1,) * len(several), -1)
    squared = dora.adapted_squares(squares, matrix, a, b, weight.scale)
    return dora.length_ratio(weight.magnitude, squared.reshape(weight.magnitude.shape))


def per_block(scales: Array, shape: tuple[int, ...]) -> Array:
    """Repeats each scale over its block of an array of this shape."""
    apart = [(count, size // count) for count, size in zip(scales.shape, shape, strict=True)]
    split = scales.reshape([part for count, _ in apart for part in (count, 1)])
    return jnp.broadcast_to(split, [part for pair in apart for part in pair]).reshape(shape)


@functools.singledispatch
def transposed(weight: Weight) -> Weight:
    """A matrix weight with rows and columns exchanged: the output [D V] of tied embeddings."""
    return dense(weight).T


@transposed.register
def _(weight: Quantized) -> Weight:
    return jax.tree.map(jnp.transpose, weight)


@transposed.register
def _(weight: Adapted) -> Weight:
    def swap(x: Array) -> Array:
        return jnp.swapaxes(x, -1, -2)

    if weight.magnitude is not None:
        return transposed(dense(weight))
    base = transposed(weight.base)
    return Adapted(base, swap(weight.b), swap(weight.a), weight.scale, weight.rows)


# --- quantisation

MATRIX = Role(inputs=1)

Kind = Literal["int8", "int4", "bfloat16"]
"""Types that `quantize` stores numbers in."""

_LARGEST = {"int8": 127, "int4": 7}


def quantize(
    weight: Float[Array, "..."],
    kind: Kind = "int8",
    *,
    role: Role = MATRIX,
    group: int | None = None,
) -> Quantized:
    """Rounds an array to a narrow type, with a scale for each output, or each output and `group`
    inputs.

    Whole numbers are symmetric around 0 and off by half a scale at most. bfloat16 has no scales.

    Args:
      group: number of consecutive inputs that share a scale. `None` means all of them.

    Raises:
      ValueError: the group does not divide the inputs.

    Source: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 3.1 (one scale per output),
    for weights alone.
    """
    if kind == "bfloat16":
        return Quantized(jnp.asarray(weight, jnp.bfloat16))
    apart, within = blocks_of(weight, role, group)
    scales = jnp.maximum(jnp.max(jnp.abs(apart), axis=within) / _LARGEST[kind], 1e-30)
    values = jnp.round(apart / jnp.expand_dims(scales, within))
    return Quantized(values.reshape(weight.shape).astype(kind), scales)


def blocks_of(weight: Array, role: Role, group: int | None) -> tuple[Array, tuple[int, ...]]:
    """The array with each dimension split in two, blocks and numbers within a block, and which of
    these dimensions lie within; see `quantize`."""
    blocks = _block_shape(weight.shape, role, group)
    counts = [size // block for size, block in zip(weight.shape, blocks, strict=True)]
    apart = weight.reshape([n for pair in zip(counts, blocks, strict=True) for n in pair])
    return apart, tuple(range(1, apart.ndim, 2))


def _block_shape(shape: tuple[int, ...], role: Role, group: int | None) -> list[int]:
    """The block of numbers that share a scale: 1 of each output and each weight of a stack."""
    block = [1] * len(shape)
    left = group or math.prod(shape[role.stacked : role.stacked + role.inputs])
    for dimension in reversed(range(role.stacked, role.stacked + role.inputs)):
        block[dimension] = math.gcd(left, shape[dimension])
        left //= block[dimension]
        if block[dimension] < shape[dimension]:
            break
    if left != 1:
        raise ValueError(f"groups of {group} inputs do not divide the inputs of {shape}.")
    return block
