"""Everything that `gptjax look` shows of one prompt, gathered from a model.

Read `look_at`; each picture is a compiled function of the parameters and the tokens below it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Int, Params
from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import OpenedModel
from gptjax.generate.masked import hidden_ids, mask_id
from gptjax.lab.look.attribution import grad_input, integrated_gradients, occlusion
from gptjax.lab.look.direct import direct_attribution
from gptjax.lab.look.edits import layers_with
from gptjax.lab.look.heads import (
    attention_patterns,
    attention_rollout,
    head_scores,
    repeated_tokens,
)
from gptjax.lab.look.lens import Reading, lens_logits, read_lens, residual_streams
from gptjax.lab.look.measures import answer_logits, at_position, logit_difference
from gptjax.lab.look.page import Look
from gptjax.lab.look.patching import patch_heads, patch_positions
from gptjax.model import ModelConfig

LONGEST = 128
"""Tokens of a prompt that a page can show."""
REPEATED = 24
"""Random tokens that are repeated to tell heads apart."""
TOP = 4
"""Tokens that the lens names in each place."""


class Question(NamedTuple):
    """A prompt as ids, and between which two tokens the answer is."""

    ids: list[int]
    at: int
    """Position at which the model answers."""
    answer: int
    foil: int


def look_at(
    opened: OpenedModel,
    name: str,
    prompt: str,
    *,
    against: str | None = None,
    answer: str | None = None,
    foil: str | None = None,
    points: int = 64,
    seed: int = 0,
) -> Look:
    """Looks at what a model computes from a prompt.

    Args:
      name: of the model, for the page.
      against: another prompt with as many tokens, into which activations are patched.
      answer: a token in place of the likeliest.
      foil: the token that it is compared with; `None` is the likeliest of `against`, or the second.
      points: of integrated gradients.
      seed: of the random tokens that tell heads apart.

    Raises:
      ConfigError: the model has no output over tokens, or the prompts don't suit it or each other.
    """
    config, params, tokenizer = opened.config, opened.params, opened.tokenizer
    if tokenizer is None:
        raise ConfigError(f"{name} has no tokenizer; put its tokenizer.json beside the weights.")
    question, other = _question(opened, tokenizer, prompt, against, answer, foil)
    tokens = jnp.asarray([question.ids])
    right, wrong, at = (jnp.asarray([n]) for n in (question.answer, question.foil, question.at))
    reading, levels, patterns = _seen(config, params, tokens, at)
    chances = _chances(name, levels)
    attributions = _attributed(config, params, tokens, right, wrong, at, points)
    differences, patched = (0.0, 0.0), None
    if other is not None:
        patched, differences = _patched(
            config, params, tokens, jnp.asarray([other]), right, wrong, at
        )
    named = functools.partial(token_names, tokenizer)
    return Look(
        model=name,
        tokens=named(question.ids),
        answer=named([question.answer])[0],
        foil=named([question.foil])[0],
        at=question.at,
        chances=(float(chances[-1, question.answer]), float(chances[-1, question.foil])),
        lens=_named_reading(tokenizer, reading),
        answer_chances=chances[:, question.answer],
        attributions={n: np.asarray(one.tokens[0]) for n, one in attributions.items()},
        completeness=_completeness(attributions["integrated gradients"]),
        direct=_direct(config, params, tokens, right, wrong, at),
        patterns=np.asarray(patterns[:, 0]),
        layers=layers_with(config, "attention"),
        kinds=_kinds(config, params, tokenizer.vocab_size, seed),
        rollout=None if config.causal else np.asarray(attention_rollout(patterns)[0]),
        against=() if other is None else named(other),
        patched=patched,
        differences=differences,
    )


def token_names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Returns what each id spells, or the name of a control token."""
    controls = {control.id: name for name, control in tokenizer.controls.items()}
    names = []
    for one in ids:
        known = one < tokenizer.vocab_size
        text = tokenizer.token_bytes([one]).decode("utf-8", "replace") if known else ""
        names.append(text or controls.get(one, f"<{one}>"))
    return names


