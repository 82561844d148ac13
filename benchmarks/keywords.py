"""Average precision of keywords of papers: words ranked by a model's likelihood, against tf-idf.

    python benchmarks/keywords.py train.jsonl dev.jsonl --models smollm2 runs/summaries_smollm2

Keywords are those of `examples/paper_summaries.py`: words of an abstract that a summary uses too,
without common ones. All words of the abstract without common ones are ranked: by tf-idf (counts in
the abstract, document frequencies of the training abstracts), in their order, at random (expected),
and by what a model says of each word after the abstract and `TL;DR:` (or `--asked keywords`): its
ln p, and ln p less that without the abstract; and by each of these together with tf-idf, as
reciprocal ranks. The first `--limit` held-out papers are judged.

Source: Cormack et al. 2009, Reciprocal Rank Fusion.
"""

from __future__ import annotations

import argparse
import math
import runpy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gptjax
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.requests import Score
from gptjax.evaluate.respond import respond

PAPERS = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "paper_summaries.py"))


class Asked(NamedTuple):
    """An abstract, the words that could be its keywords, and which of them are."""

    abstract: str
    candidates: list[str]
    right: set[str]


def average_precision(ranked: Sequence[str], right: set[str]) -> float:
    """The mean precision at the places of the right words."""
    hits, total = 0, 0.0
    for place, word in enumerate(ranked, 1):
        if word in right:
            hits += 1
            total += hits / place
    return total / len(right)


def expected_at_random(count: int, right: int) -> float:
    """The mean of `average_precision` over all orders of `count` words, of which some are right."""
    harmonic = sum(1 / place for place in range(1, count + 1))
    share = (right - 1) / (count - 1) if count > 1 else 0.0
    return (harmonic + share * (count - harmonic)) / count


def asked_of(papers: Sequence[Mapping[str, Any]], common: set[str]) -> list[Asked]:
    """Papers that have a keyword and a word that is none."""
    found = []
    for paper in papers:
        abstract = PAPERS["abstract_of"](paper)
        candidates = [word for word in PAPERS["words"](abstract) if word not in common]
        right = set(PAPERS["keywords_of"](paper, common))
        if 0 < len(right) < len(candidates):
            found.append(Asked(abstract, candidates, right))
    return found


def by_score(one: Asked, scores: Sequence[float]) -> list[str]:
    """The candidates of an abstract, the best first; equal ones in their order."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    return [one.candidates[n] for n in order]


def tf_idf(papers: Sequence[Mapping[str, Any]], asked: Sequence[Asked]) -> list[list[str]]:
    """Ranks the words of each abstract by tf-idf."""
    documents = [PAPERS["words"](PAPERS["abstract_of"](paper)) for paper in papers]
    counts = Counter(word for document in documents for word in document)
    ranked = []
    for one in asked:
        text = one.abstract.lower()
        scores = [
            text.count(word) * math.log((1 + len(documents)) / (1 + counts[word]))
            for word in one.candidates
        ]
        ranked.append(by_score(one, scores))
    return ranked


def by_likelihood(
    model: gptjax.Model, asked: Sequence[Asked], suffix: str
) -> dict[str, list[list[str]]]:
    """Ranks the words of each abstract by both scores."""
    words = sorted({word for one in asked for word in one.candidates})
    requests = [Score(suffix.strip(), f" {word}") for word in words]
    requests += [Score(one.abstract + suffix, f" {w}") for one in asked for w in one.candidates]
    found = [one.logprob for one in respond(model, requests)]
    without, told = dict(zip(words, found, strict=False)), iter(found[len(words) :])
    ranked: dict[str, list[list[str]]] = {"ln p": [], "ln p less that without the abstract": []}
    for one in asked:
        scores = [next(told) for _ in one.candidates]
        less = [score - without[word] for score, word in zip(scores, one.candidates, strict=True)]
        for name, values in zip(ranked, (scores, less), strict=True):
            ranked[name].append(by_score(one, values))
    return ranked


def fused(one: Sequence[str], other: Sequence[str], far: int = 60) -> list[str]:
    """Two rankings of the same words as one, by the sum of 1 / (`far` + rank)."""
    ranks = [{word: place for place, word in enumerate(ranked, 1)} for ranked in (one, other)]
    return sorted(one, key=lambda word: -sum(1 / (far + rank[word]) for rank in ranks))


def gains(
    ranked: Sequence[Sequence[str]], other: Sequence[Sequence[str]], asked: Sequence[Asked]
) -> list[float]:
    """How much more average precision one ranking of each abstract has than another."""
    return [
        average_precision(mine, one.right) - average_precision(theirs, one.right)
        for mine, theirs, one in zip(ranked, other, asked, strict=True)
    ]


def said(name: str, ranked: Sequence[Sequence[str]], asked: Sequence[Asked]) -> None:
    """Prints mean average precision and the precision of the first five words."""
    pairs = list(zip(ranked, asked, strict=True))
    mean = mean_of([average_precision(words, one.right) for words, one in pairs])
    first = mean_of([len(one.right.intersection(words[:5])) / 5 for words, one in pairs])
    print(
        f"{name}: average precision {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}),"
        f" precision of five {first.value:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="the file of papers for document frequencies")
    parser.add_argument("papers", help="the file of papers that are held out")
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--asked", choices=PAPERS["ASKED"], default="summaries")
    parser.add_argument("--limit", type=int, default=100)
    args = parser.parse_args()
    train, papers = (PAPERS["read_papers"](path) for path in (args.train, args.papers))
    common = PAPERS["common_words"](train)
    asked = asked_of(papers[: args.limit], common)
    share = mean_of([expected_at_random(len(one.candidates), len(one.right)) for one in asked])
    print(f"{len(asked)} papers; at random: average precision {share.value:.3f}", flush=True)
    said("in their order", [one.candidates for one in asked], asked)
    counted = tf_idf(train, asked)
    said("tf-idf", counted, asked)
    for path in args.models:
        began = time.monotonic()
        found = by_likelihood(gptjax.load(path), asked, PAPERS["ASKED"][args.asked])
        for name, ranked in found.items():
            said(f"{path}, {name}", ranked, asked)
            pairs = zip(counted, ranked, strict=True)
            both = [fused(*pair) for pair in pairs]
            said("  with tf-idf", both, asked)
            found = mean_of(gains(both, counted, asked))
            print(f"    more than tf-idf: {found.value:.3f} ({found.low:.3f} to {found.high:.3f})")
        print(f"  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
