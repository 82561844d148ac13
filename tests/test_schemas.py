"""Laws of JSON schemas: every answer is valid, by the judgement of the library `jsonschema`."""

from __future__ import annotations

import json
import re
import time
from decimal import Decimal
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from walks import CAT, DOG, PYDANTIC, model, speller, walk

from gptjax.core.config import ConfigError
from gptjax.generate.constraints import compiled
from gptjax.generate.constraints.schema import KEYWORDS, SchemaReader
from gptjax.generate.constraints.syntaxes import byte_automaton

SCHEMAS = PYDANTIC | {
    "bounds of 53 bits": {"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1},
    "bounds of 64 bits": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "number above": {"type": "number", "exclusiveMinimum": -2.5},
    "number below": {"type": "number", "exclusiveMaximum": 0.001},
    "number far away": {"type": "number", "minimum": 1e20, "maximum": 3e20},
    "negative numbers": {"type": "number", "minimum": -1.25, "exclusiveMaximum": 0},
    "bounded multiples": {"type": "integer", "minimum": -50, "maximum": 1000, "multipleOf": 12},
    "multiples of a quarter": {"type": "number", "multipleOf": 0.25, "minimum": -2, "maximum": 2},
    "several types": {"type": ["integer", "null", "string"], "minimum": 3, "maxLength": 2},
    "no type": {"properties": {"a": {"minimum": 3}, "b": {"pattern": "x"}}, "required": ["b"]},
    "a pattern anywhere": {"type": "string", "pattern": r"\bend\b|^\S+\W$", "maxLength": 30},
    "two patterns": {"allOf": [{"pattern": "^[ab]*$"}, {"pattern": "aa"}, {"maxLength": 9}]},
    "quotes in a pattern": {"type": "string", "pattern": '^["\\\\\n]+$'},
    "look-ahead": {"type": "string", "pattern": r"^(?=.*\d)(?=.*[A-Z])[\w]{4,8}$"},
    "names with lengths": {
        "type": "object",
        "propertyNames": {"maxLength": 2, "pattern": "^[a-z]+$"},
        "additionalProperties": {"type": "boolean"},
    },
    "names that match nothing": {
        "type": "object",
        "properties": {"ok": {"type": "integer"}, "No": {"type": "integer"}},
        "propertyNames": {"pattern": "^[a-z]*$"},
        "patternProperties": {"^q": {"type": "null"}},
        "additionalProperties": {"type": "boolean"},
    },
    "properties and others": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "patternProperties": {"^x": {"type": "null"}, "y$": {"type": "boolean"}},
        "additionalProperties": {"type": "string", "maxLength": 3},
        "required": ["b", "xa"],
    },
    "some of many": model(False, **{f"p{i}": {"type": "boolean"} for i in range(6)})
    | {"minProperties": 2, "maxProperties": 3},
    "a tuple with a rest": {
        "type": "array",
        "prefixItems": [{"const": 1}, {"const": 2}],
        "items": {"type": "boolean"},
        "minItems": 1,
        "maxItems": 4,
    },
    "a large set": {
        "type": "array",
        "items": {"enum": list(range(20))},
        "uniqueItems": True,
        "minItems": 3,
        "maxItems": 6,
    },
    "allOf with closed objects": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}},
            {"properties": {"a": {"minimum": 3}}, "additionalProperties": False},
        ]
    },
    "anyOf beside others": model(a={"type": "integer"})
    | {"anyOf": [{"required": ["b"]}, {"properties": {"a": {"maximum": 3}}}]},
    "JSON inside a text": {"type": "string", "contentSchema": model(a={"type": "integer"})},
    "numbers of OpenAPI": model(
        i={"type": "integer", "format": "int32"}, x={"type": "number", "format": "float"}
    ),
    "every format": model(
        **{
            name.replace("-", "_"): {"type": "string", "format": name}
            for name in ("ipv4", "ipv6", "hostname", "uuid4", "date", "time", "duration", "uri")
        }
    ),
}


