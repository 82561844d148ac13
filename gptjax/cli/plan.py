"""`gptjax plan`: what a training step, or generation, needs on a machine that is not here."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from gptjax.cli.arguments import experiment_or_preset, first_path
from gptjax.core import user_config


@dataclass(frozen=True)
class PlanOptions:
    """Flags of `plan` besides those of the experiment."""

    target: str
    """The machine: v5p:4x8x8, 2*v6e:16x16 (two slices), h100:32x8 (hosts × GPUs), cpu:8. Kinds: v4,
    v5e, v5p, v6e, tpu7x, a100, h100, b200, cpu."""
    fast: bool = False
    """Compile with little optimisation: two to five times faster, without times for TPUs."""
    search: bool = False
    """Try meshes, batch sizes and remat policies, and name the fastest that fit."""
    sampling: bool = False
    """Plan generation instead of training: cache, largest batch, and the speed that memory
    bandwidth allows."""
    serve: bool = False
    """Plan `gptjax serve`: the memory of weights, slots and prefix cache."""
    slots: int = 8
    """Requests that are answered at the same time, with --serve."""
    cache_gib: float = 1.0
    """Memory of the prefix cache in GiB, with --serve."""
    length: int | None = None
    """Tokens of a text, with --sampling, by default the model's context; of a request with
    --serve, by default at most 2048."""
    json: bool = False
    """Print one JSON object; progress goes to standard error."""


def plan_command(args: list[str]) -> None:
    """Compiles a training step for a machine and prints what it needs there; exits with status 3
    if it does not fit."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # no device is opened, whatever is here
    path, flags = first_path(
        args,
        "gptjax plan CONFIG|RUN|PRESET --target T",
        "a config file, a run directory or a preset, for example configs/gpt2_124m.py",
    )
    from gptjax.train.experiment import Experiment

    base = Experiment()
    if path is not None:
        base, flags = experiment_or_preset(path, flags)
    options, experiment = user_config.cli(
        PlanOptions,
        flags,
        prog="gptjax plan CONFIG|RUN|PRESET",
        description="Compiles a training step for a machine that is not here and prints what it"
        " needs there. Exit status: 0 if it fits, 3 if it does not.",
        base=base,
    )
    from gptjax.plan import command

    if not command.run_plan(experiment, **dataclasses.asdict(options)):
        raise SystemExit(3)
