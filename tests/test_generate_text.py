"""Laws of text in and text out: streams, stop texts, what is reported, what is refused, and how
often anything compiles."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generate import CONFIG, CONTEXT, PARAMS, TOKENIZER, judged, log_probabilities, weights
from test_laws import quick

from gptjax import generate
from gptjax.core.config import ConfigError
from gptjax.data.tokenizers.spelling import Special
from gptjax.generate import ORDER, GenerateConfig, SampleConfig, batch
from gptjax.generate.request import requests
from gptjax.generate.stops import Pieces, find_stop, safe_length

V = TOKENIZER.vocab_size
END = TOKENIZER.end_of_document


def write(prompts, params=PARAMS, **settings) -> list[generate.Completion]:
    return generate.complete(CONFIG, params, TOKENIZER, prompts, GenerateConfig(**settings))


def spoken(text: str) -> tuple[tuple[int, int], ...]:
    """Forces the answer to be this text: bytes are ids."""
    return tuple(enumerate(text.encode()))


# --- streams ---


def test_pieces_of_a_stream_are_the_whole_text_and_each_is_utf8():
    for seed in range(6):
        sample = SampleConfig(new_tokens=20, temperature=1.0, top_p=1.0, seed=seed)
        *pieces, last = generate.stream_text(CONFIG, PARAMS, TOKENIZER, "Zoë", sample)
        (whole,) = generate.complete(CONFIG, PARAMS, TOKENIZER, ["Zoë"], sample)
        assert "".join(pieces) == whole.text == last.text and last == whole
        assert all(piece.encode("utf-8") for piece in pieces)
        assert TOKENIZER.decode(whole.ids) == whole.text and len(whole.logprobs) == len(whole.ids)
        assert whole.reason == ("length" if len(whole.ids) == 20 else "stop")


SPEECH = "a€b😀c, Zoë!"
"""17 bytes; its characters end within chunks and across them."""


def test_a_character_is_never_cut_by_a_stream():
    *pieces, last = generate.stream_text(
        CONFIG, PARAMS, TOKENIZER, "x", GenerateConfig(new_tokens=17, forced=spoken(SPEECH))
    )
    assert (
        "".join(pieces) == SPEECH == last.text
        and "\ufffd" not in "".join(pieces)
        and len(pieces) > 1
    )
    pieces = Pieces([])
    assert [pieces(SPEECH.encode()[:n], n == 17) for n in range(1, 18)] == one_by_one(SPEECH)


def one_by_one(text: str) -> list[str]:
    """What each byte of the text adds to what can be read."""
    read = [text.encode()[:n].decode(errors="ignore") for n in range(len(text.encode()) + 1)]
    return [new[len(old) :] for old, new in itertools.pairwise(read)]


def test_an_asynchronous_stream_gives_the_same_pieces():
    settings = GenerateConfig(new_tokens=20, temperature=1.0)

    async def collected() -> list:
        return [
            piece
            async for piece in generate.astream_text(CONFIG, PARAMS, TOKENIZER, "ab", settings)
        ]

    assert asyncio.run(collected()) == list(
        generate.stream_text(CONFIG, PARAMS, TOKENIZER, "ab", settings)
    )


def test_an_asynchronous_stream_leaves_the_loop_free():
    async def others() -> int:
        turns = 0
        stream = generate.astream_text(
            CONFIG, PARAMS, TOKENIZER, "ab", GenerateConfig(new_tokens=20)
        )
        task = asyncio.ensure_future(anext(stream))
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        await stream.aclose()
        return turns

    assert asyncio.run(others()) > 1


def test_a_stream_refuses_before_it_gives_anything():
    with pytest.raises(ConfigError, match="a prompt has"):
        generate.stream_text(CONFIG, PARAMS, TOKENIZER, "x" * CONTEXT, SampleConfig())
    for several in ({"num_samples": 2}, {"beams": 2}, {"best_of": 2}):
        with pytest.raises(ConfigError, match="can't be streamed"):
            generate.stream_text(CONFIG, PARAMS, TOKENIZER, "x", GenerateConfig(**several))


# --- the end ---


@pytest.mark.parametrize(
    ("stop", "text", "size"),
    [
        (("😀",), "a€b", 9),
        (("Zoë", "oë"), "a€b😀c, ", 16),
        (("nothing",), SPEECH, 17),
        (("c, Z", ",", "c,"), "a€b😀", 11),
        (("a",), "", 1),
        (("ë!x",), SPEECH, 17),
    ],
)
def test_a_text_ends_before_a_stop_text_across_tokens(stop, text, size):
    settings = GenerateConfig(new_tokens=17, forced=spoken(SPEECH), stop=stop)
    (done,) = generate.complete(CONFIG, PARAMS, TOKENIZER, ["x"], settings)
    assert done.text == text and done.reason == ("length" if text == SPEECH else "stop_string")
    assert done.ids == list(SPEECH.encode()[:size]) and len(done.logprobs) == size
    *pieces, last = generate.stream_text(CONFIG, PARAMS, TOKENIZER, "x", settings)
    assert "".join(pieces) == text and last == done


def test_stop_texts_of_a_row_leave_the_others_alone():
    settings = [
        GenerateConfig(new_tokens=17, forced=spoken(SPEECH), stop=stop)
        for stop in ((), ("b",), ("!",), ("€", "a€"))
    ]
    done = generate.complete(CONFIG, PARAMS, TOKENIZER, ["x"] * 4, settings)
    assert [one.text for one in done] == [SPEECH, "a€", SPEECH[:-1], ""]
    assert [one.reason for one in done] == ["length", "stop_string", "stop_string", "stop_string"]


def test_the_first_stop_is_found_and_what_may_become_one_is_held_back():
    stops = [b"abc", b"bc", b"abcd"]
    assert (
        find_stop(b"xabcd", stops) == (1, 4)
        and find_stop(b"xxbc", stops) == (2, 4)
        and find_stop(b"xab", stops) is None
    )
    assert [safe_length(text, stops) for text in (b"xa", b"xab", b"xb", b"xc", b"", b"aab")] == [
        1,
        1,
        1,
        2,
        0,
        1,
    ]
    assert safe_length(b"xab", [b"abc"]) == 1, (
        "all but the last byte of a stop may be its beginning"
    )
    draw = np.random.default_rng(0)
    for _ in range(
        300
    ):  # any text, any cut: what is given is the text before the stop, and never more
        text = bytes(draw.choice(list(b"abcx"), 12).tolist())
        shown, given = Pieces(stops), ""
        for n in range(1, 13):
            found = find_stop(text[:n], stops)
            given += shown(text[: found[0]] if found else text[:n], bool(found) or n == 12)
            if found:
                break
        found = find_stop(text, stops)
        assert given == (text[: found[0]] if found else text).decode()


def test_a_text_ends_at_its_stop_ids():
    (free,) = write(["ab"], new_tokens=20, temperature=1.0)
    (done,) = write(["ab"], new_tokens=20, temperature=1.0, stop_ids=(5, free.ids[4]))
    first = free.ids.index(free.ids[4])
    assert done.ids == free.ids[:first] and done.reason == "stop"


def test_ids_that_end_an_answer_are_those_of_the_tokenizer_and_the_settings():
    special = dataclasses.replace(TOKENIZER, special=Special(ends=(5, 7)))
    asked = requests(CONFIG, special, ["a"], GenerateConfig(stop_ids=(9,)))
    room = batch.room_for(CONFIG, special, asked)
    row = batch.columns(CONFIG, special, [batch.Job(asked[0])], room).stop[0]
    assert {*row[row >= 0].tolist()} == {TOKENIZER.end_of_document, 5, 7, 9}


def test_a_text_ends_when_its_time_is_over():
    (done,) = write(["ab"], new_tokens=20, temperature=0, max_seconds=1e-9)
    assert done.reason == "time" and len(done.ids) == 1
    times = [
        GenerateConfig(new_tokens=20, temperature=0, min_new_tokens=20, max_seconds=t)
        for t in (1000.0, 1e-9, 1e-9, 1e-9)
    ]
    slow, quick, *_ = generate.complete(CONFIG, PARAMS, TOKENIZER, ["ab"] * 4, times)
    assert (
        slow.reason == "length"
        and len(slow.ids) == 20
        and (quick.ids, quick.reason) == (slow.ids[:1], "time")
    )


@pytest.mark.row(11)
def test_a_text_ends_where_the_context_does(record_property):
    """Prompt and new tokens come to the context, one more, and a hundred more: the same text, and
    nothing is written past the end."""
    room = CONTEXT - 21  # the end-of-document id stands before the prompt
    short, *done = (
        write(["x" * 20], new_tokens=n, temperature=0, min_new_tokens=min(n, room))[0]
        for n in (room - 1, room, room + 1, room + 100)
    )
    assert (
        all(one == done[0] for one in done)
        and len(done[0].ids) == room
        and done[0].reason == "length"
    )
    assert done[0].ids[: len(short.ids)] == short.ids
    best = judged([END, *b"x" * 20], done[0].ids).copy()
    best[:, END] = -np.inf
    assert best.argmax(axis=-1).tolist() == done[0].ids
    record_property("figure", f"context, +1 and +100: 3 of 3 the same {room} tokens, reason length")


def test_a_short_prompt_is_not_cut_by_a_long_neighbour():
    short, long, *_ = write(
        ["x", "x" * 25, "y", "z"], new_tokens=20, temperature=0, min_new_tokens=6
    )
    assert len(short.ids) == 20 and len(long.ids) == CONTEXT - 26
    assert short.ids == write(["x"], new_tokens=20, temperature=0, min_new_tokens=6)[0].ids


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ConfigError, match=rf"a prompt has \d+ tokens and the context is {CONTEXT}"):
        write(["x" * CONTEXT])


# --- what is reported ---


def test_alternatives_and_prompt_log_probabilities_are_those_of_an_uncached_reading():
    prompts = ["hello", "Zoë", "", "a longer prompt"]
    done = write(prompts, new_tokens=6, temperature=1.0, top_logprobs=3, prompt_logprobs=True)
    for prompt, one in zip(prompts, done, strict=True):
        ids = [END, *TOKENIZER.encode(prompt).tolist()]
        table = judged(ids, one.ids)
        assert len(one.alternatives) == len(one.ids) and all(
            len(place) == 3 for place in one.alternatives
        )
        for row, place in zip(table, one.alternatives, strict=True):
            assert [i for i, _ in place] == np.argsort(-row, kind="stable")[:3].tolist()
            np.testing.assert_allclose([p for _, p in place], np.sort(row)[::-1][:3], atol=1e-4)
        whole = np.zeros((1, CONTEXT), np.int32)
        whole[0, : len(ids)] = ids
        known = np.asarray(log_probabilities(whole))[0]
        np.testing.assert_allclose(
            one.prompt_logprobs, [known[n, token] for n, token in enumerate(ids[1:])], atol=1e-4
        )
    (bare,) = write(["hello"], new_tokens=20)
    assert bare.alternatives is None and bare.prompt_logprobs is None and bare.score is None


@pytest.mark.slow
def test_gradients_of_log_probabilities_are_the_slopes_that_steps_find():
    """What the documentation shows: d ln p(text) / d parameters."""
    tokens, lengths = jnp.asarray([[END, *b"hello there"]]), jnp.asarray([9])

    def total(params):
        return generate.token_logprobs(CONFIG, params, tokens, lengths).sum()

    loss, slope = quick(total), quick(jax.grad(total))(PARAMS)
    draw = np.random.default_rng(0)
    way = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape).astype(np.float32), PARAMS)
    along = sum(
        float((a * b).sum())
        for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(way), strict=True)
    )

    def moved(size):
        return loss(jax.tree.map(lambda leaf, step: leaf + size * step, PARAMS, way))

    assert along == pytest.approx((float(moved(1e-3)) - float(moved(-1e-3))) / 2e-3, rel=0.02)


@pytest.mark.slow
def test_texts_can_be_drawn_for_many_keys_at_once():
    """What the documentation shows: `vmap` of `step` over keys gives what each key gives alone."""
    prompt, length = np.asarray([[END, *b"ab"]], np.int32), np.asarray([3], np.int32)
    sampling = generate.Sampling(jnp.ones(1), jnp.asarray([V]), jnp.ones(1))
    begun = generate.prefill(CONFIG, PARAMS, prompt, length, np.asarray([4], np.int32), slots=16)

    def text(key):
        def write_one(_, state):
            return generate.step(
                CONFIG, PARAMS, state, key[None], sampling, jnp.asarray([[-1]]), jnp.int32(V)
            )

        return jax.lax.fori_loop(0, 4, write_one, begun).text.history.ids[0, 3:7]

    keys = jax.random.split(jax.random.key(0), 5)
    several = quick(jax.vmap(text))(keys)
    assert len({tuple(one) for one in several.tolist()}) > 1
    for key, ids in zip(keys, several.tolist(), strict=True):
        out = generate.generate(
            CONFIG,
            PARAMS,
            prompt,
            length,
            key[None],
            sampling=sampling,
            new_tokens=20,
            vocabulary=V,
        )
        assert out.ids[0, :4].tolist() == ids


def test_a_model_of_nan_is_refused():
    broken = jax.tree.map(lambda leaf: leaf * np.nan, PARAMS)
    with pytest.raises(ConfigError, match="NaN"):
        write(["x"], params=broken, new_tokens=20, temperature=0)


def test_no_prompts_give_no_answers():
    assert write([]) == []


# --- settings ---

VALID = [
    *({"temperature": t} for t in (0, 0.0, 1e-6, 1.0, 100.0)),
    *({"top_k": k} for k in (0, 1, 257)),
    *({"top_p": p} for p in (1e-9, 0.5, 1.0)),
    *({"min_p": p} for p in (0, 0.5, 1.0)),
    *({"typical_p": p} for p in (1e-9, 1.0)),
    {"top_n_sigma": 0},
    {"repetition_penalty": 0.5},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"length_penalty": -1.0, "beams": 4, "beam_groups": 2},
    {"new_tokens": 1},
    {"seed": 2**32 - 1},
    {"order": tuple(reversed(ORDER))},
]
INVALID = [
    *(("temperature", t) for t in (-1e-6, -1, math.nan, math.inf)),
    ("top_k", -1),
    *((name, p) for name in ("top_p", "typical_p") for p in (0, -0.1, 1.0001, math.nan, math.inf)),
    *(
        (name, p)
        for name in ("min_p", "xtc_probability", "xtc_threshold", "contrastive_alpha")
        for p in (-0.1, 1.1, math.nan, math.inf)
    ),
    *(
        (name, x)
        for name in ("top_n_sigma", "dry_multiplier", "diversity")
        for x in (-1.0, math.nan, math.inf)
    ),
    *(
        (name, x)
        for name in ("presence_penalty", "frequency_penalty", "length_penalty", "guidance")
        for x in (math.nan, math.inf)
    ),
    *(("repetition_penalty", x) for x in (0, -1.0, math.nan, math.inf)),
    *(
        (name, n)
        for name in (
            "penalty_window",
            "no_repeat_ngram",
            "min_new_tokens",
            "best_of",
            "top_logprobs",
        )
        for n in (-1,)
    ),
    *(
        (name, n)
        for name in (
            "dry_base",
            "dry_allowed_length",
            "num_samples",
            "beams",
            "beam_groups",
            "draft_tokens",
        )
        for n in (0, -3)
    ),
    *(("new_tokens", n) for n in (0, -5)),
    *(("seed", s) for s in (-1, 2**32)),
    *(("max_seconds", t) for t in (0, -1.0, math.nan, math.inf)),
    *((name, ("a", "")) for name in ("stop", "dry_breakers")),
    ("logit_bias", ((1, math.inf),)),
    ("forced", ((-1, 3),)),
    ("draft_tokens", 257),
    ("order", ORDER[1:]),
    ("order", (*ORDER[1:], "top_z")),
    ("early_stopping", "maybe"),
    ("beam_groups", 2),
    ("min_new_tokens", 129),
    ("contrastive_alpha", 0.5),
]


@pytest.mark.parametrize("setting", VALID, ids=str)
def test_settings_in_their_range_are_taken(setting):
    GenerateConfig(**setting)


@pytest.mark.row(19)
@pytest.mark.parametrize(("name", "value"), INVALID)
def test_settings_out_of_range_are_refused_by_name(name, value, record_property):
    with pytest.raises(ConfigError, match=rf"^{name} is .*--{name.replace('_', '-')}") as refused:
        GenerateConfig(**{name: value})
    record_property("figure", f"refused: {refused.value}")


BEYOND = {
    "top_k": (258, "top_k is 258, the vocabulary has 257 tokens"),
    "banned": ((257,), "banned has the id .257., the vocabulary has 0 to 256"),
    "allowed": ((-1,), "allowed has the id"),
    "forced": (((0, 300),), "forced has the id"),
    "stop_ids": ((999,), "stop_ids has the id"),
    "logit_bias": (((999, 1.0),), "logit_bias has the id"),
    "top_logprobs": (258, "top_logprobs is 258"),
}


@pytest.mark.row(19)
@pytest.mark.parametrize("name", BEYOND)
def test_settings_beyond_the_vocabulary_are_refused_by_name(name):
    value, words = BEYOND[name]
    with pytest.raises(ConfigError, match=words):
        write(["x"], **{name: value})


def test_settings_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="banned leaves no token"):
        write(["x"], allowed=(1, 2), banned=(1, 2))
    with pytest.raises(ConfigError, match="beams and lookup can't be joined"):
        GenerateConfig(beams=2, lookup=True)
    with pytest.raises(ConfigError, match="top_logprobs is 2; it needs to be omitted with --beams"):
        GenerateConfig(beams=2, top_logprobs=2)


def test_a_constraint_that_banned_tokens_can_not_meet_is_refused():
    digits = tuple(b"0123456789")
    with pytest.raises(ConfigError, match="that are not banned spell a text that the regex allows"):
        write(["x"], regex="[0-9]+", banned=digits, new_tokens=20)
    (done,) = write(["x"], regex="[0-9]+|no", banned=digits, new_tokens=20)
    assert done.text == "no"


def test_named_tokens_come_or_do_not():
    done = generate.complete(
        CONFIG,
        PARAMS,
        TOKENIZER,
        ["x"] * 4,
        [
            GenerateConfig(new_tokens=20, temperature=2.0, **s)
            for s in (
                {"allowed": (65, 66)},
                {"banned": tuple(range(100, 257))},
                {"logit_bias": ((70, 99.0),)},
                {},
            )
        ],
    )
    assert (
        set(done[0].ids) <= {65, 66}
        and max(done[1].ids) < 100
        and set(done[2].ids) == {70}
        and max(done[3].ids) >= 100
    )


# --- neighbours, compilations ---

KINDS = (
    {"temperature": 0.9},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"top_k": 20, "min_p": 0.05, "xtc_probability": 0.5},
    {"temperature": 1.2, "dry_multiplier": 0.8, "typical_p": 0.9},
    {"no_repeat_ngram": 2, "banned": (32,), "top_n_sigma": 2.0, "min_new_tokens": 3},
)


@pytest.mark.slow
@pytest.mark.row(68)
def test_fifty_prompts_are_answered_alone_as_beside_any_neighbours(record_property):
    draw = np.random.default_rng(3)
    prompts = ["".join(map(chr, draw.integers(97, 123, 1 + i % 14))) for i in range(50)]
    settings = [
        GenerateConfig(new_tokens=8, seed=i % 7, **KINDS[i % len(KINDS)]) for i in range(50)
    ]
    together = generate.complete(CONFIG, PARAMS, TOKENIZER, prompts, settings, batch=16)
    alone = [
        generate.complete(CONFIG, PARAMS, TOKENIZER, [prompt], s)[0]
        for prompt, s in zip(prompts, settings, strict=True)
    ]
    same = sum(
        a.ids == b.ids and a.reason == b.reason for a, b in zip(together, alone, strict=True)
    )
    record_property("figure", f"{same} of 50 answers the same alone and in batches of 16, float32")
    assert same == 50 and len({tuple(one.ids) for one in alone}) > 40


@pytest.mark.slow
@pytest.mark.row(70)
def test_no_prompt_and_no_setting_compiles_more_than_the_buckets(record_property):
    config = dataclasses.replace(
        CONFIG, width=16, num_layers=1, feed_forward=16
    )  # seen nowhere else, so that it begins with nothing compiled
    params, draw = weights(config), np.random.default_rng(0)

    def compiled() -> tuple[int, int]:
        counts = generate.programs()
        return counts["prefill"], counts["advance"]

    def ask(length: int, sample: SampleConfig) -> None:
        generate.complete(config, params, TOKENIZER, ["x" * (length - 1)], sample)

    before, widths = compiled(), (16, CONTEXT)
    prefills = sum(slots >= width for slots in widths for width in widths)
    decodes = len(widths) * len(("top-k, top-p and temperature", "everything"))
    for length in range(1, CONTEXT):
        ask(length, SampleConfig(new_tokens=40, temperature=0))
    for i in range(200):
        length, count = int(draw.integers(1, CONTEXT)), int(draw.integers(1, 40))
        plain = {
            "temperature": float(draw.uniform(0, 2)),
            "top_k": int(draw.integers(0, V)),
            "top_p": float(draw.uniform(0.01, 1)),
            "seed": int(draw.integers(0, 999)),
        }
        if i % 2:
            ask(length, SampleConfig(count, **plain))
            continue
        more = {
            name: float(draw.uniform(0, 1))
            for name in (
                "min_p",
                "xtc_probability",
                "xtc_threshold",
                "dry_multiplier",
                "top_n_sigma",
                "frequency_penalty",
            )
        }
        more |= {
            "typical_p": float(draw.uniform(0.01, 1)),
            "repetition_penalty": float(draw.uniform(0.5, 2)),
            "dry_base": float(draw.uniform(1, 2)),
        }
        more |= {
            "no_repeat_ngram": int(draw.integers(0, 4)),
            "banned": tuple(draw.integers(0, V, 3).tolist()),
            "min_new_tokens": int(draw.integers(0, count + 1)),
        }
        ask(length, GenerateConfig(count, **plain, **more))
    grown = [now - then for now, then in zip(compiled(), before, strict=True)]
    record_property(
        "figure",
        f"{CONTEXT - 1} lengths and 200 settings: {grown[0]} of {prefills} and {grown[1]} of"
        f" {decodes} buckets compiled",
    )
    assert grown[0] <= prefills and grown[1] <= decodes
