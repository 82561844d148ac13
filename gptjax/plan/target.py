"""Machines that a program can be compiled for without having them: TPU slices, GPU clusters, this
machine's CPU.

Read `Target` and `parse_target`; then `stand_in_devices`, which asks the compilers for stand-ins;
`CHIPS` holds the published figures of each chip.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from gptjax.core.config import ConfigError, nearest, require


@dataclass(frozen=True)
class Chip:
    """A kind of chip. Rates are per second, of one device as XLA sees it, in one direction."""

    name: str
    peak: float
    """Dense bfloat16 FLOP/s."""
    memory: float
    """Bytes that a program may use."""
    bandwidth: float
    """Bytes/s to and from its memory."""
    link: float
    """Bytes/s of one link to a neighbour (ICI), or of all links inside a host (NVLink)."""
    network: float
    """Bytes/s to other slices (DCN) or hosts, the device's share of its host's bandwidth."""
    clock: float | None = None
    """Cycles/s by which the compiler's own estimates become seconds; `None` without estimates or if
    the clock is unknown."""
    dimensions: int = 0
    """Dimensions of the torus that joins chips; 0 for GPUs."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further arguments that libtpu needs to describe the topology."""
    cores: tuple[int, ...] = ()
    """For a GPU: multiprocessors, arithmetic units of each, compute capability (two numbers),
    shared memory of each, L2 cache, kHz."""


GIB = 2**30
MEGACORE = (("chip_config_name", "megacore"),)

CHIPS = {
    "v4": Chip("TPU v4", 275e12, 30.75 * GIB, 1.228e12, 4.5e10, 6.25e9, 1.05e9, 3, MEGACORE),
    "v5e": Chip("TPU v5 lite", 197e12, 15.75 * GIB, 8.19e11, 4.5e10, 3.125e9, 1.5e9, 2),
    "v5p": Chip("TPU v5", 459e12, 95.73 * GIB, 2.765e12, 9e10, 6.25e9, 1.75e9, 3, MEGACORE),
    "v6e": Chip("TPU v6 lite", 918e12, 31.24 * GIB, 1.64e12, 9e10, 12.5e9, 1.75e9, 2),
    "tpu7x": Chip("TPU7x", 1153.5e12, 94.74 * GIB, 3.69e12, 4.5e10, 6.25e9, None, 3),
    "a100": Chip(
        "NVIDIA A100-SXM4-80GB",
        312e12,
        0.95 * 85_100_068_864,
        2.039e12,
        3e11,
        2.5e10,
        cores=(108, 64, 8, 0, 167_936, 41_943_040, 1_410_000),
    ),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3",
        989e12,
        0.95 * 84_942_979_072,
        3.352e12,
        4.5e11,
        5e10,
        cores=(132, 128, 9, 0, 233_472, 52_428_800, 1_980_000),
    ),
    "h200": Chip(
        "NVIDIA H200",
        989e12,
        0.95 * 150_754_820_096,
        4.8e12,
        4.5e11,
        5e10,
        cores=(132, 128, 9, 0, 233_472, 62_914_560, 1_980_000),
    ),
    "b200": Chip(
        "NVIDIA B200",
        2250e12,
        0.95 * 191_514_411_008,
        7.672e12,
        9e11,
        5e10,
        cores=(148, 128, 10, 0, 233_472, 132_644_864, 1_965_000),
    ),
}
"""Sources. TPU peaks and memory bandwidths: Google Cloud's pages of each version; links and DCN:
jax-ml/scaling-book, `tpus.md` (its 90 GB/s where it also names 100); memory: what libtpu 0.0.52
reports as its limit when it refuses a program that is too large; clock: implied by the peak,
unknown for TPU7x, whose peak is of one of a chip's two devices. GPUs: NVIDIA's data sheets of the
SXM boards, memory as the driver reports it, of which a program gets 95 %
(XLA_CLIENT_MEM_FRACTION=0.95; JAX takes 75 % by default); network: one 200 or 400 Gbit/s adapter
for each GPU."""

TPUS = tuple(name for name, chip in CHIPS.items() if chip.dimensions)


@dataclass(frozen=True)
class Target:
    """A machine: one or more slices of chips of one kind."""

    kind: str
    """A key of `CHIPS`, or `cpu`."""
    shape: tuple[int, ...]
    """Sides of one slice's torus; hosts and GPUs of each; or the number of CPU devices."""
    slices: int = 1

    def __str__(self) -> str:
        slices = f"{self.slices}*" if self.slices > 1 else ""
        return f"{slices}{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def platform(self) -> str:
        """JAX's name of the platform."""
        return "cpu" if self.kind == "cpu" else "tpu" if self.kind in TPUS else "gpu"

    @property
    def chip(self) -> Chip | None:
        """The kind of its chips; `None` for a CPU."""
        return CHIPS.get(self.kind)

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Whether each axis of the torus is a ring: those of whole cubes of 4 × 4 × 4, or a full
        side of 16 in two dimensions."""
        if self.platform != "tpu":
            return ()
        cubes = len(self.shape) == 3 and all(side % 4 == 0 for side in self.shape)
        return tuple(cubes if len(self.shape) == 3 else side == 16 for side in self.shape)


def parse_target(text: str) -> Target:
    """Parses `v5p:4x8x8`, `2*v6e:16x16` (two slices), `h100:32x8` (hosts × GPUs) or `cpu:8`.

    Raises:
      ConfigError: there is no such machine; lists the kinds.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9]+):(\d+(?:x\d+)*)", text)
    require(
        match is not None,
        f"target is {text!r}; it needs a kind and a shape, such as v5p:4x8x8, 2*v6e:16x16,"
        " h100:32x8 or cpu:8.",
    )
    slices, kind = int(match[1] or 1), match[2]
    shape = tuple(int(side) for side in match[3].split("x"))
    require(
        kind in CHIPS or kind == "cpu",
        f"target is {text!r}, and {kind!r} is not known; there are {', '.join(CHIPS)},"
        f" cpu.{nearest(kind, CHIPS)}",
    )
    sides = 1 if kind == "cpu" else CHIPS[kind].dimensions or 2
    wanted = {1: "cpu:8", 2: f"{kind}:4x8", 3: f"{kind}:4x4x4"}[sides]
    require(
        len(shape) == sides and min(shape) > 0 and slices > 0,
        f"target is {text!r}; {kind} has {sides} side{'s' * (sides > 1)}, for example {wanted}.",
    )
    require(
        slices == 1 or kind in TPUS,
        f"target is {text!r}; only TPUs come in slices. Give hosts instead:"
        f" {kind}:{slices * shape[0]}x8.",
    )
    return Target(kind, shape, slices)


