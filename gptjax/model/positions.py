"""Where a token stands: sinusoids added to the embedding, or rotations of queries and keys. Learned ones are a plain embedding."""

from __future__ import annotations

import jax.numpy as jnp

from gptjax.arrays import Array, Float, Int


def sinusoidal(positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Sine and cosine of each position at width/2 wavelengths from 2π to 10,000 · 2π, sines first.

    Differs from the paper in the order only: it interleaves sine and cosine.

    Source: Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762, section 3.5.
    """
    angles = turns(positions, width, 10_000.0)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def turns(positions: Int[Array, "B T"], width: int, base: float) -> Float[Array, "B T {width//2}"]:
    """The angle, in radians, of each position at each of width/2 frequencies base^(−2i/width)."""
    frequencies = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    return positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "#B T H//2"]) -> Float[Array, "B T N H"]:
    """Turns each pair (x[i], x[i + H/2]) by its angle, in float32. The halves pair as in Llama's published weights.

    Source: Su et al. 2021, RoFormer, arXiv:2104.09864, section 3.4.
    """
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
