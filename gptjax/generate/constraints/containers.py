"""JSON objects and arrays with the keywords that restrict them.

A regular language cannot compare two parts of a text. So names and items that must be distinct are
written in one order, or are counted once (see `_free_pairs` and `_distinct_items`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptjax.core.config import require
from gptjax.generate.constraints import numbers, strings
from gptjax.generate.constraints.automaton import compile_language, intersect, subtract
from gptjax.generate.constraints.languages import (
    ANY_TEXT,
    EMPTY,
    NOTHING,
    Automaton,
    Byte,
    Graph,
    Language,
    alt,
    exactly,
    in_order,
    repeat,
    seq,
    some,
)
from gptjax.generate.constraints.patterns import matches, regex

if TYPE_CHECKING:
    from gptjax.generate.constraints.schema import SchemaReader

_SPACE = alt(exactly(" "), EMPTY)
COMMA, COLON = seq(exactly(","), _SPACE), seq(exactly(":"), _SPACE)
_MAX_SUBSETS = 6
"""Constants of a set up to this number come in any order, more of them in the schema's."""


def literal(value: Any) -> Language:
    """A constant as JSON."""
    return exactly(json.dumps(value, ensure_ascii=False))


def counted_items(item: Language, low: int, high: int | None) -> Language:
    """`low` to `high` items with commas between."""
    if high == 0 or item is NOTHING:
        return EMPTY if low == 0 else NOTHING
    if low <= 1 and high is None:
        several = some(item, COMMA)
    else:
        rest = None if high is None else high - 1
        several = seq(item, repeat(seq(COMMA, item), max(low - 1, 0), rest))
    return several if low else alt(several, EMPTY)


def counted_parts(
    parts: Sequence[tuple[Language, bool]], low: int, high: int | None, last: Language = NOTHING
) -> Language:
    """Parts in this order with commas between, `low` to `high` of them.

    Args:
      parts: each with a flag; those that have it are required.
      last: an item that may follow them any number of times, but counts once towards `low`.
    """
    cap = low if high is None else high
    end = (len(parts) + 1) * (cap + 1)
    edges: list[tuple[int, Language, int]] = []
    ends = {end}
    for i, (part, required) in enumerate(parts):
        for count in range(min(i, cap) + 1):
            here, after = i * (cap + 1) + count, (i + 1) * (cap + 1)
            if not required:
                edges.append((here, EMPTY, after + count))
            if count < cap or high is None:
                step = seq(COMMA, part) if count else part
                edges.append((here, step, after + min(count + 1, cap)))
    for count in range(min(len(parts), cap) + 1):
        here = len(parts) * (cap + 1) + count
        if count >= low:
            ends.add(here)
        if count >= low - 1:
            more = counted_items(last, 1, None if high is None else high - count)
            edges.append((here, seq(COMMA if count else EMPTY, more), end))
    return Graph(tuple(edges), frozenset(ends))


# --- objects ------------------------------------------------------------------------------------


def json_object(
    reader: SchemaReader, given: Mapping[str, Any], where: str, inside: tuple[str, ...]
) -> Language:
    """The JSON objects of a schema: named properties in its order, then those of free names."""
    named = _named(reader, given, where, inside)
    required = given.get("required", [])
    parts = []
    for name, schemas in named.items():
        value = reader.language({"allOf": schemas}, f"{where}.{name}", inside)
        pair = seq(literal(name), COLON, value)
        if pair is NOTHING and name in required:
            return NOTHING
        if pair is not NOTHING:
            parts.append((pair, name in required))
    free = _free_pairs(reader, given, list(named), where, inside)
    low, high = strings.bounds(given, "minProperties", "maxProperties", where)
    require(
        low <= len(parts) + (free is not NOTHING),
        f"{where} has 'minProperties' {low}, but names that are written freely might be equal; name"
        " them in 'properties' (--schema).",
    )
    if low == 0 and high is None:
        if free is not NOTHING:
            parts.append((some(free, COMMA), False))
        return seq(exactly("{"), in_order(parts, COMMA), exactly("}"))
    return seq(exactly("{"), counted_parts(parts, low, high, free), exactly("}"))


