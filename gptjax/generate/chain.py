"""The chain of transforms in their order, and the choice of a token at its end.

`Sampling` holds the settings of all rows. If its `shaping` is `None`, only top-k, top-p and
temperature are in the program; that is the one way in which settings change what is compiled. Each
transform runs only if some row asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Int, Keys
from gptjax.generate import transforms
from gptjax.generate.constraints import Constraint, allowed, next_states
from gptjax.generate.history import History, counts
from gptjax.generate.timestamps import Spoken, spoken_rules
from gptjax.generate.watermark import Marks, favour_green


class Shaping(NamedTuple):
    """Everything that shapes a row's next token besides temperature, top-k and top-p; see the
    transform of the same name."""

    min_p: Float[Array, " B"]
    typical_p: Float[Array, " B"]
    top_n_sigma: Float[Array, " B"]
    xtc_probability: Float[Array, " B"]
    xtc_threshold: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    """Of ids in the prompt and in the answer."""
    presence_penalty: Float[Array, " B"]
    """Of ids in the answer."""
    frequency_penalty: Float[Array, " B"]
    """Of ids in the answer."""
    penalty_window: Int[Array, " B"]
    """Number of last tokens that the three penalties look at; 0 is all."""
    dry_multiplier: Float[Array, " B"]
    dry_base: Float[Array, " B"]
    dry_allowed_length: Int[Array, " B"]
    dry_breakers: Bool[Array, "B V"]
    no_repeat_ngram: Int[Array, " B"]
    logit_bias: Float[Array, "B V"]
    """-inf bans an id."""
    min_new_tokens: Int[Array, " B"]
    forced: Int[Array, "B M"]
    """The id of token number i of the answer; −1 is free."""
    watermark: Marks | None = None
    """`None` if no row ever has one."""
    constraint: Constraint | None = None
    """`None` if no row has one."""
    spoken: Spoken | None = None
    """The rules of a speech recogniser; `None` for other models."""


class Sampling(NamedTuple):
    """How each row chooses its next token."""

    temperature: Float[Array, " B"]
    """0 takes the most likely token; 1 samples the model's own distribution."""
    top_k: Int[Array, " B"]
    """Number of most likely tokens to keep; V changes nothing."""
    top_p: Float[Array, " B"]
    """Probability mass of the most likely tokens to keep; 1 changes nothing."""
    shaping: Shaping | None = None
    """The rest; `None` if no row asks for any of it."""


def neutral(rows: int, vocabulary: int, forced: int = 1) -> Shaping:
    """The shaping that changes nothing, with room for `forced` forced tokens."""
    zeros, ones, none = jnp.zeros(rows), jnp.ones(rows), jnp.zeros(rows, jnp.int32)
    return Shaping(
        min_p=zeros,
        typical_p=ones,
        top_n_sigma=zeros,
        xtc_probability=zeros,
        xtc_threshold=ones,
        repetition_penalty=ones,
        presence_penalty=zeros,
        frequency_penalty=zeros,
        penalty_window=none,
        dry_multiplier=zeros,
        dry_base=ones,
        dry_allowed_length=none,
        dry_breakers=jnp.zeros((rows, vocabulary), bool),
        no_repeat_ngram=none,
        logit_bias=jnp.zeros((rows, vocabulary)),
        min_new_tokens=none,
        forced=jnp.full((rows, forced), -1, jnp.int32),
    )


class _Link(NamedTuple):
    """One transform of the chain."""

    asked: Callable[[Sampling, int], Bool[Array, " B"]] | None
    """The rows that ask for it. `None` means that it costs nothing and always runs."""
    change: Callable[[Array, Sampling, History, Keys], Array]
    plain: bool = False
    """It is part of the chain without `shaping` too."""


def _penalties(logits: Array, sampling: Sampling, history: History, _: Keys) -> Array:
    s = sampling.shaping
    window = jnp.where(s.penalty_window > 0, history.length - s.penalty_window, 0)
    seen = counts(history, logits.shape[1], window)
    written = counts(history, logits.shape[1], jnp.maximum(window, history.prompt))
    logits = transforms.repetition_penalty(logits, seen, s.repetition_penalty)
    logits = transforms.presence_penalty(logits, written, s.presence_penalty)
    return transforms.frequency_penalty(logits, written, s.frequency_penalty)


def _dry(logits: Array, sampling: Sampling, history: History, _: Keys) -> Array:
    s = sampling.shaping
    return transforms.dry(
        logits, history, s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_breakers
    )


def _xtc(logits: Array, sampling: Sampling, _: History, keys: Keys) -> Array:
    coin = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    return transforms.xtc(
        logits, sampling.shaping.xtc_threshold, coin < sampling.shaping.xtc_probability
    )


def _open(s: Sampling) -> Bool[Array, " B"]:
    """Rows in which truncation matters: not those at temperature 0 that nothing else shapes."""
    return (s.temperature > 0) | (s.shaping is not None)


