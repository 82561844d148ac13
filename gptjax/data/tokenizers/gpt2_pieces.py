"""GPT-2's byte-level pieces, from its vocabulary files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptjax.core.config import require
from gptjax.data.tokenizers.spelling import Table, at_newlines, in_chunks, letters


@dataclass(frozen=True)
class GPT2:
    """GPT-2's byte-level pieces, from its vocabulary files."""

    path: str
    """A folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, or tokenizer.json."""


END = "<|endoftext|>"


def read(folder: Path) -> dict[str, bytes]:
    """Gives vocabulary and merges in one canonical form, whichever files hold them."""
    need = (
        "give a folder with encoder.json and vocab.bpe, or vocab.json and merges.txt, or"
        " tokenizer.json: --data.tokenizer.path DIR"
    )
    forms = [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"), ("tokenizer.json",)]
    form = next(
        (names for names in forms if all((folder / name).is_file() for name in names)), None
    )
    require(form is not None, f"{folder} has no GPT-2 vocabulary; {need}.")
    try:
        described = json.loads((folder / form[0]).read_bytes())
        if len(form) == 2:
            lines = (folder / form[1]).read_text(encoding="utf-8").split("\n")
            vocabulary, merges = (
                described,
                [
                    tuple(line.split(" "))
                    for line in lines
                    if line and not line.startswith("#version")
                ],
            )
        else:
            model, cut = described["model"], described["pre_tokenizer"]
            extra = [
                t["content"] for t in described.get("added_tokens", []) if t["content"] != END
            ] + [described.get("normalizer")]
            same = cut["type"] == "ByteLevel" and not cut["add_prefix_space"] and not any(extra)
            require(same, f"{folder} has a tokenizer.json of another kind than GPT-2's; {need}.")
            vocabulary, merges = (
                model["vocab"],
                [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]],
            )
        by_id, known = sorted(vocabulary.items(), key=lambda item: item[1]), set(letters())
        good = [i for _, i in by_id] == list(range(len(by_id))) and known <= set(vocabulary)
        good = good and all(known.issuperset(piece) for piece in vocabulary if piece != END)
        good = good and all(
            len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys() for pair in merges
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    require(good, f"{folder / form[0]} and its merges are not a GPT-2 vocabulary; {need}.")
    text = "".join(f"{left} {right}\n" for left, right in merges)
    return {
        "vocab.json": json.dumps(dict(by_id)).encode(),
        "merges.txt": f"#version: 0.2\n{text}".encode(),
    }


def load(payload: Mapping[str, bytes], name: str) -> Table:
    """Gives the tokenizer of what `read` gave."""
    import tokenizers

    vocabulary = json.loads(payload["vocab.json"])
    merges = [tuple(line.split(" ")) for line in payload["merges.txt"].decode().split("\n")[1:-1]]
    # No token is registered as special, so `<|endoftext|>` in a text is spelled like any other
    # word.
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    of = letters()
    pieces = tuple(b"" if piece == END else bytes(of[c] for c in piece) for piece in vocabulary)

    def spell(texts: list[str]) -> list[list[int]]:
        return [e.ids for e in model.encode_batch_fast(texts, add_special_tokens=False)]

    return Table(
        "GPT2",
        pieces,
        vocabulary.get(END),
        payload,
        lambda texts: in_chunks(texts, spell, lambda t: list(at_newlines(t))),
    )
