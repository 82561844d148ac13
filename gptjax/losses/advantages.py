"""Advantages: how much better an answer, or a token, is than what was to be expected.

Rewards of answers are laid out by group, one row for the G answers to one prompt. Answers that were
not judged are left out of their group, and have advantage 0. Read `centred`, then the others; `gae`
is for values of single tokens.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Bool, Float, Numbers

Spread = Literal["sample", "population"]
"""Which standard deviation: its square divides by one less than the number of answers, or by it."""

EPSILON = 1e-4
"""What is added to a standard deviation."""


def flat(rewards: Float[Numbers, "P G"], judged: Bool[Numbers, "P G"]) -> Bool[Array, "P 1"]:
    """Returns which groups can teach nothing by comparison: all judged answers have the same
    reward, or there are fewer than two."""
    rewards, judged = jnp.asarray(rewards), jnp.asarray(judged)
    highest = jnp.max(jnp.where(judged, rewards, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(judged, rewards, jnp.inf), axis=1, keepdims=True)
    return highest <= lowest


def centred(rewards: Float[Numbers, "P G"], judged: Bool[Numbers, "P G"]) -> Float[Array, "P G"]:
    """Rewards less the mean of their group; exactly 0 in a flat group.

    Source: Liu et al. 2025, Dr.GRPO, arXiv:2503.20783, section 3.2.
    """
    rewards, counts = _known(rewards, judged)
    mean = _sum(rewards) / jnp.maximum(_sum(counts), 1.0)
    return jnp.where((counts > 0) & ~flat(rewards, counts > 0), rewards - mean, 0.0)


def group(
    rewards: Float[Numbers, "P G"],
    judged: Bool[Numbers, "P G"],
    spread: Spread | None = "sample",
    epsilon: float = EPSILON,
) -> Float[Array, "P G"]:
    """`centred` rewards, divided by the standard deviation of their group + `epsilon`.

    Args:
      spread: `None` does not divide.

    Source: Shao et al. 2024, GRPO, arXiv:2402.03300, section 4.1.2.
    """
    lead, (_, counts) = centred(rewards, judged), _known(rewards, judged)
    if spread is None:
        return lead
    fewer = 1.0 if spread == "sample" else 0.0
    variance = _sum(jnp.square(lead)) / jnp.maximum(_sum(counts) - fewer, 1.0)
    return lead / (jnp.sqrt(variance) + epsilon)


def leave_one_out(
    rewards: Float[Numbers, "P G"], judged: Bool[Numbers, "P G"]
) -> Float[Array, "P G"]:
    """Rewards less the mean of the *other* judged answers of their group.

    Source: Ahmadian et al. 2024, RLOO, arXiv:2402.14740, section 2.
    """
    rewards, counts = _known(rewards, judged)
    others = (_sum(rewards) - rewards) / jnp.maximum(_sum(counts) - 1.0, 1.0)
    return jnp.where((counts > 0) & ~flat(rewards, counts > 0), rewards - others, 0.0)


def best(rewards: Float[Numbers, "P G"], judged: Bool[Numbers, "P G"]) -> Bool[Array, "P G"]:
    """Chooses of each group the judged answer with the highest reward, the first of equals."""
    rewards, judged = jnp.asarray(rewards), jnp.asarray(judged)
    first = jnp.argmax(jnp.where(judged, rewards, -jnp.inf), axis=1, keepdims=True)
    return (jnp.arange(rewards.shape[1])[None] == first) & judged


# --- of tokens


def gae(
    rewards: Float[Numbers, "B T"],
    values: Float[Numbers, "B T"],
    counted: Float[Numbers, "B T"],
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Float[Numbers, " B"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimation: (advantages, returns) of the counted tokens, 0 elsewhere.
    What is not counted is no step in time.

    Args:
      values: what was expected before each token.
      bootstrap: what is expected after the last counted token; `None` is 0.

    Source: Schulman et al. 2016, arXiv:1506.02438, equation 16.
    """
    rewards, values, counted = (jnp.asarray(x, jnp.float32) for x in (rewards, values, counted))
    after = jnp.zeros(values.shape[0]) if bootstrap is None else jnp.asarray(bootstrap, jnp.float32)

    def back(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple, Array]:
        (expected, later), (reward, value, counts) = carry, now
        advantage = reward + gamma * expected - value + gamma * lam * later
        earlier = jnp.where(counts, value, expected), jnp.where(counts, advantage, later)
        return earlier, jnp.where(counts, advantage, 0.0)

    along = tuple(x.T for x in (rewards, values, counted > 0))
    _, advantages = jax.lax.scan(back, (after, jnp.zeros_like(after)), along, reverse=True)
    return advantages.T, jnp.where(counted > 0, advantages.T + values, 0.0)


def at_end(rewards: Float[Numbers, " B"], counted: Float[Numbers, "B T"]) -> Float[Array, "B T"]:
    """Puts the reward of each answer on its last counted token."""
    return jnp.asarray(rewards)[:, None] * is_last(counted)


def is_last(counted: Float[Numbers, "B T"]) -> Bool[Array, "B T"]:
    """Returns which position is the last counted one of its row."""
    counts = jnp.asarray(counted) > 0
    later = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return counts & (later == 1)


def whiten(
    values: Float[Numbers, "*shape"], counted: Float[Numbers, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns the counted values with mean 0 and variance 1 (of a sample), 0 elsewhere."""
    values, counts = _known(values, jnp.asarray(counted) > 0)
    total = jnp.sum(counts)
    lead = jnp.where(counts > 0, values - jnp.sum(values) / jnp.maximum(total, 1.0), 0.0)
    variance = jnp.sum(jnp.square(lead)) / jnp.maximum(total - 1.0, 1.0)
    return lead * jax.lax.rsqrt(variance + 1e-8)


def _known(
    values: Float[Numbers, "*shape"], known: Bool[Numbers, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns float32 values with 0 where they are not known (they may be NaN there), and 1 where
    they are."""
    known = jnp.asarray(known)
    return jnp.where(known, jnp.asarray(values, jnp.float32), 0.0), known.astype(jnp.float32)


def _sum(values: Float[Array, "P G"]) -> Float[Array, "P 1"]:
    return jnp.sum(values, axis=1, keepdims=True)
