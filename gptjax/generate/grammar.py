"""Three ways to write a constraint as an expression: a regular expression, a list of choices, a
GBNF-style grammar.

`_Parser` reads what the first and the third have in common: alternatives, sequences, groups,
repetitions and character classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gptjax.core.config import require
from gptjax.generate.automaton import EMPTY, NOTHING, Node, alt, chars, repeat, seq, text

DEPTH = 4
"""How deep a grammar's rule may stand in itself, if the automaton does not become too large.
Nesting without a bound is beyond an automaton."""

_CLASSES = {
    "d": [(48, 57)],
    "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "s": [(9, 13), (32, 32)],
}
_NAMED = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}


def choices(words: Sequence[str]) -> Node:
    """Any of these texts."""
    require(bool(words), "choices is empty; give at least one text (--choices).")
    return alt(*map(text, words))


def regex(pattern: str) -> Node:
    """The language of a regular expression; the whole answer must match.

    Known are literals, `.`, classes, `\\d \\w \\s` (ASCII) and their opposites, groups, `|`, `* +
    ?` and `{m,n}`.

    Raises:
      ConfigError: the pattern is wrong, or uses what an automaton can't (look-around, references,
        anchors inside).
    """
    inner = pattern.removeprefix("^")
    if inner.endswith("$") and not inner.endswith("\\$"):
        inner = inner[:-1]
    parser = _Parser(inner, "regex", "--regex")
    node = parser.alternatives(_regex_atom)
    parser.need(parser.at == len(inner), "has a ')' without '('")
    return node


def grammar(rules: str, depth: int = DEPTH) -> Node:
    """The language of a GBNF grammar's rule `root`, nested at most `depth` deep: `name ::= "text"
    [class] other-name (…) | …`.

    Raises:
      ConfigError: the grammar is wrong, lacks a rule, or can't end within that depth.
    """
    bodies: dict[str, str] = {}
    for line in _logical_lines(rules):
        found = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*::=\s*(.*)", line, re.S)
        require(
            found is not None,
            f'the grammar has {line.strip()!r}; it needs rules like: root ::= "yes" | "no"'
            " (--grammar).",
        )
        bodies[found[1]] = found[2]
    require(
        "root" in bodies,
        "the grammar has no rule 'root', with which it begins; write: root ::= … (--grammar).",
    )
    known: dict[tuple, Node] = {}

    def rule(name: str, inside: tuple[str, ...]) -> Node:
        require(
            name in bodies,
            f"the grammar has no rule {name!r}, which {inside[-1] if inside else 'it'!r} needs"
            " (--grammar).",
        )
        if inside.count(name) > depth:
            return NOTHING
        key = (name, tuple(sorted(inside)))
        if key not in known:
            parser = _Parser(bodies[name], f"grammar's rule {name!r}", "--grammar")

            def atom(parser):
                return _grammar_atom(parser, lambda other: rule(other, (*inside, name)))

            known[key] = parser.alternatives(atom, spaces=True)
            parser.need(parser.at == len(parser.source), "has a ')' without '('")
        return known[key]

    return rule("root", ())


def _logical_lines(rules: str) -> list[str]:
    """One rule each, without comments."""
    bare = re.sub(
        r'("(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\])|#[^\n]*', lambda m: m[1] or "", rules
    )
    return [line for line in re.split(r"\n(?=\s*[A-Za-z][\w-]*\s*::=)", bare) if line.strip()]


class _Parser:
    """A text that is read from left to right."""

    def __init__(self, source: str, name: str, flag: str) -> None:
        self.source, self.name, self.flag, self.at = source, name, flag, 0

    def need(self, holds: bool, fault: str) -> None:
        """Refuses the source."""
        require(
            holds,
            f"the {self.name} {fault}, at character {self.at} of {self.source!r} ({self.flag}).",
        )

    def peek(self, count: int = 1) -> str:
        return self.source[self.at : self.at + count]

    def take(self, count: int = 1) -> str:
        """The next characters; there must be so many."""
        found = self.peek(count)
        self.need(len(found) == count, "ends too early")
        self.at += count
        return found

    def skip(self, spaces: bool) -> None:
        while spaces and self.peek().isspace():
            self.at += 1

    def alternatives(self, atom: Callable[[_Parser], Node], spaces: bool = False) -> Node:
        """Sequences between `|`, up to the end or a `)`."""
        parts, run = [], []
        while True:
            self.skip(spaces)
            if self.peek() in ("", ")", "|"):
                parts.append(seq(*run) if run else EMPTY)
                run = []
                if self.peek() != "|":
                    return alt(*parts)
                self.at += 1
                continue
            if self.peek() == "(":
                self.at += 1
                if self.peek() == "?":
                    self.need(
                        self.take(2) == "?:", "has a group of a kind that an automaton can't follow"
                    )
                node = self.alternatives(atom, spaces)
                self.need(self.peek() == ")", "has a '(' without ')'")
                self.at += 1
            else:
                node = atom(self)
            run.append(self.repeated(node, spaces))

    def repeated(self, node: Node, spaces: bool) -> Node:
        """The node with the `* + ?` or `{m,n}` after it."""
        self.skip(spaces)
        found = re.compile(r"[*+?]|\{(\d+)?(,(\d+)?)?\}").match(self.source, self.at)
        if not found or found[0] in ("{}", "{,}"):
            return node
        self.at = found.end()
        if not spaces and self.peek() == "?":
            self.at += 1  # lazy: the same language
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0])
        low, high = bounds or (
            int(found[1] or 0),
            (int(found[3]) if found[3] else None) if found[2] else int(found[1] or 0),
        )
        self.need(
            high is None or low <= high <= 10_000,
            f"repeats {found[0]}, which is backwards or too often",
        )
        return repeat(node, low, high)

    def escaped(self) -> str | list[tuple[int, int]] | tuple[str, list[tuple[int, int]]]:
        """What stands after a backslash: a character, a class, or ("not", class)."""
        letter = self.take()
        if letter in "xuU":
            digits = self.take({"x": 2, "u": 4, "U": 8}[letter])
            self.need(
                re.fullmatch(r"[0-9A-Fa-f]+", digits) is not None and int(digits, 16) <= 0x10FFFF,
                f"has the escape \\{letter}{digits}",
            )
            return chr(int(digits, 16))
        if letter.lower() in _CLASSES:
            return _CLASSES[letter] if letter.islower() else ("not", _CLASSES[letter.lower()])
        self.need(
            letter in _NAMED or not letter.isalnum(),
            f"has the escape \\{letter}, which an automaton can't follow",
        )
        return _NAMED.get(letter, letter)

    def char_class(self) -> Node:
        """What stands between brackets; the first is read already."""
        inverted = self.peek() == "^"
        self.at += inverted
        ranges: list[tuple[int, int]] = []
        while self.peek() != "]":
            one = self.take()
            low = self.escaped() if one == "\\" else one
            self.need(not isinstance(low, tuple), "has an opposite class inside brackets")
            if isinstance(low, list):
                ranges += low
                continue
            high = low
            if self.peek() == "-" and self.peek(2)[1:] not in ("]", ""):
                self.at += 1
                one = self.take()
                high = self.escaped() if one == "\\" else one
            self.need(
                isinstance(high, str) and low <= high, "has a range of characters that is backwards"
            )
            ranges.append((ord(low), ord(high)))
        self.at += 1
        return chars(ranges, inverted)


def _regex_atom(parser: _Parser) -> Node:
    one = parser.take()
    if one == "[":
        return parser.char_class()
    if one == ".":
        return chars([(10, 10)], inverted=True)
    if one == "\\":
        found = parser.escaped()
        if isinstance(found, tuple):
            return chars(found[1], inverted=True)
        return chars(found) if isinstance(found, list) else text(found)
    parser.need(one not in "*+?^$", f"has {one!r} where a character should stand")
    return text(one)


def _grammar_atom(parser: _Parser, rule: Callable[[str], Node]) -> Node:
    one = parser.take()
    if one == "[":
        return parser.char_class()
    if one == ".":
        return chars([(0, 0x10FFFF)])
    if one == '"':
        said = ""
        while (one := parser.take()) != '"':
            found = parser.escaped() if one == "\\" else one
            parser.need(isinstance(found, str), "has a class inside a text")
            said += found
        return text(said)
    name = re.compile(r"[A-Za-z][\w-]*").match(parser.source, parser.at - 1)
    parser.need(name is not None, f"has {one!r} where a text, a class or a rule should stand")
    parser.at = name.end()
    return rule(name[0])
