"""ROUGE of one-line summaries of papers, against a sentence of the abstract itself.

    python benchmarks/summarise.py dev.jsonl --models smollm2 runs/summaries_smollm2

Each line of the file is a paper of SciTLDR: `source`, the sentences of the abstract, and `target`,
its summaries; of each figure the best over these counts. Baselines are the first sentence, one at
random, and, as a bound of what picking a sentence can reach, the one with the best ROUGE-1. A
model continues the abstract after `TL;DR:` greedily, and its first line that is not empty counts;
with `--chat` the first model is asked in a conversation too. The first `--limit` papers are judged.
Needs `pip install -e '.[benchmark]'`.

Source: Cachola et al. 2020, TLDR, arXiv:2004.15011; Lin 2004, ROUGE, with rouge-score's stemming.
"""

from __future__ import annotations

import argparse
import random
import runpy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gptjax
from gptjax.evaluate.figure import mean_of
from gptjax.evaluate.figures.written import rouge_scores

PAPERS = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "paper_summaries.py"))
ASKED = "Summarise this abstract in one sentence of at most 25 words.\n\n"


def said(name: str, written: Sequence[str], papers: Sequence[dict[str, Any]]) -> None:
    """Prints the means of all three figures with their intervals."""
    scores = [
        rouge_scores(text, paper["target"]) for text, paper in zip(written, papers, strict=True)
    ]
    parts = []
    for key, short in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L")):
        found = mean_of([100 * score[key] for score in scores])
        parts.append(f"{short} {found.value:.1f} ({found.low:.1f} to {found.high:.1f})")
    words = sum(len(text.split()) for text in written) / len(written)
    print(f"{name}: {', '.join(parts)}; {words:.0f} words", flush=True)


def best_sentence(paper: dict[str, Any]) -> str:
    """The sentence of an abstract that is most like a summary of it."""
    return max(
        paper["source"], key=lambda sentence: rouge_scores(sentence, paper["target"])["rouge1"]
    )


def first_line(text: str) -> str:
    """The first line of a text that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def written_by(path: str, papers: Sequence[dict[str, Any]], *, chat: bool) -> list[str]:
    """What a model makes of each abstract."""
    model = gptjax.load(path).prepared()
    abstracts = [PAPERS["abstract_of"](paper) for paper in papers]
    settings = {"temperature": 0.0, "new_tokens": 60}
    if chat:
        asked = [[("user", ASKED + text)] for text in abstracts]
        return [first_line(model.chat(messages, **settings)) for messages in asked]
    prompts = [text + PAPERS["ASKED"]["summaries"] for text in abstracts]
    return [first_line(one.text) for one in model.complete(prompts, batch=8, **settings)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("papers", help="the file of papers that are held out")
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--chat", action="store_true", help="ask the first in a conversation too")
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    papers, draw = PAPERS["read_papers"](args.papers)[: args.limit], random.Random(0)
    said("first sentence", [paper["source"][0] for paper in papers], papers)
    said("a sentence at random", [draw.choice(paper["source"]) for paper in papers], papers)
    said("the best sentence", [best_sentence(paper) for paper in papers], papers)
    for number, path in enumerate(args.models):
        for chat in (False, True) if args.chat and not number else (False,):
            began = time.monotonic()
            written = written_by(path, papers, chat=chat)
            name = f"{path}{' in a conversation' if chat else ''}"
            said(f"{name} ({time.monotonic() - began:.0f} s)", written, papers)
            print(f"  {written[0]}")


if __name__ == "__main__":
    main()