LINKS: dict[str, _Link] = {
    "penalties": _Link(
        lambda s, _: (
            (s.shaping.repetition_penalty != 1)
            | (s.shaping.presence_penalty != 0)
            | (s.shaping.frequency_penalty != 0)
        ),
        _penalties,
    ),
    "no_repeat_ngram": _Link(
        lambda s, _: s.shaping.no_repeat_ngram > 0,
        lambda x, s, history, _: transforms.no_repeat_ngram(x, history, s.shaping.no_repeat_ngram),
    ),
    "dry": _Link(lambda s, _: s.shaping.dry_multiplier > 0, _dry),
    "top_n_sigma": _Link(
        lambda s, _: s.shaping.top_n_sigma > 0,
        lambda x, s, *_: transforms.top_n_sigma(x, s.shaping.top_n_sigma),
    ),
    "top_k": _Link(
        lambda s, size: (s.top_k < size) & _open(s),
        lambda x, s, *_: transforms.top_k(x, s.top_k),
        plain=True,
    ),
    "typical_p": _Link(
        lambda s, _: s.shaping.typical_p < 1,
        lambda x, s, *_: transforms.typical_p(x, s.shaping.typical_p),
    ),
    "top_p": _Link(
        lambda s, _: (s.top_p < 1) & _open(s),
        lambda x, s, *_: transforms.top_p(x, s.top_p),
        plain=True,
    ),
    "min_p": _Link(
        lambda s, _: s.shaping.min_p > 0, lambda x, s, *_: transforms.min_p(x, s.shaping.min_p)
    ),
    "xtc": _Link(lambda s, _: s.shaping.xtc_probability > 0, _xtc),
    "temperature": _Link(
        None, lambda x, s, *_: transforms.temperature(x, s.temperature), plain=True
    ),
}

ORDER = tuple(LINKS)
"""As in llama.cpp; no-repeat-n-gram, which it lacks, comes with the others that look back.
Constraint, bias, minimum and the rules of speech come before the chain, the watermark and forced
tokens after it."""


def shape(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    history: History,
    keys: Keys,
    stop: Int[Array, "B stops"],
    order: tuple[str, ...] = ORDER,
) -> Float[Array, "B V"]:
    """Applies the whole chain. A row of which the chain would leave nothing keeps its logits from
    before it; a constraint always holds.

    Args:
      keys: of the tokens that are chosen next; only XTC uses them.
      stop: ids that end a row, for the minimum of new tokens; −1 matches none.
      order: names of `LINKS`; static.
    """
    size, s, written = logits.shape[1], sampling.shaping, history.length - history.prompt
    if s is not None:
        given = (
            logits
            if s.constraint is None
            else jnp.where(allowed(s.constraint, history.state, written, size), logits, -jnp.inf)
        )
        logits = transforms.min_new_tokens(
            transforms.logit_bias(given, s.logit_bias), written, s.min_new_tokens, stop
        )
        logits = _unless_nothing(logits, given)
        if s.spoken is not None:
            logits = _unless_nothing(spoken_rules(logits, history, s.spoken), logits)
    shaped = logits
    for link in (LINKS[name] for name in order if LINKS[name].plain or s is not None):

        def change(x, link=link):
            return link.change(x, sampling, history, keys)

        shaped = (
            change(shaped)
            if link.asked is None
            else jax.lax.cond(jnp.any(link.asked(sampling, size)), change, lambda x: x, shaped)
        )
    if s is None:
        return shaped
    shaped = _unless_nothing(shaped, logits)
    if (marks := s.watermark) is not None:
        shaped = jax.lax.cond(
            jnp.any(marks.least > 0),
            lambda x: favour_green(x, history, marks),
            lambda x: x,
            shaped,
        )
    return transforms.forced_tokens(shaped, written, s.forced)


def _unless_nothing(
    logits: Float[Array, "B V"], before: Float[Array, "B V"]
) -> Float[Array, "B V"]:
    """The logits; in rows of which nothing is left, those from before."""
    return jnp.where(jnp.any(jnp.isfinite(logits), axis=-1, keepdims=True), logits, before)


def track(sampling: Sampling, history: History, token: Int[Array, " B"]) -> Int[Array, " B"] | None:
    """The state of each row in its constraint after one more token; `None` if nothing is
    constrained."""
    constraint = sampling.shaping and sampling.shaping.constraint
    return constraint and next_states(constraint, history.state, token)


def choose(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    history: History,
    keys: Keys,
    stop: Int[Array, "B stops"],
    order: tuple[str, ...] = ORDER,
) -> Int[Array, " B"]:
    """Chooses each row's next token: `draw` from what `shape` leaves."""
    return draw(shape(logits, sampling, history, keys, stop, order), sampling.temperature, keys)


def draw(
    logits: Float[Array, "B V"], temperature: Float[Array, " B"], keys: Keys
) -> Int[Array, " B"]:
    """Draws from shaped logits, each row with its own key; a row at temperature 0 takes its most
    likely token."""

    def best():
        return jnp.argmax(logits, axis=-1)

    def drawn():
        return jnp.where(temperature > 0, jax.vmap(jax.random.categorical)(keys, logits), best())

    return jax.lax.cond(jnp.any(temperature > 0), drawn, best).astype(
        jnp.int32
    )  # greedy rows need no noise, which is drawn for the whole vocabulary


def probabilities(
    logits: Float[Array, "B V"], temperature: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """The distribution from which `draw` draws."""
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
    return jnp.where((temperature > 0)[:, None], jax.nn.softmax(logits, axis=-1), best)


def token_keys(keys: Keys, number: Int[Array, " B"]) -> Keys:
    """The key of each row's token of that number: a function of the row's key and the number,
    whichever loop draws it."""
    return jax.vmap(jax.random.fold_in)(keys, number)
