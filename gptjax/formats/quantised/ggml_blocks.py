"""GGUF's blocks as they are stored: `grid_of_blocks` gives the values, scales and minima of a
tensor of blocks of 16 or 32 numbers with a scale, alone or within 256 that share more.

Numbers are those that the package `gguf` computes, bit for bit: each is one product, rounded, and
one sum. Source: ggml's `ggml-common.h` and `ggml-quants.c`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import gguf
import numpy as np

from gptjax.core.config import require
from gptjax.formats.gguf_file import File, Kind, Tensor
from gptjax.formats.quantised.grid import Grid


class _Blocks(NamedTuple):
    """The blocks of a tensor, one below the other."""

    values: np.ndarray
    """[blocks, numbers]."""
    scales: np.ndarray
    """[blocks, scales of a block]."""
    minima: np.ndarray | None = None
    bits: int = 8


def grid_of_blocks(file: File, tensor: Tensor) -> Grid | None:
    """Reads a tensor as it is stored; `None` if it is not of blocks with a scale each.

    Raises:
      ConfigError: the file became shorter, or a scale is not finite.
    """
    split = _SPLIT.get(tensor.kind)
    if split is None:
        return None
    count, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    path = tensor.part or file.path
    num_bytes = math.prod(tensor.shape) // count * size
    with path.open("rb") as data:
        raw = np.fromfile(data, np.uint8, num_bytes, offset=tensor.offset)
    require(
        raw.size == num_bytes,
        f"{path} has become shorter while {tensor.name!r} was read; get it again.",
    )
    blocks = split(raw.reshape(-1, size))
    leaves = [blocks.scales] if blocks.minima is None else [blocks.scales, blocks.minima]
    require(
        all(bool(np.isfinite(leaf).all()) for leaf in leaves),
        f"{path}: {tensor.name!r} has numbers that are not finite; the file is damaged.",
    )
    group = count // blocks.scales.shape[1]
    of_groups = (*tensor.shape[:-1], tensor.shape[-1] // group)
    return Grid(
        blocks.values.reshape(tensor.shape),
        blocks.scales.reshape(of_groups),
        (*(1,) * (len(tensor.shape) - 1), group),
        blocks.bits,
        minima=None if blocks.minima is None else blocks.minima.reshape(of_groups),
    )


def _half(raw: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, in float32 [blocks, 1]."""
    return raw[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(raw: np.ndarray) -> np.ndarray:
    """The lower halves of bytes, then the upper ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _fifth(raw: np.ndarray) -> np.ndarray:
    """The fifth bit of each of 32 numbers, which four bytes hold."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _q8_0(raw: np.ndarray) -> _Blocks:
    return _Blocks(raw[:, 2:].view(np.int8), _half(raw, 0))


def _q4_0(raw: np.ndarray) -> _Blocks:
    return _Blocks((_nibbles(raw[:, 2:]) - np.uint8(8)).view(np.int8), _half(raw, 0), bits=4)


def _q4_1(raw: np.ndarray) -> _Blocks:
    return _Blocks(_nibbles(raw[:, 4:]), _half(raw, 0), _half(raw, 2), bits=4)


def _q5_0(raw: np.ndarray) -> _Blocks:
    values = _nibbles(raw[:, 6:]) | _fifth(raw[:, 2:6])
    return _Blocks((values - np.uint8(16)).view(np.int8), _half(raw, 0))


def _q5_1(raw: np.ndarray) -> _Blocks:
    return _Blocks(_nibbles(raw[:, 8:]) | _fifth(raw[:, 4:8]), _half(raw, 0), _half(raw, 2))


def _eight_pairs(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scales and minima [blocks, 8] of Q4_K and Q5_K: six bits each, in bytes 4 to 15."""
    low, high, rest = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([low & 63, rest & 15 | low >> 2 & 48], axis=1)
    minima = np.concatenate([high & 63, rest >> 4 | high >> 2 & 48], axis=1)
    return _half(raw, 0) * scales, -(_half(raw, 2) * minima)


def _four_bits(raw: np.ndarray) -> np.ndarray:
    """256 numbers of four bits: of each 32 bytes the lower halves, then the upper ones."""
    return _nibbles(raw.reshape(-1, 32)).reshape(len(raw), 256)


def _q4_k(raw: np.ndarray) -> _Blocks:
    return _Blocks(_four_bits(raw[:, 16:]), *_eight_pairs(raw), bits=4)


def _q5_k(raw: np.ndarray) -> _Blocks:
    fifth = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    values = _four_bits(raw[:, 48:]) | fifth.reshape(len(raw), 256) << 4
    return _Blocks(values, *_eight_pairs(raw))


def _q6_k(raw: np.ndarray) -> _Blocks:
    lower = raw[:, :128].reshape(-1, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    upper = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    values = lower.reshape(len(raw), 256) | upper.reshape(len(raw), 256) << 4
    scales = _half(raw, 208) * raw[:, 192:208].copy().view(np.int8)
    return _Blocks((values - np.uint8(32)).view(np.int8), scales)


_SPLIT: dict[Kind, Callable[[np.ndarray], _Blocks]] = {
    Kind.Q8_0: _q8_0,
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q5_0: _q5_0,
    Kind.Q5_1: _q5_1,
    Kind.Q4_K: _q4_k,
    Kind.Q5_K: _q5_k,
    Kind.Q6_K: _q6_k,
}
