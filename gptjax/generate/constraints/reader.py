"""What regular expressions and GBNF grammars share: alternatives, groups, repetitions, classes.

`Reader` parses by recursive descent; `patterns.py` and `grammar.py` say what an atom is.
"""

from __future__ import annotations

import re

from gptjax.core.config import require
from gptjax.generate.constraints.automaton import compile_language
from gptjax.generate.constraints.languages import (
    EMPTY,
    NOTHING,
    Language,
    alt,
    chars,
    complement,
    repeat,
    seq,
)
from gptjax.generate.constraints.unicode_classes import (
    ASCII_CLASSES,
    both_cases,
    category,
    wide_class,
)

_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0", "a": "\a"}
_CODE_POINT = re.compile(
    r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[xu]\{([0-9A-Fa-f]{1,6})\}"
)
QUANTIFIER = re.compile(r"[*+?]|\{(\d+)?(,(\d+)?)?\}")
MAX_REPEAT = 10_000
_MANY_RANGES = 16
"""A class of more ranges is minimised once, before it is repeated."""


class Reader:
    """Reads a source from left to right; subclasses define `atom`."""

    ignores_spaces = False
    ignores_case = False

    def __init__(self, source: str, name: str, flag: str) -> None:
        """Args: `name` and `flag` appear in error messages."""
        self.source, self.name, self.flag, self.at = source, name, flag, 0
        self.depth = 0

    def require(self, condition: bool, fault: str) -> None:
        """Refuses the source unless the condition holds; `fault` follows its name."""
        require(
            condition,
            f"the {self.name} {fault}, at character {self.at} of {self.source!r} ({self.flag}).",
        )

    def peek(self, count: int = 1) -> str:
        return self.source[self.at : self.at + count]

    def take(self, count: int = 1) -> str:
        """The next `count` characters; refuses a source that ends before."""
        taken = self.peek(count)
        self.require(len(taken) == count, "ends too early")
        self.at += count
        return taken

    def match(self, pattern: str) -> re.Match[str] | None:
        """Takes what a pattern matches here, if it does."""
        match = re.compile(pattern).match(self.source, self.at)
        if match:
            self.at = match.end()
        return match

    def skip_spaces(self) -> None:
        while self.ignores_spaces and self.peek().isspace():
            self.at += 1

    def whole(self) -> Language:
        """The language of the whole source."""
        language = self.alternatives()
        self.require(self.at == len(self.source), "has a ')' without '('")
        return language

    def alternatives(self) -> Language:
        """Sequences between `|`, up to the end or a `)`."""
        parts = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            parts.append(self.sequence())
        return alt(*parts)

    def sequence(self) -> Language:
        """Atoms with their repetitions, up to the end, a `|` or a `)`."""
        parts: list[Language] = []
        while True:
            self.skip_spaces()
            if self.peek() in ("", ")", "|"):
                return seq(*parts)
            parts.append(self.repetition(self.item()))

    def item(self) -> Language:
        """A group or an atom."""
        if self.peek() != "(":
            return self.atom()
        self.at += 1
        return self.group()

    def group(self) -> Language:
        """Alternatives up to a `)`; the `(` has been read."""
        self.depth += 1
        language = self.alternatives()
        self.depth -= 1
        self.require(self.peek() == ")", "has a '(' without ')'")
        self.at += 1
        return language

    def atom(self) -> Language:
        """The smallest part that can be repeated."""
        raise NotImplementedError

    def repetition(self, part: Language) -> Language:
        """The part with the `*`, `+`, `?` or `{m,n}` that may follow it."""
        self.skip_spaces()
        match = QUANTIFIER.match(self.source, self.at)
        if not match or match[0] in ("{}", "{,}"):
            return part
        self.at = match.end()
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(match[0], (0, 0))
        if match[0][0] == "{":
            low = int(match[1] or 0)
            high = (int(match[3]) if match[3] else None) if match[2] else low
        self.require(
            low <= MAX_REPEAT and (high is None or low <= high <= MAX_REPEAT),
            f"repeats {match[0]}, which is backwards or above {MAX_REPEAT}",
        )
        return repeat(part, low, high)

    def character_class(self) -> Language:
        """One character of a class; its `[` has been read."""
        inverted = self.peek() == "^"
        self.at += inverted
        ranges: list[tuple[int, int]] = []
        start = self.at
        while self.peek() != "]" or (self.at == start and self.closes_late()):
            low = self._class_item(inverted)
            if isinstance(low, list):
                ranges += low
                continue
            high: str | list[tuple[int, int]] = low
            if self.peek() == "-" and self.peek(2)[1:] not in ("]", ""):
                self.at += 1
                high = self._class_item(inverted)
            self.require(
                isinstance(high, str) and low <= high, "has a range of characters that is backwards"
            )
            ranges.append((ord(low), ord(high)))
        self.at += 1
        return self.characters(ranges, inverted)

    def closes_late(self) -> bool:
        """Whether a `]` that is the first in a class is an ordinary character."""
        return False

    def _class_item(self, inverted: bool) -> str | list[tuple[int, int]]:
        one = self.take()
        if one != "\\":
            return one
        if self.peek() == "b":
            self.at += 1
            return "\b"
        return self.escape(inverted)

    def characters(self, ranges: list[tuple[int, int]], inverted: bool = False) -> Language:
        """One character of these ranges, or of all others; either case where case is ignored."""
        if self.ignores_case:
            ranges = both_cases(ranges)
        if inverted:
            ranges = complement(ranges)
        language = chars(ranges)
        simple = len(ranges) <= _MANY_RANGES or language is NOTHING
        return language if simple else compile_language(language)

    def literal(self, text: str) -> Language:
        """This text; either case where case is ignored."""
        return seq(*(self.characters([(ord(one), ord(one))]) for one in text)) if text else EMPTY

    def escape(self, inverted: bool = False) -> str | list[tuple[int, int]]:
        """A character or a class; its backslash has been read.

        Engines disagree whether `\\d`, `\\w` and `\\s` reach beyond ASCII. Here they are ASCII, and
        their opposites exclude all of Unicode's, so that either reading holds.

        Args:
          inverted: the class stands in brackets that begin with `^`.
        """
        match = self.match(_CODE_POINT.pattern)
        if match:
            point = int(next(filter(None, match.groups())), 16)
            self.require(point <= 0x10FFFF, f"has the escape \\{match[0]}, which is no character")
            return chr(point)
        letter = self.take()
        if letter in "pP":
            return self._property(letter)
        if letter.lower() in ASCII_CLASSES:
            opposite = letter.isupper() != inverted
            ranges = (wide_class if opposite else ASCII_CLASSES.__getitem__)(letter.lower())
            return ranges if letter.islower() else complement(ranges)
        known = letter in _CONTROLS or not (letter.isalnum() and letter.isascii())
        self.require(known, f"has the escape \\{letter}, which is not supported")
        return _CONTROLS.get(letter, letter)

    def _property(self, letter: str) -> list[tuple[int, int]]:
        """The ranges of `\\p{Name}` or `\\pL`, or of all other characters for `\\P`."""
        match = self.match(r"\{(\^?)([^{}]*)\}|()(\w)")
        self.require(match is not None, f"has \\{letter} without the name of a category")
        negated, name = (match[1], match[2]) if match[2] is not None else ("", match[4])
        ranges = category(re.sub(r"^(gc|general_category)=", "", name, flags=re.IGNORECASE))
        self.require(
            ranges is not None,
            f"has \\{letter}{{{name}}}; only general categories such as L, Lu or Nd are supported",
        )
        return complement(ranges) if (letter == "P") != bool(negated) else ranges
