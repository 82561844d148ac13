"""Grids of few bits on which weights are rounded, as values: one description serves rounding to the
nearest, calibrated rounding, training on the grid (QAT) and files.

Read `Rounding`, then `rounded` (a weight on the grid) and `straight_through` (the same numbers as
an array whose gradient ignores the rounding). `fit_steps` and `Steps` are one block's scale and its
codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float
from gptjax.core.config import require
from gptjax.weights.storage import LEVELS, NormalFloat
from gptjax.weights.weight import Quantized, Role, Weight, blocks_of

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2, "nf4": 4}
"""Width of each kind of code."""

LEAST_GROUP = 16
"""Smallest group that is made of a larger one where that does not divide a weight's inputs."""


@dataclass(frozen=True)
class Rounding:
    """A grid: how blocks of a weight become codes and a scale, and perhaps an offset.

    Sources of the conventions: `own` divides the largest absolute value by the largest code, as
    LLM.int8() does (arXiv:2208.07339); `qwix` by half a code more; `gguf` is ggml's Q8_0, Q4_0 and
    Q4_1 with their scales of 16 bits.
    """

    kind: Literal["int8", "int4", "int3", "int2", "nf4"] = "int4"
    """Codes: whole numbers, or the sixteen levels of a normal distribution (arXiv:2305.14314)."""
    group: int | None = 32
    """Consecutive inputs that share a scale; None means all inputs of an output."""
    offset: Literal["none", "zero", "minimum"] = "none"
    """What is added: nothing; so much that some whole code is 0 (asymmetric); or the block's
    minimum."""
    convention: Literal["own", "qwix", "gguf"] = "own"
    """Whose formula gives the scales."""
    scale: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type to which scales and minima are rounded."""

    def __post_init__(self) -> None:
        require(
            self.group is None or self.group >= 1,
            f"group is {self.group}; it needs 1 or more inputs, or None for all (--group 32).",
        )
        require(
            self.kind != "nf4" or self.offset == "none",
            f"offset is {self.offset!r}, and NF4 has none; omit it.",
        )
        require(
            self.convention != "qwix" or self.offset == "none",
            f"offset is {self.offset!r}; qwix's convention is known without one; use own.",
        )
        grids = [("int8", "none"), ("int4", "none"), ("int4", "minimum")]
        require(
            self.convention != "gguf"
            or ((self.kind, self.offset) in grids and (self.group, self.scale) == (32, "float16")),
            "the convention gguf has int8 and int4 without offset, and int4 with a minimum, in"
            " groups of 32 with float16 scales; use these, or another convention.",
        )

    @property
    def bits(self) -> float:
        """Bits of a number in a file, its share of scale and offset included."""
        own = (16 if self.scale != "float32" else 32) / (self.group or math.inf)
        extra = {"none": 0.0, "zero": BITS[self.kind] / (self.group or math.inf), "minimum": own}
        return BITS[self.kind] + own + extra[self.offset]


def eight_bits(grid: Rounding) -> Rounding:
    """The grid of embedding and head beside kernels on another: int8 in the same groups."""
    return Rounding("int8", grid.group, "none", "own", grid.scale)


GGUF_GRIDS = {
    "q8_0": Rounding("int8", 32, "none", "gguf", "float16"),
    "q4_0": Rounding("int4", 32, "none", "gguf", "float16"),
    "q4_1": Rounding("int4", 32, "minimum", "gguf", "float16"),
}
"""The grids of GGUF files, by the `--dtype` that writes them."""


class Steps(NamedTuple):
    """What the numbers of a block share, in a shape that broadcasts over them."""

    scale: Array
    """A number is code · scale + offset."""
    offset: Array | None
    divisor: Array
    """By which numbers are divided to become codes; ggml takes the scale before it is rounded."""
    begin: Array | None
    """What is subtracted first, likewise."""


def fit_steps(grid: Rounding, block: Float[Array, "..."], within: tuple[int, ...]) -> Steps:
    """The scale and offset of each block, of numbers along the dimensions `within`."""
    if grid.offset != "none":
        return _fit_range(grid, block, within)
    high = 2 ** (BITS[grid.kind] - 1) - 1
    largest = jnp.max(jnp.abs(block), axis=within, keepdims=True)
    if grid.convention == "gguf" and grid.kind == "int4":
        exact = _extreme(block, within).reshape(largest.shape) / -(high + 1)
    else:
        bound = {"own": high, "qwix": high + 0.5, "gguf": high}[grid.convention]
        exact = largest / (1.0 if grid.kind == "nf4" else bound)
    scale = _narrow(grid, exact)
    if grid.convention == "gguf":
        return Steps(scale, None, exact, None)
    if grid.convention == "qwix":
        scale = jnp.where(scale == 0, 1.0, scale)
    return Steps(scale, None, scale, None)


def _extreme(block: Array, within: tuple[int, ...]) -> Array:
    """The number of the largest absolute value, with its sign; of two, the one that is first."""
    lead = [n for n in range(block.ndim) if n not in within]
    flat = jnp.transpose(block, (*lead, *within))
    flat = flat.reshape(*flat.shape[: len(lead)], -1)
    first = jnp.argmax(jnp.abs(flat), axis=-1, keepdims=True)
    return jnp.take_along_axis(flat, first, axis=-1)


def _fit_range(grid: Rounding, block: Array, within: tuple[int, ...]) -> Steps:
    count = 2 ** BITS[grid.kind] - 1
    low = jnp.min(block, axis=within, keepdims=True)
    high = jnp.max(block, axis=within, keepdims=True)
    if grid.offset == "minimum":
        exact = (high - low) / count
        scale, begin = _narrow(grid, exact), _narrow(grid, low)
        if grid.convention == "gguf":
            return Steps(scale, begin, exact, low)
        return Steps(scale, begin, scale, begin)
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    scale = _narrow(grid, (high - low) / count)
    zero = jnp.round(-low / _nonzero(scale)) - (count + 1) // 2
    return Steps(scale, -(zero * scale), scale, -(zero * scale))


def _narrow(grid: Rounding, numbers: Array) -> Array:
    return numbers.astype(grid.scale).astype(jnp.float32)


def _nonzero(divisor: Array) -> Array:
    return jnp.where(divisor == 0, 1.0, divisor)


def codes_of(grid: Rounding, steps: Steps, numbers: Float[Array, "..."]) -> Float[Array, "..."]:
    """The codes of numbers, as floats; of NF4 those of its levels."""
    bits, divisor = BITS[grid.kind], _nonzero(steps.divisor)
    if grid.kind == "nf4":
        between = jnp.asarray((LEVELS[1:] + LEVELS[:-1]) / 2)
        shares = (numbers / divisor).reshape(-1)
        return jnp.searchsorted(between, shares).reshape(numbers.shape).astype(jnp.float32)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if grid.offset == "minimum":
        low, high = 0, 2**bits - 1
    if grid.convention == "gguf":
        return _ggml_codes(grid, steps, numbers, low, high)
    moved = numbers if steps.begin is None else numbers - steps.begin
    if grid.convention == "own" and grid.offset == "none":
        low = -high
    return jnp.clip(jnp.round(moved / divisor), low, high)


def _ggml_codes(grid: Rounding, steps: Steps, numbers: Array, low: int, high: int) -> Array:
    """Codes as ggml computes them: products with the divisor's inverse, halves away from zero or
    up."""
    inverse = jnp.where(steps.divisor == 0, 0.0, 1.0 / _nonzero(steps.divisor))
    moved = numbers if steps.begin is None else numbers - steps.begin
    shares = jax.lax.optimization_barrier(moved * inverse)  # no fused multiplication and sum
    if grid.kind == "int8":
        size = jnp.abs(shares)
        whole = jnp.floor(size)
        return jnp.sign(shares) * (whole + jnp.floor(2 * (size - whole)))
    return jnp.clip(jnp.trunc(shares + (0.5 - low)), 0, high - low) + low


def numbers_of(grid: Rounding, steps: Steps, codes: Float[Array, "..."]) -> Float[Array, "..."]:
    """The numbers that codes stand for."""
    if grid.kind == "nf4":
        return jnp.asarray(LEVELS)[codes.astype(jnp.int32)] * steps.scale
    numbers = codes * steps.scale
    return numbers if steps.offset is None else numbers + steps.offset


# --- whole weights


def group_size(grid: Rounding, shape: tuple[int, ...], role: Role) -> int | None:
    """The inputs of a weight that share a scale: `group`, or the largest divisor that it has in
    common with them; all where that would be small, or no block of the weight's dimensions."""
    inputs = math.prod(shape[role.stacked : role.stacked + role.inputs])
    group = math.gcd(grid.group or inputs, inputs)
    if group == inputs or group < min(LEAST_GROUP, grid.group or inputs):
        return None
    try:
        jax.eval_shape(lambda: blocks_of(jnp.zeros(shape), role, group)[0])
    except ValueError:
        return None
    return group


