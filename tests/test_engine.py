"""Laws of the slot engine: a request writes the same whoever else is in the rows, whenever it came,
and the number of compiled programs is bounded."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_generate import CONFIG, PARAMS, TOKENIZER, weights
from variants import VARIANTS

from gptjax import generate
from gptjax.data import SequenceToSequence
from gptjax.generate import GenerateConfig, SampleConfig
from gptjax.generate.batch import Job, room_for
from gptjax.generate.constraints.masks import LEAST_STATES
from gptjax.generate.request import Request, requests
from gptjax.generate.schedule import Call, Engine
from gptjax.generate.watermark import Watermark

V, END = TOKENIZER.vocab_size, TOKENIZER.end_of_document
CALL = Call(CONFIG, PARAMS, TOKENIZER)
DIGITS = {"regex": "[0-9]{2,6}", "new_tokens": 10}
SCHEMA = {"schema": json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}})}
WATERMARK = Watermark("0f" * 16, delta=5.0, width=2).text

KINDS = (
    {},
    {"temperature": 0.0},
    {"top_k": 20, "top_p": 0.7},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"frequency_penalty": 0.7, "penalty_window": 4},
    {"stop_ids": (5, 17, 80, 99, 120, 200)},
    {"logit_bias": ((70, 3.0), (71, -4.0)), "min_new_tokens": 3},
    {"min_p": 0.05, "xtc_probability": 0.5, "typical_p": 0.9},
    {"dry_multiplier": 0.8, "no_repeat_ngram": 3},
    DIGITS,
    SCHEMA | {"new_tokens": 14, "temperature": 0.7},
    {"choices": ("yes", "no", "perhaps")},
    {"watermark": WATERMARK, "temperature": 1.0},
)
"""Settings, each of another kind."""


def drawn(count: int, seed: int = 0) -> list[Request]:
    """Requests with random prompts, lengths and settings."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, V - 1, draw.integers(1, 18)).tolist() for _ in range(count)]
    settings = []
    for i in range(count):
        free = {"new_tokens": int(draw.integers(6, 14)), "temperature": float(draw.uniform(0, 1.5))}
        settings.append(GenerateConfig(**free | KINDS[i % len(KINDS)] | {"seed": i}))
    return requests(CONFIG, TOKENIZER, prompts, settings)


ROOM = room_for(CONFIG, TOKENIZER, drawn(len(KINDS)))
"""Enough for every kind, so that most tests share their programs."""


def ids_of(engine: Engine, row: int) -> list[int]:
    history = engine.text.history
    return np.asarray(history.ids)[
        row, int(history.prompt[row]) : int(history.length[row])
    ].tolist()


def alone(request: Request) -> list[int]:
    """What a request writes in an engine of one row, with nobody before or after it."""
    engine = Engine(CALL, ROOM, rows=1).admit({0: Job(request)})
    return ids_of(engine.advance(100, pause=False), 0)


def arriving(asked: list[Request], rows: int, seed: int = 0) -> list[list[int]]:
    """What requests write that come at random times into the free rows of one engine."""
    draw = np.random.default_rng(seed)
    engine = Engine(CALL, ROOM, rows=rows)
    order, written = draw.permutation(len(asked)).tolist(), {}
    seats: dict[int, int] = {}
    while len(written) < len(asked):
        free = [row for row in range(rows) if row not in seats]
        coming = min(len(order), len(free), int(draw.integers(0, 3)) + (not seats))
        entering = {row: order.pop() for row in draw.permutation(free)[:coming].tolist()}
        seats |= entering
        if entering:
            engine = engine.admit({row: Job(asked[n]) for row, n in entering.items()})
        engine = engine.advance(int(draw.integers(1, 7)), pause=bool(draw.integers(2)))
        finished = np.asarray(engine.text.finished)
        for row in [row for row in seats if finished[row]]:
            written[seats.pop(row)] = ids_of(engine, row)
    return [written[n] for n in range(len(asked))]


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_requests_that_come_at_random_write_what_each_writes_alone(count, record_property):
    asked, before = drawn(count), generate.programs()
    together = arriving(asked, rows=4)
    compiled = {name: n - before[name] for name, n in generate.programs().items()}
    wanted = [alone(request) for request in asked]
    same = sum(a == b for a, b in zip(together, wanted, strict=True))
    figure = f"{same} of {count} the same as alone; compiled programs in 4 rows: {compiled}"
    print(figure)
    record_property("figure", figure)
    assert same == count
    assert len({tuple(ids) for ids in wanted}) > count // 2
    # Prompts of up to 16 or 32 tokens, 1, 2 or 4 at a time; tables of constraints that double once
    # in states (to 128) and once in masks (to 32).
    assert compiled["prefill"] <= 6 and compiled["advance"] <= 3 and compiled["admit"] <= 9


