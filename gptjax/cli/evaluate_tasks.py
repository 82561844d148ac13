"""`gptjax evaluate MODEL --tasks …`: figures of a model on tasks, and comparisons of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptjax.cli.arguments import first_path
from gptjax.core import backend, user_config
from gptjax.core.config import ConfigError


@dataclass(frozen=True)
class CompareOptions:
    """Flags of a comparison of two evaluations."""

    against: str
    """The other evaluation: an eval.json or its folder."""
    json: bool = False
    """Print one JSON object."""


def wants_tasks(args: list[str]) -> bool:
    """Whether the arguments of `evaluate` ask for tasks, or compare evaluations."""
    names = ("--tasks", "--against", "--search")
    return any(arg.split("=")[0] in names for arg in args)


def evaluate_tasks_command(args: list[str]) -> None:
    """Evaluates a model on tasks; with an evaluation in place of the model, compares it."""
    backend.configure()
    usage = "gptjax evaluate MODEL --tasks FILE,NAME"
    path, flags = first_path(args, usage, "a model, or an eval.json to compare")
    from gptjax.evaluate.command import is_evaluation, run_comparison, run_tasks
    from gptjax.evaluate.options import TaskOptions

    if "--search" in flags:
        _search(path, [flag for flag in flags if flag != "--search"])
        return
    tasks = any(flag.split("=")[0] == "--tasks" for flag in flags)
    if path is not None and not tasks and is_evaluation(path):
        made = user_config.cli(
            CompareOptions,
            flags,
            prog="gptjax evaluate EVAL.json",
            description="Compares two evaluations of the same items.",
        )
        run_comparison(path, made.against, as_object=made.json)
        return
    options = user_config.cli(
        TaskOptions,
        flags,
        prog=usage,
        description="Evaluates a model on tasks: records in files, which are recognised by their"
        " fields. Writes eval.json and eval.html. With --search, searches a library for a prompt"
        " (--search --help has its flags).",
    )
    if path is None:
        raise ConfigError(f"{usage}: a model is missing, for example runs/quickstart.")
    run_tasks(path, options)


def _search(path: Path | None, flags: list[str]) -> None:
    """Searches a library for the prompt that asks best."""
    from gptjax.evaluate.search_command import SearchOptions, run_search

    usage = "gptjax evaluate MODEL --tasks FILE --prompts FILE --search"
    options = user_config.cli(
        SearchOptions,
        flags,
        prog=usage,
        description="Searches a library for the prompt that asks best: one half of the labelled"
        " records selects, the other says what the selection is worth.",
    )
    if path is None:
        raise ConfigError(f"{usage}: a model is missing, for example runs/quickstart.")
    run_search(path, options)
