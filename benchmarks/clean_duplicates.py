r"""Recall of planted duplicates in books, false merges, and the memory and speed of `gptjax clean`.

    python benchmarks/clean_duplicates.py --data ../shared/data/books/books.jsonl.gz
    python benchmarks/clean_duplicates.py --data … --unit paragraphs
    python benchmarks/clean_duplicates.py --memory 10000 100000 1000000
    python benchmarks/clean_duplicates.py --data … --speed        on a quiet machine

Books are cut into pages of about 300 words, or into paragraphs of 50 words or more. Copies of some
are put at random places after them:

    exact       the same text
    spelling    the same words in upper case, with other white space and punctuation
    scattered   2 % of the words replaced, anywhere (Jaccard similarity of 5-grams about 0.82)
    80 %        one run of words replaced, so that the similarity is 0.80
    a fifth     a fifth of the words replaced in one run (similarity about 0.65)

A copy counts as found if it is dropped for its original. Every other record that is dropped is a
merge that nobody planted: all are printed with both texts, to be looked at.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from gptjax.clean import Cleaning, Job, clean_source  # noqa: E402
from gptjax.clean.minhash import compared_words, jaccard, ngram_hashes  # noqa: E402
from gptjax.data import Text  # noqa: E402
from gptjax.data.cleaning import Normalise, Pii, Quality  # noqa: E402

KINDS = ("exact", "spelling", "scattered", "80 %", "a fifth")
DUPLICATES = Cleaning(
    normalise=Normalise(mojibake=False), quality=Quality(rules=()), pii=Pii(types=())
)


def units(path: Path, unit: str) -> list[str]:
    """Pages or paragraphs of books."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            page: list[str] = []
            for paragraph in re.split(r"\n\s*\n", json.loads(line)["text"]):
                if unit == "paragraphs":
                    found += [paragraph] if len(paragraph.split()) >= 50 else []
                    continue
                page.append(paragraph)
                if sum(len(part.split()) for part in page) >= 300:
                    found.append("\n\n".join(page))
                    page = []
    return found


def changed(text: str, kind: str, draw: random.Random, other: list[str]) -> str:
    """A copy of a kind; replaced words are those of other pages."""
    words = text.split()
    if kind == "exact":
        return text
    if kind == "spelling":
        return "  ".join(words).upper().replace(",", " ;")
    if kind == "scattered":
        for at in draw.sample(range(len(words)), max(1, len(words) // 50)):
            words[at] = draw.choice(other)
        return " ".join(words)
    share = 0.2 if kind == "a fifth" else 1 / 9
    count = max(1, round(share * len(words)) - (0 if kind == "a fifth" else 4))
    at = draw.randrange(len(words) - count)
    start = draw.randrange(len(other) - count)
    return " ".join([*words[:at], *other[start : start + count], *words[at + count :]])


def planted(options: argparse.Namespace) -> None:
    """Prints recall by kind and all merges that were not planted."""
    draw = random.Random(options.seed)
    texts = units(options.data, options.unit)
    pool = " ".join(draw.sample(texts, 50)).split()
    chosen = draw.sample(range(len(texts)), options.copies * len(KINDS))
    copies = []
    for number, original in enumerate(chosen):
        kind = KINDS[number % len(KINDS)]
        copies.append((kind, original, changed(texts[original], kind, draw, pool)))
    draw.shuffle(copies)
    rows = [*texts, *(text for _, _, text in copies)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "books.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        clean_source(Job(Text(path=str(file)), DUPLICATES), Path(folder) / "out")
        gone = {
            int(one["place"].split(":")[1]) - 1: int(str(one["value"]).split(":")[1]) - 1
            for one in map(
                json.loads, (Path(folder) / "out/dropped.jsonl").read_text().splitlines()
            )
            if one["stage"] in ("exact", "near")
        }
    found, total, similar = Counter(), Counter(), dict.fromkeys(KINDS, 0.0)
    for at, (kind, original, text) in enumerate(copies, len(texts)):
        total[kind] += 1
        found[kind] += gone.pop(at, -1) == original
        similar[kind] += similarity(texts[original], text)
    print(f"{len(texts):,} {options.unit}, {len(copies):,} copies\n")
    print("| copy | planted | mean similarity | found |\n|---|---|---|---|")
    for kind in KINDS:
        share = found[kind] / total[kind]
        print(f"| {kind} | {total[kind]} | {similar[kind] / total[kind]:.2f} | {share:.1%} |")
    print(f"\n{len(gone)} records were dropped that nobody planted")
    for this, first in sorted(gone.items()):
        print(f"\n--- {this} for {first}: {similarity(rows[this], rows[first]):.2f}")
        print(f"{rows[this][:400]!r}\n{rows[first][:400]!r}")


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the sets of 5-grams."""
    return jaccard(*(ngram_hashes(compared_words(text), 5) for text in (a, b)))


def memory(counts: list[int]) -> None:
    """Prints the most memory of one process that cleans so many short documents."""
    vocabulary = [f"w{n:x}" for n in range(20_000)]
    peaks = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            draw, file = random.Random(count), Path(folder) / "short.jsonl"
            with file.open("w") as stream:
                for _ in range(count):
                    text = " ".join(draw.choices(vocabulary, k=20))
                    stream.write(f'{{"text": "{text}"}}\n')
            begun = time.monotonic()
            command = [sys.executable, __file__, "--one", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[count] = int(done.stdout.split()[-1])
            print(
                f"{count:>9,} documents: {peaks[count] / 2**20:6.1f} MiB at most,"
                f" {file.stat().st_size / 1e6:.1f} MB, {time.monotonic() - begun:.0f} s"
            )
    small, *_, large = counts
    growth = (peaks[large] - peaks[small]) / (large - small) * 1e6
    print(f"growth from {small:,} to {large:,}: {growth / 2**20:.1f} MiB per million documents")


def one(path: Path) -> None:
    """Cleans a file in this process and prints its peak of memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        clean_source(Job(Text(path=str(path)), DUPLICATES), Path(folder) / "out", processes=1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def speed(path: Path) -> None:
    """Prints megabytes a second of each set of stages, in one process and on all cores."""
    every = Cleaning(quality=Quality())
    cores = len(os.sched_getaffinity(0))
    with gzip.open(path, "rb") as stream:
        size = sum(map(len, stream))
    for name, settings in (("all defaults", every), ("duplicates alone", DUPLICATES)):
        for processes in (1, cores):
            with tempfile.TemporaryDirectory() as folder:
                begun = time.monotonic()
                job = Job(Text(path=str(path)), settings)
                clean_source(job, Path(folder) / "out", processes=processes)
                seconds = time.monotonic() - begun
            print(f"{name}, {processes} processes: {size / seconds / 1e6:.2f} MB/s")


def main() -> None:
    """Prints one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--unit", choices=("pages", "paragraphs"), default="pages")
    parser.add_argument("--copies", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, nargs="+")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one)
    elif options.memory:
        memory(options.memory)
    elif options.speed:
        speed(options.data)
    else:
        planted(options)


if __name__ == "__main__":
    main()