def test_a_row_that_enters_leaves_every_bit_of_the_others():
    asked = drawn(6, seed=2)
    engine = Engine(CALL, ROOM, rows=4).admit({0: Job(asked[0])})
    engine = engine.advance(3, pause=False)
    before = jax.device_get((engine.text, engine.slots.decoding.cache))
    # three, which are padded to four
    engine = engine.admit({row: Job(asked[row]) for row in (1, 2, 3)})
    after = jax.device_get((engine.text, engine.slots.decoding.cache))
    kept = np.asarray([0])

    def same(old, new):
        axis = 0 if old.ndim < 3 else 1
        np.testing.assert_array_equal(np.take(old, kept, axis), np.take(new, kept, axis))

    jax.tree.map(same, before, after)


def test_a_row_ends_when_it_is_evicted_and_the_others_write_on():
    asked = drawn(2, seed=3)
    engine = Engine(CALL, ROOM, rows=4).admit({0: Job(asked[0]), 1: Job(asked[1])})
    engine = engine.advance(2, pause=False)
    engine = engine.evict(np.arange(4) == 0)
    assert engine.text.finished.tolist() == [True, False, True, True], "free rows stay free"
    engine, written = engine.advance(2, pause=False), alone(asked[1])
    assert ids_of(engine, 1) == written[:4] and len(written) <= asked[1].settings.new_tokens
    engine = engine.advance(100, pause=False)
    assert ids_of(engine, 0) == alone(asked[0])[:2]
    assert ids_of(engine, 1) == alone(asked[1])


def test_an_engine_pauses_when_a_row_ends():
    short, long = (
        requests(CONFIG, TOKENIZER, ["x"], GenerateConfig(new_tokens=n, min_new_tokens=n))[0]
        for n in (3, 9)
    )
    engine = Engine(CALL, ROOM, rows=4).admit({0: Job(short), 1: Job(long)})
    engine = engine.advance(100, pause=True)
    assert [len(ids_of(engine, row)) for row in (0, 1)] == [3, 3]
    assert len(ids_of(engine.advance(100, pause=True), 1)) == 9


def test_constraints_of_rows_that_left_make_room_for_others():
    """The tables hold the constraints of rows that are there: all of these together have more
    states than the smallest tables."""
    engine = Engine(CALL, ROOM, rows=1)
    for letters in ("ab", "de", "gh"):
        for n in range(2, 16):
            settings = GenerateConfig(regex=f"[{letters}]{{{n}}}c", new_tokens=20)
            (one,) = requests(CONFIG, TOKENIZER, ["x"], settings)
            engine = engine.admit({0: Job(one)}).advance(100, pause=False)
            assert len(ids_of(engine, 0)) == n + 1 and ids_of(engine, 0)[-1] == ord("c")
    assert len(engine.constraint.need) == LEAST_STATES


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_texts_do_not_depend_on_the_number_of_rows(batch):
    prompts = ["x" * n for n in range(1, 10)]
    settings = [
        GenerateConfig(new_tokens=3 + 2 * (n % 4), seed=n, stop=("e",) if n % 2 else ())
        for n in range(9)
    ]
    found = generate.complete(CONFIG, PARAMS, TOKENIZER, prompts, settings, batch=batch)
    wanted = generate.complete(CONFIG, PARAMS, TOKENIZER, prompts, settings, batch=2)
    assert [(one.prompt, one.ids, one.reason) for one in found] == [
        (one.prompt, one.ids, one.reason) for one in wanted
    ]


def test_samples_of_a_prompt_wait_for_rows_and_share_a_reading():
    several = {"new_tokens": 6, "num_samples": 5, "temperature": 1.0}
    few, many = (
        generate.complete(
            CONFIG, PARAMS, TOKENIZER, ["ab", "cde"], GenerateConfig(**several), batch=batch
        )
        for batch in (2, 16)
    )
    assert [one.ids for one in few] == [one.ids for one in many]
    assert len({tuple(one.ids) for one in few}) == 10


MODELS = ("gpt2", "gqa", "window_with_sinks", "local_and_global", "experts", "latent", "prefix_lm")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "window_with_sinks" else pytest.mark.slow)
        for name in (*MODELS, "beside_an_encoder")
    ],
)
def test_rows_of_every_model_are_entered_by_one_prompt_after_another(name):
    config = dataclasses.replace(VARIANTS[name], vocab_size=V + 1, context=32)
    params = weights(config)
    task = SequenceToSequence() if config.encoder_layers else None
    more = {} if task is None else {"task": task}
    prompts = ["ab", "c" * 14, "defg", "h", "ijk" * 4, "lm"]
    settings = [SampleConfig(new_tokens=3 + 2 * n, temperature=0.7, seed=n) for n in range(6)]
    two, one = (
        generate.complete(config, params, TOKENIZER, prompts, settings, batch=batch, **more)
        for batch in (2, 1)
    )
    assert [done.ids for done in two] == [done.ids for done in one]
