"""Laws of the server's protocol: a wrong body is refused by its field's name, a stream joined is
the whole answer however it was cut, tools can only be called rightly, and the official client's
own types hold for everything that is said."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import re
import time

import numpy as np
import pytest
from chat_templates import made
from test_generate import CONFIG, TOKENIZER

from gptjax.core.config import ConfigError
from gptjax.generate.constraints.syntaxes import byte_automaton
from gptjax.generate.follow import Answer, until_stop
from gptjax.generate.stops import Pieces
from gptjax.serve import asks, bodies, openapi, responses, tokenizing, tools
from gptjax.serve.answers import whole_answer
from gptjax.serve.chunks import Chunks, error_event
from gptjax.serve.fields import json_schema_of
from gptjax.serve.jobs import Job, next_piece
from gptjax.serve.protocol import (
    BadRequest,
    Call,
    CallForm,
    Served,
    Stamp,
    model_card,
    model_list,
    problem,
    served_model,
)
from gptjax.serve.response_events import answer_of, events_of
from gptjax.serve.stream import Busy, Failed, Piece, PromptScores, Stream, Unwell

CONTEXT = 4096
STAMP = Stamp("00ff", 1_800_000_000, 77)


def serving(tokenizer=TOKENIZER, **more) -> Served:
    config = dataclasses.replace(CONFIG, context=CONTEXT, vocab_size=tokenizer.vocab_size)
    return served_model("tiny", config, tokenizer, context=CONTEXT, fingerprint="fp", **more)


SERVED = serving()
NAMES = ("llama-3", "thinking", "chatml")
BPE = {name: serving(made(name)) for name in NAMES}
USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def chat(served: Served = SERVED, **body) -> Call:
    body = {"messages": USER} | body
    return asks.read_chat(json.dumps(body).encode(), served, STAMP)


def completion(served: Served = SERVED, **body) -> Call:
    body = {"prompt": "Hi"} | body
    return asks.read_completion(json.dumps(body).encode(), served, STAMP)


def embedding(served: Served = SERVED, **body) -> Call:
    return asks.read_embedding(json.dumps({"input": "Hi"} | body).encode(), served, STAMP)


def settings(call: Call):
    return call.asks[0].request.settings


# --- bodies -------------------------------------------------------------------------------------


def content(*parts: dict) -> list:
    return [{"role": "user", "content": list(parts)}]


def function(**fields) -> list:
    return [{"type": "function", "function": {"name": "add"} | fields}]


BAD = [
    (chat, {"messages": []}, "messages"),
    (chat, {"messages": None}, "messages"),
    (chat, {"messages": "Hi"}, "messages"),
    (chat, {"messages": [7]}, "messages"),
    (chat, {"messages": [{"content": "Hi"}]}, "messages.0.role"),
    (chat, {"messages": [{"role": "usr", "content": "Hi"}]}, "messages.0.role"),
    (chat, {"messages": [{"role": "user"}]}, "messages.0.content"),
    (chat, {"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
    (chat, {"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages.0.x"),
    (chat, {"messages": content({"type": "image_url"})}, "messages.0.content.0.image_url"),
    (chat, {"messages": content({"type": "text"})}, "messages.0.content.0.text"),
    (chat, {"messages": USER * 3000}, "messages"),
    (chat, {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
    (chat, {"temperature": -1}, "temperature"),
    (chat, {"temperature": "hot"}, "temperature"),
    (chat, {"temperature": True}, "temperature"),
    (chat, {"temperature": 10**400}, "temperature"),
    (chat, {"top_p": 1.5}, "top_p"),
    (chat, {"top_k": -2}, "top_k"),
    (chat, {"top_k": 1.5}, "top_k"),
    (chat, {"n": 0}, "n"),
    (chat, {"n": 65}, "n"),
    (chat, {"max_tokens": -1}, "max_tokens"),
    (chat, {"max_tokens": 10**6}, "max_tokens"),
    (chat, {"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
    (chat, {"stop": ["a"] * 17}, "stop"),
    (chat, {"stop": ""}, "stop"),
    (chat, {"stop": ["a", ""]}, "stop.1"),
    (chat, {"stop": [7]}, "stop"),
    (chat, {"seed": 1.5}, "seed"),
    (chat, {"logit_bias": {"a": 1}}, "logit_bias.a"),
    (chat, {"logit_bias": {"999": 1}}, "logit_bias.999"),
    (chat, {"logit_bias": {"9": 101}}, "logit_bias.9"),
    (chat, {"logit_bias": {"9": None}}, "logit_bias.9"),
    (chat, {"logit_bias": [1]}, "logit_bias"),
    (chat, {"presence_penalty": 3}, "presence_penalty"),
    (chat, {"logprobs": 3}, "logprobs"),
    (chat, {"top_logprobs": 3}, "top_logprobs"),
    (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (chat, {"stream": "yes"}, "stream"),
    (chat, {"stream_options": {"include_usage": True}}, "stream_options"),
    (chat, {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    (chat, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    (chat, {"tempratur": 1}, "tempratur"),
    (chat, {"audio": {"voice": "x"}}, "audio"),
    (chat, {"modalities": ["audio"]}, "modalities.0"),
    (chat, {"functions": [{"name": "f"}]}, "functions"),
    (chat, {"echo": True}, "echo"),
    (chat, {"beams": 2}, "beams"),
    (chat, {"tool_choice": "auto"}, "tool_choice"),
    (chat, {"tools": [TOOL], "tool_choice": "some"}, "tool_choice"),
    (
        chat,
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
    ),
    (chat, {"tools": [TOOL, TOOL]}, "tools.1.function"),
    (chat, {"tools": function(name="a b")}, "tools.0.function.name"),
    (chat, {"tools": function(name="add\n")}, "tools.0.function.name"),
    (chat, {"tools": function(parameters={"type": "string"})}, "tools.0.function.parameters.type"),
    (chat, {"tools": [TOOL], "regex": "a"}, "tools"),
    (chat, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (chat, {"response_format": {"type": "xml"}}, "response_format.type"),
    (chat, {"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
    (chat, {"guided_json": {}, "json_schema": {}}, "json_schema"),
    (chat, {"ignore_eos": True, "regex": "a"}, "ignore_eos"),
    (chat, {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    (chat, {"model": "gpt-5"}, "model"),
    (chat, {"cache_salt": 7}, "cache_salt"),
    (chat, {"max_seconds": 0}, "max_seconds"),
    (completion, {"prompt": None}, "prompt"),
    (completion, {"prompt": []}, "prompt"),
    (completion, {"prompt": True}, "prompt"),
    (completion, {"prompt": ["a", 7]}, "prompt.1"),
    (completion, {"prompt": [1, 999]}, "prompt"),
    (completion, {"prompt": [1, 10**30]}, "prompt.1"),
    (completion, {"prompt": [-1]}, "prompt.0"),
    (completion, {"prompt": [[1], []]}, "prompt.1"),
    (completion, {"prompt": ["a"] * 257}, "prompt"),
    (completion, {"prompt": ["a"] * 200, "n": 2}, "n"),
    (completion, {"prompt": [1] * 5000}, "prompt"),
    (completion, {"prompt": "x" * 10**6}, "prompt"),
    (completion, {"suffix": "end"}, "suffix"),
    (completion, {"logprobs": 6}, "logprobs"),
    (completion, {"logprobs": True}, "logprobs"),
    (completion, {"best_of": 2, "n": 3}, "best_of"),
    (completion, {"best_of": 2, "stream": True}, "best_of"),
    (embedding, {"dimensions": 7}, "dimensions"),
    (embedding, {"encoding_format": "int8"}, "encoding_format"),
    (embedding, {"input": [[]]}, "input.0"),
]


@pytest.mark.row(65)
def test_a_bad_body_is_refused_fast_by_the_name_of_its_field(record_property):
    longest = 0.0
    for read, body, param in BAD:
        start = time.monotonic()
        with pytest.raises(BadRequest) as caught:
            read(**body)
        longest = max(longest, time.monotonic() - start)
        assert longest < 0.1, body
        error = caught.value
        assert error.param == param, (param, error.param, str(error))
        assert error.status == (404 if param == "model" else 400)
        assert "\n" not in str(error) and "--" not in str(error) and len(str(error)) <= 400
    figure = f"{len(BAD)} of {len(BAD)} bad bodies refused by field, in at most"
    record_property("figure", f"{figure} {1000 * longest:.0f} ms")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff{}",
        b'{"prompt":"a","prompt":"b"}',
        b'{"prompt":"a","top_p":NaN}',
        b'{"prompt":"\\ud800"}',
        b'{"prompt":' + b"[" * 100_000,
        b'{"prompt":"a","seed":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(BadRequest):
        asks.read_completion(body, SERVED, STAMP)


def anything(schema: dict, draw: random.Random) -> object:
    """A random value that a schema takes, or sometimes one that it does not."""
    if draw.random() < 0.03:
        odd = [
            None,
            True,
            -1,
            10**30,
            1.5,
            "",
            [],
            {},
            [[]],
            [{}],
            "\0",
            {"a": {}},
            1e308,
            "é" * 99,
        ]
        return draw.choice(odd)
    if "anyOf" in schema:
        return anything(draw.choice(schema["anyOf"]), draw)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        known, needed = schema.get("properties", {}), schema.get("required", [])
        names = [n for n in known if n in needed or draw.random() < 4 / len(known)]
        free = {} if known else {draw.choice(["type", "a", "5", "$ref"]): draw.choice(ODD)}
        return {name: anything(known[name], draw) for name in names} | free
    if kind == "array":
        count = draw.randrange(schema.get("minItems", 0), 4)
        return [anything(schema["items"], draw) for _ in range(count)]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", 10)
        wide = draw.choice([low, high, min(high, low + 3)])
        return wide if kind == "integer" else float(wide)
    texts = ["add", "Hi", "user", "a b", "root ::= [a-z", '{"a": 1}', "{", "\n", "🙂\u2028"]
    return {"boolean": draw.random() < 0.5, "string": draw.choice(texts)}.get(kind)


ODD = ["object", "#/$defs/x", "array", 7, -100, None, {"type": "string"}, [1], 1e6]


def test_any_body_is_read_or_refused_by_name_and_fast():
    """No other error, whatever is asked."""
    draw, count = random.Random(11), {True: 0, False: 0}
    for _ in range(1500):
        served = draw.choice([SERVED, BPE["thinking"]])
        cls, read = draw.choice(
            [
                (bodies.ChatBody, asks.read_chat),
                (bodies.CompletionBody, asks.read_completion),
                (bodies.EmbeddingBody, asks.read_embedding),
                (responses.ResponseBody, responses.read_response),
                (
                    bodies.TokenizeBody,
                    lambda body, served, stamp: tokenizing.tokenize(body, served),
                ),
            ]
        )
        body = anything(json_schema_of(cls), draw)
        if isinstance(body, dict) and draw.random() < 0.9:
            body.pop("model", None)
        start = time.process_time()
        try:
            read(json.dumps(body).encode(), served, STAMP)
            count[True] += 1
        except BadRequest as error:
            count[False] += 1
            assert "\n" not in str(error), body
        assert time.process_time() - start < 0.2, body
    assert min(count.values()) > 200, count


def test_an_error_names_the_nearest_right_field_and_both_numbers():
    with pytest.raises(BadRequest, match="Did you mean 'temperature'"):
        chat(temprature=1)
    with pytest.raises(BadRequest, match=rf"3 tokens.*5000.*5003.*{CONTEXT}") as caught:
        completion(max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(BadRequest, match="tiny") as caught:
        completion(model="tini")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_every_field_reaches_its_setting():
    same = dict.fromkeys(("min_p", "xtc_probability", "typical_p"), 0.5)
    same |= {"xtc_threshold": 0.3, "repetition_penalty": 1.2, "presence_penalty": -1.0}
    same |= {"frequency_penalty": 0.5, "dry_multiplier": 0.8, "dry_base": 2.0, "top_k": 3}
    same |= {"dry_allowed_length": 4, "temperature": 0.7, "top_n_sigma": 1.5}
    named = [
        ("max_tokens", 9, "new_tokens", 9),
        ("n_predict", 9, "new_tokens", 9),
        ("min_tokens", 2, "min_new_tokens", 2),
        ("ignore_eos", True, "min_new_tokens", 16),
        ("stop", "a", "stop", ("a",)),
        ("stop_token_ids", [5], "stop_ids", (5,)),
        ("allowed_token_ids", [5, 6], "allowed", (5, 6)),
        ("repeat_penalty", 1.3, "repetition_penalty", 1.3),
        ("repeat_last_n", 8, "penalty_window", 8),
        ("dry_sequence_breakers", ["."], "dry_breakers", (".",)),
        ("top_k", -1, "top_k", 0),
        ("seed", -1, "seed", 2**32 - 1),
        ("guided_json", {"type": "null"}, "schema", '{"type": "null"}'),
        ("regex", "a+", "regex", "a+"),
        ("guided_grammar", 'root ::= "a"', "grammar", 'root ::= "a"'),
        ("guided_choice", ["a", "b"], "choices", ("a", "b")),
        ("prompt_logprobs", 3, "top_logprobs", 3),
        ("logprobs", 2, "top_logprobs", 2),
    ]
    for name, value in same.items():
        assert getattr(settings(completion(**{name: value})), name) == value
    for name, value, setting, expected in named:
        assert getattr(settings(completion(**{name: value})), setting) == expected, name
    biased = settings(completion(logit_bias={"5": -100, "6": 2.5}))
    assert biased.banned == (5,) and biased.logit_bias == ((6, 2.5),)
    structured = {"json": {"type": "null"}}
    assert settings(completion(structured_outputs=structured)).schema == '{"type": "null"}'
    named_schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}}}
    assert settings(chat(response_format=named_schema)).schema == '{"const": 1}'
    assert settings(chat(response_format={"type": "json_object"})).schema == '{"type": "object"}'
    assert completion(max_seconds=2).asks[0].seconds == 2


def test_zero_is_a_value_and_absence_has_openais_defaults():
    absent, zero = settings(chat()), settings(chat(temperature=0, top_p=0, seed=0))
    assert (absent.temperature, absent.top_p, absent.seed) == (1, 1, STAMP.seed)
    assert (zero.temperature, zero.top_k, zero.seed) == (0, 1, 0)
    assert settings(completion()).new_tokens == 16
    whole = chat().asks[0].request
    assert len(whole.ids) + whole.settings.new_tokens == CONTEXT
    assert settings(completion(max_tokens=None, stop=None, logprobs=None)) == settings(completion())


def test_prompts_may_be_texts_or_ids_and_n_answers_are_neighbours():
    for prompt in ("Hi", ["Hi"], [256, 72, 105], [[256, 72, 105]]):
        assert completion(prompt=prompt).asks[0].request.ids == [256, 72, 105]
    call = completion(prompt=["a", "b"], n=3)
    order = [(ask.request.prompt, ask.sample) for ask in call.asks]
    assert order == [(p, i) for p in "ab" for i in range(3)]
    kept = embedding(input=["a", "b"]).asks
    assert [ask.request.ids for ask in kept] == [[256, 97], [256, 98]]
    assert all(ask.wants == "embedding" for ask in kept)


def test_fields_without_effect_are_named_and_requests_share_no_prefix_with_others():
    call = chat(user="me", metadata={}, stream=True, stream_options={"include_obfuscation": True})
    assert call.ignored == ("user", "metadata", "stream_options.include_obfuscation")
    salts = {
        asks.read_completion({"prompt": "a", "cache_salt": salt}, SERVED, STAMP, who).asks[0].salt
        for who, salt in (("a", "b"), ("ab", None), ("", "ab"), ("a", None), ("1:a", "b"))
    }
    assert len(salts) == 5


def test_the_model_of_a_request_chooses_the_adapter():
    served = serving(adapters=("law", "code"))
    for name, use, number in (
        (None, "base", -1),
        ("tiny", "base", -1),
        ("base", "base", -1),
        ("code", "code", 1),
    ):
        request = completion(served, model=name).asks[0].request
        assert (request.settings.use, request.adapter) == (use, number)
    assert [card["id"] for card in model_list(served)["data"]] == ["tiny", "law", "code"]
    assert model_card(served, "law")["parent"] == "tiny"
    with pytest.raises(BadRequest):
        model_card(SERVED, "law")


def test_messages_are_rendered_by_the_models_template():
    parts = content({"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"})
    for served in (SERVED, *BPE.values()):
        told = chat(served, messages=parts)
        assert told.asks[0].request.ids == (
            chat(served, messages=[{"role": "user", "content": "Hel\nlo"}]).asks[0].request.ids
        )
        system = [{"role": "developer", "content": "Be brief."}, *USER]
        assert b"Be brief." in text_of(served, chat(served, messages=system))
        assert set(served.ends.ids) <= set(settings(told).stop_ids)
        assert set(served.ends.texts) <= set(settings(told).stop)


def text_of(served: Served, call: Call) -> bytes:
    return served.tokenizer.token_bytes(call.asks[0].request.ids)


# --- answers ------------------------------------------------------------------------------------


def scripted(
    call: Call, number: int, ids: list[int], sizes: list[int], ending: str, draw: random.Random
) -> list[Piece]:
    """What the engine gives for an answer of these ids, written in turns of these sizes.

    Args:
      ending: `stop` for a stop token behind them, or `length`.
    """
    ask, tokenizer = call.asks[number], call.served.tokenizer
    top = ask.request.settings.top_logprobs
    logprobs = [-draw.random() * 5 for _ in ids]
    best = [
        [(i, p), *((draw.randrange(tokenizer.vocab_size), p - k - 1) for k in range(top - 1))][:top]
        for i, p in zip(ids, logprobs, strict=True)
    ]
    job = Job(ask, Stream(lambda: None), Pieces(ask.request.stop_texts), since=0.0)
    if ask.request.settings.prompt_logprobs:
        places = np.array([[5, 6][:top] or [0][:0]] * (len(ask.request.ids) - 1))
        shape = (len(ask.request.ids) - 1, min(top, 2))
        job.scored = [(-np.arange(1.0, shape[0] + 1), places.reshape(shape), np.full(shape, -0.5))]
    pieces, written = [], 0
    for size in [*sizes, len(ids)]:
        written = min(len(ids), written + size)
        over = written == len(ids)
        kept, text, ends = until_stop(tokenizer, ask.request, ids[:written])
        reason = "stop_string" if ends else ending if over else None
        answer = Answer(
            ids=kept,
            logprobs=logprobs[: len(kept)],
            text=text,
            reason=reason,
            alternatives=best[: len(kept)] if top else None,
            end=(tokenizer.end_of_document, -0.25) if reason == "stop" else None,
        )
        if (piece := next_piece(job, answer)) is not None:
            pieces.append(piece)
        if answer.reason is not None:
            break
    return pieces


def events(stream: bytes) -> list[dict]:
    lines = stream.decode("ascii").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def streamed(call: Call, pieces: list[list[Piece]], draw: random.Random) -> list[dict]:
    """All events, the pieces of several choices interleaved at random."""
    chunks, waiting = Chunks(call), [list(each) for each in pieces]
    out = chunks.begin()
    while any(waiting):
        number = draw.choice([i for i, each in enumerate(waiting) if each])
        out += chunks.take(number, waiting[number].pop(0))
    return events(out + chunks.end())


def joined(call: Call, chunks: list[dict]) -> dict[int, dict]:
    """What a client makes of the events: of each choice its parts, joined."""
    made: dict[int, dict] = {}
    for choice in (c for chunk in chunks for c in chunk["choices"]):
        delta = choice.get("delta", {})
        one = made.setdefault(
            choice["index"], {"text": "", "logprobs": {}, "ids": [], "calls": {}, "reason": None}
        )
        assert one["reason"] is None, "nothing follows the reason"
        one["text"] += delta.get("content") or choice.get("text") or ""
        for key, value in (choice["logprobs"] or {}).items():
            if value:
                one["logprobs"].setdefault(key, []).extend(value)
        one["ids"] += choice.get("token_ids", [])
        for call_ in delta.get("tool_calls", ()):
            if "id" in call_:
                assert call_["index"] == len(one["calls"])
                one["calls"][call_["index"]] = {**call_, "function": dict(call_["function"])}
            else:
                function = one["calls"][call_["index"]]["function"]
                function["arguments"] += call_["function"]["arguments"]
        if choice["finish_reason"] is not None:
            assert delta == {} and not choice.get("text")
            one["reason"] = (choice["finish_reason"], choice["stop_reason"])
    return made


def same_whole(call: Call, answer: dict) -> dict[int, dict]:
    """The whole answer in the form of `joined`."""
    return {
        choice["index"]: {
            "text": choice.get("text", choice.get("message", {}).get("content")) or "",
            "logprobs": {k: v for k, v in (choice["logprobs"] or {}).items() if v},
            "ids": choice.get("token_ids", []),
            "calls": {
                i: {**one, "index": i}
                for i, one in enumerate(choice.get("message", {}).get("tool_calls", ()))
            },
            "reason": (choice["finish_reason"], choice["stop_reason"]),
        }
        for choice in answer["choices"]
    }


def written_ids(served: Served, draw: random.Random) -> list[int]:
    """Ids of a text, some of them, or any."""
    tokenizer = served.tokenizer
    text = draw.choice(
        ["", "Hé 🙂, said User: the fox.\n", "日本語のテキスト", "ab\u2028\r\n\x85cd"]
    )
    ids = tokenizer.encode(text * draw.randrange(1, 3)).tolist() if text else []
    if draw.random() < 0.5:
        return ids[draw.randrange(len(ids) // 2 + 1) : draw.randrange(len(ids) + 1)]
    return ids + [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(9))]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_joined_is_the_whole_answer(kind):
    """For texts, ids, log-probabilities and reasons, however turns and choices are cut: ollama
    #13497, imp #1310, aprender #2019."""
    draw = random.Random(kind)
    for trial in range(120):
        served = draw.choice([SERVED, BPE["llama-3"]])
        more = {"stream": True, "return_token_ids": draw.random() < 0.5, "n": draw.randrange(1, 4)}
        if draw.random() < 0.5:
            more["stop"] = draw.choice([["said"], ["🙂", "fo"], ["本"], ["said User", "aid"]])
        if draw.random() < 0.7:
            top = draw.randrange(4)
            more |= {"logprobs": True, "top_logprobs": top} if kind == "chat" else {"logprobs": top}
        if kind == "chat":
            call = chat(served, **more, stream_options={"include_usage": trial % 2 == 0})
        else:
            more["echo"] = draw.random() < 0.5
            call = completion(served, prompt=draw.choice([["Hé", ""], [[70, 195]]]), **more)
        pieces = [
            scripted(
                call,
                number,
                written_ids(served, draw),
                [draw.randrange(1, 6) for _ in range(draw.randrange(9))],
                draw.choice(["stop", "length"]),
                draw,
            )
            for number in range(len(call.asks))
        ]
        answer, chunks = whole_answer(call, pieces), streamed(call, pieces, draw)
        assert joined(call, chunks) == same_whole(call, answer)
        _check_chunks(call, chunks, answer)


