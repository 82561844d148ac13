"""What passes between the engine and those who ask it: an `Ask` goes in, `Piece`s come out of a
`Stream`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from gptjax.generate.request import Request


class Shown(NamedTuple):
    """Pictures that a prompt is about."""

    pixels: np.ndarray
    """uint8 [I H W 3], as the model reads them."""
    places: np.ndarray
    """int32 [I·Q]: which tokens of the prompt stand for their embeddings."""
    digest: bytes
    """sha256 of the pixels."""


class Ask(NamedTuple):
    """One answer that a client wants; n answers to one prompt are n of these."""

    request: Request
    """From `generate.request.requests`: ids and settings, already checked against the model."""
    sample: int = 0
    """Number of the answer among those to the same prompt; answers with different numbers are
    drawn with different keys."""
    wants: Literal["answer", "embedding"] = "answer"
    tenant: str = ""
    """Whose request it is, by the name of the key; tenants take turns."""
    salt: bytes = b""
    """Requests of different salts share no prefixes."""
    shown: Shown | None = None
    """Of models that read pictures."""
    seconds: float | None = None
    """Time from submission after which the request ends, waiting included, with the reason
    `time`."""


class Usage(NamedTuple):
    """Tokens that a request cost."""

    prompt: int
    """Of the prompt, those from the prefix cache included."""
    cached: int
    """Of the prompt, those whose keys and values were taken from the prefix cache."""
    written: int
    """Of the answer, a stop token included."""


class PromptScores(NamedTuple):
    """Log-probabilities of a prompt of n tokens under the model, one entry for each token."""

    logprobs: list[float | None]
    """The first is `None`, for it follows nothing."""
    alternatives: list[list[tuple[int, float]] | None]
    """The `top_logprobs` likeliest ids at each place with their ln p, best first. The same float
    stands here and in `logprobs` for the same token."""


class Piece(NamedTuple):
    """What an answer gained since the piece before."""

    text: str = ""
    """Whole characters, and nothing that may belong to a stop text. All pieces joined are the
    text of the answer."""
    ids: Sequence[int] = ()
    """New tokens, those of a stop text included. They may run ahead of `text`."""
    logprobs: Sequence[float] = ()
    """ln p of each of them under the model itself, before any transform."""
    alternatives: list[list[tuple[int, float]]] | None = None
    """At each of them the `top_logprobs` likeliest ids and their ln p, if asked for."""
    reason: str | None = None
    """Of the last piece: `stop`, `stop_string`, `length`, or `time`, as in `generate.Completion`;
    `content_filter` where moderation ended it."""
    end: tuple[int, float] | None = None
    """Of the last piece: the stop token that ended the answer and its ln p, if one did."""
    usage: Usage | None = None
    """Of the last piece."""
    prompt: PromptScores | None = None
    """Of the first piece, if `prompt_logprobs` is set."""
    embedding: np.ndarray | None = None
    """Of the only piece, if an embedding was asked for: float32 [D], of length 1."""


class Busy(Exception):
    """Too many requests, or too many prompt tokens, are waiting; nothing was kept of this one."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it may be worth trying again, 1 to 120."""


class Unwell(Exception):
    """The engine has failed, or is shutting down, and takes no requests."""


class Failed(Exception):
    """This request failed inside the engine; others go on."""


# --- from the engine's thread to any other


class Stream:
    """The pieces of one answer, for one reader, in a thread (`for`) or a coroutine (`async for`).

    Pieces that nobody takes are joined, so a slow reader costs the memory of one answer and nobody
    else's time.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._changed = threading.Condition()
        self._piece: Piece | None = None
        self._error: Exception | None = None
        self._over = False
        self._wake: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Ends the answer; its row is free within one step. The iteration ends without a last
        piece. Again, or after the end, it does nothing."""
        self._end()
        self._cancel()

    def __iter__(self) -> Iterator[Piece]:
        """Yields the pieces; the last has a `reason`.

        Raises:
          Failed: this request failed.
          Unwell: the engine failed or was closed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._piece or self._over)
                piece, over = self._taken()
            if piece is not None:
                yield piece
            if over:
                return

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Like `for`, without holding up the event loop."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(woken.set)
        while True:
            with self._changed:
                piece, over = self._taken()
            if piece is not None:
                yield piece
            if over:
                return
            if piece is None:
                await woken.wait()
            woken.clear()

    def _taken(self) -> tuple[Piece | None, bool]:
        """What there is, and whether it is all."""
        piece, self._piece = self._piece, None
        if piece is None and self._error is not None:
            raise self._error
        return piece, self._over and self._error is None

    def put(self, piece: Piece) -> None:
        """Adds a piece; one with a reason is the last."""
        with self._changed:
            if not self._over:
                self._piece = piece if self._piece is None else joined_pieces(self._piece, piece)
                self._over = piece.reason is not None
            self._changed.notify_all()
        self._woken()

    def fail(self, error: Exception) -> None:
        """Ends the pieces with an error."""
        with self._changed:
            if not self._over:
                self._error, self._over = error, True
            self._changed.notify_all()
        self._woken()

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._woken()

    def _woken(self) -> None:
        if self._wake is not None:
            try:
                self._wake()
            except RuntimeError:  # the reader's event loop is closed: nobody waits any more
                self._wake = None


def joined_pieces(first: Piece, second: Piece) -> Piece:
    """Two pieces of an answer that follow each other as one."""
    alternatives = second.alternatives
    if first.alternatives is not None:
        alternatives = [*first.alternatives, *(second.alternatives or [])]
    return second._replace(
        text=first.text + second.text,
        ids=[*first.ids, *second.ids],
        logprobs=[*first.logprobs, *second.logprobs],
        alternatives=alternatives,
        prompt=first.prompt or second.prompt,
        embedding=first.embedding if second.embedding is None else second.embedding,
    )
