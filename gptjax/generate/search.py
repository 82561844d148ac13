"""Beam search, plain and diverse: the likeliest whole answers instead of one token after another,
in one compiled loop.

Read `Beams` (what the loop remembers), `search` (the loop), `_extend_group` (one step of one
group), `answers` (what came out). P prompts with K beams each are B = P · K rows; G groups share
the K beams of a prompt evenly.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Bool, Float, Int, Numbers, Params
from gptjax.generate.chain import ORDER, Sampling, shape, track
from gptjax.generate.decode import Decoding, branch, peek, within
from gptjax.generate.history import History
from gptjax.model import Cache, ModelConfig

WORST = -1e9
"""The score of a beam that is not there; finite, so that sums and differences of it are numbers."""

EARLY = ("no", "yes", "never")
"""When a prompt is done, once it has as many whole answers as beams: `yes` at once; `no` when the
best running beam, at its present length, is worse than all of them; `never` when it is worse at any
length that it can still reach."""


class Running(NamedTuple):
    """The unfinished answers of each prompt and group, best first."""

    ids: Int[Array, "P G K S"]
    logprobs: Float[Array, "P G K S"]
    scores: Float[Array, "P G K"]
    """Sum of ln p after the transforms."""
    states: Int[Array, "P G K"]
    """Where each stands in its constraint, if there is one."""


class Done(NamedTuple):
    """The best whole answers of each prompt and group so far, best first."""

    ids: Int[Array, "P G K S"]
    logprobs: Float[Array, "P G K S"]
    scores: Float[Array, "P G K"]
    """Sum of ln p after the transforms, divided by length to the power of the length penalty."""
    lengths: Int[Array, "P G K"]
    """With the prompt, without the stop token."""
    stopped: Bool[Array, "P G K"]
    there: Bool[Array, "P G K"]


class Beams(NamedTuple):
    """Everything that the loop remembers."""

    running: Running
    done: Done
    cache: Cache
    prompt: Int[Array, " P"]
    length: Int[Array, " P"]
    limit: Int[Array, " P"]
    open: Bool[Array, "P G"]
    """A better answer may still come."""


class Comparison(NamedTuple):
    """How answers are compared; one value a prompt."""

    length_penalty: Float[Array, " P"]
    """Scores are divided by length to this power: 0 favours short answers, 1 compares means, more
    favours long ones."""
    early: Int[Array, " P"]
    """Index into `EARLY`."""
    diversity: Float[Array, " P"]
    """How much a token loses for each beam of an earlier group that took it at the same step."""


@functools.partial(jax.jit, static_argnames=("beams", "groups"))
def spread(state: Decoding, start: Int[Array, " P"], beams: int, groups: int = 1) -> Beams:
    """K equal beams for each row that `prefill` made; of each group only the first has a chance at
    first, lest all do the same.

    Args:
      start: where the answers begin in a constraint.
    """
    prompts = state.text.limit.shape[0]
    state = branch(state, jnp.repeat(jnp.arange(prompts), beams))
    shape = (prompts, groups, beams // groups)

    def grouped(leaf):
        return leaf.reshape(*shape, *leaf.shape[1:])

    history, worst = state.text.history, jnp.full(shape, WORST)
    states = jnp.broadcast_to(start[:, None, None], shape)
    running = Running(
        grouped(history.ids), grouped(state.text.logprobs), worst.at[:, :, 0].set(0.0), states
    )
    done = Done(
        jnp.zeros_like(running.ids),
        jnp.zeros_like(running.logprobs),
        worst,
        grouped(history.length),
        jnp.zeros(shape, bool),
        jnp.zeros(shape, bool),
    )

    def first(leaf):
        return leaf[::beams]

    limit = first(state.text.limit)
    return Beams(
        running,
        done,
        state.cache,
        first(history.prompt),
        first(history.length),
        limit,
        jnp.broadcast_to((limit > 0)[:, None], shape[:2]),
    )


@functools.partial(jax.jit, static_argnames=("config", "order"), donate_argnames="state")
def search(
    config: ModelConfig,
    params: Params,
    state: Beams,
    sampling: Sampling,
    settings: Comparison,
    stop: Int[Array, "P stops"],
    vocabulary: Int[Array, ""],
    order: tuple[str, ...] = ORDER,
) -> Beams:
    """Searches until no prompt can do better. The state that is given is used up.

    Log-probabilities, not logits, go through the transforms, and are not normalised after;
    `sampling` has a row for each beam.

    Source: Wu et al. 2016, arXiv:1609.08144, section 7, with length^penalty for its length term;
    groups: Vijayakumar et al. 2016, Diverse Beam Search, arXiv:1610.02424, Hamming diversity, which
    steers the choice here and does not enter the scores.
    """

    def one(state):
        return _step(config, params, state, sampling, settings, stop, vocabulary, order)

    return jax.lax.while_loop(lambda state: jnp.any(state.open), one, state)


def _step(config, params, state, sampling, settings, stop, vocabulary, order) -> Beams:
    prompts, groups, size, slots = state.running.ids.shape
    beams = groups * size

    def wide(leaf):
        return jnp.repeat(leaf, beams, axis=0)

    history = History(
        state.running.ids.reshape(-1, slots),
        wide(state.prompt),
        wide(state.length),
        state.running.states.reshape(-1),
    )
    logits, cache = peek(config, params, state.cache, history, wide(jnp.any(state.open, axis=1)))
    logp = jax.nn.log_softmax(within(logits, vocabulary), axis=-1)
    keys = jax.random.split(jax.random.key(0), prompts * beams)  # nothing is drawn
    shaped = shape(logp, sampling, history, keys, wide(stop), order)

    def by_beam(leaf):
        return leaf.reshape(prompts, groups, size, -1)

    taken, extended = jnp.zeros((prompts, logp.shape[-1])), []
    for g in range(groups):
        group = jax.tree.map(
            lambda leaf, g=g: leaf[:, g],
            (state.running, state.done, state.open, by_beam(logp), by_beam(shaped)),
        )
        extended.append(
            _extend_group(*group, state, settings, stop, settings.diversity[:, None] * taken)
        )
        taken = (
            taken
            + jax.nn.one_hot(extended[-1].taken, taken.shape[1]).sum(axis=1) * group[2][:, None]
        )
    new = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *extended)
    rows = (jnp.arange(prompts * groups) * size).reshape(prompts, groups, 1) + new.parent
    running = new.running._replace(states=state.running.states.reshape(-1)[rows])
    states = track(
        sampling, history._replace(state=running.states.reshape(-1)), new.token.reshape(-1)
    )
    running = running if states is None else running._replace(states=states.reshape(rows.shape))
    length = state.length + jnp.any(state.open, axis=1)
    return Beams(
        running,
        new.done,
        model.take_rows(cache, rows.reshape(-1)),
        state.prompt,
        length,
        state.limit,
        new.open,
    )


class _Extended(NamedTuple):
    """One step of one group."""

    running: Running
    parent: Int[Array, "P K"]
    token: Int[Array, "P K"]
    """The last of each running beam."""
    taken: Int[Array, "P K"]
    """The last of the best candidates, whether they go on or are whole answers now."""
    done: Done
    open: Bool[Array, " P"]


def _extend_group(
    running, done, open, logp, shaped, state: Beams, settings: Comparison, stop, penalty
) -> _Extended:
    prompts, size, vocabulary = shaped.shape
    count = state.length - state.prompt + 1
    total = running.scores[:, :, None] + shaped
    most = min(
        max(2, 1 + stop.shape[1]) * size, size * vocabulary
    )  # so many that enough go on if all stop ids are among them
    chosen, index = jax.lax.top_k((total - penalty[:, None, :]).reshape(prompts, -1), most)
    parent, token = index // vocabulary, index % vocabulary

    def pick(leaf, at):
        return jnp.take_along_axis(leaf, at.reshape(*at.shape, *(1,) * (leaf.ndim - 2)), axis=1)

    value, own = (
        jnp.take_along_axis(leaf.reshape(prompts, -1), index, axis=1) for leaf in (total, logp)
    )
    hit = jnp.any(token[:, :, None] == stop[:, None, :], axis=-1)
    ends = hit | (count >= state.limit)[:, None]

    row, place = jnp.arange(prompts)[:, None], jnp.arange(most)[None]

    def written(leaf, new):
        return (
            pick(leaf, parent)
            .at[row, place, jnp.where(hit, leaf.shape[-1], state.length[:, None])]
            .set(new, mode="drop")
        )

    ids, logprobs = written(running.ids, token), written(running.logprobs, own)

    _, best = jax.lax.top_k(jnp.where(ends, WORST, 0.0) + chosen, size)
    going = Running(
        pick(ids, best),
        pick(logprobs, best),
        pick(jnp.where(ends, WORST, 0.0) + value, best),
        running.states,
    )

    full = jnp.all(done.there, axis=1)
    new = (
        ends
        & (place < size)
        & (value > WORST / 2)
        & (open & ~(full & (settings.early == 1)))[:, None]
    )
    scores = jnp.where(
        new, value / (count.astype(jnp.float32) ** settings.length_penalty)[:, None], WORST
    )
    lengths = state.length[:, None] + ~hit
    found = Done(ids, logprobs, scores, lengths, hit, new)
    both = jax.tree.map(lambda old, more: jnp.concatenate([old, more], axis=1), done, found)
    done = jax.tree.map(lambda leaf: pick(leaf, jax.lax.top_k(both.scores, size)[1]), both)

    reach = jnp.where(
        (settings.early == 2) & (settings.length_penalty > 0), state.limit, count
    ).astype(jnp.float32)
    possible = jnp.max(going.scores, axis=1) / reach**settings.length_penalty
    full = jnp.all(done.there, axis=1)
    better = (~full | (possible > jnp.min(done.scores, axis=1))) & (
        jnp.max(going.scores, axis=1) > WORST / 2
    )
    still = open & better & ~(full & (settings.early == 1)) & (count < state.limit)
    return _Extended(going, pick(parent, best), pick(token, best), token[:, :size], done, still)


class Answers(NamedTuple):
    """The whole answers of each prompt, best first; the first `lengths` tokens of each count."""

    ids: Int[Numbers, "P N M"]
    logprobs: Float[Numbers, "P N M"]
    """ln p of each token under the model itself."""
    lengths: Int[Numbers, "P N"]
    scores: Float[Numbers, "P N"]
    stopped: Bool[Numbers, "P N"]
    there: Bool[Numbers, "P N"]
    """False where so many answers are not possible."""


def answers(state: Beams, best: int) -> Answers:
    """The `best` answers of each prompt among all groups, taken to the host."""

    def flat(leaf):
        return np.asarray(leaf).reshape(leaf.shape[0], -1, *leaf.shape[3:])

    ids, logprobs, scores, lengths, stopped, there = map(flat, state.done)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :best]
    prompt, most = np.asarray(state.prompt), int(np.asarray(state.limit).max())
    place = np.minimum(prompt[:, None, None] + np.arange(most)[None, None], ids.shape[-1] - 1)

    def pick(leaf):
        return np.take_along_axis(leaf, order, axis=1)

    def take(leaf):
        return np.take_along_axis(
            np.take_along_axis(leaf, order[:, :, None], axis=1), place, axis=2
        )

    return Answers(
        take(ids),
        take(logprobs),
        pick(lengths) - prompt[:, None],
        pick(scores),
        pick(stopped),
        pick(there),
    )
