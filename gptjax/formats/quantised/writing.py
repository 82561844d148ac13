"""Narrow weights written into a Hugging Face directory: whole numbers as `compressed-tensors`
(`pack-quantized`) keeps them, NF4 as bitsandbytes does. They are the very codes, scales and zeros,
which other programs and `--packed` read back.

Read `save_packed`, then `_packed`, the tensors of one weight.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.formats import huggingface, layout, safetensors
from gptjax.formats.huggingface_families import FAMILIES, family_of
from gptjax.formats.layout import Place
from gptjax.formats.opened import OpenedModel
from gptjax.formats.quantised.bitsandbytes import stored_nf4
from gptjax.formats.quantised.leaves import narrow_weights, of_blocks
from gptjax.weights import NormalFloat
from gptjax.weights.storage import LEVELS

SUFFIX = ".weight"
"""The end of the name of what can be packed."""


class _Packed(NamedTuple):
    """One weight as it is stored."""

    values: np.ndarray
    """int8 [O I]"""
    scales: np.ndarray
    """float32 [O groups]"""
    zeros: np.ndarray | None
    """int8 [O groups]"""
    bits: int
    normal: bool = False
    """Values are levels of NF4."""


NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_compute_dtype": "float32",
}
"""The `quantization_config` of NF4."""


def save_packed(path: Path, model: OpenedModel, dtype: str, scale: str = "float16") -> None:
    """Writes a directory in which narrow weights stay narrow; see `huggingface.save_huggingface`.

    Args:
      dtype: of all other weights.
      scale: type of the scales.

    Raises:
      ConfigError: no family computes what this model does, or a weight has a form that the format
        does not.
    """
    narrow = narrow_weights(model.params)
    normal = {isinstance(leaf, NormalFloat) for leaf in narrow.values()}
    require(
        len(normal) == 1,
        "some weights are NF4 and some whole numbers, for which there is no format; use --outer"
        " same or float.",
    )
    family = FAMILIES[family_of(model.config, model.about.family)]
    packed = {
        place.name: one
        for place in family.places(model.config)
        if any(name in narrow for name, _ in place.parts)
        for one in [_packed(place, narrow, scale)]
    }
    write = functools.partial(_write, packed=packed, scale=scale)
    settings = {"quantization_config": NF4 if True in normal else _settings(packed)}
    huggingface.save_huggingface(path, model, dtype, write=write, more=settings)


def _packed(place: Place, narrow: Mapping[str, Any], scale: str) -> _Packed:
    """A weight of theirs, from the parts of ours that it holds.

    Raises:
      ConfigError: its tensors have no such form.
    """
    leaves = [(narrow.get(path), index) for path, index in place.parts]
    entry, shape = place.entry, layout.their_shape(place)
    whole = place.name.endswith(SUFFIX) and len(shape) == 2 and not (entry.plus or entry.folded)
    require(
        whole and all(leaf is not None for leaf, _ in leaves),
        f"{place.name} {list(shape)} can't be packed by rows of inputs; choose other weights to"
        " quantise, or write a GGUF file (a name that ends with .gguf).",
    )
    values = layout.to_theirs(
        place, [np.asarray(leaf.values[index]).astype(np.int8) for leaf, index in leaves]
    )
    scales = of_blocks(place, [np.asarray(leaf.scales[index]) for leaf, index in leaves])
    require(
        scales is not None and scales.shape[0] == shape[0],
        f"{place.name} has its outputs in rows of inputs, or in another order, which"
        " compressed-tensors can't express; write a GGUF file (a name that ends with .gguf).",
    )
    bits = 8 if leaves[0][0].values.dtype.name in ("int8", "uint8") else 4
    if isinstance(leaves[0][0], NormalFloat):
        return _Packed(values, scales, None, 4, normal=True)
    offsets = [leaf.offsets for leaf, _ in leaves]
    if all(one is None for one in offsets):
        return _Packed(values, scales, None, bits)
    added = of_blocks(place, [np.asarray(leaf.offsets[index]) for leaf, index in leaves])
    stored = scales.astype(safetensors.WRITTEN[scale][1]).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        zeros = np.where(stored == 0, 0, np.round(-added / stored))
    middle = 1 << (bits - 1)
    require(
        np.array_equal(-(zeros.astype(np.float32) * stored), added)
        and bool(((zeros >= -middle) & (zeros < middle)).all()),
        f"{place.name} has offsets that are no whole number of scales, which compressed-tensors"
        " can't express; use another grid, or write a GGUF file.",
    )
    return _Packed(values, scales, zeros.astype(np.int8), bits)


# --- the file


def _write(
    path: Path,
    places: list[Place],
    params: Params,
    dtype: str,
    shard_bytes: int,
    *,
    packed: Mapping[str, _Packed],
    scale: str,
) -> None:
    """Writes the tensors of all weights, in one file."""
    del shard_bytes
    plain = [place for place in places if place.name not in packed]
    shapes = dict(layout.tensor_shapes(plain))
    kinds = dict.fromkeys(shapes, dtype)
    for name, one in packed.items():
        start = name.removesuffix(SUFFIX)
        for end, (kind, value) in _parts(one, scale).items():
            shapes[start + end], kinds[start + end] = value.shape, kind
    values = _values(plain, params, packed, scale)
    target = path / "model.safetensors"
    safetensors.write_safetensors(target, shapes, values, kinds, {"format": "pt"})


def _values(
    plain: list[Place], params: Params, packed: Mapping[str, _Packed], scale: str
) -> Iterator[tuple[str, np.ndarray]]:
    yield from layout.tensors(params, plain)
    for name, one in packed.items():
        start = name.removesuffix(SUFFIX)
        for end, (_, value) in _parts(one, scale).items():
            yield start + end, value


def _parts(one: _Packed, scale: str) -> dict[str, tuple[str, np.ndarray]]:
    """The tensors of a weight by the ends of their names, with their types."""
    if one.normal:
        stored = stored_nf4(one.values, one.scales, LEVELS)
        return {end: (part.dtype.name, part) for end, part in stored.items()}
    parts = {
        ".weight_packed": ("int32", packed_words(one.values, one.bits, axis=1)),
        ".weight_scale": (scale, one.scales),
        ".weight_shape": ("int64", np.asarray(one.values.shape, np.int64)),
    }
    if one.zeros is not None:
        parts[".weight_zero_point"] = ("int32", packed_words(one.zeros, one.bits, axis=0))
    return parts


def packed_words(numbers: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Returns words of 32 bits of signed numbers along an axis, the lowest bits first: the inverse
    of `grid.unpacked`, whose numbers have half their range added.

    Args:
      bits: of each number, 4 or 8.
    """
    rows = np.moveaxis(numbers, axis, -1).astype(np.int16) + (1 << (bits - 1))
    each = 32 // bits
    rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -rows.shape[-1] % each)])
    apart = rows.astype(np.uint32).reshape(*rows.shape[:-1], -1, each)
    words = (apart << np.arange(0, 32, bits, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return np.ascontiguousarray(np.moveaxis(words.view(np.int32), -1, axis))


def _settings(packed: Mapping[str, _Packed]) -> dict[str, Any]:
    """The `quantization_config` of a directory."""
    named: dict[tuple[int, int, bool], list[str]] = {}
    for name, one in packed.items():
        groups = one.scales.shape[1]
        size = -1 if groups == 1 else one.values.shape[1] // groups
        named.setdefault((one.bits, size, one.zeros is None), []).append(name)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": _targets(names),
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "channel" if size == -1 else "group",
                    "group_size": None if size == -1 else size,
                    "dynamic": False,
                },
            }
            for number, ((bits, size, symmetric), names) in enumerate(named.items())
        },
        "ignore": [],
    }


def _targets(names: Sequence[str]) -> list[str]:
    """Patterns of the modules of weights, by the last parts of their names."""
    ends = dict.fromkeys(name.removesuffix(SUFFIX).rpartition(".")[2] for name in names)
    return [f"re:.*{re.escape(end)}$" for end in ends]
