"""Settings of generation: `SampleConfig` is enough for an evaluation, `GenerateConfig` has all.

A wrong value is refused here by its name; settings that depend on a tokenizer or a model are
checked in `request`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from gptjax.core.config import require
from gptjax.generate.chain import ORDER
from gptjax.model import KVCache


@dataclass(frozen=True)
class SampleConfig:
    """Settings of sampling."""

    new_tokens: int = 128
    """Maximum number of tokens to write; a full context ends the text earlier."""
    temperature: float = 0.8
    """0 always takes the most likely token; 1 samples the model's own distribution."""
    top_k: int = 0
    """Number of most likely tokens to choose from; 0 is all of them."""
    top_p: float = 0.95
    """Choose from the most likely tokens up to this probability mass; 1 is all of them."""
    seed: int = 0
    """The same seed, prompt and settings give the same text."""

    def __post_init__(self) -> None:
        self._check("new_tokens", self.new_tokens >= 1, "at least 1")
        self._check("temperature", _at_least(self.temperature, 0), "0 (greedy) or more")
        self._check("top_k", self.top_k >= 0, "0 (all tokens) or more")
        self._check("top_p", 0 < self.top_p <= 1, "a probability in (0, 1]")
        self._check("seed", 0 <= self.seed < 2**32, "a number in [0, 2^32)")

    def _check(self, name: str, holds: bool, need: str) -> None:
        require(
            holds, f"{name} is {getattr(self, name)}; it needs {need} (--{name.replace('_', '-')})."
        )


def _at_least(value: float, least: float) -> bool:
    return math.isfinite(value) and value >= least


