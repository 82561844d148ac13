"""Two small models that differ in one thing, trained alike over several seeds: `diffusion.py` and
`hybrid.py` compare them.

Both have the optimizer, schedule and number of steps of `configs/shakespeare_char.py` and see the
same rows. Runs that are finished are not trained again, so a command may be interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from gptjax.core import user_config
from gptjax.data import SentencePiece, Text
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment


def flags(doc: str, out: str) -> argparse.ArgumentParser:
    """The flags of both commands.

    Args:
      out: the folder of runs, unless a flag names another.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--text", type=Path, help="a text, by characters")
    text.add_argument("--books", type=Path, help="JSON lines of documents, by 1,024 pieces")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def trained(config: str, args: argparse.Namespace) -> dict[Path, dict[str, Any]]:
    """Trains what is not trained yet; returns the run of each seed, with the figures of its last
    evaluation."""
    from gptjax.train.loop import train

    found, where = {}, "books" if args.books else "text"
    for seed in args.seeds:
        path = args.out / f"{config}_{where}_{args.context}_{args.steps}_{seed}"
        if last_figures(path, args.steps) is None:
            train(experiment_of(config, seed, args), path)
        found[path] = last_figures(path, args.steps)
    return found


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
