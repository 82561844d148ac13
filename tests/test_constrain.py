"""Laws of constrained generation: every answer is valid, whatever the model says, and whatever can
be valid can come.

Read `LANGUAGES`: constraints, each with a judge that knows nothing of automata.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import ROPE

from gptjax import generate, model
from gptjax.core.config import ConfigError
from gptjax.data import GPT2, Bytes, SentencePiece
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import Draft, GenerateConfig
from gptjax.generate.constraints import KINDS, allowed, compiled, follow, join
from gptjax.generate.constraints.automaton import compile_language
from gptjax.generate.constraints.languages import LAST_CODE_POINT, chars
from gptjax.generate.constraints.patterns import regex
from gptjax.generate.constraints.tokens import byte_automaton

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "size": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "b\n", 3, None]}, "maxItems": 2},
        "alive": {"type": "boolean"},
    },
    "required": ["age", "tags"],
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["v", "next"],
        }
    },
    "$ref": "#/$defs/node",
}
SUMS = 'root ::= sum\nsum ::= term ([-+] term)*   # a comment\nterm ::= [0-9]+ | "(" sum ")"'
DATE = r"(19|20)\d{2}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])( (\w|é|😀){1,3})?"


def a_person(text: str) -> bool:
    one = json.loads(text)
    keys = [key for key in PERSON["properties"] if key in one]
    fits = (
        list(one) == keys
        and {"age", "tags"} <= set(one)
        and type(one["age"]) is int
        and 0 <= one["age"] <= 120
    )
    fits &= "name" not in one or (isinstance(one["name"], str) and 1 <= len(one["name"]) <= 8)
    fits &= "size" not in one or type(one["size"]) in (int, float)
    fits &= all(tag in ("a", "b\n", 3, None) for tag in one["tags"]) and len(one["tags"]) <= 2
    return fits and ("alive" not in one or one["alive"] in (True, False))


def a_tree(text: str) -> bool:
    one, depth = json.loads(text), 0
    while one is not None:
        if set(one) != {"v", "next"} or type(one["v"]) is not int:
            return False
        one, depth = one["next"], depth + 1
    return 1 <= depth <= 4


def a_sum(text: str) -> bool:
    old = ""
    while old != text:
        old, text = text, re.sub(r"\(\d+([-+]\d+)*\)", "1", text)
    return re.fullmatch(r"\d+([-+]\d+)*", text) is not None


LANGUAGES = {
    "schema": ({"schema": json.dumps(PERSON)}, a_person),
    "a schema that refers to itself": ({"schema": json.dumps(TREE)}, a_tree),
    "regex": ({"regex": DATE}, lambda text: re.fullmatch(DATE, text, re.ASCII) is not None),
    "grammar": ({"grammar": SUMS}, a_sum),
    "choices": (
        {"choices": ("yes", "no", "yes, but no", "é")},
        lambda text: text in ("yes", "no", "yes, but no", "é"),
    ),
}

PROSE = "".join(
    f"def f{i}(x): return x + {i * i}  # né {{}} [] yes no (1+2)-3 2026-01-{i % 28 + 1:02} null"
    " true\n"
    for i in range(400)
)
SPELLERS = ("bytes", "SentencePiece", "BPE")


@functools.cache
def speller(name: str):
    """A tokenizer of each kind; those with merges have learned tokens that reach over the borders
    of the constraints."""
    if name == "bytes":
        return tokenizers.train(Bytes(), [])
    if name == "SentencePiece":
        return tokenizers.train(SentencePiece(vocab_size=400), [PROSE])
    from tokenizers import ByteLevelBPETokenizer

    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(
        [PROSE], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        learned.save_model(folder)
        return tokenizers.train(GPT2(folder), [])


def untrained(tokenizer, seed: int = 0, **changes):
    config = dataclasses.replace(
        ROPE, vocab_size=tokenizer.vocab_size + 60, num_layers=1, context=128, **changes
    )
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    return config, jax.tree.map(
        lambda leaf: jnp.asarray(
            0.2 * draw.standard_normal(leaf.shape)
            + (leaf.ndim < 3 and leaf.shape[-1:] == (config.width,)),
            jnp.float32,
        ),
        tree,
    )


def judged(name: str, kind: str, each: int, batch: int) -> list[str]:
    """Valid answers of an untrained model, with limits from the tightest on: 20 prompts, and as
    many answers to each."""
    (settings, valid), tokenizer = LANGUAGES[name], speller(kind)
    least = compiled(*GenerateConfig(**settings).constraint, tokenizer).least
    rooms = [90, *([least + n for n in (0, 1, 3, 7)] * 4), *[90] * 3]
    configs = [
        GenerateConfig(new_tokens=room, temperature=1.0, seed=i, num_samples=each, **settings)
        for i, room in enumerate(rooms)
    ]
    done = generate.complete(
        *untrained(tokenizer), tokenizer, ["x"] * len(rooms), configs, batch=batch
    )
    for one in done:
        assert valid(one.text), one
    return [one.text for one in done]


def test_all_answers_are_valid():
    texts = judged("grammar", "BPE", 1, 20)
    assert len(texts) == 20 and len(set(texts)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPELLERS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_all_of_a_thousand_answers_are_valid(name, kind, record_property):
    texts = judged(name, kind, 50, 1000)
    record_property(
        "figure",
        f"{len(texts)} of {len(texts)} answers valid, {len(set(texts))} of them different: {name},"
        f" {kind}",
    )
    assert len(texts) == 1000 and len(set(texts)) >= (3 if name == "choices" else 100)


may, after = jax.jit(allowed, static_argnums=3), jax.jit(follow)


def test_what_is_valid_can_come():
    """Masks forbid no token that begins a valid rest: along valid texts, spelled anyhow, every
    token is allowed."""
    texts = {
        "schema": [
            '{"age": 7,"tags": ["a", 3]}',
            '{"name":"é\\n\\"","age":120,"size":-1.5e+3,"tags":[],"alive":false}',
        ],
        "grammar": ["1", "(1+22)-3"],
        "regex": ["2026-01-31 é😀w"],
    }
    for kind, several in texts.items():
        settings, valid = LANGUAGES[kind]
        for tokenizer, text in itertools.product(map(speller, SPELLERS), several):
            assert valid(text)
            whole = join([compiled(kind, settings[kind], tokenizer)], tokenizer, [1000])
            for ids in (tokenizer.encode(text).tolist(), one_byte_each(tokenizer, text)):
                state = jnp.asarray(whole.start)
                for n, token in enumerate([*ids, tokenizer.end_of_document]):
                    assert may(whole, state, jnp.asarray([n]), tokenizer.vocab_size)[0, token], (
                        text,
                        n,
                    )
                    state = after(whole, state, jnp.asarray([token]))


def one_byte_each(tokenizer, text: str) -> list[int]:
    """The longest way to spell a text."""
    single = {tokenizer.token_bytes([i]): i for i in range(tokenizer.vocab_size)}
    return [single[bytes([b])] for b in text.encode()]


def test_a_constraint_leaves_the_rows_without_one_alone():
    """The shapes are those of the test above, so that nothing is compiled twice."""
    tokenizer = speller("BPE")
    config, params = untrained(tokenizer)

    def write(*settings):
        return generate.complete(
            config,
            params,
            tokenizer,
            ["x"] * 20,
            [*settings, *[GenerateConfig(new_tokens=90)] * (20 - len(settings))],
            batch=20,
        )

    free = GenerateConfig(new_tokens=90), GenerateConfig(new_tokens=90, repetition_penalty=1.1)
    yes, one, other, nine, *_ = write(
        GenerateConfig(new_tokens=90, choices=("yes", "no")),
        *free,
        GenerateConfig(new_tokens=90, regex="[ab]{9}"),
    )
    assert [one.ids, other.ids] == [done.ids for done in write(*free)[:2]]
    assert yes.text in ("yes", "no") and yes.reason == "stop" and re.fullmatch("[ab]{9}", nine.text)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["beams", "draft", "lookup", "contrastive", "guidance"])
def test_every_way_of_writing_obeys(way):
    tokenizer = speller("SentencePiece")
    config, params = untrained(tokenizer)
    settings = {
        "beams": {"beams": 4, "num_samples": 2},
        "lookup": {"lookup": True},
        "contrastive": {"contrastive_alpha": 0.5, "top_k": 4},
        "guidance": {"guidance": 2.0},
        "draft": {},
    }[way]
    draft = (
        Draft(*untrained(tokenizer, 1, width=16, num_heads=2, num_kv_heads=1))
        if way == "draft"
        else None
    )
    for room in (9, 40):
        for one in generate.complete(
            config,
            params,
            tokenizer,
            ["((1+1))", "(2)+3"],
            GenerateConfig(new_tokens=room, temperature=1.0, grammar=SUMS, **settings),
            draft=draft,
        ):
            assert a_sum(one.text), one


@pytest.mark.slow
def test_beams_of_a_small_language_are_all_of_it():
    tokenizer = speller("bytes")
    config, params = untrained(tokenizer)
    done = generate.complete(
        config,
        params,
        tokenizer,
        ["x"],
        GenerateConfig(
            new_tokens=12, beams=4, num_samples=4, early_stopping="never", choices=("a", "b", "ca")
        ),
    )
    assert sorted(one.text for one in done[:3]) == ["a", "b", "ca"] and done[3].reason == "none"
    assert [one.score for one in done[:3]] == sorted((one.score for one in done[:3]), reverse=True)


# --- the languages
# -----------------------------------------------------------------------------------------------

PATTERNS = [
    *(
        "",
        "a",
        "abc",
        "a|b|",
        "a*b+c?",
        "(ab)*c",
        "[a-c]{2,3}",
        "[^a]",
        ".",
        r"\d+\.\d{2}",
        r"a{2}",
        r"a{0}b",
        r"a{,2}",
        r"a{2,}",
        "(a|b)*abb",
        r"\w\W\s\S\D",
    ),
    *(
        r"[\d_-]+",
        r"\[\]\\",
        r"[\]]",
        "é|😀+",
        "[à-ü]",
        "[a-😀]",
        r"\x41\u00e9\t",
        "^ab$",
        "(?:a|bc)+?",
        "a.c",
    ),
]
PROBES = [
    "",
    *map("".join, itertools.product("ab", repeat=2)),
    *map("".join, itertools.product("abc", repeat=3)),
    "abb",
    "ababc",
    "bb",
    "aabb",
    "12.34",
    "1.2",
    "a-_ 0",
]
PROBES += [
    "_-1",
    "[]\\",
    "]",
    "é",
    "😀",
    "😀😀",
    "ü",
    "ſ",
    "Aé\t",
    "a\nc",
    "\n",
    "A!\t!x",
    "a",
    "b",
    "c",
    "aaaa",
    "bcbca",
    "\x00",
    "\U0010ffff",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regex_accepts_what_python_s_accepts(pattern):
    automaton = compile_language(regex(pattern))
    theirs = re.compile(pattern, re.ASCII)
    for probe in PROBES:
        assert automaton.accepts(probe.encode()) == bool(theirs.fullmatch(probe)), probe


def test_any_range_of_characters_is_its_utf8():
    draw = np.random.default_rng(0)
    for _ in range(60):
        low, high = sorted(draw.integers(0, LAST_CODE_POINT + 1, 2).tolist())
        automaton = compile_language(chars([(low, high)]))
        for point in {
            low,
            high,
            low - 1,
            high + 1,
            0,
            0x7F,
            0x80,
            0x7FF,
            0x800,
            0xFFFF,
            0x10000,
            LAST_CODE_POINT,
            *draw.integers(0, LAST_CODE_POINT + 1, 20).tolist(),
        }:
            if 0 <= point <= LAST_CODE_POINT and not 0xD800 <= point <= 0xDFFF:
                assert automaton.accepts(chr(point).encode()) == (low <= point <= high), (
                    low,
                    high,
                    point,
                )
        assert not automaton.accepts(b"\xff") and not automaton.accepts(b"\xed\xa0\x80")


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 0), (0, 9), (5, 123), (-7, 3), (-120, -12), (99, 1001), (-1, 1), (1000, 1000)],
)
def test_whole_numbers_are_those_of_the_range(low, high):
    automaton = byte_automaton("schema", ({"type": "integer", "minimum": low, "maximum": high}))
    for n in range(low - 30, high + 30):
        assert automaton.accepts(str(n).encode()) == (low <= n <= high)
    assert not any(automaton.accepts(text) for text in (b"", b"-", b"-0", b"00", b"1.0"))


def test_an_automaton_is_the_smallest():
    assert [
        len(compile_language(regex(p)).table)
        for p in ("a|b|c", "(a|b)*abb", "a{5}", "abc|xbc|ybc", "(aa)*|(aaaa)*")
    ] == [2, 4, 6, 4, 2]


def test_strings_with_a_pattern_are_escaped():
    automaton = byte_automaton("schema", ({"type": "string", "pattern": '^[a"\\\\]+$'}))
    for text in ("a", '"', "\\", 'a"\\a'):
        assert automaton.accepts(json.dumps(text).encode())
    assert not automaton.accepts(b'"b"') and not automaton.accepts(b'"""')


