"""Finds the paragraphs of your files that answer a question, and has a model answer from them.

    python examples/retrieval.py "How is a run resumed?" README.md docs/*.md
    python examples/retrieval.py "How is a run resumed?" README.md --embed minilm --model smollm2
    python examples/retrieval.py "Paketverwaltung?" handbuch.txt --compounds

Needs `pip install -e '.[retrieval]'`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gptjax
from gptjax.retrieve import (
    build_index,
    cited,
    citing_pattern,
    grounded_messages,
    search_passages,
    within_budget,
)


def paragraphs(paths: list[Path], least: int = 80) -> tuple[list[str], list[str]]:
    """The paragraphs of text files, and the file of each; short ones, such as headings, go with the
    next."""
    texts, places = [], []
    for path in paths:
        held = ""
        for part in path.read_text(encoding="utf-8").split("\n\n"):
            held = f"{held} {' '.join(part.split())}".strip()
            if len(held) >= least:
                texts.append(held)
                places.append(path.name)
                held = ""
        if held:
            texts.append(held)
            places.append(path.name)
    return texts, places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=3, help="passages to find")
    parser.add_argument("--compounds", action="store_true", help="split words made of others")
    parser.add_argument("--embed", help="a model whose embeddings are a second score: minilm")
    parser.add_argument("--model", help="a model that answers from the passages: smollm2")
    parser.add_argument("--budget", type=int, default=600, help="tokens of passages that it reads")
    args = parser.parse_args()
    embed = gptjax.load(args.embed).embed if args.embed else None
    texts, places = paragraphs(args.files)
    index = build_index(texts, embed, compounds=args.compounds)
    found = search_passages(index, args.question, args.count, embed)
    for number, one in enumerate(found, 1):
        print(f"[{number}] {places[one.number]}, BM25 {one.score:.1f}: {one.text[:200]}")
    if args.model and found:
        model = gptjax.load(args.model)
        read = within_budget([one.text for one in found], model.tokenizer, args.budget)
        messages = grounded_messages(args.question, read)
        answer = model.chat(
            messages, temperature=0.0, new_tokens=120, regex=citing_pattern(len(read))
        )
        print(
            answer,
            "· cites",
            ", ".join(places[found[n - 1].number] for n in cited(answer, len(read))),
        )


if __name__ == "__main__":
    main()
