"""Rewards for answers of a form: `Regex` and `JsonSchema`.

Both ask the automaton that also constrains decoding, which reads each byte of an answer once: no
pattern is slow, however it is written, and an answer written under the constraint always passes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gptjax.core.config import ConfigError, require
from gptjax.rewards.reward import Answered, Judge, RewardConfig, each

if TYPE_CHECKING:
    from gptjax.generate.constraints.languages import Automaton


@dataclass(frozen=True)
class Regex(RewardConfig):
    """1 where the answer matches a regular expression."""

    pattern: str
    """In the syntax of docs/constraints.md: without references, look-behind and what else no
    automaton can follow."""
    anywhere: bool = False
    """A part of the answer may match; otherwise the whole answer has to."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def build(self) -> Judge:
        """Returns the judge.

        Raises:
          ConfigError: the pattern is malformed, too large, or needs more than an automaton.
        """
        from gptjax.generate.constraints.automaton import compile_language
        from gptjax.generate.constraints.patterns import regex

        automaton = _compiled(
            self.called, lambda: compile_language(regex(self.pattern, self.anywhere))
        )
        return each(lambda row: float(automaton.accepts(_bytes(row.answer))))


@dataclass(frozen=True)
class JsonSchema(RewardConfig):
    """1 where the whole answer is JSON that is valid against a schema.

    White space, the order of properties and the form of numbers and escapes are free; a name that
    comes twice in an object is refused. Bounds are those of constrained decoding: nesting, the
    digits of numbers, the order of the items of a set.
    """

    schema: str
    """A JSON schema, or a file that holds one."""
    weight: float = 1.0
    """Factor in the sum of rewards."""

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the file of the schema; empty where the schema itself is given.

        Raises:
          ConfigError: there is no such file.
        """
        return "" if self._given else hashlib.sha256(self._text().encode()).hexdigest()

    def build(self) -> Judge:
        """Returns the judge.

        Raises:
          ConfigError: there is no such file, or the schema is malformed, too large, or has a
            keyword that is not supported.
        """
        from gptjax.generate.constraints.syntaxes import byte_automaton

        text = self._text()
        automaton = _compiled(self.called, lambda: byte_automaton("schema", text))
        reader = _Reader(automaton, _orders(json.loads(text)))

        def grade(row: Answered) -> float:
            try:
                value = json.loads(
                    row.answer, object_pairs_hook=_distinct, parse_constant=_no_constant
                )
                return float(reader.accepts(value))
            except (ValueError, RecursionError):
                return 0.0

        return each(grade)

    @property
    def _given(self) -> bool:
        return self.schema.lstrip().startswith("{")

    def _text(self) -> str:
        if self._given:
            return self.schema
        path = Path(self.schema)
        require(
            path.is_file(), f"{path} is not there; a reward JsonSchema needs a schema or its file."
        )
        return path.read_text(encoding="utf-8")


def _compiled(called: str, compile_it: Callable[[], Automaton]) -> Automaton:
    try:
        return compile_it()
    except ConfigError as error:
        raise ConfigError(f"a reward {called} can't be built: {error}") from None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # no automaton accepts a surrogate


# --- JSON in the form of constrained decoding


def _orders(schema: Any) -> list[list[str]]:
    """The orders of names in all objects of a schema, properties and constants among them, each
    followed by the names of the whole schema."""
    found: list[list[str]] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            required = part.get("required")
            listed = required if isinstance(required, list) else []
            found.append([*part, *(name for name in listed if isinstance(name, str))])
        inside = part.values() if isinstance(part, dict) else part
        for inner in inside if isinstance(part, dict | list) else ():
            walk(inner)

    walk(schema)
    whole = list(dict.fromkeys(name for names in found for name in names))
    return [[*names, *whole] for names in found]


class _Reader(NamedTuple):
    """Reads JSON values with an automaton, in the form of constrained decoding: one space after `,`
    and `:`, properties in the order of the schema, numbers without exponents."""

    automaton: Automaton
    orders: list[list[str]]

    def accepts(self, value: Any) -> bool:
        """Whether a value, its properties in some order of the schema, is accepted."""
        return bool(self.automaton.accepting[[*self.after(value, 0)]].any())

    def after(self, value: Any, state: int) -> set[int]:
        """The states in which the automaton may be after it has read a value."""
        if isinstance(value, list):
            return self.follow([("", inner) for inner in value], state, "[", "]")
        if not isinstance(value, dict):
            return self.step(_scalar(value), {state})
        found: set[int] = set()
        for names in {tuple(sorted(value, key=_place(order))) for order in [*self.orders, []]}:
            pairs = [(f"{_plain(name)}: ", value[name]) for name in names]
            found |= self.follow(pairs, state, "{", "}")
        return found

    def follow(self, parts: list[tuple[str, Any]], state: int, opens: str, closes: str) -> set[int]:
        """The states after parts, each with what stands before it, between brackets."""
        states = self.step(opens, {state})
        for number, (before, inner) in enumerate(parts):
            states = self.step(f", {before}" if number else before, states)
            states = {after for one in states for after in self.after(inner, one)}
        return self.step(closes, states)

    def step(self, text: str, states: set[int]) -> set[int]:
        """The states after a text; those in which it can't be read have none."""
        for byte in _bytes(text):
            states = {int(self.automaton.table[state, byte]) for state in states} - {-1}
        return states


def _place(order: list[str]) -> Callable[[str], int]:
    places = {name: place for place, name in reversed([*enumerate(order)])}
    return lambda name: places.get(name, len(order))


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    return _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name comes twice")
    return named


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")
