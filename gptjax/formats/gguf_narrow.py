"""Narrow weights as the blocks of a GGUF file: their very codes and scales, without rounding
anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.formats import layout
from gptjax.formats.gguf_file import Kind
from gptjax.formats.layout import Place
from gptjax.formats.quantised.leaves import of_blocks
from gptjax.weights import Quantized

BLOCK = 32
"""Numbers that share a scale."""


class Narrow(NamedTuple):
    """A tensor of blocks."""

    kind: Kind
    blocks: np.ndarray
    """uint8 [rows, bytes of a row]"""


def narrow_tensors(places: Sequence[Place], narrow: Mapping[str, Any]) -> dict[str, Narrow]:
    """Returns the tensors that narrow weights become, by name.

    Raises:
      ConfigError: a weight is on no grid of GGUF.
    """
    return {
        place.name: _blocks(place, narrow)
        for place in places
        if any(path in narrow for path, _ in place.parts)
    }


def mixed_tensors(
    params: Params, places: Sequence[Place], blocks: Mapping[str, Narrow]
) -> Iterator[np.ndarray]:
    """Yields all tensors in the order of the places; of narrow ones their blocks."""
    plain = layout.tensors(params, [place for place in places if place.name not in blocks])
    for name in layout.tensor_shapes(places):
        yield blocks[name].blocks if name in blocks else next(plain)[1]


def _blocks(place: Place, narrow: Mapping[str, Any]) -> Narrow:
    leaves = [(narrow.get(path), index) for path, index in place.parts]
    fault = f"{place.name} is on no grid that GGUF has"
    hint = "; use --quantise int8 or int4 with --group 32, and for all kernels of a layer together."
    require(all(isinstance(leaf, Quantized) for leaf, _ in leaves), fault + hint)
    values = layout.to_theirs(
        place, [np.asarray(leaf.values[index]).astype(np.int16) for leaf, index in leaves]
    )
    scales = of_blocks(place, [np.asarray(leaf.scales[index]) for leaf, index in leaves])
    name = leaves[0][0].values.dtype.name
    offsets = None
    if leaves[0][0].offsets is not None:
        offsets = of_blocks(place, [np.asarray(leaf.offsets[index]) for leaf, index in leaves])
    kind = _KINDS.get((name, offsets is not None))
    fits = scales is not None and scales.shape == (*values.shape[:-1], values.shape[-1] // BLOCK)
    require(kind is not None and fits and values.shape[-1] % BLOCK == 0, fault + hint)
    apart = values.reshape(-1, BLOCK)
    heads = [_halves(part, fault + hint) for part in (scales, offsets) if part is not None]
    body = apart.astype(np.int8).view(np.uint8)
    if kind != Kind.Q8_0:
        unsigned = (apart + (8 if name == "int4" else 0)).astype(np.uint8)
        body = unsigned[:, : BLOCK // 2] | unsigned[:, BLOCK // 2 :] << 4
    blocks = np.concatenate([*heads, body], axis=1)
    return Narrow(kind, blocks.reshape(*values.shape[:-1], -1))


_KINDS = {
    ("int8", False): Kind.Q8_0,
    ("int4", False): Kind.Q4_0,
    ("uint4", True): Kind.Q4_1,
}


def _halves(numbers: np.ndarray, fault: str) -> np.ndarray:
    """The bytes [blocks, 2] of numbers that float16 holds exactly."""
    half = numbers.astype("<f2").reshape(-1, 1)
    require(np.array_equal(half.astype(np.float32).reshape(numbers.shape), numbers), fault)
    return half.view(np.uint8)
