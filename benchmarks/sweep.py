"""How much sooner is a sweep of seeds done than the same runs one after the other? And by which way
of computing them?

    python benchmarks/sweep.py --text input.txt
    python benchmarks/sweep.py --text input.txt --steps 200 --seeds 8 --by map runs

The model is that of `configs/shakespeare_char.py`. Times are wall times from the start of a process
to its end, on all cores that the command may use; every run evaluates and writes what it always
does. A short run of each program first fills the cache of compiled programs. The last column is the
largest difference of a held-out loss to that of the run alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gptjax.observe.log import read_metrics

CONFIG = Path(__file__).parents[1] / "configs/shakespeare_char.py"


def seconds_of(command: list[str]) -> float:
    """Wall time of one `gptjax` command."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "gptjax", *command], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begun


def last_loss(run: Path) -> float:
    """The held-out loss at the end of a run."""
    return [x["validation_loss"] for x in read_metrics(run) if "validation_loss" in x][-1]


def losses_of(sweep: Path) -> dict[int, float]:
    """Seed → held-out loss of each run of a sweep."""
    return {int(run.name.rpartition("-")[2]): last_loss(run) for run in sweep.glob("seed-*")}


def measured(args: argparse.Namespace, folder: Path) -> None:
    """Runs everything, and prints the table."""
    common = [str(CONFIG), "--data.source.path", str(args.text)]
    long = ["--steps", str(args.steps)]

    def single(seed: int, flags: list[str], name: str) -> float:
        return seconds_of(
            ["train", *common, *flags, "--seed", str(seed), "--dir", str(folder / name)]
        )

    def swept(by: str, flags: list[str], name: str) -> float:
        more = ["--by", by, "--seeds", str(args.seeds), "--dir", str(folder / name)]
        return seconds_of(["sweep", *common, *flags, *more])

    brief = ["--steps", "2"]
    single(0, brief, "warm")
    alone = 0.0
    for seed in range(args.seeds):
        alone += single(seed, long, f"alone-{seed}")
    print("| | seconds | ratio | largest difference of a loss |\n|---|---|---|---|")
    print(f"| {args.seeds} runs, one after the other | {alone:.1f} | 1 | |", flush=True)
    for by in args.by:
        swept(by, brief, f"warm-{by}")
        seconds = swept(by, long, by)
        found = losses_of(folder / by)
        apart = max(abs(x - last_loss(folder / f"alone-{seed}")) for seed, x in found.items())
        print(f"| `--by {by}` | {seconds:.1f} | {seconds / alone:.2f} | {apart:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--by", nargs="+", choices=("map", "vmap", "runs"), default=["map", "runs"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured(args, Path(folder))


if __name__ == "__main__":
    main()
