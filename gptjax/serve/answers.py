"""Pieces become an answer: `Writer` says what each piece brings, `whole_answer` joins all of them.

Streams are made of the same `Gain`s (`chunks`), so a stream joined is the whole answer.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.serve.protocol import Call
from gptjax.serve.stream import Ask, Piece, PromptScores, Usage
from gptjax.serve.tokens import (
    Aligner,
    TokenAt,
    chat_logprobs,
    completion_logprobs,
    json_logprob,
    prompt_tokens,
    ranked,
)
from gptjax.serve.tools import CallReader, Said


class Gain(NamedTuple):
    """What a piece brings to a choice."""

    text: str
    said: list[Said]
    """Of a chat that may call tools, what `text` says; `text` is then empty."""
    tokens: list[TokenAt]
    """Tokens of what is given now; with the last piece of a completion the stop token too."""
    ids: list[int]
    reason: str | None
    """In OpenAI's words; of the last piece."""
    why: str | None
    """In the engine's words, which tell more: `time` is a `length` to OpenAI."""
    prompt: PromptScores | None


class Writer:
    """Turns the pieces of one ask into gains."""

    def __init__(self, call: Call, number: int) -> None:
        self._call, self.ask = call, call.asks[number]
        form, self._calls = call.form.calls, None
        if form is not None:
            self._calls = CallReader(form, call.form.required)
        self._align = Aligner(call.served.tokenizer, self.ask.request, form and form.mark)
        self._length = 0
        self.usage: Usage | None = None
        """Known after the last piece."""

    def take(self, piece: Piece) -> Gain:
        """Returns what a piece brings."""
        form, over = self._call.form, piece.reason is not None
        self.usage = piece.usage or self.usage
        tokens = self._align.take(piece)
        text, said = piece.text, []
        self._length += len(text)
        if self._calls is not None:
            said = self._calls.take(text, self._align.marked) + (self._calls.end() if over else [])
            text = ""
        if piece.end is not None and self._call.kind == "completion":
            number, logprob = piece.end
            tokens.append(TokenAt(number, b"", self._length, json_logprob(logprob)))
        if form.silent:
            text, tokens = "", []
        called = self._calls is not None and self._calls.whole
        closed = piece.reason == "length" and bool(self.ask.request.settings.schema)
        return Gain(
            text=text,
            said=said,
            tokens=tokens,
            ids=[] if form.silent else list(piece.ids),
            reason=finish_reason(piece.reason, called, closed) if over else None,
            why="length" if form.silent and over else piece.reason,
            prompt=piece.prompt,
        )


def finish_reason(reason: str | None, called: bool = False, closed: bool = False) -> str:
    """Returns why an answer ended, in OpenAI's closed set of words.

    Args:
      called: it consists of whole calls, which a grammar completes within the limit.
      closed: it is JSON that was closed within the limit. Clients throw away what was cut off,
        `length`, and this was not.
    """
    if reason == "content_filter":
        return reason
    if called:
        return "tool_calls"
    return "stop" if closed or reason in ("stop", "stop_string") else "length"


# --- whole answers ------------------------------------------------------------------------------


def whole_answer(call: Call, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """Returns the whole answer as JSON.

    Args:
      pieces: of each of `call.asks`, all that the engine gave.
    """
    if call.kind == "embedding":
        return _embeddings(call, pieces)
    writers = [Writer(call, number) for number in range(len(call.asks))]
    gains = [[w.take(p) for p in each] for w, each in zip(writers, pieces, strict=True)]
    make = _chat_choice if call.kind == "chat" else _completion_choice
    choices = [
        make(call, index, number, gains[number])
        for index, number in enumerate(kept_asks(call, pieces))
    ]
    whole = {**heading(call), "choices": choices, "usage": usage_of(call, writers)}
    if call.kind == "chat":
        whole |= _prompt_fields(call, call.asks[0], gains[0])
    return whole


def heading(call: Call, chunk: bool = False) -> dict[str, Any]:
    """Returns what every answer, and every chunk of one, begins with."""
    chat = call.kind == "chat"
    kind = "text_completion" if not chat else f"chat.completion{'.chunk' if chunk else ''}"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{call.stamp.id}",
        "object": kind,
        "created": call.stamp.created,
        "model": call.model,
        "system_fingerprint": call.served.fingerprint,
        "seed": call.seed,
    }


def kept_asks(call: Call, pieces: Sequence[Sequence[Piece]]) -> list[int]:
    """Returns the numbers of the asks whose answers are returned, in the order of choices: of each
    prompt those with the highest mean log-probability, if more were drawn than are wanted."""
    drawn, keep = call.form.n, call.form.keep
    numbers = range(len(call.asks))
    if keep == drawn:
        return list(numbers)

    def mean(number: int) -> float:
        found = [p for piece in pieces[number] for p in piece.logprobs]
        return sum(found) / len(found) if found else 0.0

    groups = [numbers[i : i + drawn] for i in range(0, len(numbers), drawn)]
    return [n for group in groups for n in sorted(group, key=mean, reverse=True)[:keep]]


