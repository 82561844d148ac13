r"""Recall@1 of retrieval: the splitter of `gptjax.retrieve` beside that of `bm25s`, and embeddings.

    python benchmarks/retrieval.py --data ../shared/data
    python benchmarks/retrieval.py --data ../shared/data --sets summaries --pool 1000 --embed minilm
    python benchmarks/retrieval.py --sets descriptions --file Translation-de

A question has one right paragraph among all others of its set:

    summaries     one-line summary → abstract of a paper (English, SciTLDR)
    books         sentence → its paragraph without it (English novels)
    novel         the same in a Japanese novel
    titles        title → poem (Chinese)
    phrases       five characters of a line → poem (Chinese)
    paraphrases   Chinese sentence → another translation of the same English one
    descriptions  first line → rest of a package's description, in any language: a file of Debian's
                  package lists (`apt-get -o Acquire::Languages::=de update`, unpacked with
                  `/usr/lib/apt/apt-helper cat-file`)

`--seed 0` draws the questions with which the splitter's rules were chosen; figures are of others.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bm25s
import numpy as np

import gptjax
from gptjax.evaluate.figure import mean_of
from gptjax.retrieve import build_index
from gptjax.retrieve.index import fused, term_scores

QUESTIONS = 500


class Pairs(NamedTuple):
    passages: list[str]
    questions: list[tuple[str, frozenset[int]]]
    """With the places of the right passages."""


def one_right(pairs: list[tuple[str, str]], draw: random.Random) -> Pairs:
    """Questions that are asked once, of (question, passage) pairs."""
    draw.shuffle(pairs)
    asked = Counter(question for question, _ in pairs)
    right = [(q, frozenset({i})) for i, (q, _) in enumerate(pairs) if asked[q] == 1]
    return Pairs([passage for _, passage in pairs], right)


def left_out(paragraphs: list[str], ends: str, least: int, draw: random.Random) -> Pairs:
    """A sentence of a paragraph is the question, the others are the passage."""
    draw.shuffle(paragraphs)
    passages, questions = [], []
    for number, paragraph in enumerate(paragraphs):
        sentences = [s for s in re.split(rf"(?<=[{ends}])\s*", paragraph) if s.strip()]
        long = [i for i, s in enumerate(sentences) if len(s) >= least]
        if len(sentences) > 2 and long:
            questions.append((sentences.pop(draw.choice(long)), frozenset({number})))
            passages.append(" ".join(sentences))
        else:
            passages.append(paragraph)
    return Pairs(passages, questions)


def summaries(data: Path, draw: random.Random) -> Pairs:
    rows = [
        json.loads(line)
        for name in ("train", "dev")
        for line in (data / f"summaries/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return one_right([(row["target"][0], " ".join(row["source"])) for row in rows], draw)


def books(data: Path, draw: random.Random) -> Pairs:
    with gzip.open(data / "books/books.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    parts = [p.strip() for text in texts for p in text.split("\n\n") if 200 < len(p) < 1500]
    return left_out(draw.sample(parts, 4000), ".!?", 40, draw)


def novel(data: Path, draw: random.Random) -> Pairs:
    text = (data / "sentencepiece_corpus/wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
    return left_out([p.strip() for p in text.split("\n") if 80 < len(p) < 900], "。！？", 12, draw)


def poems(data: Path) -> list[dict[str, str]]:
    with gzip.open(data / "chinese_poetry/poems.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def titles(data: Path, draw: random.Random) -> Pairs:
    made = one_right([(poem["title"], poem["text"]) for poem in poems(data)], draw)
    return made._replace(questions=[pair for pair in made.questions if len(pair[0]) >= 5])


def phrases(data: Path, draw: random.Random) -> Pairs:
    texts, questions = [poem["text"] for poem in poems(data)], []
    while len(questions) < QUESTIONS:
        number = draw.randrange(len(texts))
        lines = [line for line in re.split(r"[，。！？；\n]", texts[number]) if len(line) >= 7]
        if lines:
            line = draw.choice(lines)
            start = draw.randrange(len(line) - 4)
            questions.append((line[start : start + 5], frozenset({number})))
    return Pairs(texts, questions)


def paraphrases(data: Path, draw: random.Random) -> Pairs:
    by_english = defaultdict(set)
    for line in (data / "tatoeba_cmn_eng/cmn.txt").read_text(encoding="utf-8").splitlines():
        english, chinese = line.split("\t")[:2]
        by_english[english].add(chinese)
    several = sorted(sorted(group) for group in by_english.values() if len(group) > 1)
    asked = draw.sample(several, QUESTIONS)
    said = {text for group in by_english.values() for text in group}
    passages = sorted(said - {group[0] for group in asked})
    place = {text: i for i, text in enumerate(passages)}
    right = [(g[0], frozenset(place[t] for t in g[1:] if t in place)) for g in asked]
    return Pairs(passages, [pair for pair in right if pair[1]])


def descriptions(data: Path, draw: random.Random) -> Pairs:
    found = {}
    for block in data.read_text(encoding="utf-8").split("\n\n"):
        match = re.search(r"^Description-(?!md5)\w+: (.*)\n((?: .*\n?)+)", block, re.MULTILINE)
        if match:
            body = " ".join(match[2].replace("\n .\n", "\n").split())
            if len(body) > 100 and match[1] not in body:
                found.setdefault(body, match[1])
    pairs = sorted((question, body) for body, question in found.items())
    return one_right(draw.sample(pairs, min(len(pairs), 4000)), draw)


SETS: dict[str, Callable[[Path, random.Random], Pairs]] = {
    each.__name__: each
    for each in (summaries, books, novel, titles, phrases, paraphrases, descriptions)
}


def reduced(pairs: Pairs, pool: int | None, draw: random.Random) -> Pairs:
    """At most `QUESTIONS` questions, with their passages among `pool` ones."""
    questions = draw.sample(
        pairs.questions, min(len(pairs.questions), pool or QUESTIONS, QUESTIONS)
    )
    if pool is None or pool >= len(pairs.passages):
        return pairs._replace(questions=questions)
    needed = sorted({i for _, right in questions for i in right})
    others = sorted(set(range(len(pairs.passages))) - set(needed))
    kept = needed + draw.sample(others, max(0, pool - len(needed)))
    place = {old: new for new, old in enumerate(kept)}
    moved = [(q, frozenset(place[i] for i in right)) for q, right in questions]
    return Pairs([pairs.passages[i] for i in kept], moved)


def default_scores(pairs: Pairs) -> list[np.ndarray]:
    """BM25 with what `bm25s` splits by default."""
    split = functools.partial(bm25s.tokenize, return_ids=False, show_progress=False)
    table = bm25s.BM25(method="lucene")
    table.index(split(pairs.passages), show_progress=False)
    asked = [
        [term for term in terms if term in table.vocab_dict]
        for terms in split([question for question, _ in pairs.questions])
    ]
    nothing = np.zeros(len(pairs.passages))
    return [table.get_scores(terms) if terms else nothing for terms in asked]


def report(name: str, scores: list[np.ndarray], pairs: Pairs) -> None:
    """Prints recall@1 with its interval, and recall@5."""
    first, five = [], []
    for each, (_, right) in zip(scores, pairs.questions, strict=True):
        best = np.argsort(-each, kind="stable")[:5]
        hits = [i in right and each[i] != 0 for i in best.tolist()]
        first.append(float(hits[0]))
        five.append(float(any(hits)))
    one = mean_of(first)
    print(
        f"  {name:30} recall@1 {one.value:.3f} ({one.low:.3f} to {one.high:.3f}),"
        f" @5 {np.mean(five):.3f}",
        flush=True,
    )


def measure(pairs: Pairs, models: list[str]) -> None:
    """Prints a row for each way to find."""
    questions = [question for question, _ in pairs.questions]
    report("bm25s, its splitter", default_scores(pairs), pairs)
    ours: list[np.ndarray] = []
    for compounds in (False, True):
        index = build_index(pairs.passages, compounds=compounds)
        found = [term_scores(index, question) for question in questions]
        report("bm25s, ours" + ", compounds" * compounds, found, pairs)
        ours = ours or found
    for name in models:
        model = gptjax.load(name)
        similar = list(model.embed(questions, 16) @ model.embed(pairs.passages, 16).T)
        report(name, similar, pairs)
        both = [fused(two) for two in zip(ours, similar, strict=True)]
        report(f"ours and {name}, fused", both, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS)[:-1])
    parser.add_argument("--file", type=Path, help="of the set descriptions")
    parser.add_argument("--pool", type=int, help="passages of a set; all by default")
    parser.add_argument("--embed", nargs="+", default=[], help="models: minilm, smollm2, a path")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for name in args.sets:
        draw = random.Random(args.seed)
        where = args.file if name == "descriptions" else args.data
        pairs = reduced(SETS[name](where, draw), args.pool, draw)
        print(f"{name}: {len(pairs.questions)} questions, {len(pairs.passages)} passages")
        measure(pairs, args.embed)


if __name__ == "__main__":
    main()
