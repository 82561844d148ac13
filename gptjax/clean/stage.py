"""What a stage is: a function from records to those that are kept, maybe edited, and those that
are dropped, with the rule that dropped them.

A module of each stage has a `…_stage` that builds this function from the stage's settings;
`stages.py` puts them in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gptjax.clean.records import Item
from gptjax.core.config import ConfigError

SNIPPET = 240
"""Characters of a dropped text that the report may show."""


class Dropped(NamedTuple):
    """A record that a rule dropped."""

    place: str
    rule: str
    value: float | str | None = None
    """What the rule measured, or found."""
    snippet: str = ""
    """The beginning of its text."""


class Outcome(NamedTuple):
    """What a stage makes of records."""

    kept: list[Item]
    dropped: list[Dropped]
    counts: Counter[str]
    """What it counted, such as replaced e-mail addresses."""


Stage = Callable[[Sequence[Item]], Outcome]
Verdict = tuple[str, float | str | None]
"""Name of a rule, and what it measured."""


def filtering(judge: Callable[[Item], Verdict | None]) -> Stage:
    """Returns a stage that drops each record for which `judge` returns a verdict."""

    def stage(items: Iterable[Item]) -> Outcome:
        kept, dropped = [], []
        for item in items:
            verdict = judge(item)
            if verdict is None:
                kept.append(item)
            else:
                dropped.append(dropped_item(item, *verdict))
        return Outcome(kept, dropped, Counter())

    return stage


def dropped_item(item: Item, rule: str, value: float | str | None = None) -> Dropped:
    """Returns a record as dropped by a rule."""
    value = round(value, 4) if isinstance(value, float) else value
    return Dropped(item.place, rule, value, item.text[:SNIPPET])


def needs(package: str, what: str, without: str) -> ConfigError:
    """Returns the error of a missing package of the extra.

    Args:
      without: the flag that does without.
    """
    return ConfigError(
        f"{what} needs {package}; run `pip install 'gptjax[clean]'`, or do without: pass {without}."
    )
