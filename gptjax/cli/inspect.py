"""`gptjax inspect`: parameters, FLOPs and memory of a config, a run or a preset."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from gptjax.cli.arguments import experiment_or_preset, first_path
from gptjax.core import user_config
from gptjax.core.config import ConfigError


@dataclass(frozen=True)
class InspectOptions:
    """Flags of `inspect`."""

    json: bool = False
    """Print one JSON object."""


def inspect_command(args: list[str]) -> None:
    """Prints parameters, FLOPs and memory, without allocating anything."""
    path, flags = first_path(
        args,
        "gptjax inspect CONFIG|RUN|PRESET",
        "a config file, a run directory or a preset, for example configs/quickstart.py or"
        " llama-3-8b",
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    options = user_config.cli(
        InspectOptions,
        flags,
        prog="gptjax inspect CONFIG|RUN|PRESET",
        description="Prints parameters, FLOPs and memory, without allocating anything.",
    )
    if path is None:
        raise ConfigError("inspect needs a config file, a run directory or the name of a preset.")
    from gptjax.train.overview import overview, table

    facts = overview(experiment_or_preset(path))
    print(json.dumps(facts, indent=2) if options.json else table(facts))