def _named(
    reader: SchemaReader, given: Mapping[str, Any], where: str, inside: tuple[str, ...]
) -> dict[str, list]:
    """The properties known by name, each with the schemas that hold for it."""
    properties = given.get("properties", {})
    patterns = given.get("patternProperties", {})
    required = given.get("required", [])
    wrong = [name for name in required if not isinstance(name, str)]
    require(not wrong, f"{where} requires {wrong}; names are texts (--schema).")
    constants = reader.constants(given.get("propertyNames", True), where, inside)
    if constants is None:
        automaton = compile_language(_name_text(reader, given, where, inside))
    named = {}
    for name in dict.fromkeys([*properties, *required, *(constants or ())]):
        allowed = name in constants if constants is not None else automaton.accepts(name.encode())
        if not allowed:
            require(
                name not in required, f"{where} requires {name!r}, which propertyNames forbids."
            )
            continue
        matching = [schema for pattern, schema in patterns.items() if matches(pattern, name)]
        own = [properties[name]] if name in properties else []
        named[name] = own + matching or [given.get("additionalProperties", True)]
    return named


def _free_pairs(
    reader: SchemaReader,
    given: Mapping[str, Any],
    named: Sequence[str],
    where: str,
    inside: tuple[str, ...],
) -> Language:
    """Pairs whose names the schema leaves open. One name matches one pattern only, and none of
    `named`."""
    closed = "properties" in given or "patternProperties" in given or "required" in given
    extra = given.get("additionalProperties", not closed)
    if extra is False and "patternProperties" not in given:
        return NOTHING
    allowed = _name_text(reader, given, where, inside)
    if allowed is NOTHING:
        return NOTHING
    if named:
        allowed = subtract(allowed, alt(*map(exactly, named)))
    patterns = {
        pattern: regex(pattern, anywhere=True) for pattern in given.get("patternProperties", {})
    }
    pairs = []
    for pattern, language in patterns.items():
        others = alt(*(other for key, other in patterns.items() if key != pattern))
        key = subtract(intersect(allowed, language), others)
        pairs.append((key, given["patternProperties"][pattern]))
    if extra is not False:
        key = subtract(allowed, alt(*patterns.values())) if patterns else allowed
        pairs.append((key, extra))
    return alt(
        *(
            seq(strings.quoted(key), COLON, reader.language(schema, f"{where}.*", inside))
            for key, schema in pairs
            if key is not NOTHING
        )
    )


def _name_text(
    reader: SchemaReader, given: Mapping[str, Any], where: str, inside: tuple[str, ...]
) -> Language:
    """The texts that `propertyNames` allows; none if they are constants."""
    schema = given.get("propertyNames", True)
    if reader.constants(schema, where, inside) is not None:
        return NOTHING
    flat, _ = reader.flat(schema, f"{where}.propertyNames", inside)
    rules = {key: value for key, value in (flat or {}).items() if key != "type"}
    unknown = ", ".join(sorted(set(rules) - {"minLength", "maxLength", "pattern", "format"}))
    require(
        not unknown, f"{where}.propertyNames has {unknown!r}, which is not supported (--schema)."
    )
    return strings.string_text(rules, f"{where}.propertyNames") if rules else ANY_TEXT


# --- arrays -------------------------------------------------------------------------------------


def array(
    reader: SchemaReader, given: Mapping[str, Any], where: str, inside: tuple[str, ...]
) -> Language:
    """The JSON arrays of a schema."""
    prefix, items = given.get("prefixItems", []), given.get("items")
    if isinstance(items, list):  # drafts before 2020-12
        prefix, items = items, given.get("additionalItems")
    low, high = strings.bounds(given, "minItems", "maxItems", where)
    if given.get("uniqueItems") is True and (high is None or high > 1):
        require(not prefix, f"{where} has 'uniqueItems' beside 'prefixItems' (--schema).")
        return _distinct_items(reader, items, low, high, where, inside)
    if items is False or (items is None and prefix and low <= len(prefix)):
        high = len(prefix) if high is None else min(high, len(prefix))
    parts = [
        reader.language(schema, f"{where}.{i}", inside) for i, schema in enumerate(prefix[:high])
    ]
    rest_high = None if high is None else high - len(parts)
    rest = EMPTY
    if rest_high != 0:
        inner = reader.language(True if items is None else items, f"{where}.items", inside)
        rest = counted_items(inner, max(low - len(parts), 0), rest_high)
    if not parts:
        return seq(exactly("["), rest, exactly("]"))
    edges = [(i, seq(COMMA if i else EMPTY, part), i + 1) for i, part in enumerate(parts)]
    if rest_high != 0:
        more = counted_items(inner, max(low - len(parts), 1), rest_high)
        edges.append((len(parts), seq(COMMA, more), len(parts) + 1))
    ends = frozenset(range(low, len(parts) + 1)) | ({len(parts) + 1} if rest_high != 0 else set())
    return seq(exactly("["), Graph(tuple(edges), ends), exactly("]"))


