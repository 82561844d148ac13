"""Each way of writing as one thing: a state that remembers everything, and a compiled function that
lets it write on.

`open_writer` looks at the settings and opens the one they ask for. All but beam search write from
left to right, so that stop texts, time limits and streams work with all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Params
from gptjax.generate.contrastive import Contrast, contrast, open_contrast
from gptjax.generate.decode import (
    Decoding,
    Text,
    begin_alternatives,
    branch,
    bucket,
    decode,
    extend,
    guided,
    padded,
    prefill,
)
from gptjax.generate.request import Pack, side_of
from gptjax.generate.search import EARLY, Answers, Comparison, answers, search, spread
from gptjax.generate.speculative import Setting, Speculating, speculate
from gptjax.model import ModelConfig


class Prefix(NamedTuple):
    """A beginning that many prompts share, read once."""

    ids: list[int]
    state: Decoding
    """One row, with room for the whole context."""

    @property
    def int8(self) -> bool:
        """Its keys and values are kept in 8 bits."""
        return self.state.cache.groups[0].key_scales is not None


class Draft(NamedTuple):
    """A smaller model with the same tokenizer, which guesses for a larger one."""

    config: ModelConfig
    params: Params


class Writer(NamedTuple):
    """A state that has a `text`, and the function that lets each row write until it has so many
    tokens."""

    state: Any
    advance: Callable[[Any, np.ndarray], Any]

    @property
    def text(self) -> Text:
        """What the rows say so far."""
        return self.state.text

    def until(self, count: int) -> Writer:
        """The writer after each row was finished or had `count` tokens."""
        return self._replace(state=self.advance(self.state, np.int32(count)))

    def halt(self, finished: np.ndarray) -> Writer:
        """The writer in which the rows of this mask write no more."""
        text = self.text._replace(finished=jnp.asarray(finished))
        return self._replace(state=self.state._replace(text=text))


def read_prefix(
    config: ModelConfig,
    params: Params,
    ids: list[int],
    before: Prefix | None = None,
    int8: bool = False,
) -> Prefix:
    """Reads a beginning, for `open_writer` to start from as often as wanted; after `before`, which
    is used up, if it is given."""
    length, none = np.asarray([len(ids)], np.int32), np.zeros(1, np.int32)
    if before is None:
        return Prefix(
            ids,
            prefill(
                config,
                params,
                padded([ids], config.context),
                length,
                none,
                slots=config.context,
                int8=int8,
            ),
        )
    return Prefix(
        before.ids + ids,
        extend(config, params, before.state, padded([ids], config.context), length, none),
    )


def open_writer(
    config: ModelConfig, params: Params, pack: Pack, prefix: Prefix | None, draft: Draft | None
) -> Writer:
    """Reads the prompts of a batch; nothing is written yet."""
    s = pack.settings
    fixed = pack.keys, pack.sampling
    if s.contrastive_alpha > 0:
        settings = Contrast(
            pack.column("contrastive_alpha", np.float32), pack.column("top_k", np.int32)
        )
        candidates = bucket(int(settings.count.max()), config.vocabulary, least=4)
        room = {
            "slots": pack.slots,
            "candidates": candidates,
            "alternatives": pack.alternatives,
            "int8": s.int8_cache,
            "side": pack.side,
        }
        whole = [
            [*(prefix.ids if prefix else ()), *ask.ids] for ask in pack.asks
        ]  # hidden states of a prefix are not kept: it is read again
        lengths = np.asarray(list(map(len, whole)), np.int32)
        state = open_contrast(
            config, params, padded(whole, config.context), lengths, pack.limits, **room
        )
        state = state._replace(text=_constrained(state.text, pack))
        return Writer(
            state,
            lambda state, until: contrast(
                config, params, state, *fixed, settings, pack.stop, until, pack.vocabulary, s.order
            ),
        )
    state = _for_rows(_read(config, params, pack, prefix), pack)
    state = state._replace(text=_constrained(state.text, pack))
    if s.lookup or draft is not None:
        setting = Setting(config, draft and draft.config, s.draft_tokens, s.order)
        cache = draft and _for_rows(_read(draft.config, draft.params, pack, None), pack).cache
        none = np.zeros(len(pack.prompt), np.int32)
        weights = draft and draft.params
        begun = Speculating(state.text, state.cache, cache, none, none)
        return Writer(
            begun,
            lambda state, until: speculate(
                setting, params, weights, state, *fixed, pack.stop, until, pack.vocabulary
            ),
        )
    if any(ask.settings.guidance != 1 for ask in pack.asks):
        state = guided(
            state, _read_negative(config, params, pack), pack.column("guidance", np.float32)
        )
    return Writer(
        state,
        lambda state, until: decode(
            config, params, state, *fixed, pack.stop, until, pack.vocabulary, s.order
        ),
    )


def best_answers(config: ModelConfig, params: Params, pack: Pack, prefix: Prefix | None) -> Answers:
    """Beam search: the best `num_samples` answers to each prompt."""
    s = pack.settings

    def each(name, dtype):
        return pack.column(name, dtype)[:: s.beams]

    early = np.asarray([EARLY.index(ask.settings.early_stopping) for ask in pack.asks], np.int32)
    settings = Comparison(each("length_penalty", np.float32), early, each("diversity", np.float32))
    constraint = pack.sampling.shaping and pack.sampling.shaping.constraint
    start = constraint.start[:: s.beams] if constraint else np.zeros(len(pack.lengths), np.int32)
    state = spread(_read(config, params, pack, prefix), start, s.beams, s.beam_groups)
    return answers(
        search(
            config,
            params,
            state,
            pack.sampling,
            settings,
            pack.stop[:: s.beams],
            pack.vocabulary,
            s.order,
        ),
        s.num_samples,
    )


def _read(config: ModelConfig, params: Params, pack: Pack, prefix: Prefix | None) -> Decoding:
    """A row for each prompt, read after the prefix, which is not read again."""
    if prefix is None:
        room = {
            "slots": pack.slots,
            "alternatives": pack.alternatives,
            "int8": pack.settings.int8_cache,
            "side": pack.side,
        }
        return prefill(config, params, pack.tokens, pack.lengths, pack.limits, **room)
    state = branch(prefix.state, np.zeros(len(pack.lengths), np.int32))
    if pack.alternatives:
        state = state._replace(
            text=state.text._replace(
                alternatives=begin_alternatives(*state.text.history.ids.shape, pack.alternatives)
            )
        )
    return extend(config, params, state, pack.tokens, pack.lengths, pack.limits)


def _read_negative(config: ModelConfig, params: Params, pack: Pack) -> Decoding:
    """A row for each answer, with the negative prompt read instead of the prompt."""
    known = [
        ask.negative or ask.ids for ask in pack.asks
    ]  # a request without guidance is moved away from nothing
    lengths = np.asarray(list(map(len, known)), np.int32)
    slots = bucket(int((lengths + pack.limits).max()), config.context)
    side = side_of(config, [ask.negative_side or ask.side for ask in pack.asks])
    state = prefill(
        config,
        params,
        padded(known, config.context),
        lengths,
        pack.limits,
        slots=slots,
        int8=pack.settings.int8_cache,
        side=side,
    )
    return _for_rows(state, pack)


def _constrained(text: Text, pack: Pack) -> Text:
    """The rows at the beginning of their constraints."""
    constraint = pack.sampling.shaping and pack.sampling.shaping.constraint
    return (
        text._replace(history=text.history._replace(state=jnp.asarray(constraint.start)))
        if constraint
        else text
    )


def _for_rows(state: Decoding, pack: Pack) -> Decoding:
    """A row for each answer: those to one prompt share its layer_inputs."""
    return state if len(pack.prompt) == len(pack.lengths) else branch(state, pack.prompt)
