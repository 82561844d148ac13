"""The state of a beam search: `start_beams` makes it, `search.search` advances it, `answers` takes
the result to the host.

P prompts with K beams each are B = P · K rows; G groups share the K beams of a prompt evenly.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.core.arrays import Array, Bool, Float, Int, Numbers
from gptjax.generate.decode import Decoding, branch
from gptjax.model import Cache

WORST = -1e9
"""The score of an absent beam; finite, so that sums and differences of it are numbers."""

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
    """The state of each in its constraint, if there is one."""


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
    """False where there is no such answer yet."""


class Beams(NamedTuple):
    """The state of the loop."""

    running: Running
    done: Done
    cache: Cache
    prompt: Int[Array, " P"]
    length: Int[Array, " P"]
    limit: Int[Array, " P"]
    unfinished: Bool[Array, "P G"]
    """A better answer may still come."""


class Comparison(NamedTuple):
    """How answers are compared; one value per prompt."""

    length_penalty: Float[Array, " P"]
    """Scores are divided by length to this power: 0 favours short answers, 1 compares means, more
    favours long ones."""
    early: Int[Array, " P"]
    """Index into `EARLY`."""
    diversity: Float[Array, " P"]
    """Penalty of a token for each beam of an earlier group that took it at the same step."""


@functools.partial(jax.jit, static_argnames=("beams", "groups"))
def start_beams(state: Decoding, start: Int[Array, " P"], beams: int, groups: int = 1) -> Beams:
    """K equal beams for each row that `prefill` made; of each group only the first has a score at
    first, so that they do not all do the same.

    Args:
      start: the states in which the answers begin in a constraint.
    """
    prompts = state.text.limit.shape[0]
    state = branch(state, jnp.repeat(jnp.arange(prompts), beams))
    shape = (prompts, groups, beams // groups)

    def grouped(leaf: Array) -> Array:
        return leaf.reshape(*shape, *leaf.shape[1:])

    history, worst = state.text.history, jnp.full(shape, WORST)
    ids, logprobs = grouped(history.ids), grouped(state.text.logprobs)
    limit = state.text.limit[::beams]
    return Beams(
        running=Running(
            ids=ids,
            logprobs=logprobs,
            scores=worst.at[:, :, 0].set(0.0),
            states=jnp.broadcast_to(start[:, None, None], shape),
        ),
        done=Done(
            ids=jnp.zeros_like(ids),
            logprobs=jnp.zeros_like(logprobs),
            scores=worst,
            lengths=grouped(history.length),
            stopped=jnp.zeros(shape, bool),
            there=jnp.zeros(shape, bool),
        ),
        cache=state.cache,
        prompt=history.prompt[::beams],
        length=history.length[::beams],
        limit=limit,
        unfinished=jnp.broadcast_to((limit > 0)[:, None], shape[:2]),
    )


class Answers(NamedTuple):
    """The whole answers of each prompt, best first; the first `lengths` tokens of each count."""

    ids: Int[Numbers, "P N M"]
    logprobs: Float[Numbers, "P N M"]
    """ln p of each token under the model itself."""
    lengths: Int[Numbers, "P N"]
    scores: Float[Numbers, "P N"]
    stopped: Bool[Numbers, "P N"]
    there: Bool[Numbers, "P N"]
    """False where fewer answers are possible."""


def answers(state: Beams, best: int) -> Answers:
    """The `best` answers of each prompt among all groups, as numpy arrays."""

    def flat(leaf: Array) -> np.ndarray:
        return np.asarray(leaf).reshape(leaf.shape[0], -1, *leaf.shape[3:])

    done = Done(*map(flat, state.done))
    order = np.argsort(-done.scores, axis=1, kind="stable")[:, :best]
    prompt, most = np.asarray(state.prompt), int(np.asarray(state.limit).max())
    place = np.minimum(prompt[:, None, None] + np.arange(most), done.ids.shape[-1] - 1)

    def pick(leaf: np.ndarray) -> np.ndarray:
        return np.take_along_axis(leaf, order, axis=1)

    def written(leaf: np.ndarray) -> np.ndarray:
        rows = np.take_along_axis(leaf, order[:, :, None], axis=1)
        return np.take_along_axis(rows, place, axis=2)

    return Answers(
        ids=written(done.ids),
        logprobs=written(done.logprobs),
        lengths=pick(done.lengths) - prompt[:, None],
        scores=pick(done.scores),
        stopped=pick(done.stopped),
        there=pick(done.there),
    )
