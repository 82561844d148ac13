"""`respond`: a model's responses to requests, the only place of an evaluation that runs a model.

Read `respond_and_count`. Each distinct request is computed once, and texts are read together; a
response does not depend on the order of the requests, nor on what else is asked.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.api import Model
from gptjax.core.config import require
from gptjax.evaluate.encoding import Encoded, Passage, encode_scores, prompts_of
from gptjax.evaluate.requests import Request, Response, Roll, Rolled, Score, Scored, Write
from gptjax.evaluate.rolling import encode_rolls
from gptjax.evaluate.scoring import Found, check_scores, score_passages
from gptjax.generate.decode import padded_size

ROW = 256
"""Positions that one row stands for."""
ANSWERS = 4
"""Answers that are written together for each row: a token costs little beside a row's."""


class Progress(NamedTuple):
    """How far an evaluation is."""

    done: int
    """Requests with a response."""
    total: int
    seconds: float
    """Since the beginning."""
    left: float
    """Seconds that the rest will take, as far as is known."""

    def __str__(self) -> str:
        return f"{self.done:,} of {self.total:,}, {self.left:.0f} s left"


class Cost(NamedTuple):
    """What the responses took."""

    requests: int
    distinct: int
    """Those that were computed."""
    truncated: int
    """Requests whose context lost its beginning."""
    read: int
    """Tokens that were read to score, padding not counted."""
    alone: int
    """Tokens that reading each request by itself would have taken."""
    positions: int
    """Positions that were computed to score, padding included."""
    written: int
    """Tokens of answers."""
    programs: int
    """Distinct shapes of what was read, each a compiled program."""
    seconds: float


def respond(
    model: Model,
    requests: Sequence[Request],
    *,
    rows: int = 4,
    progress: Callable[[Progress], None] | None = None,
) -> list[Response]:
    """Returns the response to each request, in their order.

    Where many answers are written on a CPU, `model.prepared()` writes faster.

    Args:
      rows: rows of 256 tokens that are computed together (fewer if they are longer, more if they
        are shorter), or four times as many answers. No response depends on it.
      progress: called after each batch.

    Raises:
      ConfigError: the model gives no probabilities or writes no text, or a request does not fit.
    """
    return respond_and_count(model, requests, rows=rows, progress=progress)[0]


