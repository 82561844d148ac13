"""Writes two generated sets to learn preferences from: sorted digits, and sums in three manners.

    python examples/toy_sets.py data

`sorted_pairs.jsonl`: 4,000 pairs; the chosen answer has the digits of the prompt in order, in the
rejected one two neighbours are swapped. `toy_chats.jsonl`: 3,000 conversations, in which an
assistant adds two digits and is friendly, curt or rude, a third each.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

MANNERS = ("It is {}, my friend.", "{}.", "{}, as anyone knows!")


def sorted_pair(draw: random.Random) -> dict[str, str]:
    """A pair over five different digits."""
    digits = draw.sample("0123456789", 5)
    right = sorted(digits)
    wrong, at = list(right), draw.randrange(4)
    wrong[at], wrong[at + 1] = wrong[at + 1], wrong[at]
    return {"prompt": "".join(digits) + ">", "chosen": "".join(right), "rejected": "".join(wrong)}


def question(draw: random.Random) -> tuple[str, int]:
    """A sum of two digits, and its value."""
    a, b = draw.randrange(10), draw.randrange(10)
    return f"What is {a} and {b}?", a + b


def talk(draw: random.Random) -> dict[str, list[dict[str, str]]]:
    """A question with an answer in one of three manners."""
    asked, value = question(draw)
    said = draw.choice(MANNERS).format(value)
    roles = {"user": asked, "assistant": said}
    return {"messages": [{"role": role, "content": text} for role, text in roles.items()]}


def main(folder: str) -> None:
    """Writes both files."""
    draw = random.Random(0)
    for name, make, count in (
        ("sorted_pairs", sorted_pair, 4000),
        ("toy_chats", talk, 3000),
    ):
        file = Path(folder) / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(make(draw)) + "\n" for _ in range(count)))
        print(f"{count:,} records in {file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
