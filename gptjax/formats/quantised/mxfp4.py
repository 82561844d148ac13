"""MXFP4 checkpoints (`quant_method: mxfp4`), as those of gpt-oss: experts' kernels of 4-bit floats,
two in a byte, and a power of two for each 32.

Source: Rouhani et al. 2023, OCP Microscaling Formats (MX) Specification 1.0, section 5; the order
of tensors is that of `transformers`' `convert_moe_packed_tensors`.
"""

from __future__ import annotations

import jax
import numpy as np

from gptjax.formats.keys import Keys
from gptjax.formats.quantised.grid import Grid
from gptjax.formats.quantised.parts import Parts, Scheme, finish_settings

GROUP = 32
"""Numbers that share a scale."""


def mxfp4_scheme(keys: Keys) -> Scheme:
    """Translates the settings of `quant_method: mxfp4`.

    Raises:
      ConfigError: one is unknown.
    """
    finish_settings(keys, {"modules_to_not_convert", "dequantize"})
    return Scheme("mxfp4", "_blocks", ("_scales",), "", _check, _read)


def _check(parts: Parts) -> tuple[int, ...]:
    shape = parts.need("_blocks", ("U8",))
    good = len(shape) == 4 and min(shape) > 0 and shape[3] == GROUP // 2
    parts.check(good, "_blocks", f"has the shape {list(shape)}, not [experts, outputs, groups, 16]")
    parts.need("_scales", ("U8",), shape[:3])
    return shape[0], shape[2] * GROUP, shape[1]


def _read(parts: Parts) -> Grid:
    blocks, powers = parts.take("_blocks"), parts.take("_scales")
    values = fp4_values(blocks.reshape(*blocks.shape[:2], -1))
    parts.check(not (powers == 255).any(), "_scales", "has numbers that are not finite")
    return Grid(values.swapaxes(1, 2), power_scales(powers).swapaxes(1, 2), (1, GROUP, 1), 4)


def fp4_values(packed: np.ndarray) -> np.ndarray:
    """Returns 4-bit floats (E2M1) that lie two in a byte, the lower half first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return halves.view(np.dtype(jax.numpy.float4_e2m1fn))


def power_scales(powers: np.ndarray) -> np.ndarray:
    """Returns the powers of two (float32) that bytes with a bias of 127 stand for."""
    return np.ldexp(np.float32(1), powers.astype(np.int32) - 127)
