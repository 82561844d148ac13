"""`Program`: an answer is run, and what comes out is compared with a field of the record."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from gptjax.core.config import require
from gptjax.rewards.numbers import nearly_equal, require_tolerance, wanted_number, whole_number
from gptjax.rewards.reward import Answered, Judge, RewardConfig, wanted_text

_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Program(RewardConfig):
    """1 where the answer, run as a program, gives what a field of the record says.

    What fails, or is ended by a limit, has the reward 0. docs/rewards.md says what the sandbox of
    `python` promises, and what it does not.
    """

    language: Literal["arithmetic", "python"] = "arithmetic"
    """`arithmetic` is one expression of numbers, `+ - * / // % **` and brackets; `python` a
    program, or the last block of the answer in ``` fences, of which the printed text counts."""
    field: str = "answer"
    """Key of the right result: a number, or of `python` also a text."""
    tolerance: float = 0.0
    """Largest difference of two numbers that still counts as equal."""
    seconds: int = 2
    """CPU time of a Python program."""
    wall_seconds: float = 10.0
    """Time of a Python program by the clock."""
    memory: int = 512
    """MiB of address space of a Python program."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def __post_init__(self) -> None:
        require(
            self.seconds >= 1 and self.wall_seconds > 0 and self.memory >= 64,
            f"a reward Program has seconds {self.seconds}, wall_seconds {self.wall_seconds} and"
            f" memory {self.memory}; it needs 1 or more, more than 0, and 64 or more.",
        )

    def build(self) -> Judge:
        """Returns the judge.

        Raises:
          ConfigError: programs do not run here, or Python programs can't be confined.
        """
        from gptjax.rewards import sandbox  # runs without such a reward need none

        require_tolerance(self.tolerance)
        if self.language == "arithmetic":
            sandbox.require_arithmetic()
            return self._arithmetic
        sandbox.require_confined()
        return self._python

    def _arithmetic(self, answered: Sequence[Answered]) -> list[float | None]:
        from gptjax.rewards import sandbox

        wanted = [wanted_number(row, self.field) for row in answered]
        found = sandbox.run_arithmetic([row.answer for row in answered])
        return [
            float(value is not None and nearly_equal(value, right, self.tolerance))
            for value, right in zip(found, wanted, strict=True)
        ]

    def _python(self, answered: Sequence[Answered]) -> list[float | None]:
        from gptjax.rewards import sandbox

        wanted = [wanted_text(row, self.field) for row in answered]
        limits = sandbox.Limits(self.seconds, self.wall_seconds, self.memory)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            programs = (_program(row.answer) for row in answered)
            found = pool.map(lambda program: sandbox.run_python(program, limits), programs)
            return [
                float(printed is not None and self._same(printed.strip(), right))
                for printed, right in zip(found, wanted, strict=True)
            ]

    def _same(self, printed: str, wanted: str) -> bool:
        one, other = whole_number(printed), whole_number(wanted)
        if one is None or other is None:
            return printed == wanted
        return nearly_equal(one, other, self.tolerance)


def _program(answer: str) -> str:
    blocks = _FENCED.findall(answer)
    return blocks[-1] if blocks else answer
