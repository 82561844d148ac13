"""Several runs of one experiment that differ in their settings, trained together.

Read `members_of` (which runs), `train_many` (their story), then `sweep_loop`. Runs that
differ in nothing but `traced.TRACED` are one compiled program; others are compiled apart and
trained one group after the other. Each run gets a directory as `gptjax train` makes one, so that
`gptjax sample` opens it and `gptjax train` continues it.
"""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.core import config
from gptjax.core.config import ConfigError, require
from gptjax.observe.log import Log
from gptjax.observe.watchdog import interruptible
from gptjax.train.experiment import Experiment
from gptjax.train.many import By
from gptjax.train.sweep_loop import Member, last_figures, train_group
from gptjax.train.sweep_report import write_sweep_report
from gptjax.train.traced import setting_of, static_part


class Outcome(NamedTuple):
    """What became of a run."""

    name: str
    settings: dict[str, Any]
    seed: int
    path: Path
    figures: dict[str, float]
    """Of its last evaluation."""
    finished: bool


def members_of(base: Experiment, over: Mapping[str, Sequence[Any]]) -> list[Member]:
    """Returns a run for each combination of values.

    Args:
      over: dotted name of a setting, such as `optim.peak` → its values.

    Raises:
      ConfigError: a name or a value does not fit, or a value is given twice.
    """
    for name, values in over.items():
        require(bool(values), f"{name} has no values; name at least one.")
        again = [value for i, value in enumerate(values) if value in values[:i]]
        twice = ", ".join(map(str, again))
        require(not again, f"{name} has {twice} twice; each value makes runs once.")
    found = []
    for values in itertools.product(*over.values()):
        plain, settings = config.to_dict(base), dict(zip(over, values, strict=True))
        for name, value in settings.items():
            _put(plain, name, value)
        made = config.from_dict(Experiment, plain, known=config.classes_in(base))
        settings = {name: setting_of(made, name) for name in over}
        words = [f"{name.split('.')[-1]}-{value}" for name, value in settings.items()]
        found.append(Member("_".join(words).replace("/", "-") or "run", settings, made))
    _require_supported(found)
    return found


def _put(plain: dict[str, Any], name: str, value: Any) -> None:
    *above, last = name.split(".")
    for key in above:
        inner = plain.get(key)
        if not isinstance(inner, dict):
            raise ConfigError(f"{name} is no setting of an experiment.{config.nearest(key, plain)}")
        plain = inner
    require(last in plain, f"{name} is no setting of an experiment.{config.nearest(last, plain)}")
    plain[last] = value


def _require_supported(members: Sequence[Member]) -> None:
    """Refuses what a sweep cannot share a program for."""
    for member in members:
        one = member.experiment
        lacks = {
            "start": one.start is not None,
            "adapter": one.adapter is not None,
            "freeze": bool(one.freeze),
            "rollout": one.rollout is not None,
            f"loss {type(one.loss).__name__}, which reads another model": bool(
                one.objective.models or one.objective.columns
            ),
            "mesh": one.mesh.given,
            "evaluation.patience": one.evaluation.patience is not None,
            "evaluation.tasks": bool(one.evaluation.tasks.files),
        }
        wrong = next((what for what, here in lacks.items() if here), None)
        require(
            wrong is None,
            f"a sweep trains whole models from random weights, and this experiment has {wrong};"
            " train its runs one by one: gptjax train.",
        )


def train_many(
    base: Experiment,
    over: Mapping[str, Sequence[Any]],
    path: Path,
    *,
    by: By = "auto",
    say: Callable[[str], None] | None = None,
    begun: float | None = None,
) -> tuple[Outcome, ...]:
    """Trains a run for each combination of values, or resumes them; returns what became of each.

    Each loss is that of the run alone: bit for bit with `map`, but for dropout rates that differ
    among the runs, and otherwise to rounding. However often it is interrupted and resumed, a sweep
    ends in the same bits.

    Args:
      over: see `members_of`. Seeds are `seed`.
      path: folder of the sweep: a run's directory for each, report.html and report.json.
      by: see `many.By`.
      say: prints lines; `None` prints them on the terminal.
      begun: `time.monotonic()` at the start of the process.

    Raises:
      ConfigError: something does not fit, or the folder holds another sweep.
    """
    begun = time.monotonic() if begun is None else begun
    members = members_of(base, over)
    _require_same(path, members)
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(static_part(member.experiment), []).append(member)
    out: dict[str, Outcome] = {}
    terminal = None if say is None else _Said(say)
    with (
        Log(path, resume_step=None, terminal=terminal) as log,
        interruptible() as asked,
    ):
        log.say(f"gptjax sweep · {path}\n{len(members)} runs in {len(groups)} programs")
        for number, group in enumerate(groups.values()):
            if not asked():
                finished = train_group(group, path, number, by, log, asked)
                out |= {one.name: one for one in _outcomes(group, path, finished)}
        outcomes = tuple(out[member.name] for member in members if member.name in out)
        page = write_sweep_report(path, outcomes, tuple(over), time.monotonic() - begun)
        log.say(f"report: {page}")
    return outcomes


class _Said(io.StringIO):
    """A terminal that hands on whole lines."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__()
        self._say = say

    def write(self, text: str) -> int:
        """Hands on a text without its line end."""
        self._say(text.rstrip("\n"))
        return len(text)


def _require_same(path: Path, members: Sequence[Member]) -> None:
    """Writes down which runs the folder holds, or refuses others once something was trained."""
    plain = {one.name: config.to_dict(one.experiment) for one in members}
    require(len(plain) == len(members), "two runs have the same name; give values that differ.")
    file, text = path / "sweep.json", json.dumps(plain, indent=1, ensure_ascii=False) + "\n"
    begun = any(path.glob("state/*/checkpoints/*"))
    require(
        not begun or (file.is_file() and file.read_text(encoding="utf-8") == text),
        f"{path} holds another sweep; use another --dir, or the settings that it was made with.",
    )
    path.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _outcomes(group: Sequence[Member], path: Path, finished: bool) -> Iterator[Outcome]:
    for one in group:
        yield Outcome(
            one.name,
            one.settings,
            one.experiment.seed,
            path / one.name,
            last_figures(path / one.name, one.experiment.steps),
            finished,
        )
