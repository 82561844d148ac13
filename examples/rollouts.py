"""Makes training data of the answers that a run wrote while it learned from rewards
(`rollouts.jsonl`): the right ones, or of each prompt the best against the worst.

    python examples/rollouts.py right runs/grpo_sums/rollouts.jsonl right.jsonl
    python examples/rollouts.py pairs runs/grpo_sums/rollouts.jsonl pairs.jsonl

The first file is for `Conversations`, the second one for `Comparisons`. Answers that are empty, not
judged or cut short are left out, since both would learn an end that the model did not write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def usable(lines: Iterable[str]) -> Iterator[Answer]:
    """Yields the answers that can be learned from, each of them once."""
    seen = set()
    for line in lines:
        one = json.loads(line)
        said = json.dumps([one["prompt"], one["completion"]])
        text = one["completion"]
        text = text if isinstance(text, str) else text[-1]["content"]
        if one["finished"] and one["reward"] is not None and text.strip() and said not in seen:
            seen.add(said)
            yield one


def right(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Yields the right answers with their prompts."""
    for one in answers:
        if one["label"]:
            yield {"prompt": one["prompt"], "completion": one["completion"]}


def pairs(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Yields of each prompt the answer with the highest reward, and the one with the lowest, unless
    all have the same."""
    groups: dict[str, list[Answer]] = {}
    for one in answers:
        groups.setdefault(json.dumps(one["prompt"]), []).append(one)
    for group in groups.values():
        best, worst = (choose(group, key=lambda one: one["reward"]) for choose in (max, min))
        if best["reward"] > worst["reward"]:
            chosen, rejected = best["completion"], worst["completion"]
            yield {"prompt": best["prompt"], "chosen": chosen, "rejected": rejected}


def main(kind: str, rollouts: str, out: str) -> None:
    """Writes a file of one kind."""
    with open(rollouts, encoding="utf-8") as lines:
        made = list({"right": right, "pairs": pairs}[kind](usable(lines)))
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
    Path(out).write_text(text, encoding="utf-8")
    print(f"{len(made)} records in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
