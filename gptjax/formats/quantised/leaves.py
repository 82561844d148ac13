"""Quantised weights kept as they are stored: `held` makes one of our leaves of the grids of its
tensors, with the very values and scales.

Scales are laid out as the values are, with each dimension divided by its block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Params
from gptjax.formats import layout
from gptjax.formats.layout import Place
from gptjax.formats.quantised.grid import Grid
from gptjax.weights import NormalFloat, Quantized
from gptjax.weights.storage import LEVELS

Part = tuple[Place, int, tuple[int, ...]]
"""A tensor, which part of it, and where in our leaf that is."""


class _Kept(NamedTuple):
    """One part of a leaf, in our order."""

    values: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray | None
    normal: bool = False
    """Values are levels of NF4."""


Narrow = Quantized | NormalFloat


def held(
    shape: tuple[int, ...], parts: Sequence[Part], grid_of: Callable[[str], Grid | None]
) -> Narrow | None:
    """Returns a leaf of its tensors as they are stored; `None` if one of them is not quantised, or
    not like the others, or has blocks that ours can't have, or the leaf would not be smaller than
    in bfloat16.

    Args:
      grid_of: reads a tensor of theirs; `None` if it is not quantised.
    """
    built: Narrow | None = None
    for kept, index in _kept(parts, grid_of):
        if kept is None:
            return None
        leaf = _like(kept, shape[: len(index)]) if built is None else built
        same = _signature(kept) == _signature(leaf, len(index))
        same &= kept.normal == isinstance(leaf, NormalFloat)
        if not same or _size(kept) > 2 * kept.values.size:
            return None
        for whole, part in zip(jax.tree.leaves(leaf), _arrays(kept), strict=True):
            whole[index] = part
        built = leaf
    return built and jax.block_until_ready(jax.tree.map(jax.numpy.asarray, built))


def _kept(
    parts: Sequence[Part], grid_of: Callable[[str], Grid | None]
) -> Iterator[tuple[_Kept | None, tuple[int, ...]]]:
    for place, part, index in parts:
        changed = place.entry.plus or place.entry.folded or place.entry.skipped
        grid = None if changed else grid_of(place.name)
        yield None if grid is None else _ours(place, part, grid), index


def _ours(place: Place, part: int, grid: Grid) -> _Kept | None:
    """A part of a grid in our order; `None` if ours can't hold it."""
    smaller = _divided(place, grid)
    offsets = _offsets(grid)
    known = grid.levels is None or np.array_equal(grid.levels, LEVELS)
    if smaller is None or isinstance(offsets, str) or not known:
        return None
    values = layout.from_theirs(place, part, grid.values.view(_narrow(grid)))
    scales, offsets = (
        leaf if leaf is None else layout.from_theirs(smaller, part, leaf.astype(np.float32))
        for leaf in (grid.scales, offsets)
    )
    return _Kept(values, scales, offsets, grid.levels is not None)


def _narrow(grid: Grid) -> np.dtype:
    """The type of values: whole numbers of four bits have one of their own."""
    kind = grid.values.dtype
    if grid.bits == 8 or kind.kind not in "iu":
        return kind
    return np.dtype(jax.numpy.int4 if kind.kind == "i" else jax.numpy.uint4)


def _offsets(grid: Grid) -> np.ndarray | str | None:
    """What is added to each product; text if no float32 number is just that.

    −zero · scale is exact for scales of 16 bits, and so is the sum.
    """
    if grid.zeros is None:
        return grid.minima
    if grid.minima is not None or grid.scales.dtype.itemsize > 2:
        return "inexact"
    return -(grid.zeros.astype(np.float32) * grid.scales.astype(np.float32))


def _divided(place: Place, grid: Grid) -> Place | None:
    """The place of the scales: that of the values, with each dimension divided by its block; `None`
    if a block does not divide it, or reaches over what is ours."""
    if place.entry.joined.startswith("("):  # parts of other sizes
        return None
    entry, sizes = place.entry, layout.sizes_of(place)
    blocks: dict[str, int] = {}
    for group, block, whole in zip(
        layout.axis_groups(entry.their_axes), grid.block, grid.shape, strict=True
    ):
        left = min(block, whole)
        for letter in reversed(group):
            blocks[letter] = math.gcd(left, sizes[letter])
            left //= blocks[letter]
            if blocks[letter] < sizes[letter]:
                break
        if left != 1:
            return None
        for letter in group:
            blocks.setdefault(letter, 1)
    letters = entry.our_axes.split()
    shapes = []
    for shape in place.shapes:
        if any(size % blocks[letter] for letter, size in zip(letters, shape, strict=True)):
            return None
        shapes.append(tuple(s // blocks[x] for x, s in zip(letters, shape, strict=True)))
    if any(blocks[letter] > 1 for letter in (*entry.order, layout.VOCABULARY) if letter in blocks):
        return None
    return place._replace(shapes=tuple(shapes))


# --- the leaf


def _arrays(kept: _Kept | Narrow) -> list[Any]:
    offsets = getattr(kept, "offsets", None)
    return [leaf for leaf in (kept.values, kept.scales, offsets) if leaf is not None]


def _like(kept: _Kept, lead: tuple[int, ...]) -> Narrow:
    """An empty leaf of parts like this one."""
    values, scales, offsets = (
        leaf if leaf is None else np.empty((*lead, *leaf.shape), leaf.dtype) for leaf in kept[:3]
    )
    return NormalFloat(values, scales) if kept.normal else Quantized(values, scales, offsets)


def _signature(kept: _Kept | Narrow, lead: int = 0) -> list[Any]:
    return [(leaf.dtype, leaf.shape[lead:]) for leaf in _arrays(kept)]


def _size(kept: _Kept) -> float:
    """The size of a part in bytes."""
    narrow = kept.values.dtype.name in ("int4", "uint4", "float4_e2m1fn")
    others = sum(leaf.nbytes for leaf in _arrays(kept)[1:])
    return kept.values.size / (2 if narrow else 1) + others


# --- back to files


def narrow_weights(params: Params) -> dict[str, Any]:
    """The narrow weights of a tree by their paths."""
    kinds = Quantized | NormalFloat
    pairs = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda leaf: isinstance(leaf, kinds)
    )
    return {
        "/".join(key.key for key in path): leaf for path, leaf in pairs if isinstance(leaf, kinds)
    }


def of_blocks(place: Place, parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """Numbers of blocks in their order; `None` where an order of theirs goes through blocks."""
    letters, entry = place.entry.our_axes.split(), place.entry
    for part, shape in zip(parts, place.shapes, strict=True):
        for letter, count, size in zip(letters, part.shape, shape, strict=True):
            if count != size and (letter in entry.order or letter == entry.joined):
                return None
    smaller = place._replace(shapes=tuple(part.shape for part in parts))
    return layout.to_theirs(smaller, [part.astype(np.float32) for part in parts])
