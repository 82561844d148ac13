"""Collectives inside `jax.shard_map`: what one device does to assemble a whole array from the parts
that devices along mesh axes hold, and the reverse."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Array


def all_gather(x: Array, axis: str, dimension: int) -> Array:
    """Concatenates the parts of all devices along a mesh axis."""
    return jax.lax.all_gather(x, axis, axis=dimension, tiled=True)


def reduce_scatter(x: Array, axis: str, dimension: int) -> Array:
    """Sums over the devices along a mesh axis and keeps this device's part of the sum."""
    return jax.lax.psum_scatter(x, axis, scatter_dimension=dimension, tiled=True)


def local_slice(x: Array, axis: str, dimension: int) -> Array:
    """This device's part of an array that all devices along a mesh axis hold whole."""
    size = x.shape[dimension] // jax.lax.axis_size(axis)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * size, size, dimension)


def gather_shards(x: Array, spec: P, *, keep: str) -> Array:
    """Gathers an array over every axis of its spec but `keep`."""
    for dimension, entry in enumerate(spec):
        for axis in reversed(axes_of(entry)):
            if axis != keep:
                x = all_gather(x, axis, dimension)
    return x


def scatter_sum(x: Array, spec: P, summed: set[str], *, keep: str) -> Array:
    """The transpose of `gather_shards`: sums over the axes `summed`, and keeps this device's part
    along every axis of the spec but `keep`."""
    summed = set(summed)
    for dimension, entry in enumerate(spec):
        for axis in axes_of(entry):
            if axis == keep:
                continue
            if axis in summed:
                x = reduce_scatter(x, axis, dimension)
                summed.remove(axis)
            else:
                x = local_slice(x, axis, dimension)
    return jax.lax.psum(x, tuple(sorted(summed))) if summed else x


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else entry or ()
