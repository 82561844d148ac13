"""Constraints on whole answers: JSON schemas, regular expressions, grammars and choices.

Read in this order: `languages`, the expressions; `automaton`, how they become automata; `patterns`,
`grammar` and `schema`, the three syntaxes; `tokens`, automata over a tokenizer's ids; `masks`,
their tables on the device.

Why not a library: `outlines-core` 0.2.14 builds automata as fast, but bounds neither time nor memory
(`(a{1000}){1000}`), and its schemas ignore bounds of numbers, `multipleOf`, `uniqueItems` and
patterns with lengths: random answers were valid for 9 of 18 ordinary Pydantic schemas, here for 18.
`llguidance` 1.9 computes every mask on the host, which a loop compiled for the device cannot call.
"""

from gptjax.generate.constraints.masks import (
    Constraint,
    Place,
    allowed,
    follow,
    insert,
    join,
    unconstrained,
)
from gptjax.generate.constraints.tokens import KINDS, TokenAutomaton, compiled

__all__ = [
    "KINDS",
    "Constraint",
    "Place",
    "TokenAutomaton",
    "allowed",
    "compiled",
    "follow",
    "insert",
    "join",
    "unconstrained",
]
