"""Pure changes of logits. Every setting is an array with one value a row, so no setting compiles anything again.

The order is llama.cpp's: top-k, then top-p, then temperature.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.arrays import Array, Float, Int, Keys


class Sampling(NamedTuple):
    """How each row chooses its next token."""

    temperature: Float[Array, " B"]
    """0 takes the most likely token; 1 samples the model's own distribution."""
    top_k: Int[Array, " B"]
    """Only this many most likely tokens; V changes nothing."""
    top_p: Float[Array, " B"]
    """Only the most likely tokens up to this much probability; 1 changes nothing."""


def temperature(logits: Float[Array, "B V"], value: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Divides by the temperature; below 1 the likely become likelier. A row at 0 is left as it is: `choose` takes its maximum."""
    return logits / jnp.where(value > 0, value, 1.0)[:, None]


def top_k(logits: Float[Array, "B V"], count: Int[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the `count` largest logits of each row; the rest become -inf. Ties at the border are all kept.

    Source: Fan et al. 2018, Hierarchical Neural Story Generation, arXiv:1805.04833, section 5.1.
    """
    falling = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    border = jnp.take_along_axis(falling, jnp.clip(count, 1, logits.shape[1])[:, None] - 1, axis=-1)
    return jnp.where(logits >= border, logits, -jnp.inf)


def top_p(logits: Float[Array, "B V"], mass: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Keeps the most likely tokens until their probability reaches `mass`; the rest become -inf.

    At least one token always remains. Ties at the border are all kept. A mass of 1 changes nothing.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, arXiv:1904.09751, section 3.1.
    """
    falling = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    probability = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    last = jnp.maximum(jnp.sum(before < mass[:, None], axis=-1), 1) - 1
    border = jnp.take_along_axis(falling, last[:, None], axis=-1)
    return jnp.where((logits >= border) | (mass >= 1)[:, None], logits, -jnp.inf)


def shape(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """The whole chain. The sorting transforms run only if some row asks for them."""
    size = logits.shape[1]
    logits = jax.lax.cond(jnp.any(sampling.top_k < size), lambda x: top_k(x, sampling.top_k), lambda x: x, logits)
    logits = jax.lax.cond(jnp.any(sampling.top_p < 1), lambda x: top_p(x, sampling.top_p), lambda x: x, logits)
    return temperature(logits, sampling.temperature)


def choose(logits: Float[Array, "B V"], sampling: Sampling, keys: Keys) -> Int[Array, " B"]:
    """Draws each row's next token with its own key; a row at temperature 0 takes its most likely."""
    drawn = jax.vmap(jax.random.categorical)(keys, shape(logits, sampling))
    return jnp.where(sampling.temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
