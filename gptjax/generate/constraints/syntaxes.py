"""From the source of a constraint to its automaton over bytes: one syntax for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.generate.constraints.automaton import TooLarge, compile_language
from gptjax.generate.constraints.excerpts import excerpt
from gptjax.generate.constraints.grammar import grammar
from gptjax.generate.constraints.languages import Automaton, Language, alt, exactly
from gptjax.generate.constraints.patterns import regex
from gptjax.generate.constraints.schema import json_schema

DEPTH = 4
"""How deep a grammar's rule or a schema's reference may nest in itself, size permitting."""


def choices(texts: Sequence[str]) -> Language:
    """Any one of these texts."""
    require(bool(texts), "choices is empty; give at least one text (--choices).")
    return alt(*map(exactly, texts))


FLAT: dict[str, Callable[[Any], Language]] = {
    "regex": regex,
    "choices": choices,
    "excerpt": excerpt,
}
NESTED: dict[str, Callable[[Any, int], tuple[Language, bool]]] = {
    "schema": json_schema,
    "grammar": grammar,
}
"""Kinds that nest in themselves take a depth, and say whether it made a difference."""


def byte_automaton(kind: str, source: Any) -> Automaton:
    """The automaton of a constraint over bytes, nested as deep as its size permits."""
    try:
        if kind in FLAT:
            return compile_language(FLAT[kind](source))
        for depth in range(DEPTH, 2, -1):
            language, nests = NESTED[kind](source, depth)
            try:
                return compile_language(language)
            except TooLarge:
                if not nests:
                    raise
        return compile_language(NESTED[kind](source, 2)[0])
    except RecursionError:
        raise ConfigError(f"the {kind} is nested too deep; make it flatter (--{kind}).") from None
