"""The routes of the server, as an ASGI app.

`application` joins them with the guard (`limits`) and the log (`access`). `ROUTES` says what there
is; a GET changes nothing. Each route is an `Endpoint`, which turns whatever was raised into an
error of OpenAI's form.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

import gptjax
from gptjax.serve import asks, openapi, page, responses, templates, tokenizing
from gptjax.serve.access import Record, record_of, recorded
from gptjax.serve.answering import (
    Gone,
    answer_call,
    ended_by,
    note_error,
    read_body,
    send_bytes,
    send_json,
    send_problem,
    while_connected,
)
from gptjax.serve.constraints import Compiler
from gptjax.serve.limits import Guard, restricted
from gptjax.serve.metrics import Metrics
from gptjax.serve.moderation import Moderator
from gptjax.serve.protocol import BadRequest, Served, model_card, model_list, stamp

PAGE = {"/": "index.html", **{f"/{name}": name for name in page.MEDIA_TYPES}}
"""Path → file of the page."""


TOLD = {
    "/health": "Says whether the server is well; needs no key.",
    "/ready": "Says whether it answers at full speed.",
    "/metrics": "Gives metrics in Prometheus' text form.",
    "/openapi.json": "Gives this document.",
    "/": "Gives a page to talk with the model; needs no key.",
}
"""Path → what it does, of those that the protocol does not describe."""


class Service(NamedTuple):
    """What routes answer from."""

    engine: Any
    served: Served
    compiler: Compiler
    metrics: Metrics
    moderator: Moderator | None = None
    """Reads what comes in and what goes out; `None` means that nothing does."""


class Exchange(NamedTuple):
    """One request, and the way back."""

    service: Service
    scope: dict[str, Any]
    receive: Callable
    send: Callable

    @property
    def record(self) -> Record:
        """What the log will say of it."""
        return record_of(self.scope)


def application(
    service: Service, guard: Guard, observers: Sequence[Callable[[Record], None]] = ()
) -> Callable:
    """The whole server as an ASGI app.

    Args:
      observers: called with the record of each request when it is over, besides the metrics.
    """
    routes = [
        Route(path, Endpoint(service, work), methods=[method])
        for path, (method, work) in ROUTES.items()
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})  # type: ignore[dict-item]
    app.router.redirect_slashes = False
    return recorded(restricted(app, guard), service.metrics.observe, *observers)


async def _no_route(request: Any, error: Exception) -> Endpoint:
    """Answers where no route is, or not for this method."""
    status = getattr(error, "status_code", 404)
    known = status == 405
    told = BadRequest(
        "this path takes another method." if known else "there is no such path; see /openapi.json.",
        code="method_not_allowed" if known else "not_found",
        status=status,
        headers=getattr(error, "headers", None),
    )

    async def work(exchange: Exchange) -> None:
        raise told

    return Endpoint(None, work)


class Endpoint:
    """A route as an ASGI app, in which every error becomes an answer."""

    def __init__(self, service: Any, work: Callable[[Exchange], Awaitable[None]]) -> None:
        self._service, self._work = service, work

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Answers one request."""
        started = False

        async def sending(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        exchange = Exchange(self._service, scope, receive, sending)
        try:
            await self._work(exchange)
        except Gone:
            return
        except (Exception, asyncio.CancelledError) as caught:
            error = ended_by(caught)
            note_error(exchange.record, error)
            if not started:
                await send_problem(sending, error)


# --- routes that ask the engine


async def _answer(read: Callable, exchange: Exchange) -> None:
    """Reads a body as a call, in a thread, since tokenizing takes time; answers it."""
    service = exchange.service
    body = await read_body(exchange.receive)
    tenant = exchange.record.get("tenant", "")

    async def work() -> None:
        call = await asyncio.to_thread(read, body, service.served, stamp(), tenant)
        await answer_call(
            service.engine,
            service.compiler,
            service.metrics,
            call,
            exchange.send,
            exchange.record,
            service.moderator,
        )

    await while_connected(exchange.receive, work())


async def _convert(function: Callable, exchange: Exchange) -> None:
    """Answers with a function from the body to JSON."""
    body = await read_body(exchange.receive)
    await send_json(exchange.send, await asyncio.to_thread(function, body, exchange.service.served))


# --- routes that tell


async def _models(exchange: Exchange) -> None:
    await send_json(exchange.send, model_list(exchange.service.served))


async def _model(exchange: Exchange) -> None:
    name = exchange.scope["path_params"]["name"]
    await send_json(exchange.send, model_card(exchange.service.served, name))


async def _stored_prompts(exchange: Exchange) -> None:
    await send_json(exchange.send, templates.prompt_list(exchange.service.served))


async def _tokenizer_info(exchange: Exchange) -> None:
    await send_json(exchange.send, tokenizing.tokenizer_info(exchange.service.served))


async def _health(exchange: Exchange) -> None:
    """Says whether this process is worth keeping."""
    state = exchange.service.engine.state
    await send_json(exchange.send, {"status": state}, 503 if state == "failed" else 200)


async def _ready(exchange: Exchange) -> None:
    """Says whether requests should be sent here now, at full speed."""
    state = exchange.service.engine.state
    await send_json(exchange.send, {"status": state}, 200 if state == "ready" else 503)


async def _metrics(exchange: Exchange) -> None:
    kind = "text/plain; version=0.0.4; charset=utf-8"
    await send_bytes(exchange.send, exchange.service.metrics.text(), kind)


@functools.cache
def _document() -> bytes:
    """The OpenAPI document; made once, since making it takes longer than most answers."""
    more = {
        path: {"get": {"summary": says, "responses": {"200": {"description": "The answer."}}}}
        for path, says in TOLD.items()
    }
    return json.dumps(openapi.document(gptjax.__version__, more)).encode()


async def _openapi(exchange: Exchange) -> None:
    await send_bytes(exchange.send, _document(), "application/json")


async def _page(exchange: Exchange) -> None:
    name = PAGE[exchange.scope["path"]]
    kind, headers = page.MEDIA_TYPES[name], page.HEADERS
    await send_bytes(exchange.send, page.page_file(name), kind, headers=headers)


ROUTES: dict[str, tuple[str, Callable[[Exchange], Awaitable[None]]]] = {
    "/v1/chat/completions": ("POST", functools.partial(_answer, asks.read_chat)),
    "/v1/completions": ("POST", functools.partial(_answer, asks.read_completion)),
    "/v1/embeddings": ("POST", functools.partial(_answer, asks.read_embedding)),
    "/v1/responses": ("POST", functools.partial(_answer, responses.read_response)),
    "/v1/models": ("GET", _models),
    "/v1/models/{name:path}": ("GET", _model),
    "/v1/prompts": ("GET", _stored_prompts),
    "/tokenize": ("POST", functools.partial(_convert, tokenizing.tokenize)),
    "/detokenize": ("POST", functools.partial(_convert, tokenizing.detokenize)),
    "/tokenizer_info": ("GET", _tokenizer_info),
    "/health": ("GET", _health),
    "/ready": ("GET", _ready),
    "/metrics": ("GET", _metrics),
    "/openapi.json": ("GET", _openapi),
    **dict.fromkeys(PAGE, ("GET", _page)),
}
"""Path → method and what answers it."""
