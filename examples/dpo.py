"""Teaches a model a manner by comparisons alone (DPO): of two answers it learns which one is liked.

    python examples/dpo.py                      (half a minute of one core)

A toy assistant adds two digits and is friendly, curt or rude, a third each. 300 pairs prefer the
friendly answer; nobody writes down what friendly means. The reference, which the policy may not
leave too far, is the model that the run starts from. What to type next:

    gptjax chat runs/examples/dpo --temperature 1
    python train.py configs/dpo_smollm2.py --data.source.path YOUR_PAIRS.jsonl   (a real model)

Source: Rafailov et al. 2023, arXiv:2305.18290.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import gptjax
from gptjax import model
from gptjax.data import Bytes, Chat, Comparisons, Conversations, DataConfig, Preferences
from gptjax.losses import Preference
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

MANNERS = {"friendly": "It is {}, my friend.", "curt": "{}.", "rude": "{}, as anyone knows!"}


def write_lines(path: Path, records: list[dict[str, str]]) -> str:
    """Writes JSON lines; returns the path as settings have it."""
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def count_manners(run: Path, asked: list[tuple[int, int]]) -> str:
    """Draws an answer to each question, and says how many there are of each manner."""
    opened = gptjax.load(run)
    prompts = [f"{a}+{b}? " for a, b in asked]
    said = [one.text for one in opened.complete(prompts, temperature=1, new_tokens=24, seed=1)]
    forms = {
        name: sum(form.format(a + b) == one for one, (a, b) in zip(said, asked, strict=True))
        for name, form in MANNERS.items()
    }
    counts = ", ".join(f"{name} {count}" for name, count in forms.items())
    return f"{counts}, wrong {len(said) - sum(forms.values())}; such as {said[0]!r}"


def main(folder: Path, steps: int = 400, pairs: int = 300) -> None:
    """Trains the assistant, then the policy that starts from it."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    digits = [(draw.randrange(10), draw.randrange(10)) for _ in range(3000)]
    forms = list(MANNERS.values())
    told = [
        {"prompt": f"{a}+{b}? ", "completion": draw.choice(forms).format(a + b)} for a, b in digits
    ]
    liked = [
        {
            "prompt": f"{a}+{b}? ",
            "chosen": MANNERS["friendly"].format(a + b),
            "rejected": draw.choice(forms[1:]).format(a + b),
        }
        for a, b in digits[:pairs]
    ]
    talks = Conversations(write_lines(folder / "manners.jsonl", told))
    judged = Comparisons(write_lines(folder / "liked.jsonl", liked))
    assistant = Experiment(
        data=DataConfig(source=talks, tokenizer=Bytes(), task=Chat(), validation=0.05),
        model=model.small("tiny", width=96, num_heads=4, context=64),
        optim=AdamW(peak=4e-3),
        schedule=Schedule("linear", warmup=20, floor=0.0),
        evaluation=Evaluation(every=1000),
        steps=steps,
        batch=16,
    )
    train(assistant, folder / "manners")
    policy = Experiment(
        start=str(folder / "manners"),
        data=DataConfig(source=judged, tokenizer=Bytes(), task=Preferences(), validation=0.1),
        model=assistant.model,
        loss=Preference(beta=0.3),
        optim=AdamW(peak=3e-4, weight_decay=0.0, clip_norm=1.0),
        schedule=Schedule("linear", warmup=5, floor=0.0),
        evaluation=Evaluation(every=1000),
        steps=max(2, steps // 8),
        batch=8,
    )
    train(policy, folder / "dpo")
    asked = [(draw.randrange(10), draw.randrange(10)) for _ in range(60)]
    print(f"\n60 answers before: {count_manners(folder / 'manners', asked)}")
    print(f"60 answers after:  {count_manners(folder / 'dpo', asked)}")


if __name__ == "__main__":
    main(Path("runs/examples"))
