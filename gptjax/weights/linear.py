"""The product of an activation with a weight of any kind, on one device or on a mesh.

Read `linear` and `linears`, which every layer calls, then `multiply`: one rule for each kind of
weight. Experts, which have a kernel each, use `contract` and `ragged`; latent attention's per-head
products use `contract`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Int
from gptjax.core.config import require
from gptjax.sharding.constrain import ROWS, current_mesh, platform
from gptjax.weights.dropout import dropout
from gptjax.weights.einsum import wide_einsum
from gptjax.weights.float8 import (
    BACKWARD,
    FORWARD,
    Float8,
    float8_einsum,
    gradient_on_grid,
    on_grid,
)
from gptjax.weights.measured import Measured, observe_inputs
from gptjax.weights.narrow import narrow
from gptjax.weights.sharded import WIDE, Matrix, sharded_products
from gptjax.weights.weight import Adapted, Quantized, Weight, column_ratio, dense

Names = tuple[str | None, ...]
"""The logical name of each dimension of a weight: `embed`, `heads`, `mlp`, …"""


def linear(
    x: Float[Array, "..."],
    weight: Weight,
    *,
    names: Names,
    inputs: int = 1,
    rows: Sequence[str] = ROWS,
    wide: bool = False,
) -> Float[Array, "..."]:
    """Multiplies x [… *inputs] with a weight [*inputs *outputs]; gives [… *outputs].

    Args:
      inputs: number of the weight's dimensions that are summed over.
      rows: mesh axes that split the first dimension of x.
      wide: sum and give in float32 what would have the type of x.
    """
    return linears(x, (weight,), names=(names,), inputs=inputs, rows=rows, wide=wide)[0]


def linears(
    x: Float[Array, "..."],
    weights: Sequence[Weight],
    *,
    names: Sequence[Names],
    inputs: int = 1,
    rows: Sequence[str] = ROWS,
    wide: bool = False,
    joined: bool = False,
) -> list[Float[Array, "..."]]:
    """Multiplies the same x with each weight; on a mesh x is gathered once for all of them.

    Args:
      joined: multiply arrays side by side as one: on a CPU one large product is faster than three
        small ones.
    """
    if any(isinstance(weight, Adapted) for weight in weights):
        bases = [weight.base if isinstance(weight, Adapted) else weight for weight in weights]
        settings = {"inputs": inputs, "rows": rows, "wide": wide}
        outputs = linears(x, bases, names=names, **settings, joined=joined)
        return [
            _adapted(y, x, weight, named, settings) if isinstance(weight, Adapted) else y
            for y, weight, named in zip(outputs, weights, names, strict=True)
        ]
    lead = x.shape[: x.ndim - inputs]
    outputs = _products(x.reshape(*lead, -1), weights, names, inputs, rows, wide, joined)
    return [
        y.reshape(*lead, *weight.shape[inputs:]) for y, weight in zip(outputs, weights, strict=True)
    ]


def _products(
    x: Float[Array, "... I"],
    weights: Sequence[Weight],
    names: Sequence[Names],
    inputs: int,
    rows: Sequence[str],
    wide: bool,
    joined: bool,
) -> Sequence[Float[Array, "... O"]]:
    """The products of the same x with weights that are not adapted; outputs are flattened."""
    # other dimensions: a few states of a text that is written
    mesh = current_mesh() if x.ndim == 3 else None
    arrays = all(isinstance(weight, jax.Array | np.ndarray) for weight in weights)
    float8 = mesh is not None and all(isinstance(weight, Float8) for weight in weights)
    if not (arrays or float8) or (mesh is None and not joined):
        return [multiply(weight, x, wide=wide) for weight in weights]
    matrices = [dense(weight).astype(x.dtype).reshape(x.shape[-1], -1) for weight in weights]
    if mesh is None or (joined and not float8):
        ends = list(itertools.accumulate(matrix.shape[1] for matrix in matrices))
        beside, named = jnp.concatenate(matrices, axis=1), (names[0][0], names[0][inputs])
        (whole,) = _products(x, (beside,), (named,), 1, rows, wide, joined=False)
        return jnp.split(whole, ends[:-1], axis=-1)
    placed = [
        Matrix(matrix, (named[0], named[inputs]), _unit(weight.shape, named, inputs))
        for matrix, weight, named in zip(matrices, weights, names, strict=True)
    ]
    return sharded_products(mesh, x, placed, rows, jnp.float32 if wide else x.dtype, float8)


def _unit(shape: tuple[int, ...], names: Names, inputs: int) -> int:
    """How many neighbouring rows or columns of the matrix stay on one device, as those of a head
    do."""
    return math.prod(shape[1:inputs] if names[0] in WIDE else shape[inputs + 1 :])


# --- one rule for each kind of weight


@functools.singledispatch
def multiply(
    weight: Weight, x: Float[Array, "... I"], *, wide: bool = False
) -> Float[Array, "... O"]:
    """Multiplies x with a weight [*inputs *outputs]; x and the result have these flattened.

    Register a rule here to add a kind of weight. This one is that of arrays. On a CPU it flattens x
    to rows, because XLA's CPU backend transposes one operand of the weight's gradient value by
    value if rows have two dimensions.

    Args:
      wide: give float32 instead of x's type.
    """
    inputs = x.shape[-1]
    matrix = dense(weight).reshape(inputs, -1).astype(x.dtype)
    flat = x.reshape(-1, inputs) if one_cpu() else x
    y = wide_einsum("...i,io->...o", flat, matrix) if wide else jnp.matmul(flat, matrix)
    return y.reshape(*x.shape[:-1], matrix.shape[1])


@multiply.register
def _(weight: Quantized, x: Float[Array, "... I"], *, wide: bool = False) -> Float[Array, "... O"]:
    """Scales of whole columns multiply the product, those of groups the kernel; offsets multiply
    the sums of the activations of their groups."""
    inputs, scales = x.shape[-1], by_column(weight.scales, weight.shape, x.shape[-1])
    offsets = by_column(weight.offsets, weight.shape, inputs)
    whole_columns = scales is not None and len(scales) == 1
    values = weight.values.reshape(inputs, -1)
    kinds = (scales, weight.scales), (offsets, weight.offsets)
    if any(found is None and leaf is not None for found, leaf in kinds):
        return _widened_product(weight, x, wide)
    if offsets is not None:
        if not one_cpu():
            return multiply(dense(weight), x, wide=wide)
        sums = x.astype(jnp.float32).reshape(*x.shape[:-1], len(offsets), -1).sum(-1)
        y = multiply(dataclasses.replace(weight, offsets=None), x, wide=True) + sums @ offsets
        return y.astype(jnp.float32 if wide else x.dtype)
    if one_cpu() and values.dtype != x.dtype:
        y = narrow(x.reshape(-1, inputs), values, None if whole_columns else scales)
        y = y.reshape(*x.shape[:-1], -1)
    elif scales is None or whole_columns:
        y = multiply(values, x, wide=wide)
    else:
        return multiply(dense(weight), x, wide=wide)
    if scales is not None and whole_columns:
        y = y * scales.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(jnp.float32 if wide else x.dtype)


@multiply.register
def _(weight: Measured, x: Float[Array, "... I"], *, wide: bool = False) -> Float[Array, "... O"]:
    return multiply(weight.base, observe_inputs("...i,...j->ij", x, weight.moments), wide=wide)


@multiply.register
def _(weight: Float8, x: Float[Array, "... I"], *, wide: bool = False) -> Float[Array, "... O"]:
    inputs, lead = x.shape[-1], x.shape[:-1]
    matrix = dense(weight).reshape(inputs, -1).astype(x.dtype)
    flat = x.reshape(-1, inputs) if one_cpu() else x
    rows = "abcdefgh"[: flat.ndim - 1]
    out = jnp.float32 if wide else x.dtype
    y = cast(Array, float8_einsum(f"{rows}i,io->{rows}o", x.dtype, out, flat, matrix))
    return y.reshape(*lead, matrix.shape[1])


def _widened_product(weight: Quantized, x: Float[Array, "... I"], wide: bool) -> Array:
    """The product with a kernel that is widened each time, not once before a loop over tokens."""
    if one_cpu():
        x, weight = jax.lax.optimization_barrier((x, weight))
    return multiply(dense(weight), x, wide=wide)


def by_column(
    leaf: Array | None, shape: tuple[int, ...], inputs: int
) -> Float[Array, "groups O"] | None:
    """Scales or offsets as a matrix with a row for each group of consecutive inputs; `None` where
    there are none, or not of that form."""
    if leaf is None:
        return None
    number = next(n for n in range(1, 9) if math.prod(shape[:n]) == inputs)
    groups, sizes = leaf.shape[:number], shape[:number]
    consecutive = all(
        groups[i] == sizes[i] or math.prod(groups[i + 1 :]) == 1 for i in range(number)
    )
    if leaf.shape[number:] != shape[number:] or not consecutive:
        return None
    return leaf.reshape(math.prod(groups), -1)


def one_cpu() -> bool:
    """Rows may be flattened: on a mesh those that are split over two axes would have to be moved
    first."""
    return platform() == "cpu" and current_mesh() is None


def _adapted(y: Array, x: Array, weight: Adapted, names: Names, settings: dict[str, Any]) -> Array:
    """The product with an adapted weight, given that with its base."""
    y = y + adapter_product(x, weight, names=names, **settings)
    if weight.magnitude is None:
        return y
    ratio = column_ratio(weight)
    if weight.rows is None:
        return (y * ratio.reshape((1,) * (y.ndim - ratio.ndim) + ratio.shape)).astype(y.dtype)
    own = jnp.take(ratio, jnp.maximum(weight.rows, 0), axis=0)
    own = jnp.where(weight.rows.reshape(-1, *(1,) * (own.ndim - 1)) < 0, 1.0, own)
    own = own.reshape(len(own), *(1,) * (y.ndim - own.ndim), *own.shape[1:])
    return (y * own).astype(y.dtype)


def adapter_product(
    x: Float[Array, "..."],
    weight: Adapted,
    *,
    names: Names,
    inputs: int = 1,
    rows: Sequence[str] = ROWS,
    wide: bool = False,
) -> Float[Array, "..."]:
    """What an adapter adds to the product with its base: scale · (x · a) · b, row by row where
    each row has an adapter of its own."""
    if weight.key is not None:
        x = dropout(x, weight.dropout, jax.random.wrap_key_data(weight.key))
    if weight.rows is None:
        of_a, of_b = (*names[:inputs], None), (None, *names[inputs:])
        inner = linear(x, weight.a, names=of_a, inputs=inputs, rows=rows)
        return weight.scale * linear(inner, weight.b, names=of_b, rows=rows, wide=wide)
    lead, rank = x.shape[: x.ndim - inputs], weight.a.shape[-1]
    a, b = adapters_of_rows(weight, x.dtype)
    a, b = a.reshape(len(a), -1, rank), b.reshape(len(b), rank, -1)
    inner = jnp.einsum("b...i,bir->b...r", x.reshape(*lead, -1), a)
    y = jnp.einsum("b...r,bro->b...o", inner, b)
    return weight.scale * y.astype(jnp.float32 if wide else x.dtype).reshape(
        *lead, *weight.shape[inputs:]
    )


def adapters_of_rows(
    weight: Adapted, dtype: Any
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
    """Both factors of each row's adapter; zeros for a row that has none."""
    a, b = (
        jnp.take(x, jnp.maximum(weight.rows, 0), axis=0).astype(dtype) for x in (weight.a, weight.b)
    )
    return a * (weight.rows >= 0).astype(dtype).reshape(-1, *(1,) * (a.ndim - 1)), b


