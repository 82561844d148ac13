"""Fine-tunes SmolLM2-135M on conversations in several ways at once, each with the same batches:
all parameters, LoRA, DoRA, prompt tuning. The ways take steps in turns, so that their times can be
compared on a shared machine; times are processor seconds.

    python benchmarks/adapters_smollm2.py data/chats.jsonl --steps 40 --out adapters.json

The setting is that of configs/sft_smollm2.py; adapters have the rank and the rate of
configs/lora_smollm2.py. Read `WAYS`, then `main`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from gptjax.core import user_config
from gptjax.data import Conversations, prepare
from gptjax.train import evaluate, identity, program, saved
from gptjax.train import start as starts
from gptjax.train.experiment import Experiment
from gptjax.weights import DoRA, LoRA, PromptTuning

CONFIGS = Path(__file__).parents[1] / "configs"
WAYS: Mapping[str, tuple[Any, float]] = {
    "full": (None, 5e-5),
    "lora": (LoRA(rank=16, alpha=32.0), 5e-4),
    "dora": (DoRA(rank=16, alpha=32.0), 5e-4),
    "prompt": (PromptTuning(tokens=16), 1e-2),
}
"""Adapter and highest learning rate of each way."""


class Way:
    """One way to train, and what was measured of it."""

    def __init__(self, experiment: Experiment):
        start = starts.of(experiment, Path(), resuming=False)
        experiment, _ = starts.adopted(experiment, start)
        self.data = prepare(experiment.data, lambda line: None, given=start.tokenizer)
        self.experiment = identity.resolve(experiment, self.data)
        self.program = program.build(self.experiment, self.data)
        self.state, self.frozen = self.program.init(start.params)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.held_out: dict[int, float] = {}

    def step(self) -> None:
        """Takes a step and measures it."""
        batch = self.program.batch(len(self.losses), self.state)
        begun = time.process_time()
        self.state, metrics = self.program.step(self.state, self.frozen, batch)
        self.losses.append(float(metrics["loss"]))
        self.seconds.append(time.process_time() - begun)

    def evaluate(self) -> None:
        """Measures all held-out conversations, in nats per counted token."""
        figures = evaluate.evaluate(
            self.program.evaluate,
            self.program.mesh,
            self.experiment,
            self.data.validation,
            saved.weights(self.state, self.frozen),
            self.frozen,
            None,
        )
        self.held_out[len(self.losses)] = figures["loss"]

    def figures(self) -> dict[str, Any]:
        """What was measured; bytes are those of what trains with its moments, and of the rest."""
        sizes = [sum(x.nbytes for x in jax.tree.leaves(t)) for t in (self.state, self.frozen)]
        return {
            "held out": self.held_out,
            "state MiB": round(sizes[0] / 2**20, 1),
            "frozen MiB": round(sizes[1] / 2**20, 1),
            "temporary MiB": round(self.program.temporary_bytes / 2**20, 1),
            "median seconds": round(statistics.median(self.seconds[1:] or self.seconds), 2),
            "losses": self.losses,
            "seconds": [round(s, 3) for s in self.seconds],
        }


def main() -> None:
    """Trains in turns, and writes the figures after each evaluation."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("chats", help="a file of conversations")
    flags.add_argument("--steps", type=int, default=40)
    flags.add_argument("--rows", type=int, default=1, help="of 512 tokens, in each step")
    flags.add_argument("--evaluations", type=int, default=2, help="after the first")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    flags.add_argument("--out", type=Path, help="write the figures here, as JSON")
    given = flags.parse_args()
    base = user_config.load_python(Experiment, CONFIGS / "sft_smollm2.py")
    base = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, source=Conversations(given.chats)),
        steps=given.steps,
        batch=given.rows,
        seed=given.seed,
    )
    ways = {}
    for name in given.ways:
        adapter, peak = WAYS[name]
        optim = dataclasses.replace(base.optim, peak=peak)
        ways[name] = Way(dataclasses.replace(base, adapter=adapter, optim=optim))
        ways[name].evaluate()
        print(name, "begins at", ways[name].held_out[0], flush=True)
    for number in range(1, given.steps + 1):
        for way in ways.values():
            way.step()
        print(number, {n: (w.losses[-1], w.seconds[-1]) for n, w in ways.items()}, flush=True)
        if number % max(1, given.steps // given.evaluations) and number != given.steps:
            continue
        for way in ways.values():
            way.evaluate()
        found = {name: way.figures() for name, way in ways.items()}
        print({name: one["held out"] for name, one in found.items()}, flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
