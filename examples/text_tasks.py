"""Makes three small tasks of the end of a text, for a run over its beginning to watch.

    python examples/text_tasks.py data/tinyshakespeare/input.txt tasks 0.1
    gptjax train configs/shakespeare_char.py --data.tokenizer.end-of-document True \
        --evaluation.tasks.files tasks/line_end.jsonl tasks/word_order.jsonl tasks/spelling.jsonl

`line_end.jsonl`: the first half of a line, and which of four halves of about one length ends it.
`word_order.jsonl`: a line, and the same with two neighbouring words swapped. `spelling.jsonl`: a
line, and the same with two neighbouring letters swapped. The share is that of `data.validation`,
which holds out as much of the end of a text.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LENGTHS = range(24, 57)
"""Characters of a line that is used: it fits into a short context."""
ITEMS = 200
"""Of each task."""

Record = dict[str, Any]


def line_end(lines: list[str], draw: random.Random) -> Iterator[Record]:
    """Yields the first half of a line, and four halves of which one ends it."""
    halves = []
    for line in lines:
        words = line.split()
        halves.append((" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])))
    ends = sorted({end for _, end in halves})
    draw.shuffle(ends)
    for begin, end in halves:
        others = sorted(ends, key=lambda one: abs(len(one) - len(end)))
        choices = [end, *draw.sample([one for one in others[:30] if one != end], 3)]
        draw.shuffle(choices)
        yield {"query": begin, "choices": choices, "gold": choices.index(end)}


def word_order(lines: list[str], draw: random.Random) -> Iterator[Record]:
    """Yields a line, and the same with two neighbouring words swapped."""
    for line in lines:
        words = line.split()
        places = [n for n in range(len(words) - 1) if words[n] != words[n + 1]]
        if places:
            at = draw.choice(places)
            words[at], words[at + 1] = words[at + 1], words[at]
            yield {"good": " ".join(line.split()), "bad": " ".join(words)}


def spelling(lines: list[str], draw: random.Random) -> Iterator[Record]:
    """Yields a line, and the same with two neighbouring letters of a word swapped."""
    for line in lines:
        places = [
            n
            for n in range(len(line) - 1)
            if line[n].isalpha()
            and line[n + 1].isalpha()
            and line[n].lower() != line[n + 1].lower()
        ]
        at = draw.choice(places)
        yield {"good": line, "bad": line[:at] + line[at + 1] + line[at] + line[at + 2 :]}


def main(text: str, folder: str, share: str = "0.1") -> None:
    """Writes the three files."""
    whole = Path(text).read_text(encoding="utf-8")
    end = whole[round(len(whole) * (1 - float(share))) :]
    lines = [line.strip() for line in end.splitlines()[1:]]  # the first may be half a line
    lines = [line for line in dict.fromkeys(lines) if len(line) in LENGTHS and line.count(" ") >= 3]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for make in (line_end, word_order, spelling):
        draw = random.Random(make.__name__)
        records = list(make(lines, draw))
        records = draw.sample(records, min(ITEMS, len(records)))
        written = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        Path(folder, f"{make.__name__}.jsonl").write_text(written, encoding="utf-8")
        print(f"{folder}/{make.__name__}.jsonl: {len(records)} records")


if __name__ == "__main__":
    main(*sys.argv[1:])
