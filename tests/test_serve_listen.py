"""Connections: clients that are slow on purpose, addresses, and how the server ends.

The apps behind the listener are small ones; what routes do is in `test_serve_http`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="serving needs it: pip install 'gptjax[serve]'")

from gptjax.core.config import ConfigError
from gptjax.serve.listen import Deadlines, bound, listen, url_of

QUICK = Deadlines(headers=0.4, body=1.2, pause=0.4, unread=0.6, linger=0.2, idle=2, connections=24)


class Idle:
    """An engine that does nothing until it is closed."""

    state = "ready"
    closed = None

    def close(self, drain=0.0):
        self.closed = drain


async def echo(scope, receive, send):
    """Answers with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


@contextlib.contextmanager
def listening(app, deadlines=QUICK):
    """A server in a thread; gives its address, and checks that it ends when the engine fails."""
    engine, opened = Idle(), bound("127.0.0.1", 0, has_keys=False)
    address, statuses, ready = opened.getsockname(), [], threading.Event()

    async def serve():
        statuses.append(
            await listen(app, engine, opened, deadlines=deadlines, ready=ready.set, drain=1)
        )

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield address
    finally:
        engine.state = "failed"
        thread.join(5)
    assert statuses == [1] and engine.closed == 0


def talk(address, *parts: bytes, pause=0.0, limit=8.0) -> tuple[bytes, float]:
    """What the server sends until it closes the connection, and the seconds until then."""
    began = time.monotonic()
    with socket.create_connection(address, timeout=limit) as client:
        with contextlib.suppress(OSError):
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while data := client.recv(65536):
                answer += data
    return answer, time.monotonic() - began


def good(address) -> float:
    """Seconds that a well-behaved request takes."""
    ask = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"
    answer, seconds = talk(address, ask)
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.split(b"\r\n")[-4:-1] == [
        b"3",
        b"0",
        b"",
    ], answer
    return seconds


POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
BAD = {
    "no byte": ((), b""),
    "half a line": ((b"POST / HT",), b"408"),
    "half the headers": ((POST, b"content-le"), b"408"),
    "headers byte by byte": (tuple(b"%c" % c for c in POST * 4), b"408"),
    "half a body": ((POST + b"content-length: 100\r\n\r\nabc",), b"408"),
    "a body byte by byte": (
        (POST + b"content-length: 400\r\n\r\n", *[b"x"] * 300),
        b"408",
    ),
    "half a chunk": ((POST + b"transfer-encoding: chunked\r\n\r\n5\r\nab",), b"408"),
    "negative length": ((POST + b"content-length: -1\r\n\r\nabc",), b"400"),
    "a word as length": ((POST + b"content-length: abc\r\n\r\nabc",), b"400"),
    "two lengths": ((POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",), b"400"),
    "an endless length": ((POST + b"content-length: " + b"9" * 40 + b"\r\n\r\nabc",), b"400"),
    "a bad chunk": ((POST + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",), b"400"),
    "another encoding": ((POST + b"transfer-encoding: gzip\r\n\r\n",), b"400"),
    "not HTTP": ((b"\x16\x03\x01\x02\x00\x01\r\n\r\n",), b"400"),
    "a megabyte of headers": ((POST + b"x: " + b"y" * 1_000_000 + b"\r\n\r\n",), b"431"),
}


@pytest.mark.row(64)
def test_slow_and_malformed_requests_end_in_time_while_a_good_client_is_served():
    found, took = {}, []
    with listening(echo) as address:

        def ask(name):
            found[name] = talk(address, *BAD[name][0], pause=0.02)

        threads = [threading.Thread(target=ask, args=(name,)) for name in BAD]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            took.append(good(address))
        for thread in threads:
            thread.join()
    assert set(found) == set(BAD) and max(took) < 1
    for name, (answer, seconds) in found.items():
        status = BAD[name][1]
        if not status:
            assert answer == b""
        else:
            assert answer.split(b" ")[1] == status, (name, answer)
            assert "message" in json.loads(answer.split(b"\r\n\r\n")[1])["error"]
        assert seconds < 3, name


def test_idle_connections_make_room_for_new_ones():
    with listening(echo, QUICK._replace(headers=30.0)) as address:
        idle = [socket.create_connection(address) for _ in range(60)]
        assert max(good(address) for _ in range(5)) < 1
        for client in idle:
            client.close()


def test_a_client_that_does_not_read_is_dropped():
    gone = threading.Event()

    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
        finally:
            assert (await receive())["type"] == "http.disconnect"
            gone.set()

    with listening(flood) as address, socket.create_connection(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert gone.wait(5)


def test_an_unread_body_is_thrown_away_for_a_moment_only():
    async def refuse(scope, receive, send):
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    with listening(refuse) as address:
        answer, seconds = talk(address, POST + b"content-length: 9999\r\n\r\nabc")
        assert b" 413 " in answer and 0.1 < seconds < 2
        many = [POST + b"content-length: 900000\r\n\r\n", *[b"x" * 90_000] * 10]
        again = POST + b"connection: close\r\ncontent-length: 0\r\n\r\n"
        assert talk(address, *many, again)[0].count(b" 413 ") == 2


@pytest.mark.row(58)
def test_an_address_that_others_reach_needs_keys():
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match=r"--key-file"):
            bound(host, 0, has_keys=False)
    with contextlib.closing(bound("127.0.0.1", 0, has_keys=False)) as opened:
        assert url_of(opened) == f"http://127.0.0.1:{opened.getsockname()[1]}"


def test_a_port_in_use_is_named_with_a_remedy():
    with contextlib.closing(bound("127.0.0.1", 0, has_keys=False)) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .* in use; .*--port"):
            bound("localhost", port, has_keys=False)
    with pytest.raises(ConfigError, match="is no address"):
        bound("no such host", 0, has_keys=False)
