"""Prompts and settings become arrays: one row for each answer, in shapes that batches share.

`Ask` is what a user wants, `together` says how many prompts share a batch, `pack` makes the arrays
of one batch. All that depends on both settings and tokenizer or model is checked here, and refused
by name.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Keys
from gptjax.core.config import require
from gptjax.data import Side
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.chain import Sampling, Shaping
from gptjax.generate.constraints import compiled, join
from gptjax.generate.decode import bucket, padded
from gptjax.generate.settings import GenerateConfig, SampleConfig
from gptjax.model import ModelConfig


class Ask(NamedTuple):
    """One prompt, in words and in ids, and how to go on from it."""

    prompt: str
    ids: list[int]
    """After those of the shared prefix, if there is one."""
    negative: list[int]
    """Ids of the negative prompt, if there is guidance."""
    settings: GenerateConfig
    side: list[int] = []
    """What an encoder reads; then `ids` only begin the answer."""
    negative_side: list[int] = []


class Pack(NamedTuple):
    """A batch as the compiled functions want it: P prompts, and B rows that answer them, in the
    same order."""

    asks: list[Ask]
    """P of them; those from `real` on only fill the batch and write nothing."""
    real: int
    tokens: np.ndarray
    """[P T]"""
    lengths: np.ndarray
    """[P]"""
    limits: np.ndarray
    """[P]"""
    prompt: np.ndarray
    """[B]: the prompt that each row answers."""
    keys: Keys
    sampling: Sampling
    stop: np.ndarray
    """[B stops]"""
    slots: int
    alternatives: int
    vocabulary: np.ndarray
    side: Side | None = None
    """What an encoder reads for each of the P prompts."""

    @property
    def settings(self) -> GenerateConfig:
        """Those of the first prompt, which decide on the strategy."""
        return self.asks[0].settings

    def column(self, name: str, dtype: type) -> np.ndarray:
        """One setting of every row [B]."""
        return np.asarray([getattr(a.settings, name) for a in self.asks], dtype)[self.prompt]


TOGETHER = (
    "order",
    "num_samples",
    "best_of",
    "beams",
    "beam_groups",
    "lookup",
    "draft_tokens",
    "int8_cache",
)
"""Settings that are part of a program, so that all prompts of a call share them."""


UNSHARED = (
    "a model that answers texts reads each of them whole, so that no beginning can be shared; leave"
    " the prefix away (--prefix)."
)


def ask(
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: SampleConfig | Sequence[SampleConfig],
    prefix: Sequence[int] | None = None,
    task: Task = LanguageModel(),  # noqa: B008 it is frozen
) -> list[Ask]:
    """Encodes prompts; each begins as documents do in training, or with the prefix. One that is
    given as ids stays as it is.

    Args:
      settings: one for all prompts, or one for each.
      task: what the model has learned; where texts are answered, the prompt is what is answered.

    Raises:
      ConfigError: a prompt is empty and the tokenizer knows no document border, a prompt fills the
        whole context, a setting is beyond the vocabulary, settings can't be in one batch, or the
        model does not write.
    """
    require(
        not config.classes,
        "this model tells labels and does not go on with a text; `classify` gives them.",
    )
    able = config.causal and task.writes and (task.answers or config.continues)
    require(able, "this model fills in what is hidden, and does not go on with a text.")
    require(prefix is None or not task.answers, UNSHARED)
    several = [settings] * len(prompts) if isinstance(settings, SampleConfig) else list(settings)
    require(
        len(several) == len(prompts),
        f"there are {len(prompts)} prompts and {len(several)} settings; give one for all, or one"
        " for each.",
    )
    full = [
        s if isinstance(s, GenerateConfig) else GenerateConfig(**dataclasses.asdict(s))
        for s in several
    ]
    for s in full:
        _check_together(full[0], s)
        _check_ids(s, tokenizer.vocab_size)
    before, beside = len(prefix or ()), config.encoder_layers > 0
    nothing = (
        [] if before else _end(tokenizer)
    )  # a tokenizer whose documents have no beginning may still know their end

    def spell(prompt: str | Sequence[int], whole: bool = True) -> tuple[list[int], list[int]]:
        """What an encoder reads, and what a decoder does."""
        ids = tokenizer.encode(prompt).tolist() if isinstance(prompt, str) else list(prompt)
        whole = whole and isinstance(prompt, str)
        return task.prompt(ids, tokenizer, beside) if task.answers or whole else ([], ids)

    asks = []
    for prompt, s in zip(prompts, full, strict=True):
        side, ids = spell(prompt, whole=prefix is None)
        negative_side, negative = spell(s.negative_prompt) if s.guidance != 1 else ([], [])
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        asks.append(
            Ask(
                text,
                ids or nothing,
                negative or (_end(tokenizer) if s.guidance != 1 else []),
                s,
                side,
                negative_side,
            )
        )
    for one in asks:
        require(
            bool(one.prompt) or not task.answers,
            "the prompt is empty, and this model answers texts; give one (--prompt TEXT).",
        )
        hidden = one.settings.prompt_logprobs and (beside or config.prefix_lm)
        require(
            not hidden,
            "prompt_logprobs are of prompts that are read one token after another, and this model's"
            " are not (--prompt-logprobs False).",
        )
        _check_room(config, "prompt", before + len(one.ids), len(one.side))
        if one.settings.guidance != 1:
            _check_room(config, "negative prompt", len(one.negative), len(one.negative_side))
    return asks


def _check_room(config: ModelConfig, name: str, count: int, beside: int) -> None:
    flag = f"--{name.replace(' ', '-')} TEXT"
    require(
        count > 0,
        f"the {name} is empty and this tokenizer has no end-of-document id; give some text"
        f" ({flag}).",
    )
    require(
        count < config.context,
        f"a {name} has {count} tokens and the context is {config.context}; shorten it to leave room"
        " for an answer.",
    )
    require(
        beside <= config.context,
        f"a {name} has {beside} tokens and the encoder reads {config.context}; shorten it.",
    )


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]


def _check_together(first: GenerateConfig, other: GenerateConfig) -> None:
    mine, theirs = (
        " and ".join(n for n in s.strategies if n != "guidance") or "none" for s in (first, other)
    )
    require(
        mine == theirs,
        f"one prompt asks for the strategy {mine}, another for {theirs}; such prompts can't share a"
        " call.",
    )
    for name in TOGETHER:
        values = getattr(first, name), getattr(other, name)
        require(
            values[0] == values[1],
            f"{name} is {values[0]} for one prompt and {values[1]} for another; such prompts can't"
            " share a call.",
        )


def _check_ids(s: GenerateConfig, size: int) -> None:
    require(
        s.top_k <= size,
        f"top_k is {s.top_k}, the vocabulary has {size} tokens; use --top-k 0 for all.",
    )
    for name in ("beams", "top_logprobs"):
        flag = f"--{name.replace('_', '-')}"
        require(
            getattr(s, name) <= size,
            f"{name} is {getattr(s, name)}, the vocabulary has {size} tokens; use {flag} {size} or"
            " less.",
        )
    named = {
        "logit_bias": [i for i, _ in s.logit_bias],
        "banned": s.banned,
        "allowed": s.allowed,
        "forced": [i for _, i in s.forced],
        "stop_ids": s.stop_ids,
    }
    for name, ids in named.items():
        wrong = [i for i in ids if not 0 <= i < size]
        require(
            not wrong,
            f"{name} has the id {wrong[:1]}, the vocabulary has 0 to {size - 1}"
            f" (--{name.replace('_', '-')}).",
        )
    left = set(s.allowed or range(size)) - set(s.banned)
    require(
        bool(left),
        "banned leaves no token to write; ban fewer (--banned), or allow more (--allowed).",
    )


def answers_each(s: GenerateConfig) -> int:
    """How many rows answer one prompt."""
    return s.beams if s.beams > 1 else s.best_of or s.num_samples


def together(asks: Sequence[Ask], batch: int) -> int:
    """How many prompts go together: as many as make `batch` rows, or the power of two that holds
    all of them."""
    most = max(1, batch // answers_each(asks[0].settings))
    return most if len(asks) > most else 1 << (len(asks) - 1).bit_length()


def pack(
    config: ModelConfig,
    tokenizer: Tokenizer,
    asks: list[Ask],
    size: int,
    prefix: Sequence[int] | None = None,
) -> Pack:
    """The arrays of one batch with `size` prompts; missing ones are filled up with prompts that
    write nothing."""
    each, before = answers_each(asks[0].settings), list(prefix or ())
    filled = asks + [asks[0]] * (size - len(asks))
    lengths = np.asarray([len(a.ids) for a in filled], np.int32)
    limits = np.asarray(
        [
            min(
                a.settings.new_tokens,
                config.context - max(len(before) + len(a.ids), len(a.negative)),
            )
            for a in filled
        ],
        np.int32,
    )
    slots = (
        config.context
        if prefix is not None
        else bucket(int((lengths + limits).max()), config.context)
    )
    limits[len(asks) :] = 0
    settings = [a.settings for a in filled]
    seeds = [
        (a.settings.seed, zlib.crc32(np.asarray([*before, *a.side, *a.ids], np.int32).tobytes()))
        for a in filled
    ]
    top = max(s.top_logprobs for s in settings)

    def rows(tree):
        return jax.tree.map(lambda leaf: np.repeat(leaf, each, axis=0), tree)

    return Pack(
        filled,
        len(asks),
        padded([a.ids for a in filled], config.context),
        lengths,
        limits,
        rows(np.arange(size, dtype=np.int32)),
        _keys(rows(np.asarray(seeds, np.uint32)), np.tile(np.arange(each, dtype=np.uint32), size)),
        jax.device_put(
            _constrained(
                rows(_sampling(config, tokenizer, settings, slots)),
                tokenizer,
                settings,
                limits,
                each,
            )
        ),  # masks are large: once
        rows(_stops(tokenizer, settings)),
        slots,
        bucket(top, config.vocabulary, least=8) if top else 0,
        np.int32(tokenizer.vocab_size),
        side_of(config, [a.side for a in filled]),
    )


def side_of(config: ModelConfig, texts: list[list[int]]) -> Side | None:
    """Texts as an encoder reads them, in a width that batches share; none without an encoder."""
    if not config.encoder_layers:
        return None
    tokens = padded(texts, config.context)
    place, lengths = (
        np.arange(tokens.shape[1], dtype=np.int32)[None],
        np.asarray(list(map(len, texts)))[:, None],
    )
    return Side(tokens, np.where(place < lengths, place, np.int32(-1)))


@jax.jit
def _keys(seeds: jax.Array, sample: jax.Array) -> Keys:
    """The key of each row: a function of its seed, its prompt and its number among the prompt's
    samples, of nothing else."""
    return jax.vmap(
        lambda seed, n: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), seed[1]), n)
    )(seeds, sample)


def _stops(tokenizer: Tokenizer, settings: list[GenerateConfig]) -> np.ndarray:
    ends = [[*_end(tokenizer), *tokenizer.ends, *s.stop_ids] for s in settings]
    stop = np.full((len(ends), bucket(max(map(len, ends)) or 1, 1 << 20, least=4)), -1, np.int32)
    for row, ids in zip(stop, ends, strict=True):
        row[: len(ids)] = ids
    return stop


def _sampling(
    config: ModelConfig, tokenizer: Tokenizer, settings: list[GenerateConfig], slots: int
) -> Sampling:
    """The settings of each prompt as arrays. Contrastive search takes top-k for itself, and beam
    search no truncation."""

    def column(name, dtype=np.float32):
        return np.asarray([getattr(s, name) for s in settings], dtype)

    one = np.ones(len(settings), np.float32)
    whole = np.full(len(settings), config.vocabulary, np.int32)
    if settings[0].beams > 1:
        plain = one, whole, one
    elif settings[0].contrastive_alpha > 0:
        plain = one, whole, column("top_p")
    else:
        plain = (
            column("temperature"),
            np.asarray([s.top_k or config.vocabulary for s in settings], np.int32),
            column("top_p"),
        )
    if not any(s.shaped for s in settings):
        return Sampling(*plain)
    numbers = {
        name: column(name)
        for name in Shaping._fields
        if name not in ("dry_breakers", "logit_bias", "forced", "constraint")
    }
    whole_numbers = ("penalty_window", "dry_allowed_length", "no_repeat_ngram", "min_new_tokens")
    shaping = Shaping(
        **numbers | {name: column(name, np.int32) for name in whole_numbers},
        dry_breakers=np.stack([_breakers(tokenizer, s, config.vocabulary) for s in settings]),
        logit_bias=np.stack([_bias(s, config.vocabulary) for s in settings]),
        forced=np.stack([_forced(s, slots) for s in settings]),
    )
    return Sampling(*plain, shaping)


def _constrained(
    sampling: Sampling,
    tokenizer: Tokenizer,
    settings: list[GenerateConfig],
    limits: np.ndarray,
    each: int,
) -> Sampling:
    """The sampling with the constraints of all rows, if there are any."""
    if not any(s.constraint for s in settings):
        return sampling
    automata = [s.constraint and compiled(*s.constraint, tokenizer) for s in settings]
    for one, s, limit in zip(automata, settings, limits.tolist(), strict=True):
        short = one is not None and 0 < limit < one.least
        words = (
            f"the {s.constraint and s.constraint[0]} needs at least {one and one.least} tokens and"
            f" there is room for {limit}"
        )
        require(not short, f"{words}; use more --new-tokens, or a shorter prompt.")
    whole = join(
        [one for one in automata for _ in range(each)], tokenizer, np.repeat(limits, each).tolist()
    )
    return sampling._replace(shaping=sampling.shaping._replace(constraint=whole))


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
    found = np.zeros(size, bool)
    if s.dry_multiplier > 0:
        marks = [b.encode() for b in s.dry_breakers]
        found[: tokenizer.vocab_size] = [
            any(mark in tokenizer.token_bytes([i]) for mark in marks)
            for i in range(tokenizer.vocab_size)
        ]
    return found
