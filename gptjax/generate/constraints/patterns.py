"""Regular expressions as languages, in the syntax common to Python, JavaScript and PCRE.

Whatever describes a regular language is supported: classes, `\\p{L}`, named groups, anchors and
word borders anywhere, `(?i)`, `(?s)`, and look-ahead at the beginning. What does not (references)
or depends on how an engine searches (atomic groups, possessive repetition) is refused by name.
"""

from __future__ import annotations

import functools
import re

from gptjax.generate.constraints.automaton import compile_language, intersect, subtract
from gptjax.generate.constraints.languages import ANY_TEXT, EMPTY, Anchor, Language, alt, seq
from gptjax.generate.constraints.reader import QUANTIFIER, Reader

_REFUSED_GROUPS = {
    "?<=": "looks behind",
    "?<!": "looks behind",
    "?>": "has an atomic group",
    "?P=": "refers back to a group",
    "?(": "has a conditional group",
    "?|": "has a branch reset group",
    "?R": "is recursive",
    "?&": "is recursive",
}
_REFUSED_FLAGS = {
    "m": "multi-line anchors",
    "x": "ignored white space",
    "L": "the machine's locale",
}
_ANCHORS = {"A": "^", "Z": "$", "z": "$", "b": "b", "B": "B"}


def regex(pattern: str, anywhere: bool = False) -> Language:
    """The texts that match a regular expression as a whole.

    `\\d`, `\\w` and `\\s` are ASCII characters, and `\\b` is a border of ASCII words.

    Args:
      anywhere: the texts that contain a match, as `pattern` in a JSON schema means it.

    Raises:
      ConfigError: the pattern is malformed, or uses what a finite automaton cannot follow.
    """
    named = ("pattern", "--schema") if anywhere else ("regex", "--regex")
    reader = _RegexReader(pattern, *named)
    reader.around = ANY_TEXT if anywhere else EMPTY
    language = reader.whole()
    return compile_language(language) if reader.has_anchors else language


@functools.lru_cache(maxsize=256)
def matches(pattern: str, name: str) -> bool:
    """Whether a text contains a match of a regular expression."""
    return compile_language(regex(pattern, anywhere=True)).accepts(name.encode())


class _RegexReader(Reader):
    around: Language = EMPTY
    """What may stand before and after a match."""
    ignores_case = False
    dot_matches_newline = False
    has_anchors = False

    def alternatives(self) -> Language:
        parts = [self._alternative()]
        while self.peek() == "|":
            self.at += 1
            parts.append(self._alternative())
        return alt(*parts)

    def _alternative(self) -> Language:
        """A sequence; at the outermost level with what may surround a match."""
        if self.depth:
            return self.sequence()
        anchored = self.peek() == "^" or self.peek(2) == "\\A"
        return seq(EMPTY if anchored else self.around, self._conditional(anchored))

    def _conditional(self, anchored: bool) -> Language:
        """A sequence with the look-aheads at its beginning, and what may follow a match."""
        start = self.at
        self.match(r"\^|\\A")
        opening = self.match(r"\(\?([=!])")
        if not opening:
            self.at = start
            return seq(self.sequence(), self.around)
        self.require(anchored or self.around is EMPTY, "looks ahead without '^' before it")
        condition = seq(self.group(), ANY_TEXT)
        holds = intersect if opening[1] == "=" else subtract
        return holds(self._conditional(anchored), condition)

    def group(self) -> Language:
        if self.match(r"\?#[^)]*\)"):
            return EMPTY
        for opening, fault in _REFUSED_GROUPS.items():
            plain = self.source.startswith(opening, self.at)
            self.require(not plain, f"{fault}, which a finite automaton cannot do")
        self.require(
            self.peek(2) not in ("?=", "?!"),
            "looks ahead after its beginning; look-ahead is supported at the beginning only",
        )
        flags = self.match(r"\?([A-Za-z]*)(?:-([A-Za-z]+))?([:)])")
        if flags is None:
            self.require(
                self.peek() != "?" or self.match(r"\?P?<[^\W\d]\w*>") is not None,
                "has a group of an unknown kind",
            )
            return super().group()
        if flags[3] == ")":
            self._set_flags(flags[1], flags[2] or "")
            return EMPTY
        before = self.ignores_case, self.dot_matches_newline
        self._set_flags(flags[1], flags[2] or "")
        language = super().group()
        self.ignores_case, self.dot_matches_newline = before
        return language

    def _set_flags(self, on: str, off: str) -> None:
        for letter in on + off:
            reason = _REFUSED_FLAGS.get(letter, "a flag that is unknown")
            self.require(letter in "isau", f"has the unsupported flag {letter!r} ({reason})")
        self.ignores_case = (self.ignores_case or "i" in on) and "i" not in off
        self.dot_matches_newline = (self.dot_matches_newline or "s" in on) and "s" not in off

    def repetition(self, part: Language) -> Language:
        start = self.at
        repeated = super().repetition(part)
        if self.at > start:
            if self.peek() == "?":
                self.at += 1  # lazy: the same language
            self.require(
                self.peek() != "+", "has a possessive repetition, which changes what it matches"
            )
            again = QUANTIFIER.match(self.source, self.at)
            self.require(again is None, "repeats a repetition; put it in a group")
        return repeated

    def closes_late(self) -> bool:
        return True

    def atom(self) -> Language:
        one = self.take()
        if one == "[":
            return self.character_class()
        if one == ".":
            newline = [] if self.dot_matches_newline else [(0x0A, 0x0A)]
            return self.characters(newline, inverted=True)
        if one in "^$":
            return self._anchor(one)
        if one == "\\":
            if self.peek() in _ANCHORS:
                return self._anchor(_ANCHORS[self.take()])
            reference = re.compile(r"[1-9]|k[<{']").match(self.source, self.at)
            self.require(
                reference is None, "refers back to a group, which a finite automaton cannot do"
            )
            escaped = self.escape()
            return self.literal(escaped) if isinstance(escaped, str) else self.characters(escaped)
        quantifier = QUANTIFIER.match(self.source, self.at - 1)
        self.require(quantifier is None, f"has {one!r} with nothing to repeat before it")
        return self.literal(one)

    def _anchor(self, kind: str) -> Language:
        self.has_anchors = True
        return Anchor(kind)
