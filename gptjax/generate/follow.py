"""Lets jobs write and takes their answers to the host: where a text ends, and why."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.batch import Job
from gptjax.generate.decode import Text
from gptjax.generate.request import Request
from gptjax.generate.schedule import Engine, Sealed
from gptjax.generate.stops import find_stop
from gptjax.sharding.mesh import to_host

LOOK_EVERY = 8
"""Tokens that rows write before the host looks at them, where it has to."""
TO_THE_END = 1 << 30
"""More tokens than any answer has."""


class Answer(NamedTuple):
    """An answer so far."""

    ids: list[int]
    logprobs: list[float]
    text: bytes
    """Without a stop text."""
    reason: str | None
    """As in `Completion`; `None` while it is written."""
    alternatives: list[list[tuple[int, float]]] | None = None
    score: float | None = None
    end: tuple[int, float] | None = None
    """The stop token that it ended with, and its ln p."""


class _Seat(NamedTuple):
    """The job that writes in a row."""

    number: int
    """The job's number."""
    job: Job
    since: float
    """When it entered, on the monotonic clock."""

    @property
    def late(self) -> bool:
        """Its time is over."""
        seconds = self.job.request.settings.max_seconds
        return time.monotonic() - self.since > (math.inf if seconds is None else seconds)


def follow(
    writer: Engine | Sealed,
    jobs: Sequence[Job],
    *,
    watch: Callable[[int], None] | None = None,
    closely: bool = False,
) -> Iterator[dict[int, Answer]]:
    """Writes all jobs; yields the answers of the rows that write, by job number, after every look.
    An answer that has a reason is whole, and comes once.

    The host looks every few tokens where it has to: for stop texts, time limits, `watch`, or if it
    is to follow `closely`. Otherwise rows write until one ends whose place another job waits for.

    Args:
      watch: gets the number of tokens written so far.
    """
    waiting, seats = deque(enumerate(jobs)), dict[int, _Seat]()
    settings = [job.request.settings for job in jobs]
    looks = closely or watch is not None
    looks |= any(s.stop or s.max_seconds is not None for s in settings)
    counts: dict[int, int] = {}
    while waiting or seats:
        entering: dict[int, Job] = {}
        if writer.joins or not seats:
            for row in (row for row in range(writer.rows) if waiting and row not in seats):
                number, job = waiting.popleft()
                seats[row], entering[row] = _Seat(number, job, time.monotonic()), job
        if entering:
            writer = writer.admit(entering)
        steps = TO_THE_END if not looks else 1 if entering else LOOK_EVERY
        writer = writer.advance(steps, pause=bool(waiting))
        asked = {row: seat.job.request for row, seat in seats.items()}
        answers = answers_of(writer.text, writer.call.tokenizer, asked)
        for row, seat in seats.items():
            if seat.late and answers[row].reason is None:
                answers[row] = answers[row]._replace(reason="time")
        if watch is not None:
            counts |= {seats[row].number: len(answer.ids) for row, answer in answers.items()}
            watch(sum(counts.values()))
        yield {seats[row].number: answer for row, answer in answers.items()}
        over = [row for row, answer in answers.items() if answer.reason is not None]
        seats = {row: seat for row, seat in seats.items() if row not in over}
        if looks and over and seats:
            writer = writer.evict(np.isin(np.arange(writer.rows), over))


def answers_of(text: Text, tokenizer: Tokenizer, asked: Mapping[int, Request]) -> dict[int, Answer]:
    """What rows have written so far, on the host.

    Args:
      asked: row → its request.
    """
    ids, logprobs, stopped, finished = (
        to_host(leaf) for leaf in (text.history.ids, text.logprobs, text.stopped, text.finished)
    )
    prompt, length = to_host(text.history.prompt), to_host(text.history.length)
    wide = any(request.settings.top_logprobs for request in asked.values())
    places = [to_host(leaf) for leaf in text.alternatives] if wide else None
    answers = {}
    for row, request in asked.items():
        span = slice(int(prompt[row]), int(length[row]))
        kept, shown, ends = until_stop(tokenizer, request, ids[row, span].tolist())
        alternatives = None
        if top := request.settings.top_logprobs:
            best = (leaf[row, span][: len(kept), :top].tolist() for leaf in places)
            alternatives = [list(zip(*place, strict=True)) for place in zip(*best, strict=True)]
        otherwise = "length" if finished[row] else None
        reason = "stop_string" if ends else "stop" if stopped[row] else otherwise
        last = int(length[row])
        answers[row] = Answer(
            ids=kept,
            logprobs=logprobs[row, span][: len(kept)].tolist(),
            text=shown,
            reason=reason,
            alternatives=alternatives,
            end=(int(ids[row, last]), float(logprobs[row, last])) if reason == "stop" else None,
        )
    return answers


def until_stop(
    tokenizer: Tokenizer, request: Request, ids: list[int]
) -> tuple[list[int], bytes, bool]:
    """The ids up to the one that completes a stop text, the bytes before that text, and whether
    there is one."""
    text = tokenizer.token_bytes(ids)
    # Some tokenizers put a space before each text: it is no part of an answer to an empty prompt.
    extra = (
        request.prompt == ""
        and request.ids
        and text[:1] == b" "
        and tokenizer.token_bytes(tokenizer.encode("a"))[:1] == b" "
    )
    text = text[1:] if extra else text
    stop = find_stop(text, request.stop_texts)
    if stop is None:
        return ids, text, False
    begin, end = stop
    sizes = np.cumsum([len(tokenizer.token_bytes([i])) for i in ids]) - bool(extra)
    return ids[: int(np.searchsorted(sizes, end)) + 1], text[:begin], True
