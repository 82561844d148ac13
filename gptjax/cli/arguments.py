"""Arguments that several commands read alike: CONFIG, RUN or PRESET, before the flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gptjax.core import backend, config, remote, user_config
from gptjax.core.config import require

if TYPE_CHECKING:
    from gptjax.train.experiment import Experiment


def first_path(args: list[str], usage: str, needed: str) -> tuple[Path | None, list[str]]:
    """Splits off the first argument, a path, of a URL that of a copy on this machine; it is `None`
    if only help is asked for.

    Raises:
      ConfigError: the first argument is a flag other than `--help`, or missing, or a URL that
        can't be read.
    """
    if args and not args[0].startswith("-"):
        return _here(args[0], args[1:]), args[1:]
    require(
        user_config.asks_for_help(args),
        f"{usage}: the first argument is missing; it needs {needed}.",
    )
    return None, args


def _here(word: str, flags: list[str]) -> Path:
    """A path; of a model's URL that of a copy, with the checkpoint that --step names."""
    if not remote.as_url(word) or user_config.asks_for_help(flags):
        return Path(word)
    from gptjax.formats import located  # a path of this machine needs no other room

    steps = re.findall(r"(?:^| )--step[ =](\d+)", " ".join(flags))
    return located(word, int(steps[-1]) if steps else None)


def read_experiment(path: Path) -> tuple[Experiment, Path]:
    """Reads an experiment from a config file, a run's config.json or a run directory; returns it
    with the directory of its run."""
    return read_with_flags(path, [])[:2]


def read_with_flags(path: Path | None, flags: list[str]) -> tuple[Experiment, Path, list[str]]:
    """Like `read_experiment`, of a config file that may have flags of its own (`--depth 8`);
    returns the other flags too. Without a path it is the default of every setting."""
    from gptjax.train.experiment import Experiment

    if path is None:
        return Experiment(), Path("runs/run"), flags
    if path.is_dir():
        require(
            (path / "config.json").is_file(),
            f"{path} holds no config.json, so it is not a run; give a config file or a run"
            " directory.",
        )
        path = path / "config.json"
    if path.suffix == ".json":
        experiment = config.load_config(Experiment, path)
        return user_config.relocated(experiment, [path.parent]), path.parent, flags
    experiment, flags = user_config.load_with_flags(Experiment, path, flags)
    return user_config.relocated(experiment, [path.parent]), Path("runs") / path.stem, flags


def experiment_or_preset(path: Path, flags: list[str]) -> tuple[Experiment, list[str]]:
    """Reads an experiment, or makes one of the name of a preset (`llama-3-8b`); returns the flags
    that are not of its config file too."""
    if path.exists() or path.suffix in (".py", ".json"):
        experiment, _, flags = read_with_flags(path, flags)
        return experiment, flags
    from gptjax.data import DataConfig
    from gptjax.data.tasks import default_task
    from gptjax.model.presets import preset
    from gptjax.train.experiment import Experiment, shape_of

    model = preset(str(path))
    task = default_task(shape_of(model))
    return Experiment(model=model, data=DataConfig(task=task), batch=1), flags


def describe_flags(chosen: backend.Choice) -> str:
    """The XLA flags that were set and why, or why none was."""
    return f"{' '.join(chosen.flags)} ({chosen.reason})" if chosen.flags else chosen.reason
