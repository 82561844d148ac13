"""Figures of examples/assistant.py on banking77: right passage, refusals, and the copied passage.

    python benchmarks/assistant.py --data ../shared/data --questions 150

A question of an intent that the FAQ covers is answered right if the answer cites the entry of its
intent; a question outside (ten intents that the FAQ lacks; quiz questions) is answered right by not
knowing. Thresholds are chosen on training questions, figures are of test questions. Needs
`pip install -e '.[retrieval]'` and the packages that the example names.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import runpy
import time
from pathlib import Path

import numpy as np

import gptjax
from gptjax.evaluate.figure import mean_of
from gptjax.retrieve.index import fused, term_scores

EXAMPLE = Path(__file__).parents[1] / "examples/assistant.py"


def questions(data: Path, name: str, covered: set[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(question, intent) pairs that the FAQ covers, and questions to the bank that it lacks."""
    with open(data / f"banking77/{name}.csv", encoding="utf-8") as file:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    return [r for r in rows if r[1] in covered], [r[0] for r in rows if r[1] not in covered]


def quiz(data: Path) -> list[str]:
    lines = (data / "eval/triviaqa_sm_sub.jsonl").read_text(encoding="utf-8").strip().split("\n")
    return [json.loads(line)["context"].split("\n")[0].removeprefix("Question: ") for line in lines]


def said(name: str, hits: list[bool]) -> None:
    figure = mean_of([float(hit) for hit in hits])
    print(
        f"{name:52} {100 * figure.value:5.1f} % ({100 * figure.low:.1f} to {100 * figure.high:.1f},"
        f" n {figure.n})",
        flush=True,
    )


def best_border(inside: np.ndarray, outside: np.ndarray) -> float:
    """The border with the highest mean of questions answered inside and refused outside."""
    borders = np.unique(np.concatenate([inside, outside]))
    worth = [(inside >= b).mean() + (outside < b).mean() for b in borders]
    return float(borders[int(np.argmax(worth))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--questions", type=int, default=150, help="that the model answers; 0 looks up only"
    )
    parser.add_argument("--retrieval", type=int, default=1000, help="that are only looked up")
    args = parser.parse_args()
    example = runpy.run_path(str(EXAMPLE))
    embedder = gptjax.load("minilm")
    embed, ask = embedder.embed, None
    if args.questions:
        ask = example["local"](gptjax.load("smollm2"))
    assistant = example["open_assistant"](ask, embedder.tokenizer, embed)
    intents = [set(entry["intents"]) for entry in assistant.entries]
    covered = set().union(*intents)

    def scores(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        terms = np.stack([term_scores(assistant.index, text) for text in texts])
        return terms, embed(texts, 32) @ assistant.index.vectors.T

    train, lacking = questions(args.data, "train", covered)
    others = quiz(args.data)
    sets = [[q for q, _ in train[: args.retrieval]], lacking[:200] + others[:200]]
    (inside_terms, inside_similar), (outside_terms, outside_similar) = map(scores, sets)
    border = best_border(inside_similar.max(1), outside_similar.max(1))
    plain = best_border(inside_terms.max(1), outside_terms.max(1))
    print(f"borders chosen on training questions: similarity {border:.3f}, BM25 {plain:.2f}")

    test, lacking = questions(args.data, "test", covered)
    asked = test[: args.retrieval]
    terms, similar = scores([q for q, _ in asked])
    both = np.stack([fused(pair) for pair in zip(terms, similar, strict=True)])
    for name, found in (("BM25", terms), ("fused", both), ("MiniLM", similar)):
        right = [label in intents[i] for i, (_, label) in zip(found.argmax(1), asked, strict=True)]
        said(f"first passage is right, {name}", right)
    three = [
        any(label in intents[i] for i in np.argsort(-row)[:3])
        for row, (_, label) in zip(similar, asked, strict=True)
    ]
    said("one of the first three is right, MiniLM", three)
    said("answered (not refused), by BM25", (terms.max(1) >= plain).tolist())
    said("answered (not refused), by similarity", (similar.max(1) >= border).tolist())
    for name, texts in (("bank", lacking[:400]), ("quiz", others[200:1200])):
        outside = scores(texts)
        said(f"refused, {name}, by BM25", (outside[0].max(1) < plain).tolist())
        said(f"refused, {name}, by similarity", (outside[1].max(1) < border).tolist())

    if not args.questions:
        return
    assistant, started = assistant._replace(least=border), time.monotonic()
    answers = [example["reply"](assistant, q) for q, _ in asked[: args.questions]]
    seconds = (time.monotonic() - started) / len(answers)
    labels = [label for _, label in asked[: args.questions]]
    known = [(one, label) for one, label in zip(answers, labels, strict=True) if one.cited]
    first = [label in intents[i] for i, label in zip(terms.argmax(1), labels, strict=False)]
    print(f"{seconds:.1f} s an answer; {len(answers) - len(known)} of {len(answers)} refused")
    said("baseline: best BM25 passage copied is right", first)
    said(
        "answer cites the right passage, of all",
        [
            any(label in intents[i] for i in a.cited)
            for a, label in zip(answers, labels, strict=True)
        ],
    )
    said(
        "first citation is right, of those answered",
        [label in intents[a.cited[0]] for a, label in known],
    )
    said(
        "the first passage given is right, of those answered",
        [label in intents[a.passages[0]] for a, label in known],
    )
    said("all citations exist", [set(a.cited) <= set(a.passages) for a, _ in known])
    for (question, _), answer in list(zip(asked, answers, strict=False))[:8]:
        print(f"  {question}\n    {answer.text}")


if __name__ == "__main__":
    main()
