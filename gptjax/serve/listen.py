"""Listens at an address: uvicorn in this process, with deadlines for clients that are slow on
purpose, and an end that keeps its time.

Read `bound`, which opens the socket, then `listen`, then `Timed`, one connection. Uvicorn itself
bounds only how long an idle connection is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptjax.core.config import ConfigError, require
from gptjax.serve.answering import ENDING
from gptjax.serve.protocol import error_body

STATUS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class Deadlines(NamedTuple):
    """Seconds that a client may take, and the connections that there may be."""

    headers: float = 5.0
    """From the opening of a connection, or the first byte of a further request, to the end of its
    headers."""
    body: float = 30.0
    """From there to the end of the body."""
    pause: float = 8.0
    """Between two parts of the body."""
    unread: float = 30.0
    """During which it reads nothing of an answer."""
    linger: float = 2.0
    """After an error, during which the rest of a body is thrown away."""
    idle: float = 5.0
    """Between two requests."""
    connections: int = 512
    """Beyond this the oldest one that has no request under way makes room."""


USUAL = Deadlines()


def bound(host: str, port: int, *, has_keys: bool) -> socket.socket:
    """A socket that is bound to an address; port 0 takes a free one.

    Raises:
      ConfigError: the address is not this machine's, or others can reach it and there are no keys,
        or the port is taken.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError, OverflowError):
        raise ConfigError(
            f"--host {host} --port {port} is no address; the default is --host 127.0.0.1 --port"
            " 8000."
        ) from None
    require(
        has_keys or ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback,
        f"at --host {host} others can reach this server, and there are no keys; give some with"
        " --key-file FILE, lines of a name and a key, or omit --host.",
    )
    opened = socket.socket(kind, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(1024)  # two servers may both bind a port, and only one listens
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is in use; choose another (--port {port + 1}), or 0 for any"
                " that is free."
            ) from None
        raise ConfigError(
            f"--host {host} --port {port} can't be listened at: {error.strerror}."
        ) from None
    opened.setblocking(False)
    return opened


def url_of(opened: socket.socket) -> str:
    """The address of a socket, as a browser takes it."""
    host, port = opened.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def listen(
    app: Callable,
    engine: Any,
    opened: socket.socket,
    *,
    drain: float = 10.0,
    deadlines: Deadlines = USUAL,
    ready: Callable[[], Any] | None = None,
) -> int:
    """Serves an app until SIGTERM, Ctrl-C or the engine's death, and returns the exit status.

    On a signal no connection is accepted any more, and answers have `drain` seconds to end; those
    that are left then end with an error, at the latest two seconds after. A second signal waits
    for nothing.

    Args:
      engine: its `state` is watched, and it is closed at the end.
      ready: called once connections are accepted.

    Returns:
      0 after a signal, 1 if the engine failed.
    """
    config = uvicorn.Config(
        app,
        http=functools.partial(Timed, deadlines=deadlines),  # type: ignore[arg-type]
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(deadlines.idle),
        h11_max_incomplete_event_size=64 << 10,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve([opened]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if ready is not None:
        ready()
    while not server.should_exit and engine.state != "failed" and not serving.done():
        await asyncio.sleep(0.05)
    failed = engine.state == "failed"
    seconds = 0.0 if failed else drain
    closing = threading.Thread(target=engine.close, args=(seconds,), daemon=True)
    server.should_exit = True
    closing.start()
    await _ended(server, serving, seconds + 0.8)
    closing.join(0.2)
    return 1 if failed else 0


async def _ended(server: uvicorn.Server, serving: asyncio.Task, seconds: float) -> None:
    """Waits for the server to end. When the seconds are over, or at a second signal, it cancels the
    work that is left, so that clients are told, and then closes all connections."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not server.force_exit and not serving.done() and loop.time() < until:
        await asyncio.wait({serving}, timeout=0.05)
    server.force_exit = True
    for task in list(server.server_state.tasks):
        task.cancel(ENDING)
    await asyncio.wait({serving}, timeout=0.3)
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.wait({serving}, timeout=0.4)
    if serving.done():
        serving.result()


class _Server(uvicorn.Server):
    """Ends with grace at the first SIGTERM or SIGINT, and at once at a second. Uvicorn's own way
    raises the signal again at the end, so that the status would not be 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles the signals while the server runs, if it does so in the main thread."""
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if main else ()
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


class Timed(H11Protocol):
    """A connection whose client has to be done with each part of a request in time."""

    def __init__(self, *args: Any, deadlines: Deadlines, **named: Any) -> None:
        super().__init__(*args, **named)
        self._deadlines = deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for, self._until = "", 0.0
        self._unread: asyncio.TimerHandle | None = None

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accepts a client; makes room where there are too many."""
        super().connection_made(transport)
        self._opened = self.loop.time()
        if len(self.connections) > self._deadlines.connections:
            everyone = cast(set[Timed], self.connections)
            idle = [one for one in everyone if one.resting and one is not self]
            oldest = min(idle, key=lambda one: one._opened, default=self)
            oldest._refuse(503, "there are too many connections; try again.")
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the client."""
        self._stop()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of this one's body."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._deadlines.unread, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read what was waiting."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP."""
        too_long = len(self.conn.trailing_data[0]) > 64 << 10
        if too_long:
            self._refuse(431, "the headers are larger than 64 KiB.")
        else:
            self._refuse(400, "this is not a valid HTTP/1.1 request.")

    # --- deadlines

    @property
    def resting(self) -> bool:
        """No request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Sets the deadline of what the client has to send next; it runs on while that stays the
        same."""
        if self.transport.is_closing():
            self._stop()
            return
        theirs, ours = self.conn.their_state, self.conn.our_state
        if theirs is h11.SEND_BODY:
            answered = ours in (h11.DONE, h11.MUST_CLOSE)
            self._wait_for("linger" if answered else "body")
        elif theirs is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            self._wait_for("headers")
        else:
            self._stop()

    def _wait_for(self, part: str) -> None:
        now = self.loop.time()
        if part == self._waits_for != "body":
            return
        if part != self._waits_for:
            self._until = now + getattr(self._deadlines, part)
        self._stop()
        self._waits_for = part
        at = min(self._until, now + self._deadlines.pause) if part == "body" else self._until
        self._timer = self.loop.call_at(at, self._too_late)

    def _stop(self) -> None:
        self._waits_for = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        part = self._waits_for
        self._stop()
        nothing = part == "headers" and not self.conn.trailing_data[0]
        if part == "linger" or nothing:
            self.transport.close()
        else:
            self._refuse(408, f"the {part} did not arrive in time.")

    def _refuse(self, status: int, message: str) -> None:
        """Answers with an error, unless an answer has begun, and closes the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            kind = "server_error" if status >= 500 else "invalid_request_error"
            body = json.dumps(error_body(message, kind, code="connection")).encode()
            head = (
                f"HTTP/1.1 {status} {STATUS.get(status, 'Service Unavailable')}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
