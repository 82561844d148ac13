"""Figures of sequential recommendation: hit@10 and NDCG@10 of the last item, and films to choose.

    python benchmarks/recommend.py runs/recommend_items [RUN ...]
    python benchmarks/recommend.py --films ../shared/data/eval/bigbench_movie_recommendation.jsonl

Each held-out user's last item is predicted from all before it, among all items. Baselines: the
items that training users took most often, and those that followed the last item most often.
`law` knows how `examples/visits.py` draws items. Of the films, four are to choose from: the
likeliest title after the question by SmolLM2 (per character), and the one that is named most
often in all questions.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import gptjax
from gptjax import data, model
from gptjax.core import config
from gptjax.data.store import Store
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.requests import Score
from gptjax.evaluate.respond import respond
from gptjax.train.experiment import Experiment

VISITS = Path(__file__).parents[1] / "examples/visits.py"


def sequences(store: Store, end: int | None) -> list[np.ndarray]:
    """The ids of each user's items."""
    borders = zip(store.offsets[:-1], store.offsets[1:], strict=True)
    rows = [np.asarray(store.ids[int(first) : int(last)]) for first, last in borders]
    return [row[row != end] for row in rows]


def ranks(scores: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Place of each wanted item, from 0; of equal scores half are before it."""
    of_wanted = scores[np.arange(len(scores)), wanted][:, None]
    return (scores > of_wanted).sum(1) + ((scores == of_wanted).sum(1) - 1) / 2


def report(name: str, scores: np.ndarray, wanted: Sequence[int]) -> None:
    """Prints hit@10 and NDCG@10 with intervals."""
    place = ranks(scores, wanted)
    hit = mean_of((place < 10).astype(float))
    gain = mean_of(np.where(place < 10, 1 / np.log2(place + 2), 0.0))
    print(
        f"{name:28} hit@10 {hit.value:.3f} ({hit.low:.3f} to {hit.high:.3f}),"
        f" NDCG@10 {gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f}), n {hit.n}",
        flush=True,
    )


def learned(run: Path, before: list[np.ndarray], begin: int | None) -> np.ndarray:
    """Logits of the next item after each beginning."""
    opened = gptjax.load(run)
    width = max(map(len, before)) + 1
    first = [] if begin is None else [begin]
    rows, last = np.zeros((len(before), width), np.int32), []
    for number, items in enumerate(before):
        ids = np.concatenate([first, items])[-width:]
        rows[number, : len(ids)] = ids
        last.append(len(ids) - 1)

    @jax.jit
    def scores(params, tokens, places):
        hidden = model.forward(opened.config, params, tokens).hidden
        return model.unembed(opened.config, params, hidden[np.arange(len(before)), places])

    return np.asarray(scores(opened.params, rows, np.asarray(last)), np.float32)


def users(runs: list[Path]) -> None:
    """Prints the figures of runs and baselines on the held-out users."""
    experiment = config.load_config(Experiment, runs[0] / "config.json")
    prepared = data.prepare(experiment.data)
    tokenizer = prepared.tokenizer
    end = tokenizer.end_of_document
    train, held_out = (sequences(s, end) for s in (prepared.train, prepared.validation))
    before, wanted = [row[:-1] for row in held_out], [int(row[-1]) for row in held_out]
    size = tokenizer.vocab_size
    taken, pairs = np.zeros(size), np.zeros((size, size))
    for row in train:
        np.add.at(taken, row, 1)
        np.add.at(pairs, (row[:-1], row[1:]), 1)
    counts = len(train), len(held_out), np.count_nonzero(taken)
    print("{} users to learn from, {} held out, {} items".format(*counts))
    report("popularity", np.tile(taken, (len(before), 1)), wanted)
    after = pairs[[int(row[-1]) for row in before]]
    report("after the last item", after + 1e-6 * taken, wanted)
    law = runpy.run_path(str(VISITS))
    numbers = [[ord(c) - law["FIRST"] for c in tokenizer.decode(row)] for row in before]
    if all(0 <= n < law["GENRES"] * law["SIZE"] for row in numbers for n in row):
        chances = np.stack([law["likely"](row) for row in numbers])
        right = [ord(tokenizer.decode(np.array([i]))) - law["FIRST"] for i in wanted]
        report("law", chances, right)
    for run in runs:
        report(str(run), learned(run, before, tokenizer.begin_of_document), wanted)


def films(path: Path) -> None:
    """Prints how often the right one of four films is chosen."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]
    asked, titles = [], []
    for record in records:
        first, *listed = record["query"].split("\n")
        asked.append(first.removeprefix("Find a movie similar to ").rstrip(":"))
        titles.append([line.split(". ", 1)[1] for line in listed[:4]])
    named = Counter(name for films in asked for name in films.split(", "))
    gold = [record["gold"] for record in records]
    popular = [max(range(4), key=lambda i: named[each[i]]) for each in titles]
    figure = mean_of((np.array(popular) == gold).astype(float))
    print(
        f"popularity       accuracy {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})",
        flush=True,
    )
    smollm2 = gptjax.load("smollm2")
    for name, form in (
        ("cloze", "People who like the films {} also like the film"),
        ("list", "Films of one kind: {},"),
    ):
        scores = [
            Score(form.format(liked), f" {title}")
            for liked, each in zip(asked, titles, strict=True)
            for title in each
        ]
        found = respond(smollm2, scores)
        per_character = np.array(
            [one.logprob / len(ask.continuation) for one, ask in zip(found, scores, strict=True)]
        )
        chosen = per_character.reshape(-1, 4).argmax(1)
        figure = mean_of((chosen == gold).astype(float))
        print(
            f"SmolLM2, {name:6} accuracy {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="runs of configs/recommend_items.py")
    parser.add_argument("--films", type=Path, help="questions of four films")
    args = parser.parse_args()
    if args.runs:
        users(args.runs)
    if args.films:
        films(args.films)


if __name__ == "__main__":
    main()