@pytest.mark.parametrize("num_answers", [20, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_and_finished_in_time(name, num_answers):
    """Random walks over the allowed tokens, half of them with as little room as possible. I6."""
    schema, draw = SCHEMAS[name], np.random.default_rng(0)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    answers = set()
    for kind in ("BPE", "SentencePiece"):
        automaton = compiled("schema", json.dumps(schema), speller(kind))
        for i in range(num_answers // 2):
            room = automaton.least + int(draw.integers(4) if i % 2 else draw.integers(10, 200))
            answers.add(walk(automaton, speller(kind), room, draw))
    for answer in answers:
        validator.validate(json.loads(answer))
    assert len(answers) > 1, "they differ; a small language has few"


PAGE = Path(__file__).parents[1] / "docs/constraints.md"
REFUSED_KEYWORDS = {
    "not": {"type": "string"},
    "if": {},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {}},
    "contains": {"const": 1},
    "minContains": 1,
    "maxContains": 1,
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "$dynamicRef": "#a",
    "$anchor": "a",
}


def test_every_keyword_of_the_draft_is_in_the_row_of_the_page_that_the_code_puts_it_in():
    """I6: the coverage table; neighbours are all keywords of draft 2020-12."""
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (`.*`) \|$", PAGE.read_text(), re.MULTILINE))
    named = {row: re.findall(r"`([$\w]+)`", text) for row, text in rows.items()}
    assert set(named["refused"]) == REFUSED_KEYWORDS.keys()
    for keyword, value in REFUSED_KEYWORDS.items():
        with pytest.raises(ConfigError, match=re.escape(repr(keyword))):
            byte_automaton("schema", {keyword: value})
    kinds = {"objects": "object", "arrays": "array", "strings": "string", "numbers": "number"}
    for row, kind in kinds.items():
        assert set(named[row]) == set(KEYWORDS[kind]) - {"additionalItems"} - (
            {"format"} if kind == "number" else set()
        )
    for keyword in named["no effect"]:
        assert byte_automaton("schema", {keyword: "x", "const": 1}).accepts(b"1")


GROWING = {
    ".{0,n}": lambda n: ("regex", f".{{0,{n}}}"),
    r"(\w+ ){0,n}": lambda n: ("regex", rf"(\w+ ){{0,{n}}}"),
    "maxLength": lambda n: ("schema", json.dumps({"type": "string", "maxLength": n})),
    "maxItems of objects": lambda n: (
        "schema",
        json.dumps({"type": "array", "maxItems": n, "items": model(a={"type": "integer"})}),
    ),
    "required properties": lambda n: (
        "schema",
        json.dumps(model(**{f"p{i}": {"type": "boolean"} for i in range(n)})),
    ),
    "oneOf with tags": lambda n: ("schema", json.dumps({"oneOf": tagged(n)})),
}


def tagged(count: int) -> list[dict]:
    """Models that a constant property tells apart."""
    return [model(kind={"const": f"k{i}"}, x={"type": "integer"}) for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWING)
def test_the_time_to_compile_grows_no_faster_than_the_bound_does(name):
    """I7 (outlines#658, #483)."""
    seconds: dict[int, float] = {}
    for bound in (50, 100, 200, 500, 1000, 2000, 50, 100, 200, 500, 1000, 2000):
        compiled.cache_clear()
        start = time.process_time()
        try:
            compiled(*GROWING[name](bound), speller("BPE"))
        except ConfigError as error:
            assert "states" in str(error) and time.process_time() - start < 10
            continue
        seconds[bound] = min(time.process_time() - start, seconds.get(bound, 60))
    print(name, {bound: round(time, 2) for bound, time in seconds.items()})
    first, last = 100, max(seconds)
    assert seconds[last] <= 2 * max(seconds[first], 0.02) * last / first, "2 for noise"


@pytest.mark.parametrize(
    ("parts", "refusal"),
    [
        (tagged(400), ""),
        ([{"const": True}, {"const": 1}, {"enum": ["a", 0]}], ""),
        ([*tagged(3), {"type": "string"}], ""),
        ([{"const": 1}, {"const": 1.0}], "not distinguished"),
        ([*tagged(3), tagged(1)[0]], "not distinguished"),
        ([*tagged(400), tagged(1)[0]], "401 parts that no constant property tells apart"),
    ],
)
def test_parts_of_a_oneof_are_told_apart_in_time_linear_in_their_number(parts, refusal):
    """I7: a union of 500 tagged models was compared in pairs, for 10 s; of 2,000 for 140 s."""
    reader = SchemaReader({}, 4)
    if refusal:
        with pytest.raises(ConfigError, match=refusal):
            reader.language({"oneOf": parts}, "the schema", ())
    else:
        flats = [reader.flat(part, "the schema", ())[0] for part in parts]
        assert reader._told_apart(flats, "the schema") == (len(parts) != 4)
        reader._require_disjoint(parts, "the schema")


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "integer", "minimum": 0}, [0, 7, 10**18, 2**63 - 1], [-1, -(10**9)]),
        ({"type": "integer", "maximum": -5}, [-5, -17, -(2**63)], [-4, 0, 5]),
        ({"type": "integer", "exclusiveMinimum": 0.5}, [1, 99], [0, -1]),
        ({"type": "integer", "minimum": 1 - 2**53}, [1 - 2**53, 0, 2**60], [-(2**53), -(2**60)]),
        ({"type": "integer", "maximum": 2**63 - 1}, [2**63 - 1, 0, -7], [2**63, 10**19]),
        ({"type": "number", "minimum": 0.25}, [0.25, 0.2500001, 3, 1e14], [0.2499, 0, -1]),
        ({"type": "number", "exclusiveMinimum": 0}, [1e-4, 5], [0, -0.1]),
        ({"type": "number", "exclusiveMaximum": -1.5}, [-1.51, -20], [-1.5, -1.49, 0, 2]),
        ({"type": "number", "minimum": -0.1, "maximum": 0.1}, [-0.1, 0, 0.09], [0.11, -0.2, 1]),
    ],
)
def test_bounds_of_numbers_are_exact_and_cheap(schema, inside, outside):
    start = time.process_time()
    automaton = byte_automaton("schema", schema)
    assert time.process_time() - start < 0.5 and len(automaton.table) < 500
    assert all(automaton.accepts(format_number(value)) for value in inside)
    assert not any(automaton.accepts(format_number(value)) for value in outside)


