"""The unit of every text source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gptjax.core.config import require


class Document(NamedTuple):
    """A whole text, and where it was found."""

    text: str
    name: str
    """`file`, `file@byte` of a later piece, `file:line` or `data set:split:index`; the same on
    every machine."""
    source: str | None = None
    """The text that `text` answers, where it is an answer."""
    held_out: bool | None = None
    """Whether it is held out, where its source says so."""
    pictures: tuple[str, ...] = ()
    """What shows the pictures that belong to the text, or sounds: files, or scenes to draw."""


class Quota:
    """Counts records that cannot be read, and refuses the first one too many."""

    def __init__(self, most: int, pass_over: Callable[[str], Any]):
        self.most, self.pass_over, self.count = most, pass_over, 0

    def spend(self, place: str, defect: str) -> None:
        """Passes over one record.

        Raises:
          ConfigError: the quota is used up.
        """
        self.count += 1
        require(
            self.count <= self.most,
            f"{place} {defect}; fix it, or pass --data.source.max-bad-records N (now {self.most})"
            " to leave such records out.",
        )
        self.pass_over(f"{place} {defect}")


def require_quota(most: int) -> None:
    """Refuses a negative quota."""
    require(
        most >= 0,
        f"data.source.max_bad_records is {most}; it needs 0 or more: pass"
        " --data.source.max-bad-records N.",
    )