def _check_chunks(call: Call, chunks: list[dict], answer: dict) -> None:
    if call.kind == "chat":
        firsts = {c["choices"][0]["index"]: c for c in reversed(chunks) if c["choices"]}
        assert all(c["choices"][0]["delta"]["role"] == "assistant" for c in firsts.values())
    if call.form.usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == answer["usage"]
        assert all(c["usage"] is None and len(c["choices"]) == 1 for c in chunks[:-1])
    else:
        assert all("usage" not in c and len(c["choices"]) == 1 for c in chunks)
    headings = [{k: c[k] for k in ("id", "created", "model", "seed")} for c in [answer, *chunks]]
    assert all(h == headings[0] for h in headings)


def test_bytes_of_tokens_joined_are_the_bytes_of_the_text():
    draw = random.Random(3)
    for trial in range(60):
        served = draw.choice([SERVED, BPE["llama-3"]])
        text = draw.choice(["Hé 🙂 fox", "日本語", "plain", ""]) * draw.randrange(3)
        ids = served.tokenizer.encode(text).tolist() if text else []
        call = chat(served, logprobs=True, top_logprobs=2, stop=["🙂 f"] if trial % 2 else None)
        sizes = [draw.randrange(1, 4) for _ in range(6)]
        answer = whole_answer(call, [scripted(call, 0, ids, sizes, "length", draw)])
        (choice,) = answer["choices"]
        spelled = b"".join(bytes(t["bytes"]) for t in choice["logprobs"]["content"])
        shown = choice["message"]["content"].encode()
        if choice["stop_reason"] == "stop_string":  # a token may reach into the stop
            last = choice["logprobs"]["content"][-1:]
            before = len(spelled) - sum(len(t["bytes"]) for t in last)
            assert spelled.startswith(shown) and before <= max(0, len(shown) - 1)
        else:
            assert spelled == shown == text.encode()
        for token in choice["logprobs"]["content"]:
            assert token["top_logprobs"][0]["logprob"] == token["logprob"]


