"""Learning from rewards against its controls, each from the same start and with as many updates:

    python benchmarks/rewards_laboratory.py --ways grpo expert random constant sft

`grpo` is configs/grpo_sums.py; `expert` learns the right answers alone (expert iteration); `random`
rewards by a coin and must teach nothing; `constant` gives every answer the same and must change no
bit; `sft` learns the true answers to the same prompts, which is the most that can be had; `lora`
trains a LoRA of rank 1. `--rates` sweeps the learning rate, in single runs, because `gptjax sweep`
trains no policies:

    python benchmarks/rewards_laboratory.py --ways lora --seeds 0 --steps 100 --rates 2e-3 5e-3

`token`, `answer` and `constant-40` are the normalisers, on sums with their working, which take up
to 40 tokens; the lengths that are printed are means of the first and of the last ten updates. Their
starts:

    python train.py configs/sums.py --data.source.scratchpad True --data.source.count 300 \\
        --model.context 48 --schedule.kind linear --steps 300 --dir runs/working-0 --seed 0
    python benchmarks/rewards_laboratory.py --ways token answer constant-40 --steps 50 \\
        --start runs/working-{seed}

A way is a run in a folder of its own, and one that is there already is read. It prints pass@1 on
the held-out problems, one answer to each, and where the time went.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax.core import user_config
from gptjax.data import Chat, Puzzles
from gptjax.losses import CrossEntropy
from gptjax.losses.policy_presets import expert_iteration
from gptjax.observe.goodput import read_goodput
from gptjax.observe.log import read_metrics
from gptjax.rewards import Function
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train
from gptjax.train.rollout import Rollout
from gptjax.weights import LoRA

CONFIGS = Path(__file__).parents[1] / "configs"
COIN = random.Random(0)
LONGEST = 40
"""Tokens of an answer with its working."""


def coin(prompt: str, answer: str, record: dict) -> float:
    """A reward that says nothing."""
    return float(COIN.random() < 0.4)


def constant(prompt: str, answer: str, record: dict) -> float:
    """A reward that prefers nothing."""
    return 1.0


def judged_by(name: str) -> Callable[[Experiment], Experiment]:
    """Returns what gives an experiment a reward of this file; the first reward still decides what
    is right, and weighs nothing."""

    def changed(base: Experiment) -> Experiment:
        assert base.rollout is not None
        solved = dataclasses.replace(base.rollout.rewards[0], weight=0.0)
        other = Function(f"{Path(__file__).resolve()}:{name}")
        rollout = dataclasses.replace(base.rollout, rewards=(solved, other))
        return dataclasses.replace(base, rollout=rollout)

    return changed


def supervised(base: Experiment) -> Experiment:
    """The true answers to the same prompts, one row each."""
    rollout = base.rollout or Rollout()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, task=Chat()),
        loss=CrossEntropy(),
        rollout=None,
        batch=base.batch // rollout.answers,
    )


def adapted(alpha: float, rate: float) -> Callable[[Experiment], Experiment]:
    """Returns what gives an experiment a LoRA of rank 1, with its own rate. A larger alpha at a
    smaller rate moves the products as far, and their first factors less."""

    def changed(base: Experiment) -> Experiment:
        optim = dataclasses.replace(base.optim, peak=rate)
        return dataclasses.replace(base, adapter=LoRA(rank=1, alpha=alpha), optim=optim)

    return changed


def working(**settings: Any) -> Callable[[Experiment], Experiment]:
    """Returns what makes an experiment one of sums with their working, in half as many answers a
    step, at a rate for starts whose own has fallen (configs/sums.py).

    Args:
      settings: of the loss.
    """

    def changed(base: Experiment) -> Experiment:
        assert isinstance(base.data.source, Puzzles) and base.rollout is not None
        source = dataclasses.replace(base.data.source, scratchpad=True)
        return dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, source=source),
            model=dataclasses.replace(base.model, context=LONGEST + 8),
            loss=dataclasses.replace(base.loss, **settings),
            rollout=dataclasses.replace(base.rollout, new_tokens=LONGEST),
            optim=dataclasses.replace(base.optim, peak=1e-4),
            batch=base.batch // 2,
        )

    return changed


WAYS: dict[str, Callable[[Experiment], Experiment]] = {
    "grpo": lambda base: base,
    "expert": lambda base: dataclasses.replace(base, loss=expert_iteration()),
    "random": judged_by("coin"),
    "constant": judged_by("constant"),
    "sft": supervised,
    "lora": adapted(alpha=1.0, rate=1e-2),
    "lora-alpha-32": adapted(alpha=32.0, rate=1e-3),
    "token": working(normalise="token"),
    "answer": working(normalise="answer"),
    "constant-40": working(normalise="constant", constant=LONGEST),
}
CONTROLS = ("grpo", "expert", "random", "constant", "sft", "lora", "lora-alpha-32")


def held_out(path: Path) -> list[tuple[int, float]]:
    """Returns (step, pass@1) of each evaluation of a run; of supervised ones the share of answers
    that greedy decoding would write."""
    names = ("validation_pass_rate", "validation_exact_match")
    return [
        (line["step"], line[name])
        for line in read_metrics(path)
        for name in names
        if line.get(name) is not None
    ]


def lengths(path: Path) -> dict[str, list[float]]:
    """Returns tokens of right and of wrong answers, and the share that was cut: means of the first
    and of the last ten updates of a run that have them."""
    found, lines = {}, read_metrics(path)
    for name in ("right_length", "wrong_length", "unfinished"):
        known = [line[name] for line in lines if line.get(name) is not None]
        if known:
            found[name] = [round(statistics.mean(part), 3) for part in (known[:10], known[-10:])]
    return found


def runs_of(given: argparse.Namespace) -> Iterator[tuple[str, list[tuple[Path, Experiment]]]]:
    """Yields each way, with a rate if rates are swept, and its runs, one for each seed."""
    base = user_config.load_python(Experiment, CONFIGS / "grpo_sums.py")
    base = dataclasses.replace(base, steps=given.steps or base.steps, log_every=50)
    for way, rate in itertools.product(given.ways, given.rates or [None]):
        one = WAYS[way](base)
        if rate is not None:
            one = dataclasses.replace(one, optim=dataclasses.replace(one.optim, peak=rate))
        name = way if rate is None else f"{way}-at-{rate:g}"
        runs = []
        for seed in given.seeds:
            start = given.start.format(seed=seed)
            run = dataclasses.replace(one, start=start, seed=seed)
            runs.append((given.runs / f"{name}-{seed}", run))
        yield name, runs


def main() -> None:
    """Runs each way with each seed, and prints a line for it."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--ways", nargs="+", default=list(CONTROLS), choices=list(WAYS))
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--steps", type=int, default=None, help="of each; default: the config's")
    flags.add_argument("--rates", type=float, nargs="+", help="learning rates to sweep")
    flags.add_argument("--start", default="runs/sums-{seed}", help="{seed} is replaced")
    flags.add_argument("--runs", type=Path, default=Path("runs/rewards"))
    for name, runs in runs_of(flags.parse_args()):
        ends = []
        for path, run in runs:
            if not held_out(path) or held_out(path)[-1][0] < run.steps:
                train(run, path)
            curve, spent = held_out(path), read_goodput(path).seconds
            ends.append(curve[-1][1])
            parts = {part: round(spent.get(part, 0.0), 1) for part in ("rollout", "useful")}
            facts = {"way": name, "seed": run.seed, "pass": curve, **lengths(path)}
            print(json.dumps({**facts, "seconds": parts}), flush=True)
        print(f"{name}: {statistics.median(ends):.3f} of the held-out answers are right (median)")


if __name__ == "__main__":
    main()
