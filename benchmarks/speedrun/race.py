"""Runs a record of the speedrun over several seeds and says whether it holds.

    python benchmarks/speedrun/race.py 1.88 --text input.txt
    python benchmarks/speedrun/race.py 1.88 --text input.txt --config mine.py --seeds 0 1 2 3 4 5

Each seed is a process of its own, one after the other; its time is the wall time from the start of
the process to its end, with imports, preparing the text, compiling and the last evaluation. The
rules are in README.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gptjax.core import backend, config, user_config
from gptjax.data import Characters, Text
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment
from gptjax.train.paired import student_tail

HERE = Path(__file__).parent
TRACKS = {"1.88": "to_1_88.py", "1.4697": "to_1_4697.py"}
SPLIT = 0.1
"""Share of the text at its end that is held out, as nanoGPT splits it."""
LEVEL = 0.01


def entered(args: argparse.Namespace) -> Experiment:
    """The experiment of a record, held to the rules that a config can break."""
    file = args.config or HERE / TRACKS[args.track]
    found = user_config.load_python(Experiment, file)
    data = dataclasses.replace(found.data, source=Text(str(args.text)))
    if not isinstance(data.tokenizer, Characters) or data.validation != SPLIT:
        raise SystemExit(f"{file}: the text is read by characters and its last tenth is held out.")
    if found.evaluation.rows is not None or found.start is not None:
        raise SystemExit(f"{file}: all held-out text counts, and weights begin at random.")
    return dataclasses.replace(found, data=data)


def run(experiment: Experiment, seed: int) -> tuple[float, float]:
    """Trains with a seed in a process of its own; returns its seconds and its loss on all held-out
    characters, nats."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "record.json", Path(folder) / "run"
        plain = config.to_dict(dataclasses.replace(experiment, seed=seed))
        file.write_text(json.dumps(plain), encoding="utf-8")
        command = [sys.executable, "-m", "gptjax", "train", str(file), "--dir", str(out)]
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        lines = [line for line in read_metrics(out) if "validation_loss" in line]
    return seconds, lines[-1]["validation_loss"]


def below(losses: list[float], target: float) -> float:
    """Returns p of losses whose mean is the target or more (Student's t, one-sided)."""
    spread = statistics.stdev(losses)
    if spread == 0:
        return 0.0 if losses[0] < target else 1.0
    t = (target - statistics.mean(losses)) / (spread / math.sqrt(len(losses)))
    tail = student_tail(abs(t), len(losses) - 1)
    return tail if t >= 0 else 1 - tail


def main() -> None:
    """Runs all seeds and prints the row of the record table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("track", choices=TRACKS, help="the loss to reach")
    parser.add_argument("--text", type=Path, required=True, help="tiny Shakespeare's input.txt")
    parser.add_argument("--config", type=Path, help="another config than the record's")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    args = parser.parse_args()
    backend.configure()
    experiment, target = entered(args), float(args.track)
    found = []
    for seed in args.seeds:
        found.append(run(experiment, seed))
        print(f"seed {seed}: {found[-1][0]:.1f} s, {found[-1][1]:.4f}", flush=True)
    seconds, losses = zip(*found, strict=True)
    if len(found) < 2:
        return
    p = below(list(losses), target)
    verdict = "holds" if p < LEVEL else "does not hold"
    print(
        f"{len(found)} seeds: median {statistics.median(seconds):.1f} s"
        f" ({min(seconds):.1f} to {max(seconds):.1f}); loss {statistics.mean(losses):.4f} ±"
        f" {statistics.stdev(losses):.4f}; below {target} with p {p:.2g}: the record {verdict}"
    )


if __name__ == "__main__":
    main()