def test_an_echo_scores_the_prompt_as_evaluators_read_it():
    """lm-eval takes `token_logprobs[ctxlen:-1]` of one generated token, and calls a token greedy if
    its float is the largest of `top_logprobs`; llama.cpp#27174 gave one entry."""
    for ids, ending in (([72], "length"), ([], "stop")):
        call = completion(prompt=[[256, 72, 195], [70, 71]], echo=True, logprobs=1, max_tokens=1)
        pieces = [scripted(call, n, ids, [], ending, random.Random(0)) for n in range(2)]
        answer = whole_answer(call, pieces)
        for choice, prompt in zip(answer["choices"], ([256, 72, 195], [70, 71]), strict=True):
            scores = choice["logprobs"]
            assert {len(column) for column in scores.values()} == {len(prompt) + 1}
            assert scores["token_logprobs"][:-1] == [None, -1.0, -2.0][: len(prompt)]
            assert scores["top_logprobs"][0] is None
            for own, top in zip(
                scores["token_logprobs"][1:], scores["top_logprobs"][1:], strict=True
            ):
                assert own in top.values()
            assert scores["text_offset"][-1] <= len(choice["text"])
    silent = completion(echo=True, logprobs=0, max_tokens=0)
    answer = whole_answer(silent, [scripted(silent, 0, [72], [], "length", random.Random(0))])
    assert answer["choices"][0]["text"] == "Hi" and answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 3


