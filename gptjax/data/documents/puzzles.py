"""Puzzles that are generated, with a checker: problems whose answers need nobody to judge them.

Read `Puzzles`, then `solved`, which checks an answer, then the five kinds, and last
`read_puzzles`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.documents.conversations import Record, dump_record
from gptjax.data.documents.document import Document
from gptjax.data.permutation import permute, splitmix64


@dataclass(frozen=True)
class Puzzles:
    """Generated problems with their answers, no two of which are equal.

    `sums` asks `37+58=` and answers `95`; `sorting` `73,12,45>`, `12,45,73`; `reversal` `hklq<`,
    `qlkh`; `countdown` `3,5,12:51=`, `(12+5)*3`; `letters` `dabba/b=`, `2`. A record has
    `puzzle`, `prompt`, `answer` and what `solved` needs to check any other answer.
    """

    puzzle: Literal["sums", "sorting", "reversal", "countdown", "letters"] = "sums"
    """What is asked."""
    count: int = 1000
    """Number of problems, besides those of `held_out_count`."""
    held_out_count: int | None = None
    """Number of further problems that are held out, the same ones for every `count`; `None` holds
    out `data.validation` of the problems, by their prompt."""
    digits: int = 2
    """Digits of each number of sums, sorting and countdown."""
    length: int = 4
    """Numbers to sort or to reach a target with, letters to reverse or to count among."""
    scratchpad: bool = False
    """Answers of sums show their working before the result: `7+8=15 3+5+1=9 95`."""
    seed: int = 0
    """Which problems, and in which order."""

    def __post_init__(self) -> None:
        for name in ("count", "digits", "length"):
            value = getattr(self, name)
            flag = f"pass --data.source.{name} N"
            require(value >= 1, f"data.source.{name} is {value}; it needs 1 or more: {flag}.")
        require(
            self.held_out_count is None or self.held_out_count >= 1,
            f"data.source.held_out_count is {self.held_out_count}; it needs 1 or more, or None:"
            " pass --data.source.held-out-count N.",
        )
        require(
            self.puzzle == "sums" or not self.scratchpad,
            f"data.source.scratchpad is set, and {self.puzzle} has no working to show; only sums"
            " have: pass --data.source.puzzle sums.",
        )


# --- checking


def solved(record: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer solves the puzzle of a record; white space around it is ignored.

    Of a sum with a scratchpad what follows the last `=` or space is the answer. A countdown is
    solved by any expression of + - * / and brackets that reaches the target and uses each number
    at most once; all others have one answer, letter by letter, without leading zeros.

    Raises:
      ConfigError: the record is not of a puzzle.
    """
    puzzle = record.get("puzzle")
    require(
        puzzle in KINDS,
        f"a record of the puzzle {puzzle!r} can't be checked; there are {', '.join(KINDS)}"
        " (data.source Puzzles).",
    )
    answer = answer.strip()
    if puzzle == "countdown":
        return _reaches(answer, record["numbers"], record["target"])
    if record.get("scratchpad"):
        answer = re.split("[= ]", answer)[-1]
    return answer == record["result"]


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
LONGEST = 200
"""Characters of an expression that is looked at."""


def _reaches(text: str, numbers: list[int], target: int) -> bool:
    if len(text) > LONGEST or not re.fullmatch(r"[0-9+*/() -]+", text):
        return False
    used: Counter[int] = Counter()

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            used[node.value] += 1
            return Fraction(node.value)
        if not isinstance(node, ast.BinOp):
            raise ValueError(f"{type(node).__name__} is not arithmetic.")
        left, right = value(node.left), value(node.right)
        if isinstance(node.op, ast.Div):
            return left / right
        return OPERATORS[type(node.op)](left, right)

    try:
        reached = value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return reached == target and used <= Counter(numbers)


# --- kinds: each makes one puzzle of its number


class Puzzle(NamedTuple):
    """One problem."""

    prompt: str
    answer: str
    facts: dict[str, Any]
    """What `solved` reads."""


class Kind(NamedTuple):
    """A kind of puzzles."""

    space: Callable[[Puzzles], int]
    """How many numbers there are."""
    make: Callable[[Puzzles, int], Puzzle | None]
    """Makes the puzzle of a number in [0, space); `None` where it has none."""


def _numbers(source: Puzzles) -> range:
    """All numbers with so many digits."""
    return range(10 ** (source.digits - 1) if source.digits > 1 else 0, 10**source.digits)


def _drawn(number: int, choices: range | str, count: int) -> tuple[list, int]:
    """`count` of the choices, spelled by the last places of a number, and what is left of it."""
    drawn = []
    for _ in range(count):
        number, place = divmod(number, len(choices))
        drawn.append(choices[place])
    return drawn, number


def _sum(source: Puzzles, number: int) -> Puzzle:
    (a, b), _ = _drawn(number, _numbers(source), 2)
    result = str(a + b)
    answer = f"{_working(str(a), str(b))} {result}" if source.scratchpad else result
    facts: dict[str, Any] = {"result": result}
    if source.scratchpad:
        facts["scratchpad"] = True
    return Puzzle(f"{a}+{b}=", answer, facts)


