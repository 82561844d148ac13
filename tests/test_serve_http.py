"""Routes, keys, errors, logs and clients that leave, with an engine that follows a script.

Requests go to the ASGI app directly; connections are in `test_serve_listen`, and the whole server
as a process in `test_serve_command`.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="serving needs it: pip install 'gptjax[serve]'")
pytest.importorskip("httpx", reason="it drives the app: pip install 'gptjax[test]'")
from scripted import CHAT, KEY, SECRET, Scripted, app_of, ask

from gptjax.core.config import ConfigError
from gptjax.serve import answering
from gptjax.serve.http import PAGE, ROUTES
from gptjax.serve.limits import OPEN, Guard, read_keys, require_origins
from gptjax.serve.stream import Busy, Failed, Unwell


def post(app, path="/v1/chat/completions", body=CHAT, **more):
    return ask(app, "POST", path, json=body, **more)


def events(answer) -> list[Any]:
    """The events of a stream, checked to be whole."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == "" and all(block.startswith(("data: ", ": ")) for block in blocks)
    found = [block[6:] for block in blocks if block.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in found]


# --- answers


def test_a_stream_and_a_whole_answer_say_the_same():
    app = app_of()
    whole = post(app).json()
    assert whole["choices"][0]["message"]["content"] == "Hello!"
    assert whole["usage"]["prompt_tokens"] == 3 and whole["choices"][0]["finish_reason"] == "length"
    *told, done = events(post(app, body=CHAT | {"stream": True}))
    said = [one["choices"][0]["delta"].get("content") or "" for one in told]
    assert "".join(said) == "Hello!" and done == "[DONE]" and said.count("") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_written_at_the_same_time(stream):
    engine = Scripted(*"abcdef", pause=0.01)
    answer = post(app_of(engine), body=CHAT | {"n": 3, "stream": stream})
    if stream:
        order = [one["choices"][0]["index"] for one in events(answer)[:-1]]
        middle = order[3:-3]
        assert sorted(middle[:3]) == [0, 1, 2] and max(map(middle.count, range(3))) < 9
    else:
        assert [one["message"]["content"] for one in answer.json()["choices"]] == ["abcdef"] * 3


def test_a_silent_stream_shows_that_it_lives(monkeypatch):
    merged = answering.merged
    monkeypatch.setattr(answering, "merged", lambda streams: merged(streams, silence=0.02))
    answer = post(app_of(Scripted("a", "b", pause=0.1)), body=CHAT | {"stream": True})
    assert answer.text.count(": ping\n\n") > 4 and events(answer)[-1] == "[DONE]"


def test_every_route_answers():
    app = app_of()
    bodies = {
        "/v1/chat/completions": CHAT,
        "/v1/completions": {"model": "tiny", "prompt": "a"},
        "/v1/embeddings": {"model": "tiny", "input": "abc"},
        "/v1/responses": {"model": "tiny", "input": "abc"},
        "/tokenize": {"prompt": "abc"},
        "/detokenize": {"tokens": [97, 98]},
    }
    for path, (method, _) in ROUTES.items():
        answer = ask(app, method, path.replace("{name:path}", "tiny"), json=bodies.get(path))
        assert answer.status_code == 200, (path, answer.text)
        assert len(answer.headers["x-request-id"]) == 32
    assert ask(app, "POST", "/detokenize", json=bodies["/detokenize"]).json() == {"prompt": "ab"}
    described = ask(app, "GET", "/openapi.json").json()["paths"]
    assert not {path for path in ROUTES if path.startswith("/v1/") and "{" not in path} - {
        *described
    }


def test_the_page_may_load_nothing_from_elsewhere():
    answer = ask(app_of(), "GET", "/")
    assert "<title>" in answer.text and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for path in (
        "/page/index.html",
        "/../pyproject.toml",
        "/..%2fhttp.py",
        "/page.js/",
        "/http.py",
    ):
        assert ask(app_of(), "GET", path).status_code == 404


# --- errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Busy("full.", 7), 429, "rate_limit_exceeded"),
        (Unwell("ill."), 503, "unavailable"),
        (ConfigError("too long."), 400, "invalid"),
        (RuntimeError(SECRET), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_an_error_with_its_status(error, status, code, stream):
    engine, out = Scripted(), io.StringIO()
    engine.refuse = error
    answer = post(app_of(engine, out=out), body=CHAT | {"n": 2, "stream": stream})
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (status, code) and told["message"]
    assert SECRET not in answer.text + out.getvalue()
    if status == 429:
        assert answer.headers["retry-after"] == "7"
    if status == 500:
        assert "RuntimeError at scripted.py" in json.loads(out.getvalue())["failure"]


def test_one_refused_choice_ends_the_others():
    engine = Scripted(pause=9)
    submit = engine.submit

    def second(one):
        if engine.running:
            raise Busy("full.", 1)
        return submit(one)

    engine.submit = second
    assert post(app_of(engine), body=CHAT | {"n": 2}).status_code == 429
    assert len(engine.ended) == 1


@pytest.mark.parametrize("error", [Failed("NaN."), Unwell("the engine was closed")])
def test_an_answer_that_fails_midway_ends_with_an_error(error):
    app = app_of(Scripted("a", error))
    answer = post(app)
    assert answer.status_code == (500 if isinstance(error, Failed) else 503)
    told = events(post(app, body=CHAT | {"stream": True}))
    assert told[-1]["error"]["message"] == str(error)
    assert any(one["choices"][0]["delta"].get("content") == "a" for one in told[:-1])


def test_paths_and_methods_that_are_not_there_are_errors_of_the_same_form():
    app = app_of()
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("GET", "/health/", 404),
    ):
        answer = ask(app, method, path)
        assert answer.status_code == status and answer.json()["error"]["message"], path
        assert ("allow" in answer.headers) == (status == 405), "RFC 9110, section 15.5.6"


