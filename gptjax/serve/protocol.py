"""The protocol of the server as values: JSON bodies become asks, pieces become JSON. No HTTP here.

What a route does, whatever the endpoint (`read_chat`, `read_completion`, `read_embedding` of
`asks`, `read_response` of `responses`; all in OpenAI's form):

    call = read_chat(body, served, stamp(), tenant)      # bytes → Call; raises BadRequest
    streams = [engine.submit(ask) for ask in call.asks]  # all of them, in order
    # not call.stream: gather the pieces of each ask, then send
    answer_of(call, pieces)          # of `response_events`; a list of pieces an ask → JSON object
    # call.stream: send each event as it comes; `number` is that of the ask
    chunks = events_of(call)                             # of `response_events`
    chunks.begin(), chunks.take(number, piece), chunks.end()    # bytes of events, perhaps b""
    error_event(error)                                   # instead of the rest, where one fails

`call.ignored` are fields without effect here, for the header `x-ignored-fields`. Whatever was
raised, `problem(error)` is its status, headers and body. Routes without asks are functions from
body to JSON: `tokenizing.tokenize`, `detokenize`, `tokenizer_info`; `model_list`, `model_card`
here, `templates.prompt_list`; `openapi.document` describes all of them.

Read in this order: `fields`, how bodies are read; `bodies`, what they may say, and `templates`,
prompts that they may name; `asks` and `tools`;
`tokens`, how tokens are shown; `answers` and `chunks`; `responses` and `response_events`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from gptjax.core.config import ConfigError, nearest
from gptjax.data.prompt_library import PromptTemplate
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import ChatTemplate, Ends
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig
from gptjax.serve.stream import Ask, Busy, Failed, Unwell

SHOWN = 400
"""Maximum length of an error's message, in characters; a body may be quoted in it."""


class BadRequest(ConfigError):
    """The client asked for something impossible. The message is one line."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message if len(message) <= SHOWN else f"{message[: SHOWN - 1]}…")
        self.param = param
        """The field of the body that is wrong, with its path: `messages.0.content`."""
        self.code = code
        """A word for programs: `model_not_found`, `context_length_exceeded`, …"""
        self.status = status
        self.headers = dict(headers or {})


class Served(NamedTuple):
    """What the protocol has to know of the model; made once, by `served_model`."""

    name: str
    """Under which it is served."""
    config: ModelConfig
    tokenizer: Tokenizer
    task: Task
    adapters: tuple[str, ...]
    context: int
    """Tokens of a request, prompt and answer together."""
    fingerprint: str
    """Of weights, tokenizer and program; `system_fingerprint` of answers."""
    template: ChatTemplate
    ends: Ends
    created: int
    """When the model was made or loaded, in seconds since 1970."""
    prompts: Mapping[str, PromptTemplate] = {}
    """Library of prompts that clients may name."""
    watermark: str = ""
    """What the key file holds with which all texts are marked; no client sees or changes it."""


class Stamp(NamedTuple):
    """What the server itself adds to a request."""

    id: str
    """Random, in hex; answers are called `chatcmpl-…`, `cmpl-…`."""
    created: int
    """In seconds since 1970."""
    seed: int
    """For a request that gives none; answers name the seed that they used."""


class CallForm(NamedTuple):
    """How a template writes a call of a tool: `opening`, JSON, `closing`."""

    opening: str = ""
    closing: str = ""
    key: str = "arguments"
    """Under which arguments are; some models call them `parameters`."""
    mark: int | None = None
    """Control token before the opening; a text may then come before the first call."""
    unmark: int | None = None
    """Control token behind the closing."""
    free: tuple[int, ...] = ()
    """Control tokens that may be in a text, such as those around thoughts."""
    forced: tuple[int, ...] = ()
    """Ids that lead to a call which has to come, up to its JSON; part of the prompt."""


class Form(NamedTuple):
    """What an answer has to look like."""

    n: int = 1
    """Answers to each prompt."""
    keep: int = 1
    """How many of them are returned, the most likely ones; `n` but for `best_of`."""
    echo: bool = False
    """Whether the prompt comes before the answer."""
    silent: bool = False
    """Whether nothing was to be written: `max_tokens` 0."""
    logprobs: int | None = None
    """Alternatives at each token; `None` is no log-probabilities."""
    prompt_logprobs: int | None = None
    """Alternatives at each token of the prompt, in vLLM's form."""
    token_ids: bool = False
    """Whether ids are returned too."""
    usage: bool = False
    """Whether a stream ends with its usage."""
    calls: CallForm | None = None
    """How calls of tools look, if the answer may call."""
    required: bool = False
    """Whether it has to."""
    base64: bool = False
    """Whether embeddings are packed."""


