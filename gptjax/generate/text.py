"""Text in, text out: whole completions, or a stream of valid UTF-8 pieces."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.batch import Job, Prefix, Room, batch_of, read_prefix, room_for
from gptjax.generate.decode import padded
from gptjax.generate.follow import Answer, follow, until_stop
from gptjax.generate.likelihood import token_logprobs
from gptjax.generate.request import Request, check_prefix, requests
from gptjax.generate.rerank import minimum_risk
from gptjax.generate.schedule import Call, Engine, Sealed
from gptjax.generate.settings import SampleConfig
from gptjax.generate.stops import Pieces
from gptjax.generate.strategies import Draft, best_answers
from gptjax.model import KVCache, ModelConfig
from gptjax.sharding.constrain import use_mesh
from gptjax.weights import choose_adapter


class Completion(NamedTuple):
    """One generated text."""

    prompt: str
    text: str
    ids: list[int]
    """Its tokens, those of a stop text included."""
    logprobs: list[float]
    """ln p of each token under the model itself."""
    reason: str
    """`stop`: the model ended the document, or wrote a stop token; `stop_string`: it wrote a stop
    text; `length`: the wanted length or the context was reached; `time`: the time was over; `none`:
    beam search found fewer answers than were asked for."""
    alternatives: list[list[tuple[int, float]]] | None = None
    """At each place the most likely ids and their ln p, if asked for."""
    prompt_logprobs: list[float] | None = None
    """ln p of each token of the prompt but the first, which follows nothing, if asked for."""
    score: float | None = None
    """By which answers were ordered: log-probability / length ^ length penalty of beams, the merit
    of the best of several."""
    end: tuple[int, float] | None = None
    """The stop token that ended it, which is none of its tokens, and its ln p; `None` where it
    ended otherwise, and for beams."""


Merit = Callable[[Sequence[Completion]], Sequence[float]]
"""Scores of the answers to one prompt, higher is better."""


def complete(*args, **kwargs) -> list[Completion]:
    """Continues every prompt: all that `completions` yields."""
    return list(completions(*args, **kwargs))


def completions(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: SampleConfig | Sequence[SampleConfig],
    *,
    prefix: Prefix | None = None,
    draft: Draft | None = None,
    task: Task = LanguageModel(),
    batch: int = 8,
    watch: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
    merit: Merit | None = None,
) -> Iterator[Completion]:
    """Continues every prompt. Completions come in the order of the prompts, several of one prompt
    one after the other, each as soon as it and those before it are done.

    Args:
      settings: one for all prompts, or one for each.
      prefix: from `shared_prefix`; the prompts continue it.
      draft: a smaller model that guesses for this one: faster, with the same distribution.
      task: what the model has been trained for: to continue a prompt, or to answer it.
      batch: the number of rows that are computed together. The texts do not depend on it.
      watch: gets the number of tokens written so far, every few tokens.
      mesh: the devices on which the parameters are placed.
      adapters: names of those that the parameters hold side by side; `use` of the settings chooses.
      merit: gives each of the `best_of` answers to a prompt a score, by which they are chosen
        instead of by their likeness; NaN is worst.

    Raises:
      ConfigError: what `request.requests` refuses, the model gives NaN, or there is a `merit` and
        nothing to choose from.
    """
    if not prompts:
        return
    asked = requests(config, tokenizer, prompts, settings, prefix and prefix.ids, task)
    _check_helpers(config, draft, prefix, asked)
    require(
        merit is None or all(one.settings.best_of for one in asked),
        "best_of is 0, so there is nothing to choose from; draw several answers (--best-of 8).",
    )
    call = Call(config, params, tokenizer, prefix, draft, mesh)
    call, asked = call.chosen(asked, adapters)
    if asked[0].settings.beams > 1:
        yield from _search(call, asked, batch, watch)
        return
    jobs = [Job(request, sample) for request in asked for sample in range(request.rows)]
    done: dict[int, Answer] = {}
    first, wanted = 0, iter(asked)
    request = next(wanted)
    for turn in follow(_writer(call, asked, batch), jobs, watch=watch):
        done |= {number: answer for number, answer in turn.items() if answer.reason}
        while request and all(n in done for n in range(first, first + request.rows)):
            found = [done.pop(first + n) for n in range(request.rows)]
            yield from _best(call, request, found, merit)
            first, request = first + request.rows, next(wanted, None)


def stream_text(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: SampleConfig,
    *,
    prefix: Prefix | None = None,
    draft: Draft | None = None,
    task: Task = LanguageModel(),
    watch: Callable[[int], None] | None = None,
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
) -> Iterator[str | Completion]:
    """Yields pieces of the text as they are written, each valid UTF-8, and at the end the whole
    `Completion`.

    No part of a stop text is ever given. What can't be used is refused at once, before the first
    piece is asked for.

    Raises:
      ConfigError: what `complete` refuses, or settings that need more than one answer.
    """
    asked = requests(config, tokenizer, [prompt], settings, prefix and prefix.ids, task)
    _check_helpers(config, draft, prefix, asked)
    require(
        asked[0].rows == 1,
        "beams, several samples and best_of can't be streamed; omit them (--beams 1 --num-samples 1"
        " --best-of 0), or use --json.",
    )
    call = Call(config, params, tokenizer, prefix, draft, mesh)
    call, asked = call.chosen(asked, adapters)
    return _stream(call, asked[0], _writer(call, asked, 1), watch)


def _stream(
    call: Call, request: Request, writer: Engine | Sealed, watch: Callable[[int], None] | None
) -> Iterator[str | Completion]:
    pieces = Pieces(request.stop_texts)
    for turn in follow(writer, [Job(request)], watch=watch, closely=True):
        answer = turn[0]
        if piece := pieces(answer.text, answer.reason is not None):
            yield piece
    yield _completion(call, request, answer)


async def astream_text(*args, **kwargs) -> AsyncIterator[str | Completion]:
    """Like `stream_text`, for `async for`: the event loop is free while the model writes."""
    pieces = await asyncio.to_thread(stream_text, *args, **kwargs)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def shared_prefix(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    before: Prefix | None = None,
    task: Task = LanguageModel(),
    *,
    kv_cache: KVCache = "full",
    mesh: Mesh | None = None,
) -> Prefix:
    """Reads a text (or ids) that many prompts begin with, once. It is tokenized by itself: no token
    spans its end and a prompt's beginning.

    Args:
      before: a prefix that this one continues, as a conversation does; it is used up.
      kv_cache: as in the settings of the prompts that continue it.

    Raises:
      ConfigError: it fills the context, or is empty.
    """
    check_prefix(task, tokenizer)
    (one,) = requests(config, tokenizer, [text], SampleConfig(), before and before.ids, task)
    with use_mesh(mesh):
        return read_prefix(config, params, one.ids, before, kv_cache)


def _check_helpers(
    config: ModelConfig, draft: Draft | None, prefix: Prefix | None, asked: list[Request]
) -> None:
    """Refuses a prefix or a draft model that does not fit."""
    kept = asked[0].settings.kv_cache
    require(
        prefix is None or prefix.kv_cache in (None, kept),
        f"kv_cache is {kept} and the prefix was read with {prefix and prefix.kv_cache}; read it"
        f" with the same (prefix(text, kv_cache={kept!r})).",
    )
    if draft is None:
        return
    others = asked[0].strategies
    require(
        not others and prefix is None,
        f"a draft model can't be joined with {' and '.join(others) or 'a shared prefix'}; omit one"
        " of them (--draft).",
    )
    have, need = draft.config, config
    require(
        have.vocabulary == need.vocabulary and have.context >= need.context,
        f"the draft model has a vocabulary of {have.vocabulary} and a context of {have.context},"
        f" the model {need.vocabulary} and {need.context}; a draft needs the same vocabulary and at"
        " least the context.",
    )


# --- from rows to completions


def _writer(call: Call, asked: Sequence[Request], batch: int) -> Engine | Sealed:
    """The rows that write these requests, at most `batch` of them where that is possible."""
    room = room_for(call.config, call.tokenizer, asked, call.prefix)
    if call.draft is not None or any(one.strategies for one in asked):
        return Sealed(call, room, prompts=_prompts(asked, batch), each=asked[0].rows)
    jobs = sum(one.rows for one in asked)
    rows = min(batch, 1 << (jobs - 1).bit_length())
    return Engine(call, room, rows=rows, order=asked[0].settings.order)


def _prompts(asked: Sequence[Request], batch: int) -> int:
    """The number of prompts in a batch: as many as make `batch` rows, or the power of two that
    holds all of them."""
    most = max(1, batch // asked[0].rows)
    return most if len(asked) > most else 1 << (len(asked) - 1).bit_length()


def _best(
    call: Call, request: Request, found: list[Answer], merit: Merit | None
) -> list[Completion]:
    """The completions of one request; with `best_of` those of the highest merit, or those that are
    most like all others."""
    done = [_completion(call, request, answer) for answer in found]
    if not request.settings.best_of:
        return done
    if merit is None:
        order = minimum_risk([one.text for one in done])
    else:
        scores = np.asarray(merit(done), np.float64)
        done = [one._replace(score=float(s)) for one, s in zip(done, scores, strict=True)]
        order = np.argsort(-scores, kind="stable").tolist()  # NaN comes last
    return [done[i] for i in order[: request.settings.num_samples]]


def _search(
    call: Call, asked: list[Request], batch: int, watch: Callable[[int], None] | None
) -> Iterator[Completion]:
    """Beam search, batch by batch."""
    size, written = _prompts(asked, batch), 0
    room = room_for(call.config, call.tokenizer, asked, call.prefix)
    for i in range(0, len(asked), size):
        found = _searched(call, asked[i : i + size], room, size)
        for request, beams in zip(asked[i : i + size], found, strict=True):
            written += sum(len(answer.ids) for answer in beams)
            if watch is not None:
                watch(written)
            yield from (_completion(call, request, answer) for answer in beams)


def _searched(call: Call, asked: list[Request], room: Room, size: int) -> list[list[Answer]]:
    """The best answers to each request of one batch."""
    batch = batch_of(call.config, call.tokenizer, asked, room, size, call.before)
    with use_mesh(call.mesh):
        found = best_answers(call.config, call.params, batch, call.prefix)

    def answer(p: int, n: int) -> Answer:
        if not found.there[p, n]:
            return Answer(ids=[], logprobs=[], text=b"", reason="none")
        ids = found.ids[p, n, : found.lengths[p, n]].tolist()
        kept, text, ends = until_stop(call.tokenizer, asked[p], ids)
        return Answer(
            ids=kept,
            logprobs=found.logprobs[p, n, : len(kept)].tolist(),
            text=text,
            reason="stop_string" if ends else "stop" if found.stopped[p, n] else "length",
            score=float(found.scores[p, n]),
        )

    return [[answer(p, n) for n in range(one.settings.num_samples)] for p, one in enumerate(asked)]


def _completion(call: Call, request: Request, answer: Answer) -> Completion:
    if any(math.isnan(p) for p in answer.logprobs):
        raise ConfigError(
            "the model gives NaN: its weights are damaged or its training diverged; sample an"
            " earlier checkpoint (--step N)."
        )
    before = _prompt_logprobs(call, request) if request.settings.prompt_logprobs else None
    return Completion(
        prompt=request.prompt,
        text=answer.text.decode("utf-8", errors="replace"),
        ids=answer.ids,
        logprobs=answer.logprobs,
        reason=answer.reason,
        alternatives=answer.alternatives,
        prompt_logprobs=before,
        score=answer.score,
        end=answer.end,
    )


def _prompt_logprobs(call: Call, request: Request) -> list[float]:
    """ln p of each token of the prompt but the first."""
    ids, params = [*call.before, *request.ids], call.params
    if request.adapter is not None:
        params = choose_adapter(params, request.adapter)
    with use_mesh(call.mesh):
        logprobs = _token_logprobs(
            call.config,
            params,
            padded([ids], call.config.context),
            np.int32([len(ids)]),
            np.int32(call.tokenizer.vocab_size),
        )
    return np.asarray(logprobs)[0, 1 : len(ids)].tolist()


_token_logprobs = jax.jit(token_logprobs, static_argnames="config")