def stand_in_devices(target: Target) -> list:
    """Returns stand-ins for the machine's devices, in the order that `make_mesh` needs.

    Raises:
      ConfigError: the compiler's package is missing, or it knows no such machine.
    """
    if target.platform == "cpu":
        return _cpus(target.shape[0])
    package, extra = (
        ("libtpu", "plan-tpu")
        if target.platform == "tpu"
        else ("jax_plugins.xla_cuda13", "plan-gpu")
    )
    require(
        _installed(package),
        f"target {target} needs the compiler in {package.split('.')[-1]}; pip install"
        f" 'gptjax[{extra}]'.",
    )
    from jax.experimental import topologies

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    topology = _tpu(target) if target.platform == "tpu" else _gpu(target)
    try:
        return list(topologies.get_topology_desc(**topology).devices)
    except Exception as error:  # whatever the plug-in raises
        raise ConfigError(
            f"target {target} is refused by its compiler: {' '.join(str(error).split())[:200]}"
        ) from None


_QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process stops at the lock of the first
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # need not be the topology's
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""Keeps libtpu from looking for a TPU, and from logging that it found none."""


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _tpu(target: Target) -> dict[str, Any]:
    bounds = tuple(min(side, most) for side, most in zip(target.shape, (2, 2, 1), strict=False))
    topology = {
        "platform": "tpu",
        "topology_name": f"{target.kind}:{'x'.join(map(str, target.shape))}",
        "chips_per_host_bounds": (*bounds, 1)[:3],
    }
    if any(target.wrapped):
        topology["wrap"] = (*target.wrapped, False)[:3]
    if target.slices > 1:
        topology["num_slices"] = target.slices
    return topology | dict(target.chip.options)


def _gpu(target: Target) -> dict[str, Any]:
    return {
        "platform": "cuda",
        "topology": f"1x{target.shape[0]}x{target.shape[1]}",
        "target_config": gpu_description(target.chip),
    }


def gpu_description(chip: Chip) -> str:
    """Returns a GPU's properties as the text that XLA's compiler reads (`GpuTargetConfigProto`)."""
    processors, units, major, minor, shared, cache, kilohertz = chip.cores
    feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    facts = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 49152,
        "shared_memory_per_block_optin": shared - 1024,
        "shared_memory_per_core": shared,
        "core_count": processors,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "l2_cache_size": cache,
        "clock_rate_ghz": kilohertz / 1e6,
        "memory_bandwidth": round(chip.bandwidth),
        "device_memory_size": round(chip.memory / 0.95),
        "device_address_bits": 64,
        "pcie_bandwidth": 2**35,
    }
    words = {
        "device_vendor": "NVIDIA Corporation",
        "name": chip.name,
        "platform_version": f"Compute Capability {major}.{minor}{'a' * (major >= 9)}",
    }
    words |= dict.fromkeys(
        ("driver_version", "runtime_version", "compile_time_toolkit_version"), "13.0.0"
    ) | {"dnn_version": "9.12.0"}
    lines = [
        *(f"{name}: {value}" for name, value in facts.items()),
        *(f'{name}: "{value}"' for name, value in words.items()),
    ]
    capability = (
        f"cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}"
    )
    dnn = "dnn_version_info { major: 9 minor: 12 patch: 0 }"
    about = [
        "ecc_enabled: true",
        "}",
        'platform_name: "CUDA"',
        dnn,
        f'device_description_str: "{chip.name}"',
    ]
    return "\n".join(["gpu_device_info {", *lines, capability, *about])


def _cpus(count: int) -> list:
    here = jax.devices("cpu")
    flag = "XLA_FLAGS=--xla_force_host_platform_device_count"
    require(
        len(here) >= count,
        f"target cpu:{count} needs {count} CPU devices, and this process has {len(here)}; set"
        f" {flag}={count}.",
    )
    return here[:count]


def host_bytes() -> float:
    """Returns the bytes of memory of this machine."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def torus_links(target: Target, places: list[tuple[int, ...]]) -> float:
    """Returns the number of links over which a device can send at once to others of a group at
    these places of the torus: two along each axis that the group spans, one if the axis is no
    ring."""
    links = 0
    for axis, ring in enumerate(target.wrapped):
        if len({place[axis] for place in places}) > 1:
            links += 2 if ring else 1
    return float(max(1, links))
