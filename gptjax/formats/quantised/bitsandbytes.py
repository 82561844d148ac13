"""Checkpoints of bitsandbytes in four bits (`quant_method: bitsandbytes`): codes of sixteen levels,
two in a byte with the first above, and the largest absolute value of each block.

Blocks are counted along the whole weight, row after row. With double quantisation these largest
values are codes of 256 levels themselves.

Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3; the files' layout is that of
bitsandbytes' `QuantState`.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.grid import Grid
from gptjax.formats.quantised.parts import Parts, Scheme, finish_settings

WEIGHT = ".weight"
STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
MAIN = (".weight.absmax", ".weight.quant_map")
NESTED = (".weight.nested_absmax", ".weight.nested_quant_map")
_HARMLESS = {
    "_load_in_4bit", "_load_in_8bit", "load_in_4bit", "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "llm_int8_skip_modules", "llm_int8_threshold",
}  # fmt: skip
"""How it is computed, or what the tensors say themselves."""


class _State(NamedTuple):
    """What a weight says of itself."""

    shape: tuple[int, ...]
    block: int
    nested_block: int
    nested_offset: float


def bitsandbytes_scheme(keys: Keys) -> Scheme:
    """Translates the settings of `quant_method: bitsandbytes`.

    Raises:
      ConfigError: one is unknown, or weights have eight bits.
    """
    require(
        not keys.take("load_in_8bit", False),
        f"{keys.where} has 'load_in_8bit': true; this program reads bitsandbytes' 4 bits only.",
    )
    keys.same("bnb_4bit_quant_storage", "uint8")
    finish_settings(keys, _HARMLESS)
    beside = (*MAIN, *NESTED, *STATES)
    return Scheme("bitsandbytes", WEIGHT, beside, WEIGHT, _check, _read)


def _check(parts: Parts) -> tuple[int, ...]:
    state = _state(parts)
    size = math.prod(state.shape)
    parts.need(WEIGHT, ("U8",), (-(-size // 2), 1), (1, -(-size // 2)))
    count = -(-size // state.block)
    parts.need(MAIN[0], ("U8",) if parts.has(NESTED[0]) else ("F32",), (count,))
    parts.need(MAIN[1], ("F32",), (16,))
    if parts.has(NESTED[0]):
        parts.need(NESTED[0], ("F32",), (-(-count // state.nested_block),))
        parts.need(NESTED[1], ("F32",), (256,))
    return state.shape


def _state(parts: Parts) -> _State:
    end = next((end for end in STATES if parts.has(end)), STATES[0])
    parts.need(end, ("U8",))
    try:
        told = json.loads(parts.tensors[end].take().tobytes())
        shape = tuple(_whole(n) for n in told["shape"])
        block, nested = _whole(told["blocksize"]), _whole(told.get("nested_blocksize", 1))
        offset = float(told.get("nested_offset", 0.0))
    except (ValueError, TypeError, KeyError, RecursionError):
        shape, block, nested, offset = (), 0, 0, 0.0
    parts.check(len(shape) == 2 and block > 0, end, "describes no matrix of blocks")
    return _State(shape, block, nested, offset)


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 < number < 1 << 31:
        raise ValueError(number)
    return number


def _read(parts: Parts) -> Grid:
    state = _state(parts)
    packed = parts.take(WEIGHT).reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    scales = parts.take(MAIN[0])
    if parts.has(NESTED[0]):
        blocks = np.repeat(parts.take(NESTED[0]), state.nested_block)[: len(scales)]
        scales = parts.take(NESTED[1])[scales] * blocks + np.float32(state.nested_offset)
    rows, inputs = state.shape
    codes, block = codes[: rows * inputs].reshape(state.shape), state.block
    if inputs % block:  # blocks go on in the next row
        scales, block = np.repeat(scales, block)[: rows * inputs], 1
    return Grid(codes, scales.reshape(rows, -1), (1, block), 4, levels=parts.take(MAIN[1]))


def stored_nf4(codes: np.ndarray, scales: np.ndarray, levels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the tensors of a weight [O I] by the ends of their names: the inverse of reading.

    Args:
      scales: [O groups], of equal groups of inputs.
    """
    flat = np.pad(codes.reshape(-1).astype(np.uint8), (0, codes.size % 2))
    state = {
        "quant_type": "nf4",
        "blocksize": codes.shape[1] // scales.shape[1],
        "dtype": "float32",
        "shape": list(codes.shape),
    }
    return {
        WEIGHT: (flat[::2] << 4 | flat[1::2]).reshape(-1, 1),
        MAIN[0]: scales.reshape(-1).astype(np.float32),
        MAIN[1]: levels.astype(np.float32),
        STATES[0]: np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
