"""OpenAI's newer endpoint, /v1/responses: a body of it is read as a chat.

Nothing is stored, so a conversation is sent whole with each request, and what refers to an earlier
response is refused by name. `response_events` makes the answer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from gptjax.serve.asks import read_chat
from gptjax.serve.bodies import ContentPart, Count, Name, Penalty, Share
from gptjax.serve.fields import limits, read_fields
from gptjax.serve.protocol import BadRequest, Call, Served, Stamp
from gptjax.serve.templates import PromptReference, referred_messages

Content = str | Annotated[tuple[ContentPart, ...], limits(maxItems=256)]
_STORED = "this server keeps nothing; send the whole conversation as input."


@dataclass(frozen=True, kw_only=True)
class InputItem:
    """A message, a call of a tool in an earlier answer, or what came of it."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: Name | None = None
    arguments: str | None = None
    output: Content | None = None

    IGNORED: ClassVar = ("id", "status", "phase", "summary", "encrypted_content", "caller")


@dataclass(frozen=True, kw_only=True)
class ResponseTool:
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict | None = None
    strict: bool | None = None
    """Arguments are always valid here."""


@dataclass(frozen=True, kw_only=True)
class ResponseToolChoice:
    """The function that has to be called."""

    type: Literal["function"]
    name: Name


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """The form of the whole answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: dict | None = None
    strict: bool | None = None
    """Answers are always valid here."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How the answer is to be written."""

    format: TextFormat | None = None

    IGNORED: ClassVar = ("verbosity",)


@dataclass(frozen=True, kw_only=True)
class ResponseBody:
    """The body of /v1/responses."""

    input: str | Annotated[tuple[InputItem, ...], limits(minItems=1, maxItems=2048)] | None = None
    prompt: PromptReference | None = None
    """A prompt of the server's library, which comes before the input."""
    model: Annotated[str, limits(maxLength=256)] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, limits(minimum=1, maximum=2**31 - 1)] | None = None
    temperature: Annotated[float, limits(minimum=0, maximum=100)] = 1.0
    top_p: Share = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    top_k: Count = 0
    seed: Annotated[int, limits(minimum=-(2**63), maximum=2**64 - 1)] | None = None
    tools: Annotated[tuple[ResponseTool, ...], limits(maxItems=128)] = ()
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions | None = None
    top_logprobs: Annotated[int, limits(minimum=0, maximum=20)] | None = None
    include: Annotated[tuple[str, ...], limits(maxItems=16)] = ()
    stream: bool = False
    metadata: Annotated[dict, limits(maxProperties=16)] | None = None
    """Repeated in the answer."""

    IGNORED: ClassVar = (
        *("user", "store", "service_tier", "safety_identifier", "prompt_cache_key", "reasoning"),
        *("prompt_cache_retention", "truncation", "stream_options", "prompt_cache_options"),
    )
    REFUSED: ClassVar[Mapping[str, str]] = {
        "previous_response_id": _STORED,
        "conversation": _STORED,
        "background": _STORED,
        "max_tool_calls": "the server calls no tools itself; omit it.",
    }


def read_response(
    body: bytes | Mapping[str, Any], served: Served, stamp: Stamp, tenant: str = ""
) -> Call:
    """Returns what a body of /v1/responses asks for; arguments and errors as of `read_chat`."""
    asked, ignored = read_fields(ResponseBody, body)
    scored = asked.top_logprobs is not None or "message.output_text.logprobs" in asked.include
    same = ("model", "temperature", "top_p", "presence_penalty", "frequency_penalty", "top_k")
    chat: dict[str, Any] = {name: getattr(asked, name) for name in (*same, "seed", "stream")}
    chat |= {
        "messages": _messages(asked, served),
        "max_completion_tokens": asked.max_output_tokens,
        "logprobs": scored,
        "top_logprobs": asked.top_logprobs,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "tools": [_chat_tool(tool) for tool in asked.tools],
    }
    if asked.tools:
        choice = asked.tool_choice
        named = isinstance(choice, ResponseToolChoice)
        function = {"type": "function", "function": {"name": choice.name}} if named else choice
        chat["tool_choice"] = function
    if asked.text and asked.text.format:
        chat["response_format"] = _format(asked.text.format)
    try:
        call = read_chat(chat, served, stamp, tenant)
    except BadRequest as error:
        param = _NAMES.get((error.param or "").split(".")[0], error.param)
        raise BadRequest(str(error), param, error.code, error.status) from None
    return call._replace(kind="response", ignored=ignored, repeated=_repeated(asked))


