"""Writes sequences of items that users with tastes visited, by a stated law: data for sequential
recommendation, one line a user, one character an item.

    python examples/visits.py data/visits.jsonl

There are 300 items in 12 genres of 25. A user likes two genres and goes from one to the other with
probability 0.4 at each step; one step in 20 is in any genre. Of a genre, users take its next item
after the last one that they took of it (probability 0.7; its first after its last), or any, the
popular ones more often (weight 1 / rank). So what comes next depends on the last item *of each
genre*, not on the last item alone. `likely` has the probabilities.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

GENRES, SIZE, USERS, STEPS = 12, 25, 4000, 28
STAYS, STRAYS, FOLLOWS = 0.6, 0.05, 0.7
FIRST = 0x4E00
"""The character of item 0."""
POPULAR = np.array([1 / (1 + rank) for rank in range(SIZE)])
POPULAR /= POPULAR.sum()


def in_genre(last: int | None) -> np.ndarray:
    """Probabilities of a genre's items after the last one that a user took of it."""
    if last is None:
        return POPULAR
    return (1 - FOLLOWS) * POPULAR + FOLLOWS * (np.arange(SIZE) == (last + 1) % SIZE)


def visits(draw: random.Random) -> list[int]:
    """The items of one user."""
    liked = draw.sample(range(GENRES), 2)
    last: dict[int, int] = {}
    now, items = 0, []
    for _ in range(STEPS):
        now = now if draw.random() < STAYS else 1 - now
        genre = draw.randrange(GENRES) if draw.random() < STRAYS else liked[now]
        item = draw.choices(range(SIZE), in_genre(last.get(genre)))[0]
        last[genre] = item
        items.append(genre * SIZE + item)
    return items


def likely(items: Sequence[int]) -> np.ndarray:
    """Probabilities of the next item [300] for one who knows the law and has to infer which two
    genres are liked: each pair of genres is weighed by how likely it makes the genres so far."""
    genres = [item // SIZE for item in items]
    last = {item // SIZE: item % SIZE for item in items}
    total, chances = 0.0, np.zeros(GENRES)
    for a in range(GENRES):
        for b in range(GENRES):
            if a == b:
                continue
            now, weight = np.array([1.0, 0.0]), 1.0  # the state before the first step is the first
            for seen in [*genres, None]:
                now = STAYS * now + (1 - STAYS) * now[::-1]
                if seen is not None:
                    now = now * (STRAYS / GENRES + (1 - STRAYS) * (np.array([a, b]) == seen))
                    weight *= now.sum()
                    now = now / now.sum()
            total += weight
            chances += weight * STRAYS / GENRES
            chances[[a, b]] += weight * (1 - STRAYS) * now
    chances /= total
    return np.concatenate([chances[g] * in_genre(last.get(g)) for g in range(GENRES)])


def main(path: str) -> None:
    """Writes the file."""
    draw = random.Random(0)
    lines = [
        json.dumps({"text": "".join(chr(FIRST + item) for item in visits(draw))})
        for _ in range(USERS)
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{USERS:,} users in {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