def test_keys_of_top_logprobs_are_unique_where_ids_spell_the_same():
    served = BPE["llama-3"]
    blank = [i for i, piece in enumerate(served.tokenizer.pieces) if not piece]
    call = completion(served, logprobs=5)
    piece = Piece("", [195], [-1.0], [[(195, -1.0), *((i, -2.0 - i) for i in blank[:4])]], "length")
    (top,) = whole_answer(call, [[piece]])["choices"][0]["logprobs"]["top_logprobs"]
    assert len(top) == 5
    assert json.loads(json.dumps(top)) == top


def test_prompt_scores_in_vllms_form_and_numbers_that_json_lacks():
    call = completion(prompt=[70, 71], prompt_logprobs=1)
    scores = PromptScores([None, -np.inf], [None, [(5, -0.5)]])
    piece = Piece("a", [97], [-np.inf], [[(97, -np.inf)]], "length", prompt=scores)
    (choice,) = whole_answer(call, [[piece]])["choices"]
    own = {"logprob": -9999.0, "rank": None, "decoded_token": "G"}
    other = {"logprob": -0.5, "rank": 1, "decoded_token": "\x05"}
    assert choice["prompt_logprobs"] == [None, {"71": own, "5": other}]
    json.dumps(choice, allow_nan=False)