def respond_and_count(
    model: Model,
    requests: Sequence[Request],
    *,
    rows: int = 4,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[list[Response], Cost]:
    """Like `respond`, with what it took."""
    require(rows >= 1, f"rows is {rows}; it needs at least 1.")
    began = time.monotonic()
    asked = _distinct(requests)
    firsts = list(asked.values())
    distinct = [requests[numbers[0]] for numbers in firsts]
    responses: list[Any] = [None] * len(requests)
    done, counted = 0, defaultdict(int)
    scores = [n for n, one in enumerate(distinct) if not isinstance(one, Write)]
    writes = [n for n, one in enumerate(distinct) if isinstance(one, Write)]
    share = len(scores) / max(len(distinct), 1)

    def took(numbers: Sequence[int], made: Sequence[Response], part: float) -> None:
        nonlocal done
        for n, response in zip(numbers, made, strict=True):
            for place in firsts[n]:
                responses[place] = response
                done += 1
        if progress is not None:
            seconds = time.monotonic() - began
            left = seconds * (1 - part) / part if part else 0.0
            progress(Progress(done, len(requests), seconds, left))

    for numbers, made, part in _scored(model, [distinct[n] for n in scores], rows, counted):
        took([scores[n] for n in numbers], made, part * share)
    for numbers, made, part in _written(model, [distinct[n] for n in writes], rows, counted):
        took([writes[n] for n in numbers], made, share + part * (1 - share))
    cost = Cost(
        requests=len(requests),
        distinct=len(distinct),
        truncated=sum(isinstance(one, Scored) and one.truncated for one in responses),
        read=counted["read"],
        alone=counted["alone"],
        positions=counted["positions"],
        written=counted["written"],
        programs=counted["programs"],
        seconds=time.monotonic() - began,
    )
    return responses, cost


def _distinct(requests: Sequence[Request]) -> dict[Hashable, list[int]]:
    """The places of each distinct request."""
    asked: dict[Hashable, list[int]] = {}
    for n, one in enumerate(requests):
        parts = (part if isinstance(part, Hashable) else tuple(part) for part in one)
        asked.setdefault((type(one), *parts), []).append(n)
    return asked


Turn = tuple[list[int], list[Response], float]
"""Requests that are done, by number, their responses, and the share of the work that is done."""


def _scored(
    model: Model, requests: Sequence[Score | Roll], rows: int, counted: dict[str, int]
) -> Iterator[Turn]:
    """Responses to requests for probabilities, as batches are read."""
    if not requests:
        return
    check_scores(model)
    encoded = _encoded(model, requests)
    passages: dict[Passage, list[int]] = {}
    for n, one in enumerate(encoded):
        for passage in one.passages:
            passages.setdefault(passage, []).append(n)
            counted["alone"] += len(passage.read) + len(passage.side)
    wanted, every = list(passages.values()), list(passages)
    missing = [len(one.passages) for one in encoded]
    parts: list[list[Found]] = [[] for _ in encoded]
    yield from _empty(requests, missing)
    total, batches = score_passages(model, every, rows * ROW)
    read, shapes = 0, set()
    for batch in batches:
        read += batch.positions
        shapes.add(batch.shape)
        counted["read"] += batch.tokens
        complete = []
        for found in batch.found:
            for n in wanted[found.passage]:
                parts[n].append(found)
                missing[n] -= 1
                complete += [n] if not missing[n] else []
        made = [_response(requests[n], encoded[n], parts[n]) for n in complete]
        yield complete, made, read / total
    counted["positions"] += total
    counted["programs"] += len(shapes)


def _encoded(model: Model, requests: Sequence[Score | Roll]) -> list[Encoded]:
    """The passages of each request."""
    scores = iter(encode_scores(model, [one for one in requests if isinstance(one, Score)]))
    texts = [one for one in requests if isinstance(one, Roll)]
    rolls = iter(encode_rolls(model, texts) if texts else ())
    return [next(scores if isinstance(one, Score) else rolls) for one in requests]


def _empty(requests: Sequence[Score | Roll], missing: Sequence[int]) -> Iterator[Turn]:
    """Responses to texts without a token."""
    empty = [n for n, count in enumerate(missing) if not count]
    if empty:
        yield empty, [Rolled(0.0, 0)] * len(empty), 0.0


def _response(one: Score | Roll, encoded: Encoded, found: Sequence[Found]) -> Scored | Rolled:
    logprobs = np.concatenate([part.logprobs for part in found]).astype(np.float64)
    logprob, tokens = float(logprobs.sum()), len(logprobs)
    require(
        not np.isnan(logprob),
        "the model gives NaN: its weights are damaged or its training diverged; evaluate an earlier"
        " checkpoint (--step N).",
    )
    if isinstance(one, Roll):
        return Rolled(logprob, tokens)
    return Scored(logprob, all(part.best.all() for part in found), tokens, encoded.truncated)


def _written(
    model: Model, requests: Sequence[Write], rows: int, counted: dict[str, int]
) -> Iterator[Turn]:
    """Answers, those that need equally much room together."""
    if not requests:
        return
    several = [one for one in requests if getattr(one.settings, "num_samples", 1) > 1]
    require(
        not several,
        "a request to write has one answer; ask again with another seed for more (num_samples 1).",
    )
    prompts, by_room = prompts_of(model, requests), defaultdict(list)
    for n, (prompt, one) in enumerate(zip(prompts, requests, strict=True)):
        most = len(prompt) + one.settings.new_tokens
        by_room[padded_size(most, model.config.context)].append((most, n))
    done = 0
    for room in sorted(by_room, reverse=True):
        numbers = [n for _, n in sorted(by_room[room], reverse=True)]
        settings = [requests[n].settings for n in numbers]
        answers = model.each([prompts[n] for n in numbers], settings, batch=ANSWERS * rows)
        for n, written in zip(numbers, answers, strict=True):
            context = requests[n].context
            counted["written"] += len(written.ids)
            done += 1
            prompt = context if isinstance(context, str) else written.prompt
            yield [n], [written._replace(prompt=prompt)], done / len(requests)
    counted["programs"] += len(by_room)
