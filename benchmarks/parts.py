"""Training a part of a model that sees: memory and time of a step beside training all of it.

    python benchmarks/parts.py [--turns 12] [--out parts.json]
    python benchmarks/parts.py --turns 0

A small PaliGemma (an encoder of pictures, a projector, a language model) starts from a run of one
step and learns captions of drawn shapes in four ways: all weights, the language model alone, the
projector alone, and LoRA of rank 8 on the language model. The ways take a step each in turns;
times are processor seconds, and a way's ratio to `full` is taken within each turn. Without turns
only the bytes of weights and moments are printed, which follow from their shapes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
from adapters_smollm2 import Way

from gptjax.data import Characters, DataConfig, Given, Shapes, VisualAnswers
from gptjax.model import ModelConfig, Vision
from gptjax.sharding.mesh import make_mesh
from gptjax.train import placement
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.weights import LoRA

SIZE = (48, 48)
BASE = Experiment(
    data=DataConfig(
        source=Shapes("captions", count=64, held_out_count=8),
        tokenizer=Characters(),
        task=VisualAnswers(size=SIZE, tokens=36),
        validation=0.0,
    ),
    model=ModelConfig(
        context=112,
        width=256,
        num_layers=6,
        num_heads=8,
        positions="rope",
        prefix_lm=True,
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        compute="float32",
        vision=Vision(size=SIZE, patch=8, num_layers=4, width=192, projector="mlp"),
    ),
    evaluation=Evaluation(every=1, rows=8, sample=None),
    steps=1,
    batch=16,
)
LANGUAGE = ("embedding", "layers", "norm")
"""Weights of the language model."""
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "language model": {"freeze": ("vision",)},
    "projector": {"freeze": ("vision/encoder", "vision/patches", *LANGUAGE)},
    "lora": {"adapter": LoRA(rank=8, alpha=16.0, targets=("layers",))},
}
"""What each way changes of the experiment."""


def print_sizes() -> None:
    """Prints the MiB of what trains with its moments, and of the other weights."""
    model = dataclasses.replace(BASE.model, vocab_size=32)
    for name, told in WAYS.items():
        own = dataclasses.replace(BASE, model=model, start="any", **told)
        trees = placement.abstract(own, make_mesh(own.mesh))
        state, frozen = (
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20
            for tree in trees
        )
        print(json.dumps({"way": name, "state MiB": state, "frozen MiB": frozen}))


def main() -> None:
    """Prints a line of JSON for each way."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--turns", type=int, default=12)
    flags.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = flags.parse_args()
    if not options.turns:
        print_sizes()
        return
    with tempfile.TemporaryDirectory() as folder:
        train(BASE, Path(folder) / "base")
        data = dataclasses.replace(BASE.data, tokenizer=Given())
        begun = dataclasses.replace(BASE, data=data, start=f"{folder}/base", steps=1000)
        ways = {name: Way(dataclasses.replace(begun, **told)) for name, told in WAYS.items()}
    for _ in range(options.turns):
        for way in ways.values():
            way.step()
    found = {}
    for name, way in ways.items():
        figures = way.figures()
        pairs = zip(way.seconds[1:], ways["full"].seconds[1:], strict=True)  # the first compiles
        ratios = sorted(own / full for own, full in pairs)
        figures["time of full"] = [round(statistics.median(ratios), 3), ratios[0], ratios[-1]]
        found[name] = figures
        shown = {key: figures[key] for key in figures if key not in ("losses", "held out")}
        print(json.dumps({"way": name, **shown}), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
