"""Speculative decoding: several tokens are guessed cheaply, the model reads them all at once, and
keeps those that it would have drawn.

The guesses come from a smaller model (`draft`) or from the row itself, from what followed when its
end occurred before (`look_up`). Either way the text has exactly the distribution of decoding token
by token, and at temperature 0 it is the same text. `accept` is the rule, alone and pure;
`speculate` is the compiled loop, and `_round` one turn of it.
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
"""Look-up compares matches by their length up to this; of longer ones it takes the latest."""


class Guesses(NamedTuple):
    """What may come next in each row; G guesses."""

    ids: Int[Array, "B G"]
    probabilities: Float[Array, "B G V"]
    """The distribution from which each was drawn."""
    count: Int[Array, " B"]
    """The number of guesses that count, from the first."""


def accept(
    guesses: Guesses, target: Float[Array, "B after V"], keys: Any
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Returns the number of guesses kept in each row, and the token after them. Together they have
    the target distribution, whatever the guesses.

    A guess is kept with probability min(1, target / its own). After the first that is not, the
    token is drawn from the excess of the target over the guess's distribution; after all of them,
    from the target.

    Args:
      target: the probabilities at each place, given the guesses before it; one place more than
        guesses.
      keys: one key per row and place.

    Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding,
    arXiv:2211.17192, algorithm 1.
    """
    rows, most = guesses.ids.shape
    counts = jnp.arange(most)[None] < guesses.count[:, None]

    def of_guesses(table: Array) -> Array:
        return jnp.take_along_axis(table[:, :most], guesses.ids[:, :, None], axis=2)[:, :, 0]

    def coin(key: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, 2))

    coins = jax.vmap(jax.vmap(coin))(keys[:, :most])
    kept = counts & (coins * of_guesses(guesses.probabilities) < of_guesses(target))
    count = jnp.sum(jnp.cumprod(kept, axis=1), axis=1)
    own = jnp.where(counts[:, :, None], guesses.probabilities, 0.0)
    own = jnp.pad(own, ((0, 0), (0, 1), (0, 0)))

    def after(table: Array) -> Array:
        return jnp.take_along_axis(table, count[:, None, None], axis=1)[:, 0]

    rest = jnp.maximum(after(target) - after(own), 0.0)
    # Nothing is left where they differ by rounding alone.
    rest = jnp.where(jnp.any(rest > 0, axis=-1, keepdims=True), rest, after(target))
    drawn = jax.vmap(jax.random.categorical)(keys[jnp.arange(rows), count], jnp.log(rest))
    return count, drawn.astype(jnp.int32)


def look_up(history: History, most: int, vocabulary: int) -> Guesses:
    """Guesses what came after the longest end of each row that occurs in it before; of equally long
    ones, after the latest.

    Where that comes to the row's end it wraps around, so a row that repeats itself is guessed to
    repeat itself again.

    Source: Saxena 2023, Prompt Lookup Decoding; Yang et al. 2023, Inference with Reference,
    arXiv:2304.04487.
    """
    matched = repeats(history, most=LONGEST_MATCH)
    slots = matched.shape[1]
    place = jnp.argmax(matched * slots + jnp.arange(slots)[None], axis=1)
    there = jnp.take_along_axis(matched, place[:, None], axis=1)[:, 0] > 0
    period = jnp.maximum(history.length - place, 1)
    source = place[:, None] + jnp.arange(most)[None] % period[:, None]
    ids = jnp.take_along_axis(history.ids, source, axis=1)
    return Guesses(
        ids=ids,
        probabilities=jax.nn.one_hot(ids, vocabulary),
        count=jnp.where(there, most, 0),
    )


class Setting(NamedTuple):
    """What the program is compiled for; static."""

    config: ModelConfig
    draft: ModelConfig | None
    """A smaller model with the same vocabulary; `None` looks guesses up."""
    guesses: int
    """The most guesses of a round."""
    order: tuple[str, ...] = ORDER


class Speculating(NamedTuple):
    """The state of the loop. As in `Decoding`, both caches have read every token of a row but the
    last."""

    text: Text
    cache: Cache
    draft_cache: Cache | None
    guessed: Int[Array, " B"]
    """Guesses so far."""
    kept: Int[Array, " B"]
    """Those that became text."""


class _Distribution(NamedTuple):
    """How tokens are drawn from logits, the same for both models."""

    keys: Keys
    sampling: Sampling
    stop: Int[Array, "B stops"]
    vocabulary: Int[Array, ""]
    order: tuple[str, ...]

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        """The probability of each next token."""
        keys = token_keys(self.keys, history.length - history.prompt)
        shaped = shape(logits, self.sampling, history, keys, self.stop, self.order)
        return probabilities(shaped, self.sampling.temperature)

    def states(self, history: History, guesses: Int[Array, "B G"]) -> Int[Array, "after B"] | None:
        """The state of each row in its constraint before and after each guess; `None` if nothing is
        constrained."""
        if history.state is None:
            return None

        def step(state: Array, token: Array) -> tuple[Array, Array]:
            return track(self.sampling, history._replace(state=state), token), state

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
    """Writes until each row is finished or has at least `until` tokens. `state` is used up."""
    distribution = _Distribution(keys, sampling, stop, vocabulary, setting.order)

    def one(state: Speculating) -> Speculating:
        active = writing(state.text, until)
        return _round(setting, params, draft_params, state, distribution, active)

    return jax.lax.while_loop(lambda state: jnp.any(writing(state.text, until)), one, state)


