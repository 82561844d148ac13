"""From a call to its answer, while the client is there.

`while_connected` ends work whose client has left, streamed or not; `submitted` hands all asks of a
call to the engine, or none; `merged` reads their streams together; `send_answer` and `send_events`
write.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.serve import chunks
from gptjax.serve.access import Record
from gptjax.serve.constraints import Compiler
from gptjax.serve.metrics import Metrics, Timing
from gptjax.serve.moderation import Moderator, filtered, require_harmless
from gptjax.serve.protocol import BadRequest, Call, problem
from gptjax.serve.response_events import answer_of, events_of
from gptjax.serve.stream import Ask, Busy, Failed, Piece, Unwell

SILENCE = 15.0
"""Seconds without an event after which a stream shows that it lives."""

PING = b": ping\n\n"
"""A comment, which readers of events leave out."""

AHEAD = 16
"""Pieces that are read before the client has taken them; more wait in the engine."""

EVENTS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""Headers of a stream; the last one keeps nginx from collecting it."""


ENDING = "the server is shutting down."
"""With this message work is cancelled whose client is still there and shall be told."""

PLAIN = re.compile(r"[\w.]{1,64}", re.ASCII)
"""Names of fields that may stand in a header."""


class Gone(Exception):
    """The client has left."""


async def read_body(receive: Callable) -> bytes:
    """The whole body of a request.

    Raises:
      Gone: the client left before it was complete.
      BadRequest: it is too large.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def while_connected(receive: Callable, work: Coroutine[Any, Any, None]) -> None:
    """Runs the work, and cancels it as soon as the client leaves. The body has been read.

    Raises:
      Gone: the client has left.
      CancelledError: with the message with which this was cancelled.
    """

    async def leaving() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, left = asyncio.create_task(work), asyncio.create_task(leaving())
    why = None
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
    except asyncio.CancelledError as stop:
        why = str(stop)
    finally:
        left.cancel()
        working.cancel(why)
        await asyncio.wait({working, left})
    working.result()


async def send_json(
    send: Callable, answer: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Sends a JSON object as a whole answer."""
    body = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
    await send_bytes(send, body, "application/json", status, headers)


async def send_bytes(
    send: Callable,
    body: bytes,
    kind: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Sends a whole answer."""
    told = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(told)})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Callable, error: Exception) -> None:
    """Sends an error as a whole answer."""
    told = problem(error)
    challenge = {"www-authenticate": "Bearer"} if told.status == 401 else {}
    await send_json(send, told.body, told.status, {**told.headers, **challenge})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def ended_by(error: BaseException) -> Exception:
    """What a client is told of whatever ended its answer.

    Raises:
      CancelledError: it has left, so that nobody can be told.
    """
    if isinstance(error, Exception):
        return error
    if error.args != (ENDING,):
        raise error
    return Unwell(ENDING)


def note_error(record: Record, error: Exception) -> None:
    """Notes an error's code and, of an unexpected one, where it was raised; not its message, which
    may quote a prompt."""
    record["error"] = problem(error).body["error"]["code"]
    if not isinstance(error, ConfigError | Busy | Unwell | Failed):
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
        record["failure"] = f"{type(error).__name__} at {' < '.join(reversed(places))}"


# --- the engine


async def prepared(compiler: Compiler, asks: Sequence[Ask]) -> list[Ask]:
    """The asks with their constraints compiled; those of one prompt share a request."""
    made: dict[int, Any] = {}
    for ask in asks:
        if id(ask.request) not in made:
            made[id(ask.request)] = await compiler.prepared(ask.request)
    return [ask._replace(request=made[id(ask.request)]) for ask in asks]


def submitted(engine: Any, asks: Sequence[Ask]) -> list[Any]:
    """The streams of all asks, in order. If the engine refuses one, it forgets the others."""
    streams: list[Any] = []
    try:
        for ask in asks:
            streams.append(engine.submit(ask))  # noqa: PERF401 # those before a refusal count
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


async def merged(
    streams: Sequence[Any], silence: float = SILENCE
) -> AsyncGenerator[list[tuple[int, Piece]], None]:
    """Pieces of several streams as they come, each with the number of its stream; those that have
    come meanwhile are one list, and an empty list is a silence of so many seconds.

    Raises:
      Failed, Unwell: what a stream raised.
    """
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue(AHEAD)

    async def read(number: int, stream: Any) -> None:
        try:
            async for piece in stream:
                await queue.put((number, piece))
            await queue.put((number, None))
        except Exception as error:
            await queue.put((number, error))

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    left = len(streams)
    try:
        while left > 0:
            items = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(silence):
                    items.append(await queue.get())
            while not queue.empty():
                items.append(queue.get_nowait())
            failure = next((item for _, item in items if isinstance(item, BaseException)), None)
            left -= sum(item is None for _, item in items)
            pieces = [(number, item) for number, item in items if isinstance(item, Piece)]
            if pieces or not items:
                yield pieces
            if failure is not None:
                raise failure
    finally:
        for task in tasks:
            task.cancel()


# --- answers


async def answer_call(
    engine: Any,
    compiler: Compiler,
    metrics: Metrics,
    call: Call,
    send: Callable,
    record: Record,
    moderator: Moderator | None = None,
) -> None:
    """Answers a call: a JSON object, or a stream of events; cancelled, it frees the engine.

    Args:
      moderator: reads what came in and what goes out.
    """
    record |= {"model": call.model, "stream": call.stream, "answers": len(call.asks)}
    if moderator is not None:
        try:
            await require_harmless(moderator, call)
        except BadRequest:
            record["moderated"] = "input"
            raise
    timing = Timing(metrics, record)
    streams = submitted(engine, await prepared(compiler, call.asks))
    ignored = ", ".join(filter(PLAIN.fullmatch, call.ignored))
    headers = {"x-ignored-fields": ignored} if ignored else {}
    try:
        async with contextlib.AsyncExitStack() as closing:
            batches = await closing.enter_async_context(contextlib.aclosing(merged(streams)))
            if moderator is not None:

                def stop(number: int) -> None:
                    record["moderated"] = "output"
                    streams[number].cancel()

                read = filtered(moderator, call, batches, stop)
                batches = await closing.enter_async_context(contextlib.aclosing(read))
            if call.stream:
                await _send_events(send, call, batches, timing, headers, record)
                return
            pieces: list[list[Piece]] = [[] for _ in streams]
            async for batch in batches:
                for number, piece in batch:
                    timing.take(number, piece)
                    pieces[number].append(piece)
        whole = await asyncio.to_thread(answer_of, call, pieces)
        await send_json(send, whole, headers=headers)
    finally:
        for stream in streams:
            stream.cancel()


async def _send_events(
    send: Callable,
    call: Call,
    batches: AsyncIterator[list[tuple[int, Piece]]],
    timing: Timing,
    headers: Mapping[str, str],
    record: Record,
) -> None:
    """Sends pieces as events as they come; an error is the last event."""

    async def write(body: bytes) -> None:
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})

    made = events_of(call)
    started = _encoded({**EVENTS, **headers})
    await send({"type": "http.response.start", "status": 200, "headers": started})
    try:
        await write(made.begin())
        async for batch in batches:
            for number, piece in batch:
                timing.take(number, piece)
            await write(b"".join(made.take(*one) for one in batch) if batch else PING)
        await write(made.end())
    except (Exception, asyncio.CancelledError) as caught:
        error = ended_by(caught)
        note_error(record, error)
        await write(chunks.error_event(error))
    await send({"type": "http.response.body", "body": b""})
