"""JSON schemas as languages: every text of the language is JSON that is valid against the schema.

The reverse does not hold: objects hold their properties in the schema's order, white space is at
most one space after `,` and `:`, strings use no `\\u` escapes, numbers have a maximum length, and
nesting is bounded. A keyword that cannot be guaranteed is refused by name.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from gptjax.core.config import require
from gptjax.generate.constraints import numbers, strings
from gptjax.generate.constraints.containers import COLON, array, counted_items, json_object, literal
from gptjax.generate.constraints.languages import NOTHING, Language, alt, exactly, seq
from gptjax.generate.constraints.merging import Schema, both, merge_schemas

_ANNOTATIONS = {
    "title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$defs",
    "definitions", "deprecated", "readOnly", "writeOnly", "discriminator", "contentMediaType",
    "contentEncoding",
}  # fmt: skip
_OF_OBJECTS = (
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
    "minProperties", "maxProperties",
)  # fmt: skip
_OF_ARRAYS = ("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")
_OF_STRINGS = ("minLength", "maxLength", "pattern", "format", "contentSchema")
_OF_NUMBERS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format",
)  # fmt: skip
KEYWORDS: dict[str, tuple[str, ...]] = {
    "object": _OF_OBJECTS,
    "array": _OF_ARRAYS,
    "string": _OF_STRINGS,
    "integer": _OF_NUMBERS,
    "number": _OF_NUMBERS,
    "boolean": (),
    "null": (),
}
"""The keywords of each type."""
_SHAPES: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("properties", "patternProperties"), (dict, "an object")),
    **dict.fromkeys(
        ("required", "enum", "anyOf", "oneOf", "allOf", "prefixItems"), (list, "a list")
    ),
}
_PYTHON: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_MAX_PAIRED = 200
"""Parts of a `oneOf` that are compared in pairs: about two seconds."""


def json_schema(schema: Schema | bool | str, depth: int) -> tuple[Language, bool]:
    """The JSON texts that are valid against a schema, and whether it nests deeper than `depth`.

    Args:
      schema: an object, or its text.
      depth: how deep a reference may nest in itself, and values of any kind in each other.

    Raises:
      ConfigError: the text is not JSON, or the schema uses a keyword that is not supported.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            require(False, f"the schema is not JSON: {error}; correct it (--schema).")
    reader = SchemaReader(schema, depth)
    return reader.language(schema, "the schema", ()), reader.nests


