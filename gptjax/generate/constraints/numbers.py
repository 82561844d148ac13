"""JSON numbers with the keywords that restrict them.

A number is restricted as its decimal digits, which is exact.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from gptjax.core.config import require
from gptjax.generate.constraints.automaton import compile_language, intersect
from gptjax.generate.constraints.languages import (
    EMPTY,
    NOTHING,
    Byte,
    Graph,
    Language,
    alt,
    chars,
    exactly,
    repeat,
    seq,
    star,
)
from gptjax.generate.constraints.patterns import regex

NUMBER_FORMATS = {
    "int32": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "int64": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "float": {},
    "double": {},
}
"""Formats of numbers in OpenAPI, as bounds."""

INTEGER_DIGITS = 19
"""Digits of a whole number that has no bound: enough for 64 bits."""
NUMBER_DIGITS = 15
"""Digits before and after the point; double precision represents this many exactly."""
_MAX_BOUND_DIGITS = 100
_MAX_RESIDUES = 5_000

_DIGIT = chars([(0x30, 0x39)])
_DIGITS = star(_DIGIT)


def integer(given: dict[str, Any], where: str) -> Language:
    """The whole numbers that satisfy `minimum`, `maximum`, their exclusive forms, `multipleOf`."""
    low, low_open, high, high_open = _limits(given, where)
    least = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
    most = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
    require(
        least is None or most is None or least <= most,
        f"{where} allows no whole number from {least} to {most} (--schema).",
    )
    parts = []
    if most is None or most >= 0:
        parts.append(_whole(max(least or 0, 0), most))
    if least is None or least < 0:
        smallest = 1 if most is None else max(1, -most)
        parts.append(seq(exactly("-"), _whole(smallest, None if least is None else -least)))
    return _multiples(alt(*parts), given, where)


def number(given: dict[str, Any], where: str, exponent: bool = True) -> Language:
    """The numbers that satisfy the same keywords.

    Args:
      exponent: also allow exponents, where nothing restricts the value.
    """
    if not given and exponent:
        return _any_number()
    low, low_open, high, high_open = _limits(given, where)
    limits = [limit for limit in (low, high) if limit is not None]
    before = max([NUMBER_DIGITS, *(len(str(abs(int(limit)))) for limit in limits)])
    wholes = max([1, *(len(str(abs(int(limit)))) for limit in limits)])
    after = max([1, NUMBER_DIGITS - wholes, *(len(_split(abs(limit))[1]) for limit in limits)])
    form = regex(f"(0|[1-9][0-9]{{0,{before - 1}}})(\\.[0-9]{{1,{after}}})?")
    zero = Decimal(0)
    parts = []
    if high is None or high > 0 or (high == 0 and not high_open):
        magnitude = form
        if low is not None and (low > 0 or (low == 0 and low_open)):
            magnitude = intersect(magnitude, _at_least(low, low_open))
        if high is not None:
            magnitude = intersect(magnitude, _at_most(high, high_open))
        parts.append(magnitude)
    if low is None or low < 0:
        below = high is not None and high < 0
        magnitude = _at_least(-high, high_open) if below else _at_least(zero, True)
        magnitude = intersect(form, magnitude)
        if low is not None:
            magnitude = intersect(magnitude, _at_most(-low, low_open))
        parts.append(seq(exactly("-"), magnitude))
    return _multiples(alt(*parts), given, where)


@functools.cache
def _any_number() -> Language:
    digits = f"(0|[1-9][0-9]{{0,{NUMBER_DIGITS - 1}}})(\\.[0-9]{{1,{NUMBER_DIGITS}}})?"
    return compile_language(regex(f"-?{digits}([eE][+-]?[0-9]{{1,2}})?"))


def _limits(given: dict[str, Any], where: str) -> tuple[Decimal | None, bool, Decimal | None, bool]:
    """The lower bound and whether it is exclusive, and the same of the upper one."""
    name = given.get("format", "double")
    require(
        name in NUMBER_FORMATS,
        f"{where} has the format {name!r}; of numbers, {', '.join(NUMBER_FORMATS)} are supported"
        " (--schema).",
    )
    given = NUMBER_FORMATS[name] | given
    values = {}
    for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if key in given:
            value = given[key]
            require(
                type(value) in (int, float) and math.isfinite(value),
                f"{where} has {key!r} {value!r}; it needs a number (--schema).",
            )
            values[key] = Decimal(repr(value))
            require(
                abs(values[key]) < Decimal(10) ** _MAX_BOUND_DIGITS,
                f"{where} has {key!r} {value!r}, beyond 1e{_MAX_BOUND_DIGITS}; omit it (--schema).",
            )
    lows = [(values[k], k != "minimum") for k in ("minimum", "exclusiveMinimum") if k in values]
    highs = [(-values[k], k != "maximum") for k in ("maximum", "exclusiveMaximum") if k in values]
    low, low_open = max(lows, default=(None, False))
    high, high_open = max(highs, default=(None, False))
    return low, low_open, None if high is None else -high, high_open


def _whole(low: int, high: int | None) -> Language:
    """The whole numbers from `low` ≥ 0 to `high`, or of `INTEGER_DIGITS` digits at most."""
    first = len(str(low))
    if high is None:
        last = max(INTEGER_DIGITS, first + 1)
        return alt(_same_length(str(low), "9" * first), _lengths(first + 1, last))
    last = len(str(high))
    if first == last:
        return _same_length(str(low), str(high))
    return alt(
        _same_length(str(low), "9" * first),
        _lengths(first + 1, last - 1),
        _same_length("1" + "0" * (last - 1), str(high)),
    )


def _lengths(low: int, high: int | None) -> Language:
    """The whole numbers of `low` to `high` digits, `low` > 1."""
    if high is not None and high < low:
        return NOTHING
    return seq(_digit_between(1, 9), repeat(_DIGIT, low - 1, None if high is None else high - 1))


def _same_length(low: str, high: str) -> Language:
    """The digit strings from `low` to `high`, all of one length."""
    if not low:
        return EMPTY
    tail = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return repeat(_DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return seq(exactly(low[0]), _same_length(low[1:], high[1:]))
    return alt(
        seq(exactly(low[0]), _same_length(low[1:], "9" * tail)),
        seq(_digit_between(int(low[0]) + 1, int(high[0]) - 1), repeat(_DIGIT, tail, tail)),
        seq(exactly(high[0]), _same_length("0" * tail, high[1:])),
    )


def _digit_between(low: int, high: int) -> Language:
    return chars([(0x30 + low, 0x30 + high)]) if low <= high else NOTHING


def _split(value: Decimal) -> tuple[int, str]:
    """The whole part of a number ≥ 0 and its decimals, without zeros at the end."""
    whole = int(value)
    return whole, f"{value - whole:f}".partition(".")[2].rstrip("0")


def _at_least(value: Decimal, exclusive: bool) -> Language:
    """Decimal digits of numbers ≥ `value` ≥ 0, or > `value`; leading zeros are not considered."""
    whole, decimals = _split(value)
    more = seq(star(chars([(0x30, 0x30)])), _digit_between(1, 9), _DIGITS)
    tail = more if exclusive else _DIGITS
    for digit in map(int, reversed(decimals)):
        tail = alt(seq(exactly(str(digit)), tail), seq(_digit_between(digit + 1, 9), _DIGITS))
    tail = seq(exactly("."), tail)
    equal = tail if decimals or exclusive else alt(EMPTY, tail)
    next_whole = str(whole + 1)
    same = _same_length(next_whole, "9" * len(next_whole))
    larger = seq(alt(same, _lengths(len(next_whole) + 1, None)), _fraction())
    return alt(seq(exactly(str(whole)), equal), larger)


def _at_most(value: Decimal, exclusive: bool) -> Language:
    """Decimal digits of numbers from 0 that are ≤ `value`, or < `value`."""
    whole, decimals = _split(value)
    tail = NOTHING if exclusive else star(chars([(0x30, 0x30)]))
    for digit in map(int, reversed(decimals)):
        less = seq(_digit_between(0, digit - 1), _DIGITS)
        tail = alt(EMPTY, seq(exactly(str(digit)), tail), less)
    tail = seq(exactly("."), tail)
    equal = tail if exclusive and not decimals else alt(EMPTY, tail)
    smaller = seq(_whole(0, whole - 1), _fraction()) if whole else NOTHING
    return alt(seq(exactly(str(whole)), equal), smaller)


def _fraction() -> Language:
    return alt(EMPTY, seq(exactly("."), _DIGITS))


def _multiples(language: Language, given: dict[str, Any], where: str) -> Language:
    """Those numbers of a language that satisfy `multipleOf`."""
    if "multipleOf" not in given:
        return language
    step = given["multipleOf"]
    require(
        type(step) in (int, float) and math.isfinite(step) and step > 0,
        f"{where} has 'multipleOf' {step!r}; it needs a number above 0 (--schema).",
    )
    exact = Fraction(repr(step))
    require(
        exact.denominator & (exact.denominator - 1) == 0,
        f"{where} has 'multipleOf' {step!r}, which has no exact binary value, so that validators"
        " disagree about its multiples; use a whole number or a power of two (--schema).",
    )
    places = len(_split(Decimal(repr(step)))[1])
    modulus = int(exact * 10**places)
    require(
        modulus * (places + 1) <= _MAX_RESIDUES,
        f"{where} has 'multipleOf' {step!r}, which needs more than {_MAX_RESIDUES} states"
        " (--schema).",
    )
    return intersect(language, _divisible(modulus, places))


def _divisible(modulus: int, places: int) -> Language:
    """Decimal numbers that are multiples of `modulus` units of the last of `places` decimals.

    Vertex (j, r) has read j − 1 decimals, or is before the point for j = 0; the digits so far are
    r modulo `modulus`.
    """

    def vertex(j: int, residue: int) -> int:
        return j * modulus + residue

    edges: list[tuple[int, Language, int]] = [(0, exactly("-"), 0)]
    ends = set()
    for residue in range(modulus):
        edges.append((vertex(0, residue), exactly("."), vertex(1, residue)))
        for j in (0, *range(1, places + 1)):
            targets: dict[int, set[int]] = {}
            for digit in range(10):
                targets.setdefault((10 * residue + digit) % modulus, set()).add(0x30 + digit)
            for target, values in targets.items():
                after = vertex(j and j + 1, target)
                edges.append((vertex(j, residue), Byte(frozenset(values)), after))
        for j in range(places + 2):
            missing = places - max(j - 1, 0)
            if residue * 10**missing % modulus == 0:
                ends.add(vertex(j, residue))
    last = vertex(places + 1, 0)
    edges.append((last, exactly("0"), last))
    return Graph(tuple(edges), frozenset(ends))
