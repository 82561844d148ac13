"""XLA flags for GPUs and TPUs: a table of what others found to help, and which of it is set here.

What the user has set stays as it is. An unknown flag aborts the process, so a flag is set only if
its name stands in the libraries that will read it. Read `FLAGS`, then `set_flags`.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import NamedTuple


class Flag(NamedTuple):
    """A flag of XLA, all of which are switched on."""

    backend: str
    """`gpu` or `tpu`."""
    name: str
    why: str


OVERLAP = "collectives run beside products"
FLAGS = (
    Flag("gpu", "xla_gpu_enable_latency_hiding_scheduler", OVERLAP),
    Flag("gpu", "xla_gpu_enable_pipelined_all_gather", "a loop gathers the next layer's weights"),
    Flag("gpu", "xla_gpu_enable_pipelined_reduce_scatter", "and sends the last one's gradients"),
    Flag("gpu", "xla_gpu_enable_pipelined_all_reduce", "and sums them"),
    Flag("tpu", "xla_tpu_enable_async_collective_fusion", OVERLAP),
    Flag("tpu", "xla_tpu_enable_async_collective_fusion_fuse_all_gather", "all-gathers too"),
    Flag("tpu", "xla_tpu_enable_async_collective_fusion_multiple_steps", "over several of them"),
    Flag("tpu", "xla_tpu_overlap_compute_collective_tc", OVERLAP),
    Flag("tpu", "xla_enable_async_all_gather", "all-gathers do not wait"),
    Flag("tpu", "xla_tpu_enable_data_parallel_all_reduce_opt", "sums of gradients overlap"),
    Flag("tpu", "xla_tpu_data_parallel_opt_different_sized_ops", "of any size"),
)
"""Sources: GPU: docs.jax.dev/en/latest/gpu_performance_tips.html and NVIDIA's JAX-Toolbox, "Tips
for High-Performance LLMs with JAX and XLA"; TPU: MaxText's benchmarks/xla_flags_library.py, the
sets for all-gathers and for data parallelism. None changes what is computed, only when."""

READ_FROM = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}
"""The environment variable in which a backend's library looks for its flags."""


class Verdict(NamedTuple):
    """What became of a flag."""

    flag: Flag
    told: str
    """`set`, `yours` or `unknown`."""

    @property
    def line(self) -> str:
        """The flag and why, for `gptjax doctor`."""
        said = {
            "set": f"set: {self.flag.why}",
            "yours": f"left as it is in {READ_FROM[self.flag.backend]}",
            "unknown": "not set, since this version of the compiler has no such flag",
        }
        return f"--{self.flag.name}: {said[self.told]}"


def set_flags(backend: str, libraries: tuple[Path, ...]) -> tuple[Verdict, ...]:
    """Sets those flags of a backend that the user did not set and that all libraries know.

    Args:
      libraries: files that read the flags; without any none is known.
    """
    variable = READ_FROM[backend]
    given, verdicts = os.environ.get(variable, ""), []
    mine = [flag for flag in FLAGS if flag.backend == backend]
    known = _known(libraries, [flag.name for flag in mine])
    for flag in mine:
        told = (
            "yours" if _mentions(given, flag.name) else "set" if flag.name in known else "unknown"
        )
        verdicts.append(Verdict(flag, told))
    added = [f"--{one.flag.name}=true" for one in verdicts if one.told == "set"]
    if added:
        os.environ[variable] = " ".join([given, *added]).strip()
    return tuple(verdicts)


def _mentions(given: str, name: str) -> bool:
    return re.search(rf"--(no)?{name}(=|\s|$)", given) is not None


def _known(libraries: tuple[Path, ...], names: list[str]) -> set[str]:
    """Those names that every library has among its strings."""
    known = set(names) if libraries else set()
    for library in libraries:
        with (
            library.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
        ):
            known = {name for name in known if text.find(name.encode() + b"\0") >= 0}
    return known


def libraries_of(backend: str) -> tuple[Path, ...]:
    """The libraries that read a backend's flags: of a GPU those of jaxlib and of its plug-in."""
    if backend == "tpu":
        return tuple(_files("libtpu", "libtpu.so"))
    jaxlib = (*_files("jaxlib", "libjax_common.so"), *_files("jaxlib", "xla_extension.so"))
    plugin = tuple(_files("jax_plugins", "xla_cuda*/*.so"))
    return (*jaxlib, *plugin) if jaxlib and plugin else ()


def _files(package: str, pattern: str) -> Iterator[Path]:
    found = util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        yield from sorted(Path(folder).glob(pattern))


def accelerator(devices: Path = Path("/dev")) -> str | None:
    """`gpu` or `tpu`, if JAX will find one and can use it; else `None`.

    Args:
      devices: where the system lists them.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "")

    def may(*names: str) -> bool:
        return not wanted or any(name in wanted.split(",") for name in names)

    if may("cuda", "gpu") and any(devices.glob("nvidia[0-9]*")) and util.find_spec("jax_plugins"):
        return "gpu"
    if may("tpu") and util.find_spec("libtpu") and has_tpu(devices):
        return "tpu"
    return None


def has_tpu(devices: Path) -> bool:
    """Whether a folder of devices has one that may be a TPU."""
    return any(any(devices.glob(name)) for name in ("accel*", "vfio/[0-9]*"))
