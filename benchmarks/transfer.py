"""Does the best learning rate of a narrow model stay the best at larger widths? With and without
`base_width`: the coordinate check, and the held-out loss of each width and rate.

    python benchmarks/transfer.py --text input.txt
    python benchmarks/transfer.py --text input.txt --only coordinates

Runs that are finished are not trained again, so the command may be interrupted. The model is that
of `configs/shakespeare_char.py` with an output of its own and heads of 32.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from gptjax.core import backend, user_config
from gptjax.data import Text, prepare
from gptjax.lab.coordinates import coordinate_check
from gptjax.train.experiment import Experiment
from gptjax.train.optim import AdamW, Muon, Schedule
from gptjax.train.sweep import train_many
from gptjax.train.transfer import at_width

CONFIG = Path(__file__).parents[1] / "configs" / "shakespeare_char.py"
OPTIMIZERS = {
    "adamw": AdamW(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
    "muon": Muon(peak=1e-3, weight_decay=0.1, beta2=0.99, clip_norm=1.0),
}


def experiment_of(args: argparse.Namespace, base: int | None) -> Experiment:
    """The experiment at the narrowest width.

    Args:
      base: `base_width`.
    """
    found = user_config.load_python(Experiment, CONFIG)
    model = dataclasses.replace(
        found.model, tied=False, num_layers=args.layers or found.model.num_layers
    )
    return dataclasses.replace(
        found,
        data=dataclasses.replace(found.data, source=Text(str(args.text))),
        model=at_width(model, args.widths[0]),
        optim=OPTIMIZERS[args.optimizer],
        schedule=Schedule("cosine", warmup=args.steps // 10, floor=0.1),
        evaluation=dataclasses.replace(found.evaluation, every=args.steps, rows=None),
        steps=args.steps,
        base_width=base,
        seed=args.seed,
    )


def coordinates(args: argparse.Namespace) -> None:
    """Prints how far four steps move activations, by width."""
    print("| activation | base_width |", " | ".join(map(str, args.widths)), "| largest/smallest |")
    print("|---" * (len(args.widths) + 3) + "|")
    for base in (args.widths[0], None):
        start = experiment_of(args, base)
        still = dataclasses.replace(start, schedule=Schedule("constant", warmup=0))
        moved = coordinate_check(still, prepare(still.data), args.widths)
        for name in moved[args.widths[0]]:
            values = [moved[width][name] for width in args.widths]
            listed = " | ".join(f"{one:.4f}" for one in values)
            print(f"| {name} | {base} | {listed} | {max(values) / min(values):.2f} |", flush=True)


def rates(args: argparse.Namespace) -> None:
    """Prints the held-out loss of each width and rate, and what the narrow model's best rate costs
    a wider one."""
    print(
        "| width | base_width |",
        " | ".join(f"{r:g}" for r in args.rates),
        "| cost of the base's best |",
    )
    print("|---" * (len(args.rates) + 3) + "|")
    for base in [{"base": args.widths[0], "none": None}[way] for way in args.ways]:
        chosen = None
        for width in args.widths:
            start = experiment_of(args, base)
            wide = dataclasses.replace(start, model=at_width(start.model, width))
            name = f"{args.optimizer}_{args.layers}_{args.steps}_{args.seed}_{base}_{width}"
            runs = train_many(wide, {"optim.peak": args.rates}, args.out / name)
            losses = [run.figures.get("validation_loss", math.inf) for run in runs]
            best = min(losses)
            chosen = losses.index(best) if chosen is None else chosen
            listed = " | ".join(f"**{x:.3f}**" if x == best else f"{x:.3f}" for x in losses)
            more = 100 * (losses[chosen] / best - 1)
            print(f"| {width} | {base} | {listed} | {more:.1f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--only", choices=("coordinates", "rates"))
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=("base", "none"),
        default=["base", "none"],
        help="with the narrowest width as base_width, without, or both",
    )
    parser.add_argument("--layers", type=int, help="the default is the config's")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_transfer"))
    args = parser.parse_args()
    backend.configure()
    if args.only != "rates":
        coordinates(args)
    if args.only != "coordinates":
        rates(args)


if __name__ == "__main__":
    main()