@dataclass(frozen=True)
class GenerateConfig(SampleConfig):
    """All settings of generation. Each prompt of a call may have its own, except for the strategy
    and the order."""

    SYNONYMS: ClassVar[Mapping[str, str]] = {
        "do_sample": "temperature",
        "eos_token_id": "stop_ids",
        "int8_cache": "kv_cache",
        "json_schema": "schema",
        "max_length": "new_tokens",
        "max_new_tokens": "new_tokens",
        "max_tokens": "new_tokens",
        "n": "num_samples",
        "n_predict": "new_tokens",
        "no_repeat_ngram_size": "no_repeat_ngram",
        "num_beams": "beams",
        "num_return_sequences": "num_samples",
        "stop_token_ids": "stop_ids",
    }
    """Names of other programs, and old ones, for the hint where one of them is used."""

    # --- fewer candidates ---
    min_p: float = 0.0
    """Minimum probability, as a share of the most likely token's; 0 is off."""
    typical_p: float = 1.0
    """Choose from the tokens of most typical surprise up to this probability mass; 1 is off."""
    top_n_sigma: float = 0.0
    """Maximum distance from the largest logit, in standard deviations; 0 is off."""
    xtc_probability: float = 0.0
    """Probability with which top choices are excluded (XTC); 0 is off."""
    xtc_threshold: float = 0.1
    """Probability from which a token is a top choice; only the least likely of them stays."""

    # --- less repetition ---
    repetition_penalty: float = 1.0
    """Divides the logits of tokens in prompt and answer; 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that is in the answer; 0 is off."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token for each time that it is in the answer; 0 is off."""
    penalty_window: int = 0
    """Number of last tokens that these three penalties look at; 0 is all."""
    no_repeat_ngram: int = 0
    """Length in tokens of sequences that are never written twice; 0 is off."""
    dry_multiplier: float = 0.0
    """Penalty of a token that prolongs a repetition (DRY); 0 is off."""
    dry_base: float = 1.75
    """Each further token of a repetition multiplies the penalty by this."""
    dry_allowed_length: int = 2
    """Repetitions shorter than this many tokens have no penalty."""
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """A repetition ends at a token that has one of these."""

    # --- named tokens ---
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id and what is added to its logit."""
    banned: tuple[int, ...] = ()
    """Ids that are never written."""
    allowed: tuple[int, ...] = ()
    """The only ids that may be written; empty is all."""
    forced: tuple[tuple[int, int], ...] = ()
    """Pairs of a token's number in the answer, from 0, and the id that it must be."""
    order: tuple[str, ...] = ORDER
    """Order of the transforms; each name once."""

    watermark: str = ""
    """Key file of the watermark that the text gets, made by `gptjax detect-watermark --new-key
    FILE`; from Python, what such a file holds."""

    # --- a form that the whole answer must have ---
    schema: str = ""
    """A JSON schema, as JSON."""
    regex: str = ""
    """A regular expression for the whole answer."""
    grammar: str = ""
    """A GBNF-style grammar with a rule `root`."""
    choices: tuple[str, ...] = ()
    """Texts of which the answer is one."""
    excerpt: str = ""
    """A text of which the answer is a run of whole words."""

    # --- the end ---
    min_new_tokens: int = 0
    """Number of tokens before which no stop token is written."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""
    stop_ids: tuple[int, ...] = ()
    """Ids at which the answer ends, besides the end of a document."""
    max_seconds: float | None = None
    """Time limit of an answer, compiling included; `None` is no limit."""

    # --- what comes out ---
    use: str | None = None
    """Name of the adapter that serves the prompt; `base` uses none. `None` is the first, if the
    model holds any (--adapter NAME=DIR)."""
    num_samples: int = 1
    """Number of answers to each prompt; with beams, the best ones."""
    best_of: int = 0
    """Number of answers to draw, of which the `num_samples` that are most like all others are kept
    (minimum Bayes risk); 0 is off."""
    top_logprobs: int = 0
    """Number of most likely tokens to return at each place."""
    prompt_logprobs: bool = False
    """Also return the log-probability of each token of the prompt."""

    # --- the strategy ---
    guidance: float = 1.0
    """Scale of classifier-free guidance away from the negative prompt; 1 is off."""
    negative_prompt: str = ""
    """The prompt that guidance moves away from; empty is the model without a prompt."""
    beams: int = 1
    """Number of beams, to search for the likeliest answer instead of sampling; 1 is off."""
    beam_groups: int = 1
    """Number of groups of beams that must differ (diverse beam search)."""
    diversity: float = 0.5
    """Penalty of a token for each beam of an earlier group that took it."""
    length_penalty: float = 1.0
    """Beams are compared by log-probability / length to this power; larger favours longer
    answers."""
    early_stopping: Literal["no", "yes", "never"] = "no"
    """Beam search ends at the first whole answers (yes), when better ones are unlikely (no), or
    impossible (never)."""
    contrastive_alpha: float = 0.0
    """Contrastive search among `top_k` candidates: the weight of being unlike the text before; 0 is
    off."""
    lookup: bool = False
    """Guess tokens from earlier text and check many at once: faster, with the same distribution."""
    draft_tokens: int = 5
    """Number of guesses checked at once, with look-up or a draft model."""
    kv_cache: KVCache = "full"
    """How keys and values are kept: in 8 bits they need about a quarter of the memory of float32
    (half of bfloat16's), in 4 bits about a seventh (two sevenths), with more and more other
    logits."""

    # --- models of masked diffusion ---
    denoising_steps: int = 0
    """Number of forward passes in which the masks of an answer are filled in, in equal parts; 0 is
    one for each token."""
    block_length: int = 0
    """Number of tokens that are filled in together before those after them; 0 is all of the
    answer."""
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    """Which guesses are masked again: the least likely ones, or random ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in _RANGES:
            value = getattr(self, name)
            above = math.isfinite(value) and value >= low
            self._check(
                name,
                above and value <= high,
                f"a number from {low} to {high}" if math.isfinite(high) else f"{low} or more",
            )
        self._check("typical_p", 0 < self.typical_p <= 1, "a probability in (0, 1]")
        self._check(
            "repetition_penalty",
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "a number above 0 (1 is off)",
        )
        for name in ("presence_penalty", "frequency_penalty", "length_penalty", "guidance"):
            self._check(name, math.isfinite(getattr(self, name)), "a finite number")
        self._check(
            "max_seconds",
            self.max_seconds is None or (math.isfinite(self.max_seconds) and self.max_seconds > 0),
            "a time above 0",
        )
        self._check("stop", all(self.stop), "texts that are not empty")
        self._check("dry_breakers", all(self.dry_breakers), "texts that are not empty")
        self._check(
            "logit_bias",
            all(math.isfinite(bias) for _, bias in self.logit_bias),
            "finite numbers; --banned bans an id",
        )
        self._check(
            "forced", all(number >= 0 for number, _ in self.forced), "numbers of tokens from 0 on"
        )
        self._check("order", sorted(self.order) == sorted(ORDER), f"each of {' '.join(ORDER)} once")
        self._check(
            "early_stopping", self.early_stopping in ("no", "yes", "never"), "no, yes or never"
        )
        self._check("kv_cache", self.kv_cache in get_args(KVCache), "full, int8 or int4")
        self._check(
            "remasking",
            self.remasking in ("low_confidence", "random"),
            "low_confidence or random",
        )
        self._check(
            "min_new_tokens",
            self.min_new_tokens <= self.new_tokens,
            f"at most new_tokens, which is {self.new_tokens}",
        )
        self._check_strategy()

    def _check_strategy(self) -> None:
        self._check(
            "beam_groups",
            self.beams % self.beam_groups == 0,
            f"a number that divides the {self.beams} beams",
        )
        self._check(
            "num_samples",
            self.beams == 1 or self.num_samples <= self.beams,
            f"at most one answer for each of the {self.beams} beams",
        )
        self._check(
            "best_of",
            not self.best_of or self.best_of >= self.num_samples,
            f"0, or at least num_samples, which is {self.num_samples}",
        )
        self._check(
            "contrastive_alpha",
            self.contrastive_alpha == 0 or self.top_k >= 1,
            "candidates to choose from: --top-k 4, for example",
        )
        self._check(
            "num_samples",
            not self.contrastive_alpha or self.num_samples == 1,
            "to be 1 with --contrastive-alpha, which draws nothing",
        )
        forms = [name for name in (*_CONSTRAINTS, "forced") if getattr(self, name)]
        require(len(forms) < 2, f"{' and '.join(forms)} can't be joined; choose one of them.")
        chosen = self.strategies
        require(len(chosen) < 2, f"{' and '.join(chosen)} can't be joined; choose one of them.")
        if self.beams > 1:
            for name, off in (
                ("max_seconds", None),
                ("best_of", 0),
                ("top_logprobs", 0),
                ("xtc_probability", 0.0),
            ):
                self._check(name, getattr(self, name) == off, "to be omitted with --beams")

    @property
    def strategies(self) -> list[str]:
        """Names of the settings that choose a way of writing other than one token after another."""
        asked = {
            "beams": self.beams > 1,
            "contrastive_alpha": self.contrastive_alpha > 0,
            "guidance": self.guidance != 1,
            "lookup": self.lookup,
        }
        return [name for name, is_asked in asked.items() if is_asked]

    @property
    def constraint(self) -> tuple[str, str | tuple[str, ...]] | None:
        """The setting that constrains the whole answer, and its value."""
        return next(
            ((name, getattr(self, name)) for name in _CONSTRAINTS if getattr(self, name)), None
        )

    @property
    def shaped(self) -> bool:
        """Whether more than temperature, top-k and top-p shapes a token."""
        return (
            self.order != ORDER
            or self.constraint is not None
            or any(getattr(self, f.name) != f.default for f in fields(self) if f.name in _SHAPING)
        )


def plain(name: str, value: Any) -> Any:
    """A setting as `config.from_dict` reads it: a schema and a watermark may be given as an object,
    and one text where several are possible."""
    if name in ("schema", "watermark") and isinstance(value, dict):
        return json.dumps(value)
    several = name in ("stop", "choices", "dry_breakers")
    return [value] if several and isinstance(value, str) else value


_RANGES = (
    *(
        (name, 0.0, 1.0)
        for name in ("min_p", "xtc_probability", "xtc_threshold", "contrastive_alpha")
    ),
    *((name, 0.0, math.inf) for name in ("top_n_sigma", "dry_multiplier", "diversity")),
    *(
        (name, 0, math.inf)
        for name in (
            "penalty_window",
            "no_repeat_ngram",
            "min_new_tokens",
            "best_of",
            "top_logprobs",
            "denoising_steps",
            "block_length",
        )
    ),
    *(
        (name, 1, math.inf)
        for name in ("dry_base", "dry_allowed_length", "num_samples", "beams", "beam_groups")
    ),
    ("draft_tokens", 1, 256),
)
"""Setting, least value, largest value."""

_CONSTRAINTS = ("schema", "regex", "grammar", "choices", "excerpt")

_SHAPING = {
    *(
        "min_p",
        "typical_p",
        "top_n_sigma",
        "xtc_probability",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ),
    *(
        "watermark",
        "no_repeat_ngram",
        "dry_multiplier",
        "logit_bias",
        "banned",
        "allowed",
        "forced",
        "min_new_tokens",
    ),
}
"""Settings that put the full chain into the program."""
