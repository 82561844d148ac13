"""Beam search, plain and diverse: the likeliest whole answers instead of one token after another,
in one compiled loop.

`beams` holds the state. Read `search` (the loop), then `_extend_group` (one step of one group).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax import model
from gptjax.core.arrays import Array, Bool, Float, Int, Params
from gptjax.generate.beams import WORST, Beams, Comparison, Done, Running
from gptjax.generate.chain import ORDER, Sampling, shape, track
from gptjax.generate.decode import peek, within
from gptjax.generate.history import History
from gptjax.model import Cache, ModelConfig


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
    """Searches until no prompt can do better. `state` is used up.

    Log-probabilities, not logits, go through the transforms, and are not normalised afterwards;
    `sampling` has a row for each beam.

    Source: Wu et al. 2016, arXiv:1609.08144, section 7, with length^penalty for its length term;
    groups: Vijayakumar et al. 2016, Diverse Beam Search, arXiv:1610.02424, Hamming diversity, which
    steers the choice here and does not enter the scores.
    """

    def one(state: Beams) -> Beams:
        logp, shaped, cache = _scores(config, params, state, sampling, stop, vocabulary, order)
        return _step(state._replace(cache=cache), logp, shaped, sampling, settings, stop)

    return jax.lax.while_loop(lambda state: jnp.any(state.unfinished), one, state)


def _scores(
    config: ModelConfig,
    params: Params,
    state: Beams,
    sampling: Sampling,
    stop: Int[Array, "P stops"],
    vocabulary: Int[Array, ""],
    order: tuple[str, ...],
) -> tuple[Float[Array, "P G K V"], Float[Array, "P G K V"], Cache]:
    """ln p of every next token of every beam under the model and after the transforms."""
    prompts, groups, size, _ = state.running.ids.shape
    beams = groups * size
    active = jnp.repeat(jnp.any(state.unfinished, axis=1), beams)
    history = _history(state)
    logits, cache = peek(config, params, state.cache, history, active)
    logp = jax.nn.log_softmax(within(logits, vocabulary), axis=-1)
    keys = jax.random.split(jax.random.key(0), prompts * beams)  # nothing is drawn
    shaped = shape(logp, sampling, history, keys, jnp.repeat(stop, beams, axis=0), order)
    by_beam = (prompts, groups, size, -1)
    return logp.reshape(by_beam), shaped.reshape(by_beam), cache


def _history(state: Beams) -> History:
    """The running beams as rows."""
    _, groups, size, slots = state.running.ids.shape
    return History(
        ids=state.running.ids.reshape(-1, slots),
        prompt=jnp.repeat(state.prompt, groups * size),
        length=jnp.repeat(state.length, groups * size),
        state=state.running.states.reshape(-1),
    )


def _step(
    state: Beams,
    logp: Float[Array, "P G K V"],
    shaped: Float[Array, "P G K V"],
    sampling: Sampling,
    settings: Comparison,
    stop: Int[Array, "P stops"],
) -> Beams:
    """Extends every group by one token, one group after another, and reorders the cache."""
    prompts, groups, size, vocabulary = logp.shape
    taken, extended = jnp.zeros((prompts, vocabulary)), []
    for g in range(groups):
        group = _Group(
            running=jax.tree.map(lambda leaf, g=g: leaf[:, g], state.running),
            done=jax.tree.map(lambda leaf, g=g: leaf[:, g], state.done),
            unfinished=state.unfinished[:, g],
            logp=logp[:, g],
            shaped=shaped[:, g],
            penalty=settings.diversity[:, None] * taken,
        )
        extended.append(_extend_group(group, state, settings, stop))
        counts = jax.nn.one_hot(extended[-1].taken, vocabulary).sum(axis=1)
        taken = taken + counts * group.unfinished[:, None]
    new = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *extended)
    rows = (jnp.arange(prompts * groups) * size).reshape(prompts, groups, 1) + new.parent
    states = state.running.states.reshape(-1)[rows]
    after = track(
        sampling, _history(state)._replace(state=states.reshape(-1)), new.token.reshape(-1)
    )
    return Beams(
        running=new.running._replace(states=states if after is None else after.reshape(rows.shape)),
        done=new.done,
        cache=model.take_rows(state.cache, rows.reshape(-1)),
        prompt=state.prompt,
        length=state.length + jnp.any(state.unfinished, axis=1),
        limit=state.limit,
        unfinished=new.unfinished,
    )


class _Group(NamedTuple):
    """One group of every prompt before a step. Fields of `running` and `done` are [P K …]."""

    running: Running
    done: Done
    unfinished: Bool[Array, " P"]
    logp: Float[Array, "P K V"]
    """ln p of each next token under the model."""
    shaped: Float[Array, "P K V"]
    """The same after the transforms."""
    penalty: Float[Array, "P V"]
    """For tokens that earlier groups took."""


class _Extended(NamedTuple):
    """One group of every prompt after a step."""

    running: Running
    parent: Int[Array, "P K"]
    """The beam that each running beam extends."""
    token: Int[Array, "P K"]
    """The last of each running beam."""
    taken: Int[Array, "P K"]
    """The last of the best candidates, whether they run on or are whole answers now."""
    done: Done
    unfinished: Bool[Array, " P"]


class _Candidates(NamedTuple):
    """The best extensions of the beams of one group, best first; C of them."""

    parent: Int[Array, "P C"]
    token: Int[Array, "P C"]
    chosen: Float[Array, "P C"]
    """Score less the diversity penalty."""
    scores: Float[Array, "P C"]
    ids: Int[Array, "P C S"]
    logprobs: Float[Array, "P C S"]
    stopped: Bool[Array, "P C"]
    """The token is a stop token."""
    ends: Bool[Array, "P C"]
    """It is a whole answer, by a stop token or at its limit."""


def _extend_group(
    group: _Group, state: Beams, settings: Comparison, stop: Int[Array, "P stops"]
) -> _Extended:
    """Extends the beams of a group by one token."""
    size, count = group.shaped.shape[1], state.length - state.prompt + 1
    found = _candidates(group, state, stop, count)
    unfinished_scores = jnp.where(found.ends, WORST, 0.0)
    _, best = jax.lax.top_k(unfinished_scores + found.chosen, size)
    running = Running(
        ids=_pick(found.ids, best),
        logprobs=_pick(found.logprobs, best),
        scores=_pick(unfinished_scores + found.scores, best),
        states=group.running.states,
    )
    done = _collect(group, found, settings, state.length, count)
    return _Extended(
        running=running,
        parent=_pick(found.parent, best),
        token=_pick(found.token, best),
        taken=found.token[:, :size],
        done=done,
        unfinished=_may_improve(group, running, done, state, settings, count),
    )


def _candidates(
    group: _Group, state: Beams, stop: Int[Array, "P stops"], count: Int[Array, " P"]
) -> _Candidates:
    """The best pairs of a beam and a next token: so many that enough run on if all stop ids are
    among them."""
    prompts, size, vocabulary = group.shaped.shape
    total = group.running.scores[:, :, None] + group.shaped
    most = min(max(2, 1 + stop.shape[1]) * size, size * vocabulary)
    penalised = (total - group.penalty[:, None, :]).reshape(prompts, -1)
    chosen, index = jax.lax.top_k(penalised, most)
    parent, token = index // vocabulary, index % vocabulary
    stopped = jnp.any(token[:, :, None] == stop[:, None, :], axis=-1)
    rows, places = jnp.arange(prompts)[:, None], jnp.arange(most)[None]

    def written(leaf: Array, new: Array) -> Array:
        at = jnp.where(stopped, leaf.shape[-1], state.length[:, None])
        return _pick(leaf, parent).at[rows, places, at].set(new, mode="drop")

    own = jnp.take_along_axis(group.logp.reshape(prompts, -1), index, axis=1)
    return _Candidates(
        parent=parent,
        token=token,
        chosen=chosen,
        scores=jnp.take_along_axis(total.reshape(prompts, -1), index, axis=1),
        ids=written(group.running.ids, token),
        logprobs=written(group.running.logprobs, own),
        stopped=stopped,
        ends=stopped | (count >= state.limit)[:, None],
    )


def _collect(
    group: _Group,
    found: _Candidates,
    settings: Comparison,
    length: Int[Array, " P"],
    count: Int[Array, " P"],
) -> Done:
    """The best whole answers, those among the first K candidates included."""
    size = group.shaped.shape[1]
    full = jnp.all(group.done.there, axis=1)
    new = found.ends & (jnp.arange(found.ends.shape[1])[None] < size)
    new &= found.scores > WORST / 2
    new &= (group.unfinished & ~(full & (settings.early == 1)))[:, None]
    lengths = (count.astype(jnp.float32) ** settings.length_penalty)[:, None]
    whole = Done(
        ids=found.ids,
        logprobs=found.logprobs,
        scores=jnp.where(new, found.scores / lengths, WORST),
        lengths=length[:, None] + ~found.stopped,
        stopped=found.stopped,
        there=new,
    )
    both = jax.tree.map(lambda old, more: jnp.concatenate([old, more], axis=1), group.done, whole)
    _, best = jax.lax.top_k(both.scores, size)
    return jax.tree.map(lambda leaf: _pick(leaf, best), both)


def _may_improve(
    group: _Group,
    running: Running,
    done: Done,
    state: Beams,
    settings: Comparison,
    count: Int[Array, " P"],
) -> Bool[Array, " P"]:
    """Whether a running beam may still become one of the best whole answers; see `EARLY`."""
    full, best = jnp.all(done.there, axis=1), jnp.max(running.scores, axis=1)
    never = (settings.early == 2) & (settings.length_penalty > 0)
    reach = jnp.where(never, state.limit, count).astype(jnp.float32)
    better = ~full | (best / reach**settings.length_penalty > jnp.min(done.scores, axis=1))
    better &= best > WORST / 2
    return group.unfinished & better & ~(full & (settings.early == 1)) & (count < state.limit)


def _pick(leaf: Array, at: Int[Array, "P C"]) -> Array:
    """The entries of the second axis at these places."""
    return jnp.take_along_axis(leaf, at.reshape(*at.shape, *(1,) * (leaf.ndim - 2)), axis=1)
