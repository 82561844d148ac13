"""Versions, devices and flags of this machine, and what is known to be wrong with them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path

import jax
import jax.numpy as jnp

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


def diagnose(flags: str) -> tuple[list[str], bool]:
    """Gives lines to print, and whether nothing known to be wrong was found."""
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
        f"cache     {os.environ.get('JAX_COMPILATION_CACHE_DIR', 'none')}",
        f"compiles  {'yes' if total == 4096.0 else f'wrongly: a sum of 4096 ones is {total}'}",
        *(f"✗ {problem}" for problem in wrong),
    ]
    if not wrong:
        lines.append("✓ nothing known to be wrong")
    return lines, not wrong and total == 4096.0


def problems() -> list[str]:
    """What is known not to work, each with what mends it."""
    found = [
        f"{name} is not installed; pip install {name}"
        for name in PACKAGES
        if _version(name) == "missing"
    ]
    if _number("sentencepiece") < (0, 2, 1):
        found.append("sentencepiece is older than 0.2.1; pip install -U sentencepiece")
    if _number("jax")[:2] != _number("jaxlib")[:2]:
        found.append(
            f"jax {_version('jax')} and jaxlib {_version('jaxlib')} differ; pip install -U jax"
            " jaxlib"
        )
    if _number("jax") >= (0, 12) and _number("flax") < (0, 12, 9):
        found.append(
            f"flax {_version('flax')} is older than jax {_version('jax')} wants; pip install -U"
            " flax"
        )
    if util.find_spec("tensorflow") and "tensorflow" in sys.modules:
        found.append(
            "TensorFlow is imported before SentencePiece, whose training then crashes; do not"
            " import TensorFlow"
        )
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _version(name).split(".")[:3] if part.isdecimal())
