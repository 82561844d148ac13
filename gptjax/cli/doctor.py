"""`gptjax doctor`: versions, devices and flags of this machine, and combinations known not to
work."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from gptjax.cli.arguments import describe_flags
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError
from gptjax.core.xla_flags import Verdict

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "importlib_resources",
    "sentencepiece",
    "tokenizers",
    "numpy",
    "tyro",
    "jaxtyping",
    "tensorboardX",
)


@dataclass(frozen=True)
class DoctorOptions:
    """Flags of `doctor`: none."""


def doctor_command(args: list[str]) -> None:
    """Prints versions, devices, flags and known problems.

    Raises:
      ConfigError: there is a known problem.
    """
    chosen = backend.configure()
    user_config.cli(
        DoctorOptions,
        args,
        prog="gptjax doctor",
        description="Prints versions, devices and flags, and combinations known not to work.",
    )
    lines, healthy = diagnose(describe_flags(chosen), chosen.verdicts)
    print("\n".join(lines))
    if not healthy:
        raise ConfigError("something above is known not to work; see the lines marked ✗.")


def diagnose(flags: str, verdicts: tuple[Verdict, ...] = ()) -> tuple[list[str], bool]:
    """Returns lines to print, and whether no known problem was found.

    Args:
      verdicts: on the flags for an accelerator.
    """
    import jax
    import jax.numpy as jnp

    wrong = problems()
    devices = ", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices())
    free = shutil.disk_usage(Path.home()).free / 2**30
    total = float(jnp.ones((64, 64)).sum())
    lines = [
        (
            f"Python    {platform.python_version()} on {platform.system()} {platform.machine()},"
            f" {os.cpu_count()} cores, {free:.0f} GiB free on disk"
        ),
        *(
            f"{'packages' if i == 0 else '':10}{name} {_version(name)}"
            for i, name in enumerate(PACKAGES)
        ),
        f"devices   {devices}",
        f"flags     {flags}; XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}",
        *(f"flag      {one.line}" for one in verdicts),
        f"cache     {os.environ.get('JAX_COMPILATION_CACHE_DIR', 'none')}",
        f"compiles  {'yes' if total == 4096.0 else f'wrongly: a sum of 4096 ones is {total}'}",
        *(f"kernels   {line}" for line in _kernels()),
        *(f"✗ {problem}" for problem in wrong),
    ]
    if not wrong:
        lines.append("✓ nothing known to be wrong")
    return lines, not wrong and total == 4096.0


def _kernels() -> list[str]:
    """Whether attention by the vendor's kernel compiles here and is right."""
    import jax

    from gptjax.model.attention.select import VENDORS
    from gptjax.model.attention.trial import trial_report

    name, _ = VENDORS.get(jax.default_backend(), ("", ""))
    return trial_report(name) if name else [f"none of a vendor's to try on {jax.default_backend()}"]


def problems() -> list[str]:
    """Known problems of this environment, each with its remedy."""
    wrong = [
        f"{name} is not installed; pip install {name}"
        for name in PACKAGES
        if _version(name) == "missing"
    ]
    if _number("sentencepiece") < (0, 2, 1):
        wrong.append("sentencepiece is older than 0.2.1; pip install -U sentencepiece")
    if _number("jax")[:2] != _number("jaxlib")[:2]:
        wrong.append(
            f"jax {_version('jax')} and jaxlib {_version('jaxlib')} differ; pip install -U jax"
            " jaxlib"
        )
    if _number("jax") >= (0, 12) and _number("flax") < (0, 12, 9):
        wrong.append(
            f"flax {_version('flax')} is too old for jax {_version('jax')}; pip install -U flax"
        )
    if util.find_spec("tensorflow") and "tensorflow" in sys.modules:
        wrong.append(
            "TensorFlow was imported before SentencePiece, which makes SentencePiece's training"
            " crash; do not import TensorFlow"
        )
    return wrong


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _version(name).split(".")[:3] if part.isdecimal())