def apart_of(
    grid: Rounding, weight: Float[Array, "..."], role: Role
) -> tuple[Array, tuple[int, ...]]:
    """The weight by its blocks, as `weights.weight.blocks_of`."""
    return blocks_of(weight, role, group_size(grid, weight.shape, role))


def rounded(grid: Rounding, weight: Float[Array, "..."], role: Role) -> Quantized | NormalFloat:
    """The weight on the grid, each number rounded to the nearest.

    Whole numbers of 2 and 3 bits are kept in 4.
    """
    apart, within = apart_of(grid, jnp.asarray(weight, jnp.float32), role)
    steps = fit_steps(grid, apart, within)
    return packed_weight(grid, steps, codes_of(grid, steps, apart), weight.shape)


def packed_weight(
    grid: Rounding, steps: Steps, codes: Float[Array, "..."], shape: tuple[int, ...]
) -> Quantized | NormalFloat:
    """A weight of codes and steps by blocks, as `apart_of` splits it."""
    of_blocks = steps.scale.shape[::2]
    values, scales = codes.reshape(shape), steps.scale.reshape(of_blocks)
    if grid.kind == "nf4":
        return NormalFloat(values.astype(jnp.uint4), scales)
    narrow = "int8" if BITS[grid.kind] == 8 else "int4"
    if grid.offset == "minimum":
        narrow = "u" + narrow
    offsets = None if steps.offset is None else steps.offset.reshape(of_blocks)
    return Quantized(values.astype(narrow), scales, offsets)


def straight_through(
    grid: Rounding, weight: Float[Array, "..."], role: Role
) -> Float[Array, "..."]:
    """The numbers of `rounded`, equal to the last bit, whose gradient is that of the weight.

    Source: Bengio et al. 2013, arXiv:1308.3432, section 3.
    """
    apart, within = apart_of(grid, jax.lax.stop_gradient(weight), role)
    steps = fit_steps(grid, apart, within)
    numbers = numbers_of(grid, steps, codes_of(grid, steps, apart)).reshape(weight.shape)
    return numbers + (weight - jax.lax.stop_gradient(weight))  # the difference is 0


def weight_size(weight: Weight) -> float:
    """Bytes of a weight in memory, where numbers of four bits lie two in a byte."""

    def size(leaf: Array) -> float:
        bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4}.get(leaf.dtype.name)
        return leaf.size * (bits or 8 * leaf.dtype.itemsize) / 8

    return sum(size(leaf) for leaf in jax.tree.leaves(weight))