class Call(NamedTuple):
    """A request: what the engine is asked, and how its pieces become an answer."""

    kind: str
    """`chat`, `completion`, `embedding` or `response`."""
    asks: list[Ask]
    """The `n` answers of a prompt are neighbours; `seconds` is set if the client gave a limit."""
    stream: bool
    ignored: tuple[str, ...]
    """Fields of the body that have no effect here."""
    model: str
    """The name by which the client asked."""
    seed: int
    stamp: Stamp
    served: Served
    form: Form
    repeated: Mapping[str, Any] = {}
    """What a response repeats of its request."""
    texts: tuple[str, ...] = ()
    """What the client wrote: of a conversation each message, else each prompt."""


class Problem(NamedTuple):
    """An error as HTTP says it."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def served_model(
    name: str,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    context: int,
    fingerprint: str = "",
    task: Task = LanguageModel(),
    adapters: tuple[str, ...] = (),
    template: str | None = None,
    created: int = 0,
    prompts: Mapping[str, PromptTemplate] | None = None,
    watermark: str = "",
) -> Served:
    """Returns what the protocol has to know of a model.

    Args:
      template: how conversations are written, as in `chat.choose_template`; `None` is the model's
        own.
      prompts: library of prompts that clients may name.
      watermark: what the key file holds with which all texts are marked.

    Raises:
      ConfigError: there is no such template, or it needs control tokens that the tokenizer lacks.
    """
    form = chat.choose_template(template, tokenizer)
    chat.require_controls(form, tokenizer)
    return Served(
        name=name,
        config=config,
        tokenizer=tokenizer,
        task=task,
        adapters=tuple(adapters),
        context=min(context, config.context),
        fingerprint=fingerprint,
        template=form,
        ends=chat.ends(form, tokenizer),
        created=created,
        prompts=prompts or {},
        watermark=watermark,
    )


def stamp() -> Stamp:
    """Returns a new id, the time, and a random seed."""
    return Stamp(secrets.token_hex(12), int(time.time()), secrets.randbits(32))


# --- models -------------------------------------------------------------------------------------


def model_names(served: Served) -> list[str]:
    """Returns the names that `model` of a request may have: that of the model without adapters
    first."""
    return [served.name, *served.adapters, *["base"] * bool(served.adapters)]


def require_model(name: str | None, served: Served) -> str | None:
    """Returns the adapter that a request's `model` means, as `GenerateConfig.use` names it; no name
    is the model itself.

    Raises:
      BadRequest: with the status 404; there is no such model.
    """
    names = model_names(served)
    if name not in (None, *names):
        raise BadRequest(
            f"the model {name!r} does not exist; this server has {', '.join(names)}."
            f"{nearest(str(name), names)}",
            param="model",
            code="model_not_found",
            status=404,
        )
    if name in served.adapters:
        return name
    return "base" if served.adapters else None


def model_card(served: Served, name: str) -> dict[str, Any]:
    """Returns one model, for `/v1/models/NAME`.

    Raises:
      BadRequest: with the status 404; there is no such model.
    """
    require_model(name, served)
    card = {"id": name, "object": "model", "created": served.created, "owned_by": "gptjax"}
    parent = served.name if name in served.adapters else None
    return {**card, "parent": parent, "max_model_len": served.context}


def model_list(served: Served) -> dict[str, Any]:
    """Returns all models, for `/v1/models`."""
    names = [served.name, *served.adapters]
    return {"object": "list", "data": [model_card(served, name) for name in names]}


# --- errors -------------------------------------------------------------------------------------


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Returns an error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def problem(error: Exception) -> Problem:
    """Returns what a client is told of an error, whatever it was; the text of an unexpected one
    stays here."""
    if isinstance(error, BadRequest):
        kind = "invalid_request_error"
        return Problem(
            error.status,
            error.headers,
            error_body(str(error), kind, error.param, error.code or "invalid"),
        )
    if isinstance(error, ConfigError):
        return problem(BadRequest(str(error)))
    if isinstance(error, Busy):
        headers = {"retry-after": str(min(max(error.retry_after, 1), 120))}
        body = error_body(str(error), "rate_limit_error", code="rate_limit_exceeded")
        return Problem(429, headers, body)
    if isinstance(error, Unwell):
        body = error_body(str(error), "server_error", code="unavailable")
        return Problem(503, {"retry-after": "5"}, body)
    failed = isinstance(error, Failed) and str(error)
    message = failed or "the server failed at this request; its log says why."
    return Problem(500, {}, error_body(message, "server_error", code="internal_error"))
