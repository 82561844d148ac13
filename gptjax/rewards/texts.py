"""Rewards that read an answer letter by letter, or only count: `Exact`, `Length`, `Ends`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptjax.core.config import require
from gptjax.rewards.reward import Answered, Judge, RewardConfig, each, wanted_text


@dataclass(frozen=True)
class Exact(RewardConfig):
    """1 where the answer equals a field of the record, apart from white space around it."""

    field: str = "answer"
    """Key of the right answer: a text or a number."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def build(self) -> Judge:
        """Returns the judge."""
        return each(lambda row: float(row.answer.strip() == wanted_text(row, self.field)))


@dataclass(frozen=True)
class Length(RewardConfig):
    """1 where the answer has `least` to `most` tokens, falling to 0 over `slack` on both sides."""

    most: int
    """Longest answer with the full reward."""
    least: int = 0
    """Shortest answer with the full reward."""
    slack: int = 0
    """Distance from the range at which the reward is 0; 0 gives nothing outside of it."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What is counted."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def __post_init__(self) -> None:
        require(
            0 <= self.least <= self.most and self.slack >= 0,
            f"a reward Length has least {self.least}, most {self.most} and slack {self.slack}; it"
            " needs 0 ≤ least ≤ most, and a slack of 0 or more.",
        )

    def build(self) -> Judge:
        """Returns the judge."""

        def grade(row: Answered) -> float:
            count = row.tokens if self.unit == "tokens" else len(row.answer)
            outside = max(self.least - count, count - self.most, 0)
            return max(0.0, 1 - outside / self.slack) if self.slack else float(not outside)

        return each(grade)


@dataclass(frozen=True)
class Ends(RewardConfig):
    """1 where the model ended its answer itself, instead of being cut."""

    texts: tuple[str, ...] = ()
    """It must also end with one of these, apart from white space; empty asks for nothing more."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def build(self) -> Judge:
        """Returns the judge."""
        ends = tuple(text.rstrip() for text in self.texts)
        require(all(ends), f"a reward Ends has the texts {self.texts}; each needs a character.")
        return each(lambda row: float(row.finished and _ends(row.answer, ends)))


def _ends(answer: str, ends: tuple[str, ...]) -> bool:
    return not ends or answer.rstrip().endswith(ends)
