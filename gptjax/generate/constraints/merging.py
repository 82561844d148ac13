"""Schemas that hold at the same time, as one: what `allOf`, and keywords beside `$ref`, mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from gptjax.core.config import require
from gptjax.generate.constraints.patterns import matches

Schema = dict[str, Any]


def merge_schemas(one: Schema, other: Schema, where: str) -> Schema:
    """A schema whose values are those valid against both; neither has `$ref` or `allOf` itself.

    Raises:
      ConfigError: two values of a keyword cannot be combined.
    """
    lists = {"items", "prefixItems"}
    require(
        "prefixItems" not in {*one, *other} or not (lists & set(one) and lists & set(other)),
        f"{where} has 'allOf' with 'prefixItems' in one part and items in another; join them"
        " (--schema).",
    )
    one, other = _closed(one, other), _closed(other, one)
    merged = dict(one)
    for key, value in other.items():
        if key not in merged or _same(merged[key], value):
            merged[key] = value
            continue
        require(
            key in _RULES,
            f"{where} has 'allOf' with two different values of {key!r}; state one (--schema).",
        )
        merged[key] = _RULES[key](merged[key], value)
    return merged


def _same(one: Any, other: Any) -> bool:
    return one == other and type(one) is type(other)


def both(one: Any, other: Any) -> Schema:
    """The schema of values that are valid against both."""
    return {"allOf": [one, other]}


def _closed(schema: Schema, other: Schema) -> Schema:
    """`schema`, its `additionalProperties` applied to properties that only `other` names."""
    extra = schema.get("additionalProperties", True)
    if extra is True or extra == {}:
        return schema
    patterns = schema.get("patternProperties", {})
    named = schema.get("properties", {})
    foreign = {
        name: extra
        for name in other.get("properties", {})
        if name not in named and not any(matches(pattern, name) for pattern in patterns)
    }
    return {**schema, "properties": {**named, **foreign}} if foreign else schema


def _types(one: Any, other: Any) -> list[str]:
    left, right = (kinds if isinstance(kinds, list) else [kinds] for kinds in (one, other))
    shared = [kind for kind in left if kind in right]
    if "integer" in left + right and "number" in left + right and "integer" not in shared:
        shared.append("integer")
    return shared


def _each(one: Schema, other: Schema) -> Schema:
    merged = {**one, **other}
    return merged | {key: both(one[key], other[key]) for key in one if key in other}


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _common_multiple(one: float, other: float) -> float:
    left, right = Fraction(repr(one)), Fraction(repr(other))
    common = Fraction(
        math.lcm(left.numerator, right.numerator), math.gcd(left.denominator, right.denominator)
    )
    return int(common) if common.denominator == 1 else float(common)


_RULES: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), both),
    **dict.fromkeys(("properties", "patternProperties"), _each),
    "type": _types,
    "required": lambda one, other: [*one, *(name for name in other if name not in one)],
    "enum": lambda one, other: [value for value in one if any(_same(value, v) for v in other)],
    "anyOf": lambda one, other: [both(a, b) for a in one for b in other],
    "pattern": lambda one, other: _listed(one) + _listed(other),
    "multipleOf": _common_multiple,
    "uniqueItems": lambda one, other: one or other,
}
"""How two values of a keyword become one."""
