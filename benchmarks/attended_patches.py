"""Which patches of a picture a model attends to while it writes each word about it.

    python benchmarks/attended_patches.py runs/shapes_captions --page attended.png

Each line of the page is a held-out picture, then the same once for each word of its answer: bright
where the position that predicts the word's first piece attends, on the mean over heads of the
layer that attends most to pictures. Printed are the words, and for drawn shapes the share of that
attention which falls on patches with a part of a shape, beside their share of all patches.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from gptjax import model
from gptjax.core.config import load_config
from gptjax.data import batches, prepare
from gptjax.lab.look.heads import attention_patterns
from gptjax.model.inputs.image_files import save_png
from gptjax.runs.open import open_model
from gptjax.train.experiment import Experiment

SCALE, GAP, DARK = 3, 4, 0.25
"""Pixels of the page for one of the picture, between pictures; light where nothing attends."""


def bright(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A picture [H W 3] under attention to its patches [h w], brightest at the highest."""
    height, width = picture.shape[0] // weights.shape[0], picture.shape[1] // weights.shape[1]
    light = DARK + (1 - DARK) * weights / weights.max()
    return (picture * np.kron(light, np.ones((height, width)))[..., None]).astype(np.uint8)


def words_of(text: str) -> list[tuple[int, int]]:
    """First and last character (exclusive) of each word."""
    found, begin = [], 0
    for word in text.split(" "):
        found.append((begin, begin + len(word)))
        begin += len(word) + 1
    return [(a, b) for a, b in found if b - a > 1 and text[a:b] != "and"]


def page(lines: list[list[np.ndarray]]) -> np.ndarray:
    """Lines of pictures on white, one below the other."""
    height, width = lines[0][0].shape[0] * SCALE, lines[0][0].shape[1] * SCALE
    most = max(map(len, lines))
    whole = np.full((len(lines) * (height + GAP), most * (width + GAP), 3), 255, np.uint8)
    for row, line in enumerate(lines):
        for column, one in enumerate(line):
            top, left = row * (height + GAP), column * (width + GAP)
            large = np.repeat(np.repeat(one, SCALE, 0), SCALE, 1)
            whole[top : top + height, left : left + width] = large
    return whole


def main() -> None:
    """Writes the page and prints the words of its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--page", type=Path, default=Path("attended.png"))
    parser.add_argument("--rows", type=int, default=12)
    options = parser.parse_args()
    opened = open_model(options.run)
    config, tokenizer = opened.config, opened.tokenizer
    experiment = load_config(Experiment, options.run / "config.json")
    store = prepare(experiment.data, given=tokenizer).validation
    task = dataclasses.replace(experiment.data.task, images=1)
    plan = batches.plan(store, length=config.context, rows=options.rows, seed=None, task=task)
    batch = batches.batch(store, plan, 0)
    patterns = np.asarray(
        attention_patterns(
            config,
            opened.params,
            batch.tokens,
            positions=batch.positions,
            segments=batch.segments,
            prefix=batch.prefix,
            soft=model.look(config, opened.params, batch.columns),
        )
    ).mean(2)  # over heads [L B T S]
    vision, lines, shares = config.vision, [], []
    side = (vision.size[0] // vision.patch, vision.size[1] // vision.patch)
    places = np.asarray(batch.columns["places"])
    for row in range(len(places)):
        at = places[row][: side[0] * side[1]]
        learned = np.flatnonzero(batch.weights[row] > 0)
        ids = batch.targets[row][learned][:-1]
        text = tokenizer.decode(ids)
        starts = [len(tokenizer.decode(ids[:count])) for count in range(len(ids))]
        picture = np.asarray(batch.columns["pixels"][row, 0])
        blocks = picture.reshape(side[0], vision.patch, side[1], vision.patch, 3)
        drawn = (np.ptp(blocks, axis=(1, 3)) > 8).any(-1)
        line, told = [picture], []
        for begin, end in words_of(text):
            piece = int(np.searchsorted(starts, begin, side="right")) - 1
            seen = patterns[:, row, learned[piece]][:, at]
            layer = int(seen.sum(1).argmax())
            weights = seen[layer].reshape(side)
            share = float(weights[drawn].sum() / weights.sum())
            shares.append((share, float(drawn.mean())))
            line.append(bright(picture, weights))
            told.append([text[begin:end], layer, round(float(weights.sum()), 2), round(share, 2)])
        print(json.dumps({"answer": text, "word, layer, to patches, on shapes": told}))
        lines.append(line)
    on, area = np.mean(shares, axis=0)
    print(json.dumps({"on shapes": round(float(on), 3), "their patches": round(float(area), 3)}))
    save_png(options.page, page(lines))


if __name__ == "__main__":
    main()
