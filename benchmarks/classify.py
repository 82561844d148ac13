"""Accuracy of classification runs against logistic regression over bags of words.

    python benchmarks/classify.py RUN ...

The regressions are fitted to the training texts of the run and judged on its held-out texts: counts
of words with the library's default strength (C = 1), and tf-idf of words and word pairs (C = 10).
Needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gptjax import data
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data.store import Store
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.observe.log import read_metrics
from gptjax.train.experiment import Experiment

BASELINES = {
    "counts of words": lambda: make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000)),
    "tf-idf of words and pairs": lambda: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000),
    ),
}


def examples(store: Store, tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Texts and the numbers of their labels, as a store of classification holds them."""
    rows = [
        store.ids[first:last].tolist()
        for first, last in zip(store.offsets[:-1], store.offsets[1:], strict=True)
    ]
    return [tokenizer.decode(row[:-1]) for row in rows], [
        row[-1] - tokenizer.vocab_size for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", help="run directories of classification, on the same data"
    )
    paths, found = parser.parse_args().runs, []
    for path in paths:
        experiment = config.load_config(Experiment, path / "config.json")
        require(
            experiment.data.task.classes is not None,
            f"{path} is no run of classification (data.task).",
        )
        told = [
            line["validation_accuracy"]
            for line in read_metrics(path)
            if "validation_accuracy" in line
        ]
        require(bool(told), f"{path} has no accuracy on held-out text yet; train it to its end.")
        found.append(told[-1])
        print(f"{path}: accuracy {told[-1]:.4f}")
    print(f"mean of {len(found)}: accuracy {sum(found) / len(found):.4f}")
    prepared = data.prepare(
        config.load_config(Experiment, paths[0] / "config.json").data, say=print
    )
    train, held_out = (
        examples(store, prepared.tokenizer) for store in (prepared.train, prepared.validation)
    )
    print(
        f"{len(train[0])} texts to learn from, {len(held_out[0])} held out, {len(set(train[1]))}"
        " labels"
    )
    for name, baseline in BASELINES.items():
        print(
            f"logistic regression over {name}: accuracy"
            f" {baseline().fit(*train).score(*held_out):.4f}"
        )


if __name__ == "__main__":
    main()
