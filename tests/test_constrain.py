"""Laws of constrained generation: every answer is valid, whatever the model says, and whatever can
be valid can come.

Read `LANGUAGES`: constraints, each with a judge that knows nothing of automata.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_templates import made
from variants import ROPE
from walks import SPELLERS, speller, walk

from gptjax import generate, model
from gptjax.core.config import ConfigError
from gptjax.data.tokenizers.spelling import Special
from gptjax.generate import Draft, GenerateConfig
from gptjax.generate.constraints import (
    KINDS,
    allowed,
    compiled,
    insert,
    join_automata,
    next_states,
    spell,
    unconstrained,
)
from gptjax.generate.constraints.masks import FREE

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


may, after = jax.jit(allowed, static_argnums=3), jax.jit(next_states)


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
            whole = join_automata([compiled(kind, settings[kind], tokenizer)], tokenizer, [1000])
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


# --- a running batch ----------------------------------------------------------------------------


def test_rows_of_a_running_batch_change_their_constraints_independently():
    """A table that rows enter and leave answers as one that holds a row's automaton alone."""
    tokenizer, draw = speller("BPE"), np.random.default_rng(0)
    sources = ["[ab]{3}", r"\d+", "x{60}", "(yes|no)*", "[a-f]{9}!", "", "q{200}"]
    automata = [compiled("regex", source, tokenizer) for source in sources]
    running, places = unconstrained(4, tokenizer), [None] * 4
    state, held = np.zeros(4, np.int32), [None] * 4
    shapes = set()
    for _ in range(40):
        row = int(draw.integers(4))
        held[row] = None if draw.random() < 0.2 else automata[draw.integers(len(automata))]
        running, places = insert(running, row, held[row], 500, places)
        state[row] = running.start[row]
        shapes.add((running.table.shape, running.masks.shape))
        mine = np.asarray(may(running, state, np.zeros(4, np.int32), tokenizer.vocab_size))
        tokens = [int(draw.choice(np.flatnonzero(allowed_row))) for allowed_row in mine]
        for i, automaton in enumerate(held):
            alone = join_automata([automaton], tokenizer, [500])
            offset = places[i].state if places[i] else FREE
            own = alone.start + state[i] - offset if automaton else alone.start
            assert (
                may(alone, own, np.zeros(1, np.int32), tokenizer.vocab_size)[0] == mine[i]
            ).all()
        keep = [token != tokenizer.end_of_document for token in tokens]
        state = np.where(keep, after(running, state, jnp.asarray(tokens)), state)
    assert len(shapes) <= 2


def test_equal_automata_share_their_place():
    tokenizer = speller("bytes")
    one, other = (compiled("regex", source, tokenizer) for source in ("a{30}", "b{30}"))
    both = join_automata([one, None, other, one], tokenizer, [40] * 4)
    assert both.start[0] == both.start[3] != both.start[2] and both.start[1] == FREE
    assert len(both.table) == 256 and len(both.masks) == 64


# --- tokens and bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("kind", SPELLERS)
def test_random_answers_are_valid_and_finished_in_time(name, kind):
    """With tokens of several characters, of parts of one, and single bytes."""
    (settings, valid), tokenizer = LANGUAGES[name], speller(kind)
    automaton, draw = (
        compiled(*GenerateConfig(**settings).constraint, tokenizer),
        np.random.default_rng(0),
    )
    for i in range(50):
        room = automaton.least + int(draw.integers(3) if i % 2 else draw.integers(90))
        answer = walk(automaton, tokenizer, room, draw).decode()
        assert valid(answer), answer


def test_every_id_that_ends_answers_may_end_a_constrained_one():
    """Chat models end answers with another id than documents."""
    tokenizer = speller("bytes")
    end = tokenizer.end_of_document
    several = dataclasses.replace(
        tokenizer, pieces=(*tokenizer.pieces, b""), special=Special(eos=end, ends=(end + 1,))
    )
    one = compiled("regex", "[0-9]", several)
    after = one.table[0, ord("7")]
    for state, expected in ((0, [*range(48, 58)]), (after, [end, end + 1])):
        words = one.masks[one.mask[state]].view(np.uint32)
        bits = [i for i in range(several.vocab_size) if words[i // 32] >> (i % 32) & 1]
        assert bits == expected


def test_control_tokens_come_only_where_a_grammar_names_them():
    tokenizer = made("thinking")
    opened, closed = (tokenizer.controls[name].id for name in ("<think>", "</think>"))
    spelled = spell(tokenizer)

    def after(one, *ids: int) -> set[int]:
        state = 0
        for i in ids:
            for byte in spelled[i][spelled[i] >= 0]:
                state = one.table[state, byte]
        words = one.masks[one.mask[state]].view(np.uint32)
        return {i for i in range(tokenizer.vocab_size) if words[i // 32] >> (i % 32) & 1}

    free = compiled("regex", "(.|\n)*", tokenizer)
    controls = {control.id for control in tokenizer.controls.values()}
    assert after(free) & controls == {tokenizer.end_of_document}
    thought = compiled("grammar", f'root ::= %token {opened} "a"* %token {closed}', tokenizer)
    assert after(thought) == {opened}
    assert after(thought, opened) & controls == {closed}
    assert after(thought, opened, closed) == {tokenizer.end_of_document}


def test_banned_tokens_are_not_needed_for_an_answer():
    tokenizer = speller("BPE")
    digits = frozenset(
        i for i in range(tokenizer.vocab_size) if re.search(rb"\d", tokenizer.token_bytes([i]))
    )
    assert compiled("regex", r"\d+|no", tokenizer).least == 1
    automaton = compiled("regex", r"\d+|no", tokenizer, digits)
    assert {walk(automaton, tokenizer, 9, np.random.default_rng(i)) for i in range(20)} == {b"no"}
    with pytest.raises(ConfigError, match="that are not banned spell a text that the regex allows"):
        compiled("regex", r"\d+", tokenizer, digits)
    with pytest.raises(ConfigError, match="which this tokenizer has, but it is banned"):
        compiled("regex", "a", tokenizer, frozenset({tokenizer.end_of_document}))


WRONG = {
    "a malformed constraint": ({"regex": "(a"}, "has a '\\(' without '\\)'"),
    "two at once": ({"regex": "a", "choices": ("b",)}, "regex and choices can't be joined"),
    "more than the room": (
        {"regex": "a{50}", "new_tokens": 20},
        "regex needs at least 50 tokens and there is room for 20",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_constraint_that_cannot_be_kept_is_refused_by_name(name):
    settings, words = WRONG[name]
    tokenizer = speller("bytes")
    with pytest.raises(ConfigError, match=words):
        generate.complete(*untrained(tokenizer), tokenizer, ["x"], GenerateConfig(**settings))


def test_every_kind_has_a_setting():
    assert set(KINDS) <= {field.name for field in dataclasses.fields(GenerateConfig)}
