"""The answer of /v1/responses: items that grow by events. The whole answer is what the last event
holds, so a stream is the whole by construction.

A text is one item, a message with one part; each call of a tool is one. An item is opened by
`response.output_item.added`, grows by deltas, and is closed by `response.output_item.done`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from gptjax.serve.answers import Gain, Writer, call_id, usage_of, whole_answer
from gptjax.serve.chunks import DONE, Chunks
from gptjax.serve.protocol import Call
from gptjax.serve.stream import Piece
from gptjax.serve.tokens import TokenAt, chat_logprobs

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer is not whole → what its details call that."""


def answer_of(call: Call, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """Returns the whole answer of any call as JSON."""
    if call.kind != "response":
        return whole_answer(call, pieces)
    events = ResponseEvents(call)
    for piece in pieces[0]:
        events.take(0, piece)
    return events.resource()


def events_of(call: Call) -> Chunks | ResponseEvents:
    """Returns what turns the pieces of any call into events."""
    return ResponseEvents(call) if call.kind == "response" else Chunks(call)


class ResponseEvents:
    """Turns the pieces of a response into events; used as `chunks.Chunks` is."""

    def __init__(self, call: Call) -> None:
        self._call, self._writer = call, Writer(call, 0)
        self._items: list[dict[str, Any]] = []
        self._sent, self._open = 0, False
        self._reason: str | None = None

    def begin(self) -> bytes:
        """Returns the events before the first piece."""
        resource = self.resource()
        return b"".join(
            self._event(f"response.{name}", response=resource)
            for name in ("created", "in_progress")
        )

    def take(self, number: int, piece: Piece) -> bytes:
        """Returns the events that a piece brings, perhaps none."""
        gain = self._writer.take(piece)
        plain = self._call.form.calls is None
        scored = plain and gain.tokens and self._call.form.logprobs is not None
        out = self._texts(gain.text, gain.tokens) if gain.text or scored else b""
        for said in gain.said:
            if said.text:
                out += self._texts(said.text, [])
            elif said.name:
                out += self._close() + self._call_added(said.name, said.number)
            else:
                out += self._arguments(said.arguments)
        return out + (self._over(gain) if gain.reason is not None else b"")

    def end(self) -> bytes:
        """Returns the events after the last piece."""
        resource = self.resource()
        return self._event(f"response.{resource['status']}", response=resource) + DONE

    def resource(self) -> dict[str, Any]:
        """Returns the response as it is now."""
        call, over = self._call, self._reason is not None
        cut = INCOMPLETE.get(self._reason or "")
        status = ("incomplete" if cut else "completed") if over else "in_progress"
        return {
            "id": f"resp_{call.stamp.id}",
            "object": "response",
            "created_at": call.stamp.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": {"reason": cut} if cut else None,
            "model": call.model,
            "system_fingerprint": call.served.fingerprint,
            "seed": call.seed,
            "output": [dict(item) for item in self._items],
            "error": None,
            "usage": self._usage() if over else None,
            **call.repeated,
        }

    def _usage(self) -> dict[str, Any]:
        usage = usage_of(self._call, [self._writer])
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sent, **fields}
        self._sent += 1
        shown = json.dumps(data, separators=(",", ":"), allow_nan=False)
        return f"event: {kind}\ndata: {shown}\n\n".encode()

    def _place(self, part: bool = False) -> dict[str, Any]:
        """Where an event belongs."""
        last = len(self._items) - 1
        place = {"item_id": self._items[last]["id"], "output_index": last}
        return {**place, "content_index": 0} if part else place

    def _added(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        self._open = True
        index = len(self._items) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _texts(self, text: str, tokens: Sequence[TokenAt]) -> bytes:
        """Events of a piece of the message, which they open if need be."""
        out, form = b"", self._call.form
        if not self._open:
            heading = {"type": "message", "id": f"msg_{self._call.stamp.id}_{len(self._items)}"}
            item = {"status": "in_progress", "role": "assistant", "content": []}
            out += self._added({**heading, **item})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            out += self._event("response.content_part.added", **self._place(True), part=part)
            self._items[-1] = {**self._items[-1], "content": [part]}
        scores = []
        if form.logprobs is not None:
            scores = chat_logprobs(self._call.served.tokenizer, tokens, form.logprobs)
        (part,) = self._items[-1]["content"]
        grown = {**part, "text": part["text"] + text, "logprobs": part["logprobs"] + scores}
        self._items[-1] = {**self._items[-1], "content": [grown]}
        fields = {**self._place(True), "delta": text, "logprobs": scores}
        return out + self._event("response.output_text.delta", **fields)

    def _call_added(self, name: str, number: int) -> bytes:
        item = {
            "type": "function_call",
            "id": f"fc_{self._call.stamp.id}_{number}",
            "call_id": call_id(self._call, 0, number),
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        return self._added(item)

    def _arguments(self, delta: str) -> bytes:
        item = self._items[-1]
        self._items[-1] = {**item, "arguments": item["arguments"] + delta}
        return self._event("response.function_call_arguments.delta", **self._place(), delta=delta)

    def _over(self, gain: Gain) -> bytes:
        self._reason = gain.reason
        return (b"" if self._items else self._texts("", [])) + self._close()

    def _close(self) -> bytes:
        """Events that close the open item, if there is one."""
        if not self._open:
            return b""
        self._open = False
        status = "incomplete" if self._reason in INCOMPLETE else "completed"
        item = self._items[-1] = {**self._items[-1], "status": status}
        if item["type"] == "message":
            (part,) = item["content"]
            said = {"text": part["text"], "logprobs": part["logprobs"]}
            out = self._event("response.output_text.done", **self._place(True), **said)
            out += self._event("response.content_part.done", **self._place(True), part=part)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            out = self._event("response.function_call_arguments.done", **self._place(), **told)
        fields = {"output_index": len(self._items) - 1, "item": item}
        return out + self._event("response.output_item.done", **fields)
