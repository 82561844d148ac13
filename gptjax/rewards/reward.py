"""The interface of a reward: settings with `build`, which gives a function of answers.

Read `Answered`, then `RewardConfig`, then `judge`, which joins several rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, Open, require


class Answered(NamedTuple):
    """A prompt with the answer that a model gave."""

    prompt: str
    answer: str
    """What the model wrote, without the end of its answer."""
    record: Mapping[str, Any]
    """The problem as its file has it, with all keys."""
    finished: bool
    """The model ended the answer itself; otherwise it was cut."""
    tokens: int
    """Length of the answer."""


Judge = Callable[[Sequence[Answered]], list[float | None]]
"""Rewards of answers, each of which depends on its own answer only; `None` where an answer cannot
be judged."""


class RewardConfig(Open):
    """Settings of a reward: a frozen dataclass with `build`. Code outside gptjax may define more;
    such a class that has no field `weight` counts once."""

    weight: float = 1.0

    @property
    def called(self) -> str:
        """What messages and metrics call the reward."""
        return type(self).__name__

    @property
    def models(self) -> Mapping[str, str]:
        """Models that the reward reads: name → path of a run or of another model."""
        return {}

    def fingerprint(self) -> str:
        """Returns the SHA-256 of a file that the settings name and the reward depends on, or an
        empty text; `models` are not in it."""
        return ""

    def build(self) -> Judge:
        """Returns the judge.

        Raises:
          ConfigError: the settings ask for something impossible.
        """
        raise NotImplementedError


class Judgement(NamedTuple):
    """What several rewards say of n answers."""

    total: np.ndarray
    """float32 [n]: the weighted sum; NaN where a reward gave `None`."""
    judged: np.ndarray
    """bool [n]: every reward gave a number."""
    passed: np.ndarray
    """bool [n]: the first reward gave 1 or more."""
    parts: dict[str, list[float | None]]
    """Each reward by name, before it is weighted."""


def judge(rewards: Sequence[tuple[RewardConfig, Judge]], answered: Sequence[Answered]) -> Judgement:
    """Returns the weighted sum of rewards for each answer, and what each reward gave. Without
    rewards no answer is judged.

    Raises:
      ConfigError: a reward failed, or gave something that is no finite number; names the reward,
        the prompt and the answer.
    """
    parts: dict[str, list[float | None]] = {}
    for config, one in rewards:
        like = sum(other.called == config.called for other, _ in rewards[: len(parts)])
        name = f"{config.called}{like + 1}" if like else config.called
        parts[name] = _checked(name, one, answered)
    total = np.zeros(len(answered))
    for (config, _), values in zip(rewards, parts.values(), strict=True):
        total += config.weight * np.asarray([math.nan if v is None else v for v in values])
    judged = ~np.isnan(total) & bool(rewards)
    first = next(iter(parts.values()), [None] * len(answered))
    passed = np.asarray([value is not None and value >= 1 for value in first], bool)
    with np.errstate(over="ignore"):
        total = total.astype(np.float32)
    for row in np.flatnonzero(np.isinf(total)).tolist():
        raise ConfigError(
            f"the weighted sum of the rewards is {total[row]}{_of(answered[row])}; use smaller"
            " weights."
        )
    return Judgement(total, judged, passed, parts)


def _checked(name: str, one: Judge, answered: Sequence[Answered]) -> list[float | None]:
    """What a judge gives, as floats."""
    try:
        values = one(answered)
    except (Exception, SystemExit) as error:
        row = _culprit(one, answered)
        said = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        where = "" if row is None else _of(row)
        raise ConfigError(
            f"the reward {name} failed{where}: {' '.join(said.split()).rstrip('.')}; correct it, or"
            " let it give None where it can't judge."
        ) from error
    require(
        isinstance(values, list | tuple) and len(values) == len(answered),
        f"the reward {name} gave {_shortened(values)} for {len(answered)} answers; it needs a list"
        " with a number, or None, for each.",
    )
    for value, row in zip(values, answered, strict=True):
        require(
            value is None or _is_finite(value),
            f"the reward {name} gave {_shortened(value)}{_of(row)}; it needs a finite number, or"
            " None where it can't judge.",
        )
    return [None if value is None else float(value) for value in values]


def _is_finite(value: Any) -> bool:
    if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _culprit(one: Judge, answered: Sequence[Answered]) -> Answered | None:
    """The first answer with which a judge fails; `None` if it fails with no answer alone."""
    for row in answered:
        try:
            one([row])
        except (Exception, SystemExit):
            return row
    return None


def _of(row: Answered) -> str:
    return f" for the prompt {_shortened(row.prompt)} and the answer {_shortened(row.answer)}"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:70]} … {text[-20:]}"


# --- for kinds of rewards


def each(grade: Callable[[Answered], float | None]) -> Judge:
    """Returns the judge that looks at one answer after another."""
    return lambda answered: [grade(row) for row in answered]


def wanted_text(row: Answered, field: str) -> str:
    """Returns a field of the record as a text without white space around it.

    Raises:
      ConfigError: the record lacks it, or it is neither a text nor a number.
    """
    names = ", ".join(map(repr, row.record))
    require(
        field in row.record, f"the record has no {field!r}, but {names or 'nothing'}; set `field`"
    )
    value = row.record[field]
    require(
        isinstance(value, str | int | float) and not isinstance(value, bool),
        f"the record's {field!r} is {_shortened(value)}; it needs a text or a number",
    )
    return str(value).strip()
