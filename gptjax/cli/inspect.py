"""`gptjax inspect`: parameters, FLOPs and memory of a config, a run or a preset; or what counts in
a file of conversations."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.arguments import experiment_or_preset, first_path
from gptjax.core import user_config
from gptjax.core.config import ConfigError


@dataclass(frozen=True)
class InspectOptions:
    """Flags of `inspect`."""

    json: bool = False
    """Print one JSON object."""


def inspect_command(args: list[str]) -> None:
    """Prints parameters, FLOPs and memory, without allocating anything; or conversations, each
    token marked by whether it counts."""
    path, flags = first_path(
        args,
        "gptjax inspect CONFIG|RUN|PRESET|FILE.jsonl",
        "a config file, a run directory, a preset or a file of conversations, for example"
        " configs/quickstart.py, llama-3-8b or chats.jsonl",
    )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if path is not None and _holds_records(path):
        from gptjax.cli.conversations import ConversationOptions, show_conversations

        chosen = user_config.cli(
            ConversationOptions,
            flags,
            prog="gptjax inspect FILE.jsonl",
            description="Shows conversations as ids, and which of them count.",
        )
        show_conversations(path, chosen)
        return
    experiment = None
    if path is not None:
        experiment, flags = experiment_or_preset(path, flags)
    options = user_config.cli(
        InspectOptions,
        flags,
        prog="gptjax inspect CONFIG|RUN|PRESET",
        description="Prints parameters, FLOPs and memory, without allocating anything.",
    )
    if experiment is None:
        raise ConfigError("inspect needs a config file, a run directory or the name of a preset.")
    from gptjax.train.overview import overview, table

    facts = overview(experiment)
    print(json.dumps(facts, indent=2) if options.json else table(facts))


def _holds_records(path: Path) -> bool:
    """Whether a file has conversations, by its name or, of .json, by its beginning."""
    from gptjax.data.documents.structured import format_of

    named = any(suffix in (".jsonl", ".ndjson") for suffix in path.suffixes[-2:])
    return named or (path.is_file() and format_of(path, "utf-8") in ("jsonl", "json"))
