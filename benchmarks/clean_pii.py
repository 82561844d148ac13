r"""Recall and precision of PII scrubbing by type, on labelled sentences and on books.

    python benchmarks/clean_pii.py                     the half that was held out from tuning
    python benchmarks/clean_pii.py --half open --show  the other half, with every mistake
    python benchmarks/clean_pii.py --books ../shared/data/books/books.jsonl.gz

A piece is found if exactly its characters are replaced, by its type. Precision counts everything
that is replaced in any sentence. The sentences are drawn by `tests/pii_items.py`, which says how
the halves are parted; `--seed` draws other numbers and names for the same forms.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pii_items import Labelled, pii_items  # noqa: E402

from gptjax.clean.pii import Finder, find_pii, pii_finders  # noqa: E402
from gptjax.data.cleaning import Pii  # noqa: E402

TYPES = ("email", "phone", "card", "iban", "ip", "secret")


def counted(items: list[Labelled], finders: dict[str, Finder]) -> tuple[dict, list[str]]:
    """Returns right, labelled and found pieces by type, and the sentences with a mistake."""
    counts = {name: Counter() for name in TYPES}
    mistakes = []
    for item in items:
        found = {tuple(span) for span in find_pii(item.text, finders)}
        labelled = set(item.spans)
        for _, _, name in labelled:
            counts[name]["labelled"] += 1
        for _, _, name in found:
            counts[name]["found"] += 1
        for _, _, name in found & labelled:
            counts[name]["right"] += 1
        if found != labelled:
            pieces = [f"{n} {item.text[b:e]!r}" for b, e, n in sorted(found)]
            mistakes.append(f"{item.form}: {item.text!r} → {', '.join(pieces) or 'nothing'}")
    return counts, mistakes


def table(counts: dict) -> str:
    """The figures as a table."""
    total: Counter = sum(counts.values(), Counter())
    lines = [
        "| type | labelled | found | right | recall | precision |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in [*counts.items(), ("all", total)]:
        recall = one["right"] / max(1, one["labelled"])
        precision = one["right"] / max(1, one["found"])
        lines.append(
            f"| {name} | {one['labelled']} | {one['found']} | {one['right']} | {recall:.1%} |"
            f" {precision:.1%} |"
        )
    return "\n".join(lines)


def in_books(path: Path, finders: dict[str, Finder], show: bool) -> str:
    """What is replaced in text without PII, per million characters."""
    characters, found = 0, Counter()
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            text = json.loads(line)["text"]
            characters += len(text)
            for span in find_pii(text, finders):
                found[span.type] += 1
                if show:
                    context = text[max(0, span.begin - 40) : span.end + 40]
                    print(f"  {span.type} {text[span.begin : span.end]!r} in {context!r}")
    rate = sum(found.values()) / characters * 1e6
    return f"{characters:,} characters: {dict(found)}, {rate:.2f} per million"


def main() -> None:
    """Prints the table, or the rate in books."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--half", choices=("held out", "open", "both"), default="held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=4, help="sentences of each form")
    parser.add_argument("--show", action="store_true", help="print every mistake")
    parser.add_argument("--books", type=Path, help="text without PII, gzipped JSON lines")
    options = parser.parse_args()
    finders = pii_finders(Pii())
    if options.books:
        print(in_books(options.books, finders, options.show))
        return
    items = [
        item
        for item in pii_items(options.seed, options.each)
        if options.half == "both" or item.held_out == (options.half == "held out")
    ]
    counts, mistakes = counted(items, finders)
    if options.show:
        print("\n".join(mistakes))
    without = sum(not item.spans for item in items)
    print(f"{len(items)} sentences, {without} without PII ({options.half})\n\n{table(counts)}")


if __name__ == "__main__":
    main()
