"""Pictures that models draw as tokens: nats of held-out ones beside those of simple rules, what a
separate classifier sees in drawn ones, by guidance, and what a codebook keeps.

    python benchmarks/digits.py baselines runs/digits_pixels
    python benchmarks/digits.py draw runs/digits_pixels --guidance 0 1 2 4 [--page drawn.png]
    python benchmarks/digits.py draw runs/digits_masked --guidance 1 2 --steps 14 28 56 196
    python benchmarks/digits.py codes data/digits_images --seeds 0 1 2 [--save codes.npz]

`baselines` fits three rules to the training pictures of a run: each pixel by itself; each pixel by
its label; each pixel by the 10 pixels next to it that come before it. All count, with 1/2 added.

`draw` writes `--each` pictures of each label at temperature 1. The judge is a ridge
regression on random features of the training pictures. It prints the share that is right, for drawn
pictures and held-out ones alike, and the mean number of pixels in which they differ from the
nearest training picture: a model that copied would have 0. Of a model that draws patches as codes
the judge sees what is painted at 14 x 14, black and white, like that of pixels.

`codes` fits a codebook to pictures of 28 x 28, and prints the squared error of held-out ones beside
that of the mean patch and of as many patches by k-means, which see each patch alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gptjax import api
from gptjax.core.config import load_config
from gptjax.data import PictureTokens, prepare
from gptjax.data.documents.idx import idx_array
from gptjax.data.store import Store
from gptjax.data.tasks.picture_tokens import quantised, spelled, unspelled
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.evaluate.figure import score_interval
from gptjax.generate import drawing_task, picture_grid
from gptjax.lab.codes import CodeFit, code_figures, fit_codes
from gptjax.model.inputs.codes import save_codes
from gptjax.model.inputs.image import prepared
from gptjax.model.inputs.image_files import save_png
from gptjax.train.experiment import Experiment

FEATURES, STRENGTH = 2000, 100.0
"""Of the judge."""
HELD_OUT = 1000
"""Pictures at the end that are held out."""
TEMPLATE = (*((-1, x) for x in range(-3, 4)), (0, -1), (0, -2), (-2, 0))
"""Rows and columns from a pixel to the 10 that its template looks at."""


def pictures_of(store: Store, tokenizer: Tokenizer, task: PictureTokens) -> tuple:
    """The labels [n] and levels [n H W] of a store."""
    texts = [
        tokenizer.decode(store.ids[a:b].astype(np.int32))
        for a, b in zip(store.offsets, store.offsets[1:], strict=False)
    ]
    levels = np.stack([unspelled(text[-task.places :], task.levels) for text in texts])
    return np.asarray([text[: -task.places] for text in texts]), levels


def nats(train: np.ndarray, held: np.ndarray, levels: int) -> np.ndarray:
    """−ln p of each held-out pixel [n P] by how often its place had its level."""
    counts = np.stack([(train == level).sum(0) + 0.5 for level in range(levels)])
    logp = np.log(counts / counts.sum(0))
    return -np.take_along_axis(logp, held, axis=0)


def contexts(pictures: np.ndarray) -> np.ndarray:
    """A number for what the template sees of each pixel [n H W] of pictures with 2 levels."""
    wide = np.pad(pictures, ((0, 0), (3, 3), (3, 3)))
    height, width = pictures.shape[1:]
    seen = np.zeros(pictures.shape, np.int64)
    for down, across in TEMPLATE:
        rows, columns = 3 + down, 3 + across
        seen = 2 * seen + wide[:, rows : rows + height, columns : columns + width]
    return seen


def baselines(train: tuple, held: tuple, size: tuple[int, int], levels: int) -> dict[str, float]:
    """Nats of a held-out picture by simple rules."""
    (labels, x), (asked, y) = train, held
    found = {"each pixel": nats(x, y, levels).sum(1).mean()}
    by_label = [nats(x[labels == one], y[asked == one], levels).sum(1) for one in set(asked)]
    found["each pixel by label"] = np.concatenate(by_label).mean()
    if levels == 2:
        before, after = (contexts(one.reshape(-1, *size)).ravel() for one in (x, y))
        ones = np.bincount(before, x.ravel(), 1024) + 0.5
        share = ones / (np.bincount(before, minlength=1024) + 1.0)
        p = np.where(y.ravel() == 1, share[after], 1 - share[after])
        found["template of 10 pixels"] = -np.log(p).sum() / len(y)
    return {name: round(float(value), 2) for name, value in found.items()}


def judge(train: tuple, size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """Gives the labels of pictures [n P], by ridge regression on random features of the training
    pictures and of these moved by one pixel in four ways."""
    labels, x = train
    square, draw = x.reshape(-1, *size).astype(np.float32), np.random.default_rng(0)
    moves = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    moved = np.concatenate([np.roll(square, by, (1, 2)).reshape(x.shape) for by in moves])
    weights = draw.normal(size=(x.shape[1], FEATURES)).astype(np.float32) / x.shape[1] ** 0.5
    bias, top = draw.normal(size=FEATURES).astype(np.float32), x.max()

    def features(pictures: np.ndarray) -> np.ndarray:
        return np.maximum((2 * pictures / top - 1).astype(np.float32) @ weights + bias, 0)

    known = np.unique(labels)
    a, wanted = features(moved), np.tile(labels[:, None] == known, (len(moves), 1)) - 0.1
    mean = a.mean(0)
    a -= mean
    fit = np.linalg.solve(a.T @ a + STRENGTH * np.eye(FEATURES, dtype=np.float32), a.T @ wanted)
    return lambda asked: known[((features(asked) - mean) @ fit).argmax(1)]


def distance(train: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How far each picture is from the nearest training picture, squared."""
    x, y = train.astype(np.float32), asked.astype(np.float32)
    return ((x * x).sum(1)[None] - 2 * y @ x.T + (y * y).sum(1)[:, None]).min(1)


