"""Products of 8-bit floats: activations and weights in e4m3 forward, gradients in e5m2 backward.

Each operand has one scale, of the numbers that it holds now (current scaling), so nothing has to
be kept from step to step. Scales are powers of two: dividing by one changes no mantissa, so a part
of a batch, whose largest number is another, is rounded to the same numbers as in the whole, but
for those that are too small for the type. Only a device that multiplies 8-bit floats itself gets
them; others multiply the same numbers in the type of the activations.

Read `Float8` and `scaled`, then `float8_einsum`. `sharded` has the same products on a mesh.

Sources: types: Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv:2209.05433, section
3; powers of two: DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 3.3.2, which has a scale
for each tile.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float
from gptjax.sharding.constrain import device_kind, platform
from gptjax.weights.weight import Leaf, dense

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2
"""Types of activations and weights, and of gradients, which vary more."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["base"], meta_fields=[])
@dataclass(frozen=True)
class Float8:
    """A weight whose products with activations are those of 8-bit floats. It is kept as it is, and
    so is its gradient: that of the product with rounded operands, as if nothing had been rounded.
    """

    base: Leaf
    """A weight [*inputs *outputs]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape


@dense.register
def _(weight: Float8) -> Array:
    return dense(weight.base)


class Scaled(NamedTuple):
    """An array of 8-bit floats: number = value · scale."""

    values: Array
    scale: Float[Array, ""]
    """float32, a power of two."""


def scaled(x: Float[Array, "..."], kind: Any) -> Scaled:
    """Rounds x to an 8-bit type, with the smallest power of two as its scale under which its
    largest number fits. Infinities and NaN make NaN."""
    share, exponent = jnp.frexp(jnp.max(jnp.abs(x)).astype(jnp.float32))
    limit, bits = np.frexp(float(jnp.finfo(kind).max))
    power = jnp.clip(exponent - bits + (share > limit), -MOST_POWER, MOST_POWER)
    inverse = jnp.ldexp(jnp.float32(1), -power)
    return Scaled((x * inverse.astype(x.dtype)).astype(kind), jnp.ldexp(jnp.float32(1), power))


MOST_POWER = 100
"""Scales and their inverses stay inside float32 and bfloat16."""


def operand(x: Scaled, compute: Any) -> Array:
    """The values as the device multiplies them: 8-bit floats, or widened without a loss."""
    return x.values if multiplies_float8() else x.values.astype(compute)


def multiplies_float8() -> bool:
    """Whether the device of the traced program has products of 8-bit floats."""
    return platform() in ("gpu", "tpu") and DEVICES.search(device_kind()) is not None


DEVICES = re.compile(r"\b(GH?200|G?B[123]00|H[12]00|H20|H800|L4|L40S?|Ada|RTX [45]0\d\d|TPU7x)\b")
"""Names of GPUs of compute capability 8.9 and above, and of the TPU that has such products."""


# --- products


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def float8_einsum(spec: str, compute: Any, out: Any, x: Array, kernel: Array) -> Array:
    """`jnp.einsum` of two arrays rounded to 8-bit floats, summed in float32.

    Its gradients are products of 8-bit floats too: of what comes back, rounded, with the rounded
    operands.

    Args:
      spec: of two operands, each letter in two of the three terms.
      compute: type of x and of the kernel.
      out: type of the result.
    """
    return _forward(spec, compute, out, x, kernel)[0]


def _forward(
    spec: str, compute: Any, out: Any, x: Array, kernel: Array
) -> tuple[Array, tuple[Scaled, Scaled]]:
    saved = scaled(x, FORWARD), scaled(kernel, FORWARD)
    return _product(spec, *saved, compute, out), saved


def _backward(
    spec: str, compute: Any, out: Any, saved: tuple[Scaled, Scaled], back: Array
) -> tuple[Array, Array]:
    del out
    of_x, of_kernel, of_y = re.split(",|->", spec)
    (x, kernel), y = saved, scaled(back, BACKWARD)
    return (
        _product(f"{of_y},{of_kernel}->{of_x}", y, kernel, compute, compute),
        _product(f"{of_x},{of_y}->{of_kernel}", x, y, compute, compute),
    )


float8_einsum.defvjp(_forward, _backward)


def _product(spec: str, x: Scaled, y: Scaled, compute: Any, out: Any) -> Array:
    product = mixed_einsum(spec, operand(x, compute), operand(y, compute), jnp.float32)
    return (product * (x.scale * y.scale)).astype(out)


def mixed_einsum(spec: str, x: Array, y: Array, out: Any) -> Array:
    """`jnp.einsum` of two operands whose types may differ, as `jnp.einsum` refuses of 8-bit floats.

    Args:
      spec: each letter in two of the three terms.
      out: type of sums and of the result.
    """
    of_x, of_y, of_out = re.split(",|->", spec)
    batch = [letter for letter in of_x if letter in of_y and letter in of_out]
    summed = [letter for letter in of_x if letter in of_y and letter not in of_out]

    def places(letters: list[str]) -> tuple[list[int], list[int]]:
        return [of_x.index(one) for one in letters], [of_y.index(one) for one in letters]

    product = jax.lax.dot_general(
        x,
        y,
        (places(summed), places(batch)),
        precision=_precision(x, y),
        preferred_element_type=out,
    )
    free = [letter for letter in of_x + of_y if letter not in (*batch, *summed)]
    order = [*batch, *free]
    return jnp.transpose(product, [order.index(letter) for letter in of_out])


def _precision(x: Array, y: Array) -> Any:
    """For gradients, sums in full: by default tensor cores add up 8-bit products in fewer bits.

    As Transformer Engine and Flax have it.
    """
    whole = platform() == "gpu" and BACKWARD in (x.dtype, y.dtype)
    return jax.lax.Precision.HIGHEST if whole else None


# --- where the product is not ours to write


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def on_grid(kind: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The numbers that 8-bit floats would have, in the type of x; the gradient passes."""
    values, scale = scaled(x, kind)
    return values.astype(x.dtype) * scale.astype(x.dtype)


on_grid.defvjp(lambda kind, x: (on_grid(kind, x), None), lambda kind, saved, back: (back,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gradient_on_grid(kind: Any, y: Float[Array, "..."]) -> Float[Array, "..."]:
    """y itself, whose gradient comes back as numbers that 8-bit floats would have."""
    del kind
    return y


gradient_on_grid.defvjp(lambda kind, y: (y, None), lambda kind, saved, back: (on_grid(kind, back),))
