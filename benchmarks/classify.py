"""Accuracy of classification runs against logistic regression over bags of words, and over what a
model that was not trained for it says of the texts.

    python benchmarks/classify.py RUN ... [--frozen smollm2]

The regressions are fitted to the training texts of the run and judged on its held-out texts: counts
of words with the library's default strength (C = 1), and tf-idf of words and word pairs (C = 10).
With `--frozen MODEL` one more reads the hidden state of each text's last token (of an encoder, the
mean of all) in a model that is not trained, each dimension scaled (C = 0.01). Needs `pip install -e
'.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gptjax
from gptjax import model
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data import DataConfig
from gptjax.data.documents.sources import read_documents, survey
from gptjax.data.layouts import filled, label
from gptjax.data.split import Census, Split
from gptjax.data.tasks.task import bounded
from gptjax.evaluate.figure import mean_of
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment

BASELINES = {
    "counts of words": lambda: make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000)),
    "tf-idf of words and pairs": lambda: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    ),
}


class Labelled(NamedTuple):
    """Texts with their labels."""

    texts: list[str]
    labels: list[str]


def divided(settings: DataConfig) -> tuple[Labelled, Labelled]:
    """The records that a run trains on, and those that it holds out."""
    census = Census() if settings.validation else None
    seen = survey(settings.source, visit=census and census.add)
    split = Split.of(settings.split, settings.validation, settings.source, seen.documents, census)
    found = {"train": Labelled([], []), "validation": Labelled([], [])}
    for document in read_documents(settings.source):
        part = next(name for name, text in split.parts(document).items() if text)
        found[part].texts.append(document.source or "")
        found[part].labels.append(document.text)
    return found["train"], found["validation"]


def frozen_states(opened: gptjax.Model, texts: list[str], rows: int = 32) -> np.ndarray:
    """What a model says of each text: the last hidden state, or of an encoder the mean [n D]."""
    settings, tokenizer = opened.config, opened.tokenizer

    @jax.jit
    def read(params, batch):
        hidden = model.forward(
            settings, params, batch.tokens, positions=batch.positions, segments=batch.segments
        ).hidden.astype(jnp.float32)
        counted = batch.weights if settings.causal else batch.positions >= 0
        return (hidden * counted[..., None]).sum(1) / counted.sum(1, keepdims=True)

    ids = [bounded(tokenizer.encode(text), tokenizer, 0)[-settings.context :] for text in texts]
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    states = np.zeros((len(ids), settings.width), np.float32)
    for first in range(0, len(order), rows):
        chosen = order[first : first + rows]
        pieces = [[label(ids[n], 0)] for n in chosen]
        pieces += pieces[:1] * (rows - len(pieces))
        width = -(-len(ids[chosen[-1]]) // 16) * 16
        states[chosen] = np.asarray(read(opened.params, filled(pieces, width)))[: len(chosen)]
    return states


def said(name: str, right: list[bool]) -> float:
    """Prints an accuracy with its interval, and returns it."""
    found = mean_of(np.asarray(right, float))
    print(f"{name}: accuracy {found.value:.4f} ({found.low:.4f} to {found.high:.4f})", flush=True)
    return found.value


def last_accuracy(path: Path) -> float:
    """The accuracy that a run of classification measured last."""
    experiment = config.load_config(Experiment, path / "config.json")
    require(
        experiment.data.task.classes is not None,
        f"{path} is no run of classification (data.task).",
    )
    lines = [line for line in read_metrics(path) if "validation_accuracy" in line]
    require(bool(lines), f"{path} has no accuracy on held-out text yet; train it to its end.")
    return lines[-1]["validation_accuracy"]


def compare_bags(train: Labelled, held_out: Labelled) -> None:
    """Prints the accuracy of each baseline over words."""
    for name, baseline in BASELINES.items():
        found = baseline().fit(*train).predict(held_out.texts)
        said(f"logistic regression over {name}", list(found == np.asarray(held_out.labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run directories of classification, on the same data"
    )
    parser.add_argument("--frozen", help="a model whose states a regression reads")
    args = parser.parse_args()
    found = [last_accuracy(path) for path in args.runs]
    experiment = config.load_config(Experiment, args.runs[0] / "config.json")
    train, held_out = divided(experiment.data)
    count = len(held_out.texts)
    print(f"{len(train.texts)} texts to learn from, {count} held out", flush=True)
    for path, value in zip(args.runs, found, strict=True):
        right = round(value * count)
        said(str(path), [True] * right + [False] * (count - right))
    print(f"mean of {len(found)}: accuracy {sum(found) / len(found):.4f}")
    compare_bags(train, held_out)
    if args.frozen:
        began, opened = time.monotonic(), gptjax.load(args.frozen).prepared()
        states = [frozen_states(opened, part.texts) for part in (train, held_out)]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        guessed = probe.fit(states[0], train.labels).predict(states[1])
        right = list(guessed == np.asarray(held_out.labels))
        seconds = time.monotonic() - began
        said(f"logistic regression over {args.frozen} ({seconds:.0f} s)", right)


if __name__ == "__main__":
    main()