def test_usage_counts_a_prompt_once_and_best_of_keeps_the_likeliest():
    call = completion(prompt=["ab", "c"], n=1, best_of=2)
    draws = [(-3.0, "w"), (-1.0, "x"), (-1.0, "y"), (-2.0, "z")]
    pieces = [[Piece(t, [ord(t)], [p], None, "length")] for p, t in draws]
    answer = whole_answer(call, pieces)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "x"), (1, "y")]
    assert answer["usage"]["prompt_tokens"] == 5


def test_the_time_limit_is_a_length_to_openai_and_says_so():
    answer = whole_answer(chat(), [[Piece("a", [97], [-1.0], None, "time")]])
    assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["stop_reason"]) == (
        "length",
        "time",
    )


def test_calls_that_are_whole_at_the_limit_are_not_cut():
    call, text = chat(tools=OFFERED), '{"name": "now", "arguments": {}}'
    for size, expected in (
        (len(text), "tool_calls"),
        (len(text) - 1, "tool_calls"),
        (30, "length"),
    ):
        answer = whole_answer(call, [[Piece(text[:size], reason="length")]])
        assert answer["choices"][0]["finish_reason"] == expected


def test_embeddings_are_the_same_packed_or_not():
    vector = np.float32([0.6, -0.8])
    pieces = [[Piece(reason="stop", embedding=vector)]] * 2
    plain = whole_answer(embedding(input=["a", "b"]), pieces)["data"]
    packed = whole_answer(embedding(input=["a", "b"], encoding_format="base64"), pieces)["data"]
    for one, two in zip(plain, packed, strict=True):
        assert one["index"] == two["index"]
        assert one["embedding"] == np.frombuffer(base64.b64decode(two["embedding"]), "<f4").tolist()


# --- tools --------------------------------------------------------------------------------------

REF = {"enum": ["a#]b", '\\"}{', 1]}
TOOLS = [
    {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    {
        "name": "find-it",
        "description": "Finds.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "maxLength": 6},
                "of": {"$ref": "#/$defs/of"},
            },
            "required": ["text", "of"],
            "$defs": {"of": REF},
        },
    },
    {"name": "now"},
]
OFFERED = [{"type": "function", "function": one} for one in TOOLS]
MARKED = CallForm("<tool_call>\n", "\n</tool_call>", "parameters")


def walks(grammar: str, begins: list[str], count: int, draw: random.Random) -> list[bytes]:
    """Random texts of a grammar: a beginning, a random walk, then a shortest way to an end."""
    automaton = byte_automaton("grammar", grammar)
    table, accepting = automaton.table, automaton.accepting
    distance = np.where(accepting, 0, 10**6)
    for _ in range(len(table)):
        after = np.where(table >= 0, distance[table], 10**6).min(axis=1) + 1
        distance = np.minimum(distance, after)
    texts = []
    for _ in range(count):
        state, text, left = 0, b"", draw.randrange(300)
        for byte in draw.choice(begins).encode():
            state, text = int(table[state, byte]), text + bytes([byte])
        while not accepting[state] or (left > 0 and draw.random() > 0.05):
            options = np.flatnonzero(table[state] >= 0)
            if table[state, 255] >= 0 and draw.random() < 0.2:
                options = np.array([255])  # a control token
            if left <= 0:
                options = options[distance[table[state, options]] < distance[state]]
            if not len(options):
                break
            byte = int(draw.choice(options.tolist()))
            state, text, left = int(table[state, byte]), text + bytes([byte]), left - 1
        texts.append(text)
    return texts