# --- kernels with further dimensions


def contract(spec: str, x: Float[Array, "..."], weight: Weight) -> Float[Array, "..."]:
    """`jnp.einsum` of an activation and a weight, in the activation's type.

    For weights of which a product needs more than a matrix: one kernel for each expert, or a
    kernel that is contracted over its outputs.
    """
    if isinstance(weight, Adapted) and weight.rows is not None:
        return contract(spec, x, weight.base) + _contract_rows(spec, x, weight)
    if isinstance(weight, Measured):
        return contract(spec, observe_inputs(_moment_spec(spec), x, weight.moments), weight.base)
    if isinstance(weight, Float8):
        return float8_einsum(spec, x.dtype, x.dtype, x, dense(weight).astype(x.dtype))
    if isinstance(weight, Quantized) and one_cpu():  # as in `narrow`
        x, weight = jax.lax.optimization_barrier((x, weight))
    return jnp.einsum(spec, x, dense(weight).astype(x.dtype))


def _moment_spec(spec: str) -> str:
    """The product of x with itself that `contract` sums over, of each batch dimension apart."""
    of_x, rest = spec.split(",")
    kernel, of_y = rest.split("->")
    (source,) = set(of_x) & set(kernel) - set(of_y)
    apart = "".join(letter for letter in kernel if letter in of_x and letter in of_y)
    return f"{of_x},{of_x.replace(source, source.upper())}->{apart}{source}{source.upper()}"


