"""Arithmetic as programs: `calculate`, and a process that evaluates many texts.

`python -P -s -S arithmetic.py` reads a JSON list of texts and writes a line of JSON for each. It
imports nothing but the standard library.
"""

from __future__ import annotations

import ast
import json
import operator
import resource
import signal
import sys
from fractions import Fraction

LONGEST = 1000
"""Characters of an expression."""
MAX_BITS = 4096
"""Size of numerators and denominators."""
SECONDS = 5.0
"""Longest time for one expression. The bounds above take milliseconds."""
_MEMORY = 512 << 20

_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(text: str) -> Fraction | None:
    """Returns the exact value of an expression of numbers, `+ - * / // % **` and brackets.

    `None` is anything else, a division by zero, a root, or numbers beyond `MAX_BITS`. `× · ÷ −` are
    read too.
    """
    if len(text) > LONGEST:
        return None
    try:
        return _value(ast.parse(text.strip().translate(_SPELLINGS), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _small(Fraction(repr(node.value)))  # refuses infinity
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_value(node.left), _value(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        both = _value(node.left), _value(node.right)
        return _small(Fraction(_OPERATORS[type(node.op)](*both)))
    raise ValueError


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    # how large the power would be is known before it is computed
    if exponent.denominator != 1 or abs(exponent) * _bits(base) > MAX_BITS:
        raise ValueError
    return _small(base ** int(exponent))


def _small(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise ValueError
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for text in json.load(sys.stdin):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # which ends the process
        value = calculate(text)
        print(json.dumps(None if value is None else str(value)), flush=True)


if __name__ == "__main__":
    _main()
