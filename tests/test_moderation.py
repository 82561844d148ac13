"""Laws of the content filter of the server: nothing harmful goes in or out, in whatever way it is
asked for, cut or streamed; what is harmless is the same as without; no text is logged."""

from __future__ import annotations

import asyncio
import io
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="serving needs it: pip install 'gptjax[serve]'")
pytest.importorskip("httpx", reason="it drives the app: pip install 'gptjax[test]'")
from scripted import CHAT, SECRET, TOKENIZER, Scripted, app_of, ask
from test_serve_http import events

from gptjax.core.config import ConfigError
from gptjax.data import Classification
from gptjax.generate.labels import Labelled
from gptjax.serve.moderation import BEFORE, BLOCK, Moderator, filtered
from gptjax.serve.stream import Piece

WORD = "POISON"


class Classifier:
    """A classifier that knows one word."""

    def __init__(self, labels=("harmful", "harmless"), context=4096):
        self.config = SimpleNamespace(classes=len(labels), context=context)
        self.task, self.tokenizer, self.read = Classification(labels), TOKENIZER, []
        self.calls = []

    def classify(self, texts, batch):
        self.read += texts
        self.calls.append((len(texts), threading.current_thread().name))
        harm = [0.9 if WORD in text else 0.2 for text in texts]
        return [
            Labelled(text, "", {"harmful": math.log(p), "harmless": math.log(1 - p)})
            for text, p in zip(texts, harm, strict=True)
        ]


def moderated(engine, out=None, **more):
    return app_of(engine, out=out, moderator=Moderator(Classifier(**more)))


