"""`Function`: a Python function of the user as a reward."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gptjax.core.user_config import function_file, load_function
from gptjax.rewards.reward import Judge, RewardConfig, each


@dataclass(frozen=True)
class Function(RewardConfig):
    """What a function `(prompt, answer, record) -> float | None` gives; `None` leaves the answer
    out. It is called once an answer, in the process that trains."""

    name: str
    """FILE.py:FUNCTION, or PACKAGE.MODULE:FUNCTION of an installed package."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    @property
    def called(self) -> str:
        """The name of the function."""
        return self.name.rpartition(":")[2]

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the file that defines the function; of what that imports nothing
        is in it.

        Raises:
          ConfigError: there is no such file.
        """
        return hashlib.sha256(function_file(self.name).read_bytes()).hexdigest()

    def build(self) -> Judge:
        """Returns the judge; runs the file.

        Raises:
          ConfigError: the file fails, or has no such function.
        """
        function = load_function(self.name)
        return each(lambda row: function(row.prompt, row.answer, row.record))
