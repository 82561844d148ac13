"""Mesh from config, logical-axis rules, and placing trees and batches on devices.

Read `MeshConfig` and `make_mesh`, then `Rules` and `shardings`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.arrays import Axes
from gptjax.config import require


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each way of splitting takes. Their product is the number of devices."""

    data: int | None = None
    """Rows of the batch; none takes all devices that the other axes leave."""
    fsdp: int = 1
    """Rows of the batch, and with them parameters, gradients and optimizer state."""
    tensor: int = 1
    """Heads, MLP width and vocabulary."""

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            require(value is None or value > 0, f"mesh.{name} is {value}; it needs at least 1.")


@dataclass(frozen=True)
class Rules:
    """Which mesh axis splits a dimension of each logical name; none splits it over nothing."""

    vocab: str | None = "tensor"
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"
    layers: str | None = None
    context: str | None = None
    buckets: str | None = None
    experts: str | None = None
    latent: str | None = None
    head: str | None = None


BATCH = P(("data", "fsdp"))
"""Rows of a batch are split over both."""


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Arranges the devices as (data, fsdp, tensor).

    Raises:
      ConfigError: the axes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    others = config.fsdp * config.tensor
    data = config.data or max(1, len(devices) // others)
    require(
        data * others == len(devices),
        f"mesh data × fsdp × tensor is {data} × {config.fsdp} × {config.tensor} = {data * others}, but there are {len(devices)} devices; "
        f"change --mesh.fsdp, --mesh.tensor or --mesh.data.",
    )
    return jax.make_mesh((data, config.fsdp, config.tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)


def shardings(mesh: Mesh, axes: Axes, shapes: Any, rules: Rules = Rules()) -> Any:
    """Gives each parameter's NamedSharding. A dimension that its mesh axis does not divide stays whole."""

    def one(names: tuple[str | None, ...], shape: Any) -> NamedSharding:
        spec = [None if name is None else getattr(rules, name) for name in names]
        whole = [axis is None or size % mesh.shape[axis] != 0 for axis, size in zip(spec, shape.shape, strict=True)]
        return NamedSharding(mesh, P(*(None if w else axis for axis, w in zip(spec, whole, strict=True))))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole value."""
    return NamedSharding(mesh, P())


def over_rows(mesh: Mesh) -> NamedSharding:
    """Rows are split over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def row_parts(mesh: Mesh) -> int:
    """The number of parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold, in their order."""
    where = over_rows(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in where]))


def place(batch: Any, mesh: Mesh, rows: int) -> Any:
    """Makes one batch of `rows` rows, split over all devices, of the `own_rows` (numpy) that each process gives."""
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(over_rows(mesh), np.asarray(leaf), (rows, *leaf.shape[1:])), batch)


def on_host(array: Any) -> np.ndarray:
    """The whole array as numpy, on every process, however it is split over several of them (then all must call this)."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = _whole(array.sharding.mesh)(array)
    return np.asarray(array)


@functools.cache
def _whole(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=replicated(mesh))