def format_number(value: float) -> bytes:
    return f"{Decimal(repr(value)):f}".encode()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (0, 9), (5, 123), (-7, 3), (-120, -12), (99, 1001), (-1, 1), (1000, 1000)],
)
def test_whole_numbers_are_those_of_the_range(low, high):
    automaton = byte_automaton("schema", {"type": "integer", "minimum": low, "maximum": high})
    for n in range(low - 30, high + 30):
        assert automaton.accepts(str(n).encode()) == (low <= n <= high)
    assert not any(automaton.accepts(text) for text in (b"", b"-", b"-0", b"00", b"1.0"))


def test_decimals_are_compared_as_numbers():
    draw = np.random.default_rng(0)
    for _ in range(20):
        low, high = sorted(round(float(x), 2) for x in draw.normal(scale=3, size=2))
        automaton = byte_automaton("schema", {"type": "number", "minimum": low, "maximum": high})
        for value in (*(round(float(x), 3) for x in draw.normal(scale=3, size=50)), low, high):
            assert automaton.accepts(str(value).encode()) == (low <= value <= high), value


@pytest.mark.parametrize("step", [1, 5, 12, 0.5, 0.25, 100])
def test_multiples_are_those_that_division_finds(step):
    automaton = byte_automaton("schema", {"type": "number", "multipleOf": step})
    for n in range(-300, 300):
        value = n / 4 if n % 4 else n // 4
        assert automaton.accepts(str(value).encode()) == (value % step == 0), value


def test_strings_with_a_pattern_are_escaped():
    automaton = byte_automaton("schema", {"type": "string", "pattern": '^[a"\\\\\n]+$'})
    for text in ("a", '"', "\\", 'a"\\a', "\n"):
        assert automaton.accepts(json.dumps(text).encode())
    assert not automaton.accepts(b'"b"') and not automaton.accepts(b'"""')


def test_one_of_several_is_never_two_of_them():
    """Parts are distinguished by type, by constants, or by a property that both require."""
    one_of = [
        CAT,
        {"$ref": "#/$defs/dog"},
        {"type": ["string", "null"]},
        {"enum": [1, True]},
        {"const": 2},
    ]
    automaton = byte_automaton("schema", {"oneOf": one_of, "$defs": {"dog": DOG}})
    cat, dog = {"kind": "cat", "lives": 9}, {"kind": "dog", "good": True}
    for value in (cat, dog, "text", None, 1, 2, True):
        assert automaton.accepts(json.dumps(value).encode()), value
    for value in ({"kind": "dog", "lives": 3}, {"kind": "cow"}, {}, False, 3):
        assert not automaton.accepts(json.dumps(value).encode()), value


