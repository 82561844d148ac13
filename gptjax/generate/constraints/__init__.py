"""Constraints on whole answers: JSON schemas, regular expressions, grammars and choices.

Read in this order: `languages`, the expressions; `automaton`, how they become automata; `patterns`,
`grammar` and `schema`, the three syntaxes; `tokens`, automata over a tokenizer's ids; `masks`,
their tables on the device.
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
