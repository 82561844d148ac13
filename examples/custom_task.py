"""A task of your own: text is read backwards, and the model writes what comes before an end.

    python examples/custom_task.py              (half a minute of one core)

A task says what is predicted from what. `rows` gets rows of plain text, in which each token
predicts the next one, and returns the rows to learn from: here the same ones from right to left.
Everything else (store, batches as functions of the step, evaluation, resume) stays as it is. What
to type next:

    open gptjax/data/tasks/middle.py            (fill-in-the-middle, in the same form)
    open CONTRIBUTING.md                        (what else can be added from outside)
"""

from __future__ import annotations

import email
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gptjax
from gptjax import model
from gptjax.data import Batch, Bytes, DataConfig, LanguageModel, Plan, Task, Text, Tokenizer
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule


@dataclass(frozen=True)
class Backwards(Task):
    """Each token is predicted from those that follow it in the text."""

    writes = True
    """A model that learned it continues a prompt, here to the left."""

    def rows(
        self, rows: Batch, *, draws: Iterator[np.random.Generator], vocab_size: int, plan: Plan
    ) -> Batch:
        """Turns rows round: token t of the new row is the target of the last token but t."""
        line = np.concatenate([rows.tokens, rows.targets[:, -1:]], axis=1)[:, ::-1]  # [B T+1]
        return rows._replace(
            tokens=line[:, :-1], targets=line[:, 1:], weights=rows.weights[:, ::-1]
        )

    def prompt(
        self, ids: Sequence[int], tokenizer: Tokenizer, with_encoder: bool
    ) -> tuple[list[int], list[int]]:
        """A prompt is the end of the text, and is read from its end too."""
        return [], [*ids][::-1]


def turned(text: str) -> str:
    """What the model wrote, in reading order."""
    return text[::-1]


def main(folder: Path, steps: int = 300) -> None:
    """Trains a backward and a forward model on the same text."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(email.__file__).parent.glob("*.py"))
    text = "".join(file.read_text("utf-8") for file in files)
    (folder / "email.txt").write_text(text.encode("ascii", "replace").decode(), "utf-8")
    source = Text(str(folder / "email.txt"))
    for name, task in (("forwards", LanguageModel()), ("backwards_text", Backwards())):
        data = DataConfig(source, Bytes(), validation=0.05, split="tail", task=task)
        experiment = Experiment(
            data=data,
            model=model.small("tiny", width=96, num_heads=4, context=64),
            optim=AdamW(peak=5e-3),
            schedule=Schedule("linear", warmup=20, floor=0.0),
            evaluation=Evaluation(every=100),
            steps=steps,
            batch=16,
        )
        train(experiment, folder / name)
    print()
    for name in ("forwards", "backwards_text"):
        lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
        nats = [one["validation_loss"] for one in lines if "validation_loss" in one]
        print(f"{name:15} {nats[-1]:.2f} nats a byte of held-out text")
    opened = gptjax.load(folder / "backwards_text", known=(Backwards,))
    print("\nwhat comes before these ends, in the model's opinion:")
    for end in ("):\n", " is None:\n", '"""\n'):
        said = opened.generate(end, new_tokens=60, temperature=0.6, seed=1)
        print(repr(turned(said) + end))


if __name__ == "__main__":
    main(Path("runs/examples"))
