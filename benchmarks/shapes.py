"""Drawn shapes: what simple rules say of them, and what a model of two towers names them.

    python benchmarks/shapes.py captions
    python benchmarks/shapes.py questions
    python benchmarks/shapes.py label runs/clip_shapes

Held out are, in turn, pictures like those of training and pictures with a combination of colour and
form that training never shows. `captions` and `questions` print how often these rules are right:
the most frequent answer; the most frequent one to the same question; the answer of the nearest
training picture (by its pixels at a quarter of the side) that was asked the same, or of the nearest
one at all where none was. Those of questions are told apart by kind too.

`label` asks a run about pictures of one shape, with a label for each of the 25 combinations, and
about pictures of two or three shapes, with 32 captions of held-out pictures of as many.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from visual_answers import kind_of

from gptjax import api
from gptjax.data import Shapes
from gptjax.data.documents.media import Pictured
from gptjax.data.documents.shapes import COLOURS, FORMS, draw_scene, read_shapes
from gptjax.evaluate.figure import score_interval

SIDE, CHOICES = 12, 32
PARTS = {"familiar": False, "unseen": True}

Asked = list[tuple[str, str, str]]
"""Scene, question and answer of examples."""


def examples(source: Shapes, held_out: bool) -> Asked:
    """Reads the examples of a source that are held out, or those that are not."""
    found = []
    for document in read_shapes(source):
        if document.held_out == held_out:
            record = Pictured.load(document.text)
            found.append((document.pictures[0], record.prompt, record.answer))
    return found


def small(scenes: list[str]) -> dict[str, np.ndarray]:
    """Each scene as a vector of its pixels, once."""
    return {
        one: draw_scene(one, (SIDE, SIDE)).astype(np.float32).ravel()
        for one in dict.fromkeys(scenes)
    }


def rules(train: Asked, held: Asked, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whether each rule is right, for each held-out example."""
    most = Counter(answer for _, _, answer in train).most_common(1)[0][0]
    by_question: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for scene, question, answer in train:
        by_question[question].append((scene, answer))
    every = [(scene, answer) for scene, _, answer in train]
    right: dict[str, list[bool]] = defaultdict(list)
    for question in dict.fromkeys(question for _, question, _ in held):
        same = by_question.get(question, every)
        asked = [(scene, answer) for scene, other, answer in held if other == question]
        x, y = (np.stack([seen[scene] for scene, _ in some]) for some in (same, asked))
        nearest = ((x * x).sum(1) - 2 * y @ x.T).argmin(1)
        usual = Counter(answer for _, answer in same).most_common(1)[0][0]
        for (_, answer), near in zip(asked, nearest, strict=True):
            told = {
                "most frequent answer": most,
                "most frequent answer to the question": usual,
                "nearest training picture": same[near][1],
            }
            for name, one in told.items():
                right[name].append(answer == one)
                if question:
                    right[f"{name}, {kind_of(question, answer)}"].append(answer == one)
    return {name: np.asarray(some) for name, some in right.items()}


def show(part: str, name: str, right: np.ndarray) -> None:
    """Prints a share with its interval."""
    share = float(np.mean(right))
    low, high = score_interval(share, len(right))
    found = {"pictures": part, "of": len(right), "right": round(share, 4)}
    print(json.dumps({"how": name, **found, "interval": [round(low, 4), round(high, 4)]}))


def labels(run: Path, count: int) -> None:
    """Prints how often a run names pictures right."""
    model, draw = api.load(run), np.random.default_rng(0)
    every = [f"a {colour} {form}" for colour in COLOURS for form in FORMS]
    for part, unseen in PARTS.items():
        held = examples(Shapes("captions", 1, count, unseen), held_out=True)
        by_number = defaultdict(list)
        for scene, _, caption in held:
            by_number[len(json.loads(scene.removeprefix("scene:")))].append((scene, caption))
        for number, some in sorted(by_number.items()):
            captions = [caption for _, caption in some]
            pictures = [draw_scene(scene, model.config.vision.size) for scene, _ in some]
            options = every if number == 1 else list(dict.fromkeys(captions))
            chance = model.label(pictures, options)
            column = {text: i for i, text in enumerate(options)}
            right = []
            for row, caption in zip(chance, captions, strict=True):
                own = column[caption]
                others = np.delete(np.arange(len(options)), own)
                if number > 1:
                    others = draw.choice(others, CHOICES - 1, replace=False)
                right.append(row[own] > row[others].max())
            offered = len(every) if number == 1 else CHOICES
            show(part, f"{number} of a picture's shapes, {offered} labels", np.asarray(right))


def main() -> None:
    """Prints JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("captions", "questions", "label"))
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--train", type=int, default=8000, help="training pictures of the rules")
    parser.add_argument("--count", type=int, default=500, help="held-out pictures of each part")
    options = parser.parse_args()
    if options.what == "label":
        if options.run is None:
            parser.error("label needs a run, such as runs/clip_shapes")
        labels(options.run, options.count)
        return
    train = examples(Shapes(options.what, options.train, 1), held_out=False)
    for part, unseen in PARTS.items():
        held = examples(Shapes(options.what, 1, options.count, unseen), held_out=True)
        seen = small([scene for scene, _, _ in train + held])
        for name, right in rules(train, held, seen).items():
            show(part, name, right)


if __name__ == "__main__":
    main()
