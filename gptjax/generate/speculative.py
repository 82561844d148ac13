"""Speculative decoding: several tokens are guessed cheaply, the model reads them all at once, and
keeps those that it would have drawn.

The guesses come from a smaller model (`draft`) or from the row itself, from what followed when its
end was seen before (`look_up`). Either way what is written has exactly the law of `decode`, and
with temperature 0 it is `decode`'s text. `accept` is the rule, alone and pure; `speculate` is the
compiled loop, and `_round` one turn of it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Bool, Float, Int, Keys, Params
from gptjax.generate.chain import ORDER, Sampling, probabilities, shape, token_keys, track
from gptjax.generate.decode import Text, append, peek, within, writing
from gptjax.generate.history import History, repeats
from gptjax.model import Cache, ModelConfig

LONGEST_MATCH = 8
"""Look-up tells matches of up to so many tokens apart; of longer ones it takes the latest."""


class Guesses(NamedTuple):
    """What may come next in each row; G guesses."""

    ids: Int[Array, "B G"]
    law: Float[Array, "B G V"]
    """The probabilities from which each was drawn."""
    count: Int[Array, " B"]
    """Only the first so many count."""


def accept(
    guesses: Guesses, target: Float[Array, "B after V"], keys: Any
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """How many guesses of each row are kept, and the token after them. Together they have the
    target's law, whatever the guesses.

    A guess is kept with probability min(1, target/law). After the first that is not, the token is
    drawn from what the target has more than the law; after all of them, from the target.

    Args:
      target: the probabilities at each place, given the guesses before it; one place more than
        guesses.
      keys: one key a row and place.

    Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding,
    arXiv:2211.17192, algorithm 1.
    """
    rows, most = guesses.ids.shape
    real = jnp.arange(most)[None] < guesses.count[:, None]

    def of(table):
        return jnp.take_along_axis(table[:, :most], guesses.ids[:, :, None], axis=2)[:, :, 0]

    coin = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 2))))(
        keys[:, :most]
    )
    kept = real & (coin * of(guesses.law) < of(target))
    count = jnp.sum(jnp.cumprod(kept, axis=1), axis=1)
    law = jnp.pad(jnp.where(real[:, :, None], guesses.law, 0.0), ((0, 0), (0, 1), (0, 0)))
    wanted, known = (
        jnp.take_along_axis(table, count[:, None, None], axis=1)[:, 0] for table in (target, law)
    )
    rest = jnp.maximum(wanted - known, 0.0)
    rest = jnp.where(
        jnp.any(rest > 0, axis=-1, keepdims=True), rest, wanted
    )  # nothing is left where they differ by rounding alone
    return count, jax.vmap(jax.random.categorical)(
        keys[jnp.arange(rows), count], jnp.log(rest)
    ).astype(jnp.int32)


def look_up(history: History, most: int, vocabulary: int) -> Guesses:
    """Guesses what came after the longest end of each row that stands in it before; of equally long
    ones, after the latest.

    Where that comes to the row's end it goes round, so a row that repeats itself is guessed to go
    on so.

    Source: Saxena 2023, Prompt Lookup Decoding; Yang et al. 2023, Inference with Reference,
    arXiv:2304.04487.
    """
    matched = repeats(history, most=LONGEST_MATCH)
    slots = matched.shape[1]
    place = jnp.argmax(matched * slots + jnp.arange(slots)[None], axis=1)
    found = jnp.take_along_axis(matched, place[:, None], axis=1)[:, 0] > 0
    period = jnp.maximum(history.length - place, 1)
    ids = jnp.take_along_axis(
        history.ids, place[:, None] + jnp.arange(most)[None] % period[:, None], axis=1
    )
    return Guesses(ids, jax.nn.one_hot(ids, vocabulary), jnp.where(found, most, 0))


class Setting(NamedTuple):
    """What the program is made for; static."""

    config: ModelConfig
    draft: ModelConfig | None
    """A smaller model with the same vocabulary; none looks guesses up."""
    guesses: int
    """Most guesses a round."""
    order: tuple[str, ...] = ORDER


class Speculating(NamedTuple):
    """Everything that the loop remembers. As in `Decoding`, both caches have read every token of a
    row but the last."""

    text: Text
    cache: Cache
    draft_cache: Cache | None
    guessed: Int[Array, " B"]
    """Guesses so far."""
    kept: Int[Array, " B"]
    """Those that became text."""


class _Law(NamedTuple):
    """How tokens are drawn from logits, the same for both models."""

    keys: Keys
    sampling: Sampling
    stop: Int[Array, "B stops"]
    vocabulary: Int[Array, ""]
    order: tuple[str, ...]

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        shaped = shape(
            logits,
            self.sampling,
            history,
            token_keys(self.keys, history.length - history.prompt),
            self.stop,
            self.order,
        )
        return probabilities(shaped, self.sampling.temperature)

    def states(self, history: History, guesses: Int[Array, "B G"]) -> Int[Array, "after B"] | None:
        """Where each row stands in its constraint before and after each guess; none if nothing is
        constrained."""
        if history.state is None:
            return None

        def step(state, token):
            return (
                track(self.sampling, history._replace(state=state), token),
                state,
            )

        last, before = jax.lax.scan(step, history.state, guesses.T)
        return jnp.concatenate([before, last[None]])


@functools.partial(jax.jit, static_argnames="setting", donate_argnames="state")
def speculate(
    setting: Setting,
    params: Params,
    draft_params: Params | None,
    state: Speculating,
    keys: Keys,
    sampling: Sampling,
    stop: Int[Array, "B stops"],
    until: Int[Array, ""],
    vocabulary: Int[Array, ""],
) -> Speculating:
    """Writes until each row is finished or has at least `until` tokens. The state that is given is
    used up."""
    law = _Law(keys, sampling, stop, vocabulary, setting.order)

    def one(state):
        return _round(setting, params, draft_params, state, law, writing(state.text, until))

    return jax.lax.while_loop(lambda state: jnp.any(writing(state.text, until)), one, state)


def _round(
    setting: Setting,
    params: Params,
    draft_params: Params,
    state: Speculating,
    law: _Law,
    active: Bool[Array, " B"],
) -> Speculating:
    text, cache, draft_cache, guessed, kept = state
    ids, prompt, length, _ = text.history
    rows, steps = jnp.arange(len(ids)), jnp.arange(setting.guesses + 1)
    most = jnp.where(active, jnp.minimum(text.limit - (length - prompt) - 1, setting.guesses), 0)
    if setting.draft is None:
        guesses = look_up(text.history, setting.guesses, setting.config.vocabulary)
    else:
        guesses, draft_cache = _draft(
            setting, draft_params, draft_cache, text.history, law, active, most
        )
    guesses = guesses._replace(count=jnp.minimum(guesses.count, most))

    place = length[:, None] + steps[None]
    ids = ids.at[rows[:, None], place[:, :-1]].set(guesses.ids, mode="drop")
    last = jnp.take_along_axis(ids, length[:, None] - 1, axis=1)
    positions = jnp.where(active[:, None] & (steps[None] <= guesses.count[:, None]), place - 1, -1)
    known, after = law.states(text.history, guesses.ids), History(ids, prompt, length, None)

    def read(places: int, cache: Cache) -> tuple[Array, Array, Cache]:
        """Logits and law at the first places, zero at the others."""
        out = model.forward(
            setting.config,
            params,
            jnp.concatenate([last, guesses.ids], axis=1)[:, :places],
            positions=positions[:, :places],
            cache=cache,
        )
        logits = within(model.unembed(setting.config, params, out.hidden), law.vocabulary)

        def at(row, i, state):
            return law(row, after._replace(length=length + i, state=state))

        first = None if known is None else known[:places]
        target = jax.vmap(at, (1, 0, 0), 1)(logits, steps[:places], first)
        rest = ((0, 0), (0, len(steps) - places), (0, 0))
        return jnp.pad(logits, rest), jnp.pad(target, rest), out.cache

    whole, one = functools.partial(read, len(steps)), functools.partial(read, 1)
    if (
        setting.draft is None
    ):  # where nobody has a guess, a round costs what a token of `decode` costs
        logits, target, cache = jax.lax.cond(jnp.any(guesses.count > 0), whole, one, cache)
    else:
        logits, target, cache = whole(cache)
    count, token = accept(
        guesses, target, jax.vmap(token_keys, (None, 1), 1)(law.keys, place - prompt[:, None])
    )

    def write(i: Array, text: Text) -> Text:
        new = jnp.where(i < count, guesses.ids[:, jnp.minimum(i, setting.guesses - 1)], token)
        return append(
            text, new, logits[:, i], law.sampling, law.stop, active & (i <= count) & ~text.finished
        )

    text = jax.lax.fori_loop(0, jnp.max(jnp.where(active, count, 0)) + 1, write, text)

    def back(cache):
        return cache and model.rollback(cache, jnp.minimum(cache.lengths, text.history.length - 1))

    return Speculating(
        text,
        back(cache),
        back(draft_cache),
        guessed + guesses.count,
        kept + jnp.where(active, count, 0),
    )


def _draft(
    setting: Setting,
    params: Params,
    cache: Cache,
    history: History,
    law: _Law,
    active: Array,
    most: Array,
) -> tuple[Guesses, Cache]:
    """Lets the smaller model write on. It reads its last guess too, so that its cache is never
    behind."""
    ids, prompt, length, _ = history

    def guess(carry: tuple, i: Array) -> tuple:
        cache, ids, known = carry
        so_far = History(ids, prompt, length + i, known)
        logits, cache = peek(setting.draft, params, cache, so_far, active & (i <= most))
        p = law(within(logits, law.vocabulary), so_far)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(
            token_keys(law.keys, so_far.length - prompt)
        )
        token = jax.vmap(jax.random.categorical)(keys, jnp.log(p)).astype(jnp.int32)
        ids = ids.at[jnp.arange(len(ids)), so_far.length].set(token, mode="drop")
        return (cache, ids, known if known is None else track(law.sampling, so_far, token)), (
            token,
            p,
        )

    (cache, *_), (tokens, laws) = jax.lax.scan(
        guess, (cache, ids, history.state), jnp.arange(setting.guesses + 1)
    )
    return (
        Guesses(tokens[:-1].T, jnp.moveaxis(laws[:-1], 0, 1), jnp.full_like(most, setting.guesses)),
        cache,
    )
