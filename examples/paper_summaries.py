"""Makes prompts and answers of abstracts of papers: their one-line summaries, or their keywords.

    python examples/paper_summaries.py summaries train.jsonl summaries.jsonl
    python examples/paper_summaries.py keywords train.jsonl keywords.jsonl

Each line of the file is a paper: `source`, the sentences of its abstract, and `target`, its
summaries by authors and readers (SciTLDR). The first summary is the answer. Keywords are the words
of the abstract, in their order there, that a summary uses too, without those that a tenth of all
abstracts or more have: nobody has chosen them, so they say what a summary is about and no more.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ASKED = {"summaries": "\n\nTL;DR:", "keywords": "\n\nKeywords:"}
"""What stands between an abstract and its answer."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, each once, in their order; hyphens join."""
    return list(dict.fromkeys(re.findall(r"[a-z][a-z-]{2,}", text.lower())))


def abstract_of(paper: Mapping[str, Any]) -> str:
    """The text of an abstract."""
    return " ".join(sentence.strip() for sentence in paper["source"])


def common_words(papers: Iterable[Mapping[str, Any]], share: float = 0.1) -> set[str]:
    """Words that at least this share of the abstracts have."""
    counts, total = Counter(), 0
    for paper in papers:
        counts.update(words(abstract_of(paper)))
        total += 1
    return {word for word, count in counts.items() if count >= share * total}


def keywords_of(paper: Mapping[str, Any], common: set[str]) -> list[str]:
    """The words of an abstract that one of its summaries uses too, without common ones."""
    used = {word for summary in paper["target"] for word in words(summary)}
    return [word for word in words(abstract_of(paper)) if word in used - common]


def records(papers: list[dict[str, Any]], kind: str) -> Iterator[dict[str, str]]:
    """Yields prompt and completion of each paper that has an answer."""
    common = common_words(papers) if kind == "keywords" else set()
    for paper in papers:
        answer = paper["target"][0].strip()
        if kind == "keywords":
            answer = ", ".join(keywords_of(paper, common))
        if answer:
            yield {"prompt": abstract_of(paper) + ASKED[kind], "completion": f" {answer}"}


def read_papers(path: str | Path) -> list[dict[str, Any]]:
    """The papers of a file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main(kind: str, papers: str, out: str) -> None:
    """Writes a file of one kind."""
    made = list(records(read_papers(papers), kind))
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
    Path(out).write_text(text, encoding="utf-8")
    print(f"{len(made):,} records in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