def _working(a: str, b: str) -> str:
    """The sums of the digits of two numbers of one length, from the right, with what is carried."""
    steps, carry = [], 0
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+1={total}" if carry else f"{x}+{y}={total}")
        carry = total // 10
    return " ".join(steps)


def _sorting(source: Puzzles, number: int) -> Puzzle:
    numbers, _ = _drawn(number, _numbers(source), source.length)
    result = ",".join(map(str, sorted(numbers)))
    return Puzzle(f"{','.join(map(str, numbers))}>", result, {"result": result})


ALPHABET = "abcdefghijklmnopqrstuvwxyz"
FEW_LETTERS = "abcde"


def _reversal(source: Puzzles, number: int) -> Puzzle:
    letters, _ = _drawn(number, ALPHABET, source.length)
    result = "".join(reversed(letters))
    return Puzzle(f"{''.join(letters)}<", result, {"result": result})


def _letters(source: Puzzles, number: int) -> Puzzle:
    letters, rest = _drawn(number, FEW_LETTERS, source.length)
    (asked,), _ = _drawn(rest, FEW_LETTERS, 1)
    result = str(letters.count(asked))
    return Puzzle(f"{''.join(letters)}/{asked}=", result, {"result": result})


def _countdown(source: Puzzles, number: int) -> Puzzle | None:
    """All numbers in their order, from left to right. Targets have at most a digit more than the
    numbers."""
    numbers, rest = _drawn(number, _numbers(source), source.length)
    operators, _ = _drawn(rest, "+-*", source.length - 1)
    text, target, last = str(numbers[0]), numbers[0], ""
    for sign, n in zip(operators, numbers[1:], strict=True):
        if sign == "*" and last in ("+", "-"):
            text = f"({text})"
        text, last = f"{text}{sign}{n}", sign
        target = {"+": target + n, "-": target - n, "*": target * n}[sign]
    if not 0 < target < 10 ** (source.digits + 1):
        return None
    prompt = f"{','.join(map(str, sorted(numbers)))}:{target}="
    return Puzzle(prompt, text, {"numbers": sorted(numbers), "target": target})


KINDS: dict[str, Kind] = {
    "sums": Kind(lambda source: len(_numbers(source)) ** 2, _sum),
    "sorting": Kind(lambda source: len(_numbers(source)) ** source.length, _sorting),
    "reversal": Kind(lambda source: len(ALPHABET) ** source.length, _reversal),
    "countdown": Kind(
        lambda source: len(_numbers(source)) ** source.length * 3 ** (source.length - 1),
        _countdown,
    ),
    "letters": Kind(lambda source: len(FEW_LETTERS) ** (source.length + 1), _letters),
}


# --- reading


def read_puzzles(source: Puzzles) -> Iterator[Document]:
    """Yields each puzzle as a document: its text is the record in JSON, its source the prompt.

    Raises:
      ConfigError: there are not so many different ones; on the way, not at the call.
    """
    held_out = source.held_out_count or 0
    wanted, given = source.count + held_out, 0
    seen: set[str] = set()
    make = KINDS[source.puzzle].make
    for number in _order(KINDS[source.puzzle].space(source), source.seed):
        puzzle = make(source, number)
        if puzzle is None or puzzle.prompt in seen:
            continue
        seen.add(puzzle.prompt)
        record = Record(
            prompt=puzzle.prompt,
            text=puzzle.answer,
            fields={"puzzle": source.puzzle, **puzzle.facts},
        )
        yield Document(
            dump_record(record),
            f"{source.puzzle}:{given}",
            source=puzzle.prompt,
            held_out=None if source.held_out_count is None else given < held_out,
        )
        given += 1
        if given == wanted:
            return
    raise ConfigError(
        f"data.source asks for {wanted:,} puzzles, and there are {given:,} different"
        f" {source.puzzle} of this size; pass --data.source.count {max(1, given - held_out)}, or"
        " more --data.source.digits or --data.source.length."
    )


AT_ONCE = 2**12
"""Numbers that are made at once."""


def _order(space: int, seed: int) -> Iterator[int]:
    """All numbers of [0, space) in an order of the seed; of spaces that 64 bits do not count, 2^62
    of them, which may repeat."""
    limit = 2**62
    for first in range(0, min(space, limit), AT_ONCE):
        at = np.arange(first, min(first + AT_ONCE, space), dtype=np.int64)
        if space <= limit:
            yield from permute(at, space, (seed, 0)).tolist()
            continue
        words = [
            splitmix64(at.astype(np.uint64), seed, salt).tolist()
            for salt in range(space.bit_length() // 64 + 2)
        ]
        for parts in zip(*words, strict=True):
            yield sum(part << 64 * place for place, part in enumerate(parts)) % space