def test_a_body_that_is_too_large_is_refused_before_it_is_read():
    app = app_of(guard=Guard(max_body=1000))
    assert post(app, body=CHAT | {"user": "x" * 1000}).json()["error"]["code"] == "too_large"

    async def chunks():
        for _ in range(10):
            yield b"x" * 500

    assert ask(app, "POST", "/tokenize", content=chunks()).status_code == 413
    for length, status in (("-1", 400), ("abc", 400), ("9" * 30, 413), ("²", 400)):
        told = [("content-length", length.encode("utf-8"))]
        assert ask(app, "POST", "/tokenize", headers=told).status_code == status
    assert ask(app, "POST", "/tokenize").status_code == 400


def test_health_and_readiness_follow_the_engine():
    engine = Scripted()
    app = app_of(engine)
    for state, health, ready in (
        ("warming", 200, 503),
        ("ready", 200, 200),
        ("draining", 200, 503),
        ("failed", 503, 503),
    ):
        engine.state = state
        found = [ask(app, "GET", path).status_code for path in ("/health", "/ready")]
        assert found == [health, ready], state


# --- who may ask


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# for tests\nalice {KEY}\n\nbob {KEY[::-1]}\n")
    file.chmod(0o600)
    return Guard(keys=read_keys(file))


@pytest.mark.row(57)
@pytest.mark.parametrize("path", sorted(ROUTES))
def test_every_route_needs_the_key_but_those_that_say_nothing(guard, path):
    """A new route fails here until it is decided whether it needs a key."""
    app, method = app_of(guard=guard), ROUTES[path][0]
    wrong = {
        "none": {},
        "wrong": {"authorization": "Bearer " + "x" * len(KEY)},
        "prefix": {"authorization": f"Bearer {KEY[:-1]}"},
        "longer": {"authorization": f"Bearer {KEY}x"},
        "1 MB": {"authorization": "Bearer " + KEY * 40_000},
        "another scheme": {"authorization": f"Basic {KEY}"},
        "in the address": {},
    }
    for name, headers in wrong.items():
        where = path.replace("{name:path}", "tiny") + (f"?key={KEY}" if "address" in name else "")
        answer = ask(app, method, where, headers=headers)
        if path in OPEN:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 401, (path, name)
            assert answer.json()["error"]["code"] == "invalid_api_key" and KEY not in answer.text
    right = ask(app, method, path.replace("{name:path}", "tiny"), headers=BEARER)
    assert right.status_code != 401


BEARER = {"authorization": f"Bearer {KEY}"}


def test_only_health_and_the_page_are_open():
    assert OPEN - set(PAGE) == {"/health"}
    assert {name.rpartition(".")[2] for name in PAGE.values()} == {"html", "js", "css", "svg"}


def test_a_tenant_is_the_name_of_its_key(guard):
    engine, out = Scripted(), io.StringIO()
    assert post(app_of(engine, guard, out), headers=BEARER).status_code == 200
    assert engine.asked[0].tenant == json.loads(out.getvalue())["tenant"] == "alice"


def test_key_files_are_checked_and_never_quoted(tmp_path, capsys):
    file = tmp_path / "keys"
    for text, match in (
        ("", "holds no key"),
        (f"{KEY}\n", "1 words"),
        (f"a {KEY} more\n", "3 words"),
        ("a short\n", "16 characters"),
        (f"a {KEY}\na {KEY}2\n", "duplicate"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=match) as error:
            read_keys(file)
        assert KEY not in str(error.value) and str(error.value).count("\n") == 0
    file.write_text(f"a {KEY}\n")
    file.chmod(0o644)
    capsys.readouterr()
    read_keys(file)
    assert "chmod 600" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="can't be read"):
        read_keys(tmp_path / "none")


@pytest.mark.row(58)
def test_pages_and_names_of_other_servers_are_refused():
    app = app_of(guard=Guard(hosts=["gpu.lan"]))
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a@localhost",
    ):
        assert post(app, host=host).status_code == 421, host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "GPU.lan:80"):
        assert post(app, host=host).status_code == 200, host
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999"):
        answer = post(app, headers={"origin": origin})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    same = post(app, headers={"origin": "http://127.0.0.1:8000"})
    assert same.status_code == 200 and "access-control-allow-origin" not in same.headers


