"""A JSON schema as an expression: every text that matches is JSON, and valid against the schema.

Not every valid JSON matches: objects hold their properties in the schema's order, white space is at
most one space after `,` and `:`, numbers have at most fifteen digits, strings use no `\\u` escapes,
and nesting ends at `DEPTH`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from gptjax.core.config import require
from gptjax.generate.automaton import (
    EMPTY,
    NOTHING,
    Node,
    alt,
    chars,
    each,
    repeat,
    seq,
    some,
    star,
    text,
)
from gptjax.generate.grammar import DEPTH, regex

_ANNOTATIONS = {
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "deprecated",
    "readOnly",
    "writeOnly",
}
_KNOWN = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
"""Which keywords each type knows. Others are refused: what they demand could not be promised."""
_SHAPES = {
    "properties": (dict, "an object"),
    **dict.fromkeys(("required", "enum", "anyOf", "oneOf"), (list, "a list")),
}
_PYTHON = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}

_CHARACTER = alt(
    chars([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)], inverted=True),
    seq(text("\\"), chars([(ord(c), ord(c)) for c in '"\\/bfnrt'])),
)
_STRING = seq(text('"'), star(_CHARACTER), text('"'))
_INTEGER = regex("-?(0|[1-9][0-9]{0,14})")
_NUMBER = regex("-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?")
_COMMA, _COLON = regex(", ?"), regex(": ?")


def json_schema(schema: dict[str, Any] | bool | str, depth: int = DEPTH) -> Node:
    """The language of a JSON schema, given as an object or as its text.

    Raises:
      ConfigError: it is not JSON, or uses a keyword that is not known here, by name.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            require(False, f"the schema is not JSON: {error}; mend it (--schema).")
    return _Reader(schema, depth).value(schema, "the schema", ())


