"""FP8 checkpoints (`quant_method: fp8`), as DeepSeek-V3's: a weight of 8-bit floats, and a float32
scale for each block of 128 · 128, or for all of it.

Source: DeepSeek-AI 2024, DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptjax.core.config import require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.grid import Grid
from gptjax.formats.quantised.parts import FLOATS, Parts, Scheme, finish_settings

VALUES = ("F8_E4M3", "F8_E5M2")
"""Types of values."""
_HARMLESS = {"modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize"}
"""Which weights are stored so: their tensors say it themselves."""


def fp8_scheme(keys: Keys) -> Scheme:
    """Translates the settings of `quant_method: fp8`.

    Raises:
      ConfigError: one is unknown.
    """
    keys.same("fmt", "e4m3", "e5m2", None)
    keys.same("activation_scheme", "dynamic", "static")  # activations stay as they are here
    keys.same("scale_fmt", "float", "ue8m0", None)
    keys.same("expert_dtype", "fp8", None)
    keys.same("kv_cache_scheme", None)
    block = keys.take("weight_block_size", None)
    require(
        block is None or is_block(block),
        f"{keys.where} has 'weight_block_size': {str(block)[:60]}; it needs two whole numbers above"
        " 0, or null.",
    )
    finish_settings(keys, _HARMLESS)
    sizes = None if block is None else (block[0], block[1])

    def check(parts: Parts) -> tuple[int, ...]:
        shape = parts.matrix(".weight", VALUES)
        require(
            len(parts.tensors) == 2,
            f"{parts.where} has two scales of {parts.name}.weight; get it again.",
        )
        end = _scale(parts)
        parts.need(end, (*FLOATS, "F8_E8M0"), *_scale_shapes(shape, sizes))
        return shape

    def read(parts: Parts) -> Grid:
        values, scales = parts.take(".weight"), parts.take(_scale(parts))
        if scales.size == 1:
            return Grid(values, scales.reshape(1, 1), values.shape)
        return Grid(values, scales, sizes or values.shape)

    beside = (".weight_scale_inv", ".weight_scale")
    unused = r"\.(input_scale|activation_scale|k_scale|v_scale)$"
    return Scheme("fp8", ".weight", beside, ".weight", check, read, unused)


def is_block(value: object) -> bool:
    """Whether a setting is a block of two dimensions."""
    two = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return two and all(type(size) is int and 0 < size < 1 << 20 for size in value)


def block_counts(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """The number of blocks in each dimension; the last may be smaller."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _scale(parts: Parts) -> str:
    """The end of the name of the scales: both multiply."""
    return next(end for end in parts.tensors if end != ".weight")


def _scale_shapes(
    shape: tuple[int, int], block: tuple[int, int] | None
) -> tuple[tuple[int, ...], ...]:
    return ((), (1,), (1, 1)) if block is None else (block_counts(shape, block),)
