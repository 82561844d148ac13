"""What an evaluation leaves behind: `eval.json`, as typed values.

Read `Report`, its `TaskReport`s, and their `Measure`s and `Item`s; then `write_evaluation` and
`read_evaluation`. A value that is not a number is null in the file.

    Report
      model, versions, created, seconds
      tasks: TaskReport
        name, file, settings, identity, notes
        measures: Measure           acc 0.431 ± …, chance 0.250, majority 0.262
        calibration: Calibration    ECE, and the bins of a reliability diagram
        confusion: Confusion        where all items share their choices
        items: Item                 what was asked, answered and counted
      averages: Average             centred over tasks
      comparisons: Comparison       with another evaluation, and the items that flip
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.evaluate.figure import Figure

FORMAT = 1
"""Version of the file's form."""


@dataclass(frozen=True)
class Measure:
    """A figure of a task, with what costs nothing beside it."""

    name: str
    """`acc`, `acc_norm`, …; of the letter form `letters/acc`. See docs/evaluation.md."""
    figure: Figure
    chance: float | None = None
    """What random choices reach on average."""
    majority: float | None = None
    """What always answering with the commonest answer reaches."""
    better: str = "higher"
    """`higher`, `lower`, or empty where neither is better."""
    unit: str = ""
    """`nats`, `0 to 100`, …; empty for shares and where the name says it."""


@dataclass(frozen=True)
class Item:
    """One record as one form of its task asked for it."""

    id: str
    """Its number in the file, from 1; the same in every evaluation of the file."""
    form: str
    """`cloze` or `letters` for choices, else empty."""
    prompt: str
    """The context that the model read, examples included; of records whose contexts differ, the
    first."""
    options: tuple[str, ...] = ()
    """What was scored: choices, contexts, sentences, or the one continuation."""
    gold: int | None = None
    """Number of the right option, from 0."""
    chosen: int | None = None
    """Number of the option that the headline measure's rule takes."""
    answers: tuple[str, ...] = ()
    """Right answers or references, where the model writes."""
    written: str = ""
    """What the model wrote."""
    logprobs: tuple[float, ...] = ()
    """ln p of each option."""
    tokens: tuple[int, ...] = ()
    """Length of each option."""
    values: dict[str, float] = field(default_factory=dict)
    """Measure → its value of this item, for measures that are means over items."""
    truncated: bool = False
    """The beginning of its prompt did not fit the model."""


@dataclass(frozen=True)
class Bin:
    """A bar of a reliability diagram."""

    confidence: float
    """Mean probability of the chosen option among the options."""
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of choices can be believed."""

    form: str
    measures: tuple[Measure, ...]
    """`ece`, `ece_1`, `brier`, `selective_acc_10`, `selective_area`, and `ece_scaled`: after
    scaling by the temperature, on the half of the items that did not fit it."""
    temperature: float
    """Fitted on the other half; above 1 the model was too sure."""
    bins: tuple[Bin, ...]
    """Of equal mass."""


@dataclass(frozen=True)
class Confusion:
    """Counts of (right, chosen) options where all items share them."""

    form: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """Rows are right options, columns chosen ones."""


@dataclass(frozen=True)
class Identity:
    """What made a figure: the same identity gives the same figure, up to rounding on another
    kind of device."""

    sha256: str
    """Of `parts`."""
    parts: dict[str, str]
    """`records`, `prompts`, `settings`, `tokenizer`, `weights`, `code`."""
    not_reproducible: tuple[str, ...] = ()
    """Reasons why it may differ nevertheless; empty if there is none."""


@dataclass(frozen=True)
class TaskReport:
    """All of one task."""

    name: str
    file: str
    """Name of the file of records, without its folder."""
    shape: str
    """Kind of records: `choices`, `continuation`, `contexts`, `pair`, `question`, `text`."""
    headline: str
    """The measure by which the task counts."""
    measures: tuple[Measure, ...]
    n: int
    """Items."""
    of: int
    """Records in the file."""
    sample: str
    """Which of them the items are, in words."""
    settings: dict[str, Any]
    """Shots, seed, form, template and the like, as given."""
    identity: Identity
    items: tuple[Item, ...]
    calibration: tuple[Calibration, ...] = ()
    """Of each form that has one."""
    confusion: tuple[Confusion, ...] = ()
    content: str = ""
    """SHA-256 of all records of the file."""
    requests: int = 0
    tokens_read: int = 0
    tokens_alone: int = 0
    """Tokens that reading each request by itself would have taken."""
    tokens_written: int = 0
    seconds: float = 0.0
    truncated: int = 0
    """Items whose prompt did not fit."""
    notes: tuple[str, ...] = ()

    def measure(self, name: str) -> Measure:
        """Returns the measure of that name."""
        return next(one for one in self.measures if one.name == name)


@dataclass(frozen=True)
class Average:
    """A mean over tasks of accuracy minus chance over 1 minus chance: 0 is chance, 1 is all."""

    name: str
    figure: Figure
    """`n` is the number of tasks; the error is that of their items, not of the choice of tasks."""
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Flip:
    """An item of which two models differ."""

    id: str
    before: float
    after: float


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same items, item by item: this one minus the other."""

    task: str
    measure: str
    other: str
    """The model of the other evaluation."""
    figure: Figure
    """The mean difference; its interval is a bootstrap over items."""
    p: float | None
    """Of McNemar's exact test, two-sided; none where values are other than 0 and 1."""
    gained: int
    """Items that this one has right and the other wrong."""
    lost: int
    flips: tuple[Flip, ...]
    """The items that differ, the largest differences first."""
    notes: tuple[str, ...] = ()
    """What else differs between the two evaluations, such as the number of shots."""


@dataclass(frozen=True)
class Report:
    """All of one evaluation."""

    model: str
    """As the user named it."""
    parameters: int
    tasks: tuple[TaskReport, ...]
    averages: tuple[Average, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    """Of gptjax, jax and the device, which the identity does not hold."""
    created: str = ""
    """When it began, UTC."""
    seconds: float = 0.0
    format: int = FORMAT


# --- the file


def write_evaluation(report: Report, path: Path | str) -> None:
    """Writes `eval.json`.

    Raises:
      ConfigError: the file can't be written.
    """
    text = json.dumps(as_json(report), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror}); choose another folder (--out DIR)."
        ) from None


def read_evaluation(path: Path | str) -> Report:
    """Reads an `eval.json`, or that of a folder which has one.

    Raises:
      ConfigError: there is none, or the file is something else.
    """
    path = Path(path) / "eval.json" if Path(path).is_dir() else Path(path)
    require(
        path.is_file(),
        f"{path} is not there; give an eval.json that gptjax evaluate wrote (--against FILE).",
    )
    needed = "it is not an eval.json of this version; give one that gptjax evaluate wrote"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        require(plain["format"] == FORMAT, f"{path} has the form {plain['format']}; {needed}.")
        return from_json(Report, plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"{path} can't be read ({cause}); {needed}.") from None


def as_json(value: Any) -> Any:
    """Returns plain values for JSON; numbers that are not finite become null."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return as_json(value._asdict())
    if dataclasses.is_dataclass(value):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(hint: Any, value: Any) -> Any:
    """The inverse of `as_json` for a type of this module."""
    args, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is types.UnionType:
        return None if value is None else from_json(args[0], value)
    if origin is tuple:
        return tuple(from_json(args[0], inner) for inner in value)
    if origin is dict:
        return {key: from_json(args[1], inner) for key, inner in value.items()}
    if hint is Figure or dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{key: from_json(hints[key], inner) for key, inner in value.items()})
    return math.nan if hint is float and value is None else value
