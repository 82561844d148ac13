"""What the engine knows of a request while it is read and written, and what of it goes to the
client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.generate import Completion
from gptjax.generate.follow import Answer
from gptjax.generate.request import Request
from gptjax.generate.settings import GenerateConfig
from gptjax.generate.stops import Pieces
from gptjax.serve.stream import Ask, Piece, PromptScores, Stream, Usage


@dataclass
class Job:
    """One answer on its way."""

    ask: Ask
    stream: Stream
    pieces: Pieces
    since: float
    """When it was submitted."""
    limit: int = 0
    """Most tokens that it can write."""
    automaton: Any = None
    """Its constraint, compiled."""
    keys: list[bytes] = field(default_factory=list)
    """Those of the whole parts of its prompt in the prefix cache; none if that is not used."""
    cached: int = 0
    sent: int = 0
    """Tokens that the client has."""
    scored: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    """Of each part of the prompt: ln p of the next tokens, likeliest ids, their ln p."""
    seen: np.ndarray | None = None
    """Embeddings of the pictures that it shows [I·Q D]."""
    pooled: np.ndarray | float = 0.0
    """Sum of the hidden states so far, where an embedding is asked for."""

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        return self.ask.request.ids

    @property
    def scores(self) -> bool:
        """Whether the prompt's log-probabilities are asked for."""
        return self.ask.wants == "answer" and self.ask.request.settings.prompt_logprobs

    @property
    def embeds(self) -> bool:
        """Whether an embedding is asked for."""
        return self.ask.wants == "embedding"

    @property
    def to_read(self) -> int:
        """Tokens to read before the first is written: all but the last, or all for an
        embedding."""
        return len(self.ids) - (not self.embeds)

    def usage(self, stop_token: bool = False) -> Usage:
        """What it cost so far."""
        return Usage(prompt=len(self.ids), cached=self.cached, written=self.sent + stop_token)

    def prompt_scores(self) -> PromptScores | None:
        """The scores of the prompt, if they are asked for."""
        if not self.scores:
            return None
        top = self.ask.request.settings.top_logprobs
        logprobs: list[float | None] = [None]
        alternatives: list[list[tuple[int, float]] | None] = [None]
        for own, names, best in self.scored:
            logprobs += own.tolist()
            alternatives += [
                list(zip(*pair, strict=True))
                for pair in zip(names[:, :top].tolist(), best[:, :top].tolist(), strict=True)
            ]
        return PromptScores(logprobs, alternatives)

    def embedding(self) -> np.ndarray:
        """The mean of the hidden states, of length 1."""
        mean = np.asarray(self.pooled, np.float32) / max(1, len(self.ids))
        return mean / max(float(np.linalg.norm(mean)), 1e-12)


def spare_job(adapter: int | None) -> Job:
    """A job that writes nothing, for rows that programs are tried on."""
    request = Request("", [0], GenerateConfig(), adapter=adapter)
    return Job(Ask(request), Stream(lambda: None), Pieces([]), since=0.0)


def next_piece(job: Job, answer: Answer) -> Piece | None:
    """What the client gets after a write, if there is anything.

    Args:
      answer: everything that was written so far.
    """
    piece = job.pieces(answer.text, answer.reason is not None)
    new, first = slice(job.sent, len(answer.ids)), job.sent == 0
    job.sent = len(answer.ids)
    if not piece and not answer.ids[new] and answer.reason is None:
        return None
    return Piece(
        text=piece,
        ids=answer.ids[new],
        logprobs=answer.logprobs[new],
        alternatives=answer.alternatives and answer.alternatives[new],
        reason=answer.reason,
        end=answer.end,
        usage=job.usage(answer.end is not None) if answer.reason else None,
        prompt=job.prompt_scores() if first else None,
    )


def completed(ask: Ask, stream: Stream) -> Completion:
    """The whole answer, once it is there.

    Raises:
      ConfigError: somebody cancelled it.
    """
    whole = Piece()
    texts, ids, logprobs, alternatives, prompt = [], [], [], [], None
    for whole in stream:
        texts.append(whole.text)
        ids += whole.ids
        logprobs += whole.logprobs
        alternatives += whole.alternatives or []
        prompt = prompt or whole.prompt
    if whole.reason is None:
        raise ConfigError("the request was cancelled.")
    return Completion(
        prompt=ask.request.prompt,
        text="".join(texts),
        ids=ids,
        logprobs=logprobs,
        reason=whole.reason,
        alternatives=alternatives if ask.request.settings.top_logprobs else None,
        prompt_logprobs=[p for p in prompt.logprobs[1:] if p is not None] if prompt else None,
        end=whole.end,
    )