def test_a_named_origin_may_ask_and_read(guard):
    app = app_of(guard=guard._replace(origins=["https://mine.example"]))
    origin = {"origin": "https://mine.example"}
    asks = origin | {"access-control-request-method": "POST"}
    flight = ask(app, "OPTIONS", "/v1/chat/completions", headers=asks)
    assert (
        flight.status_code == 204
        and "authorization" in flight.headers["access-control-allow-headers"]
    )
    answer = post(app, headers=origin | BEARER)
    assert answer.headers["access-control-allow-origin"] == "https://mine.example"
    assert "access-control-allow-credentials" not in answer.headers and answer.headers["vary"]
    assert post(app, headers=origin).headers["access-control-allow-origin"]  # so that 401 is read
    for wrong in ("*", "https://mine.example/", "mine.example", "null"):
        with pytest.raises(ConfigError, match="--allow-origin"):
            require_origins([wrong])


# --- logs and metrics


@pytest.mark.row(59)
def test_logs_and_metrics_hold_no_secret_and_one_line_a_request(guard):
    out, engine = io.StringIO(), Scripted("an-answer")
    app, asked = app_of(engine, guard, out), 0
    bodies = [
        CHAT,
        CHAT | {"stream": True},
        CHAT | {SECRET: 1},
        CHAT | {"temperature": SECRET},
        [SECRET],
    ]
    for body in bodies:
        post(app, body=body, headers=BEARER)
        asked += 1
    for path in (
        f"/v1/models?key={KEY}",
        "/v1/models/a%0d%0aforged%E2%80%A8line",
        "/x" + "y" * 500,
    ):
        ask(app, "GET", path, headers=BEARER)
        asked += 1
    ask(app, "POST", "/tokenize", content=SECRET.encode(), headers=BEARER)
    ask(app, "GET", "/health", headers={"authorization": f"Bearer {KEY}\r", "user-agent": "a\nb"})
    engine.script = ("a", RuntimeError(SECRET))
    post(app, headers=BEARER)
    lines = out.getvalue().splitlines()
    assert len(lines) == asked + 3 == len(out.getvalue().split("\n")) - 1
    records = [json.loads(line) for line in lines]
    metrics = ask(app, "GET", "/metrics", headers=BEARER).text
    for text in (out.getvalue(), metrics):
        for word in (SECRET, KEY, "an-answer", KEY[::-1]):
            assert word not in text
    first = records[0]
    assert first["path"] == "/v1/chat/completions" and first["status"] == 200
    assert (first["prompt_tokens"], first["cached_tokens"], first["written_tokens"]) == (3, 1, 6)
    assert {"time", "id", "seconds", "first_token_seconds", "reasons", "model"} <= {*first}


def test_metrics_count_requests_tokens_and_refusals():
    engine = Scripted(pause=0.01)
    app = app_of(engine)
    for _ in range(3):
        post(app, body=CHAT | {"stream": True})
    engine.refuse = Busy("full.", 1)
    post(app)
    text = ask(app, "GET", "/metrics").text
    found = dict(
        re.findall(
            r'^(gptjax_\w+)\{[^}]*?(?:reason="busy"|model_name="tiny")\} (\S+)$', text, re.MULTILINE
        )
    )
    assert found["gptjax_time_to_first_token_seconds_count"] == "3.0"
    assert found["gptjax_inter_token_latency_seconds_count"] == "9.0"  # 3 after each first piece
    assert found["gptjax_e2e_request_latency_seconds_count"] == "3.0"
    assert found["gptjax_compiles_total"] == "2.0" and found["gptjax_slots"] == "8.0"
    assert 'gptjax_http_refused_total{model_name="tiny",reason="busy"} 1.0' in text


# --- clients that leave


async def leave_after(app, body, pieces: int) -> int:
    """A client that leaves after so many parts of the answer; without any, once it is under way."""
    sent, left = 0, asyncio.Event()
    first = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive():
        if first:
            return first.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        nonlocal sent
        sent += message["type"] == "http.response.body" and bool(message.get("body"))
        if sent >= pieces:
            left.set()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.get_running_loop().call_later(0.02, left.set)
    await app(scope, receive, send)
    return sent


@pytest.mark.row(61)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(stream):
    engine, out = Scripted(*"abcdefghij" * 100, pause=0.001), io.StringIO()
    app = app_of(engine, out=out)

    async def run():
        for _ in range(10):
            together = [leave_after(app, CHAT | {"stream": stream, "n": 2}, 3) for _ in range(10)]
            sent = await asyncio.gather(*together)
            assert max(sent) < 12 if stream else max(sent) == 0
        await asyncio.sleep(0.01)
        assert engine.running == 0 and len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    asked = {id(one) for one in engine.asked}
    assert len(asked) > 100 and asked == {id(one) for one in engine.ended}
    assert {json.loads(line)["status"] for line in out.getvalue().splitlines()} == {499}
