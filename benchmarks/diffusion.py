"""Masked diffusion against its autoregressive twin: bits per byte of held-out text, several seeds.

    python benchmarks/diffusion.py --text input.txt
    python benchmarks/diffusion.py --books books.jsonl.gz

Both models have the shape, optimizer, schedule and number of steps of `configs/shakespeare_char.py`
and see the same rows. The figure of diffusion is an upper bound, that of the twin exact. Runs that
are finished are not trained again, so the command may be interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

from gptjax.core import backend, user_config
from gptjax.data import SentencePiece, Text
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment

CONFIGS = {"autoregressive": "shakespeare_char", "masked diffusion": "diffusion_shakespeare"}


def experiment_of(kind: str, seed: int, args: argparse.Namespace) -> Experiment:
    """The experiment of a kind of model on the chosen text."""
    file = Path(__file__).parents[1] / "configs" / f"{CONFIGS[kind]}.py"
    experiment = user_config.load_python(Experiment, file)
    data = dataclasses.replace(experiment.data, source=Text(str(args.books or args.text)))
    if args.books:
        pieces = SentencePiece(vocab_size=1024)
        data = dataclasses.replace(data, tokenizer=pieces, validation=0.01, split="documents")
    every = max(1, args.steps // 2)
    evaluation = dataclasses.replace(experiment.evaluation, every=every, prompt="The ")
    return dataclasses.replace(
        experiment, data=data, evaluation=evaluation, steps=args.steps, seed=seed
    )


def figures_of(path: Path, steps: int) -> dict | None:
    """The figures of the last evaluation of a finished run."""
    if not (path / "metrics.jsonl").is_file():
        return None
    lines = [line for line in read_metrics(path) if "validation_bits_per_byte" in line]
    return lines[-1] if lines and lines[-1]["step"] == steps else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", type=Path, help="a text, by characters")
    text.add_argument("--books", type=Path, help="JSON lines of documents, by 1,024 pieces")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_diffusion"))
    args = parser.parse_args()
    backend.configure()
    from gptjax.train.loop import train

    print("| model | bits per byte, by seed | mean | interval of the bound, nats a token |")
    print("|---|---|---|---|")
    for kind in args.models:
        config, found = CONFIGS[kind], []
        for seed in args.seeds:
            where = "books" if args.books else "text"
            path = args.out / f"{config}_{where}_{args.steps}_{seed}"
            if figures_of(path, args.steps) is None:
                train(experiment_of(kind, seed, args), path)
            found.append(figures_of(path, args.steps))
        bits = [one["validation_bits_per_byte"] for one in found]
        wide = max(one.get("validation_interval", 0.0) for one in found)
        most = "≤ " * (wide > 0)
        listed = ", ".join(f"{most}{one:.3f}" for one in bits)
        interval = f"± {wide:.4f}" if wide else "exact"
        print(f"| {kind} | {listed} | {most}{statistics.mean(bits):.3f} | {interval} |", flush=True)


if __name__ == "__main__":
    main()
