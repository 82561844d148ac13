"""Classifies sentences whose meaning turns with one word: their order matters.

    python examples/classify.py                 (15 seconds of one core)

An encoder reads `film: the film was not bad, the book was dull` and says whether the film was
liked. A `not` turns what follows it alone, so words without their order cannot tell; what they
could tell at best is printed beside it. What to type next:

    gptjax evaluate runs/examples/classify
    python train.py configs/polarity.py --data.source.path YOUR_TEXTS.tsv      (real sentences)
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import gptjax
from gptjax.data import Characters, Classification, DataConfig, Records
from gptjax.model import ModelConfig
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "dull")
THINGS = ("film", "book", "play", "song")


def sentence(draw: random.Random) -> tuple[str, str]:
    """Two judgements, one of them negated, of which the one about the asked thing counts."""
    first, second = draw.sample(THINGS, 2)
    words, likes = [draw.choice(GOOD), draw.choice(BAD)], [True, False]
    if draw.random() < 0.5:
        words, likes = words[::-1], likes[::-1]
    turned = draw.randrange(2)
    parts = [
        f"the {thing} was {'not ' if place == turned else ''}{word}"
        for place, (thing, word) in enumerate(zip((first, second), words, strict=True))
    ]
    liked = likes[0] != (turned == 0)
    return f"{first}: {parts[0]}, {parts[1]}", "positive" if liked else "negative"


def bag_of_words(made: list[tuple[str, str]]) -> float:
    """Accuracy of whoever knows all labels of a bag of words, but not the order of the words."""
    labels: dict[tuple[str, ...], Counter[str]] = {}
    for text, label in made:
        labels.setdefault(tuple(sorted(text.replace(",", "").split())), Counter())[label] += 1
    return sum(max(counts.values()) for counts in labels.values()) / len(made)


def main(folder: Path, steps: int = 400) -> None:
    """Trains an encoder and asks it about sentences that it has not seen."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    made = list(dict.fromkeys(sentence(draw) for _ in range(3000)))
    told, asked = made[200:], made[:200]
    (folder / "judged.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in told))
    experiment = Experiment(
        data=DataConfig(
            source=Records(str(folder / "judged.tsv")),
            tokenizer=Characters(),
            task=Classification(),
            validation=0.1,
        ),
        model=ModelConfig(
            context=64,
            width=64,
            num_layers=2,
            num_heads=4,
            causal=False,
            pool="mean",
            positions="rope",
            norm="rmsnorm",
            compute="float32",
        ),
        optim=AdamW(peak=3e-3),
        schedule=Schedule("linear", warmup=20, floor=0.0),
        evaluation=Evaluation(every=100),
        steps=steps,
        batch=16,
    )
    train(experiment, folder / "classify")

    said = gptjax.load(folder / "classify").classify([text for text, _ in asked])
    right = sum(one.label == label for one, (_, label) in zip(said, asked, strict=True))
    print(f"\n{right / len(asked):.0%} of {len(asked)} new sentences right; ", end="")
    print(f"without their order, no more than {bag_of_words(made):.0%} could be")
    for (text, _), one in zip(asked[:3], said, strict=False):
        print(f"{one.label:8} {text}")


if __name__ == "__main__":
    main(Path("runs/examples"))
