"""Requests: prompts in ids with their settings, checked against the model and the tokenizer.

Everything that depends on both the settings and the tokenizer or model is checked here, and refused
by name; what depends on the settings alone is checked in `settings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from gptjax.core.config import require
from gptjax.data.tasks import LanguageModel, Task
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.generate.constraints import TokenAutomaton
from gptjax.generate.settings import GenerateConfig, SampleConfig
from gptjax.generate.unmask import check_unmasking
from gptjax.generate.watermark import watermark_of
from gptjax.model import ModelConfig


class Request(NamedTuple):
    """One prompt, as text and as ids, and how to continue it."""

    prompt: str
    ids: list[int]
    """Those after the shared prefix, if there is one."""
    settings: GenerateConfig
    negative: Sequence[int] = ()
    """Ids of the negative prompt, with guidance."""
    side: Sequence[int] = ()
    """The input of an encoder; `ids` are then the first tokens of the answer."""
    negative_side: Sequence[int] = ()
    adapter: int | None = None
    """The number of the adapter that serves it, where prompts of a call use different ones; −1 is
    the base alone."""
    automaton: TokenAutomaton | None = None
    """The constraint of its settings, where that was compiled before."""
    mask: int | None = None
    """The id of a mask, where the model writes by filling them in."""

    @property
    def rows(self) -> int:
        """The number of rows that answer this prompt."""
        s = self.settings
        return s.beams if s.beams > 1 else s.best_of or s.num_samples

    @property
    def strategies(self) -> list[str]:
        """Names of what makes its rows begin and end together."""
        return [*self.settings.strategies, *["filling in masks"] * (self.mask is not None)]

    @property
    def stop_texts(self) -> list[bytes]:
        """Texts that end the answer."""
        return [stop.encode() for stop in self.settings.stop]


SHARED = (
    "order",
    "num_samples",
    "best_of",
    "beams",
    "beam_groups",
    "lookup",
    "draft_tokens",
    "kv_cache",
)
"""Settings that are part of a compiled program, so that all prompts of a call share them."""

NO_PREFIX = (
    "this model reads each prompt as a whole, so prompts can't share a prefix; omit it (--prefix)."
)


def requests(
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    settings: SampleConfig | Sequence[SampleConfig],
    prefix: Sequence[int] | None = None,
    task: Task = LanguageModel(),
) -> list[Request]:
    """Encodes prompts; each begins as documents do in training, or follows the prefix. A prompt
    given as ids is taken as it is.

    Args:
      settings: one for all prompts, or one for each.
      task: what the model has been trained for; where texts are answered, the prompt is what is
        answered.

    Raises:
      ConfigError: a prompt is empty and the tokenizer has no document border, a prompt fills the
        whole context, a setting is beyond the vocabulary, settings can't share a call, or the
        model does not write.
    """
    mask = task.mask_id(tokenizer)
    _check_model(config, task, mask)
    check_prefix(task, tokenizer, prefix is not None)
    full = _settings(settings, len(prompts))
    _check_settings(full, tokenizer.vocab_size, fills_in=mask is not None)
    # A tokenizer whose documents have no beginning may still have an end.
    border = [] if prefix or mask is not None else end_of(tokenizer)

    def encode(prompt: str | Sequence[int], whole: bool = True) -> tuple[list[int], list[int]]:
        """The input of the encoder, and that of the decoder."""
        ids = tokenizer.encode(prompt).tolist() if isinstance(prompt, str) else list(prompt)
        whole = whole and isinstance(prompt, str)
        if task.answers or whole:
            return task.prompt(ids, tokenizer, config.encoder_layers > 0)
        return [], ids

    encoded = []
    for prompt, s in zip(prompts, full, strict=True):
        side, ids = encode(prompt, whole=prefix is None)
        one = Request(
            prompt=prompt if isinstance(prompt, str) else tokenizer.decode(prompt),
            ids=ids or border,
            settings=s,
            side=side,
            mask=mask,
        )
        if s.guidance != 1 and mask is None:
            side, ids = encode(s.negative_prompt)
            one = one._replace(negative=ids or end_of(tokenizer), negative_side=side)
        require(
            bool(one.prompt) or not task.answers,
            "the prompt is empty, and this model answers texts; give one (--prompt TEXT).",
        )
        _check_room(config, one, len(prefix or ()))
        encoded.append(one)
    return encoded


def check_prefix(task: Task, tokenizer: Tokenizer, shared: bool = True) -> None:
    """Refuses a prefix that prompts share where each is read as a whole."""
    whole = task.answers or task.mask_id(tokenizer) is not None
    require(not (shared and whole), NO_PREFIX)


def end_of(tokenizer: Tokenizer) -> list[int]:
    """The id that ends a document, if the tokenizer has one."""
    return [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]


def _settings(settings: SampleConfig | Sequence[SampleConfig], count: int) -> list[GenerateConfig]:
    """The settings of each prompt, in full."""
    each = [settings] * count if isinstance(settings, SampleConfig) else list(settings)
    require(
        len(each) == count,
        f"there are {count} prompts and {len(each)} settings; give one for all, or one for each.",
    )
    return [
        s if isinstance(s, GenerateConfig) else GenerateConfig(**dataclasses.asdict(s))
        for s in each
    ]


def _check_model(config: ModelConfig, task: Task, mask: int | None) -> None:
    require(
        not config.classes,
        "this model classifies texts and does not continue them; `classify` gives their labels.",
    )
    require(
        config.frames is None,
        "this model writes what it hears, not what follows a prompt: gptjax transcribe FILE --model"
        " MODEL.",
    )
    able = config.causal and task.writes and (task.answers or config.continues)
    require(
        task.writes or mask is not None or not config.causal,
        f"{type(task).__name__}, the task of this model, says nothing of writing; a task whose"
        " models continue a text says so by writes = True in its class.",
    )
    require(
        able or (mask is not None and not config.causal),
        "this model fills in masked tokens and does not continue a text: write [MASK] where a token"
        " is hidden, and use `gptjax sample` or `Model.fill`.",
    )


def _check_room(config: ModelConfig, one: Request, before: int) -> None:
    hidden = one.settings.prompt_logprobs and (config.encoder_layers > 0 or config.prefix_lm)
    require(
        not hidden,
        "prompt_logprobs needs a model that reads its prompt one token after another, and this one"
        " does not (--prompt-logprobs False).",
    )
    if one.mask is None or one.ids:
        _check_length(config, "prompt", before + len(one.ids), len(one.side))
    if one.settings.guidance != 1 and one.mask is None:
        _check_length(config, "negative prompt", len(one.negative), len(one.negative_side))


def _check_length(config: ModelConfig, name: str, count: int, side: int) -> None:
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
        side <= config.context,
        f"a {name} has {side} tokens and the encoder reads {config.context}; shorten it.",
    )


def _check_settings(full: Sequence[GenerateConfig], size: int, fills_in: bool) -> None:
    for text in {s.watermark for s in full if s.watermark}:
        watermark_of(text)
    for s in full:
        check_unmasking(s, fills_in)
        _check_shared(full[0], s)
        _check_ids(s, size)


def _check_shared(first: GenerateConfig, other: GenerateConfig) -> None:
    """Refuses settings that can't be in one call."""
    names = [
        " and ".join(name for name in s.strategies if name != "guidance") or "none"
        for s in (first, other)
    ]
    require(
        names[0] == names[1],
        f"one prompt asks for the strategy {names[0]}, another for {names[1]}; such prompts can't"
        " share a call.",
    )
    for name in SHARED:
        values = getattr(first, name), getattr(other, name)
        require(
            values[0] == values[1],
            f"{name} is {values[0]} for one prompt and {values[1]} for another; such prompts can't"
            " share a call.",
        )


def _check_ids(s: GenerateConfig, size: int) -> None:
    """Refuses ids and counts beyond a vocabulary of this size."""
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
    banned = set(s.banned)
    left = len(set(s.allowed) - banned) if s.allowed else size - len(banned)
    require(
        left > 0,
        "banned leaves no token to write; ban fewer (--banned), or allow more (--allowed).",
    )