def usage_of(call: Call, writers: Sequence[Writer]) -> dict[str, Any]:
    """Returns the tokens that a request cost; a prompt counts once, however many answers it has."""
    firsts = writers[:: call.form.n]
    prompt = sum(len(w.ask.request.ids) if w.usage is None else w.usage.prompt for w in firsts)
    cached = sum(w.usage.cached for w in firsts if w.usage)
    written = 0 if call.form.silent else sum(w.usage.written for w in writers if w.usage)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def call_id(call: Call, choice: int, number: int) -> str:
    """Returns the id of a call of a tool."""
    return f"call_{call.stamp.id}_{choice}_{number}"


def _chat_choice(call: Call, index: int, number: int, gains: Sequence[Gain]) -> dict[str, Any]:
    said = [one for gain in gains for one in gain.said]
    names = [one.name for one in said if one.name]
    arguments = [""] * len(names)
    for one in said:
        if one.arguments:
            arguments[one.number] += one.arguments
    text = "".join(gain.text for gain in gains) + "".join(one.text for one in said)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if names:
        message |= {"content": text or None}
        message["tool_calls"] = [
            {"id": call_id(call, number, i), "type": "function"}
            | {"function": {"name": name, "arguments": arguments[i]}}
            for i, name in enumerate(names)
        ]
    tokens = [token for gain in gains for token in gain.tokens]
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs_of(call, number, tokens),
        **ending(gains[-1] if gains else None),
        **_token_ids(call, gains),
    }


def _completion_choice(
    call: Call, index: int, number: int, gains: Sequence[Gain]
) -> dict[str, Any]:
    ask = call.asks[number]
    tokens = [token for gain in gains for token in gain.tokens]
    prompt = next((gain.prompt for gain in gains if gain.prompt), None)
    return {
        "index": index,
        "text": (ask.request.prompt if call.form.echo else "") + "".join(g.text for g in gains),
        "logprobs": logprobs_of(call, number, tokens, prompt),
        **ending(gains[-1] if gains else None),
        **_token_ids(call, gains),
        **_prompt_fields(call, ask, gains),
    }


def ending(last: Gain | None) -> dict[str, Any]:
    """Returns why a choice ended, in OpenAI's words and in the engine's."""
    reason, why = (last.reason, last.why) if last else (None, None)
    return {"finish_reason": reason or "length", "stop_reason": why}


def logprobs_of(
    call: Call, number: int, tokens: Sequence[TokenAt], prompt: PromptScores | None = None
) -> dict[str, Any] | None:
    """Returns the `logprobs` of a choice, or of a part of it.

    Args:
      prompt: that of an echo, with the first tokens.
    """
    form, tokenizer = call.form, call.served.tokenizer
    if form.logprobs is None:
        return None
    if call.kind == "chat":
        return {"content": chat_logprobs(tokenizer, tokens, form.logprobs), "refusal": None}
    request = call.asks[number].request
    before = len(request.prompt) if form.echo else 0
    shown = completion_logprobs(tokenizer, tokens, form.logprobs, before)
    if not form.echo or prompt is None:
        return shown
    echoed = prompt_tokens(tokenizer, request, prompt)
    first = completion_logprobs(tokenizer, echoed, form.logprobs)
    return {key: first[key] + shown[key] for key in first}


def _token_ids(call: Call, gains: Sequence[Gain]) -> dict[str, Any]:
    return {"token_ids": [i for gain in gains for i in gain.ids]} if call.form.token_ids else {}


def _prompt_fields(call: Call, ask: Ask, gains: Sequence[Gain]) -> dict[str, Any]:
    """What vLLM says of a prompt, if it was asked for."""
    form, tokenizer = call.form, call.served.tokenizer
    fields: dict[str, Any] = {}
    if form.token_ids:
        fields["prompt_token_ids"] = list(ask.request.ids)
    scores = next((gain.prompt for gain in gains if gain.prompt), None)
    if form.prompt_logprobs is not None and scores is not None:
        tokens = prompt_tokens(tokenizer, ask.request, scores)
        fields["prompt_logprobs"] = ranked(tokenizer, tokens, form.prompt_logprobs)
    return fields


def _embeddings(call: Call, pieces: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    data, prompt = [], 0
    for index, each in enumerate(pieces):
        vector = next(piece.embedding for piece in each if piece.embedding is not None)
        packed = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
        shown = packed if call.form.base64 else np.asarray(vector, np.float32).tolist()
        data.append({"object": "embedding", "index": index, "embedding": shown})
        prompt += len(call.asks[index].request.ids)
    usage = {"prompt_tokens": prompt, "total_tokens": prompt}
    return {"object": "list", "data": data, "model": call.model, "usage": usage}