_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""What fields of a chat are called here."""


def _messages(asked: ResponseBody, served: Served) -> list[dict[str, Any]]:
    """The conversation as a chat has it."""
    messages = _opening(asked, served)
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for i, item in enumerate(asked.input or ()):
        if item.type == "message":
            role, content = _needed(item, i, "role"), _needed(item, i, "content")
            messages.append({"role": role, "content": _plain(content)})
        elif item.type == "function_call":
            function = {"name": _needed(item, i, "name"), "arguments": item.arguments or "{}"}
            call = {"id": _needed(item, i, "call_id"), "type": "function", "function": function}
            if not messages or "tool_calls" not in messages[-1]:
                messages.append({"role": "assistant", "tool_calls": []})
            messages[-1]["tool_calls"].append(call)
        elif item.type == "function_call_output":
            told = {"tool_call_id": _needed(item, i, "call_id")}
            output = _plain(_needed(item, i, "output"))
            messages.append({"role": "tool", "content": output, **told})
    return messages


def _opening(asked: ResponseBody, served: Served) -> list[dict[str, Any]]:
    """What comes before the input: instructions, and a prompt of the library."""
    told = asked.instructions
    messages = [] if told is None else [{"role": "system", "content": told}]
    if asked.prompt is None:
        if asked.input is None:
            raise BadRequest("input is missing; it is needed.", "input", "missing")
        return messages
    talk = referred_messages(asked.prompt, served)
    if messages and talk[0]["role"] == "system":
        raise BadRequest(
            f"the prompt {asked.prompt.id} has a system message of its own; omit instructions.",
            "instructions",
        )
    return messages + talk


def _needed(item: InputItem, number: int, name: str) -> Any:
    value = getattr(item, name)
    if value is None:
        field = f"input.{number}.{name}"
        raise BadRequest(f"{field} is missing; a {item.type} needs it.", field, "missing")
    return value


def _plain(content: str | tuple[ContentPart, ...]) -> Any:
    return content if isinstance(content, str) else [dataclasses.asdict(part) for part in content]


def _chat_tool(tool: ResponseTool) -> dict[str, Any]:
    fields = dataclasses.asdict(tool)
    return {"type": fields.pop("type"), "function": fields}


def _format(form: TextFormat) -> dict[str, Any]:
    if form.type == "json_schema":
        if form.schema is None:
            field = "text.format.schema"
            raise BadRequest(f"{field} is missing; it is needed.", field, "missing")
        return {"type": form.type, "json_schema": {"schema": form.schema}}
    return {"type": form.type}


def _repeated(asked: ResponseBody) -> dict[str, Any]:
    """What an answer repeats of its request."""
    form = (asked.text and asked.text.format) or TextFormat()
    fields = {k: v for k, v in dataclasses.asdict(form).items() if v is not None}
    if form.type == "json_schema":
        fields |= {"name": form.name or "", "strict": True, "description": form.description}
    choice = asked.tool_choice
    named = isinstance(choice, ResponseToolChoice)
    return {
        "previous_response_id": None,
        "instructions": asked.instructions,
        "prompt": asked.prompt and dataclasses.asdict(asked.prompt),
        "tools": [{**dataclasses.asdict(tool), "strict": True} for tool in asked.tools],
        "tool_choice": dataclasses.asdict(choice) if named else choice,
        "truncation": "disabled",
        "parallel_tool_calls": asked.parallel_tool_calls,
        "text": {"format": fields},
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "top_logprobs": asked.top_logprobs or 0,
        "reasoning": {"effort": None, "summary": None},
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": json.loads(json.dumps(asked.metadata or {})),
        "safety_identifier": None,
        "prompt_cache_key": None,
    }
