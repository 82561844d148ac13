"""Sharding of activations on the mesh that a program is traced for; without a mesh, or on one
device, these functions change nothing.

The axes of a mesh are `AXES`. `mesh.ShardingRules` places weights; `constrain` places activations.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Array

AXES = ("slice", "stage", "data", "fsdp", "expert", "context", "tensor")
"""Outermost first: what speaks least with its neighbours, and over the slowest network, to what
speaks most."""

ROWS = ("slice", "data", "fsdp", "expert")
"""The axes over which rows of a batch are split."""


def current_mesh() -> AbstractMesh | None:
    """The mesh that is traced for; `None` without one, and inside `shard_map`, where each device
    already computes for itself."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.manual_axes or mesh.size == 1 else mesh


def use_mesh(mesh: Any) -> Any:
    """A context in which functions are traced for a mesh, whose devices need not be present; `None`
    changes nothing."""
    return (
        contextlib.nullcontext()
        if mesh is None
        else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    )


def _device() -> Any:
    """The device that the traced program is for; `None` without a mesh that says so."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh.abstract_device


def platform() -> str:
    """The platform of the traced program: `cpu`, `gpu` or `tpu`; without a mesh, JAX's default."""
    device = _device()
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The kind of device that the traced program is for, in its maker's words, such as `NVIDIA H100
    80GB HBM3`; without a mesh, that of JAX's default device."""
    return (_device() or jax.devices()[0]).device_kind


def axis_size(*axes: str) -> int:
    """Product of the sizes of these mesh axes."""
    mesh = current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in axes)


def partition_spec(
    sizes: Mapping[str, int], shape: Sequence[int], wanted: Sequence[Sequence[str]]
) -> P:
    """Splits each dimension over the axes that it wants.

    Dimensions choose from left to right. Each takes of its axes, in their order, those that no
    dimension before it took and that divide it.
    """
    specs: list[Any] = []
    taken: set[str] = set()
    for size, axes in zip(shape, wanted, strict=True):
        here: list[str] = []
        for axis in axes:
            if (
                sizes.get(axis, 1) > 1
                and axis not in taken
                and size % math.prod(sizes[one] for one in (*here, axis)) == 0
            ):
                here.append(axis)
        taken |= set(here)
        specs.append(here[0] if len(here) == 1 else tuple(here) or None)
    return P(*specs)


def constrain(x: Array, *axes: Sequence[str]) -> Array:
    """x, each dimension split over these axes of the mesh. Values do not change."""
    mesh = current_mesh()
    return (
        x
        if mesh is None
        else jax.lax.with_sharding_constraint(x, partition_spec(mesh.shape, x.shape, axes))
    )


def constrain_residual(x: Array) -> Array:
    """The residual stream [B T D] between blocks: rows over devices, and positions over those that
    hold no rows of their own.

    Source: Korthikanti et al. 2022, Reducing Activation Recomputation, arXiv:2205.05198, section
    4.2.2 (sequence parallelism).
    """
    return constrain(x, ROWS, ("context", "tensor"), ())
