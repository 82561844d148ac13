"""GPTQ checkpoints (`quant_method: gptq`) of AutoGPTQ and GPTQModel: `qweight`, `qzeros`, `scales`
and `g_idx`.

Words of 32 bits hold 32 / bits inputs of a column; inputs share a scale and a zero in groups, in
order or, with act-order, as `g_idx` says. The first version of the format stores each zero less 1.

Source: Frantar et al. 2022, GPTQ, arXiv:2210.17323; the files' layout is that of AutoGPTQ.
"""

from __future__ import annotations

import numpy as np

from gptjax.core.config import require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.grid import Grid, unpacked
from gptjax.formats.quantised.parts import FLOATS, Parts, Scheme, finish_settings

_HARMLESS = {
    "static_groups", "damp_percent", "damp_auto_increment", "true_sequential", "meta",
    "model_name_or_path", "model_file_base_name", "model_seqlen", "block_name_to_quantize",
    "module_name_preceding_first_block", "modules_in_block_to_quantize", "batch_size", "dataset",
    "tokenizer", "pad_token_id", "max_input_length", "cache_block_outputs", "use_cuda_fp16",
    "use_exllama", "exllama_config", "disable_exllama", "backend", "lm_head", "mse",
    "act_group_aware", "modules_to_not_convert", "group_aware", "v2", "offload_to_disk",
    "offload_to_disk_path", "hyb_act", "use_triton",
}  # fmt: skip
"""How a model was quantised, or which weights were; their tensors say it themselves."""


def gptq_scheme(keys: Keys) -> Scheme:
    """Translates the settings of `quant_method: gptq`.

    Raises:
      ConfigError: one is unknown.
    """
    bits, group = keys.number("bits"), keys.take("group_size", 128)
    require(bits in (2, 3, 4, 8), f"{keys.where} has 'bits': {bits}; it needs 2, 3, 4 or 8.")
    group = group_of(keys, group)
    symmetric, act_order = keys.take("sym", True), keys.take("desc_act", False)
    name = "checkpoint_format" if keys.data.get("checkpoint_format") else "format"
    form = keys.take(name, "gptq") or "gptq"
    require(
        form in ("gptq", "gptq_v2"),
        f"{keys.where} has {name!r}: {form!r}; this program can read 'gptq' or 'gptq_v2' only.",
    )
    keys.take("format", None)
    keys.same("method", "gptq")
    keys.same("is_marlin_format", False)
    keys.same("pack_dtype", "int32")
    finish_settings(keys, _HARMLESS)

    def check(parts: Parts) -> tuple[int, ...]:
        words, outputs = parts.matrix(".qweight", ("I32",))
        inputs, odd = divmod(words * 32, bits)
        fits = not odd and outputs * bits % 32 == 0
        parts.check(
            fits, ".qweight", f"has the shape {[words, outputs]}, impossible for {bits} bits"
        )
        groups = 1 if group is None else -(-inputs // group)
        parts.need(".scales", FLOATS, (groups, outputs))
        parts.need(".qzeros", ("I32",), (groups, outputs * bits // 32))
        if act_order or parts.has(".g_idx"):
            parts.need(".g_idx", ("I32",), (inputs,))
        return outputs, inputs

    def read(parts: Parts) -> Grid:
        words, outputs = parts.tensors[".qweight"].shape
        inputs = words * 32 // bits
        values = unpacked(parts.take(".qweight"), bits, inputs, axis=0)
        zeros = unpacked(parts.take(".qzeros"), bits, outputs, axis=1)
        if form == "gptq":
            zeros = zeros + np.uint8(1) & np.uint8((1 << bits) - 1)
        scales, block = parts.take(".scales"), group or inputs
        grid = Grid(values.T, scales.T, (1, block), 8 if bits == 8 else 4, zeros.T)
        if parts.has(".g_idx"):
            grid = _reordered(parts, grid)
        return signed(grid, bits) if symmetric else grid

    beside = (".qzeros", ".scales", ".g_idx")
    return Scheme("gptq", ".qweight", beside, ".weight", check, read)


def _reordered(parts: Parts, grid: Grid) -> Grid:
    """The grid with the groups of `g_idx`: a scale for each number where they are not in order."""
    groups, inputs = parts.take(".g_idx"), grid.shape[1]
    inside = groups.min() >= 0 and groups.max() < grid.scales.shape[1]
    parts.check(bool(inside), ".g_idx", "names groups that there are not")
    if np.array_equal(groups, np.arange(inputs) // grid.block[1]):
        return grid
    zeros = None if grid.zeros is None else grid.zeros[:, groups]
    return grid._replace(scales=grid.scales[:, groups], zeros=zeros, block=(1, 1))


def group_of(keys: Keys, group: object) -> int | None:
    """Returns the number of inputs that share a scale; `None` is all, which files call −1.

    Raises:
      ConfigError: it is something else.
    """
    require(
        type(group) is int and (group == -1 or 0 < group < 1 << 20),
        f"{keys.where} has 'group_size': {str(group)[:60]}; it needs a number above 0, or -1.",
    )
    return None if group == -1 else int(str(group))


def signed(grid: Grid, bits: int) -> Grid:
    """The grid with signed values, if its zeros are all in the middle of the unsigned ones."""
    middle = 1 << (bits - 1)
    if grid.zeros is None or not (grid.zeros == middle).all():
        return grid
    values = (grid.values - np.uint8(middle)).view(np.int8)
    return grid._replace(values=values, zeros=None)
