"""GBNF grammars as languages, nested to a bounded depth.

An unbounded grammar is beyond a finite automaton, so a rule may contain itself at most `depth`
times.
"""

from __future__ import annotations

import json
import re

from gptjax.core.config import require
from gptjax.generate.constraints.languages import LAST_CODE_POINT, NOTHING, Language, token
from gptjax.generate.constraints.reader import Reader
from gptjax.generate.constraints.schema import json_schema

_RULE = re.compile(r"\s*([A-Za-z][\w-]*)\s*::=\s*(.*)", re.DOTALL)


def grammar(rules: str, depth: int) -> tuple[Language, bool]:
    """The texts of a GBNF grammar's rule `root`, and whether it nests deeper than `depth`.

    Rules are written `name ::= "text" [class] other (…) | …`; `%json {…}` is any JSON that is valid
    against that schema, whose references begin at its own root, and `%token 7` the control token
    with that id, which no text can be.

    Args:
      depth: number of times that a rule may contain itself.

    Raises:
      ConfigError: the grammar is malformed, lacks a rule, or cannot end within that depth.
    """
    bodies: dict[str, str] = {}
    for line in _logical_lines(rules):
        match = _RULE.fullmatch(line)
        require(
            match is not None,
            f'the grammar has {line.strip()!r}; it needs rules like: root ::= "yes" | "no"'
            " (--grammar).",
        )
        bodies[match[1]] = match[2]
    require(
        "root" in bodies,
        "the grammar has no rule 'root', with which it begins; write: root ::= … (--grammar).",
    )
    reader = _Rules(bodies, depth)
    return reader.language("root", ()), reader.nests


class _Rules:
    """The rules of a grammar, each read once for a set of rules around it."""

    def __init__(self, bodies: dict[str, str], depth: int) -> None:
        self.bodies, self.depth = bodies, depth
        self.known: dict[tuple, Language] = {}
        self.nests = False

    def language(self, name: str, inside: tuple[str, ...]) -> Language:
        """The texts of a rule; `inside` are the rules that led to it."""
        require(
            name in self.bodies,
            f"the grammar has no rule {name!r}, which {inside[-1] if inside else 'it'!r} needs"
            " (--grammar).",
        )
        if inside.count(name) > self.depth:
            self.nests = True
            return NOTHING
        key = name, tuple(sorted(inside))
        if key not in self.known:
            reader = _GrammarReader(self.bodies[name], name, self, inside)
            self.known[key] = reader.whole()
        return self.known[key]


def _logical_lines(rules: str) -> list[str]:
    """One rule each, without comments."""
    bare = re.sub(
        r'("(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\])|#[^\n]*', lambda m: m[1] or "", rules
    )
    return [line for line in re.split(r"\n(?=\s*[A-Za-z][\w-]*\s*::=)", bare) if line.strip()]


class _GrammarReader(Reader):
    ignores_spaces = True

    def __init__(self, body: str, name: str, rules: _Rules, inside: tuple[str, ...]) -> None:
        super().__init__(body, f"grammar's rule {name!r}", "--grammar")
        self.rules, self.inside = rules, (*inside, name)

    def atom(self) -> Language:
        one = self.take()
        if one == "[":
            return self.character_class()
        if one == ".":
            return self.characters([(0, LAST_CODE_POINT)])
        if one == '"':
            return self.literal(self._quoted())
        if one == "%" and self.match(r"json\s*"):
            return self._schema()
        if one == "%" and (number := self.match(r"token ([0-9]{1,7})\b")):
            return token(int(number[1]))
        self.at -= 1
        name = self.match(r"[A-Za-z][\w-]*")
        self.require(name is not None, f"has {one!r} where a text, a class or a rule is expected")
        return self.rules.language(name[0], self.inside)

    def _schema(self) -> Language:
        """The JSON of a schema, which begins here."""
        try:
            schema, self.at = json.JSONDecoder().raw_decode(self.source, self.at)
        except ValueError:
            self.require(False, "has no JSON schema after '%json'")
        language, nests = json_schema(schema, self.rules.depth)
        self.rules.nests |= nests
        return language

    def _quoted(self) -> str:
        literal = ""
        while (one := self.take()) != '"':
            escaped = self.escape() if one == "\\" else one
            self.require(isinstance(escaped, str), "has a class inside a text")
            literal += escaped
        return literal
