"""A stream of server-sent events, as OpenAI's clients read it.

Of a chat: a chunk with the role for each choice; chunks of content, of log-probabilities and of
calls, whose `finish_reason` is null; of each choice an empty delta with its reason; the usage, with
no choices, if asked for; `[DONE]`. A completion has no role. Choices come as they are written.
"""

from __future__ import annotations

import json
from typing import Any

from gptjax.serve.answers import Gain, Writer, call_id, ending, heading, logprobs_of, usage_of
from gptjax.serve.protocol import Call, problem
from gptjax.serve.stream import Piece
from gptjax.serve.tools import Said

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """Returns a JSON object as an event, in ASCII: some clients take U+2028 for the end of a
    line."""
    return f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n".encode()


def error_event(error: Exception) -> bytes:
    """Returns an error as the last event of a stream."""
    return event(problem(error).body)


class Chunks:
    """Turns the pieces of a call's asks into events; may be given pieces of any ask in any
    order."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._writers = [Writer(call, number) for number in range(len(call.asks))]
        self._begun = [False] * len(call.asks)

    def begin(self) -> bytes:
        """Returns the events before the first piece."""
        if self._call.kind != "chat":
            return b""
        role = {"role": "assistant", "content": "", "refusal": None}
        shown = [self._delta(number, role) for number in range(len(self._call.asks))]
        return b"".join(map(self._chunk, shown))

    def take(self, number: int, piece: Piece) -> bytes:
        """Returns the events that a piece of an ask brings, perhaps none."""
        gain = self._writers[number].take(piece)
        chat = self._call.kind == "chat"
        choices = self._chat(number, gain) if chat else self._completion(number, gain)
        self._begun[number] = True
        return b"".join(map(self._chunk, choices))

    def end(self) -> bytes:
        """Returns the events after the last piece of every ask."""
        if not self._call.form.usage:
            return DONE
        usage = usage_of(self._call, self._writers)
        return event({**heading(self._call, chunk=True), "choices": [], "usage": usage}) + DONE

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._call.form.usage else {}
        return event({**heading(self._call, chunk=True), "choices": [choice], **usage})

    def _delta(self, number: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def _chat(self, number: int, gain: Gain) -> list[dict[str, Any]]:
        deltas = [{"content": gain.text}] if gain.text else []
        deltas += [self._said(number, one) for one in gain.said]
        form = self._call.form
        shows_tokens = gain.tokens and form.logprobs is not None
        if not deltas and (shows_tokens or (form.token_ids and gain.ids)):
            deltas = [{"content": ""}]
        choices = [self._delta(number, delta) for delta in deltas]
        if choices and form.logprobs is not None:
            choices[0]["logprobs"] = logprobs_of(self._call, number, gain.tokens)
        if choices:
            choices[0] |= self._ids(number, gain)
        if gain.reason is not None:
            choices.append(self._delta(number, {}) | ending(gain))
        return choices

    def _said(self, number: int, said: Said) -> dict[str, Any]:
        if said.text:
            return {"content": said.text}
        if not said.name:
            function = {"arguments": said.arguments}
            return {"tool_calls": [{"index": said.number, "function": function}]}
        opened = {
            "index": said.number,
            "id": call_id(self._call, number, said.number),
            "type": "function",
            "function": {"name": said.name, "arguments": ""},
        }
        return {"tool_calls": [opened]}

    def _completion(self, number: int, gain: Gain) -> list[dict[str, Any]]:
        call, first = self._call, not self._begun[number]
        prompt = gain.prompt if first and call.form.echo else None
        text = call.asks[number].request.prompt if first and call.form.echo else ""
        shown = {
            "index": number,
            "text": text + gain.text,
            "logprobs": logprobs_of(call, number, gain.tokens, prompt),
            "finish_reason": None,
            **self._ids(number, gain),
        }
        choices = []
        scored = call.form.logprobs is not None and (gain.tokens or prompt)
        if shown["text"] or scored or shown.get("token_ids"):
            choices.append(shown)
        if gain.reason is not None:
            last = {"index": number, "text": "", "logprobs": None}
            choices.append(last | ending(gain))
        return choices

    def _ids(self, number: int, gain: Gain) -> dict[str, Any]:
        if not self._call.form.token_ids:
            return {}
        first = not self._begun[number]
        prompt = {"prompt_token_ids": list(self._call.asks[number].request.ids)} if first else {}
        return {"token_ids": gain.ids, **prompt}