def is_valid(arguments: str, function: dict) -> bool:
    """Whether arguments are JSON that the function's schema takes."""
    jsonschema = pytest.importorskip("jsonschema", reason="it judges the arguments")
    try:
        value = json.loads(arguments)
    except ValueError:
        return False
    schema = function.get("parameters", {"maxProperties": 0})
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("form", [CallForm(), MARKED], ids=["bare", "marked"])
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_are_valid_by_construction_and_read_back_however_they_are_cut(
    form, required, parallel
):
    """vllm#24509, ollama#7881: names exist, arguments fit their schema, deltas joined are the
    call."""
    call = chat(tools=OFFERED, tool_choice="required" if required else "auto", stream=True)
    call = call._replace(form=call.form._replace(calls=form))
    offered = tools.Toolset(
        tools.chosen_tools(_body(tools=OFFERED)).tools, required=required, parallel=parallel
    )
    draw, calls = random.Random(5), []
    begins = [form.opening] if form.opening else ["{", "[" if parallel else "{"]
    begins += [] if required else [""]
    for spelled in walks(tools.call_grammar(offered, form), begins, 40, draw):
        text = spelled.decode()
        size = draw.randrange(1, 9)
        cut = [text[i : i + size] for i in range(0, len(text), size)]
        pieces = [Piece(part) for part in cut] + [Piece(reason="stop")]
        answer = whole_answer(call, [pieces])
        assert joined(call, streamed(call, [pieces], draw)) == same_whole(call, answer)
        assert answer == whole_answer(call, [[Piece(text, reason="stop")]])
        (choice,) = answer["choices"]
        message = choice["message"]
        found = message.get("tool_calls", [])
        called = text.startswith(("{", "[", *form.opening[:1]))
        assert bool(found) == called and (called or not required)
        assert choice["finish_reason"] == ("tool_calls" if called else "stop")
        assert message["content"] == (None if called else text)
        for one in found:
            schema = next(t for t in TOOLS if t["name"] == one["function"]["name"])
            assert is_valid(one["function"]["arguments"], schema)
        assert len({one["id"] for one in found}) == len(found)
        calls.append(len(found))
    assert max(calls) > 1 if parallel else max(calls) == 1


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_calls_begin_at_the_control_token_of_the_template(choice):
    """Behind a text, or a thought, if the model may choose; and each ends with its own token."""
    served, draw = BPE["thinking"], random.Random(9)
    call = chat(served, tools=OFFERED, tool_choice=choice, stream=True, logprobs=True)
    tokenizer, source = served.tokenizer, settings(call).grammar
    opened, closed = (tokenizer.controls[name].id for name in ("<tool_call>", "</tool_call>"))
    begins = ["{"] if choice == "required" else ["", "Hm", "So\n"]
    counts = []
    for spelled in walks(source, begins, 40, draw):
        ids: list[int] = []
        for part in re.split(rb"(\xff...)", spelled, flags=re.DOTALL):
            mark = part.startswith(b"\xff")
            ids += [int.from_bytes(part[1:])] if mark else tokenizer.encode(part.decode()).tolist()
        sizes = [draw.randrange(1, 5) for _ in range(len(ids))]
        pieces = [scripted(call, 0, ids, sizes, "stop", draw)]
        answer = whole_answer(call, pieces)
        assert joined(call, streamed(call, pieces, draw)) == same_whole(call, answer)
        (one,) = answer["choices"]
        found = one["message"].get("tool_calls", [])
        assert len(found) == ids.count(closed) == ids.count(opened) + (choice == "required")
        before = ids[: ids.index(opened)] if opened in ids and choice == "auto" else ids
        text = "" if choice == "required" else tokenizer.token_bytes(before).decode()
        assert (one["message"]["content"] or "") == text
        for made_call in found:
            function = made_call["function"]
            schema = next(t for t in TOOLS if t["name"] == function["name"])
            assert is_valid(function["arguments"], schema)
        counts.append(len(found))
    assert max(counts) > 1 and (0 in counts) == (choice == "auto")


def _body(**fields) -> bodies.ChatBody:
    from gptjax.serve.fields import read_fields

    return read_fields(bodies.ChatBody, {"messages": USER} | fields)[0]


