"""The description of the server for programs, as OpenAPI 3.1, made from the bodies themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptjax.serve.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
)
from gptjax.serve.fields import json_schema_of
from gptjax.serve.responses import ResponseBody

POSTS: Mapping[str, tuple[type, str, bool]] = {
    "/v1/chat/completions": (ChatBody, "Answers a conversation.", True),
    "/v1/completions": (CompletionBody, "Continues prompts.", True),
    "/v1/responses": (ResponseBody, "Answers a conversation, in OpenAI's newer form.", True),
    "/v1/embeddings": (EmbeddingBody, "Gives texts as vectors of length 1.", False),
    "/tokenize": (TokenizeBody, "Gives the ids of a text or a conversation.", False),
    "/detokenize": (DetokenizeBody, "Gives the text of ids.", False),
}
"""Path → what its body may say, what it does, and whether it can stream."""

GETS: Mapping[str, str] = {
    "/v1/models": "Lists the model and its adapters.",
    "/v1/models/{model}": "Describes one of them.",
    "/v1/prompts": "Lists the prompts that a request may name.",
    "/tokenizer_info": "Describes the tokenizer.",
}

_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_MAYBE_TEXT = {"type": ["string", "null"]}


def document(version: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the OpenAPI document.

    Args:
      more: further paths and what they do, as OpenAPI has it.
    """
    posts = {
        path: {"post": _post(body, does, streams)} for path, (body, does, streams) in POSTS.items()
    }
    gets = {path: {"get": _get(path, does)} for path, does in GETS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gptjax", "version": version},
        "paths": posts | gets | dict(more or {}),
        "components": {
            "schemas": {
                **{body.__name__: json_schema_of(body) for body, _, _ in POSTS.values()},
                **{name: _response(*parts) for name, parts in _RESPONSES.items()},
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _post(body: type, does: str, streams: bool) -> dict[str, Any]:
    content = {"application/json": {"schema": _named(_ANSWERS[body])}}
    if streams:
        content["text/event-stream"] = {}  # a schema would be taken for that of each event
    asked = {"application/json": {"schema": _named(body.__name__)}}
    answered = {"200": {"description": "The answer.", "content": content}}
    return {
        "summary": does,
        "requestBody": {"required": True, "content": asked},
        "responses": answered | _errors("400", "401", "404", "408", "413", "415", "429", "503"),
    }


def _get(path: str, does: str) -> dict[str, Any]:
    lists = path in ("/v1/models", "/v1/prompts")
    schema = _named("ModelList") if lists else {"type": "object"}
    content = {"application/json": {"schema": schema}}
    got: dict[str, Any] = {
        "summary": does,
        "responses": {"200": {"description": "The answer.", "content": content}}
        | _errors("401", "404"),
    }
    if "{model}" in path:
        got["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]
    return got


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _named("Error")}}
    return {status: {"description": _WHY[status], "content": content} for status in statuses}


_WHY = {
    "400": "The body is wrong; `error.param` names the field.",
    "401": "The key is wrong or missing.",
    "404": "There is no such model or prompt.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "429": "Too many requests are waiting; `retry-after` says when to try again.",
    "503": "The server is not well, or shutting down.",
}
_ANSWERS = {
    ChatBody: "ChatAnswer",
    CompletionBody: "CompletionAnswer",
    EmbeddingBody: "EmbeddingAnswer",
    ResponseBody: "Response",
    TokenizeBody: "Tokens",
    DetokenizeBody: "Text",
}


def _named(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _response(properties: Mapping[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


_USAGE = _response(
    {
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT),
        "prompt_tokens_details": _response({"cached_tokens": _COUNT}),
    }
)
_CHOICE = {
    "index": _COUNT,
    "logprobs": {"type": ["object", "null"]},
    "finish_reason": {"enum": ["stop", "length", "tool_calls", "content_filter"]},
    "stop_reason": _MAYBE_TEXT,
}
_MESSAGE = _response(
    {
        "role": {"const": "assistant"},
        "content": _MAYBE_TEXT,
        "refusal": {"type": "null"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
    optional=("tool_calls",),
)
_HEADING = {
    "id": _TEXT,
    "created": _COUNT,
    "model": _TEXT,
    "system_fingerprint": _TEXT,
    "seed": _COUNT,
    "usage": _USAGE,
}


def _list_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(schema)}


_VECTOR = {"anyOf": [_list_of({"type": "number"}), _TEXT]}
_RESPONSES: dict[str, tuple] = {
    "ChatAnswer": (
        {
            **_HEADING,
            "object": {"const": "chat.completion"},
            "choices": _list_of(_response({**_CHOICE, "message": _MESSAGE})),
        },
    ),
    "CompletionAnswer": (
        {
            **_HEADING,
            "object": {"const": "text_completion"},
            "choices": _list_of(_response({**_CHOICE, "text": _TEXT})),
        },
    ),
    "EmbeddingAnswer": (
        {
            "object": {"const": "list"},
            "data": _list_of(_response({"object": _TEXT, "index": _COUNT, "embedding": _VECTOR})),
            "model": _TEXT,
            "usage": _response({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        },
    ),
    "Response": (
        {
            "id": _TEXT,
            "object": {"const": "response"},
            "created_at": _COUNT,
            "status": {"enum": ["completed", "incomplete"]},
            "model": _TEXT,
            "output": _list_of({"type": "object"}),
            "usage": {"type": "object"},
        },
    ),
    "Tokens": (
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": _list_of(_COUNT),
            "token_strs": {"anyOf": [_list_of(_TEXT), {"type": "null"}]},
        },
    ),
    "Text": ({"prompt": _TEXT},),
    "ModelList": ({"object": {"const": "list"}, "data": _list_of({"type": "object"})},),
    "Error": (
        {
            "error": _response(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _MAYBE_TEXT,
                    "code": _MAYBE_TEXT,
                }
            )
        },
    ),
}
"""Name → its properties, and those of them that may be missing."""
