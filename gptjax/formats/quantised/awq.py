"""AWQ checkpoints (`quant_method: awq`) of AutoAWQ: `qweight`, `qzeros` and `scales`, of four bits.

Words of 32 bits hold eight outputs of a row, in the order 0 2 4 6 1 3 5 7.

Source: Lin et al. 2023, AWQ, arXiv:2306.00978; the files' layout is that of AutoAWQ's `gemm`.
"""

from __future__ import annotations

import numpy as np

from gptjax.core.config import require
from gptjax.formats.keys import Keys
from gptjax.formats.quantised.gptq import group_of
from gptjax.formats.quantised.grid import Grid, unpacked
from gptjax.formats.quantised.parts import FLOATS, Parts, Scheme, finish_settings

ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Which number of a word is output 0, 1, …"""
_HARMLESS = {
    "modules_to_not_convert", "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse",
    "exllama_config", "desc_act", "sym", "meta", "lm_head", "damp_percent", "true_sequential",
}  # fmt: skip


def awq_scheme(keys: Keys) -> Scheme:
    """Translates the settings of `quant_method: awq`.

    Raises:
      ConfigError: one is unknown.
    """
    bits, group = keys.number("bits"), group_of(keys, keys.take("group_size", 128))
    require(bits == 4, f"{keys.where} has 'bits': {bits}; AWQ is read with 4.")
    keys.same("zero_point", True)
    for name in ("version", "format"):
        form = keys.take(name, None)
        require(
            form is None or (isinstance(form, str) and form.lower() == "gemm"),
            f"{keys.where} has {name!r}: {str(form)[:60]!r}; this program can read 'gemm' only.",
        )
    keys.same("method", "awq")
    keys.same("pack_dtype", "int32")
    finish_settings(keys, _HARMLESS)

    def check(parts: Parts) -> tuple[int, ...]:
        inputs, words = parts.matrix(".qweight", ("I32",))
        groups = 1 if group is None else -(-inputs // group)
        parts.need(".qzeros", ("I32",), (groups, words))
        parts.need(".scales", FLOATS, (groups, words * 8))
        return words * 8, inputs

    def read(parts: Parts) -> Grid:
        values, zeros = (_in_order(parts.take(end)) for end in (".qweight", ".qzeros"))
        block = (1, group or len(values))
        return Grid(values.T, parts.take(".scales").T, block, 4, zeros.T)

    return Scheme("awq", ".qweight", (".qzeros", ".scales"), ".weight", check, read)


def _in_order(words: np.ndarray) -> np.ndarray:
    """The numbers (uint8) of words of eight outputs."""
    outputs = words.shape[1] * 8
    numbers = unpacked(words, 4, outputs, axis=1)
    return numbers.reshape(len(words), -1, 8)[:, :, ORDER].reshape(len(words), outputs)
