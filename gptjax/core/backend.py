"""Settings of XLA's CPU backend, chosen before jax is imported. A user's own `XLA_FLAGS` win."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple


class Choice(NamedTuple):
    """What `configure` did."""

    flags: tuple[str, ...]
    reason: str


ONEDNN = "--xla_cpu_experimental_onednn_custom_call"
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def configure() -> Choice:
    """Adds the CPU flags that this jaxlib and this processor are known to gain from, and a
    persistent compile cache.

    jaxlib 0.12 holds oneDNN products that are off by default; with bfloat16 instructions they
    double the speed of a training step. An unknown flag would end the process, so a flag is set
    only for the jaxlib it was measured with.
    """
    _keep_freed_memory()
    choice = _choose_flags()
    if not any(ONEDNN in flag for flag in choice.flags) and ONEDNN not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        # jaxlib 0.12.0 can't serialise a program with oneDNN products: std::bad_alloc
        _cache_compilations()
    return choice


def _choose_flags() -> Choice:
    version, given = _jaxlib(), os.environ.get("XLA_FLAGS", "")
    if "jax" in sys.modules:
        return Choice((), "jax was imported before gptjax could choose CPU flags")
    if ONEDNN in given:
        return Choice((), "XLA_FLAGS already decides on oneDNN products")
    if version[:2] != (0, 12):
        return Choice((), f"no flag is known to help jaxlib {'.'.join(map(str, version))}")
    if not fast_bfloat16():
        return Choice((), "this processor has no bfloat16 instructions")
    flags = (
        f"{ONEDNN}=true",
        *(() if YNNPACK in given else (f"{YNNPACK}=",)),
    )  # none: or YNNPACK takes most products before oneDNN can
    os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()
    return Choice(flags, "oneDNN products: jaxlib 0.12 on a processor with bfloat16 instructions")


def fast_bfloat16() -> bool:
    """A training step is faster in bfloat16 than in float32 on this CPU: jaxlib 0.12 or newer, and
    bfloat16 instructions."""
    return _jaxlib() >= (0, 12) and _has_bfloat16()


def _keep_freed_memory() -> None:
    """Tells glibc to keep what is freed. XLA frees a step's buffers and asks for them again at the
    next step; handing them back to the system in between costs a page fault for every 4 KiB, a
    third of a small step's time.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: take large blocks from the heap too
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and do not shrink the heap


def _cache_compilations() -> None:
    folder = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptjax" / "compiled"
    )
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # a read-only home: compile anew each time
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _jaxlib() -> tuple[int, ...]:
    return tuple(
        int(part) for part in metadata.version("jaxlib").split(".")[:3] if part.isdecimal()
    )


def _has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