def _round(
    setting: Setting,
    params: Params,
    draft_params: Params | None,
    state: Speculating,
    distribution: _Distribution,
    active: Bool[Array, " B"],
) -> Speculating:
    """Guesses, reads the guesses, keeps some of them and draws one token more."""
    text = state.text
    history = text.history
    room = text.limit - (history.length - history.prompt) - 1
    most = jnp.where(active, jnp.minimum(room, setting.guesses), 0)
    draft_cache = state.draft_cache
    if setting.draft is None:
        guesses = look_up(history, setting.guesses, setting.config.vocabulary)
    else:
        guesses, draft_cache = _draft(
            setting, draft_params, draft_cache, history, distribution, active, most
        )
    guesses = guesses._replace(count=jnp.minimum(guesses.count, most))
    logits, target, cache = _read(
        setting, params, state.cache, history, guesses, distribution, active
    )
    numbers = (history.length - history.prompt)[:, None] + jnp.arange(setting.guesses + 1)[None]
    place_keys = jax.vmap(token_keys, (None, 1), 1)(distribution.keys, numbers)
    count, token = accept(guesses, target, place_keys)

    def write(i: Array, text: Text) -> Text:
        guess = guesses.ids[:, jnp.minimum(i, setting.guesses - 1)]
        new = jnp.where(i < count, guess, token)
        going = active & (i <= count) & ~text.finished
        return append(text, new, logits[:, i], distribution.sampling, distribution.stop, going)

    text = jax.lax.fori_loop(0, jnp.max(jnp.where(active, count, 0)) + 1, write, text)

    def back(cache: Cache | None) -> Cache | None:
        return cache and model.rollback(cache, jnp.minimum(cache.lengths, text.history.length - 1))

    return Speculating(
        text=text,
        cache=back(cache),
        draft_cache=back(draft_cache),
        guessed=state.guessed + guesses.count,
        kept=state.kept + jnp.where(active, count, 0),
    )


def _read(
    setting: Setting,
    params: Params,
    cache: Cache,
    history: History,
    guesses: Guesses,
    distribution: _Distribution,
    active: Bool[Array, " B"],
) -> tuple[Float[Array, "B after V"], Float[Array, "B after V"], Cache]:
    """Reads the last token and the guesses of each row: logits and target probabilities of the
    token after each."""
    steps = jnp.arange(setting.guesses + 1)
    ids, prompt, length, _ = history
    rows, place = jnp.arange(len(ids)), length[:, None] + steps[None]
    ids = ids.at[rows[:, None], place[:, :-1]].set(guesses.ids, mode="drop")
    last = jnp.take_along_axis(ids, length[:, None] - 1, axis=1)
    tokens = jnp.concatenate([last, guesses.ids], axis=1)
    positions = jnp.where(active[:, None] & (steps[None] <= guesses.count[:, None]), place - 1, -1)
    states, after = distribution.states(history, guesses.ids), History(ids, prompt, length, None)

    def read(places: int, cache: Cache) -> tuple[Array, Array, Cache]:
        """Logits and probabilities at the first places, zero at the others."""
        out = model.forward(
            setting.config,
            params,
            tokens[:, :places],
            positions=positions[:, :places],
            cache=cache,
        )
        logits = model.unembed(setting.config, params, out.hidden)
        logits = within(logits, distribution.vocabulary)

        def at(row: Array, i: Array, state: Array | None) -> Array:
            return distribution(row, after._replace(length=length + i, state=state))

        first = None if states is None else states[:places]
        target = jax.vmap(at, (1, 0, 0), 1)(logits, steps[:places], first)
        rest = ((0, 0), (0, len(steps) - places), (0, 0))
        return jnp.pad(logits, rest), jnp.pad(target, rest), out.cache

    whole, one = functools.partial(read, len(steps)), functools.partial(read, 1)
    if setting.draft is not None:
        return whole(cache)
    # Where no row has a guess, a round costs the same as a token without guesses.
    return jax.lax.cond(jnp.any(guesses.count > 0), whole, one, cache)


def _draft(
    setting: Setting,
    params: Params,
    cache: Cache,
    history: History,
    distribution: _Distribution,
    active: Bool[Array, " B"],
    most: Int[Array, " B"],
) -> tuple[Guesses, Cache]:
    """Lets the smaller model continue each row. It reads its last guess too, so that its cache is
    never behind."""
    ids, prompt, length, _ = history

    def guess(carry: tuple, i: Array) -> tuple:
        cache, ids, state = carry
        so_far = History(ids, prompt, length + i, state)
        logits, cache = peek(setting.draft, params, cache, so_far, active & (i <= most))
        p = distribution(within(logits, distribution.vocabulary), so_far)
        keys = token_keys(distribution.keys, so_far.length - prompt)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 3))(keys)
        token = jax.vmap(jax.random.categorical)(keys, jnp.log(p)).astype(jnp.int32)
        ids = ids.at[jnp.arange(len(ids)), so_far.length].set(token, mode="drop")
        after = None if state is None else track(distribution.sampling, so_far, token)
        return (cache, ids, after), (token, p)

    (cache, *_), (tokens, drawn_from) = jax.lax.scan(
        guess, (cache, ids, history.state), jnp.arange(setting.guesses + 1)
    )
    guesses = Guesses(
        ids=tokens[:-1].T,
        probabilities=jnp.moveaxis(drawn_from[:-1], 0, 1),
        count=jnp.full_like(most, setting.guesses),
    )
    return guesses, cache