def require_for_all_rows(tree: Any, who: str) -> None:
    """Refuses weights of which each row of the batch has an adapter of its own.

    Raises:
      ConfigError: names what can't read them.
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Adapted))
    apart = any(isinstance(leaf, Adapted) and leaf.rows is not None for leaf in leaves)
    require(
        not apart,
        f"{who} can't have an adapter for each row; use one for all rows, merge it, or choose other"
        " weights for it.",
    )


def _contract_rows(spec: str, x: Array, weight: Adapted) -> Array:
    """What the adapters of the rows add to `contract`, where x begins with rows and the kernel has
    no batch dimensions and one of inputs."""
    of_x, rest = spec.split(",")
    kernel, of_y = rest.split("->")
    row, source, outputs = of_x[0], kernel[0], kernel[1:]
    if row in kernel or len(kernel) != weight.a.ndim + weight.b.ndim - 4:
        require_for_all_rows([weight], "a kernel with further dimensions")
    if weight.magnitude is not None:  # it scales columns of the whole product, base included
        require_for_all_rows([weight], "a kernel that is contracted over its outputs, with DoRA,")
    a, b = adapters_of_rows(weight, x.dtype)
    factors = f"{of_x},{row}{source}R,{row}R{outputs}->{of_y}"
    return weight.scale * jnp.einsum(factors, x, a, b)


def ragged(
    x: Float[Array, "pairs I"], weight: Weight, counts: Int[Array, " E"]
) -> Float[Array, "pairs O"]:
    """Multiplies tokens that are sorted by expert with their experts' kernels [E I O].

    Args:
      counts: number of tokens of each expert.
    """
    if isinstance(weight, Measured):
        ends = jnp.cumsum(counts)
        whose = jnp.searchsorted(ends, jnp.arange(len(x)), side="right")
        apart = jax.nn.one_hot(whose, len(counts), axis=0, dtype=x.dtype)[..., None] * x
        own = cast(Array, observe_inputs("epi,epj->eij", apart, weight.moments))
        return ragged(own.sum(0), weight.base, counts)
    if isinstance(weight, Float8):
        rounded = cast(Array, on_grid(FORWARD, x))
        kernels = cast(Array, on_grid(FORWARD, dense(weight).astype(x.dtype)))
        return cast(Array, gradient_on_grid(BACKWARD, ragged(rounded, kernels, counts)))
    return jax.lax.ragged_dot(x, dense(weight).astype(x.dtype), counts)
