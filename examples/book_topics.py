"""Makes a labelled set of texts from books: which book a paragraph is from, names struck out.

    python examples/book_topics.py books.jsonl.gz data

Each line of the file is a chapter: `work` and `text`. `topics_train.tsv` has at most 250 paragraphs
of each book, `topics_test.tsv` at most 60: the first 400 characters of those that have 200 or more.
Chapters are divided, so that none is in both. Words that the books write with a capital letter
alone, most of them names, become `X`: a title would be too easy to tell by its heroes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

WORD = re.compile(r"[^\W\d_]+(?:’[^\W\d_]+)?")
MOST = {"train": 250, "test": 60}
"""Paragraphs of each book."""


def names(texts: Iterable[str]) -> set[str]:
    """Words, in lower case, that are never written without a capital letter; I is none."""
    small, large = set(), set()
    for text in texts:
        for word in WORD.findall(text):
            (large if word[0].isupper() else small).add(word.lower())
    return {word for word in large - small if word != "i" and not word.startswith("i’")}


def struck(text: str, known: set[str]) -> str:
    """The text on one line, with X in place of names."""
    line = " ".join(text.split())
    return WORD.sub(lambda found: "X" if found[0].lower() in known else found[0], line)


def part_of(work: str, chapter: int) -> str:
    """Where a chapter belongs, by a hash: a fifth of them is held out."""
    digest = hashlib.sha256(f"{work} {chapter}".encode()).digest()
    return "test" if digest[0] % 5 == 0 else "train"


def labelled(chapters: list[dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yields part, paragraph and book, the paragraphs of a book in an order of their hash."""
    known = names(one["text"] for one in chapters)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    numbers: dict[str, int] = defaultdict(int)
    for one in chapters:
        numbers[one["work"]] += 1
        part = part_of(one["work"], numbers[one["work"]])
        for paragraph in one["text"].split("\n\n"):
            if len(paragraph) >= 200:
                found[part, one["work"]].append(struck(paragraph[:400], known))
    for (part, work), paragraphs in sorted(found.items()):
        unique = sorted(set(paragraphs), key=lambda text: hashlib.sha256(text.encode()).digest())
        for paragraph in unique[: MOST[part]]:
            yield part, paragraph, work


def main(books: str, folder: str) -> None:
    """Writes both files."""
    opened = gzip.open if books.endswith(".gz") else open
    with opened(books, "rt", encoding="utf-8") as lines:
        made = list(labelled([json.loads(line) for line in lines]))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for part in MOST:
        rows = [f"{text}\t{work}\n" for where, text, work in made if where == part]
        file = Path(folder) / f"topics_{part}.tsv"
        file.write_text("".join(rows), encoding="utf-8")
        print(f"{len(rows):,} paragraphs in {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