class SchemaReader:
    """Reads the parts of one schema; `inside` lists the references that led to a part."""

    def __init__(self, root: Any, depth: int) -> None:
        self.root, self.depth = root, depth
        self.nests = False

    def language(self, schema: Any, where: str, inside: tuple[str, ...]) -> Language:
        """The JSON texts that are valid against a part of the schema."""
        flat, inside = self.flat(schema, where, inside)
        if flat is None:
            return NOTHING
        if not flat:
            return self._anything(self.depth - len(inside))
        for key in ("const", "enum"):
            if key in flat:
                self._refuse_others(flat, {key, "type", "const", "enum"}, key, where)
                return alt(*map(literal, _values(flat)))
        for key in ("anyOf", "oneOf"):
            if key in flat:
                parts = flat.pop(key)
                if key == "oneOf":
                    self._require_disjoint(parts, where)
                named = [(both(flat, part) if flat else part) for part in parts]
                return alt(*(self.language(p, f"{where}.{i}", inside) for i, p in enumerate(named)))
        return self._by_type(flat, where, inside)

    def flat(
        self, schema: Any, where: str, inside: tuple[str, ...]
    ) -> tuple[Schema | None, tuple[str, ...]]:
        """A part without annotations, its references and `allOf` merged into it.

        Returns:
          The merged schema, `None` if no value can be valid, and the references followed.
        """
        if isinstance(schema, bool):
            return ({} if schema else None), inside
        require(isinstance(schema, dict), f"{where} is {schema!r}; it needs an object (--schema).")
        _check_shapes(schema, where)
        merged = {
            key: value
            for key, value in schema.items()
            if key not in _ANNOTATIONS and not key.startswith("x-") and key not in ("$ref", "allOf")
        }
        tag = schema.get("discriminator")
        if isinstance(tag, dict) and "oneOf" in merged:
            needed = {"required": [tag.get("propertyName")]}
            merged["oneOf"] = [both(part, needed) for part in merged["oneOf"]]
        parts = [(part, inside) for part in schema.get("allOf", [])]
        if "$ref" in schema:
            name = schema["$ref"]
            if inside.count(name) >= self.depth:
                self.nests = True
                return None, inside
            inside = (*inside, name)
            parts.append((self.referenced(name, where), inside))
        for part, within in parts:
            one, followed = self.flat(part, where, within)
            if one is None:
                return None, inside
            inside = max(inside, followed, key=len)
            merged = merge_schemas(merged, one, where)
        return merged, inside

    def referenced(self, name: Any, where: str) -> Any:
        """The part of the schema with this name."""
        require(
            isinstance(name, str) and name.startswith("#"),
            f"{where} refers to {name!r}; it can refer only to places in itself, like #/$defs/name"
            " (--schema).",
        )
        part = self.root
        for step in name.lstrip("#").strip("/").split("/") if name.strip("#/") else ():
            key = step.replace("~1", "/").replace("~0", "~")
            require(
                isinstance(part, dict) and key in part,
                f"{where} refers to {name!r}, which does not exist (--schema).",
            )
            part = part[key]
        return part

    def constants(self, schema: Any, where: str, inside: tuple[str, ...]) -> list | None:
        """The values of a part that has finitely many, distinct as JSON; `None` for others."""
        flat, inside = self.flat(schema, where, inside)
        if flat is None:
            return []
        kinds = _kinds(flat)
        if {"const", "enum"} & set(flat):
            values = _values(flat)
        elif "anyOf" in flat and len(flat) == 1:
            several = [self.constants(part, where, inside) for part in flat["anyOf"]]
            if None in several:
                return None
            values = list(itertools.chain(*several))
        elif kinds and set(kinds) <= {"boolean", "null"}:
            values = [True, False] * ("boolean" in kinds) + [None] * ("null" in kinds)
        else:
            return None
        distinct: list = []
        for value in values:
            if not any(_equal(value, other) for other in distinct):
                distinct.append(value)
        return distinct

    def _by_type(self, flat: Schema, where: str, inside: tuple[str, ...]) -> Language:
        kinds = _kinds(flat)
        for kind in kinds:
            require(
                isinstance(kind, str) and kind in KEYWORDS,
                f"{where} has the type {kind!r}; it can be {', '.join(KEYWORDS)} (--schema).",
            )
        known = {key for kind in kinds or KEYWORDS for key in KEYWORDS[kind]}
        for key in flat:
            require(
                key == "type" or key in known,
                f"{where} has {key!r}, which is not supported"
                f"{' for ' + ' or '.join(kinds) if kinds else ''}; remove it (--schema).",
            )
        if "number" in kinds:
            kinds = [kind for kind in kinds if kind != "integer"]
        return alt(*(self._of_type(kind, flat, where, inside) for kind in kinds))

    def _of_type(self, kind: str, flat: Schema, where: str, inside: tuple[str, ...]) -> Language:
        given = {key: value for key, value in flat.items() if key in KEYWORDS[kind]}
        match kind:
            case "object":
                return json_object(self, given, where, inside)
            case "array":
                return array(self, given, where, inside)
            case "string" if "contentSchema" in given:
                return strings.quoted(self.language(given["contentSchema"], where, inside))
            case "string":
                return strings.string(given, where)
            case "integer":
                return numbers.integer(given, where)
            case "number":
                return numbers.number(given, where)
            case "boolean":
                return alt(exactly("true"), exactly("false"))
            case _:
                return exactly("null")

    def _anything(self, depth: int) -> Language:
        """Any JSON value, arrays and objects nested at most `depth` deep."""
        flat = (
            strings.string({}, ""),
            numbers.number({}, ""),
            exactly("true"),
            exactly("false"),
            exactly("null"),
        )
        if depth <= 1:
            self.nests = True
            return alt(*flat, exactly("{}"), exactly("[]"))
        inner = self._anything(depth - 1)
        pair = seq(strings.string({}, ""), COLON, inner)
        return alt(
            *flat,
            seq(exactly("["), counted_items(inner, 0, None), exactly("]")),
            seq(exactly("{"), counted_items(pair, 0, None), exactly("}")),
        )

    def _require_disjoint(self, parts: list, where: str) -> None:
        """Requires that no value fits two parts of a `oneOf`."""
        flats = [flat for part in parts if (flat := self.flat(part, where, ())[0]) is not None]
        if self._told_apart(flats, where):
            return
        require(
            len(parts) <= _MAX_PAIRED,
            f"{where} has 'oneOf' with {len(parts)} parts that no constant property tells apart;"
            f" add one, have at most {_MAX_PAIRED} parts, or use 'anyOf' (--schema).",
        )
        for one, other in itertools.combinations(parts, 2):
            require(
                self.disjoint(one, other, where),
                f"{where} has 'oneOf' with parts that are not distinguished by type or by a"
                " constant property; use 'anyOf' (--schema).",
            )

    def _told_apart(self, flats: list[Schema], where: str) -> bool:
        """Whether the parts are distinct constants, or a property that all require is a distinct
        one in each. Unlike a comparison of all pairs this takes time linear in their number."""
        if _all_differ(flats):
            return True
        if not flats or any(_value_kinds(flat) != {"object"} for flat in flats):
            return False
        shared = set.intersection(*(set(flat.get("required", ())) for flat in flats))
        return any(
            _all_differ(
                [
                    self.flat(flat.get("properties", {}).get(name, True), where, ())[0] or {}
                    for flat in flats
                ]
            )
            for name in shared
        )

    def disjoint(self, one: Any, other: Any, where: str) -> bool:
        """Whether no value obviously fits both parts.

        They differ by type, by constants, or by a property that both require.
        """
        (a, _), (b, _) = self.flat(one, where, ()), self.flat(other, where, ())
        if a is None or b is None:
            return True
        if all({"const", "enum"} & set(part) for part in (a, b)):
            pairs = itertools.product(_values(a), _values(b))
            return not any(_equal(x, y) for x, y in pairs)
        kinds = [_value_kinds(part) for part in (a, b)]
        if all(kinds) and not kinds[0] & kinds[1]:
            return True
        if kinds != [{"object"}, {"object"}]:
            return False
        shared = set(a.get("required", ())) & set(b.get("required", ()))
        named = [part.get("properties", {}) for part in (a, b)]
        return any(
            self.disjoint(named[0].get(name, True), named[1].get(name, True), where)
            for name in shared
        )

    @staticmethod
    def _refuse_others(flat: Schema, known: set[str], key: str, where: str) -> None:
        others = ", ".join(sorted(set(flat) - known))
        require(
            not others, f"{where} has {others!r} beside {key!r}, which is not supported (--schema)."
        )


