"""Learns from rewards (GRPO): a model that adds wrongly learns from being told right or wrong.

    python examples/learn_from_rewards.py       (half a minute of one core)

The base saw 50 of the hundred sums of two digits. Then it draws eight answers to each prompt; a
function of ours judges them, and answers above the mean of their eight become more likely. Nobody
shows it a right answer. Of 400 drawn answers 54 % are right before, 67 % after. What to type next:

    gptjax evaluate runs/examples/rewarded
    python train.py configs/sums.py && python train.py configs/grpo_sums.py   (larger, measured)

Source: Shao et al. 2024, arXiv:2402.03300.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import gptjax
from gptjax import model
from gptjax.data import Bytes, Chat, Conversations, DataConfig, Given, Problems, Prompts
from gptjax.losses import Policy
from gptjax.rewards import Function
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.rollout import Rollout

JUDGE = '''"""Judges an answer; `record` is the line of the data."""


def right(prompt, answer, record):
    return 1.0 if answer.strip() == record["answer"] else 0.0
'''
SUMS = [(a, b) for a in range(10) for b in range(10)]


def share_right(run: Path) -> float:
    """Share of right answers, drawn at temperature 1, four to each of the hundred sums."""
    prompts = [f"{a}+{b}=" for a, b in SUMS] * 4
    said = gptjax.load(run).complete(prompts, temperature=1, new_tokens=4, seed=1)
    pairs = zip(said, SUMS * 4, strict=True)
    return sum(one.text.strip() == str(a + b) for one, (a, b) in pairs) / len(prompts)


def write_lines(path: Path, records: list[dict[str, str]]) -> str:
    """Writes JSON lines; returns the path as settings have it."""
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def main(folder: Path, base_steps: int = 200, steps: int = 100) -> None:
    """Trains the base, then lets it learn from its own answers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    seen = random.Random(0).sample(SUMS, 50)
    told = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in seen] * 10
    problems = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in SUMS]
    talks = Conversations(write_lines(folder / "seen.jsonl", told))
    base = Experiment(
        data=DataConfig(source=talks, tokenizer=Bytes(), task=Chat(), validation=0.1),
        model=model.small("tiny", width=64, num_heads=4, context=16),
        optim=AdamW(peak=3e-3),
        schedule=Schedule("constant", warmup=20),
        evaluation=Evaluation(every=1000),
        steps=base_steps,
        batch=16,
    )
    train(base, folder / "unsure")
    rewarded = Experiment(
        start=str(folder / "unsure"),
        data=DataConfig(
            source=Problems(write_lines(folder / "problems.jsonl", problems)),
            tokenizer=Given(),
            task=Prompts(),
            validation=0.1,
        ),
        model=base.model,
        loss=Policy("group", normalise="token"),
        rollout=Rollout((Function(f"{folder}/judge.py:right"),), answers=8, new_tokens=4),
        optim=AdamW(peak=1e-3, weight_decay=0.0, clip_norm=1.0),
        schedule=Schedule("linear", warmup=5, floor=0.0),
        evaluation=Evaluation(every=1000),
        steps=steps,
        batch=128,
    )
    train(rewarded, folder / "rewarded")
    for name in ("unsure", "rewarded"):
        print(f"{name:9} {share_right(folder / name):.0%} of 400 drawn answers right")


if __name__ == "__main__":
    main(Path("runs/examples"))
