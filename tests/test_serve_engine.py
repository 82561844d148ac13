"""Laws of the serving engine: an answer is the same to the bit whoever else is served, whether its
beginning was read before or not; nothing is compiled after the start; and one request's failure is
its own."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_engine import KINDS
from test_generate import CONFIG, PARAMS, TOKENIZER, weights
from variants import VARIANTS

from gptjax.api import Model
from gptjax.core.config import ConfigError
from gptjax.generate import GenerateConfig
from gptjax.generate.request import requests
from gptjax.serve import slots
from gptjax.serve.engine import Engine
from gptjax.serve.event_log import read_log, replay
from gptjax.serve.events import Drop, Release
from gptjax.serve.slots import PART
from gptjax.serve.stream import Ask, Busy, Failed, Unwell

CONTEXT, V = 256, TOKENIZER.vocab_size
MODEL = Model(dataclasses.replace(CONFIG, context=CONTEXT), PARAMS, TOKENIZER)
BEGINNING = np.random.default_rng(9).integers(0, V - 1, PART + 20).tolist()
"""What several prompts begin with: one whole part, and some more."""


def asks(count: int, seed: int = 0, model: Model = MODEL, longest: int = 60, **more) -> list[Ask]:
    """Requests with random prompts, lengths and settings, half of which share a beginning."""
    draw, asked = np.random.default_rng(seed), []
    for i in range(count):
        before = BEGINNING if draw.integers(2) and longest > 32 else []
        prompt = [*before, *draw.integers(0, V - 1, draw.integers(1, longest)).tolist()]
        free = {"new_tokens": int(draw.integers(3, 24)), "temperature": float(draw.uniform(0, 1.5))}
        settings = GenerateConfig(**free | KINDS[i % len(KINDS)] | {"seed": i} | more)
        (one,) = requests(model.config, TOKENIZER, [prompt], settings)
        asked.append(Ask(one, tenant=f"tenant {i % 3}"))
    return asked


def answer(stream) -> tuple:
    """All that a client gets, exactly."""
    pieces = list(stream)
    last = pieces[-1]
    return (
        "".join(p.text for p in pieces),
        [i for p in pieces for i in p.ids],
        [x for p in pieces for x in p.logprobs],
        [x for p in pieces for x in p.alternatives or []],
        last.reason,
        last.end,
        last.usage.written,
    )


def taken(engine: Engine, one: Ask):
    """Submits a request, again for as long as too many wait on a slow machine."""
    while True:
        try:
            return engine.submit(one)
        except Busy:
            time.sleep(0.1)


def mixed(engine: Engine, asked: list[Ask], seed: int, disturb: int = 0) -> list[tuple]:
    """The answers to requests that come at random times, among others that are cancelled."""
    draw, answers = np.random.default_rng(seed), {}
    others = asks(disturb, seed=seed + 1)
    order = [(n, one) for n, one in enumerate(asked)] + [(None, one) for one in others]
    threads = []
    for place in draw.permutation(len(order)):
        number, one = order[place]
        stream = taken(engine, one)
        if number is None:
            threads.append(threading.Timer(float(draw.uniform(0, 0.1)), stream.cancel))
        else:
            threads.append(
                threading.Thread(target=lambda s=stream, n=number: answers.setdefault(n, answer(s)))
            )
        threads[-1].start()
        time.sleep(float(draw.uniform(0, 0.01)))
    for thread in threads:
        thread.join()
    return [answers[n] for n in range(len(asked))]


def nobody(engine: Engine) -> bool:
    """Whether it has forgotten all requests, or does soon."""
    until = time.monotonic() + 10
    while engine._jobs and time.monotonic() < until:
        time.sleep(0.01)
    return not engine._jobs


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    log = tmp_path_factory.mktemp("engine") / "events.jsonl"
    with MODEL.engine(slots=4, context=CONTEXT, log=str(log)) as opened:
        yield opened


@pytest.mark.row(68)
@pytest.mark.parametrize("count", [24, pytest.param(1000, marks=pytest.mark.slow)])
def test_answers_are_the_same_to_the_bit_alone_and_among_others(engine, count, record_property):
    asked = asks(count, top_logprobs=2)
    alone = [answer(engine.submit(one)) for one in asked]
    together = mixed(engine, asked, seed=1, disturb=count // 2)
    same = sum(a == b for a, b in zip(alone, together, strict=True))
    figure = (
        f"{same} of {count} answers equal in ids, text and every bit of their log-probabilities"
    )
    print(figure)
    record_property("figure", figure)
    assert same == count
    assert len({tuple(one[1]) for one in alone}) > count // 2
    assert engine.facts().cached_tokens > 0


def test_a_hit_of_the_prefix_cache_is_a_miss_to_the_bit(engine):
    (one,) = asks(1, seed=5, top_logprobs=3)
    long = [*BEGINNING[::-1], *range(40)]
    one = one._replace(request=one.request._replace(ids=long))
    streams = [engine.submit(one._replace(salt=salt)) for salt in (b"a", b"b")]
    a, b = [answer(stream) for stream in streams]
    hit = list(engine.submit(one._replace(salt=b"a")))
    assert a == b == answer(iter(hit))
    assert hit[-1].usage.cached == PART and hit[-1].usage.prompt == len(long)
    missed = list(engine.submit(one._replace(salt=b"c")))  # another tenant shares nothing
    assert missed[-1].usage.cached == 0 and answer(iter(missed)) == a


def test_a_long_neighbour_changes_no_bit():
    """Beside it attention reads more slots, in another program."""
    longer = MODEL._replace(config=dataclasses.replace(MODEL.config, context=1024))
    (one,) = asks(1, seed=7, new_tokens=24, min_new_tokens=20, top_logprobs=3)
    (long,) = asks(1, seed=8, new_tokens=150, min_new_tokens=150, stop_ids=())
    ids = np.random.default_rng(3).integers(0, V - 1, 700).tolist()
    with longer.engine(slots=4, context=1024) as wide:
        alone = answer(wide.submit(one))
        beside = wide.submit(long._replace(request=long.request._replace(ids=ids)))
        next(iter(beside))  # it writes
        together = [answer(wide.submit(one)) for _ in range(3)]
        assert wide.facts().writing == 1  # it still does
        assert [len(ids) for _, ids, *_ in together] == [24] * 3 and together == [alone] * 3
        beside.cancel()


def test_the_engine_writes_what_the_model_completes(engine):
    prompts = ["Once upon a time", BEGINNING, [5], "and"]
    settings = {"new_tokens": 12, "seed": 3, "top_logprobs": 2, "prompt_logprobs": True}
    served = engine.complete(prompts, **settings)
    wanted = MODEL.complete(prompts, **settings)
    assert [one.ids for one in served] == [one.ids for one in wanted]
    for one, other in zip(served, wanted, strict=True):
        assert (one.text, one.reason, one.prompt) == (other.text, other.reason, other.prompt)
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)
        assert np.allclose(one.prompt_logprobs, other.prompt_logprobs, atol=1e-5)
        assert [[i for i, _ in place] for place in one.alternatives] == [
            [i for i, _ in place] for place in other.alternatives
        ]


def test_a_token_of_the_prompt_has_one_float_wherever_it_stands(engine):
    """lm-eval calls a token greedy if its ln p equals the largest of the alternatives."""
    (one,) = asks(1, seed=6, prompt_logprobs=True, top_logprobs=20)
    scores = next(iter(engine.submit(one))).prompt
    ids = one.request.ids
    assert len(scores.logprobs) == len(scores.alternatives) == len(ids)
    assert scores.logprobs[0] is None and scores.alternatives[0] is None
    met = 0
    places_of = scores.alternatives[1:]
    for token, own, places in zip(ids[1:], scores.logprobs[1:], places_of, strict=True):
        met += token in dict(places)
        assert dict(places).get(token, own) == own
    assert met


@pytest.mark.row(70)
def test_nothing_is_compiled_after_the_start(engine, record_property):
    until = time.monotonic() + 120
    while engine.state == "warming" and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.state == "ready"
    before = engine.facts().compiles
    ids = np.random.default_rng(2).integers(0, V - 1, CONTEXT).tolist()
    asked = asks(len(KINDS), seed=8)
    for length in range(1, CONTEXT, 7):
        one = asked[length % len(asked)]
        kinds = one.request._replace(ids=ids[:length])
        list(engine.submit(Ask(kinds, salt=bytes([length]))))
    assert engine.facts().compiles == before, slots.compiled_programs()
    lengths = len(range(1, CONTEXT, 7))
    record_property("figure", f"serving {lengths} lengths of prompts compiled nothing")


def test_a_cancelled_request_leaves_its_row_at_once(engine):
    (long,) = asks(1, seed=11, new_tokens=200, min_new_tokens=200, stop_ids=())
    for _ in range(25):
        streams = [engine.submit(long) for _ in range(6)]
        next(iter(streams[0]))
        for stream in (*streams, *streams):  # twice is once
            stream.cancel()
        since = time.monotonic()
        while engine.facts().writing + engine.facts().reading + engine.facts().waiting:
            assert time.monotonic() - since < 1
            time.sleep(0.001)
    assert list(streams[0]) == []


def test_a_coroutine_reads_the_same_and_can_be_cancelled(engine):
    asked = asks(4, seed=12)

    async def gathered():
        async def one(ask):
            return answer(iter([piece async for piece in engine.submit(ask)]))

        return await asyncio.gather(*map(one, asked))

    assert asyncio.run(gathered()) == [answer(engine.submit(one)) for one in asked]


def test_an_embedding_is_the_mean_hidden_state_whatever_else_is_served(engine):
    (one,) = asks(1, seed=13)
    ask = one._replace(wants="embedding")
    (piece,) = engine.submit(ask)
    assert np.isclose(np.linalg.norm(piece.embedding), 1) and piece.reason == "stop"
    others = [engine.submit(other) for other in asks(6, seed=14)]
    (again,) = engine.submit(ask)
    assert np.array_equal(piece.embedding, again.embedding)
    [list(other) for other in others]


def test_a_server_that_keeps_four_bits_answers_as_one_text_alone_would(engine):
    """Beside others, and where the beginning was read before; in a fraction of the memory."""
    asked = [[*BEGINNING, n] for n in range(3)]
    settings = {"new_tokens": 12, "temperature": 0.0}
    wanted = MODEL.complete(asked, GenerateConfig(**settings, kv_cache="int4"))
    with MODEL.engine(slots=4, context=CONTEXT, kv_cache="int4", cache_gib=0.05) as one:
        for _ in range(2):
            found = one.complete(asked, **settings)
            assert [done.ids for done in found] == [done.ids for done in wanted]
        facts, full = one.facts(), engine.facts()
        assert facts.cached_tokens >= 3 * PART
        assert facts.slot_bytes / facts.rows < 0.4 * full.slot_bytes / full.rows


def test_time_that_is_over_ends_an_answer(engine):
    (long,) = asks(1, seed=11, new_tokens=200, min_new_tokens=200, stop_ids=())
    pieces = list(engine.submit(long._replace(seconds=0.02)))
    assert pieces[-1].reason == "time"
    assert pieces[-1].usage.written == sum(len(piece.ids) for piece in pieces) < 200


def test_the_log_replays_to_what_the_engine_did_and_it_remembers_nobody(engine):
    streams = [engine.submit(ask) for ask in asks(12, seed=12)]
    streams += [engine.submit(ask._replace(seconds=0.0)) for ask in asks(3, seed=13)]
    streams[5].cancel()
    for stream in streams[:5] + streams[6:]:
        list(stream)
    assert nobody(engine)
    facts = engine.facts()
    ((policy, events),) = read_log(Path(engine.settings.log).read_text().splitlines())
    actions = replay(events, policy)
    did = Counter(type(action).__name__ for action in actions)
    ended = Counter(action.outcome for action in actions if isinstance(action, Drop | Release))
    assert did["ReadPart"] == facts.parts and did["Write"] == facts.steps
    names = ("finished", "cancelled", "expired", "failed")
    assert ended == {name: getattr(facts, name) for name in names if getattr(facts, name)}
    assert ended["expired"] >= 3 and ended["cancelled"] >= 1


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"beams": 2}, "beams"),
        ({"top_logprobs": 21}, "top_logprobs is 21"),
        ({"stop_ids": tuple(range(40))}, "stop ids are too many"),
        ({"best_of": 3}, "best_of"),
        ({"use": "mine"}, "mine"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_waits(engine, settings, words):
    with pytest.raises(ConfigError, match=words):
        engine.complete(["a"], **settings)


@pytest.mark.row(66)
def test_a_failure_of_the_device_ends_only_the_requests_that_were_on_it(
    monkeypatch, record_property
):
    with MODEL.engine(slots=2, context=64, cache_gib=0) as one:
        asked = [ask for ask in asks(4, seed=20, longest=30) if len(ask.request.ids) < 40]
        good = answer(one.submit(asked[0]))
        write, failures = one.device.write, [RuntimeError("the device is gone")]

        def failing(*args):
            if failures:
                raise failures.pop()
            return write(*args)

        monkeypatch.setattr(one.device, "write", failing)
        with pytest.raises(Failed, match="the device is gone"):
            list(one.submit(asked[0]))
        assert answer(one.submit(asked[0])) == good and one.facts().failed == 1
        clear, tried = one.device.clear, threading.Event()

        def failing_to_clear(row):
            if not (one._jobs or tried.is_set()):  # after an answer
                tried.set()
                raise RuntimeError("no row can be cleared")
            clear(row)

        monkeypatch.setattr(one.device, "clear", failing_to_clear)
        assert answer(one.submit(asked[0])) == good and tried.wait(10) and nobody(one)
        assert answer(one.submit(asked[0])) == good
        failures += [RuntimeError("again"), RuntimeError("and again")]
        waiting = [one.submit(asked[0]) for _ in range(6)]
        errors = []
        for stream in waiting:
            with pytest.raises((Failed, Unwell)) as caught:
                list(stream)
            errors.append(caught.type)
        assert errors[0] is Failed and errors[-1] is Unwell and one.state == "failed"
        with pytest.raises(Unwell):
            one.submit(asked[0])
    record_property(
        "figure",
        "its requests fail, the next is answered; the second in succession ends the engine",
    )


def test_a_full_queue_refuses_and_says_when_to_come_again():
    with MODEL.engine(slots=2, context=64, max_waiting=3, cache_gib=0) as one:
        (ask,) = asks(1, seed=21, longest=30)
        streams, refused = [], None
        for _ in range(20):
            try:
                streams.append(one.submit(ask))
            except Busy as busy:
                refused = busy
        assert refused and 1 <= refused.retry_after <= 120 and "try again" in str(refused)
        assert len({str(answer(stream)) for stream in streams}) == 1
        one.close(drain=5)
        with pytest.raises(Unwell):
            one.submit(ask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("gpt2", "window", "window_with_sinks", "experts", "latent", "deepseek", "alibi"),
        *("scanned", "bfloat16", "attention_sink", "strided"),
    ],
)
def test_every_kind_of_model_is_served_as_if_alone(name):
    config = VARIANTS[name]
    config = dataclasses.replace(config, vocab_size=V)
    model = Model(config, weights(config), TOKENIZER)
    context = config.context
    asked = asks(12, seed=30, model=model, longest=context - 12)
    with model.engine(slots=4, context=context) as one:
        alone = [answer(one.submit(ask)) for ask in asked]
        assert mixed(one, asked, seed=3) == alone
        wanted = model.complete(
            [ask.request.ids for ask in asked], [ask.request.settings for ask in asked]
        )
        assert [one[1] for one in alone] == [completion.ids for completion in wanted]