class _Reader:
    """Follows references within one schema."""

    def __init__(self, root: Any, depth: int) -> None:
        self.root, self.depth = root, depth

    def value(self, schema: Any, where: str, inside: tuple[str, ...]) -> Node:
        """What a part of the schema allows; `inside` are the references that led to it."""
        if schema is True or schema == {}:
            return self.anything(self.depth - len(inside))
        require(isinstance(schema, dict), f"{where} is {schema!r}; it needs an object (--schema).")
        given = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        for key, (shape, words) in _SHAPES.items():
            require(
                isinstance(given.get(key, shape()), shape),
                f"{where} has {key!r} {given.get(key)!r}; it needs {words} (--schema).",
            )
        kinds = given.get("type", "object" if "properties" in given else [])
        kinds = kinds if isinstance(kinds, list) else [kinds]
        for kind in kinds:
            require(
                isinstance(kind, str) and kind in _KNOWN,
                f"{where} has the type {kind!r}; it can be {', '.join(_KNOWN)} (--schema).",
            )
        for key, make in self.ways().items():
            if key in given:
                extra = set(given) - {key} - ({"type"} if key in ("enum", "const") else set())
                require(
                    not extra,
                    f"{where} has {', '.join(sorted(extra))!r} beside {key!r}, which is not known"
                    " here; leave it away (--schema).",
                )
                return make(given if key in ("enum", "const") else given[key], where, inside)
        given.pop("type", None)
        require(bool(kinds), f"{where} says no type; give one of {', '.join(_KNOWN)} (--schema).")
        known = set().union(*(_KNOWN[kind] for kind in kinds)) - (
            _KNOWN["integer"] if "number" in kinds else set()
        )
        for key in given:
            require(
                key in known,
                f"{where} has {key!r}, which is not known here for {' or '.join(kinds)}; leave it"
                " away (--schema).",
            )

        def own(kind):
            return {key: value for key, value in given.items() if key in _KNOWN[kind]}

        return alt(*(getattr(self, f"_{kind}")(own(kind), where, inside) for kind in kinds))

    def ways(self) -> dict[str, Callable[[Any, str, tuple[str, ...]], Node]]:
        """Keywords that say it all."""

        def several(parts, where, inside):
            return alt(*(self.value(part, f"{where}.{i}", inside) for i, part in enumerate(parts)))

        def literals(given, *_):
            return alt(*map(_literal, _values(given)))

        return {
            "$ref": self.reference,
            "const": literals,
            "enum": literals,
            "anyOf": several,
            "oneOf": self.just_one,
        }

    def just_one(self, parts: list, where: str, inside: tuple[str, ...]) -> Node:
        """Any of the parts, if a value of one is never a value of another."""
        node = alt(*(self.value(part, f"{where}.{i}", inside) for i, part in enumerate(parts)))
        for a, b in itertools.combinations(parts, 2):
            require(
                self.apart(a, b),
                f"{where} has 'oneOf' with parts that can't be told apart by type or by a constant"
                " property; use 'anyOf' (--schema).",
            )
        return node

    def apart(self, a: Any, b: Any) -> bool:
        """Whether it is plain that no value fits both: by types, constants, or a property that both
        require."""
        a, b = (
            (
                self.found(part["$ref"], "'oneOf'")
                if isinstance(part, dict) and "$ref" in part
                else part
            )
            for part in (a, b)
        )
        if not (isinstance(a, dict) and isinstance(b, dict)):
            return False
        if all({"const", "enum"} & set(part) for part in (a, b)):

            def same(one, other):
                return one == other and isinstance(one, bool) == isinstance(other, bool)

            return not any(same(*pair) for pair in itertools.product(_values(a), _values(b)))
        kinds = [_types(part) for part in (a, b)]
        if all(kinds) and not kinds[0] & kinds[1]:
            return True
        shared = (
            set(a.get("required", ())) & set(b.get("required", ()))
            if kinds == [{"object"}, {"object"}]
            else ()
        )
        return any(self.apart(a["properties"][name], b["properties"][name]) for name in shared)

    def reference(self, name: Any, where: str, inside: tuple[str, ...]) -> Node:
        """What stands at a place of this schema; nested in itself at most `depth` deep."""
        found = self.found(name, where)
        return (
            NOTHING
            if inside.count(name) >= self.depth
            else self.value(found, name, (*inside, name))
        )

    def found(self, name: Any, where: str) -> Any:
        """The part of the schema that has this name."""
        own = isinstance(name, str) and name.startswith("#")
        require(
            own,
            f"{where} refers to {name!r}; it can refer to places in itself only, like #/$defs/name"
            " (--schema).",
        )
        found = self.root
        for key in name.lstrip("#").strip("/").split("/") if name.strip("#/") else ():
            key = key.replace("~1", "/").replace("~0", "~")
            require(
                isinstance(found, dict) and key in found,
                f"{where} refers to {name!r}, which is not there (--schema).",
            )
            found = found[key]
        return found

    def anything(self, depth: int) -> Node:
        """Any JSON value, with arrays and objects at most so deep."""
        flat = (_STRING, _NUMBER, text("true"), text("false"), text("null"))
        if depth <= 1:
            return alt(*flat, text("{}"), text("[]"))
        inner = self.anything(depth - 1)
        return alt(
            *flat,
            _list(inner, 0, None),
            _surrounded("{", "}", seq(_STRING, _COLON, inner), 0, None),
        )

    def _object(self, given: dict, where: str, inside: tuple[str, ...]) -> Node:
        properties, required = given.get("properties", {}), given.get("required", [])
        lacking = [name for name in required if name not in list(properties)]
        require(not lacking, f"{where} requires {lacking}, which properties lacks (--schema).")
        more = given.get("additionalProperties", "properties" not in given)
        require(
            not isinstance(more, dict) or not properties,
            f"{where} has 'additionalProperties' beside 'properties'; leave it away (--schema).",
        )
        if more is not False and not properties:
            return _surrounded(
                "{",
                "}",
                seq(_STRING, _COLON, self.value(more, f"{where}.additionalProperties", inside)),
                0,
                None,
            )

        def pair(name):
            return seq(
                _literal(name), _COLON, self.value(properties[name], f"{where}.{name}", inside)
            )

        return seq(
            text("{"),
            each([(pair(name), name in required) for name in properties], _COMMA),
            text("}"),
        )

    def _array(self, given: dict, where: str, inside: tuple[str, ...]) -> Node:
        inner = self.value(given.get("items", True), f"{where}.items", inside)
        return _list(inner, *_bounds(given, "minItems", "maxItems", where))

    def _string(self, given: dict, where: str, _: tuple[str, ...]) -> Node:
        if "pattern" in given:
            require(
                len(given) == 1, f"{where} has lengths beside 'pattern'; leave one away (--schema)."
            )
            return seq(text('"'), _escaped(regex(_whole(given["pattern"], where))), text('"'))
        return seq(
            text('"'),
            repeat(_CHARACTER, *_bounds(given, "minLength", "maxLength", where)),
            text('"'),
        )

    def _integer(self, given: dict, where: str, _: tuple[str, ...]) -> Node:
        if not given:
            return _INTEGER
        for key, value in given.items():
            require(
                type(value) is int,
                f"{where} has {key!r} {value!r}; it needs a whole number (--schema).",
            )
        low = max(given.get("minimum", -(10**15) + 1), given.get("exclusiveMinimum", -(10**15)) + 1)
        high = min(given.get("maximum", 10**15 - 1), given.get("exclusiveMaximum", 10**15) - 1)
        require(low <= high, f"{where} allows no number from {low} to {high} (--schema).")
        return _between(low, high)

    def _number(self, *_: Any) -> Node:
        return _NUMBER

    def _boolean(self, *_: Any) -> Node:
        return alt(text("true"), text("false"))

    def _null(self, *_: Any) -> Node:
        return text("null")