def test_json_that_the_limit_closed_is_no_answer_cut_off():
    """openai-python's `parse` and instructor raise at `length`, though this JSON is whole."""
    formed = chat(response_format={"type": "json_object"})
    called = chat(tools=OFFERED, tool_choice="required")
    written = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    for call, reason, said in (
        (formed, "length", ("stop", "length")),
        (formed, "time", ("length", "time")),
        (called, "length", ("tool_calls", "length")),
        (chat(), "length", ("length", "length")),
    ):
        (choice,) = whole_answer(call, [[Piece(written, reason=reason)]])["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == said


def test_the_choice_of_tools_is_what_the_grammar_allows():
    def allowed(text: str, **choice) -> bool:
        source = settings(chat(tools=OFFERED, **choice)).grammar
        automaton, state = byte_automaton("grammar", source), 0
        for byte in text.encode():
            state = automaton.table[state, byte] if state >= 0 else -1
        return state >= 0 and bool(automaton.accepting[state])

    add, now = '{"name": "add", "arguments": {"a": 1}}', '{"name": "now", "arguments": {}}'
    named = {"tool_choice": {"type": "function", "function": {"name": "now"}}}
    some = {"mode": "required", "tools": [{"function": {"name": "add"}}]}
    subset = {"tool_choice": {"type": "allowed_tools", "allowed_tools": some}}
    required = {"tool_choice": "required"}
    for text, choice, expected in (
        ("Hello {", {}, True),
        ("", {}, True),
        (add, {}, True),
        (f"[{add}, {now}]", {}, True),
        (f"[{add}, {now}]", {"parallel_tool_calls": False}, False),
        ("Hello", required, False),
        (add, required, True),
        (add, named, False),
        (now, named, True),
        (f"[{now}]", named, False),
        (add, subset, True),
        (now, subset, False),
        ('{"name": "add", "arguments": {"a": "1"}}', {}, False),
        ('{"name": "sub", "arguments": {}}', {}, False),
    ):
        assert allowed(text, **choice) == expected, (text, choice)
    assert settings(chat(tools=OFFERED, tool_choice="none")).constraint is None
    with pytest.raises(ConfigError, match="%json"):
        byte_automaton("grammar", "root ::= %json {")


CALLED = [
    *USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "add", "arguments": '{"a": 1}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "three"},
]


@pytest.mark.parametrize("name", ["plain", *NAMES])
def test_tools_calls_and_results_reach_the_model(name):
    """By the template where it knows them, else as the module says."""
    served = SERVED if name == "plain" else BPE[name]
    call = chat(served, messages=CALLED, tools=OFFERED)
    text = text_of(served, call).decode()
    assert "find-it" in text and '"a": 1' in text and "three" in text
    assert ("Result of add: three" in text) == (name != "thinking")
    assert "find-it" not in text_of(served, chat(served, messages=CALLED)).decode()
    wrong = json.loads(json.dumps(CALLED).replace('{\\"a\\": 1}', "{a"))
    with pytest.raises(BadRequest) as caught:
        chat(served, messages=wrong)
    assert caught.value.param == "messages.1.tool_calls.0.function.arguments"


def test_a_call_has_the_marks_of_the_models_template():
    source = (
        "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
        '<call>{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
        "</call>{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    form = tools.call_form(tools.ChatTemplate("own", source), TOKENIZER)
    assert form == CallForm("<call>", "</call>\n", "parameters") or form == CallForm(
        "<call>", "</call>", "parameters"
    )
    controls = BPE["thinking"].tokenizer.controls
    forced = tools.call_form(BPE["thinking"].template, BPE["thinking"].tokenizer)
    assert (forced.mark, forced.unmark) == (
        controls["<tool_call>"].id,
        controls["</tool_call>"].id,
    )
    assert set(forced.free) == {controls["<think>"].id, controls["</think>"].id}
    required = chat(BPE["thinking"], tools=OFFERED, tool_choice="required").asks[0].request.ids
    assert tuple(required[-len(forced.forced) :]) == forced.forced


# --- tokenizers, errors, description ------------------------------------------------------------


def test_texts_and_ids_over_http_as_evaluators_need_them():
    for served in (SERVED, *BPE.values()):
        tokenizer = served.tokenizer
        text = "Hé 🙂 <|im_end|>"
        body = {"prompt": text, "add_special_tokens": False, "return_token_strs": True}
        bare = tokenizing.tokenize(json.dumps(body).encode(), served)
        assert bare["tokens"] == tokenizer.encode(text).tolist()
        assert bare["count"] == len(bare["token_strs"]) == len(bare["tokens"])
        back = json.dumps({"tokens": bare["tokens"]}).encode()
        assert tokenizing.detokenize(back, served) == {"prompt": text}
        whole = tokenizing.tokenize({"prompt": text}, served)
        assert whole["tokens"] == completion(served, prompt=text).asks[0].request.ids
        talk = tokenizing.tokenize({"messages": USER}, served)
        assert talk["tokens"] == chat(served).asks[0].request.ids
        end = tokenizing.tokenizer_info(served)["eos_token"]
        ids = tokenizing.tokenize({"prompt": end, "add_special_tokens": False}, served)["tokens"]
        assert ids == [tokenizer.end_of_document]
    for body in ({}, {"prompt": "a", "messages": USER}):
        with pytest.raises(BadRequest):
            tokenizing.tokenize(body, SERVED)
    with pytest.raises(BadRequest):
        tokenizing.detokenize({"tokens": [999]}, SERVED)


def test_errors_have_openais_form_and_keep_their_inside():
    for error, status, code in (
        (BadRequest("no", "n"), 400, "invalid"),
        (ConfigError("no"), 400, "invalid"),
        (Busy("full", 500), 429, "rate_limit_exceeded"),
        (Unwell("ill"), 503, "unavailable"),
        (Failed("broken"), 500, "internal_error"),
        (ZeroDivisionError("/secret"), 500, "internal_error"),
    ):
        told = problem(error)
        assert (told.status, told.body["error"]["code"]) == (status, code)
        assert set(told.body["error"]) == {"message", "type", "param", "code"}
        assert "secret" not in json.dumps(told.body)
        assert json.loads(error_event(error)[6:]) == told.body
        assert all(1 <= int(v) <= 120 for v in told.headers.values())


def test_the_description_takes_what_the_reader_takes():
    jsonschema = pytest.importorskip("jsonschema", reason="it reads the description")
    validator = jsonschema.Draft202012Validator
    described = openapi.document("0")
    for schema in described["components"]["schemas"].values():
        validator.check_schema(schema)
    text = json.dumps(described)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in described["components"]["schemas"]
    assert '"text/event-stream": {}' in text, "a schema there is that of each event: schemathesis"
    kinds = {chat: bodies.ChatBody, completion: bodies.CompletionBody}
    first = {chat: {"messages": USER}, completion: {"prompt": "Hi"}}
    for read, body, param in BAD:
        if read in kinds:
            valid = validator(json_schema_of(kinds[read])).is_valid(first[read] | body)
            assert not valid or param in BEYOND or "." in param, (body, param)
    for body in ({}, {"stop": None, "n": 3}, {"tools": OFFERED}, {"user": "me", "top_k": -1}):
        assert validator(json_schema_of(bodies.ChatBody)).is_valid({"messages": USER} | body)


BEYOND = {
    *("model", "max_tokens", "max_completion_tokens", "min_tokens", "top_logprobs", "n", "best_of"),
    *("stream_options", "prompt_logprobs", "tools", "tool_choice", "response_format"),
    *("json_schema", "ignore_eos", "prompt", "messages"),
}
"""Fields whose faults no schema of a single field can say."""


# --- the official client ------------------------------------------------------------------------


def client(call_of, pieces_of, strict: bool = True):
    """OpenAI's own client before our functions, without a network; it checks all types."""
    openai = pytest.importorskip("openai", reason="its client and types judge our answers")
    httpx = pytest.importorskip("httpx")

    def respond(request):
        try:
            call = call_of(request.url.path, request.content)
            pieces = pieces_of(call)
        except Exception as error:
            told = problem(error)
            return httpx.Response(told.status, json=told.body, headers=told.headers)
        if not call.stream:
            return httpx.Response(200, json=answer_of(call, pieces))
        chunks = events_of(call)
        body = chunks.begin()
        for number, each in enumerate(pieces):
            for piece in each:
                failed = isinstance(piece, Exception)
                body += error_event(piece) if failed else chunks.take(number, piece)
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, content=body + chunks.end(), headers=headers)

    return openai, openai.OpenAI(
        api_key="k",
        base_url="http://test/v1",
        max_retries=0,
        http_client=httpx.Client(transport=httpx.MockTransport(respond)),
        _strict_response_validation=strict,
    )


def route(path: str, body: bytes) -> Call:
    read = {
        "/v1/chat/completions": asks.read_chat,
        "/v1/completions": asks.read_completion,
        "/v1/embeddings": asks.read_embedding,
        "/v1/responses": responses.read_response,
    }
    return read[path](body, SERVED, STAMP)


def hello(call: Call) -> list[list[Piece]]:
    ids = SERVED.tokenizer.encode("Hé 🙂").tolist()
    draw = random.Random(1)
    return [scripted(call, n, ids, [2, 1, 3], "stop", draw) for n in range(len(call.asks))]


def test_the_official_client_takes_chats_completions_and_embeddings():
    _, official = client(route, hello)
    more = {"model": "tiny", "n": 2, "extra_body": {"top_k": 3}}
    for tops in ({}, {"logprobs": True, "top_logprobs": 2}):
        whole = official.chat.completions.create(messages=USER, **more, **tops)
        assert [c.message.content for c in whole.choices] == ["Hé 🙂"] * 2
        assert whole.usage and whole.usage.prompt_tokens_details.cached_tokens == 0
        assert whole.usage.completion_tokens == 2 * 9
        with official.chat.completions.stream(
            messages=USER, **more, **tops, stream_options={"include_usage": True}
        ) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        assert final.usage == whole.usage
        for one, two in zip(final.choices, whole.choices, strict=True):
            assert (one.message.content, one.finish_reason) == (two.message.content, "stop")
            assert one.logprobs == two.logprobs or not tops
    for n in (None, 0, 2):
        got = official.completions.create(prompt=["a", "b"], logprobs=n, model="tiny")
        assert [c.text for c in got.choices] == ["Hé 🙂"] * 2
    # Its types have no null for the first token's log-probability, nor for a reason that is to
    # come; OpenAI's server gives both.
    lenient = client(route, hello, strict=False)[1]
    asked = {"prompt": ["a", "b"], "logprobs": 2, "echo": True, "model": "tiny"}
    assert [c.text for c in lenient.completions.create(**asked).choices] == ["aHé 🙂", "bHé 🙂"]
    parts = lenient.completions.create(**asked, stream=True)
    assert "".join(c.text for p in parts for c in p.choices) == "aHé 🙂bHé 🙂"
    _, official = client(
        route,
        lambda call: [[Piece(reason="stop", embedding=np.float32([1, 0]))] for _ in call.asks],
    )
    assert official.embeddings.create(input=["a"], model="tiny", encoding_format="float").data[
        0
    ].embedding == [1.0, 0.0]


def test_the_official_client_takes_calls_of_tools():
    text = '[{"name": "add", "arguments": {"a": 12}}, {"name": "now", "arguments": {}}]'
    _, official = client(
        route,
        lambda call: [
            [*(Piece(text[i : i + 3]) for i in range(0, len(text), 3)), Piece(reason="stop")]
            for _ in call.asks
        ],
    )
    asked = {"messages": USER, "model": "tiny", "tools": OFFERED}
    whole = official.chat.completions.create(**asked).choices[0]
    with official.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert whole.finish_reason == final.finish_reason == "tool_calls"
    for one, two in zip(whole.message.tool_calls, final.message.tool_calls, strict=True):
        assert (one.id, one.function.name) == (two.id, two.function.name)
        assert one.function.arguments == two.function.arguments
    again = [*USER, whole.message.model_dump(), {"role": "tool", "content": "3"}]
    official.chat.completions.create(**asked | {"messages": again})


def test_the_official_client_takes_responses():
    """Whole and streamed, with text, scores and calls; its own parser joins the events."""
    _, official = client(route, hello)
    for more in ({}, {"top_logprobs": 2}, {"instructions": "Be brief.", "max_output_tokens": 99}):
        whole = official.responses.create(input="Hi", model="tiny", **more)
        assert (whole.output_text, whole.status) == ("Hé 🙂", "completed")
        with official.responses.stream(input="Hi", model="tiny", **more) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert final.output_text == whole.output_text and final.usage == whole.usage
        assert final.output[0].content[0].logprobs == whole.output[0].content[0].logprobs
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        talk = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in whole.output)]
        responses.read_response({"input": talk}, SERVED, STAMP)
    text = '[{"name": "add", "arguments": {"a": 12}}, {"name": "now", "arguments": {}}]'
    _, official = client(
        route,
        lambda call: [
            [*(Piece(text[i : i + 3]) for i in range(0, len(text), 3)), Piece(reason="stop")]
        ],
    )
    offered = [{"type": "function", "strict": True} | one for one in TOOLS]
    asked = {"model": "tiny", "tools": offered}
    whole = official.responses.create(input="Hi", **asked)
    assert [(c.name, c.arguments) for c in whole.output] == [("add", '{"a": 12}'), ("now", "{}")]
    events = [*official.responses.create(input="Hi", **asked, stream=True)]
    assert events[-1].response.output == whole.output
    assert [event.sequence_number for event in events] == [*range(len(events))]
    results = [
        {"type": "function_call_output", "call_id": c.call_id, "output": "3"} for c in whole.output
    ]
    talk = [{"role": "user", "content": "Hi"}, *(c.model_dump() for c in whole.output), *results]
    again = responses.read_response({"input": talk, **asked}, SERVED, STAMP)
    told = text_of(SERVED, again).decode()
    assert told.count('"name": "add"') >= 2 and "Result of now: 3" in told