def _check_shapes(schema: Schema, where: str) -> None:
    for key, (shape, expected) in _SHAPES.items():
        require(
            isinstance(schema.get(key, shape()), shape),
            f"{where} has {key!r} {schema.get(key)!r}; it needs {expected} (--schema).",
        )


def _kinds(flat: Schema) -> list:
    """The types that a part names, or those to which its keywords belong."""
    if "type" in flat:
        return flat["type"] if isinstance(flat["type"], list) else [flat["type"]]
    kinds = [kind for kind, keywords in KEYWORDS.items() if set(keywords) & set(flat)]
    return [kind for kind in kinds if kind != "integer"]


def _equal(one: Any, other: Any) -> bool:
    """Whether two constants are one JSON value; true and 1 are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _all_differ(flats: list[Schema]) -> bool:
    """Whether all parts are constants, and no two have one in common."""
    seen: set[tuple[bool, Any]] = set()
    for flat in flats:
        if not {"const", "enum"} & set(flat):
            return False
        values = _values(flat)
        if any(isinstance(value, list | dict) for value in values):
            return False
        keys = {(isinstance(value, bool), value) for value in values}
        if keys & seen:
            return False
        seen |= keys
    return True


def _values(flat: Schema) -> list:
    """The constants of a part that have the type it names, if any."""
    values = [flat["const"]] if "const" in flat else flat["enum"]
    if "const" in flat and "enum" in flat:
        values = [value for value in values if any(_equal(value, one) for one in flat["enum"])]
    if "type" not in flat:
        return values
    return [value for value in values if any(_is_of(value, kind) for kind in _kinds(flat))]


def _is_of(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON.get(kind, ())) and isinstance(value, bool) == (
        kind == "boolean"
    )


def _value_kinds(flat: Schema) -> set[str]:
    """The types of a part's values, as far as they are obvious; whole numbers are numbers."""
    if {"const", "enum"} & set(flat):
        kinds = {kind for kind in _PYTHON for value in _values(flat) if _is_of(value, kind)}
    else:
        kinds = {kind for kind in _kinds(flat) if kind in KEYWORDS}
    return {"number" if kind == "integer" else kind for kind in kinds}
