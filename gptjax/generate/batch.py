"""Requests become arrays: prompts to be read, and one row of columns for each answer to write.

`Room` holds the sizes that an engine is compiled for. Everything else is an array, so that other
prompts and settings compile nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Keys, Params
from gptjax.core.config import require
from gptjax.data import Side
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate import engine
from gptjax.generate.chain import Sampling, Shaping
from gptjax.generate.constraints import TokenAutomaton, compiled, join_automata
from gptjax.generate.decode import (
    Decoding,
    begin_alternatives,
    branch,
    extend,
    padded,
    padded_size,
    prefill,
)
from gptjax.generate.engine import Columns
from gptjax.generate.request import Request, end_of
from gptjax.generate.settings import GenerateConfig
from gptjax.generate.watermark import marks_of, watermark_of
from gptjax.model import KVCache, ModelConfig
from gptjax.model.cache_bits import stored_kind
from gptjax.weights import serve


class Job(NamedTuple):
    """One answer to write; a request has as many as it has rows."""

    request: Request
    sample: int = 0
    """Its number among the request's answers."""


class Prefix(NamedTuple):
    """The beginning that many prompts share, read once."""

    ids: list[int]
    state: Decoding
    """One row, with room for the whole context."""

    @property
    def kv_cache(self) -> KVCache | None:
        """How keys and values are kept; `None` if no layer has any."""
        return next((stored_kind(group.keys) for group in self.state.cache.groups), None)


class Room(NamedTuple):
    """The sizes and variants that a program is compiled for, enough for each of some requests."""

    slots: int
    """Tokens of prompt and answer."""
    stops: int
    """Stop ids of a row."""
    alternatives: int
    """Alternatives that are kept at each place."""
    side: int
    """Tokens that an encoder reads; 0 without an encoder."""
    shaped: bool
    """More than temperature, top-k and top-p shapes a token of some request."""
    constrained: bool
    """Some request has a constraint."""
    kv_cache: KVCache
    """How keys and values are kept."""
    adapters: bool = False
    """Rows are served by different adapters."""


def room_for(
    config: ModelConfig,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    prefix: Prefix | None = None,
) -> Room:
    """The least room in which every one of the requests fits; sizes are powers of two."""
    before = [] if prefix is None else prefix.ids
    longest = max(len(one.ids) + limit_of(config, one, before) for one in requests)
    top = max(one.settings.top_logprobs for one in requests)
    stops = max(len(_ends(tokenizer, one.settings)) for one in requests)
    side = max(len(one.side) for one in requests)
    return Room(
        slots=padded_size(longest, config.context) if prefix is None else config.context,
        stops=padded_size(max(stops, 1), 1 << 20, least=4),
        alternatives=padded_size(top, config.vocabulary, least=8) if top else 0,
        side=padded_size(max(side, 1), config.context) if config.encoder_layers else 0,
        shaped=any(one.settings.shaped for one in requests),
        constrained=any(one.settings.constraint is not None for one in requests),
        kv_cache=requests[0].settings.kv_cache,
        adapters=requests[0].adapter is not None,
    )


def limit_of(config: ModelConfig, request: Request, before: Sequence[int]) -> int:
    """The most tokens that the answer can have after a prefix and its prompt."""
    read = max(len(before) + len(request.ids), len(request.negative))
    return min(request.settings.new_tokens, config.context - read)


# --- prompts


def read_prompts(
    config: ModelConfig,
    params: Params,
    requests: Sequence[Request],
    room: Room,
    *,
    rows: int,
    prefix: Prefix | None = None,
) -> Decoding:
    """Reads the prompts of some requests, each in a row of its own, after the prefix, which is not
    read again.

    Args:
      rows: at least as many as there are requests; the rest read nothing and write nothing.
    """
    before = [] if prefix is None else prefix.ids
    spare = rows - len(requests)
    tokens = padded([one.ids for one in requests] + [[]] * spare, config.context)
    lengths = np.asarray([len(one.ids) for one in requests] + [0] * spare, np.int32)
    limits = np.asarray([limit_of(config, r, before) for r in requests] + [0] * spare, np.int32)
    if room.adapters:
        params = serve(params, np.int32([one.adapter for one in requests] + [-1] * spare))
    if prefix is None:
        return prefill(
            config,
            params,
            tokens,
            lengths,
            limits,
            slots=room.slots,
            alternatives=room.alternatives,
            kv_cache=room.kv_cache,
            side=side_of(room, [one.side for one in requests] + [[]] * spare),
        )
    state = branch(prefix.state, np.zeros(rows, np.int32))
    if room.alternatives:
        places = begin_alternatives(rows, room.slots, room.alternatives)
        state = state._replace(text=state.text._replace(alternatives=places))
    return extend(config, params, state, tokens, lengths, limits)