def judged(name: str, right: np.ndarray, far: np.ndarray) -> dict:
    """A row of the table."""
    share = float(right.mean())
    low, high = score_interval(share, len(right))
    return {
        "pictures": name,
        "right": round(share, 3),
        "interval": [round(low, 3), round(high, 3)],
        "of": len(right),
        "differs": round(float(far.mean()), 2),
    }


def mean_patches(fitted_to: np.ndarray, asked: np.ndarray, patch: int) -> float:
    """Returns the squared error of one patch, the mean, in place of all: a baseline."""
    x, y = (_patches(pictures, patch) for pictures in (fitted_to, asked))
    return float(np.square(y - x.mean(0)).mean())


def kmeans_patches(
    fitted_to: np.ndarray,
    asked: np.ndarray,
    patch: int,
    codes: int,
    rounds: int = 20,
    seed: int = 0,
) -> float:
    """Returns the squared error of the nearest of so many mean patches (k-means): a baseline with
    as many codes that sees each patch alone."""
    x, y = (_patches(pictures, patch) for pictures in (fitted_to, asked))
    draw = np.random.default_rng(seed)
    x = x[draw.permutation(len(x))[:40_000]]
    centres = x[draw.permutation(len(x))[:codes]]

    def chosen(rows: np.ndarray) -> np.ndarray:
        return ((centres * centres).sum(1) - 2 * rows @ centres.T).argmin(1)

    for _ in range(rounds):
        which = chosen(x)
        counts = np.bincount(which, minlength=codes)
        order = np.argsort(which, kind="stable")
        begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
        some = counts > 0
        sums = np.add.reduceat(x[order], begins[some], axis=0)
        centres[some] = sums / counts[some, None]
        centres[~some] = x[draw.integers(0, len(x), (~some).sum())]
    return float(np.square(y - centres[chosen(y)]).mean())


