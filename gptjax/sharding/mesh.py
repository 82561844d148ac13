"""Mesh from config, logical-axis rules, and placing trees and batches on devices.

Read `MeshConfig` and `make_mesh`, then `Rules` and `shardings`. `sharding/constrain.py` places
activations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.core.arrays import Axes
from gptjax.core.config import nearest, require
from gptjax.sharding.constrain import AXES, ROWS, partition_spec, use_mesh

MeshAxes = tuple[str, ...]
"""Axes of the mesh that split a dimension together, outermost first; empty leaves it whole."""


@dataclass(frozen=True)
class ShardingRules:
    """Which axes of the mesh split a dimension of each logical name.

    A parameter's dimensions choose from left to right, and each takes of its axes, in their order,
    those that no dimension before it has taken and that divide what is left of it; what no axis
    divides stays whole. So experts' kernels [experts embed mlp] take `expert` for the experts and
    `fsdp` for their inputs, and all others take both for their inputs.
    """

    vocab: MeshAxes = ("tensor",)
    """Tokens of embedding and output."""
    embed: MeshAxes = ("fsdp", "expert")
    """The residual stream's width."""
    heads: MeshAxes = ("tensor",)
    """Query heads."""
    kv_heads: MeshAxes = ("tensor",)
    """Key/value heads."""
    mlp: MeshAxes = ("tensor",)
    """Width inside the MLP."""
    layers: MeshAxes = ("stage",)
    """Stacked layers."""
    experts: MeshAxes = ("expert",)
    """Experts."""
    context: MeshAxes = ()
    """Learned positions."""
    buckets: MeshAxes = ()
    """Buckets of T5's bias by distance."""
    latent: MeshAxes = ()
    """Latents of keys, values or queries."""
    head: MeshAxes = ()
    """Width of a head."""

    def __post_init__(self) -> None:
        for rule in dataclasses.fields(self):
            axes = getattr(self, rule.name)
            for axis in axes:
                require(
                    axis in AXES,
                    f"mesh.rules.{rule.name} names {axis!r}, which is no axis of the mesh; there"
                    f" are {', '.join(AXES)}.{nearest(axis, AXES)}",
                )
            require(
                len(set(axes)) == len(axes),
                f"mesh.rules.{rule.name} is {' '.join(axes)}; an axis splits a dimension once.",
            )
        collides = set(self.embed) & (
            set(self.heads) | set(self.kv_heads) | set(self.mlp) | set(self.vocab)
        )
        said = (
            f"mesh.rules.embed takes {', '.join(sorted(collides))} as the heads, mlp or vocab of"
            " the same kernels do"
        )
        require(not collides, f"{said}; one of both would stay whole.")


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each way of splitting takes. Their product is the number of devices."""

    slices: int | None = None
    """Groups of devices that only a slower network joins (DCN): rows of the batch, nothing else.
    `None` asks the devices."""
    stage: int = 1
    """Layers, through which parts of the batch go one after the other (pipeline)."""
    data: int | None = None
    """Rows of the batch; `None` takes all devices that the other axes leave."""
    fsdp: int = 1
    """Rows of the batch, and with them parameters, gradients and optimizer state. Where nothing is
    said of the mesh and the state would take more than a quarter of each device, it is all
    devices."""
    expert: int = 1
    """Rows of the batch, and with them experts; other parameters as in `fsdp`."""
    context: int = 1
    """Positions of each row."""
    tensor: int = 1
    """Heads, MLP width and vocabulary; between blocks positions."""
    offload_optimizer: bool = False
    """Optimizer state lives in the memory of the hosts, and is on the devices only while a step
    changes it."""
    rules: ShardingRules = field(default_factory=ShardingRules)
    """Which axes split which dimensions of parameters."""

    def __post_init__(self) -> None:
        for name in _WAYS:
            value = getattr(self, name)
            require(value is None or value > 0, f"mesh.{name} is {value}; it needs at least 1.")

    @property
    def given(self) -> bool:
        """Something is said of the axes."""
        return any(
            getattr(self, name) != one.default
            for name, one in self.__dataclass_fields__.items()
            if name in _WAYS
        )


_WAYS = ("slices", *(axis for axis in AXES if axis != "slice"))


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Arranges the devices by `AXES`, so that inner axes join near ones and slices are never mixed.

    Raises:
      ConfigError: the axes do not fit the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    num_slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    sizes = {
        "slice": config.slices or num_slices,
        "stage": config.stage,
        "data": 1,
        "fsdp": config.fsdp,
        "expert": config.expert,
        "context": config.context,
        "tensor": config.tensor,
    }
    sizes["data"] = config.data or max(1, len(devices) // math.prod(sizes.values()))
    used = {
        axis: size for axis, size in sizes.items() if size > 1 or axis in ("data", "fsdp", "tensor")
    }
    product = math.prod(sizes.values())
    number = "is 1 device" if len(devices) == 1 else f"are {len(devices)} devices"
    flags = ", ".join(
        f"--mesh.{'slices' if axis == 'slice' else axis}" for axis in used if axis != "data"
    )
    require(
        product == len(devices),
        f"mesh {' × '.join(used)} is {' × '.join(map(str, used.values()))} = {product}, but there"
        f" {number}; change {flags} or --mesh.data.",
    )
    require(
        sizes["slice"] % num_slices == 0,
        f"mesh.slices is {sizes['slice']}, and the devices are {num_slices} slices; use a multiple"
        f" (--mesh.slices {num_slices}).",
    )
    inner = tuple(sizes.values())[1:]
    groups = [_arranged(inner, group) for group in _by_slice(devices, sizes["slice"])]
    return Mesh(np.stack(groups), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_slice(devices: list, count: int) -> list[list]:
    """Devices of each slice, or of equal parts of them where more are asked for than there are."""
    ordered = sorted(devices, key=lambda device: getattr(device, "slice_index", None) or 0)
    return [list(part) for part in np.array_split(np.asarray(ordered, object), count)]


def _arranged(shape: tuple[int, ...], devices: list) -> np.ndarray:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def param_shardings(
    mesh: Mesh, axes: Axes, shapes: Any, rules: ShardingRules = ShardingRules()
) -> Any:
    """Returns each parameter's NamedSharding, as the rules say; scales and biases of the residual
    stream stay whole."""

    def one(names: tuple[str | None, ...], shape: Any) -> NamedSharding:
        vector = (
            sum(name != "layers" for name in names) == 1
        )  # of the stream's width: to gather it takes a message, and to split it saves nothing
        wanted = [
            () if name is None or (vector and name == "embed") else getattr(rules, name)
            for name in names
        ]
        return NamedSharding(mesh, partition_spec(mesh.shape, shape.shape, wanted))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def with_mesh(mesh: Mesh, function: Callable) -> Callable:
    """The function, which when it is traced knows the mesh that it is traced for."""

    @functools.wraps(function)
    def knowing(*args: Any) -> Any:
        with use_mesh(mesh):
            return function(*args)

    return knowing


def in_host_memory(where: Any, device: Any) -> Any:
    """These shardings, in the memory of the hosts; numbers that are no arrays stay where they are.

    Raises:
      ConfigError: the devices can't reach such memory.
    """
    kinds = {memory.kind for memory in device.addressable_memories()}
    need = (
        "leave out --mesh.offload-optimizer; --optim.moment bfloat16 or Adafactor make the"
        " optimizer's state smaller"
    )
    has = (
        f"mesh.offload_optimizer needs devices that reach the host's memory, and {device.platform}"
        f" has only {', '.join(sorted(kinds))}"
    )
    require("pinned_host" in kinds, f"{has}; {need}.")
    return jax.tree.map(lambda one: one.with_memory_kind("pinned_host") if one.spec else one, where)


def in_device_memory(where: Any) -> Any:
    """These shardings, in the devices' own memory."""
    return jax.tree.map(lambda one: one.with_memory_kind("device"), where)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole value."""
    return NamedSharding(mesh, P())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are split over all axes that split rows."""
    return NamedSharding(mesh, P(ROWS))


def num_row_shards(mesh: Mesh) -> int:
    """The number of parts that a batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def bytes_per_device(tree: Any) -> int:
    """Bytes of one device's part of arrays or shapes that have shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def describe_mesh(mesh: Mesh) -> str:
    """The mesh in words, as `data 2 × fsdp 4`."""
    return (
        " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
        or "one device"
    )


def writing_mesh(mesh: Mesh) -> Mesh | None:
    """The mesh, if it splits nothing but what generation splits: no layers and no positions."""
    return mesh if mesh.shape["stage"] == mesh.shape["context"] == 1 else None


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a batch that the devices of this process hold, in their order."""
    where = row_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in where]))


def place_batch(batch: Any, mesh: Mesh, rows: int) -> Any:
    """Makes one batch of `rows` rows, split over all devices, of the `own_rows` (numpy) that each
    process gives."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            row_sharding(mesh), np.asarray(leaf), (rows, *leaf.shape[1:])
        ),
        batch,
    )


def to_host(array: Any) -> np.ndarray:
    """The whole array as numpy, on every process, however it is split over several of them (then
    all must call this)."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = _whole(array.sharding.mesh)(array)
    return np.asarray(array)


@functools.cache
def _whole(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=replicated(mesh))
