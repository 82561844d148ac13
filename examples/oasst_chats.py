"""Writes conversations for `Conversations` from trees of OpenAssistant (`oasst1_*_trees.jsonl`):
one for each reply to a prompt, followed along the replies that people ranked best.

    python examples/oasst_chats.py oasst_trees.jsonl chats.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROLES = {"prompter": "user", "assistant": "assistant"}


def conversations(tree: dict[str, Any]) -> Iterator[list[dict[str, str]]]:
    """Yields the messages of each conversation of a tree, up to the last answer."""
    prompt = tree["prompt"]
    for reply in prompt["replies"]:
        chain = [prompt, reply]
        while replies := chain[-1]["replies"]:
            ranks = [99 if r.get("rank") is None else r["rank"] for r in replies]
            chain.append(replies[ranks.index(min(ranks))])
        if chain[-1]["role"] == "prompter":
            chain.pop()
        yield [{"role": ROLES[one["role"]], "content": one["text"]} for one in chain]


def main(trees: str, out: str) -> None:
    """Converts a file of trees, one in each line."""
    lines = Path(trees).read_text(encoding="utf-8").splitlines()
    made = [
        json.dumps({"messages": messages}, ensure_ascii=False)
        for line in lines
        for messages in conversations(json.loads(line))
    ]
    Path(out).write_text("\n".join(made) + "\n", encoding="utf-8")
    print(f"{len(made)} conversations from {len(lines)} trees in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