def test_one_of_several_is_never_two_of_them():
    """Parts are told apart by type, by constants, or by a property that both require."""

    def part(kind, **more):
        return {
            "type": "object",
            "properties": {"kind": {"const": kind}, **more},
            "required": ["kind"],
        }

    schema = {
        "oneOf": [
            part("a", x={"type": "integer"}),
            {"$ref": "#/$defs/b"},
            {"type": ["string", "null"]},
            {"enum": [1, True]},
            {"const": 2},
        ]
    }
    automaton = byte_automaton(
        "schema", (schema | {"$defs": {"b": part("b", y={"type": "boolean"})}})
    )
    for value in (
        {"kind": "a", "x": 3},
        {"kind": "b"},
        {"kind": "b", "y": True},
        "text",
        None,
        1,
        2,
        True,
    ):
        assert automaton.accepts(json.dumps(value).encode()), value
    for value in ({"kind": "b", "x": 3}, {"kind": "c"}, {}, False, 3):
        assert not automaton.accepts(json.dumps(value).encode()), value


def test_constants_have_the_type_that_is_named():
    automaton = byte_automaton(
        "schema", ({"type": ["integer", "null"], "enum": ["a", 3, 1.5, None, True]})
    )
    assert [
        value
        for value in ("a", 3, 1.5, None, True)
        if automaton.accepts(json.dumps(value).encode())
    ] == [3, None]