def _patches(pictures: np.ndarray, patch: int) -> np.ndarray:
    count, height, width = pictures.shape
    cut = pictures.reshape(count, height // patch, patch, width // patch, patch)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, patch * patch).astype(np.float32) / 255


def codebooks(folder: Path, options: argparse.Namespace) -> None:
    """Prints what codebooks of several seeds keep of held-out pictures."""
    grey = idx_array(folder / "images.idx3.gz", 3)
    train, held = grey[:-HELD_OUT], grey[-HELD_OUT:]
    how = CodeFit(steps=options.fit_steps, codes=options.codes)
    print(json.dumps({"mean patch": round(mean_patches(train, held, how.patch), 5)}))
    error = kmeans_patches(train, held, how.patch, how.codes)
    print(json.dumps({"k-means": round(error, 5), "codes": how.codes}), flush=True)
    for seed in options.seeds:
        for restart in (how.restart, 0.0):
            begun = time.monotonic()
            fitted, told = fit_codes(train, dataclasses.replace(how, seed=seed, restart=restart))
            found = code_figures(fitted, held)
            figures = {name: round(value, 5) for name, value in found._asdict().items()}
            more = {"restarted": int(told["restarted"].sum()), "seed": seed, "restart": restart}
            seconds = round(time.monotonic() - begun, 1)
            print(json.dumps({**figures, **more, "seconds": seconds}), flush=True)
            if options.save and restart and seed == options.seeds[0]:
                save_codes(options.save, fitted)


def main() -> None:
    """Prints JSON lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("baselines", "draw", "codes"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="of a masked model")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--page", type=Path, help="PNG of the first pictures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--codes", type=int, default=128)
    parser.add_argument("--fit-steps", type=int, default=1500)
    parser.add_argument("--save", type=Path, help="file of the first seed's codebook")
    options = parser.parse_args()
    if options.what == "codes":
        codebooks(options.run, options)
        return
    draw(options) if options.what == "draw" else rules(options)


def rules(options: argparse.Namespace) -> None:
    """Prints nats by simple rules."""
    model = api.load(options.run)
    task, (train, held) = drawing_task(model.task), read(options.run, model)
    print(json.dumps(baselines(train, held, task.grid, task.levels)))


def read(run: Path, model: api.Model, task: PictureTokens | None = None) -> tuple[tuple, tuple]:
    """The labels and levels of a run's training pictures and of the held-out ones, as another task
    spells them if one is given."""
    data = load_config(Experiment, run / "config.json").data
    data = data if task is None else dataclasses.replace(data, task=task)
    found = prepare(data, given=model.tokenizer if task is None else None)
    assert found.validation is not None
    own = task or drawing_task(model.task)
    tokenizer = model.tokenizer if task is None else found.tokenizer
    train, held = (pictures_of(store, tokenizer, own) for store in (found.train, found.validation))
    return train, held


def draw(options: argparse.Namespace) -> None:
    """Prints what the judge sees in drawn pictures, and writes a page of them."""
    model = api.load(options.run)
    task, seen = drawing_task(model.task), None
    if task.codes is not None:
        seen = PictureTokens(size=(14, 14))
    shape = seen or task
    train, held = read(options.run, model, seen)
    label_of = judge(train, shape.grid)

    def flat(pictures: np.ndarray) -> np.ndarray:
        if seen is None:
            levels = np.round(pictures[..., 0] * ((task.levels - 1) / 255)).astype(int)
        else:
            levels = np.stack([quantised(prepared(one, seen.size), 2) for one in pictures])
        return levels.reshape(len(pictures), -1)

    right, far = label_of(held[1]) == held[0], distance(train[1], held[1])
    print(json.dumps(judged("held out", right, far)), flush=True)
    if seen is not None:
        asked, codes = read(options.run, model)[1]
        painted = [task.pictured(spelled(one, task.levels)) for one in codes]
        again = flat(np.stack(painted))
        row = judged("held out, as codes", label_of(again) == asked, distance(train[1], again))
        print(json.dumps(row), flush=True)
    labels, shown = sorted(set(train[0].tolist())), []
    for scale, steps in itertools.product(options.guidance, options.steps):
        begun = time.monotonic()
        drawn = model.draw(
            labels,
            temperature=options.temperature,
            top_p=1.0,
            guidance=scale,
            num_samples=options.each,
            denoising_steps=steps,
            seed=1,
            batch=len(labels) * options.each,
        )
        right = label_of(flat(drawn)) == np.repeat(labels, options.each)
        row = judged(f"guidance {scale:g}", right, distance(train[1], flat(drawn)))
        how = {"steps": steps} if steps else {}
        seconds = round(time.monotonic() - begun, 1)
        print(json.dumps({"run": str(options.run), **row, **how, "seconds": seconds}), flush=True)
        shown += [
            drawn[i * options.each + k]
            for k in range(min(2, options.each))
            for i in range(len(labels))
        ]
    if options.page:
        save_png(options.page, picture_grid(shown, len(labels)))


if __name__ == "__main__":
    main()
