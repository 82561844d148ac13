"""The rules of what a speech recogniser writes: times in pairs that never go back, before and after
each piece of text; no empty text.

Times are the last ids of the vocabulary, 20 ms apart.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Int
from gptjax.generate.history import History


class Spoken(NamedTuple):
    """What the rules need to know of each row."""

    first: Int[Array, " B"]
    """Id of time 0, from which on all ids are times; V: the row writes none."""
    end: Int[Array, " B"]
    """Id that ends a text; ids from here to the times spell nothing."""
    latest: Int[Array, " B"]
    """The latest time at which the first text may begin, in steps of 20 ms."""
    blank: Bool[Array, "B V"]
    """Ids with which a text does not begin."""


def spoken_rules(
    logits: Float[Array, "B V"], history: History, rules: Spoken
) -> Float[Array, "B V"]:
    """Bans what the rules do not allow next, in rows that write times:

    a text begins and ends with a time, and where one ends the next begins; times never go back, and
    only those of an empty text are equal; the first time is at most `latest`; where all times
    together are likelier than any other id, a time comes next. In all rows a first id in `blank` is
    banned.

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, section 4.5, and its code.
    """
    ids, size = history.ids, logits.shape[1]
    names, written = jnp.arange(size)[None], history.length - history.prompt
    first, end = rules.first[:, None], rules.end[:, None]
    time = names >= first
    start = (written == 0)[:, None]
    logits = jnp.where(start & rules.blank, -jnp.inf, logits)

    def last(n: int) -> Int[Array, "B 1"]:
        return jnp.take_along_axis(ids, jnp.maximum(history.length - n, 0)[:, None], axis=1)

    after_time = (last(1) >= first) & ~start
    after_text = (last(2) < first) & (written >= 2)[:, None]
    place = jnp.arange(ids.shape[1])[None]
    mine = (place >= history.prompt[:, None]) & (place < history.length[:, None])
    newest = jnp.where(mine & (ids >= first), ids, first - 1).max(1, keepdims=True)
    closing = after_time & after_text
    banned = closing & (names < end)  # a text has ended: a time, or the end
    banned |= after_time & ~after_text & time  # a text has begun: no second time
    banned |= time & (names < jnp.where(closing, newest, newest + 1))
    banned |= start & (~time | (names > first + rules.latest[:, None]))
    logits = jnp.where(banned & (first < size), -jnp.inf, logits)

    chances = jax.nn.log_softmax(logits, axis=-1)
    times = jax.nn.logsumexp(jnp.where(time, chances, -jnp.inf), axis=-1)
    others = jnp.where(time, -jnp.inf, chances).max(-1)
    return jnp.where(~time & (times > others)[:, None], -jnp.inf, logits)