def test_a_response_repeats_its_request_and_refuses_what_is_stored_by_name():
    read = responses.read_response
    call = read({"input": "Hi", "max_output_tokens": 1, "metadata": {"a": "b"}}, SERVED, STAMP)
    cut = answer_of(call, [[Piece("a", [97], [-1.0], None, "length")]])
    assert (cut["status"], cut["incomplete_details"]["reason"]) == (
        "incomplete",
        "max_output_tokens",
    )
    assert cut["metadata"] == {"a": "b"} and cut["output"][0]["status"] == "incomplete"
    empty = answer_of(read({"input": "Hi"}, SERVED, STAMP), [[Piece(reason="stop")]])
    assert empty["output"][0]["content"][0]["text"] == ""
    for body, param in (
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call"}]}, "input.0.name"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": "a", "previous_response_id": "x"}, "previous_response_id"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "x" * 9999}, "input"),
        ({"input": "a", "max_output_tokens": 9999}, "max_output_tokens"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "a", "model": "b"}, "model"),
    ):
        with pytest.raises(BadRequest) as caught:
            read(body, SERVED, STAMP)
        assert caught.value.param == param


def test_the_official_client_raises_its_own_errors():
    openai, official = client(route, hello)
    with pytest.raises(openai.NotFoundError) as missing:
        official.chat.completions.create(messages=USER, model="gpt-5")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        official.chat.completions.create(messages=USER, model="tiny", n=99)
    assert bad.value.param == "n"
    _, official = client(route, lambda call: [[Piece("a", [97], [-1.0]), Failed("broken")]])
    with pytest.raises(openai.APIError, match="broken"):
        for _ in official.chat.completions.create(messages=USER, model="tiny", stream=True):
            pass

    def busy(call):
        raise Busy("full", 7)

    _, official = client(route, busy)
    with pytest.raises(openai.RateLimitError) as full:
        official.chat.completions.create(messages=USER, model="tiny")
    assert full.value.response.headers["retry-after"] == "7"
