"""One JSON line for each request: who asked for what, how it ended, what it cost.

No line holds a prompt, an answer, a key or the query of an address. JSON escapes line breaks and
everything beyond ASCII, so a request can't forge a line.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, TextIO

Record = dict[str, Any]
"""What is known of a request. It begins with `id`, `client`, `method` and `path`; whoever answers
it adds to `record_of(scope)`, and at the end it gets `status` and `seconds`."""

PATH_LENGTH = 100
"""Characters of a path that are logged."""

GONE = 499
"""The status of a request whose client left before the answer was complete, as nginx logs it."""


def record_of(scope: dict[str, Any]) -> Record:
    """The record of the request that is being answered; additions to it are logged."""
    return scope.setdefault("gptjax.record", {})


def recorded(app: Callable, *observers: Callable[[Record], None]) -> Callable:
    """An ASGI app that gives each request an id, also in the header `x-request-id`, and shows the
    finished record of each to the observers."""

    async def answer(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        record = record_of(scope)
        client = scope.get("client") or ("", 0)
        record |= {
            "id": uuid.uuid4().hex,
            "client": client[0],
            "method": scope["method"],
            "path": scope["path"][:PATH_LENGTH],
            "status": GONE,
        }
        began = time.perf_counter()

        async def noting(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record["started"] = message["status"]
                named = (b"x-request-id", record["id"].encode())
                message = {**message, "headers": [*message.get("headers", ()), named]}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                record["status"] = record["started"]

        try:
            await app(scope, receive, noting)
        finally:
            record["seconds"] = round(time.perf_counter() - began, 4)
            record.pop("started", None)
            for observe in observers:
                observe(record)

    return answer


def line_writer(out: TextIO | None = None) -> Callable[[Record], None]:
    """An observer that writes records as lines of JSON to a stream, by default standard error. A
    full disk or a closed pipe loses lines, never requests."""

    def write(record: Record) -> None:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **record})
        with contextlib.suppress(OSError, ValueError):
            print(line, file=out or sys.stderr, flush=True)

    return write
