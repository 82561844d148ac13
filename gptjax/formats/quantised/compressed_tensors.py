"""Checkpoints of `compressed-tensors` (llm-compressor, vLLM): whole numbers of 2, 4 and 8 bits and
8-bit floats, with scales for all of a weight, its rows, groups of inputs or blocks.

`pack-quantized` keeps them in words of 32 bits, `int-quantized`, `float-quantized` and
`naive-quantized` one by one. Which activations would be rounded too is not computed here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.fp8_blocks import block_counts, is_block
from gptjax.formats.quantised.gptq import group_of
from gptjax.formats.quantised.grid import Grid, unpacked
from gptjax.formats.quantised.parts import FLOATS, Parts, Scheme, finish_settings

ONE_BY_ONE = ("int-quantized", "float-quantized", "naive-quantized")
_UNUSED = r"\.(input_scale|input_zero_point|output_scale|output_zero_point|k_scale|v_scale)$"
_HARMLESS = {
    "ignore", "global_compression_ratio", "quantization_status", "version", "kv_cache_scheme",
    "sparsity_config", "transform_config",
}  # fmt: skip
_HARMLESS_IN_WEIGHTS = {"observer", "observer_kwargs", "scale_dtype", "zp_dtype"}


class Arguments(NamedTuple):
    """How the weights of a group of layers are stored."""

    bits: int
    floats: bool
    symmetric: bool
    strategy: str
    """tensor, channel, group or block."""
    block: tuple[int | None, int | None]
    """Outputs and inputs that share a scale; `None` is all of them."""

    def scale_shapes(self, shape: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        """The shapes that the scales of a weight may have."""
        if self.strategy == "tensor":
            return ((), (1,), (1, 1))
        if self.strategy == "channel":
            return ((shape[0], 1),)
        return (block_counts(shape, self.sizes(shape)),)

    def sizes(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The block of a weight."""
        return self.block[0] or shape[0], self.block[1] or shape[1]


