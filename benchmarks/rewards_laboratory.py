"""Learning from rewards against its controls, each from the same start and with as many updates:

    python benchmarks/rewards_laboratory.py --ways grpo expert random constant sft --seeds 3

`grpo` is configs/grpo_sums.py; `expert` learns the right answers alone (expert iteration); `random`
rewards by a coin and must teach nothing; `constant` gives every answer the same and must change no
bit; `sft` learns the true answers to the same prompts, which is the most that can be had; `lora`
trains a LoRA of rank 1. A way is a run in a folder of its own, and one that is there already is
read. It prints pass@1 on the held-out problems, one answer to each, and where the time went.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

from gptjax.core import user_config
from gptjax.data import Chat
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


def adapted(base: Experiment) -> Experiment:
    """A LoRA of rank 1, at ten times the rate."""
    optim = dataclasses.replace(base.optim, peak=10 * base.optim.peak)
    return dataclasses.replace(base, adapter=LoRA(rank=1, alpha=1.0), optim=optim)


WAYS: dict[str, Callable[[Experiment], Experiment]] = {
    "grpo": lambda base: base,
    "expert": lambda base: dataclasses.replace(base, loss=expert_iteration()),
    "random": judged_by("coin"),
    "constant": judged_by("constant"),
    "sft": supervised,
    "lora": adapted,
}


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


def main() -> None:
    """Runs each way with each seed, and prints a line for it."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--steps", type=int, default=None, help="of each; default: the config's")
    flags.add_argument("--start", default="runs/sums-{seed}", help="{seed} is replaced")
    flags.add_argument("--runs", type=Path, default=Path("runs/rewards"))
    given = flags.parse_args()
    base = user_config.load_python(Experiment, CONFIGS / "grpo_sums.py")
    base = dataclasses.replace(base, steps=given.steps or base.steps, log_every=50)
    for way in given.ways:
        ends = []
        for seed in given.seeds:
            path = given.runs / f"{way}-{seed}"
            start = given.start.format(seed=seed)
            run = dataclasses.replace(WAYS[way](base), start=start, seed=seed)
            if not held_out(path) or held_out(path)[-1][0] < run.steps:
                train(run, path)
            curve, spent = held_out(path), read_goodput(path).seconds
            ends.append(curve[-1][1])
            parts = {name: round(spent.get(name, 0.0), 1) for name in ("rollout", "useful")}
            print(json.dumps({"way": way, "seed": seed, "pass": curve, "seconds": parts}))
        print(f"{way}: {statistics.median(ends):.3f} of the held-out answers are right (median)")


if __name__ == "__main__":
    main()
