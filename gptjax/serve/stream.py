"""What passes between the engine and those who ask it: an `Ask` goes in, `Piece`s come out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from gptjax.generate.request import Request


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
    ids: list[int] = []
    """New tokens, those of a stop text included. They may run ahead of `text`."""
    logprobs: list[float] = []
    """ln p of each of them under the model itself, before any transform."""
    alternatives: list[list[tuple[int, float]]] | None = None
    """At each of them the `top_logprobs` likeliest ids and their ln p, if asked for."""
    reason: str | None = None
    """Of the last piece: `stop`, `stop_string`, `length`, or `time`; as in
    `generate.Completion`."""
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
