"""Kernels stored in narrow types: which of a tree's weights, in which type, with which scales."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Float, Node
from gptjax.weights.block_rounded import rounds_blocks
from gptjax.weights.linear import multiply
from gptjax.weights.w8a8 import Activations, rounds_activations
from gptjax.weights.weight import (
    Adapted,
    Leaf,
    Quantized,
    Role,
    Weight,
    blocks_of,
    dense,
    per_block,
    quantize,
)

Stored = Literal["float32", "bfloat16", "int8", "int4", "nf4"]
"""`int8` has a scale for each output, `int4` one for each output and `GROUP` inputs, `nf4` one for
each output and `NF4_GROUP` inputs."""

Prepared = Literal[Stored, Activations, "q8_0"]
"""`Stored`, and int8 whose products round activations to 8 bits too: all of them (`w8a8`), or only
where at least 16 tokens of a text are read at once (`w8a8-prefill`); `q8_0`, with scales for 32
inputs and for 32 activations, rounded as llama.cpp rounds them."""

GROUP = 32
"""Inputs that share a scale of int4, where it divides them."""

NF4_GROUP = 64
"""Inputs that share a scale of nf4, where it divides them."""


def store(params: Node, roles: Any, stored: Prepared, *, layers_only: bool = False) -> Node:
    """The tree with every kernel in the stored type; what is quantised already stays (with `w8a8`
    int8 by columns is multiplied so), and so do routers and embeddings, of which a token reads a
    row.

    Args:
      roles: `model.roles(config)`.
      layers_only: leave kernels outside the layers, such as the output, as they are.
    """
    if isinstance(params, Adapted):
        base = store(params.base, roles, stored, layers_only=layers_only)
        return dataclasses.replace(params, base=base)
    if isinstance(roles, Role):
        if roles.inputs == 0 or roles.exact or (layers_only and not roles.stacked):
            return params
        if stored in get_args(Activations):
            whole = stored_as(params, roles, "int8") if hasattr(params, "astype") else params
            return rounds_activations(whole, roles, cast(Activations, stored))
        if stored == "q8_0":
            return rounds_blocks(in_groups(params, roles, "int8"), roles)
        plain = cast(Stored, stored)
        return stored_as(params, roles, plain) if hasattr(params, "astype") else params
    return {
        name: store(tree, roles[name], stored, layers_only=layers_only)
        for name, tree in params.items()
    }


def stored_as(weight: Array, role: Role, stored: Stored) -> Weight:
    """One kernel in the stored type."""
    inputs = weight.shape[role.stacked + role.inputs - 1]
    match stored:
        case "float32":
            return weight
        case "int4":
            return in_groups(weight, role, "int4")
        case "nf4":
            return nf4(weight, role, NF4_GROUP if inputs % NF4_GROUP == 0 else inputs)
    return quantize(weight, stored, role=role)


def in_groups(weight: Weight, role: Role, stored: Literal["int8", "int4"]) -> Weight:
    """An array as whole numbers with a scale for each output and `GROUP` inputs; what is no array
    stays as it is."""
    if not hasattr(weight, "astype"):
        return weight
    inputs = weight.shape[role.stacked + role.inputs - 1]
    group = GROUP if inputs % GROUP == 0 else inputs
    return quantize(cast(Array, weight), stored, role=role, group=group)


def has_packed(params: Any) -> bool:
    """Whether a tree has a weight that is quantised."""
    kinds = Quantized | NormalFloat
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, kinds))
    return any(isinstance(leaf, kinds) for leaf in leaves)


# --- four-bit levels of a normal distribution

LEVELS = np.asarray(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The sixteen levels of NF4."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=[]
)
@dataclass(frozen=True)
class NormalFloat:
    """An array of `LEVELS`, which are as likely as each other under a normal distribution:
    number = LEVELS[value] · scale.

    Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3, without double quantisation.
    """

    values: Leaf
    """uint4 […]: numbers of levels."""
    scales: Leaf
    """float32 […]: the largest absolute value of each block that it divides `values` into."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return self.values.shape


@dense.register
def _(weight: NormalFloat) -> Array:
    levels = jnp.asarray(LEVELS)[weight.values.astype(jnp.int32)]
    return levels * per_block(weight.scales, weight.shape)


@multiply.register
def _(
    weight: NormalFloat, x: Float[Array, "... I"], *, wide: bool = False
) -> Float[Array, "... O"]:
    """The kernel is widened each time, not once before a loop over tokens."""
    x, weight = jax.lax.optimization_barrier((x, weight))
    return multiply(dense(weight), x, wide=wide)


def nf4(weight: Float[Array, "..."], role: Role, group: int) -> NormalFloat:
    """Rounds an array to the nearest levels, with a scale for each output and `group` inputs."""
    apart, within = blocks_of(weight, role, group)
    scales = jnp.maximum(jnp.max(jnp.abs(apart), axis=within), 1e-30)
    shares = (apart / jnp.expand_dims(scales, within)).reshape(weight.shape)
    between = (LEVELS[1:] + LEVELS[:-1]) / 2
    values = jnp.searchsorted(jnp.asarray(between), shares.reshape(-1)).reshape(weight.shape)
    return NormalFloat(values.astype(jnp.uint4), scales)
