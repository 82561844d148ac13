"""`gptjax sweep`: trains several runs that differ in their settings, in one program."""

from __future__ import annotations

import itertools
import json
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptjax.cli.arguments import describe_flags, first_path, read_with_flags
from gptjax.cli.process import STARTED
from gptjax.core import backend, remote, user_config
from gptjax.core.config import field_types, require

if TYPE_CHECKING:
    from gptjax.train.experiment import Experiment

USAGE = "gptjax sweep CONFIG [--seeds N] [--section.key VALUE VALUE ...]"


@dataclass(frozen=True)
class SweepOptions:
    """Flags of `sweep` besides those of the experiment. A setting of the experiment that gets
    several values is swept; all combinations are trained."""

    seeds: int = 1
    """Number of seeds of each combination, from the experiment's seed on."""
    by: Literal["auto", "map", "vmap", "runs"] = "auto"
    """How the runs of a program are computed: one after the other (map), side by side in each
    operation (vmap), or shared among devices (runs). auto is runs with several devices, else map on
    a CPU and vmap elsewhere. With runs a CPU's cores are its devices."""
    dir: str | None = None
    """Folder of the sweep. The default is runs/NAME-sweep for a config file NAME.py."""


def sweep_command(args: list[str]) -> None:
    """Trains a run for each combination of values, and reports which is the best."""
    from gptjax.observe.watchdog import abrupt

    with abrupt():
        _sweep(args)


def _sweep(args: list[str]) -> None:
    chosen = backend.configure()
    path, flags = first_path(args, USAGE, "a config file, for example configs/quickstart.py")
    if _asks_for_runs(flags):
        cores_as_devices()

    base, directory, flags = read_with_flags(path, flags)
    flags, over = split_values(flags, type(base))
    options, base = user_config.cli(
        SweepOptions,
        flags,
        prog="gptjax sweep CONFIG",
        description="Trains several runs that differ in their settings, in one program. A setting"
        " with several values, such as --optim.peak 1e-3 3e-3, is swept.",
        base=base,
    )
    require(options.seeds >= 1, f"seeds is {options.seeds}; it needs at least 1 (--seeds 3).")
    require(
        "seed" not in over or options.seeds == 1,
        "--seed names the seeds and --seeds counts them; use one.",
    )
    if "seed" not in over:
        over["seed"] = list(range(base.seed, base.seed + options.seeds))
    from gptjax.train.sweep import train_many

    remote.require_local(options.dir or directory, "a sweep")
    folder = Path(options.dir) if options.dir else directory.with_name(f"{directory.name}-sweep")
    print(describe_flags(chosen), flush=True)
    train_many(base, over, folder, by=options.by, begun=STARTED)


def split_values(flags: list[str], cls: type[Experiment]) -> tuple[list[str], dict[str, list]]:
    """Returns the flags with one value, and the settings with several: dotted name → values. A
    setting that is a list itself keeps its values."""
    rest: list[str] = []
    over: dict[str, list[Any]] = {}
    at = 0
    while at < len(flags):
        end = at + 1
        while end < len(flags) and not flags[end].startswith("--"):
            end += 1
        words, name = flags[at + 1 : end], flags[at].removeprefix("--").replace("-", "_")
        if len(words) > 1 and flags[at].startswith("--") and not _is_list(cls, name):
            over[name] = [_value(word) for word in words]
        else:
            rest += flags[at:end]
        at = end
    return rest, over


def _value(word: str) -> Any:
    """A word as JSON or Python would read it: a number, true, null; else text."""
    plain = {"True": "true", "False": "false", "None": "null"}.get(word, word)
    try:
        return json.loads(plain)
    except ValueError:
        return float(word) if word.replace(".", "", 1).isdigit() else word


def _is_list(cls: Any, name: str) -> bool:
    """Whether the setting with a dotted name takes several values by itself."""
    for key in name.split("."):
        kinds = [cls, *typing.get_args(cls)]
        hints = [field_types(kind) for kind in kinds if hasattr(kind, "__dataclass_fields__")]
        cls = next((hint[key] for hint in hints if key in hint), None)
    return typing.get_origin(cls) is tuple


def _asks_for_runs(flags: list[str]) -> bool:
    words = [part for flag in flags for part in flag.split("=", 1)]
    return ("--by", "runs") in itertools.pairwise(words)


def cores_as_devices() -> None:
    """Makes each core of a CPU a device of its own, unless XLA_FLAGS says how many there are. Call
    it before jax is imported."""
    flag, given = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    if flag not in given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        os.environ["XLA_FLAGS"] = f"{given} {flag}={cores or 1}".strip()