# --- the question


def _question(
    opened: OpenedModel,
    tokenizer: Tokenizer,
    prompt: str,
    against: str | None,
    answer: str | None,
    foil: str | None,
) -> tuple[Question, list[int] | None]:
    """The prompt with its answer and foil, and the ids of the other prompt."""
    config, params = opened.config, opened.params
    require(
        not (config.classes or config.has_encoder) and bool(layers_with(config, "attention")),
        "look shows decoders and encoders over tokens whose layers attend; this model has classes,"
        " an encoder beside its decoder, or no attention.",
    )
    ids = _prompt_ids(opened, tokenizer, prompt, "--prompt")
    at = len(ids) - 1 if config.causal else ids.index(_mask(opened, tokenizer))
    other = None if against is None else _prompt_ids(opened, tokenizer, against, "--against")
    require(
        other is None or len(other) == len(ids),
        f"--prompt has {len(ids)} tokens and --against {len(other or ())}; patching puts a position"
        " of one in the other's, so choose prompts of as many tokens.",
    )
    known = tokenizer.vocab_size
    likely = _likeliest(config, params, ids, at)
    right = _one_id(tokenizer, answer, "--answer") if answer else int(likely[likely < known][0])
    if foil:
        wrong = _one_id(tokenizer, foil, "--foil")
    else:
        choices = likely if other is None else _likeliest(config, params, other, at)
        choices = choices[(choices < known) & (choices != right)]
        wrong = int(choices[0])
    require(
        right != wrong,
        f"answer and foil are the same token {token_names(tokenizer, [right])[0]!r}; give two"
        " different (--answer, --foil).",
    )
    return Question(ids, at, right, wrong), other


def _prompt_ids(opened: OpenedModel, tokenizer: Tokenizer, prompt: str, flag: str) -> list[int]:
    config = opened.config
    if config.causal:
        spelled = tokenizer.encode(prompt).tolist()
        ids = opened.task.prompt(spelled, tokenizer, with_encoder=False)[1]
    else:
        ids = hidden_ids(config, tokenizer, prompt, _mask(opened, tokenizer)).tolist()
    longest = min(LONGEST, config.context)
    require(
        2 <= len(ids) <= longest,
        f"{flag} has {len(ids)} tokens; a page shows 2 to {longest}.",
    )
    return [int(one) for one in ids]


def _mask(opened: OpenedModel, tokenizer: Tokenizer) -> int:
    """The id of a hidden token of an encoder."""
    return mask_id(opened.config, tokenizer, getattr(opened.task, "mask", None))


def _one_id(tokenizer: Tokenizer, text: str, flag: str) -> int:
    ids = tokenizer.encode(text).tolist()
    pieces = ", ".join(map(repr, token_names(tokenizer, ids)))
    require(
        len(ids) == 1,
        f"{flag} {text!r} is {len(ids)} tokens ({pieces}); give one token, with its space if it has"
        ' one: " Mary".',
    )
    return int(ids[0])


def _likeliest(config: ModelConfig, params: Params, ids: list[int], at: int) -> np.ndarray:
    """All tokens, the likeliest first."""
    logits = _logits(config, params, jnp.asarray([ids]), jnp.asarray([at]))
    return np.argsort(-np.asarray(logits[0]), kind="stable")


# --- compiled functions


def _reading(config: ModelConfig, tokens: Int[Array, "B T"]) -> dict[str, Array]:
    """How `forward` reads a prompt as sampling does: of a prefix LM all but its last token see each
    other."""
    return {"prefix": jnp.full(tokens.shape, tokens.shape[1] - 1)} if config.prefix_lm else {}


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: ModelConfig, params: Params, tokens: Int[Array, "B T"], at: Array) -> Array:
    hidden = model.forward(config, params, tokens, **_reading(config, tokens)).hidden
    return answer_logits(config, params, hidden, at)


