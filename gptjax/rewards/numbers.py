"""`Number`: the last number of an answer, however it is written. Read it, then `last_number`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from gptjax.core.config import require
from gptjax.rewards.reward import Answered, Judge, RewardConfig, each, wanted_text

LONGEST = 400
"""Characters of a number, and its largest exponent; what goes beyond is no number."""
_ONE = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+−]?\d+)?"
_NUMBER = re.compile(
    # not inside a word or a version; a sign after a word, a digit or a bracket is an operator
    rf"(?<![A-Za-z_\d])(?<!\d\.)(?:(?<![\w)\]])[-+−])?[$€£]?{_ONE}(?: ?/ ?{_ONE})?",
    re.ASCII,
)


@dataclass(frozen=True)
class Number(RewardConfig):
    """1 where the last number of the answer is the last number of a field of the record.

    Read are ASCII digits: `-3`, `−3`, `1,000`, `0.5`, `.5`, `3/4`, `1e3`, `$5`, with any unit after
    it. An answer without a number has the reward 0.
    """

    field: str = "answer"
    """Key of the right number: a number, or a text that ends with one."""
    tolerance: float = 0.0
    """Largest difference that still counts as equal; numbers are compared exactly."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def build(self) -> Judge:
        """Returns the judge."""
        require_tolerance(self.tolerance)

        def grade(row: Answered) -> float:
            wanted = wanted_number(row, self.field)
            found = last_number(row.answer)
            return float(found is not None and nearly_equal(found, wanted, self.tolerance))

        return each(grade)


def last_number(text: str) -> Fraction | None:
    """Returns the last number of a text; `None` if it has none, divides by zero, or is longer than
    `LONGEST`."""
    last = None
    for match in _NUMBER.finditer(text):
        last = match[0]
    return None if last is None else _value(last)


def whole_number(text: str) -> Fraction | None:
    """Returns the number that a whole text is, or `None`."""
    return _value(text) if _NUMBER.fullmatch(text) else None


def wanted_number(row: Answered, field: str) -> Fraction:
    """Returns the last number of a field of the record.

    Raises:
      ConfigError: there is none.
    """
    text = wanted_text(row, field)
    number = last_number(text)
    require(number is not None, f"the record's {field!r} is {text!r}; it needs a number")
    assert number is not None
    return number


def nearly_equal(one: Fraction, other: Fraction, tolerance: float) -> bool:
    """Whether two numbers differ by a tolerance at most, which is read as the decimal it is."""
    return abs(one - other) <= Fraction(repr(tolerance))


def require_tolerance(tolerance: float) -> None:
    """Refuses a tolerance below zero."""
    require(tolerance >= 0, f"a reward has the tolerance {tolerance}; it needs 0 or more.")


def _value(text: str) -> Fraction | None:
    if len(text) > LONGEST:
        return None
    plain = re.sub("[,$€£ ]", "", text).replace("−", "-")
    exponents = re.findall(r"[eE][-+]?(\d+)", plain)
    if any(int(exponent) > LONGEST for exponent in exponents):
        return None
    over, _, under = plain.partition("/")
    try:
        return Fraction(over) / Fraction(under or 1)
    except ZeroDivisionError:
        return None
