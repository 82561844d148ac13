"""Makes pairs of misspelled and right words from a list of misspellings, and more of them from the
words of books.

    python examples/spelling_pairs.py pairs.txt books.jsonl.gz data

Lines of the list are `misspelled->right`; those with several corrections, spaces or capitals are
left out. `spelling_test.tsv` has the misspellings of a tenth of the right words,
`spelling_train.tsv` those of the others, and two made ones of each word that the books write twice
or more: a letter is lost, doubled, replaced or added, or two neighbours change places. The books
are also the dictionary of the baseline in `benchmarks/correct.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

Pair = tuple[str, str]
LETTERS = string.ascii_lowercase


def listed(lines: Iterable[str]) -> Iterator[Pair]:
    """Yields the misspellings of a list that have one correction, with it."""
    for line in lines:
        if found := re.fullmatch(r"([a-z]+)->([a-z]+)\s*", line):
            yield found[1], found[2]


def is_held_out(word: str) -> bool:
    """Whether a right word belongs to the test, by its hash."""
    return hashlib.sha256(word.encode()).digest()[0] % 10 == 0


def word_counts(books: str) -> Counter[str]:
    """How often the books write each word of small letters; each line of the file has a `text`."""
    counts: Counter[str] = Counter()
    with gzip.open(books, "rt", encoding="utf-8") as lines:
        for line in lines:
            counts.update(re.findall(r"\b[a-z]+\b", json.loads(line)["text"]))
    return counts


def misspelled(word: str, draw: random.Random) -> str:
    """The word with one mistake."""
    at = draw.randrange(len(word))
    before, letter, after = word[:at], word[at], word[at + 1 :]
    other = draw.choice(LETTERS)
    return draw.choice(
        (
            before + after,
            before + letter * 2 + after,
            before + other + after,
            before + other + letter + after,
            before + after[:1] + letter + after[1:],
        )
    )


def made(counts: Counter[str], draw: random.Random) -> Iterator[Pair]:
    """Yields two misspellings of each word of four letters or more that occurs twice or more."""
    for word in sorted(word for word, count in counts.items() if count > 1 and len(word) > 3):
        for wrong in {misspelled(word, draw) for _ in range(2)}:
            if wrong != word and wrong not in counts:
                yield wrong, word


def main(pairs: str, books: str, folder: str) -> None:
    """Writes both files."""
    with open(pairs, encoding="utf-8") as lines:
        known = list(listed(lines))
    train = [pair for pair in known if not is_held_out(pair[1])]
    train += made(word_counts(books), random.Random(0))
    parts = {"train": train, "test": [pair for pair in known if is_held_out(pair[1])]}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for part, chosen in parts.items():
        file = Path(folder) / f"spelling_{part}.tsv"
        file.write_text("".join(f"{wrong}\t{right}\n" for wrong, right in chosen))
        print(f"{len(chosen):,} pairs in {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