def _values(given: dict) -> list:
    """The constants of a part, those that have the type which it also gives."""
    values = [given["const"]] if "const" in given else given["enum"]
    kinds = (
        given["type"]
        if isinstance(given.get("type"), list)
        else [given[key] for key in ("type",) if key in given]
    )

    def is_bool(value):
        return isinstance(value, bool)

    def fits(value):
        return any(
            isinstance(value, _PYTHON[kind]) and is_bool(value) == (kind == "boolean")
            for kind in kinds
        )

    return [value for value in values if not kinds or fits(value)]


def _types(given: dict) -> set[str]:
    """The types of a part's values, as far as it names them; whole numbers are numbers."""
    if {"const", "enum"} & set(given):

        def fits(value, kind):
            return (
                kind != "integer"
                and isinstance(value, _PYTHON[kind])
                and isinstance(value, bool) == (kind == "boolean")
            )

        return {kind for kind in _PYTHON for value in _values(given) if fits(value, kind)}
    kinds = given.get("type", "object" if "properties" in given else [])
    return {
        "number" if kind == "integer" else kind
        for kind in (kinds if isinstance(kinds, list) else [kinds])
        if str(kind) in _KNOWN
    }


def _literal(value: Any) -> Node:
    return text(json.dumps(value, ensure_ascii=False))


def _list(inner: Node, low: int, high: int | None) -> Node:
    return _surrounded("[", "]", inner, low, high)


def _surrounded(left: str, right: str, inner: Node, low: int, high: int | None) -> Node:
    """From `low` to `high` of them, with commas between."""
    if high == 0 or inner == NOTHING:
        return seq(text(left), text(right)) if low == 0 else NOTHING
    several = (
        some(inner, _COMMA)
        if low <= 1 and high is None
        else seq(
            inner, repeat(seq(_COMMA, inner), max(low - 1, 0), None if high is None else high - 1)
        )
    )
    return seq(text(left), alt(several, EMPTY) if low == 0 else several, text(right))


def _bounds(given: dict, least: str, most: str, where: str) -> tuple[int, int | None]:
    low, high = given.get(least, 0), given.get(most)
    fits = type(low) is int and low >= 0 and (high is None or (type(high) is int and high >= low))
    require(
        fits,
        f"{where} has {least} {low!r} and {most} {high!r}; they need whole numbers from 0, the"
        " second no smaller (--schema).",
    )
    return low, high


def _whole(pattern: Any, where: str) -> str:
    """A schema's pattern may match anywhere; ours are for the whole string."""
    anchored = isinstance(pattern, str) and pattern.startswith("^") and pattern.endswith("$")
    require(
        anchored,
        f"{where} has the pattern {pattern!r}; it needs one for the whole string, from ^ to $"
        " (--schema).",
    )
    return pattern


def _escaped(node: Node) -> Node:
    """The same language as the inside of a JSON string: quotes and backslashes with a backslash,
    control characters not at all."""
    kind, inner = node
    if kind != "byte":
        return (kind, tuple(_escaped(part) if isinstance(part, tuple) else part for part in inner))
    marked = inner & {0x22, 0x5C}
    plain = frozenset(b for b in inner if b >= 0x20) - marked
    parts = [("byte", plain)] if plain else []
    return alt(*parts, *([seq(text("\\"), ("byte", marked))] if marked else []))


def _between(low: int, high: int) -> Node:
    """The whole numbers from low to high."""
    if low < 0:
        below = seq(text("-"), _digits(max(1, -high), -low))
        return alt(below, _digits(0, high)) if high >= 0 else below
    return _digits(low, high)


def _digits(low: int, high: int) -> Node:
    """Numbers without a sign."""
    parts = []
    for size in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (size - 1) if size > 1 else 0), min(high, 10**size - 1)
        parts.append(_same_length(str(first), str(last)))
    return alt(*parts)


def _same_length(low: str, high: str) -> Node:
    def digit(a, b):
        return chars([(ord(a), ord(b))])

    if len(low) == 1:
        return digit(low, high)
    rest = len(low) - 1
    if low[0] == high[0]:
        return seq(text(low[0]), _same_length(low[1:], high[1:]))
    parts = [
        seq(text(low[0]), _same_length(low[1:], "9" * rest)),
        seq(text(high[0]), _same_length("0" * rest, high[1:])),
    ]
    if ord(high[0]) - ord(low[0]) > 1:
        parts.append(
            seq(
                digit(chr(ord(low[0]) + 1), chr(ord(high[0]) - 1)),
                repeat(digit("0", "9"), rest, rest),
            )
        )
    return alt(*parts)
