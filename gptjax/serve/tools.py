"""Tools: how a model is told of them, a grammar of their calls, and calls out of an answer's text.

An answer that calls is one JSON object, `{"name": "add", "arguments": {"a": 1}}`, or where several
calls are allowed a list of them, `[{…}, {…}]`. If the model's template writes calls between marks
(`<tool_call>\\n{…}\\n</tool_call>`), so does the answer. A grammar holds the answer to it, so names
exist and arguments are valid: `CallReader` needs to read nothing else.

Where the model may choose (`auto`) and the mark is a control token, calls begin at that, perhaps
behind a text. Otherwise the first character decides: `{`, `[` or the mark's first begins a call,
any other a text.

A template that knows `tools` and `tool_calls` writes them itself. For others, `SYSTEM` and the
descriptions join the system prompt, earlier calls are written as above, and results as messages of
the user, `Result of add: 3`.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import ChatTemplate, Message
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.serve.bodies import ChatBody, ChatMessage, Tool, ToolCall, ToolFunction
from gptjax.serve.protocol import BadRequest, CallForm

SYSTEM = (
    "You can call functions. Each line describes one:\n{tools}\n"
    'To call one, answer with {{"name": NAME, "arguments": {{…}}}} and nothing else; to call'
    " several, with a list of these. Otherwise answer in words."
)
"""What a template that knows no tools makes of them."""


class Toolset(NamedTuple):
    """The tools of a request that an answer may call."""

    tools: tuple[Tool, ...] = ()
    required: bool = False
    parallel: bool = True


# --- which tools --------------------------------------------------------------------------------


def chosen_tools(body: ChatBody) -> Toolset:
    """Returns the tools that an answer may call; none with the choice `none`.

    Raises:
      BadRequest: a choice without tools, an unknown tool, or two tools of one name.
    """
    names = [tool.function.name for tool in body.tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadRequest(f"two tools are called {name!r}; rename one.", f"tools.{i}.function")
    choice = body.tool_choice
    if not names and choice not in (None, "none"):
        raise BadRequest("tool_choice needs tools; give some, or omit it.", "tool_choice")
    if choice == "none" or not names:
        return Toolset()
    if isinstance(choice, str | None):
        return Toolset(body.tools, choice == "required", body.parallel_tool_calls)
    allowed, required, parallel = [], True, False
    if choice.type == "function" and choice.function:
        allowed = [choice.function.name]
    elif choice.type == "allowed_tools" and choice.allowed_tools:
        allowed = [tool.function.name for tool in choice.allowed_tools.tools]
        required, parallel = choice.allowed_tools.mode == "required", body.parallel_tool_calls
    else:
        raise BadRequest(f"tool_choice.{choice.type} is missing; it is needed.", "tool_choice")
    for name in allowed:
        if name not in names:
            raise BadRequest(
                f"tool_choice has {name!r}; there are {', '.join(names)[:200]}.", "tool_choice"
            )
    return Toolset(tuple(t for t in body.tools if t.function.name in allowed), required, parallel)


# --- the form of a call -------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def call_form(template: ChatTemplate, tokenizer: Tokenizer) -> CallForm:
    """Returns how a template writes a call, as far as constrained text can follow it: control
    tokens cannot be part of that."""
    if not knows_tools(template):
        return CallForm()
    probe = {"type": "function", "function": {"name": "probe", "arguments": {"a": 1}}}
    talk = [Message("user", "a"), Message("assistant", "", {"tool_calls": [probe]})]
    try:
        parts = chat.parts(template, talk, tokenizer, reply=False, tools=[_PROBE])
    except ConfigError:
        return CallForm()
    ids = next((part.ids for part in parts if part.answer == 1 and part.prompted), [])
    pieces = [tokenizer.token_bytes([i]) for i in ids]
    text = b"".join(pieces)
    match = _WRITTEN.search(text)
    if match is None:
        return CallForm()
    ends = np.cumsum([len(piece) for piece in pieces])
    first = int(np.searchsorted(ends, match.start(), "right"))
    last = int(np.searchsorted(ends, match.end()))
    blank = [at for at, piece in enumerate(pieces) if not piece]
    marks = [at for at in blank if at < first]
    key = match[1].decode()
    if not marks:
        opening, closing = text[: match.start()].decode(), text[match.end() :].decode()
        return CallForm(opening, closing, key)
    framing = _framing(template, tokenizer)
    after = [at for at in blank if at > last and ids[at] not in framing]
    behind = after[0] if after else last + 1
    mine = {ids[at] for at in (marks[-1], *after[:1])}
    other = mine | framing
    named = [control.id for name, control in tokenizer.controls.items() if name in template.source]
    return CallForm(
        opening=b"".join(pieces[marks[-1] + 1 : first]).decode(),
        closing=b"".join(pieces[last + 1 : behind]).decode(),
        key=key,
        mark=ids[marks[-1]],
        unmark=ids[after[0]] if after else None,
        free=tuple(i for i in named if i not in other),
        forced=tuple(ids[:first]),
    )


def _framing(template: ChatTemplate, tokenizer: Tokenizer) -> set[int | None]:
    """Ids that end an answer, and those that a template writes around every message."""
    special = tokenizer.special
    begin = special.bos if special else None
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    ids = Counter(chat.render(template, talk, tokenizer, reply=False))
    controls = [control.id for control in tokenizer.controls.values()]
    around = {i for i in controls if ids[i] > 1}
    ends = (*tokenizer.ends, *chat.ends(template, tokenizer).ids)
    return {tokenizer.end_of_document, begin, *ends, *around}


_PROBE = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
_WRITTEN = re.compile(rb'\{"name": "probe", "(arguments|parameters)": \{"a": 1\}\}')


def knows_tools(template: ChatTemplate) -> bool:
    """Says whether a template writes tools and their calls itself."""
    return "tool_calls" in template.source and bool(re.search(r"\btools\b", template.source))


def call_grammar(tools: Toolset, form: CallForm) -> str:
    """Returns the GBNF grammar of answers that call, or may call, these tools."""
    heads = [
        f'call{i} ::= {_quoted(_head(tool.function.name, form))} %json {_arguments(tool, i)} "}}"'
        for i, tool in enumerate(tools.tools)
    ]
    names = " | ".join(f"call{i}" for i in range(len(heads)))
    opening, closing = (_quoted(text) if text else "" for text in (form.opening, form.closing))
    if form.mark is not None:
        closing += "" if form.unmark is None else f" %token {form.unmark}"
        block = rf"[\n ]* %token {form.mark} {opening} call {closing}"
        first = f"call {closing}" if tools.required else block
        calls = "first block*" if tools.parallel else "first"
        other = "".join(f" | %token {i}" for i in form.free)
        root = "calls" if tools.required else f"(.{other})* calls?"
        rules = [f"first ::= {first}", f"block ::= {block}"]
    else:
        block = f"{opening} call {closing}"
        several = r'block ("\n" block)*' if opening else 'block | "[" block (", " block)* "]"'
        calls = several if tools.parallel else "block"
        begins = "".join(re.escape(c) for c in dict.fromkeys("{[" + form.opening[:1]))
        root = "calls" if tools.required else f"calls | ([^{begins}] .*)?"
        rules = [f"block ::= {block}"]
    return "\n".join(
        [f"root ::= {root}", f"calls ::= {calls}", *rules, f"call ::= {names}", *heads]
    )


def _head(name: str, form: CallForm) -> str:
    return f'{{"name": "{name}", "{form.key}": '


def _quoted(text: str) -> str:
    return json.dumps(text)


def _arguments(tool: Tool, number: int) -> str:
    """The JSON schema of a tool's arguments on one line; `#` would begin a comment."""
    where = f"tools.{number}.function.parameters"
    schema = tool.function.parameters or {"properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise BadRequest(f"{where}.type has to be 'object'.", f"{where}.type")
    return json.dumps({"type": "object", **schema}).replace("#", "\\u0023")


# --- messages -----------------------------------------------------------------------------------


def conversation(
    messages: Sequence[ChatMessage], tools: Toolset, template: ChatTemplate
) -> tuple[list[Message], list[dict[str, Any]]]:
    """Returns messages as the template takes them, and the tools that it writes itself.

    Raises:
      BadRequest: a message lacks its text, or earlier arguments are not JSON.
    """
    known = knows_tools(template)
    called: dict[str, str] = {}
    talk = []
    for i, message in enumerate(messages):
        calls = [_written_call(c, f"messages.{i}.tool_calls.{k}") for k, c in _calls(message)]
        called |= {call.id: call.function.name for _, call in _calls(message)}
        talk.append(_message(message, i, calls, called, known, template))
    described = [_described(tool.function) for tool in tools.tools]
    if known or not described:
        return talk, described
    told = SYSTEM.format(tools="\n".join(json.dumps(d["function"]) for d in described))
    if talk[0].role in ("system", "developer"):
        return [talk[0]._replace(text=f"{talk[0].text}\n\n{told}"), *talk[1:]], []
    return [Message("system", told), *talk], []


def _calls(message: ChatMessage) -> Iterator[tuple[int, ToolCall]]:
    return enumerate(message.tool_calls or ())


def _message(
    message: ChatMessage,
    number: int,
    calls: list[dict[str, Any]],
    called: Mapping[str, str],
    known: bool,
    template: ChatTemplate,
) -> Message:
    role, text = message.role, _text(message, number)
    if role == "developer" and "developer" not in template.source:
        role = "system"
    more = {"name": message.name, "reasoning_content": message.reasoning_content}
    if known:
        more |= {"tool_calls": calls or None, "tool_call_id": message.tool_call_id}
    elif calls:
        inner = [c["function"] for c in calls]
        text = "\n".join(filter(None, (text, json.dumps(inner if len(inner) > 1 else inner[0]))))
    if role in ("tool", "function"):
        more["name"] = message.name or called.get(message.tool_call_id or "")
        if not known:
            role, text = "user", f"Result of {more['name'] or 'the call'}: {text}"
    return Message(role, text, {name: value for name, value in more.items() if value is not None})


def _text(message: ChatMessage, number: int) -> str:
    where = f"messages.{number}.content"
    if message.content is None:
        if message.role != "assistant":
            raise BadRequest(f"{where} is missing; it needs text.", where)
        return message.refusal or ""
    if isinstance(message.content, str):
        return message.content
    texts = [part.refusal if part.type == "refusal" else part.text for part in message.content]
    for i, text in enumerate(texts):
        if text is None:
            raise BadRequest(f"{where}.{i}.text is missing; it is needed.", f"{where}.{i}.text")
    return "\n".join(text for text in texts if text is not None)


def _written_call(call: ToolCall, where: str) -> dict[str, Any]:
    """A call as templates take it: with its arguments as an object."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            field = f"{where}.function.arguments"
            raise BadRequest(f"{field} is not JSON.", field) from None
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _described(function: ToolFunction) -> dict[str, Any]:
    shown = {
        "name": function.name,
        "description": function.description or "",
        "parameters": function.parameters or {},
    }
    return {"type": "function", "function": shown}


# --- calls out of a text ------------------------------------------------------------------------


class Said(NamedTuple):
    """What an answer's text brought: words, the name of a new call, or a part of its arguments."""

    text: str = ""
    name: str = ""
    arguments: str = ""
    number: int = 0
    """That of the call."""


class CallReader:
    """Reads an answer piece by piece, in the form that `call_grammar` holds it to."""

    def __init__(self, form: CallForm, required: bool = False) -> None:
        self._begins = tuple("{[" + form.opening[:1])
        self._head = re.compile(rf'\{{"name": "([\w-]+)", "{form.key}": ')
        self._buffer, self._at = "", 0
        self._mode = "start" if form.mark is None else "head" if required else "text"
        self._depth, self._quoted, self._escaped = 0, False, False
        self.calls = 0
        """How many calls have begun."""

    @property
    def whole(self) -> bool:
        """Whether there are calls and each is complete."""
        return self.calls > 0 and self._mode == "head"

    def take(self, piece: str, mark: int | None = None) -> list[Said]:
        """Returns what a piece of the text brings.

        Args:
          mark: characters of the whole text before the first control token that begins a call, if
            one was written.
        """
        self._buffer += piece
        if self._mode == "start" and self._buffer:
            self._mode = "head" if self._buffer.startswith(self._begins) else "text"
        said = []
        if self._mode == "text" and mark is not None and mark <= self._at + len(self._buffer):
            text, self._buffer = self._buffer[: mark - self._at], self._buffer[mark - self._at :]
            said, self._mode = [Said(text=text)] * bool(text), "head"
        while self._buffer and (one := self._next()):
            said.append(one)
        return said

    def end(self) -> list[Said]:
        """Returns what is left: the beginning of a call that never came is text."""
        rest, self._buffer = self._buffer, ""
        return [Said(text=rest)] if rest and not self.calls else []

    def _next(self) -> Said | None:
        if self._mode == "text":
            rest, self._buffer = self._buffer, ""
            self._at += len(rest)
            return Said(text=rest)
        if self._mode == "head":
            match = self._head.search(self._buffer)
            if match is None:
                return None
            self._buffer, self._mode = self._buffer[match.end() :], "arguments"
            self._depth, self.calls = 0, self.calls + 1
            return Said(name=match[1], number=self.calls - 1)
        size = self._arguments_here()
        part, self._buffer = self._buffer[:size], self._buffer[size:]
        return Said(arguments=part, number=self.calls - 1)

    def _arguments_here(self) -> int:
        """How much of the buffer belongs to the arguments; the mode changes where they end."""
        for at, character in enumerate(self._buffer):
            if self._quoted:
                closes = character == '"' and not self._escaped
                self._escaped = character == "\\" and not self._escaped
                self._quoted = not closes
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._mode = "head"
                    return at + 1
        return len(self._buffer)
