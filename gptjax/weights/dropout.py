"""Dropout, of activations and of what an adapter reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Key, Share


def dropout(x: Array, rate: Share, key: Key | None) -> Array:
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 − rate). No key changes nothing.

    Sixteen random bits decide each value, half the cost of a uniform float; the rate is exact to
    2⁻¹⁶.

    Source: Srivastava et al. 2014, JMLR 15.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(threshold)
    return jnp.where(
        kept, x * jnp.asarray(2**16 / (2**16 - threshold), x.dtype), jnp.zeros((), x.dtype)
    )