def read_prefix(
    config: ModelConfig,
    params: Params,
    ids: list[int],
    before: Prefix | None = None,
    kv_cache: KVCache = "full",
) -> Prefix:
    """Reads a prefix; after `before`, which is used up, if it is given."""
    tokens, length, limit = padded([ids], config.context), np.int32([len(ids)]), np.int32([0])
    if before is not None:
        state = extend(config, params, before.state, tokens, length, limit)
        return Prefix(before.ids + ids, state)
    state = prefill(config, params, tokens, length, limit, slots=config.context, kv_cache=kv_cache)
    return Prefix(ids, state)


def side_of(room: Room, texts: Sequence[Sequence[int]]) -> Side | None:
    """Texts as an encoder reads them, or `None` without an encoder."""
    if not room.side:
        return None
    tokens = np.zeros((len(texts), room.side), np.int32)
    positions = np.full_like(tokens, -1)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        positions[row, : len(text)] = np.arange(len(text))
    return Side(tokens, positions)


# --- columns


def columns(
    config: ModelConfig,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    room: Room,
    before: Sequence[int] = (),
) -> Columns:
    """The columns of each job, a row each, without its constraint.

    Args:
      before: ids of the shared prefix.
    """
    seeds = np.asarray([_seed(job.request, before) for job in jobs], np.uint32)
    settings = [job.request.settings for job in jobs]
    stop = np.full((len(jobs), room.stops), -1, np.int32)
    for row, s in zip(stop, settings, strict=True):
        ends = _ends(tokenizer, s)
        row[: len(ends)] = ends
    return Columns(
        keys=_keys(seeds, np.asarray([job.sample for job in jobs], np.uint32)),
        sampling=_sampling(config, tokenizer, settings, room),
        stop=stop,
        adapter=np.int32([job.request.adapter for job in jobs]) if room.adapters else None,
    )


def _seed(request: Request, before: Sequence[int]) -> tuple[int, int]:
    """The seed of a request's keys: a function of its own seed and of what is read for it."""
    ids = np.asarray([*before, *request.side, *request.ids], np.int32)
    return request.settings.seed, zlib.crc32(ids.tobytes())


@jax.jit
def _keys(seeds: jax.Array, samples: jax.Array) -> Keys:
    """The key of each row: a function of its seed, its prompt and its number among the prompt's
    samples, of nothing else."""

    def key(seed: jax.Array, sample: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.key(seed[0]), seed[1])
        return jax.random.fold_in(own, sample)

    return jax.vmap(key)(seeds, samples)


def _ends(tokenizer: Tokenizer, s: GenerateConfig) -> list[int]:
    """The ids that end an answer."""
    return [*end_of(tokenizer), *tokenizer.ends, *s.stop_ids]


def _sampling(
    config: ModelConfig, tokenizer: Tokenizer, settings: Sequence[GenerateConfig], room: Room
) -> Sampling:
    """The settings as arrays. Contrastive search uses top-k itself, and beam search truncates
    nothing."""
    rows, size = len(settings), config.vocabulary
    temperature, top_p = _column(settings, "temperature"), _column(settings, "top_p")
    top_k = np.asarray([s.top_k or size for s in settings], np.int32)
    one, all_ids = np.ones(rows, np.float32), np.full(rows, size, np.int32)
    if settings[0].beams > 1:
        temperature, top_k, top_p = one, all_ids, one
    elif settings[0].contrastive_alpha > 0:
        temperature, top_k = one, all_ids
    shaping = _shaping(config, tokenizer, settings, room.slots) if room.shaped else None
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, shaping=shaping)


def _column(settings: Sequence[GenerateConfig], name: str, dtype: type = np.float32) -> np.ndarray:
    return np.asarray([getattr(s, name) for s in settings], dtype)


WHOLE = ("penalty_window", "dry_allowed_length", "no_repeat_ngram", "min_new_tokens")
"""Settings of `Shaping` that are whole numbers."""
WIDE = ("dry_breakers", "logit_bias", "forced", "watermark", "constraint", "spoken")
"""Fields of `Shaping` that are more than one number per row."""


