"""XLA flags and the compile cache, set before jax is imported: those of the CPU here, those of
accelerators in `xla_flags`. The user's own `XLA_FLAGS` take precedence."""

from __future__ import annotations

import os
import sys
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from gptjax.core import xla_flags


class Choice(NamedTuple):
    """The flags that `configure` added, and why it added these, or none."""

    flags: tuple[str, ...]
    reason: str
    verdicts: tuple[xla_flags.Verdict, ...] = ()
    """What became of each flag for an accelerator, where there is one."""


ONEDNN = "--xla_cpu_experimental_onednn_custom_call"
YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def configure() -> Choice:
    """Adds the flags that are known to help this jaxlib on this machine, and a persistent compile
    cache.

    jaxlib 0.12 has oneDNN matrix products, off by default, which double the speed of a training
    step on processors with bfloat16 instructions. An unknown flag aborts the process, so each flag
    is set only for the jaxlib it was measured with.
    """
    _leave_out_absent_tpu()
    choice = _choose_flags()
    with_onednn = any(ONEDNN in flag for flag in choice.flags)
    if not with_onednn and ONEDNN not in os.environ.get("XLA_FLAGS", ""):
        # jaxlib 0.12.0 can't serialise a program with oneDNN products: std::bad_alloc
        _cache_compilations()
    return choice


def _leave_out_absent_tpu() -> None:
    """Lets JAX start on the CPU alone, where libtpu is installed and there is no TPU: it would
    print a page of errors at every start. Devices and plugins of other kinds are left to JAX."""
    decided = "JAX_PLATFORMS" in os.environ or "TPU_NAME" in os.environ or "jax" in sys.modules
    if decided or util.find_spec("libtpu") is None or xla_flags.has_tpu(Path("/dev")):
        return
    if not any(util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")):
        os.environ["JAX_PLATFORMS"] = "cpu"


def _choose_flags() -> Choice:
    version, given = _jaxlib(), os.environ.get("XLA_FLAGS", "")
    if "jax" in sys.modules:
        return Choice((), "jax was imported before gptjax could choose flags")
    if device := xla_flags.accelerator():
        verdicts = xla_flags.set_flags(device, xla_flags.libraries_of(device))
        chosen = tuple(f"--{one.flag.name}=true" for one in verdicts if one.told == "set")
        return Choice(chosen, f"{device.upper()}: gptjax doctor says why", verdicts)
    if ONEDNN in given:
        return Choice((), "XLA_FLAGS already decides on oneDNN products")
    if version[:2] != (0, 12):
        return Choice((), f"no flag is known to help jaxlib {'.'.join(map(str, version))}")
    if not fast_bfloat16():
        return Choice((), "this processor has no bfloat16 instructions")
    # YNNPACK would take most products before oneDNN can, so its fusions are switched off.
    added = (f"{ONEDNN}=true", *(() if YNNPACK in given else (f"{YNNPACK}=",)))
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
    return Choice(added, "oneDNN products: jaxlib 0.12 on a processor with bfloat16 instructions")


def fast_bfloat16() -> bool:
    """Whether training steps are faster in bfloat16 than in float32 on this CPU, which takes
    jaxlib 0.12 or newer and bfloat16 instructions."""
    return _jaxlib() >= (0, 12) and _has_bfloat16()


def user_cache() -> Path:
    """The folder of what can be made again: `gptjax` in the user's XDG cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptjax"


def _cache_compilations() -> None:
    folder = user_cache() / "compiled"
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # a read-only home: no cache
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
