"""Sizes of a model and what each costs: `python benchmarks/small.py`, SmolLM2-135M.

A row is a way to make it smaller: bits for each number and MB in memory, MB of its file, loss on
held-out chapters, how much more that is, the same most likely token, and KL. Calibration reads
other books.

`python benchmarks/small.py --speed` measures something else instead, on a quiet machine: tokens a
second at 1 and 8 rows for each type that weights are stored in, and for a model of fewer layers and
columns, medians of turns that they take one after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import compress, generate, model
from gptjax.compress.moments import Moments, text_rows
from gptjax.core.arrays import Params
from gptjax.formats import OpenedModel, huggingface
from gptjax.formats.quantised.writing import save_packed
from gptjax.model import ModelConfig, prepare_weights
from gptjax.runs.open import open_model
from gptjax.weights import has_packed
from gptjax.weights.kernels import leaves_of
from gptjax.weights.rounding import Rounding, weight_size

BOOKS = Path(__file__).parents[1] / "../shared/data/books/books.jsonl.gz"
TOKENS = 256


def main() -> None:
    """Measures each row, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="rows to measure; all without any")
    parser.add_argument("--turns", type=int, default=5, help="of --speed")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--books", type=Path, default=BOOKS)
    parser.add_argument("--calibrate-rows", type=int, default=64)
    parser.add_argument("--held-out-rows", type=int, default=32)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--out", type=Path, help="append each row here, as JSON lines")
    options = parser.parse_args()
    opened = open_model(options.model)
    assert opened.tokenizer is not None
    if options.speed:
        speeds(opened, options.names or list(SPEEDS), options.turns)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = chapters(options.books, Path(folder))
        calibration, held_out = (
            text_rows(opened.tokenizer, text, TOKENS, count)
            for text, count in zip(
                texts, (options.calibrate_rows, options.held_out_rows), strict=True
            )
        )
    moments: Moments | None = None
    print("| | bits | MB in memory | MB on disk | loss | change | same token | KL |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.names or WAYS:
        if moments is None and name in CALIBRATED:
            moments = compress.input_moments(opened.config, opened.params, calibration)
        params = WAYS[name](opened, moments)
        row = measured(opened, params, held_out) | {"name": name}
        print(line(row), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def chapters(path: Path, folder: Path) -> tuple[Path, Path]:
    """Two texts of chapters of different books: to calibrate with, and to measure on."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(text) for text in file]
    works = list(dict.fromkeys(record["work"] for record in records))
    targets = folder / "calibration.txt", folder / "held_out.txt"
    for n, target in enumerate(targets):
        own = [r["text"] for r in records if works.index(r["work"]) % 2 == n]
        target.write_text("\n\n".join(own[:: max(1, len(own) // 60)]), encoding="utf-8")
    return targets


# --- rows


def _quantised(
    kind: str, method: str = "nearest", group: int | None = 32, **more: str
) -> Callable[[OpenedModel, Moments | None], Params]:
    outer = more.pop("outer", "int8")
    grid = Rounding(kind, group, scale="float16", **more)  # type: ignore[arg-type]

    def made(opened: OpenedModel, moments: Moments | None) -> Params:
        how = compress.Quantising(grid, method, outer=outer)  # type: ignore[arg-type]
        return compress.quantise_weights(opened.config, opened.params, how, moments)

    return made


def _pruned(score: str, pattern: str | None) -> Callable[[OpenedModel, Moments | None], Params]:
    def made(opened: OpenedModel, moments: Moments | None) -> Params:
        how = compress.Pruning(0.5, pattern, score)  # type: ignore[arg-type]
        return compress.prune_weights(opened.config, opened.params, how, moments)

    return made


def _halved(opened: OpenedModel, moments: Moments | None) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), opened.params)


WAYS: dict[str, Callable[[OpenedModel, Moments | None], Params]] = {
    "float32": lambda opened, moments: opened.params,
    "bfloat16": _halved,
    "int8, groups of 32": _quantised("int8"),
    "int8, columns": _quantised("int8", group=None),
    "int4, nearest": _quantised("int4"),
    "int4, GPTQ": _quantised("int4", "gptq"),
    "int4, AWQ": _quantised("int4", "awq"),
    "int4, AWQ and GPTQ": _quantised("int4", "awq+gptq"),
    "int4 asymmetric, nearest": _quantised("int4", offset="zero"),
    "int4 asymmetric, GPTQ": _quantised("int4", "gptq", offset="zero"),
    "int4 with minima, nearest": _quantised("int4", offset="minimum"),
    "int4 with minima, GPTQ": _quantised("int4", "gptq", offset="minimum"),
    "int4 asymmetric, groups of 64, GPTQ": _quantised("int4", "gptq", 64, offset="zero"),
    "NF4, groups of 64": _quantised("nf4", group=64),
    "NF4, groups of 64, GPTQ": _quantised("nf4", "gptq", group=64),
    "int3, nearest": _quantised("int3"),
    "int3, GPTQ": _quantised("int3", "gptq"),
    "half zeros, magnitude": _pruned("magnitude", None),
    "half zeros, Wanda": _pruned("wanda", None),
    "2:4, magnitude": _pruned("magnitude", "2:4"),
    "2:4, Wanda": _pruned("wanda", "2:4"),
}
CALIBRATED = {name for name in WAYS if "GPTQ" in name or "AWQ" in name or "Wanda" in name}


# --- figures


def measured(opened: OpenedModel, params: Params, rows: np.ndarray) -> dict[str, float | None]:
    """The figures of a row."""
    wide = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, params
    )
    found = compress.compared(opened.config, opened.params, opened.config, wide, rows)
    size = sum(weight_size(leaf) for _, leaf in leaves_of(params))
    return {
        "bits": compress.bits_per_weight(params),
        "memory": size / 1e6,
        "disk": on_disk(opened._replace(params=params)),
        "loss": found.loss,
        "change": found.change,
        "agreement": found.agreement,
        "divergence": found.divergence,
        "tokens": found.num_tokens,
    }


def on_disk(model: OpenedModel) -> float | None:
    """MB of the tensors as `gptjax convert` writes a directory; NF4 beside int8, and minima, are
    for other files."""
    minima = any(
        leaf.values.dtype == jnp.uint4
        for _, leaf in leaves_of(model.params)
        if hasattr(leaf, "values")
    )
    if minima:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        half = model.params["norm"]["scale"].dtype == jnp.bfloat16
        if has_packed(model.params):
            save_packed(path, model, "float32")
        else:
            huggingface.save_huggingface(path, model, "bfloat16" if half else "float32")
        return (path / "model.safetensors").stat().st_size / 1e6


def line(row: dict) -> str:
    """A row of the table."""
    disk = "" if row["disk"] is None else f"{row['disk']:.0f}"
    return (
        f"| {row['name']} | {row['bits']:.2f} | {row['memory']:.0f} | {disk} | {row['loss']:.4f} |"
        f" {row['change']:+.4f} | {row['agreement']:.1%} | {row['divergence']:.4f} |"
    )


# --- speed


def _in_groups(kind: str) -> Callable[[OpenedModel], tuple[ModelConfig, Params]]:
    """As `--packed` decodes a file of such groups, activations as they are."""

    def made(opened: OpenedModel) -> tuple[ModelConfig, Params]:
        how = compress.Quantising(Rounding(kind, 32, scale="float16"))  # type: ignore[arg-type]
        narrow = compress.quantise_weights(opened.config, opened.params, how, None)
        return prepare_weights(opened.config, narrow, "float32")

    return made


def _stored(kind: str) -> Callable[[OpenedModel], tuple[ModelConfig, Params]]:
    return lambda opened: prepare_weights(opened.config, opened.params, kind)  # type: ignore[arg-type]


def _parts_taken_out(opened: OpenedModel) -> tuple[ModelConfig, Params]:
    """Two thirds of the layers and of the MLPs' columns; weights are drawn, since only shapes cost
    time."""
    config = opened.config
    wide = config.mlp_dim * 2 // 3
    fewer = dataclasses.replace(config, num_layers=config.num_layers * 2 // 3, feed_forward=wide)
    return prepare_weights(fewer, model.init(fewer, jax.random.key(0)), "float32")


SPEEDS: dict[str, Callable[[OpenedModel], tuple[ModelConfig, Params]]] = {
    "float32": _stored("float32"),
    "float32, two thirds of layers and columns": _parts_taken_out,
    "bfloat16": _stored("bfloat16"),
    "int8": _stored("int8"),
    "int8, groups of 32": _in_groups("int8"),
    "int8, groups of 32, q8_0": _stored("q8_0"),
    "int4, groups of 32": _in_groups("int4"),
}


def speeds(opened: OpenedModel, names: list[str], turns: int) -> None:
    """Prints tokens a second of greedy decoding at 1 and 8 rows: medians of turns."""
    assert opened.tokenizer is not None
    ways = {name: SPEEDS[name](opened) for name in names}
    taken: dict[tuple[str, int], list[float]] = {}
    ask = generate.GenerateConfig(new_tokens=32, temperature=0.0)
    for turn in range(turns + 1):
        for name, way in ways.items():
            for rows in (1, 8):
                begun = time.perf_counter()
                prompts = ["The harbour was quiet"] * rows
                given = (*way, opened.tokenizer, prompts, ask)
                done = list(generate.completions(*given, batch=rows, task=opened.task))
                seconds = time.perf_counter() - begun
                if turn:  # the first one compiles
                    taken.setdefault((name, rows), []).append(
                        sum(len(one.ids) for one in done) / seconds
                    )
    print("| | tokens/s, 1 row | 8 rows | 1 row, of the first |\n|---|---|---|---|")
    for name in names:
        one, eight = (taken[name, rows] for rows in (1, 8))
        first = taken[names[0], 1]
        beside = statistics.median(a / b for a, b in zip(one, first, strict=True))
        cells = [f"{statistics.median(found):.1f}" for found in (one, eight)]
        print(f"| {name} | {' | '.join(cells)} | {beside:.2f} |", flush=True)


if __name__ == "__main__":
    main()
