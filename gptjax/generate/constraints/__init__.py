"""Constraints on whole answers: JSON schemas, regular expressions, grammars and choices.

Read in this order: `languages`, the expressions; `automaton`, how they become automata; `patterns`,
`grammar` and `schema`, which `syntaxes` joins; `tokens`, automata over a tokenizer's ids; `masks`,
their tables on the device.

Why not a library, measured by random answers under 18 ordinary Pydantic schemas: `outlines-core`
0.2.14 gives valid ones for 9 (it ignores bounds of numbers, `multipleOf`, `uniqueItems`, patterns
with lengths) and bounds neither time nor memory (`(a{1000}){1000}`); `llguidance` 1.9.1 does for
16, but computes each mask on the host, which a compiled loop cannot call. These modules do for 18.
"""

from gptjax.generate.constraints.masks import (
    Constraint,
    Place,
    allowed,
    insert,
    join_automata,
    next_states,
    unconstrained,
)
from gptjax.generate.constraints.tokens import (
    KINDS,
    TokenAutomaton,
    compile_tokens,
    compiled,
    ends_of,
    spell,
)

__all__ = [
    "KINDS",
    "Constraint",
    "Place",
    "TokenAutomaton",
    "allowed",
    "compile_tokens",
    "compiled",
    "ends_of",
    "insert",
    "join_automata",
    "next_states",
    "spell",
    "unconstrained",
]
