"""How tokens are shown: their names, where they are in a text, and their log-probabilities.

`Aligner` holds tokens back until the text that they make is given, so that pieces may be cut
anywhere, and tokens of a stop text are never shown.
"""

from __future__ import annotations

import codecs
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.request import Request
from gptjax.serve.stream import Piece, PromptScores

LEAST = -9999.0
"""What stands for ln 0, which JSON cannot say; OpenAI's."""


class TokenAt(NamedTuple):
    """A token with its place in a text."""

    id: int
    spelled: bytes
    """What it adds to the text."""
    offset: int
    """Characters before the one that it begins in or before."""
    logprob: float | None
    """`None` for the first of a prompt."""
    alternatives: Sequence[tuple[int, float]] = ()


# --- names --------------------------------------------------------------------------------------


def token_name(tokenizer: Tokenizer, number: int) -> str:
    """Returns a token as text: what it spells, `bytes:\\xe2\\x82` if it is no whole character; the
    name of a control token, or `<id 7>` if it has none."""
    spelled = tokenizer.pieces[number]
    if not spelled:
        named = (name for name, control in tokenizer.controls.items() if control.id == number)
        return next(named, f"<id {number}>")
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def end_token(tokenizer: Tokenizer) -> str | None:
    """Returns the name of the token that ends a document."""
    end = tokenizer.end_of_document
    return None if end is None else token_name(tokenizer, end)


def json_logprob(logprob: float) -> float:
    """Returns a log-probability that JSON can say."""
    return max(float(logprob), LEAST) if not math.isnan(logprob) else LEAST


# --- where tokens are ---------------------------------------------------------------------------


class Aligner:
    """Gives the tokens of an answer together with the text that they make."""

    def __init__(self, tokenizer: Tokenizer, request: Request, mark: int | None = None) -> None:
        self._tokenizer, self._mark = tokenizer, mark
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._waiting: deque[TokenAt] = deque()
        self._written, self._given = 0, 0
        first = tokenizer.token_bytes(tokenizer.encode("a"))[:1] if request.prompt == "" else b""
        self._strip = bool(request.ids) and first == b" "
        """Some tokenizers put a space before each text; it is no part of an answer to nothing."""
        self.marked: int | None = None
        """Characters before the first token that is the `mark`, once it was written."""

    def take(self, piece: Piece) -> list[TokenAt]:
        """Returns the tokens of the text that has been given so far, and not before; with the
        last piece all others, but for those of a stop text."""
        every = piece.alternatives or [[]] * len(piece.ids)
        for number, logprob, alternatives in zip(piece.ids, piece.logprobs, every, strict=True):
            spelled = self._tokenizer.token_bytes([number])
            if self._strip and spelled:
                spelled, self._strip = spelled.removeprefix(b" "), False
            self._waiting.append(
                TokenAt(number, spelled, self._written, json_logprob(logprob), alternatives)
            )
            if number == self._mark and self.marked is None:
                self.marked = self._written
            self._written += len(self._decode(spelled))
        self._given += len(piece.text)
        whole = piece.reason in ("stop", "length")
        ready = []
        while self._waiting and (whole or self._waiting[0].offset < self._given):
            ready.append(self._waiting.popleft())
        return ready


def prompt_tokens(tokenizer: Tokenizer, request: Request, scores: PromptScores) -> list[TokenAt]:
    """Returns the tokens of a prompt with their places in its text."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    whole = tokenizer.token_bytes(request.ids)
    strip = whole[:1] == b" " and not request.prompt.startswith(" ")
    tokens, offset = [], 0
    each = zip(request.ids, scores.logprobs, scores.alternatives, strict=True)
    for number, logprob, alternatives in each:
        spelled = tokenizer.token_bytes([number])
        if strip and spelled:
            spelled, strip = spelled.removeprefix(b" "), False
        shown = None if logprob is None else json_logprob(logprob)
        tokens.append(TokenAt(number, spelled, offset, shown, alternatives or ()))
        offset += len(decode(spelled))
    return tokens


# --- log-probabilities as JSON ------------------------------------------------------------------


def chat_logprobs(
    tokenizer: Tokenizer, tokens: Iterable[TokenAt], top: int
) -> list[dict[str, Any]]:
    """Returns the `content` of a chat's `logprobs`, an entry for each token.

    Args:
      top: alternatives for each.
    """

    def entry(number: int, logprob: float, spelled: bytes) -> dict[str, Any]:
        named = {"token": token_name(tokenizer, number), "logprob": logprob}
        return {**named, "bytes": list(spelled)}

    def others(token: TokenAt) -> list[dict[str, Any]]:
        return [
            entry(number, json_logprob(logprob), tokenizer.token_bytes([number]))
            for number, logprob in token.alternatives[:top]
        ]

    return [
        {**entry(t.id, LEAST if t.logprob is None else t.logprob, t.spelled)}
        | {"top_logprobs": others(t)}
        for t in tokens
    ]


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Iterable[TokenAt], top: int, before: int = 0
) -> dict[str, list]:
    """Returns the `logprobs` of a completion: four lists with an entry for each token.

    The entry of a token itself is always among its `top_logprobs`, with the same number.

    Args:
      top: alternatives for each.
      before: characters of the text before these tokens'.
    """
    shown: dict[str, list] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for token in tokens:
        shown["tokens"].append(token_name(tokenizer, token.id))
        shown["token_logprobs"].append(token.logprob)
        shown["top_logprobs"].append(_likeliest(tokenizer, token, top))
        shown["text_offset"].append(before + token.offset)
    return shown


def _likeliest(tokenizer: Tokenizer, token: TokenAt, top: int) -> dict[str, float] | None:
    """Name → ln p; two ids that spell the same get names of their own."""
    if token.logprob is None:
        return None
    named = {token_name(tokenizer, token.id): token.logprob}
    for number, logprob in token.alternatives[:top]:
        if number != token.id:
            name = token_name(tokenizer, number)
            named[f"{name}<id {number}>" if name in named else name] = json_logprob(logprob)
    return named


def ranked(
    tokenizer: Tokenizer, tokens: Iterable[TokenAt], top: int
) -> list[dict[str, dict[str, Any]] | None]:
    """Returns the `prompt_logprobs` of vLLM: for each token id → ln p, rank and name; `null` first.
    The rank of a token that is not among the `top` is `null`."""

    def entry(number: int, logprob: float, rank: int | None) -> dict[str, Any]:
        name = token_name(tokenizer, number)
        return {"logprob": json_logprob(logprob), "rank": rank, "decoded_token": name}

    shown: list[dict[str, dict[str, Any]] | None] = []
    for token in tokens:
        if token.logprob is None:
            shown.append(None)
            continue
        entries = {str(token.id): entry(token.id, token.logprob, None)}
        for rank, (number, logprob) in enumerate(token.alternatives[:top], 1):
            entries[str(number)] = entry(number, logprob, rank)
        shown.append(entries)
    return shown
