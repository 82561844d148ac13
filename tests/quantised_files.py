"""Quantised checkpoints of a tiny Llama, packed number by number, and what each must be read as.

`CASES` is the table: settings of config.json, and a function that stores one weight [O, I] and says
which numbers then stand in the file. It shares no code with the readers.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gptjax.formats import huggingface
from gptjax.formats.opened import OpenedModel
from gptjax.model import Experts, Layer, ModelConfig, llama

TINY = llama(
    vocab_size=257,
    context=64,
    width=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    feed_forward=96,
    tied=False,
    compute="float32",
)
"""257 tokens, those of `Bytes`."""

E4M3, E2M1 = np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.float4_e2m1fn)
DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
}

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8, "I8": 1, "U8": 1, "BOOL": 1}
WIDTHS |= {"F8_E4M3": 1, "F8_E8M0": 1}

Stored = tuple[dict[str, np.ndarray], np.ndarray]
"""Tensors by the ends of their names, and the numbers that they are."""


class Case(NamedTuple):
    """A way to store weights."""

    settings: dict[str, Any]
    store: Callable[[np.ndarray], Stored]
    held: bool = True
    """Whether its weights can be kept as they are stored."""
    pattern: str = r".*proj\.weight"
    """Names of the tensors that are stored so."""


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of unsigned numbers as rows of 32-bit words, bit by bit."""
    rows = []
    for row in codes.tolist():
        whole = sum(code << (i * bits) for i, code in enumerate(row))
        size = -(-len(row) * bits // 32)
        rows.append([whole >> (32 * k) & 0xFFFFFFFF for k in range(size)])
    return np.array(rows, np.uint32).view(np.int32)


def per_group(values: np.ndarray, leaf: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`leaf` [O, G] for each number [O, I], by the group of each input."""
    assert values.shape[1] == len(groups)
    return np.stack([leaf[:, g] for g in groups], axis=1)


def affine(weight: np.ndarray, bits: int, groups: np.ndarray, symmetric: bool, dtype: Any):
    """Unsigned codes [O, I], scales and zeros [O, G] of a weight, rounded to nearest."""
    count, top = groups.max() + 1, 2**bits - 1
    low = np.stack([weight[:, groups == g].min(1) for g in range(count)], 1)
    high = np.stack([weight[:, groups == g].max(1) for g in range(count)], 1)
    if symmetric:
        scales = np.maximum(np.abs(low), np.abs(high)) / (top // 2)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / top
    scales = scales.astype(dtype)
    wide = scales.astype(np.float64)
    zeros = np.full(scales.shape, 2 ** (bits - 1)) if symmetric else np.round(-low / wide)
    zeros = np.clip(zeros, 0, top).astype(np.int64)
    codes = np.round(weight / per_group(weight, wide, groups)) + per_group(weight, zeros, groups)
    return np.clip(codes, 0, top).astype(np.int64), scales, zeros


def numbers(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, groups: np.ndarray):
    """(code − zero) · scale, in float64 and rounded once."""
    spread = per_group(codes, scales.astype(np.float64), groups)
    return ((codes - per_group(codes, zeros, groups)) * spread).astype(np.float32)


def in_order(inputs: int, group: int) -> np.ndarray:
    return np.arange(inputs) // (inputs if group == -1 else group)


def gptq(bits: int, group: int, *, sym=False, v2=False, act_order=False, index=True) -> Case:
    def store(weight: np.ndarray) -> Stored:
        groups = in_order(weight.shape[1], group)
        if act_order:
            groups = np.random.default_rng(weight.size).permutation(groups)
        codes, scales, zeros = affine(weight, bits, groups, sym, np.float16)
        kept = zeros if v2 else (zeros - 1) % 2**bits
        tensors = {
            ".qweight": words(codes, bits).T.copy(),
            ".qzeros": words(kept.T, bits),
            ".scales": scales.T.copy(),
        }
        if index:
            tensors[".g_idx"] = groups.astype(np.int32)
        return tensors, numbers(codes, scales, zeros, groups)

    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym}
    settings |= {"desc_act": act_order, "damp_percent": 0.01, "true_sequential": True}
    if v2:
        settings["checkpoint_format"] = "gptq_v2"
    return Case(settings, store, held=not act_order)


def awq(group: int) -> Case:
    def store(weight: np.ndarray) -> Stored:
        groups = in_order(weight.shape[1], group)
        codes, scales, zeros = affine(weight, 4, groups, False, np.float16)

        def mixed(rows: np.ndarray) -> np.ndarray:
            eight = rows.reshape(len(rows), -1, 8)
            return words(eight[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(rows.shape), 4)

        tensors = {".qweight": mixed(codes.T), ".qzeros": mixed(zeros.T)}
        return tensors | {".scales": scales.T.copy()}, numbers(codes, scales, zeros, groups)

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return Case(settings | {"version": "gemm", "modules_to_not_convert": None}, store)


def fp8(block: tuple[int, int] | None, name: str = ".weight_scale_inv", powers=False) -> Case:
    def store(weight: np.ndarray) -> Stored:
        rows, columns = block or weight.shape
        shape = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
        scales, values = np.empty(shape, np.float32), np.empty(weight.shape, E4M3)
        result = np.empty(weight.shape, np.float32)
        for i in range(shape[0]):
            for j in range(shape[1]):
                at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scales[i, j] = np.abs(weight[at]).max() / 448
                if powers:
                    scales[i, j] = 2 ** math.ceil(math.log2(scales[i, j]))
                values[at] = (weight[at] / scales[i, j]).astype(E4M3)
                result[at] = values[at].astype(np.float32) * scales[i, j]
        if block is None:
            scales = scales.reshape(())
        if powers:
            scales = scales.astype(jnp.float8_e8m0fnu)
        return {".weight": values, name: scales}, result

    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return Case(
        settings | {"weight_block_size": None if block is None else list(block)},
        store,
        held=block is None or 64 % block[1] == 0,
    )


def compressed(bits: int, kind: str, strategy: str, *, sym=True, size=None, dtype=None) -> Case:
    form = {"int": "int-quantized", "float": "float-quantized", "packed": "pack-quantized"}[kind]
    dtype = dtype or jnp.bfloat16

    def store(weight: np.ndarray) -> Stored:
        outputs, inputs = weight.shape
        shape = {".weight_shape": np.array(weight.shape, np.int64)} if kind == "packed" else {}
        if kind == "float":
            rows, columns = size if strategy == "block" else (1, inputs)
            case = fp8((outputs, inputs) if strategy == "tensor" else (rows, columns))
            found, result = case.store(weight)
            scales = found[".weight_scale_inv"]
            scales = scales.reshape(1) if strategy == "tensor" else scales
            return {".weight": found[".weight"], ".weight_scale": scales}, result
        groups = in_order(inputs, size or -1)
        rows = weight if strategy != "tensor" else weight.reshape(1, -1)
        of_rows = groups if strategy != "tensor" else np.zeros(weight.size, int)
        codes, scales, zeros = affine(rows, bits, of_rows, sym, dtype)
        result = numbers(codes, scales, zeros, of_rows).reshape(weight.shape)
        codes, middle = codes.reshape(weight.shape), 2 ** (bits - 1)
        tensors = {".weight_scale": scales.reshape(1) if strategy == "tensor" else scales}
        if kind == "packed":
            tensors[".weight_packed"] = words(codes, bits)
        else:
            tensors[".weight"] = (codes - middle).astype(np.int8)
        if not sym and kind == "packed":
            tensors[".weight_zero_point"] = words(zeros.T, bits).T.copy()
        elif not sym:
            zero = (zeros - middle).astype(np.int8)
            tensors[".weight_zero_point"] = zero.reshape(1) if strategy == "tensor" else zero
        return tensors | shape, result

    weights = {"num_bits": bits, "type": "float" if kind == "float" else "int"}
    weights |= {"strategy": strategy, "symmetric": sym, "dynamic": False, "observer": "minmax"}
    weights |= {"group_size": size} if strategy == "group" else {}
    weights |= {"block_structure": list(size)} if strategy == "block" else {}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    settings = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    settings |= {"config_groups": {"group_0": group}, "quantization_status": "compressed"}
    held = sym or np.dtype(dtype).itemsize == 2
    return Case(settings, store, held and not (size and strategy == "group" and 64 % size))


CASES = {
    "fp8 in blocks": fp8((32, 32)),
    "fp8 in ragged blocks": fp8((40, 48)),
    "fp8 by powers of two": fp8((16, 32), powers=True),
    "fp8 whole": fp8(None, ".weight_scale"),
    "gptq": gptq(4, 32),
    "gptq symmetric": gptq(4, 32, sym=True),
    "gptq v2": gptq(4, 32, v2=True),
    "gptq act-order": gptq(4, 32, act_order=True),
    "gptq 8 bits": gptq(8, 32, index=False),
    "gptq 3 bits": gptq(3, 32),
    "gptq 2 bits": gptq(2, 16, sym=True),
    "gptq by column": gptq(4, -1),
    "awq": awq(32),
    "int4 packed": compressed(4, "packed", "group", size=32),
    "int4 packed asymmetric": compressed(4, "packed", "group", size=32, sym=False),
    "int4 packed in ragged groups": compressed(4, "packed", "group", size=40),
    "int4 packed by channel": compressed(4, "packed", "channel"),
    "int8 packed": compressed(8, "packed", "group", size=32),
    "int8": compressed(8, "int", "channel"),
    "int8 asymmetric": compressed(8, "int", "channel", sym=False),
    "int8 asymmetric in float32": compressed(8, "int", "channel", sym=False, dtype=np.float32),
    "int8 whole": compressed(8, "int", "tensor", sym=False),
    "float8": compressed(8, "float", "channel"),
    "float8 whole": compressed(8, "float", "tensor"),
    "float8 in blocks": compressed(8, "float", "block", size=(32, 32)),
}
"""Every format of a Llama. MXFP4 is for experts' kernels: see `mxfp4`."""


def mxfp4(weight: np.ndarray) -> Stored:
    """Stores kernels [E, I, O] as gpt-oss does."""
    rows = weight.swapaxes(1, 2)
    groups = rows.reshape(*rows.shape[:2], -1, 32)
    powers = np.floor(np.log2(np.abs(groups).max(-1))).astype(int) - 2
    shares = groups / 2.0 ** powers[..., None]
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nearest = np.abs(np.abs(shares)[..., None] - levels).argmin(-1)
    codes = nearest + 8 * (shares < 0)
    result = levels[nearest] * np.where(shares < 0, -1, 1) * 2.0 ** powers[..., None]
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
    tensors = {"_blocks": blocks, "_scales": (powers + 127).astype(np.uint8)}
    return tensors, result.reshape(rows.shape).swapaxes(1, 2).astype(np.float32)


MXFP4 = Case({"quant_method": "mxfp4"}, mxfp4, pattern=r".*experts\.(gate_up|down)_proj")
"""For the experts of gpt-oss."""


def gpt_oss() -> ModelConfig:
    """A tiny gpt-oss."""
    return dataclasses.replace(
        TINY,
        num_layers=2,
        attention_sink=True,
        qkv_bias=True,
        out_bias=True,
        activation="swiglu_clamped",
        pattern=(Layer("window", 16), Layer()),
        feed_forward=32,
        experts=Experts(count=4, active=2, width=32, biases=True, balance=0.001),
    )


# --- directories


class Raw(NamedTuple):
    """A tensor of a safetensors file."""

    kind: str
    shape: list[int]
    data: bytes


def write_raw(path: Path, tensors: dict[str, Raw]) -> None:
    """Writes a safetensors file in which each tensor has as many bytes as its shape needs."""
    header, data = {}, []
    end = 0
    for name, (kind, shape, raw) in tensors.items():
        size = math.prod(shape) * WIDTHS[kind]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        data.append(raw[:size].ljust(size, b"\0"))
        end += size
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(data))


def raw_of(tensors: dict[str, np.ndarray]) -> dict[str, Raw]:
    """Arrays as tensors of a file."""
    return {
        name: Raw(DTYPES[value.dtype.name], list(value.shape), value.tobytes())
        for name, value in tensors.items()
    }


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, types of 8 bits included."""
    write_raw(path, raw_of(tensors))


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file of float32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return {
        name: np.frombuffer(
            data[8 + size + entry["data_offsets"][0] : 8 + size + entry["data_offsets"][1]], "<f4"
        ).reshape(entry["shape"])
        for name, entry in json.loads(data[8 : 8 + size]).items()
        if name != "__metadata__"
    }


def write_pair(case: Case, model: OpenedModel, quantised: Path, plain: Path) -> None:
    """Writes a model twice: quantised, and with the very numbers in float32."""
    huggingface.save_huggingface(plain, model)
    tensors, stored = read_file(plain / "model.safetensors"), {}
    for name, value in tensors.items():
        if re.fullmatch(case.pattern, name):
            some, tensors[name] = case.store(value)
            start = name.removesuffix(".weight")
            stored |= {start + end: part for end, part in some.items()}
        else:
            stored[name] = value
    write_file(plain / "model.safetensors", tensors)
    quantised.mkdir()
    for file in plain.iterdir():
        (quantised / file.name).write_bytes(file.read_bytes())
    write_file(quantised / "model.safetensors", stored)
    data = json.loads((plain / "config.json").read_text())
    data["quantization_config"] = case.settings
    (quantised / "config.json").write_text(json.dumps(data))


def tiny(config: ModelConfig = TINY, tokenizer: Any = None) -> OpenedModel:
    """A model of random numbers; nothing is compiled."""
    from gptjax.formats import layout

    draw, params = np.random.default_rng(0), {}
    for path, leaf in layout.leaf_shapes(config).items():
        *folders, name = path.split("/")
        spot = params
        for folder in folders:
            spot = spot.setdefault(folder, {})
        scale = 1 if name == "scale" else leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 else 1
        spot[name] = (draw.normal(size=leaf.shape) * scale).astype(np.float32)
    return OpenedModel(config, params, tokenizer)