def _shaping(
    config: ModelConfig, tokenizer: Tokenizer, settings: Sequence[GenerateConfig], slots: int
) -> Shaping:
    numbers = {
        name: _column(settings, name, np.int32 if name in WHOLE else np.float32)
        for name in Shaping._fields
        if name not in WIDE
    }
    return Shaping(
        **numbers,
        dry_breakers=np.stack([_breakers(tokenizer, s, config.vocabulary) for s in settings]),
        logit_bias=np.stack([_bias(s, config.vocabulary) for s in settings]),
        forced=np.stack([_forced(s, slots) for s in settings]),
        watermark=marks_of([watermark_of(s.watermark) if s.watermark else None for s in settings]),
    )


def _bias(s: GenerateConfig, size: int) -> np.ndarray:
    bias = np.zeros(size, np.float32)
    for i, value in s.logit_bias:
        bias[i] += value
    if s.allowed:
        bias[np.setdiff1d(np.arange(size), s.allowed)] = -np.inf
    bias[list(s.banned)] = -np.inf
    return bias


def _forced(s: GenerateConfig, slots: int) -> np.ndarray:
    forced = np.full(slots, -1, np.int32)
    for number, i in s.forced:
        if number < slots:
            forced[number] = i
    return forced


def _breakers(tokenizer: Tokenizer, s: GenerateConfig, size: int) -> np.ndarray:
    breakers = np.zeros(size, bool)
    if s.dry_multiplier > 0:
        marks = [text.encode() for text in s.dry_breakers]
        pieces = [tokenizer.token_bytes([i]) for i in range(tokenizer.vocab_size)]
        breakers[: len(pieces)] = [any(mark in piece for mark in marks) for piece in pieces]
    return breakers


def automaton_of(
    config: ModelConfig, tokenizer: Tokenizer, request: Request, before: Sequence[int]
) -> TokenAutomaton | None:
    """The constraint of a request, if it has one.

    Raises:
      ConfigError: no text fits the constraint without banned ids, or the shortest answer is longer
        than the room.
    """
    constraint = request.settings.constraint
    if constraint is None:
        return None
    room, automaton = limit_of(config, request, before), request.automaton
    if automaton is None:
        automaton = compiled(*constraint, tokenizer, never_written(request.settings, tokenizer))
    require(
        automaton.least <= room,
        f"the {constraint[0]} needs at least {automaton.least} tokens and there is room for {room};"
        " use more --new-tokens, or a shorter prompt.",
    )
    return automaton


def never_written(s: GenerateConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that the settings ban, or do not allow."""
    other = set(range(tokenizer.vocab_size)) - set(s.allowed) if s.allowed else set()
    return frozenset({*s.banned, *other})


class Batch(NamedTuple):
    """Rows that begin and end together: P prompts, and B rows that answer them, in one order."""

    requests: list[Request]
    """P of them."""
    room: Room
    source: np.ndarray
    """[B]: the prompt that each row answers."""
    limits: np.ndarray
    """[P]: the most tokens of an answer; 0 for prompts that only fill the batch."""
    columns: Columns
    vocabulary: np.ndarray
    """Ids from here on are never drawn."""

    @property
    def settings(self) -> GenerateConfig:
        """Those of the first prompt, which decide on the strategy."""
        return self.requests[0].settings

    @property
    def keys_and_sampling(self) -> tuple[Keys, Sampling]:
        """The arguments of every strategy that draws."""
        return self.columns.keys, self.columns.sampling

    def column(self, name: str, dtype: type) -> np.ndarray:
        """One setting of every row [B]."""
        return _column([one.settings for one in self.requests], name, dtype)[self.source]


def batch_of(
    config: ModelConfig,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    room: Room,
    size: int,
    before: Sequence[int] = (),
) -> Batch:
    """A batch of `size` prompts; missing ones are filled up with prompts that write nothing.

    Args:
      before: ids of the shared prefix.
    """
    each, spare = requests[0].rows, size - len(requests)
    limits = [limit_of(config, one, before) for one in requests] + [0] * spare
    filled = [*requests, *[requests[0]] * spare]
    jobs = [Job(one, sample) for one in filled for sample in range(each)]
    whole = columns(config, tokenizer, jobs, room, before)
    if room.constrained:
        automata = [automaton_of(config, tokenizer, job.request, before) for job in jobs]
        constraint = join_automata(automata, tokenizer, np.repeat(limits, each).tolist())
        whole = engine.with_constraint(whole, jax.device_put(constraint))
    return Batch(
        requests=filled,
        room=room,
        source=np.repeat(np.arange(size, dtype=np.int32), each),
        limits=np.asarray(limits, np.int32),
        columns=whole,
        vocabulary=np.int32(tokenizer.vocab_size),
    )
