"""A classifier that reads what clients send and are sent, and stops what it finds harmful.

Read `Moderator`, then `require_harmless`, the filter of inputs, and `filtered`, that of answers: a
block of an answer is read before it is sent, together with the end of what was sent before. Nothing
that it reads is kept or logged. If it fails, the request does: nothing goes out unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.tasks import Classification
from gptjax.serve.protocol import BadRequest, Call
from gptjax.serve.stream import Piece, Usage, joined_pieces

if TYPE_CHECKING:
    from gptjax.api import Model

BLOCK = 32
"""Tokens of an answer that are held back until they are read together."""

BEFORE = 600
"""Characters sent before a block that are read with it: harm may lie across its border."""

BATCH = 4
"""Texts that are classified together."""

Batches = AsyncIterator[list[tuple[int, Piece]]]


class Moderator:
    """Decides on texts by a model with labels, of which some are allowed."""

    def __init__(
        self, model: Model, allow: Sequence[str] = ("harmless",), threshold: float = 0.5
    ) -> None:
        """Takes a classifier.

        Args:
          allow: labels of texts that may pass; all others are harmful.
          threshold: a text is stopped if it is harmful with this probability or more.

        Raises:
          ConfigError: the model has no labels, or none or all of them are allowed.
        """
        task = model.task
        require(
            bool(model.config.classes) and isinstance(task, Classification),
            "the model that moderates has no labels; give a run that classifies texts, such as one"
            " of configs/moderation.py (--moderate RUN).",
        )
        assert isinstance(task, Classification)
        labels = task.labels
        unknown = [name for name in allow if name not in labels]
        require(
            not unknown and 0 < len(set(allow)) < len(labels),
            f"the labels {', '.join(map(repr, allow)) or 'none'} are to be allowed, and the model"
            f" has {', '.join(labels)}; allow some of them, not all (--moderate-allow LABEL).",
        )
        require(
            0 < threshold <= 1,
            f"threshold is {threshold}; it needs a probability in (0, 1] (--moderate-threshold"
            " 0.5).",
        )
        self._model, self._allow, self._threshold = model, tuple(allow), threshold
        self.reads = ThreadPoolExecutor(1, "moderator")
        """The thread in which the server lets it read: requests wait there for each other, and
        leave the threads of other work alone."""

    def harm(self, texts: Sequence[str]) -> float:
        """Returns the largest probability that one of the texts is harmful; long ones are read in
        overlapping parts. Without a text it is 0."""
        parts = [part for text in texts for part in self._parts(text)]
        found = self._model.classify(parts, BATCH) if parts else ()
        allowed = [sum(np.exp(one.logprobs[name]) for name in self._allow) for one in found]
        return float(1 - min(allowed, default=1.0))

    def stops(self, texts: Sequence[str]) -> bool:
        """Says whether any of the texts is harmful; a text of spaces alone is not."""
        return self.harm([text for text in texts if text.strip()]) >= self._threshold

    def _parts(self, text: str) -> list[str]:
        """A text in parts that fit the classifier, each half in the one before."""
        tokenizer, size = self._model.tokenizer, max(8, self._model.config.context - 2)
        ids = tokenizer.encode(text).tolist()
        if len(ids) <= size:
            return [text]
        starts = range(0, len(ids) - size // 2, size // 2)
        return [tokenizer.decode(ids[start : start + size]) for start in starts]


async def require_harmless(moderator: Moderator, call: Call) -> None:
    """Refuses a call in whose texts there is harm.

    Raises:
      BadRequest: there is, with the code `content_filter`; nothing of the text is repeated.
    """
    texts = list(dict.fromkeys(call.texts))
    if await _stops(moderator, texts):
        param = {"chat": "messages", "completion": "prompt"}.get(call.kind, "input")
        raise BadRequest(
            "the request was stopped by this server's content filter.",
            param=param,
            code="content_filter",
        )


class _Held(NamedTuple):
    """What of an answer waits to be read, and the end of what was sent."""

    piece: Piece | None = None
    sent: str = ""
    written: int = 0
    """Tokens of the whole answer so far."""
    stopped: bool = False


async def filtered(
    moderator: Moderator, call: Call, batches: Batches, stop: Callable[[int], None]
) -> AsyncGenerator[list[tuple[int, Piece]], None]:
    """Yields the pieces of answers once they were read, in blocks; a harmful one ends its answer
    with the reason `content_filter`, and is not among them.

    Args:
      batches: from `answering.merged`.
      stop: called with the number of an answer that is to be written no further.
    """
    held: dict[int, _Held] = {}
    async for batch in batches:
        ready = []
        for number, piece in batch:
            one = held.get(number, _Held())
            if one.stopped:
                continue
            whole = piece if one.piece is None else joined_pieces(one.piece, piece)
            one = one._replace(piece=whole, written=one.written + len(piece.ids))
            if len(whole.ids) < BLOCK and whole.reason is None and whole.embedding is None:
                held[number] = one
                continue
            text = one.sent + whole.text
            if await _stops(moderator, [text]):
                stop(number)
                usage = whole.usage or _usage(call, number, one.written)
                ready.append((number, Piece(reason="content_filter", usage=usage)))
                held[number] = one._replace(piece=None, stopped=True)
            else:
                ready.append((number, whole))
                held[number] = one._replace(piece=None, sent=text[-BEFORE:])
        if ready or not batch:
            yield ready


async def _stops(moderator: Moderator, texts: Sequence[str]) -> bool:
    return await asyncio.get_running_loop().run_in_executor(moderator.reads, moderator.stops, texts)


def _usage(call: Call, number: int, written: int) -> Usage:
    """What an answer has cost that is written no further."""
    return Usage(prompt=len(call.asks[number].request.ids), cached=0, written=written)
