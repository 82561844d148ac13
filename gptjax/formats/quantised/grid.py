"""`Grid`, what every format of quantised weights is read into: whole numbers or narrow floats, with
a scale for each block of them. `widened` gives the numbers in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SLAB = 1 << 20
"""Numbers widened at a time."""


class Grid(NamedTuple):
    """An array in a narrow type: number = (value − zero) · scale + minimum."""

    values: np.ndarray
    """[…] whole numbers of 8 bits, or narrow floats."""
    scales: np.ndarray
    """float […]: one for each block of values."""
    block: tuple[int, ...]
    """Size of a block in each dimension. The last block of a dimension may be smaller."""
    bits: int = 8
    """Width in which every value fits: 4 or 8."""
    zeros: np.ndarray | None = None
    """Whole numbers, of the shape of `scales`; `None` is 0."""
    minima: np.ndarray | None = None
    """float, of the shape of `scales`; `None` is 0."""
    levels: np.ndarray | None = None
    """The numbers that values stand for; `None` is themselves."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array that it stands for."""
        return self.values.shape


def widened(grid: Grid) -> np.ndarray:
    """Returns the numbers in float32, with one rounding for the product and one for the sum: they
    are exact where scales have 16 bits and there are no minima."""
    numbers, size = np.empty(grid.shape, np.float32), math.prod(grid.shape)
    row_size = max(size // max(grid.shape[0], 1), 1)
    step = max(SLAB // row_size // grid.block[0], 1) * grid.block[0]
    for begin in range(0, grid.shape[0], step):
        part = numbers[begin : begin + step]
        blocks = slice(begin // grid.block[0], -(-(begin + step) // grid.block[0]))

        def of_part(
            leaf: np.ndarray, blocks: slice = blocks, shape: tuple[int, ...] = part.shape
        ) -> np.ndarray:
            here = leaf if len(leaf) == 1 else leaf[blocks]
            return spread(here.astype(np.float32), grid.block, shape)

        values = grid.values[begin : begin + step]
        part[...] = values if grid.levels is None else grid.levels[values]
        if grid.zeros is not None:  # whole numbers below 2¹⁶: exact
            part -= of_part(grid.zeros)
        part *= of_part(grid.scales)
        if grid.minima is not None:
            part += of_part(grid.minima)
    return numbers


def spread(leaf: np.ndarray, block: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Repeats each number of a leaf over its block of an array of a shape; the result broadcasts to
    it."""
    for axis, (size, whole) in enumerate(zip(block, shape, strict=True)):
        if leaf.shape[axis] > 1 and size > 1:
            cut = (slice(None),) * axis + (slice(whole),)
            leaf = np.repeat(leaf, size, axis)[cut]
    return leaf


def unpacked(words: np.ndarray, bits: int, count: int, axis: int) -> np.ndarray:
    """Returns the unsigned numbers (uint8) that lie in 32-bit words along an axis, the lowest bits
    first, without padding between them.

    Args:
      bits: of each number, 1 to 8.
      count: of numbers; the words have at least as many.
    """
    rows = np.ascontiguousarray(np.moveaxis(words, axis, -1)).view("<u4")
    held = rows.shape[-1] * 32 // bits
    if 8 % bits == 0:
        every = rows.view(np.uint8)[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
        numbers = (every & np.uint8((1 << bits) - 1)).reshape(*rows.shape[:-1], -1)
    else:
        starts = np.arange(held) * bits
        word, bit = starts // 32, (starts % 32).astype(np.uint64)
        after = np.concatenate([rows, np.zeros_like(rows[..., :1])], axis=-1)
        pairs = after[..., word] | after[..., word + 1].astype(np.uint64) << np.uint64(32)
        numbers = (pairs >> bit & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return np.moveaxis(numbers[..., :count], -1, axis)
