"""What a reward model is worth to who optimises against it: PPO, GRPO and best of n beside an
oracle that none of them sees.

The toy: a prompt of five different digits, and the oracle says whether an answer has them in
rising order. The start writes them with zero to three pairs of neighbours swapped. Reward models
learn from few or many pairs of a sorted answer and one with a swap (configs/reward_toy.py), so that
nothing that they saw has another digit, or one too many.

    python benchmarks/reward_model_laboratory.py --judges few many --ways best ppo grpo

`best` draws 64 answers of the start to each of 256 prompts, and prints for each n the reward and
the oracle of the one of n that the reward model likes best; n answers are ln n - (n - 1) / n nats
away from the start. `ppo` and `grpo` print (nats an answer, reward, oracle) along their training,
of the answers that they learn from, and what is written at last. A run that is there is read.

Source of the question and of the distance: Gao et al. 2022, arXiv:2210.10760.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import gptjax
from gptjax.core import user_config
from gptjax.data import Chat, Comparisons, Conversations, DataConfig, Given, Problems, Prompts
from gptjax.generate import GenerateConfig
from gptjax.losses import CrossEntropy
from gptjax.losses.policy import Policy
from gptjax.losses.policy_presets import grpo, ppo
from gptjax.model import ModelConfig
from gptjax.observe.log import read_metrics
from gptjax.rewards import Answered, Exact, RewardModel, expected_best, judge
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.rollout import Rollout

CONFIG = Path(__file__).parents[1] / "configs" / "reward_toy.py"
JUDGES = {"few": 100, "many": 4000}
"""Pairs that each reward model learns from."""
DRAWN, ANSWERS = 64, 8
"""Answers to a prompt of `best`, and of a rollout."""
LOSSES = {"ppo": ppo, "grpo": grpo}


# --- data


def swapped(right: list[str], swaps: int, draw: random.Random) -> str:
    """Digits with so many pairs of neighbours swapped, one after the other."""
    digits = list(right)
    for at in (draw.randrange(len(digits) - 1) for _ in range(swaps)):
        digits[at], digits[at + 1] = digits[at + 1], digits[at]
    return "".join(digits)


def write_data(folder: Path) -> None:
    """Writes pairs for each judge, what the start learns, and the problems."""
    draw = random.Random(0)

    def lines(name: str, count: int) -> Iterator[str]:
        for _ in range(count):
            digits = draw.sample("0123456789", 5)
            right, prompt = sorted(digits), "".join(digits) + ">"
            if name == "start":
                record = {"completion": swapped(right, draw.randrange(4), draw)}
            elif name == "problems":
                record = {"answer": "".join(right)}
            else:
                record = {"chosen": "".join(right), "rejected": swapped(right, 1, draw)}
            yield json.dumps({"prompt": prompt, **record}) + "\n"

    folder.mkdir(parents=True, exist_ok=True)
    for name, count in {**JUDGES, "start": 4000, "problems": 4000}.items():
        (folder / f"{name}.jsonl").write_text("".join(lines(name, count)))


# --- runs


def trained(experiment: Experiment, path: Path) -> str:
    """Trains a run, unless it is there; returns its path."""
    done = [line["step"] for line in read_metrics(path)] if path.is_dir() else []
    if not done or done[-1] < experiment.steps:
        train(experiment, path)
    return str(path)


def judge_run(folder: Path, name: str) -> str:
    """Returns the path of a reward model."""
    base = user_config.load_python(Experiment, CONFIG)
    source = Comparisons(str(folder / f"{name}.jsonl"))
    data = dataclasses.replace(base.data, source=source)
    return trained(dataclasses.replace(base, data=data), folder / f"judge-{name}")


def start_run(folder: Path, seed: int) -> str:
    """Returns the path of a model that sorts most digits."""
    base = user_config.load_python(Experiment, CONFIG)
    source = Conversations(str(folder / "start.jsonl"))
    data = dataclasses.replace(base.data, source=source, task=Chat())
    experiment = dataclasses.replace(
        base,
        data=data,
        loss=CrossEntropy(),
        evaluation=Evaluation(every=500),
        steps=500,
        batch=32,
        seed=seed,
    )
    return trained(experiment, folder / f"start-{seed}")


def policy_run(folder: Path, way: str, judged: str, kl: float, seed: int, steps: int) -> Path:
    """Returns the path of a model that was trained to please a reward model."""
    start, scorer = start_run(folder, seed), judge_run(folder, judged)
    loss: Policy = dataclasses.replace(LOSSES[way](kl), normalise="token")
    rewards = (Exact("answer", weight=0.0), RewardModel(scorer, batch=256))
    experiment = Experiment(
        start=start,
        data=DataConfig(
            source=Problems(str(folder / "problems.jsonl")),
            tokenizer=Given(),
            task=Prompts(),
            validation=0.064,
        ),
        model=ModelConfig(context=18),
        loss=loss,
        rollout=Rollout(rewards=rewards, answers=ANSWERS, new_tokens=10, log_every=10),
        optim=AdamW(peak=2.5e-4, weight_decay=0.0, beta2=0.99, clip_norm=1.0),
        schedule=Schedule("constant", warmup=10),
        evaluation=Evaluation(every=steps),
        batch=256,
        steps=steps,
        log_every=10,
        seed=seed,
    )
    return Path(trained(experiment, folder / f"{way}-{judged}-{kl:g}-{seed}"))


# --- figures


def curve(path: Path) -> list[tuple[int, float, float, float]]:
    """Returns (step, nats an answer from the start, reward, oracle) of the answers of a run."""
    lines = [line for line in read_metrics(path) if line.get("kl") is not None]
    return [
        (
            line["step"],
            round(line["kl"] * line["answer_length"], 2),
            round(line["reward"], 2),
            round(line["pass_rate"], 3),
        )
        for line in lines
    ]


def last_answers(path: Path, count: int = 4) -> list[str]:
    """Returns the most frequent wrong answers among the last rollout of a run, with prompts."""
    with open(path / "rollouts.jsonl", encoding="utf-8") as lines:
        known = [json.loads(line) for line in lines]
    wrong = [one for one in known if one["step"] == known[-1]["step"] and not one["label"]]
    found = collections.Counter(one["prompt"] + one["completion"] for one in wrong)
    return [text for text, _ in found.most_common(count)]


def best_of(folder: Path, judged: str, seed: int) -> Iterator[tuple[int, float, float, float]]:
    """Yields (n, nats from the start, reward, oracle) of the best of n answers."""
    opened, draw = gptjax.load(start_run(folder, seed)), random.Random(1)
    digits = [draw.sample("0123456789", 5) for _ in range(256)]
    settings = GenerateConfig(
        new_tokens=10, temperature=1.0, top_p=1.0, top_k=0, num_samples=DRAWN, seed=seed
    )
    prompts = ["".join(one) + ">" for one in digits]
    answers = opened.complete(prompts, settings, batch=512)
    rows = [
        Answered(
            prompts[i // DRAWN],
            one.text,
            {"prompt": prompts[i // DRAWN], "answer": "".join(sorted(digits[i // DRAWN]))},
            one.end is not None,
            len(one.ids),
        )
        for i, one in enumerate(answers)
    ]
    kinds = (Exact("answer", weight=0.0), RewardModel(judge_run(folder, judged), batch=256))
    found = judge([(kind, kind.build()) for kind in kinds], rows)
    rewards = found.total.reshape(-1, DRAWN)
    oracle = found.passed.reshape(-1, DRAWN).astype(float)
    for n in (2**power for power in range(7)):
        away = math.log(n) - (n - 1) / n
        worth = expected_best(rewards, n, oracle)
        yield n, round(away, 2), round(expected_best(rewards, n), 2), round(worth, 3)


def main() -> None:
    """Prints a line of JSON for each reward model, way, weight of the divergence, and seed."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--judges", nargs="+", default=list(JUDGES), choices=list(JUDGES))
    flags.add_argument("--ways", nargs="+", default=["best", *LOSSES], choices=["best", *LOSSES])
    flags.add_argument("--kl", type=float, nargs="+", default=[0.001, 0.1])
    flags.add_argument("--seeds", type=int, nargs="+", default=[0])
    flags.add_argument("--steps", type=int, default=70)
    flags.add_argument("--folder", type=Path, default=Path("runs/reward_model"))
    given = flags.parse_args()
    if not (given.folder / "problems.jsonl").is_file():
        write_data(given.folder)
    for judged in given.judges:
        for seed in given.seeds:
            for way in given.ways:
                facts = {"judge": judged, "seed": seed, "way": way}
                if way == "best":
                    points = list(best_of(given.folder, judged, seed))
                    print(json.dumps({**facts, "curve": points}), flush=True)
                    continue
                for kl in given.kl:
                    path = policy_run(given.folder, way, judged, kl, seed, given.steps)
                    said = {"curve": curve(path), "wrong": last_answers(path)}
                    print(json.dumps({**facts, "kl": kl, **said}), flush=True)


if __name__ == "__main__":
    main()
