"""A small hybrid of gated DeltaNet and attention against its twin of attention alone, which has as
many parameters: bits per byte of held-out text, several seeds.

    python benchmarks/hybrid.py --text input.txt
    python benchmarks/hybrid.py --books books.jsonl.gz

Both models have the width, optimizer, schedule and number of steps of `configs/shakespeare_char.py`
and see the same rows. Runs that are finished are not trained again, so the command may be
interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

import gptjax
from gptjax.core import backend, user_config
from gptjax.data import SentencePiece, Text
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment

CONFIGS = {"attention": "shakespeare_char", "hybrid, 3:1": "shakespeare_hybrid"}


def experiment_of(config: str, seed: int, args: argparse.Namespace) -> Experiment:
    """The experiment of a config on the chosen text."""
    file = Path(__file__).parents[1] / "configs" / f"{config}.py"
    experiment = user_config.load_python(Experiment, file)
    data = dataclasses.replace(experiment.data, source=Text(str(args.books or args.text)))
    if args.books:
        pieces = SentencePiece(vocab_size=1024)
        data = dataclasses.replace(data, tokenizer=pieces, validation=0.01, split="documents")
    model = dataclasses.replace(experiment.model, context=args.context)
    every = max(1, args.steps // 2)
    evaluation = dataclasses.replace(experiment.evaluation, every=every, prompt="The ")
    return dataclasses.replace(
        experiment, data=data, model=model, evaluation=evaluation, steps=args.steps, seed=seed
    )


def last_figures(path: Path, steps: int) -> dict[str, Any] | None:
    """The figures of the last evaluation of a finished run."""
    if not (path / "metrics.jsonl").is_file():
        return None
    lines = [line for line in read_metrics(path) if "validation_bits_per_byte" in line]
    return lines[-1] if lines and lines[-1]["step"] == steps else None


def main() -> None:
    """Trains what is not trained yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", type=Path, help="a text, by characters")
    text.add_argument("--books", type=Path, help="JSON lines of documents, by 1,024 pieces")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_hybrid"))
    args = parser.parse_args()
    backend.configure()
    from gptjax.train.loop import train
    from gptjax.train.overview import model_facts

    print("| model | parameters | bits per byte, by seed | mean |")
    print("|---|---|---|---|")
    for kind, config in CONFIGS.items():
        found = []
        for seed in args.seeds:
            where = "books" if args.books else "text"
            path = args.out / f"{config}_{where}_{args.context}_{args.steps}_{seed}"
            if last_figures(path, args.steps) is None:
                train(experiment_of(config, seed, args), path)
            found.append(last_figures(path, args.steps))
        bits = [line["validation_bits_per_byte"] for line in found]
        listed = ", ".join(f"{one:.3f}" for one in bits)
        count = model_facts(gptjax.load(str(path)).config)["parameters"]
        print(f"| {kind} | {count:,} | {listed} | {statistics.mean(bits):.3f} |")


if __name__ == "__main__":
    main()
