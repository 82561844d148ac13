"""Strategies that own their batch: contrastive search, speculative decoding, guidance, beams.

`open_writer` opens the strategy that the settings ask for: a state that remembers everything, and
a compiled function that lets each row write. All but beam search write from left to right, so that
stop texts, time limits and streams work with all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.generate.batch import Batch, Prefix, read_prompts, side_of
from gptjax.generate.beams import EARLY, Answers, Comparison, answers, start_beams
from gptjax.generate.contrastive import Contrast, contrast, open_contrast
from gptjax.generate.decode import Decoding, Text, branch, guided, padded, padded_size, prefill
from gptjax.generate.engine import Slots, advance, fill
from gptjax.generate.search import search
from gptjax.generate.speculative import Setting, Speculating, speculate
from gptjax.generate.unmask import Unmasking, begin_masks, unmask
from gptjax.model import ModelConfig


class Draft(NamedTuple):
    """A smaller model with the same tokenizer, which guesses for a larger one."""

    config: ModelConfig
    params: Params


class Writer(NamedTuple):
    """A state that has a `text`, and the function that lets each row write until it has a given
    number of tokens."""

    state: Any
    advance: Callable[[Any, np.ndarray], Any]

    @property
    def text(self) -> Text:
        """What the rows hold so far."""
        return self.state.text

    def until(self, count: int) -> Writer:
        """The writer after each row was finished or had `count` tokens."""
        return self._replace(state=self.advance(self.state, np.int32(count)))

    def halt(self, rows: np.ndarray) -> Writer:
        """The writer in which the marked rows write no more."""
        text = self.text._replace(finished=self.text.finished | jnp.asarray(rows))
        return self._replace(state=_with_text(self.state, text))


def _with_text(state: Any, text: Text) -> Any:
    if isinstance(state, Slots):
        return state._replace(decoding=state.decoding._replace(text=text))
    return state._replace(text=text)


def open_writer(
    config: ModelConfig, params: Params, batch: Batch, prefix: Prefix | None, draft: Draft | None
) -> Writer:
    """Reads the prompts of a batch; nothing is written yet."""
    s = batch.settings
    if batch.requests[0].mask is not None:
        return _unmask(config, params, batch, batch.requests[0].mask)
    if s.contrastive_alpha > 0:
        return _contrast(config, params, batch, prefix)
    reading = _read(config, params, batch, prefix)
    if s.lookup or draft is not None:
        return _speculate(config, params, batch, reading, draft)
    if any(one.settings.guidance != 1 for one in batch.requests):
        negative = _read_negative(config, params, batch)
        reading = guided(reading, negative, batch.column("guidance", np.float32))

    def write(slots: Slots, until: np.ndarray) -> Slots:
        written = slots.text.history.length - slots.text.history.prompt
        steps = int(jnp.max(until - written))
        return advance(config, params, slots, steps, int(batch.vocabulary), order=s.order)

    return Writer(fill(reading, None, batch.columns, _constraint(batch)), write)


def _contrast(config: ModelConfig, params: Params, batch: Batch, prefix: Prefix | None) -> Writer:
    settings = Contrast(
        alpha=batch.column("contrastive_alpha", np.float32), count=batch.column("top_k", np.int32)
    )
    # The hidden states of a prefix are not kept: it is read again.
    before = [] if prefix is None else prefix.ids
    whole = [[*before, *one.ids] for one in batch.requests]
    state = open_contrast(
        config,
        params,
        padded(whole, config.context),
        np.asarray(list(map(len, whole)), np.int32),
        batch.limits,
        slots=batch.room.slots,
        candidates=padded_size(int(settings.count.max()), config.vocabulary, least=4),
        alternatives=batch.room.alternatives,
        kv_cache=batch.room.kv_cache,
        side=side_of(batch.room, [one.side for one in batch.requests]),
    )
    state = state._replace(text=_at_start(state.text, batch))
    return Writer(
        state,
        lambda state, until: contrast(
            config,
            params,
            state,
            *batch.keys_and_sampling,
            settings,
            batch.columns.stop,
            until,
            batch.vocabulary,
            batch.settings.order,
        ),
    )


def _speculate(
    config: ModelConfig, params: Params, batch: Batch, reading: Decoding, draft: Draft | None
) -> Writer:
    s = batch.settings
    setting = Setting(
        config=config,
        draft=draft and draft.config,
        guesses=s.draft_tokens,
        order=s.order,
    )
    none = np.zeros(len(batch.source), np.int32)
    state = Speculating(
        text=_at_start(reading.text, batch),
        cache=model.with_undo(reading.cache, s.draft_tokens + 1),
        draft_cache=draft
        and model.with_undo(
            _read(draft.config, draft.params, batch, None).cache, s.draft_tokens + 1
        ),
        guessed=none,
        kept=none,
    )
    return Writer(
        state,
        lambda state, until: speculate(
            setting,
            params,
            draft and draft.params,
            state,
            *batch.keys_and_sampling,
            batch.columns.stop,
            until,
            batch.vocabulary,
        ),
    )


class _Masks(NamedTuple):
    """The state of rows whose masks are filled in: the text is all of it."""

    text: Text


def _unmask(config: ModelConfig, params: Params, batch: Batch, mask: int) -> Writer:
    lengths = np.asarray([len(one.ids) for one in batch.requests], np.int32)[batch.source]
    limits, mask_id = batch.limits[batch.source], np.int32(mask)
    each = [batch.requests[row].settings for row in batch.source]
    whole = np.maximum(limits, 1)
    block = np.minimum([s.block_length or int(m) for s, m in zip(each, whole, strict=True)], whole)
    steps = [s.denoising_steps or int(m) for s, m in zip(each, whole, strict=True)]
    guided = any(s.guidance != 1 for s in each)
    how = Unmasking(
        steps=np.asarray(steps, np.int32),
        block=block.astype(np.int32),
        shuffled=np.asarray([s.remasking == "random" for s in each]),
        scale=batch.column("guidance", np.float32) if guided else None,
        mask=mask_id,
    )
    prompts = padded([batch.requests[row].ids for row in batch.source], config.context)
    slots = max(batch.room.slots, prompts.shape[1])
    widest = padded_size(int(block.max()), config.context)

    def write(state: _Masks, until: np.ndarray) -> _Masks:
        text = unmask(
            config,
            params,
            state.text,
            *batch.keys_and_sampling,
            how,
            batch.columns.stop,
            until,
            batch.vocabulary,
            widest=widest,
            order=batch.settings.order,
        )
        return _Masks(text)

    return Writer(_Masks(begin_masks(prompts, lengths, limits, mask_id, slots=slots)), write)


def best_answers(
    config: ModelConfig, params: Params, batch: Batch, prefix: Prefix | None
) -> Answers:
    """Beam search: the best `num_samples` answers to each prompt."""
    s, requests = batch.settings, batch.requests
    settings = Comparison(
        length_penalty=np.float32([one.settings.length_penalty for one in requests]),
        early=np.int32([EARLY.index(one.settings.early_stopping) for one in requests]),
        diversity=np.float32([one.settings.diversity for one in requests]),
    )
    constraint = _constraint(batch)
    none = np.zeros(len(requests), np.int32)
    start = none if constraint is None else constraint.start[:: s.beams]
    reading = _read_prompts(config, params, batch, prefix)
    beams = search(
        config,
        params,
        start_beams(reading, start, s.beams, s.beam_groups),
        batch.columns.sampling,
        settings,
        batch.columns.stop[:: s.beams],
        batch.vocabulary,
        s.order,
    )
    return answers(beams, s.num_samples)


def _read_prompts(
    config: ModelConfig, params: Params, batch: Batch, prefix: Prefix | None
) -> Decoding:
    """A row for each prompt, read after the prefix."""
    state = read_prompts(
        config, params, batch.requests, batch.room, rows=len(batch.requests), prefix=prefix
    )
    limits = jnp.asarray(batch.limits)
    text = state.text._replace(limit=limits, finished=limits <= 0)
    return state._replace(text=text)


def _read(config: ModelConfig, params: Params, batch: Batch, prefix: Prefix | None) -> Decoding:
    """A row for each answer: those to one prompt share its reading."""
    state = _read_prompts(config, params, batch, prefix)
    return _for_rows(state, batch)


def _read_negative(config: ModelConfig, params: Params, batch: Batch) -> Decoding:
    """A row for each answer, with the negative prompt read instead of the prompt."""
    # A request without guidance is moved away from its own prompt, which changes nothing.
    ids = [one.negative or one.ids for one in batch.requests]
    lengths = np.asarray(list(map(len, ids)), np.int32)
    state = prefill(
        config,
        params,
        padded(ids, config.context),
        lengths,
        batch.limits,
        slots=padded_size(int((lengths + batch.limits).max()), config.context),
        kv_cache=batch.room.kv_cache,
        side=side_of(batch.room, [one.negative_side or one.side for one in batch.requests]),
    )
    return _for_rows(state, batch)


def _constraint(batch: Batch) -> Any:
    shaping = batch.columns.sampling.shaping
    return shaping and shaping.constraint


def _at_start(text: Text, batch: Batch) -> Text:
    """The rows at the beginning of their constraints."""
    constraint = _constraint(batch)
    if constraint is None:
        return text
    return text._replace(history=text.history._replace(state=jnp.asarray(constraint.start)))


def _for_rows(state: Decoding, batch: Batch) -> Decoding:
    same = len(batch.source) == len(batch.requests)
    return state if same else branch(state, batch.source)