def compressed_scheme(keys: Keys) -> Scheme:
    """Translates the settings of `quant_method: compressed-tensors`.

    Raises:
      ConfigError: one is unknown.
    """
    form, groups = keys.take("format"), keys.take("config_groups")
    require(
        form == "pack-quantized" or form in ONE_BY_ONE,
        f"{keys.where} has 'format': {str(form)[:60]!r}; this program can read pack-quantized,"
        f" {', '.join(ONE_BY_ONE)}.",
    )
    require(
        isinstance(groups, dict)
        and bool(groups)
        and all(isinstance(g, dict) for g in groups.values()),
        f"{keys.where} has config_groups that are no groups of layers; get it again.",
    )
    keys.same("quantization_status", "compressed")
    for name in ("sparsity_config", "transform_config"):
        require(
            not keys.data.get(name),
            f"{keys.where} has a {name}, which is not known here; use the unquantised model.",
        )
    finish_settings(keys, _HARMLESS)
    packed = form == "pack-quantized"
    all_arguments = [_arguments(keys.where, form, name, group) for name, group in groups.items()]
    end = ".weight_packed" if packed else ".weight"

    def check(parts: Parts) -> tuple[int, ...]:
        shape, _ = _fitting(parts, end, all_arguments)
        return shape

    def read(parts: Parts) -> Grid:
        shape, arguments = _fitting(parts, end, all_arguments)
        return _grid(parts, end, shape, arguments)

    beside = (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")
    return Scheme("compressed-tensors", end, beside, ".weight", check, read, _UNUSED)


def _arguments(where: str, form: str, name: str, group: dict[str, Any]) -> Arguments:
    """The arguments of a group of layers."""
    outer = Keys(group, f"config_groups.{name} in {where}")
    weights = outer.take("weights", None)
    require(isinstance(weights, dict), f"{outer.where} has no 'weights'; get it again.")
    keys = Keys(weights, f"config_groups.{name}.weights in {where}")
    outer.same("format", None, form)
    finish_settings(outer, {"targets", "input_activations", "output_activations"})
    bits, kind = keys.number("num_bits", 8), keys.take("type", "int")
    widths = (8,) if form != "pack-quantized" else (2, 4, 8)
    require(
        kind in ("int", "float") and bits in widths,
        f"{keys.where} has {bits!r} bits of the type {kind!r}, which is not known here as {form}.",
    )
    require(
        (kind == "float") <= (form != "pack-quantized"),
        f"{keys.where} has floats, which pack-quantized can't hold; get it again.",
    )
    keys.same("dynamic", False)
    keys.same("actorder", None, False, "weight", "static", "group")
    symmetric = keys.take("symmetric", True)
    group_size, block = keys.take("group_size", None), keys.take("block_structure", None)
    default = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    strategy = keys.take("strategy", None) or default
    require(
        strategy in ("tensor", "channel", "group", "block") and isinstance(symmetric, bool),
        f"{keys.where} has 'strategy': {strategy!r}, 'symmetric': {symmetric!r}; this program can"
        " read tensor, channel, group or block, and true or false.",
    )
    sizes: tuple[int | None, int | None] = {"tensor": (None, None)}.get(strategy, (1, None))
    if strategy == "group":
        sizes = (1, group_of(keys, group_size))
    elif strategy == "block":
        require(is_block(block), f"{keys.where} has 'block_structure': {str(block)[:60]}.")
        sizes = (block[0], block[1])
    finish_settings(keys, _HARMLESS_IN_WEIGHTS | {"group_size"})
    return Arguments(bits, kind == "float", symmetric, strategy, sizes)


def _fitting(parts: Parts, end: str, every: list[Arguments]) -> tuple[tuple[int, int], Arguments]:
    """The shape of a weight and the arguments of which its tensors are: those of the first group
    that they fit.

    Raises:
      ConfigError: they fit none; names what is wrong for the last.
    """
    for number, arguments in enumerate(every, start=1):
        try:
            return _shape(parts, end, arguments), arguments
        except ConfigError:
            if number == len(every):
                raise
    raise AssertionError("a scheme has at least one group")


def _shape(parts: Parts, end: str, arguments: Arguments) -> tuple[int, int]:
    """The shape of a weight, from the headers and from its `weight_shape`."""
    if end == ".weight":
        shape = parts.matrix(end, ("F8_E4M3",) if arguments.floats else ("I8",))
    else:
        rows, words = parts.matrix(end, ("I32",))
        parts.need(".weight_shape", ("I64", "I32"), (2,))
        said = parts.tensors[".weight_shape"].take()
        shape = int(said[0]), int(said[1])
        fits = shape[0] == rows and 0 < shape[1] < 1 << 31
        fits = fits and -(-shape[1] * arguments.bits // 32) == words
        parts.check(fits, ".weight_shape", f"is {list(shape)}, and {end[1:]} {[rows, words]}")
    scales = parts.need(".weight_scale", FLOATS, *arguments.scale_shapes(shape))
    zero = ".weight_zero_point"
    if arguments.symmetric and not parts.has(zero):  # older files have zeros that are all 0
        pass
    elif end == ".weight" or arguments.strategy == "tensor":
        parts.need(zero, ("I8",), scales)
    else:
        parts.need(zero, ("I32",), (-(-scales[0] * arguments.bits // 32), scales[1]))
    if parts.has(".weight_g_idx"):
        parts.need(".weight_g_idx", ("I32",), (shape[1],))
        parts.check(arguments.strategy == "group", ".weight_g_idx", "belongs to no groups")
    return shape


def _grid(parts: Parts, end: str, shape: tuple[int, int], arguments: Arguments) -> Grid:
    """Reads a weight."""
    bits, scales = arguments.bits, parts.take(".weight_scale")
    middle = np.uint8(1 << (bits - 1))
    values = parts.take(end)
    if end == ".weight_packed":
        values = (unpacked(values, bits, shape[1], axis=1) - middle).view(np.int8)
    zeros = None
    if parts.has(".weight_zero_point"):
        zeros = parts.take(".weight_zero_point")
        if zeros.dtype == np.int32:
            zeros = (unpacked(zeros, bits, scales.shape[0], axis=0) - middle).view(np.int8)
    if arguments.strategy == "tensor":
        scales = scales.reshape(1, 1)
        zeros = None if zeros is None else zeros.reshape(1, 1)
    block = arguments.sizes(shape)
    if parts.has(".weight_g_idx"):
        groups = parts.take(".weight_g_idx")
        known = groups.min() >= 0 and groups.max() < scales.shape[1]
        parts.check(bool(known), ".weight_g_idx", "names groups that there are not")
        scales, zeros = scales[:, groups], None if zeros is None else zeros[:, groups]
        block = (1, 1)
    return Grid(values, scales, block, 8 if bits == 8 else 4, zeros)
