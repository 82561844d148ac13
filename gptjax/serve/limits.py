"""Who may ask, and how much they may send, before any route sees a request.

Read `read_keys`, then `restricted`: it checks the Host, the Origin, the key and the size of the
body, in this order. It is an ASGI app around another one, so that routes see a client leave.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gptjax.core.config import ConfigError, require
from gptjax.serve import page
from gptjax.serve.access import record_of
from gptjax.serve.answering import note_error, send_problem
from gptjax.serve.protocol import BadRequest

MAX_BODY = 8 << 20
"""Bytes of a request's body: a context of a million tokens, twice."""

OPEN = frozenset(["/health", "/", *(f"/{name}" for name in page.MEDIA_TYPES)])
"""Paths that need no key: what a load balancer asks, and the page in which a key is typed, whose
files are the same for everybody and say nothing of the model."""


class Key(NamedTuple):
    """A key by which clients may ask."""

    name: str
    digest: bytes
    """sha256 of the key, so that comparing takes equally long for all lengths."""


class Guard(NamedTuple):
    """What `restricted` checks."""

    keys: Sequence[Key] = ()
    """Without any, everybody may ask."""
    hosts: Sequence[str] = ()
    """Names by which clients call this server, besides localhost and addresses in digits."""
    origins: Sequence[str] = ()
    """Origins of pages on other servers that may ask from a browser."""
    max_body: int = MAX_BODY


def read_keys(path: Path) -> list[Key]:
    """Reads a file of lines `name key`; blank lines and lines that begin with # are left out.

    A file that others on this machine may read is reported on standard error.

    Raises:
      ConfigError: the file can't be read, holds no key, or a line has another form. No message
        quotes a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        others = path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"--key-file {path} can't be read: {reason}.") from None
    if others:
        print(f"[others can read the keys: chmod 600 {path}]", file=sys.stderr, flush=True)
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        where = f"line {number} of {path}"
        require(len(words) == 2, f"{where} has {len(words)} words; it needs two: a name and a key.")
        require(len(words[1]) >= 16, f"the key of {where} is short; it needs 16 characters.")
        require(words[0] not in {key.name for key in keys}, f"duplicate name in {where}.")
        keys.append(Key(words[0], _digest(words[1].encode())))
    require(bool(keys), f"{path} holds no key; write lines of a name and a key.")
    return keys


def require_origins(origins: Sequence[str]) -> None:
    """Raises a `ConfigError` unless each is of the form scheme://host[:port]."""
    for origin in origins:
        parts = urlsplit(origin)
        require(
            bool(parts.scheme and parts.netloc) and origin == f"{parts.scheme}://{parts.netloc}",
            f"--allow-origin is {origin!r}; it needs the form https://example.org, no path and no"
            " wildcard.",
        )


def restricted(app: Callable, guard: Guard) -> Callable:
    """An ASGI app that lets only those requests through that the guard allows, and answers the
    others with an error."""

    async def answer(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        sending = send
        try:
            headers = _single(scope["headers"])
            _require_host(headers, guard)
            origin = _allowed_origin(headers, guard)
            if origin is not None:
                sending = _with_headers(send, _shared_with(origin))
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    await _answer_preflight(sending, headers)
                    return
            _require_key(scope, headers, guard)
            _require_length(headers, guard)
            await app(scope, _capped(receive, guard.max_body), sending)
        except BadRequest as error:
            note_error(record_of(scope), error)
            await send_problem(sending, error)

    return answer


def _single(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name.

    Raises:
      BadRequest: one of those that decide who asks is given twice.
    """
    found = dict(headers)
    for name in (b"host", b"origin", b"authorization", b"content-length"):
        if sum(key == name for key, _ in headers) > 1:
            raise BadRequest(f"the header {name.decode()} is given twice.", code="bad_header")
    if b"transfer-encoding" in found and b"content-length" in found:
        raise BadRequest("the body has two lengths.", code="bad_header")
    return found


# --- host and origin


def _require_host(headers: dict[bytes, bytes], guard: Guard) -> None:
    """Refuses names that this server does not know: a page of theirs may have been pointed at this
    machine after it was loaded (DNS rebinding)."""
    host = headers.get(b"host", b"").decode("latin-1")
    if not _is_own(_hostname(host), guard):
        raise BadRequest(
            "the Host header names another server; call this one by its address, or start it with"
            " --allow-host NAME.",
            code="wrong_host",
            status=421,
        )


def _hostname(host: str) -> str:
    """The name in HOST[:PORT], in lower case; empty if it is of another form."""
    try:
        parts = urlsplit(f"//{host}")
        plain = parts.port is None or parts.port >= 0
        whole = parts.netloc == host and "@" not in host
        return (parts.hostname or "") if plain and whole else ""
    except ValueError:
        return ""


def _is_own(name: str, guard: Guard) -> bool:
    if name in ("localhost", *(one.lower() for one in guard.hosts)):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _allowed_origin(headers: dict[bytes, bytes], guard: Guard) -> bytes | None:
    """The origin whose page may read the answer; `None` if no page of another server asks.

    Raises:
      BadRequest: a page of a server that is not named asks. Without a key its request would be
        answered, though the browser hides the answer from it.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return None
    text = origin.decode("latin-1")
    if text in guard.origins:
        return origin
    if text.partition("://")[2] == headers.get(b"host", b"").decode("latin-1"):
        return None
    raise BadRequest(
        "a page of another server asks; start this one with --allow-origin ORIGIN to let it.",
        code="wrong_origin",
        status=403,
    )


def _shared_with(origin: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"Origin"),
    ]


async def _answer_preflight(send: Callable, headers: dict[bytes, bytes]) -> None:
    asked = headers.get(b"access-control-request-headers", b"authorization, content-type")
    allowed = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Callable, more: list[tuple[bytes, bytes]]) -> Callable:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sending


# --- keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _require_key(scope: dict[str, Any], headers: dict[bytes, bytes], guard: Guard) -> None:
    """Notes by whose key the request comes. All keys are compared, so the time tells nothing."""
    if not guard.keys:
        return
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    digest = _digest(key.strip())
    names = [one.name for one in guard.keys if hmac.compare_digest(one.digest, digest)]
    if names and scheme.lower() == b"bearer":
        record_of(scope)["tenant"] = names[0]
    elif scope["path"] not in OPEN:
        raise BadRequest(
            "this server needs a key: send the header Authorization: Bearer KEY.",
            code="invalid_api_key",
            status=401,
        )


# --- sizes


def _require_length(headers: dict[bytes, bytes], guard: Guard) -> None:
    declared = headers.get(b"content-length", b"0")
    if not (declared.isascii() and declared.isdigit()):
        raise BadRequest("Content-Length is not a number.", code="bad_header")
    if len(declared) > 18 or int(declared) > guard.max_body:
        raise _too_large(guard.max_body)


def _too_large(limit: int) -> BadRequest:
    return BadRequest(
        f"the body is larger than {limit} bytes; send a shorter one.", code="too_large", status=413
    )


def _capped(receive: Callable, limit: int) -> Callable:
    """`receive` that raises once a body exceeds the limit, whatever length was declared."""
    count = 0

    async def receiving() -> dict[str, Any]:
        nonlocal count
        message = await receive()
        if message["type"] == "http.request":
            count += len(message.get("body", b""))
            if count > limit:
                raise _too_large(limit)
        return message

    return receiving
