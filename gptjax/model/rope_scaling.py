"""RoPE beyond the trained context: its waves, stretched."""

from __future__ import annotations

import math

import jax.numpy as jnp

from gptjax.core.arrays import Array, Float
from gptjax.model.config import LinearScaling, Llama3Scaling, NTKScaling, RopeScaling, YarnScaling


def frequencies(width: int, base: float, scaling: RopeScaling | None) -> Float[Array, " half"]:
    """Radians a token of each of width/2 waves: base^(−2i/width), stretched as `scaling` says."""
    plain = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    match scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case NTKScaling(factor):
            return frequencies(width, base * factor ** (width / max(width - 2, 1)), None)
        case YarnScaling(factor, original):
            low, high = (
                width * math.log(original / (2 * math.pi * count)) / (2 * math.log(base))
                for count in (scaling.fast, scaling.slow)
            )
            if scaling.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, width - 1)
            stretched = jnp.clip((jnp.arange(width // 2) - low) / max(high - low, 1e-3), 0, 1)
        case Llama3Scaling(factor, original):
            whole_turns = original * plain / (2 * math.pi)
            stretched = 1 - jnp.clip(
                (whole_turns - scaling.slow) / (scaling.fast - scaling.slow), 0, 1
            )
    return plain / factor * stretched + plain * (1 - stretched)


def magnitude(scaling: RopeScaling | None) -> float:
    """What YaRN multiplies rotated queries and keys by, because longer contexts flatten
    attention."""
    if not isinstance(scaling, YarnScaling):
        return 1.0
    return 0.1 * math.log(scaling.factor) + 1 if scaling.magnitude is None else scaling.magnitude
