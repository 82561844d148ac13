"""Text in, text out: prompts become ids, generated ids become text, whole or as a stream of valid
UTF-8 pieces.

`complete` and `stream_text` are the doors; `_follow` is what both do: let a batch write some tokens
at a time, and see where rows end.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Params
from gptjax.core.config import ConfigError, require
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.decode import Generated, padded, written
from gptjax.generate.likelihood import token_logprobs
from gptjax.generate.request import UNSHARED, Ask, Pack, answers_each, ask, pack, together
from gptjax.generate.rerank import minimum_risk
from gptjax.generate.settings import SampleConfig
from gptjax.generate.stops import Pieces, find_stop
from gptjax.generate.strategies import Draft, Prefix, best_answers, open_writer, read_prefix
from gptjax.model import ModelConfig
from gptjax.sharding.mesh import to_host

CHUNK = 8
"""Tokens that a batch writes before the host looks at them, where it has to."""


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
    """By which beams are ordered: log-probability / length ^ length penalty."""


def complete(*args: Any, **kwargs: Any) -> list[Completion]:
    """Continues every prompt: all that `completions` gives."""
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
    task: Task = LanguageModel(),  # noqa: B008 it is frozen
    batch: int = 8,
    watch: Callable[[int], None] | None = None,
) -> Iterator[Completion]:
    """Continues every prompt, batch by batch, in the order of the prompts; several answers to a
    prompt come one after the other.

    Args:
      settings: one for all prompts, or one for each.
      prefix: from `shared_prefix`; the prompts go on from it.
      draft: a smaller model that guesses for this one: faster, and the same law.
      task: what the model has learned: to go on with a prompt, or to answer it.
      batch: rows that are computed together. The texts do not depend on it.
      watch: is told every few tokens how many there are.

    Raises:
      ConfigError: what `request.ask` refuses, or the model gives NaN.
    """
    if not prompts:
        return
    asks = ask(config, tokenizer, prompts, settings, prefix and prefix.ids, task)
    _check_beside(config, draft, prefix, asks)
    size, before = together(asks, batch), 0
    for i in range(0, len(asks), size):
        packed = pack(config, tokenizer, asks[i : i + size], size, prefix and prefix.ids)
        done = _answer(
            config,
            params,
            tokenizer,
            packed,
            prefix,
            draft,
            watch and (lambda count, before=before: watch(before + count)),
        )
        before += sum(len(one.ids) for one in done)
        yield from done


def stream_text(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: SampleConfig,
    *,
    prefix: Prefix | None = None,
    draft: Draft | None = None,
    task: Task = LanguageModel(),  # noqa: B008 it is frozen
    watch: Callable[[int], None] | None = None,
) -> Iterator[str | Completion]:
    """Gives pieces of the text as they are written, each valid UTF-8, and at the end the whole
    `Completion`.

    Nothing that belongs to a stop text is ever given. What can't be used is refused at once, before
    the first piece is asked for.

    Raises:
      ConfigError: what `complete` refuses, or settings that need more than one answer.
    """
    asks = ask(config, tokenizer, [prompt], settings, prefix and prefix.ids, task)
    _check_beside(config, draft, prefix, asks)
    only = answers_each(asks[0].settings) == 1
    require(
        only,
        "beams, several samples and best_of can't be streamed; leave them away (--beams 1"
        " --num-samples 1 --best-of 0), or use --json.",
    )
    return _stream(
        config,
        params,
        tokenizer,
        pack(config, tokenizer, asks, 1, prefix and prefix.ids),
        prefix,
        draft,
        watch or (lambda _: None),
    )


def _stream(
    config, params, tokenizer, packed: Pack, prefix, draft, watch
) -> Iterator[str | Completion]:
    pieces = Pieces(_stop_texts(packed.asks[0]))
    for rows in _follow(config, params, tokenizer, packed, prefix, draft, watch):
        if piece := pieces(rows[0].text, rows[0].reason is not None):
            yield piece
    yield _completions(config, params, packed, prefix, rows)[0]


async def astream_text(*args: Any, **kwargs: Any) -> AsyncIterator[str | Completion]:
    """Like `stream_text`, for `async for`: the event loop goes on while the model writes."""
    pieces = await asyncio.to_thread(stream_text, *args, **kwargs)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def shared_prefix(
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    before: Prefix | None = None,
    task: Task = LanguageModel(),  # noqa: B008 it is frozen
    *,
    int8_cache: bool = False,
) -> Prefix:
    """Reads a text (or ids) that many prompts begin with, once. Its tokens are its own: none
    reaches from it into a prompt.

    Args:
      before: a prefix that this one goes on from, as a conversation does; it is used up.
      int8_cache: as in the settings of the prompts that go on from it.

    Raises:
      ConfigError: it fills the context, or is nothing at all.
    """
    require(not task.answers, UNSHARED)
    (one,) = ask(config, tokenizer, [text], SampleConfig(), before and before.ids, task)
    return read_prefix(config, params, one.ids, before, int8_cache)


def _check_beside(
    config: ModelConfig, draft: Draft | None, prefix: Prefix | None, asks: list[Ask]
) -> None:
    kept = asks[0].settings.int8_cache
    same = prefix is None or prefix.int8 == kept
    require(
        same,
        f"int8_cache is {kept} and the prefix was read {'without' if kept else 'with'} it; read it"
        f" with the same (prefix(text, int8_cache={kept})).",
    )
    if draft is None:
        return
    others = asks[0].settings.strategies
    require(
        not others and prefix is None,
        f"a draft model can't be joined with {' and '.join(others) or 'a shared prefix'}; leave one"
        " away (--draft).",
    )
    have, need = draft.config, config
    fits = (
        f"the draft model has a vocabulary of {have.vocabulary} and a context of {have.context},"
        f" the model {need.vocabulary} and {need.context}"
    )
    require(
        have.vocabulary == need.vocabulary and have.context >= need.context,
        f"{fits}; a draft needs the same vocabulary and at least the context.",
    )


# --- the way of a batch
# ------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """An answer so far."""

    ids: list[int]
    logprobs: list[float]
    text: bytes
    """Without a stop text."""
    reason: str | None
    """None while it is written."""
    alternatives: list[list[tuple[int, float]]] | None = None
    score: float | None = None


def _answer(config, params, tokenizer, packed: Pack, prefix, draft, watch) -> list[Completion]:
    s = packed.settings
    if s.beams > 1:
        rows = _search(config, params, tokenizer, packed, prefix)
        if watch is not None:
            watch(sum(len(row.ids) for row in rows))
        return _completions(config, params, packed, prefix, rows)
    *_, rows = _follow(config, params, tokenizer, packed, prefix, draft, watch)
    done = _completions(config, params, packed, prefix, rows)
    groups = [done[i : i + s.best_of] for i in range(0, len(done), s.best_of)] if s.best_of else []
    return (
        [
            group[i]
            for group in groups
            for i in minimum_risk([c.text for c in group])[: s.num_samples]
        ]
        if groups
        else done
    )


def _follow(config, params, tokenizer, packed: Pack, prefix, draft, watch) -> Iterator[list[_Row]]:
    """Lets a batch write: the first token, then `CHUNK` tokens at a time if the host has to look
    on, else all of them."""
    asks = [packed.asks[i] for i in packed.prompt[: packed.real * answers_each(packed.settings)]]
    begun, most, late = time.monotonic(), int(packed.limits.max()), set()
    looks = watch is not None or any(
        one.settings.stop or one.settings.max_seconds is not None for one in asks
    )
    writer = open_writer(config, params, packed, prefix, draft)
    for until in (*range(1, most, CHUNK), most) if looks else (most,):
        writer = writer.until(until)
        out, over = written(writer.text, most), to_host(writer.text.finished)
        passed = time.monotonic() - begun
        late |= {
            i
            for i, one in enumerate(asks)
            if not over[i] and passed > (one.settings.max_seconds or math.inf)
        }
        rows = [
            _row(tokenizer, one, out, i, "time" if i in late else "length" if over[i] else None)
            for i, one in enumerate(asks)
        ]
        if watch is not None:
            watch(sum(len(row.ids) for row in rows))
        yield rows
        if all(row.reason for row in rows):
            return
        writer = writer.halt(
            over
            | np.asarray([i < len(rows) and rows[i].reason is not None for i in range(len(over))])
        )


def _row(tokenizer: Tokenizer, one: Ask, out: Generated, i: int, otherwise: str | None) -> _Row:
    """Row i, up to a stop text if there is one; `otherwise` is the reason where nothing stopped
    it."""
    length, top = int(out.lengths[i]), one.settings.top_logprobs
    kept, text, stopped = _until_stop(tokenizer, one, out.ids[i, :length].tolist())
    reason = "stop_string" if stopped else "stop" if out.finished[i] else otherwise
    other = None
    if top:
        places = zip(
            *(leaf[i, : len(kept), :top].tolist() for leaf in out.alternatives), strict=True
        )
        other = [list(zip(ids, logps, strict=True)) for ids, logps in places]
    return _Row(kept, out.logprobs[i, : len(kept)].tolist(), text, reason, other)


def _search(config, params, tokenizer, packed: Pack, prefix) -> list[_Row]:
    found, rows = best_answers(config, params, packed, prefix), []
    for p, one in enumerate(packed.asks[: packed.real]):
        for n in range(one.settings.num_samples):
            if not found.there[p, n]:
                rows.append(_Row([], [], b"", "none"))
                continue
            kept, text, stopped = _until_stop(
                tokenizer, one, found.ids[p, n, : found.lengths[p, n]].tolist()
            )
            reason = "stop_string" if stopped else "stop" if found.stopped[p, n] else "length"
            rows.append(
                _Row(
                    kept,
                    found.logprobs[p, n, : len(kept)].tolist(),
                    text,
                    reason,
                    score=float(found.scores[p, n]),
                )
            )
    return rows


def _until_stop(tokenizer: Tokenizer, one: Ask, ids: list[int]) -> tuple[list[int], bytes, bool]:
    """The ids up to the one that completes a stop text, the bytes before that text, and whether
    there is one."""
    text = tokenizer.token_bytes(ids)
    # Some tokenizers put a space before each text: it is no part of an answer to nothing.
    extra = (
        one.prompt == ""
        and one.ids
        and text[:1] == b" "
        and tokenizer.token_bytes(tokenizer.encode("a"))[:1] == b" "
    )
    text = text[1:] if extra else text
    found = find_stop(text, _stop_texts(one))
    if found is None:
        return ids, text, False
    sizes = np.cumsum([len(tokenizer.token_bytes([i])) for i in ids]) - bool(extra)
    return ids[: int(np.searchsorted(sizes, found[1])) + 1], text[: found[0]], True


def _stop_texts(one: Ask) -> list[bytes]:
    return [stop.encode() for stop in one.settings.stop]


def _completions(
    config, params, packed: Pack, prefix: Prefix | None, rows: list[_Row]
) -> list[Completion]:
    if any(math.isnan(p) for row in rows for p in row.logprobs):
        raise ConfigError(
            "the model gives NaN: its weights are damaged or its training diverged; sample an"
            " earlier checkpoint (--step N)."
        )
    asks = [one for one in packed.asks[: packed.real] for _ in range(len(rows) // packed.real)]
    before = {}
    if any(one.settings.prompt_logprobs for one in asks):
        whole = [[*(prefix.ids if prefix else ()), *one.ids] for one in packed.asks]
        lengths = np.asarray(list(map(len, whole)), np.int32)
        found = np.asarray(
            _token_logprobs(
                config, params, padded(whole, config.context), lengths, packed.vocabulary
            )
        )
        before = {
            i: (
                found[
                    i // (len(rows) // packed.real), 1 : lengths[i // (len(rows) // packed.real)]
                ].tolist()
            )
            for i in range(len(rows))
        }
    return [
        Completion(
            one.prompt,
            row.text.decode("utf-8", errors="replace"),
            row.ids,
            row.logprobs,
            row.reason,
            row.alternatives,
            before.get(i) if one.settings.prompt_logprobs else None,
            row.score,
        )
        for i, (one, row) in enumerate(zip(asks, rows, strict=True))
    ]


_token_logprobs = jax.jit(token_logprobs, static_argnames="config")