def test_an_object_of_any_kind_is_any_object():
    automaton = byte_automaton("schema", ({"type": "object"}))
    for value in ({}, {"a": 1}, {"a": [1, "x", None], "b": {"c": {}, "d": [[]]}}):
        assert automaton.accepts(json.dumps(value).encode()), value
    for text in ("[]", "1", '{"a"}', '{"a": 1,}', ""):
        assert not automaton.accepts(text.encode())


def test_many_properties_that_may_be_left_away_make_no_large_automaton():
    names = [f"p{i}" for i in range(40)]
    automaton = byte_automaton(
        "schema", ({"type": "object", "properties": {name: {"type": "boolean"} for name in names}})
    )
    assert len(automaton.table) < 2000
    for kept in (names, names[::7], names[39:], []):
        assert automaton.accepts(json.dumps(dict.fromkeys(kept, True)).encode())


WRONG = {
    "regex that looks ahead": ({"regex": "a(?=b)"}, "regex looks ahead after its beginning"),
    "regex with a reference": ({"regex": r"(a)\1"}, "regex refers back to a group"),
    "regex without an end": ({"regex": "(a"}, "has a '\\(' without '\\)'"),
    "regex of too much": ({"regex": "(a{1000}){1000}"}, "repeats too much"),
    "regex of many states": ({"regex": "(a{180}b){180}"}, "more than 20000 states"),
    "regex of nothing": ({"regex": "[^\\x00-\\U0010ffff]"}, "matches no text at all"),
    "grammar without a root": ({"grammar": 'a ::= "b"'}, "no rule 'root'"),
    "grammar that lacks a rule": (
        {"grammar": "root ::= other"},
        "no rule 'other', which 'root' needs",
    ),
    "grammar that does not end": ({"grammar": 'root ::= "a" root'}, "matches no text at all"),
    "grammar that is none": ({"grammar": "hello"}, "grammar has 'hello'"),
    "schema that is no JSON": ({"schema": "{"}, "schema is not JSON"),
    "schema of a type": ({"schema": '{"type": "text"}'}, "the type 'text'; it can be object"),
    "schema with a keyword": (
        {"schema": '{"type": "number", "not": {"const": 3}}'},
        "'not', which is not supported for number",
    ),
    "schema with a far reference": (
        {"schema": '{"$ref": "http://x"}'},
        "it can refer only to places in itself",
    ),
    "schema with a missing reference": ({"schema": '{"$ref": "#/a"}'}, "which does not exist"),
    "schema with parts that overlap": (
        {"schema": '{"oneOf": [{"type": "number"}, {"type": "integer"}]}'},
        "not distinguished by type",
    ),
    "schema with properties that are none": (
        {"schema": '{"properties": []}'},
        r"'properties' \[\]; it needs an object",
    ),
    "regex of many brackets": ({"regex": "(" * 3000 + "a" + ")" * 3000}, "nested too deep"),
    "two at once": ({"regex": "a", "choices": ("b",)}, "regex and choices can't be joined"),
    "more than the room": (
        {"regex": "a{50}", "new_tokens": 20},
        "regex needs at least 50 tokens and there is room for 20",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_constraint_that_can_not_be_kept_is_refused_by_name(name):
    settings, words = WRONG[name]
    tokenizer = speller("bytes")
    with pytest.raises(ConfigError, match=words):
        generate.complete(*untrained(tokenizer), tokenizer, ["x"], GenerateConfig(**settings))


def test_every_kind_has_a_setting():
    assert set(KINDS) <= {field.name for field in dataclasses.fields(GenerateConfig)}