def test_constants_have_the_type_that_is_named():
    values = ["a", 3, 1.5, None, True]
    automaton = byte_automaton("schema", {"type": ["integer", "null"], "enum": values})
    assert [v for v in values if automaton.accepts(json.dumps(v).encode())] == [3, None]


def test_an_object_of_any_kind_is_any_object():
    automaton = byte_automaton("schema", {"type": "object"})
    for value in ({}, {"a": 1}, {"a": [1, "x", None], "b": {"c": {}, "d": [[]]}}):
        assert automaton.accepts(json.dumps(value).encode()), value
    for text in ("[]", "1", '{"a"}', '{"a": 1,}', ""):
        assert not automaton.accepts(text.encode())


def test_many_optional_properties_make_no_large_automaton():
    names = [f"p{i}" for i in range(40)]
    automaton = byte_automaton("schema", model(False, **{n: {"type": "boolean"} for n in names}))
    assert len(automaton.table) < 2000
    for kept in (names, names[::7], names[39:], []):
        assert automaton.accepts(json.dumps(dict.fromkeys(kept, True)).encode())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 1000},
        {"type": "array", "maxItems": 200, "items": model(a={"type": "integer"}, b={"const": 1})},
    ],
)
def test_long_repetitions_compile_in_seconds(schema):
    start = time.process_time()
    compiled("schema", json.dumps(schema), speller("BPE"))
    assert time.process_time() - start < 20


REFUSED = {
    "no JSON": ("{", "schema is not JSON"),
    "an unknown type": ({"type": "text"}, "the type 'text'; it can be object"),
    "an unsupported keyword": (
        {"type": "number", "not": {"const": 3}},
        "'not', which is not supported for number",
    ),
    "if": ({"if": {}, "then": {}}, "'if', which is not supported"),
    "an unknown format": (
        {"type": "string", "format": "iri"},
        "the format 'iri', which is not supported; known are base64",
    ),
    "a far reference": ({"$ref": "http://x"}, "it can refer only to places in itself"),
    "a missing reference": ({"$ref": "#/a"}, "'#/a', which does not exist"),
    "parts that overlap": (
        {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        "not distinguished by type or by a constant property",
    ),
    "properties that are a list": ({"properties": []}, r"'properties' []; it needs an object"),
    "free names that might be equal": (
        {"type": "object", "minProperties": 2},
        "'minProperties' 2, but names that are written freely might be equal",
    ),
    "sets of objects": (
        {"type": "array", "uniqueItems": True, "items": {"type": "object"}},
        "'uniqueItems' of items that are not constants, texts or numbers",
    ),
    "a step that is not binary": (
        {"type": "number", "multipleOf": 0.01},
        "'multipleOf' 0.01, which has no exact binary value",
    ),
    "contradicting parts": (
        {"allOf": [{"const": 1}, {"const": 2}]},
        "two different values of 'const'",
    ),
    "an empty range": (
        {"type": "integer", "minimum": 3, "maximum": 2},
        "no whole number from 3 to 2",
    ),
    "a set without room": (
        {"type": "array", "uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 3},
        "matches no text at all",
    ),
    "a pattern that looks behind": (
        {"type": "string", "pattern": "(?<=a)b"},
        "the pattern looks behind, which a finite automaton cannot do",
    ),
    "a huge minimum": ({"type": "string", "minLength": 10**9}, "it is too large to compile"),
    "a huge maximum": ({"type": "string", "pattern": "a*", "maxLength": 10**9}, "repeats too much"),
    "too many items": (
        {"type": "array", "maxItems": 9000, "items": model(a={"type": "integer"})},
        "use shorter repetitions, fewer items or flatter nesting",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_guaranteed_is_refused_by_name(name):
    schema, words = REFUSED[name]
    start = time.process_time()
    with pytest.raises(ConfigError, match=re.escape(words)):
        byte_automaton("schema", schema)
    assert time.process_time() - start < 3
