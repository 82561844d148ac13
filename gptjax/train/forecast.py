"""Checks a run's need of devices and memory before anything is read or allocated, and says what to
change where memory runs out.

Read `require_possible` (before the data are read), `require_fits` (after compiling, which tells the
exact need), `explained`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from gptjax.core.config import ConfigError, require
from gptjax.sharding.mesh import bytes_per_device, make_mesh, num_row_shards
from gptjax.train import placement, program
from gptjax.train.experiment import Experiment, guessed


def require_possible(experiment: Experiment) -> Mesh:
    """Returns the mesh that an experiment takes; refuses one whose batch and mesh do not fit the
    devices, or whose least need is more memory than there is.

    The least is state and gradients, or state and what the backward pass starts from: one residual
    stream a layer. A vocabulary that only the data know counts as small.

    Raises:
      ConfigError: with the numbers, and the flags that change them.
    """
    try:
        layout = placement.lay_out(guessed(experiment), free_bytes())
    except OverflowError:
        raise ConfigError(
            "a size of the model is beyond 2,147,483,647, which no device can count to;"
            f" {_smaller_model(experiment)}."
        ) from None
    experiment, mesh, state, frozen = layout
    config = experiment.model
    rows = experiment.batch // experiment.micro_batches // num_row_shards(mesh)
    residuals = (
        config.num_layers
        * rows
        * config.context
        * config.width
        * (2 if config.compute == "bfloat16" else 4)
    )
    _require_room(
        experiment,
        bytes_per_device((state, frozen)),
        max(bytes_per_device(state.trainable), residuals),
        "at least ",
    )
    return mesh


def require_fits(experiment: Experiment, built: program.Program) -> None:
    """Refuses a compiled step that needs more memory than there is.

    Raises:
      ConfigError: with the numbers, and the flags that change them.
    """
    _require_room(
        experiment, bytes_per_device((built.state, built.frozen)), built.temporary_bytes, ""
    )


def _require_room(experiment: Experiment, state: int, beside: int, least: str) -> None:
    free = free_bytes()
    what = f"{state / 1e9:.2f} GB of weights and optimizer state, {beside / 1e9:.2f} GB for a step"
    enough = free is None or state + beside <= free
    found = (
        f"a device needs {least}{(state + beside) / 1e9:.2f} GB ({what}), and it has"
        f" {(free or 0) / 1e9:.2f} GB"
    )
    require(
        enough,
        f"{found}; {_smaller_model(experiment) if state > beside else _smaller_step(experiment)}.",
    )


# --- what there is


def free_bytes() -> int | None:
    """The memory that one device may still fill; `None` if unknown. CPU devices share that of
    the host."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        host = _host_bytes()
        return None if host is None else host // len(devices)
    stats = devices[0].memory_stats() or {}
    return (
        stats["bytes_limit"] - stats["bytes_in_use"]
        if {"bytes_limit", "bytes_in_use"} <= stats.keys()
        else None
    )


def _host_bytes() -> int | None:
    """Linux's estimate of what can be had without ending others, or the container's limit where
    that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        known = [1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])]
    except (OSError, ValueError, IndexError, KeyError):
        return None
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            known.append(int(Path(name).read_text()))
    return min(known)


# --- what to change


def _smaller_step(experiment: Experiment) -> str:
    rows, config = experiment.batch // experiment.micro_batches, experiment.model
    parts = num_row_shards(make_mesh(experiment.mesh))
    fewer = next(
        (n for n in range(rows // 2 // parts * parts, 0, -parts) if experiment.batch % n == 0), None
    )
    ways = [f"read fewer rows at once (--micro-batch {fewer})"] if fewer else []
    ways += (
        ["compute more of the forward pass again (--model.remat full)"]
        if config.remat != "full"
        else []
    )
    return ", or ".join(
        [*ways, f"shorten the rows (--model.context {max(1, config.context // 2)})"]
    )


def _smaller_model(experiment: Experiment) -> str:
    others = len(jax.devices()) // experiment.mesh.fsdp
    share = (
        f", or share its state among devices (--mesh.fsdp {experiment.mesh.fsdp * others})"
        if others > 1
        else ""
    )
    return f"choose a smaller model (--model.width, --model.num-layers, --model.vocab-size){share}"


@contextlib.contextmanager
def explained(experiment: Experiment | None = None, path: Path | None = None) -> Iterator[None]:
    """Says in one line what to change when memory runs out inside; without an experiment, when text
    is being written.

    Args:
      path: a run directory, in which a profile of the memory is left.

    Raises:
      ConfigError: instead of XLA's RESOURCE_EXHAUSTED and Python's MemoryError.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = re.search(r"(?:allocat\w*) (\d+) bytes", str(error))
        size = f" when it asked for {int(asked[1]) / 1e9:.2f} GB more" if asked else ""
        ways = (
            _smaller_step(experiment)
            if experiment
            else "write fewer texts at once (--num-samples), or fewer tokens (--new-tokens)"
        )
        held = _memory_profile(path)
        raise ConfigError(f"the memory was full{size}; {ways}{held}.") from error


def _memory_profile(path: Path | None) -> str:
    """Writes which arrays the devices hold; returns how to read it, or "" where it can't be."""
    if path is None or not path.is_dir():
        return ""
    kept = path / "memory.prof"
    try:
        jax.profiler.save_device_memory_profile(str(kept))
    except (OSError, RuntimeError):  # what matters is the message above
        return ""
    return f"; go tool pprof -top {kept} lists what held it"
