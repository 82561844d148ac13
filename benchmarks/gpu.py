"""gptjax beside PyTorch on one NVIDIA GPU. Every measurement is a process of its own, and the ways
take turns.

    python benchmarks/gpu.py probe                  # ceilings; which kernels of attention are right
    python benchmarks/gpu.py train --shape gpt2     # GPT-2 124M, 32 × 1,024
    python benchmarks/gpu.py train --shape llama1b  # Llama 3.2 1B, 4 × 4,096
    python benchmarks/gpu.py decode --rows 1 8 64   # shapes of SmolLM2-135M and Llama 3.2 1B
    python benchmarks/gpu.py experts                # products grouped by expert

A way that fails is a row with its reason. Utilisation (MFU) is set over the data sheet's 989
TFLOP/s of an H100 or H200 (`--peak`). Results are written to gpu_*.json in `--out`. `--tiny` makes
all shapes small, for a look on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRAIN = {
    "gpt2": {"vocab": 50_304, "length": 1024, "rows": 32},
    "llama1b": {"vocab": 128_256, "length": 4096, "rows": 4},
    "tiny": {"vocab": 512, "length": 128, "rows": 4},
}
OURS = [
    {"layers": "scan", "attention": "auto", "parts": 1},
    {"layers": "unroll", "attention": "auto", "parts": 1},
    {"layers": "unroll", "attention": "auto", "parts": 8},
    {"layers": "unroll", "attention": "reference", "parts": 1},
]
"""Layers as a compiled loop or unrolled; kernel of attention; parts of the vocabulary in the
loss."""


def main() -> None:
    """Measures, prints a line for each way, writes the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("probe", "train", "decode", "experts"))
    parser.add_argument("--shape", default="gpt2", choices=("gpt2", "llama1b"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn")
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s, for MFU")
    parser.add_argument("--flags", nargs="*", default=[], help="of XLA, for gptjax")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    options = parser.parse_args()
    found: dict[str, list[dict]] = {}
    {"probe": probe, "train": train, "decode": decode, "experts": experts}[options.what](
        options, found
    )
    name = f"gpu_{options.what}{f'_{options.shape}' if options.what == 'train' else ''}.json"
    (options.out / name).write_text(json.dumps(found, indent=1) + "\n")


def take(found: dict[str, list[dict]], name: str, flags: Sequence[str] = (), **job: Any) -> dict:
    """Runs a job in a process of its own; prints and keeps what it found, or why it failed."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"
    env = os.environ | {"PYTHONPATH": paths, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    env["XLA_FLAGS"] = " ".join([env.get("XLA_FLAGS", ""), *flags]).strip()
    command = [sys.executable, str(ROOT / "benchmarks/gpu_jobs.py"), json.dumps(job)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
        told = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        got = json.loads(told[-1][7:]) if told else {"error": (done.stderr or done.stdout)[-600:]}
    except subprocess.TimeoutExpired:
        got = {"error": "no result in 280 s"}
    found.setdefault(name, []).append(got)
    short = {key: round(v, 3) if isinstance(v, float) else v for key, v in got.items()}
    print(name, short, flush=True)
    return got


def probe(options: argparse.Namespace, found: dict[str, list[dict]]) -> None:
    """What the device can do at best, and which kernels work."""
    take(found, "torch", run="probe_torch", tiny=options.tiny)
    take(found, "jax", run="probe_jax", tiny=options.tiny)


def train(options: argparse.Namespace, found: dict[str, list[dict]]) -> None:
    """A training step, each way in turn, and a table of medians."""
    shape = "tiny" if options.tiny else options.shape
    sizes, flops = {"shape": shape, "steps": options.steps, **TRAIN[shape]}, None
    for turn in range(options.turns):
        for number, way in enumerate(OURS):
            name = "gptjax " + ", ".join(f"{key} {value}" for key, value in way.items())
            trace = {"trace": str(options.out / "trace")} if turn == 0 and number == 1 else {}
            job = {"run": "train_gptjax", **sizes, **way, **trace}
            flops = take(found, name, options.flags, **job).get("flops_token", flops)
        for compiled in (False, True):
            name = f"torch {'compiled' if compiled else 'eager'}"
            take(found, name, run="train_torch", compiled=compiled, **sizes)
    tokens = sizes["rows"] * sizes["length"]
    for name, turns in found.items():
        times = [one["step_ms"] / 1e3 for one in turns if "step_ms" in one]
        if times and flops:
            seconds = statistics.median(times)
            rate = tokens * flops / seconds
            print(
                f"{name:50} {1e3 * seconds:8.1f} ms ({1e3 * min(times):.1f} to"
                f" {1e3 * max(times):.1f})  {tokens / seconds:10,.0f} tok/s"
                f"  {rate / 1e12:6.1f} TFLOP/s  MFU {rate / options.peak:6.1%}"
            )


def decode(options: argparse.Namespace, found: dict[str, list[dict]]) -> None:
    """Greedy decoding of random weights."""
    for shape in ("smollm2",) if options.tiny else ("smollm2", "llama1b"):
        for rows in options.rows:
            job = {"shape": shape, "rows": rows, "tiny": options.tiny}
            job |= {"tokens": 8, "prompt": 8} if options.tiny else {"tokens": 256, "prompt": 128}
            for kind in (None, "bfloat16", "int8"):
                name = f"{shape}, {rows} rows, gptjax {kind or 'as loaded'}"
                take(found, name, options.flags, run="decode_gptjax", kind=kind, **job)
            for static in (False, True):
                name = f"{shape}, {rows} rows, transformers {'static' if static else 'dynamic'}"
                take(found, name, run="decode_torch", static=static, **job)


def experts(options: argparse.Namespace, found: dict[str, list[dict]]) -> None:
    """Products grouped by expert, without and with the fusion that has to be asked for."""
    take(found, "experts", options.flags, run="experts", tiny=options.tiny)
    if not options.tiny:
        asked = [*options.flags, "--xla_gpu_experimental_use_ragged_dot_fusion=true"]
        take(found, "experts, fusion asked for", asked, run="experts", tiny=options.tiny)


if __name__ == "__main__":
    main()
