"""Answers a question about a picture, and shows that it looks: the same question, another picture.

    python examples/image_question.py           (half a minute of one core)

A small encoder turns patches of a picture into embeddings, which stand before the question as if
they were tokens. The pictures are drawn here, so right answers are known. The control is the same
model whose picture is grey: what it still gets right is guessing. What to type next:

    gptjax chat runs/examples/image_question --image YOUR_PICTURE.png
    python train.py configs/shapes_vqa.py       (larger pictures, new shapes)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import gptjax
from gptjax.data import Characters, DataConfig, Media, VisualAnswers
from gptjax.model import ModelConfig, Vision
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 80, 220)}
SIDES = ("left", "right")
SIZE = 16


def draw(left: str, right: str, at: np.ndarray) -> np.ndarray:
    """A picture [H W 3] of two squares."""
    picture = np.full((SIZE, SIZE, 3), 240, np.uint8)
    for colour, first, (row, column) in ((left, 0, at[0]), (right, SIZE // 2, at[1])):
        picture[row : row + 5, first + column : first + column + 5] = COLOURS[colour]
    return picture


def examples(count: int, seed: int) -> list[tuple[np.ndarray, str, str]]:
    """Pictures, each with a question and its answer."""
    numbers, made = np.random.default_rng(seed), []
    for _ in range(count):
        shown = numbers.choice(list(COLOURS), 2)
        asked = int(numbers.integers(2))
        at = np.stack([numbers.integers(0, SIZE - 5, 2), numbers.integers(0, SIZE // 2 - 5, 2)], 1)
        question = f"what colour is on the {SIDES[asked]}?"
        made.append((draw(*shown, at), question, str(shown[asked])))
    return made


def write(folder: Path, made: list[tuple[np.ndarray, str, str]]) -> str:
    """Writes pictures as PPM files and a line of JSON for each question."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    with (folder / "questions.jsonl").open("w") as lines:
        for n, (picture, prompt, answer) in enumerate(made):
            file = folder / f"pictures/{n}.ppm"
            file.write_bytes(f"P6 {SIZE} {SIZE} 255\n".encode() + picture.tobytes())
            record = {"image": f"pictures/{n}.ppm", "prompt": prompt, "answer": answer}
            lines.write(json.dumps(record) + "\n")
    return str(folder / "questions.jsonl")


def main(folder: Path, steps: int = 300, count: int = 1000) -> None:
    """Trains a model that sees, and asks it about pictures that it has not seen."""
    experiment = Experiment(
        data=DataConfig(
            source=Media(write(folder, examples(count, seed=0))),
            tokenizer=Characters(),
            task=VisualAnswers(size=(SIZE, SIZE), tokens=16),
            validation=0.05,
        ),
        model=ModelConfig(
            context=64,
            width=64,
            num_layers=2,
            num_heads=4,
            positions="rope",
            norm="rmsnorm",
            compute="float32",
            vision=Vision(size=(SIZE, SIZE), patch=4, num_layers=1, width=64, projector="mlp"),
        ),
        optim=AdamW(peak=2e-3),
        schedule=Schedule("linear", warmup=30, floor=0.0),
        evaluation=Evaluation(every=100),
        steps=steps,
        batch=32,
    )
    train(experiment, folder / "image_question")
    seeing, right, blind = gptjax.load(folder / "image_question"), 0, 0
    asked, grey = examples(60, seed=1), np.full((SIZE, SIZE, 3), 128, np.uint8)
    for picture, question, answer in asked:
        seen = seeing.answer([picture], question, temperature=0, new_tokens=8).text
        right += seen == answer
        blind += seeing.answer([grey], question, temperature=0, new_tokens=8).text == answer
    print(f"\n{right} of {len(asked)} right; with a grey picture instead {blind}")


if __name__ == "__main__":
    main(Path("runs/examples"))