def metrics_of(app) -> str:
    return ask(app, "GET", "/metrics").text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": f"a {WORD}"}]}, "messages"),
        (
            "chat/completions",
            {
                "messages": [
                    {"role": "user", "content": WORD},
                    {"role": "assistant", "content": "no"},
                    {"role": "user", "content": "but why"},
                ]
            },
            "messages",
        ),
        ("completions", {"prompt": ["x", f"a {WORD}"]}, "prompt"),
        ("completions", {"prompt": list(WORD.encode())}, "prompt"),
        ("embeddings", {"input": WORD}, "input"),
        ("responses", {"input": f"a {WORD}"}, "input"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_harmful_does_not_come_in(path, body, param, stream):
    engine, out = Scripted(), io.StringIO()
    app = moderated(engine, out)
    asked = body | {"model": "tiny"} | ({"stream": stream} if path != "embeddings" else {})
    answer = ask(app, "POST", f"/v1/{path}", json=asked)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "content_filter"
    assert error["param"] == (param if path != "responses" else error["param"])
    assert engine.asked == [] and WORD not in answer.text + out.getvalue()
    assert json.loads(out.getvalue())["moderated"] == "input"
    assert 'gptjax_moderated_total{model_name="tiny",where="input"} 1.0' in metrics_of(app)


LONG = ["abcdefgh "] * 9
"""More than two blocks of tokens, which are bytes here."""


def said_in(answer, stream: bool) -> tuple[str, str]:
    """The text and the reason of the end of an answer to a chat."""
    if not stream:
        (choice,) = answer.json()["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    told = [one for one in events(answer)[:-1] if one["choices"]]
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in told)
    return text, told[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", [0, 4, 9])
def test_what_is_harmful_does_not_go_out_and_ends_the_answer(stream, at):
    words = [*LONG[:at], WORD, *LONG[at:]]
    engine, out = Scripted(*words, pause=0.001), io.StringIO()
    app = moderated(engine, out)
    answer = ask(app, "POST", "/v1/chat/completions", json=CHAT | {"stream": stream})
    text, reason = said_in(answer, stream)
    assert reason == "content_filter" and WORD not in answer.text + out.getvalue()
    assert "".join(LONG[:at]).startswith(text) and len(text) > 9 * at - BLOCK - 9
    assert len(engine.ended) >= 1
    assert json.loads(out.getvalue())["moderated"] == "output"
    assert 'gptjax_moderated_total{model_name="tiny",where="output"} 1.0' in metrics_of(app)
    if not stream and at < 9:  # the script's last piece says less
        assert answer.json()["usage"]["completion_tokens"] >= len(text)


def test_harm_across_the_border_of_blocks_is_found():
    """The block ends within the word, half of which has been sent; the rest is not."""
    words = ["x" * (BLOCK - 3), *WORD, "and more of it, much more than a block has room for" * 3]
    app = moderated(Scripted(*words, pause=0.001))
    text, reason = said_in(ask(app, "POST", "/v1/chat/completions", json=CHAT), stream=False)
    assert reason == "content_filter" and WORD not in text
    assert BEFORE >= 10 * BLOCK


@pytest.mark.parametrize("stream", [False, True])
def test_a_harmless_answer_is_the_same_as_without_a_filter(stream):
    body = CHAT | {"stream": stream, "logprobs": True}
    told = []
    for app in (app_of(Scripted(*LONG)), moderated(Scripted(*LONG))):
        answer = ask(app, "POST", "/v1/chat/completions", json=body)
        whole = [answer.json()] if not stream else events(answer)[:-1]
        logprobs = [
            one["logprob"]
            for each in whole
            for choice in each["choices"]
            for one in (choice["logprobs"] or {}).get("content") or ()
        ]
        told.append((said_in(answer, stream), logprobs))
    assert told[0] == told[1] and told[0][0] == ("".join(LONG), "length")


def test_one_of_several_answers_is_stopped_and_the_others_go_on():
    class Uneven(Scripted):
        async def _write(self, stream, ask):
            self.script = [*LONG, WORD] if ask.sample == 1 else LONG
            await super()._write(stream, ask)

    answer = ask(moderated(Uneven()), "POST", "/v1/chat/completions", json=CHAT | {"n": 3})
    reasons = [one["finish_reason"] for one in answer.json()["choices"]]
    assert reasons == ["length", "content_filter", "length"]


def test_the_texts_of_a_request_are_read_at_once_in_a_thread_of_their_own():
    model = Classifier()
    app = app_of(Scripted("fine"), moderator=Moderator(model))
    roles = ("user", "assistant", "user", "assistant", "user")
    texts = ("one", "two", " ", "three", "one")
    turns = [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]
    answer = ask(app, "POST", "/v1/chat/completions", json=CHAT | {"messages": turns})
    assert answer.status_code == 200
    assert [count for count, _ in model.calls] == [3, 1], "what came in, then what goes out"
    assert {thread for _, thread in model.calls} == {"moderator_0"}


def test_pieces_that_were_on_their_way_are_not_sent_after_a_stop():
    call = SimpleNamespace(asks=[SimpleNamespace(request=SimpleNamespace(ids=[1, 2]))])
    stopped = []

    async def batches():
        for text in (WORD, "then ", "more "):
            yield [(0, Piece(text=text * 9, ids=[0] * BLOCK))]
        yield []
        yield [(0, Piece(text="end", ids=[0], reason="stop"))]

    async def read():
        found = filtered(Moderator(Classifier()), call, batches(), stopped.append)
        return [batch async for batch in found]

    read_on = asyncio.run(read())
    assert stopped == [0] and read_on[1:] == [[]]
    ((number, piece),) = read_on[0]
    assert (number, piece.text, piece.reason) == (0, "", "content_filter")
    assert piece.usage == (2, 0, BLOCK)


def test_a_stopped_response_is_incomplete():
    app = moderated(Scripted(*LONG, WORD))
    answer = ask(app, "POST", "/v1/responses", json={"model": "tiny", "input": "x"}).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "content_filter"}


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_goes_out_that_could_not_be_read(stream):
    class Broken:
        calls = 0
        reads = ThreadPoolExecutor(1)

        def stops(self, texts):
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError(SECRET)
            return False

    out = io.StringIO()
    app = app_of(Scripted("abc " * 20), out=out, moderator=Broken())
    answer = ask(app, "POST", "/v1/chat/completions", json=CHAT | {"stream": stream})
    assert "abc" not in answer.text and "internal_error" in answer.text
    assert SECRET not in out.getvalue() + answer.text


def test_a_long_text_is_read_in_parts_and_labels_are_checked():
    model = Classifier(context=66)
    moderator = Moderator(model)
    text = "a" * 500 + WORD + "b" * 300
    assert moderator.stops([text]) and all(len(part) <= 64 for part in model.read)
    assert not moderator.stops(["a" * 500]) and moderator.harm(["a"]) == pytest.approx(0.2)
    for start in range(0, 400, 7):
        assert moderator.stops(["a" * start + WORD + "b" * (400 - start)]), start
    assert not moderator.stops(["  ", ""])
    assert not Moderator(model, threshold=0.95).stops([WORD])
    assert Moderator(model, threshold=0.1).stops(["a"])
    for allow, threshold in ((("fine",), 0.5), ((), 0.5), (("harmful", "harmless"), 0.5)):
        with pytest.raises(ConfigError, match="--moderate-allow"):
            Moderator(model, allow, threshold)
    with pytest.raises(ConfigError, match="--moderate-threshold"):
        Moderator(model, threshold=0.0)
    model.config.classes = None
    with pytest.raises(ConfigError, match="has no labels"):
        Moderator(model)
