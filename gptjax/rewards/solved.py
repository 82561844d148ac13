"""`Solved`: the reward of a generated puzzle, by its own checker."""

from __future__ import annotations

from dataclasses import dataclass

from gptjax.data.documents import puzzles
from gptjax.rewards.reward import Judge, RewardConfig, each


@dataclass(frozen=True)
class Solved(RewardConfig):
    """1 where the answer solves the puzzle of its record (`Puzzles`)."""

    weight: float = 1.0
    """Factor in the sum of rewards."""

    def build(self) -> Judge:
        """Returns the judge."""
        return each(lambda row: float(puzzles.solved(row.record, row.answer)))