def _distinct_items(
    reader: SchemaReader,
    items: Any,
    low: int,
    high: int | None,
    where: str,
    inside: tuple[str, ...],
) -> Language:
    """Arrays of distinct items.

    Few constants come in any order, many in the schema's. Texts and numbers come in ascending order
    of their first characters, which is then a different one in each.
    """
    constants = reader.constants(True if items is None else items, f"{where}.items", inside)
    if constants is not None and len(constants) <= _MAX_SUBSETS:
        parts = _subsets([literal(value) for value in constants], low, high)
    elif constants is not None:
        parts = _some_in_order([literal(value) for value in constants], low, high)
    else:
        parts = _some_in_order(_by_first(reader, items, where, inside), low, high)
    return seq(exactly("["), parts, exactly("]"))


def _some_in_order(parts: Sequence[Language], low: int, high: int | None) -> Language:
    optional = [(part, False) for part in parts]
    high = None if high is None or high >= len(parts) else high
    return (
        in_order(optional, COMMA)
        if low == 0 and high is None
        else counted_parts(optional, low, high)
    )


def _subsets(parts: Sequence[Language], low: int, high: int | None) -> Language:
    """`low` to `high` of the parts in any order; a vertex is the set of those written, as bits."""
    edges, ends = [], set()
    for used in range(1 << len(parts)):
        count = used.bit_count()
        if high is not None and count > high:
            continue
        if count >= low:
            ends.add(used)
        for i, part in enumerate(parts):
            if not used >> i & 1 and (high is None or count < high):
                edges.append((used, seq(COMMA, part) if used else part, used | 1 << i))
    return Graph(tuple(edges), frozenset(ends))


_CLASSES = [
    *(frozenset({value}) for value in b"0123456789"),
    *(frozenset({value, value ^ 0x20}) for value in b"abcdefghijklmnopqrstuvwxyz"),
]


def _by_first(
    reader: SchemaReader, items: Any, where: str, inside: tuple[str, ...]
) -> list[Language]:
    """The items by the class of their first characters: a digit, a letter, or anything else."""
    flat, _ = reader.flat(True if items is None else items, f"{where}.items", inside)
    kind = (flat or {}).get("type")
    require(
        kind in ("string", "integer", "number"),
        f"{where} has 'uniqueItems' of items that are not constants, texts or numbers; remove it"
        " (--schema).",
    )
    given = {key: value for key, value in flat.items() if key != "type"}
    make = {
        "string": strings.string,
        "integer": numbers.integer,
        "number": functools.partial(numbers.number, exponent=False),
    }[kind]
    automaton = compile_language(make(given, f"{where}.items"))
    quote = [Byte(frozenset({0x22}))] if kind == "string" else []
    start = int(automaton.table[0, 0x22]) if quote else 0
    other = frozenset(range(256)).difference(*_CLASSES)
    return [
        language
        for values in [*_CLASSES, other]
        if (language := _beginning(automaton, quote, start, values)) is not NOTHING
    ]


def _beginning(
    automaton: Automaton, before: Sequence[Language], start: int, values: frozenset[int]
) -> Language:
    """What an automaton accepts after `before`, from `start`, with one of these bytes first."""
    table = np.append(np.full((1, 256), -1, np.int32), automaton.table, axis=0)
    table[1:][automaton.table >= 0] += 1
    possible = [value for value in values if automaton.table[start, value] >= 0]
    if not possible:
        return NOTHING
    table[0, possible] = table[start + 1, possible]
    return seq(*before, Automaton(table, np.append(False, automaton.accepting)))