@functools.partial(jax.jit, static_argnums=0)
def _seen(config: ModelConfig, params: Params, tokens: Array, at: Array) -> Any:
    """What the lens reads, ln p of all tokens by level where the answer is given, and patterns."""
    how = _reading(config, tokens)
    streams = residual_streams(config, params, tokens, **how)
    there = jax.vmap(lambda stream: at_position(stream, at))(streams)
    levels = jax.nn.log_softmax(lens_logits(config, params, there))
    reading = read_lens(config, params, tokens, TOP, **how)
    return reading, levels, attention_patterns(config, params, tokens, **how)


def _chances(name: str, levels: Array) -> np.ndarray:
    """Probabilities [levels V] of the one row; refuses a model that gives none."""
    chances = np.exp(np.asarray(levels[:, 0]))
    require(
        not np.isnan(chances).any(),
        f"{name} gives logits that are no numbers: its training diverged, or its weights are"
        " damaged.",
    )
    return chances


def _named_reading(tokenizer: Tokenizer, reading: Reading) -> list[list[list[tuple[str, float]]]]:
    """[levels T top] tokens with their probabilities, of the one row."""
    ids, chances = np.asarray(reading.ids[:, 0]), np.exp(np.asarray(reading.logprobs[:, 0]))
    return [
        [
            list(zip(token_names(tokenizer, place.tolist()), p.tolist(), strict=True))
            for place, p in zip(*level, strict=True)
        ]
        for level in zip(ids, chances, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 6))
def _attributed(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    right: Array,
    wrong: Array,
    at: Array,
    points: int,
) -> Any:
    measure = logit_difference(config, params, right, wrong, at)
    given, how = (config, params, tokens, measure), _reading(config, tokens)
    return {
        "integrated gradients": integrated_gradients(*given, steps=points, **how),
        "gradient × input": grad_input(*given, **how),
        "occlusion": occlusion(*given, **how),
    }


def _completeness(found: Any) -> tuple[float, float]:
    return float(found.error[0]), float((found.value - found.baseline)[0])


@functools.partial(jax.jit, static_argnums=0)
def _directly(
    config: ModelConfig, params: Params, tokens: Array, right: Array, wrong: Array, at: Array
) -> Any:
    how = _reading(config, tokens)
    return direct_attribution(config, params, tokens, right, wrong, at, **how)


def _direct(
    config: ModelConfig, params: Params, *asked: Array
) -> tuple[np.ndarray, np.ndarray] | None:
    if config.norm_placement == "post" or config.head_transform:
        return None
    found = _directly(config, params, *asked)
    return np.asarray(found.heads[..., 0]), np.asarray(found.mlps[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _patches(
    config: ModelConfig,
    params: Params,
    clean: Array,
    corrupted: Array,
    right: Array,
    wrong: Array,
    at: Array,
) -> Any:
    measure = logit_difference(config, params, right, wrong, at)
    given, how = (config, params, clean, corrupted, measure), _reading(config, clean)
    return patch_positions(*given, **how), patch_heads(*given, **how)


def _patched(config: ModelConfig, params: Params, *asked: Array) -> Any:
    """Both grids, and the logit differences without any patch."""
    positions, heads = _patches(config, params, *asked)
    both = np.asarray(positions.recovered), np.asarray(heads.recovered)
    return both, (float(positions.clean[0]), float(positions.corrupted[0]))


@functools.partial(jax.jit, static_argnums=0)
def _scored(config: ModelConfig, params: Params, tokens: Array) -> Any:
    return head_scores(attention_patterns(config, params, tokens), tokens)


def _kinds(config: ModelConfig, params: Params, known: int, seed: int) -> dict[str, np.ndarray]:
    """Scores of heads on repeated random tokens; none of an encoder or a tiny context."""
    half = min(REPEATED, config.context // 2, known)
    if not config.causal or half < 4:
        return {}
    tokens = repeated_tokens(jax.random.key(seed), 4, half, known)
    return {kind: np.asarray(s) for kind, s in _scored(config, params, tokens).items()}
