"""Memory of opening quantised files, `python benchmarks/quantised_files.py`: SmolLM2-135M's shape.

Each file holds random values. It is opened in a process of its own, widened to float32 and kept as
it is stored (`--packed`); printed are the sizes of the file and of the parameters, and the peak of
memory above what the process held before, all in MB.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from interop import random_model

from gptjax.formats import gguf, huggingface

READ = """
import pathlib, re, sys
import jax
from gptjax import formats, model
jax.block_until_ready(jax.numpy.ones(8) + 1)
def held(what):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(what + r":\\s+(\\d+)", status)[1]) * 1024
before = held("VmRSS")
found = formats.load_model(sys.argv[1], packed=sys.argv[2] == "packed")
jax.block_until_ready(found.params)
def size(leaf):
    return leaf.size / 2 if leaf.dtype.name in ("int4", "uint4") else leaf.nbytes
parameters = sum(size(leaf) for leaf in jax.tree.leaves(found.params))
print(parameters / 1e6, (held("VmHWM") - before) / 1e6)
"""

Store = Callable[[np.random.Generator, tuple[int, int]], dict[str, np.ndarray]]
"""Random tensors of one weight, by the ends of their names."""


def main() -> None:
    """Makes each file, opens it both ways, prints a row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=[*FORMATS, "q8_0", "q4_0"])
    options = parser.parse_args()
    print("| format | file | widened: parameters | peak | packed: parameters | peak |")
    print("|---|---|---|---|---|---|")
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("m.gguf" if name in gguf.KINDS else "m")
            if name in gguf.KINDS:
                gguf.save_gguf(path, random_model(), name)
                size = path.stat().st_size
            else:
                _write(path, *FORMATS[name])
                size = (path / "model.safetensors").stat().st_size
            figures = [figure for way in ("wide", "packed") for figure in _opened(path, way)]
        print(f"| {name} | {size / 1e6:.0f} | {' | '.join(f'{x:.0f}' for x in figures)} |")


def _opened(path: Path, way: str) -> list[float]:
    command = [sys.executable, "-c", READ, str(path), way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def _write(path: Path, settings: dict[str, Any], store: Store) -> None:
    """A directory whose projections are stored in a format."""
    huggingface.save_huggingface(path, random_model(), "bfloat16")
    file = path / "model.safetensors"
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header, parts, end = {}, [], 0
    draw = np.random.default_rng(0)
    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        some = {name: (entry["dtype"], entry["shape"], data[begin + first : begin + last])}
        if "proj" in name:
            start, (rows, columns) = name.removesuffix(".weight"), entry["shape"]
            some = {
                start + end_of: (NAMES[part.dtype.name], list(part.shape), part.tobytes())
                for end_of, part in store(draw, (rows, columns)).items()
            }
        for tensor, (kind, shape, raw) in some.items():
            header[tensor] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + len(raw)]}
            parts.append(raw)
            end += len(raw)
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(parts))
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = settings
    (path / "config.json").write_text(json.dumps(config))


NAMES = {
    "float16": "F16",
    "float32": "F32",
    "int32": "I32",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
}


def _words(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return draw.integers(-(2**31), 2**31, shape, np.int32)


def _scales(draw: np.random.Generator, *shape: int, dtype: Any = np.float16) -> np.ndarray:
    return draw.uniform(1e-3, 1e-2, shape).astype(dtype)


def _fp8(draw: np.random.Generator, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    values = draw.standard_normal(shape, np.float32).astype(jnp.float8_e4m3fn)
    blocks = [math.ceil(size / 64) for size in shape]
    return {".weight": values, ".weight_scale_inv": _scales(draw, *blocks, dtype=np.float32)}


def _gptq(draw: np.random.Generator, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    outputs, inputs = shape
    groups = inputs // 64
    return {
        ".qweight": _words(draw, inputs // 8, outputs),
        ".qzeros": _words(draw, groups, outputs // 8),
        ".scales": _scales(draw, groups, outputs),
    }


def _awq(draw: np.random.Generator, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    outputs, inputs = shape
    groups = inputs // 64
    return {
        ".qweight": _words(draw, inputs, outputs // 8),
        ".qzeros": _words(draw, groups, outputs // 8),
        ".scales": _scales(draw, groups, outputs),
    }


def _int8(draw: np.random.Generator, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    values = draw.integers(-127, 128, shape, np.int8)
    return {".weight": values, ".weight_scale": _scales(draw, shape[0], 1)}


FORMATS: dict[str, tuple[dict[str, Any], Store]] = {
    "fp8": ({"quant_method": "fp8", "weight_block_size": [64, 64]}, _fp8),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False}, _gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64}, _awq),
    "compressed-tensors int8": (
        {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "config_groups": {"g": {"weights": {"num_bits": 8, "strategy": "channel"}}},
        },
        _int8,
    ),
}


if __name__ == "__main__":
    main()
