"""What a tokenizer.json puts before and after a single text: `marks_around`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Around = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids before a text, and ids after it."""


def marks_around(described: Mapping[str, Any]) -> Around:
    """Returns what the post-processor of a tokenizer.json adds to a text; nothing where it has none
    of a known form.

    The forms are those of the `tokenizers` library: a template, the pairs of BERT and RoBERTa, and
    sequences of such.
    """
    before: list[int] = []
    after: list[int] = []
    for part in _processors(described.get("post_processor")):
        match part:
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": cls, "sep": sep}:
                before, after = [cls[1], *before], [*after, sep[1]]
            case {"type": "TemplateProcessing", "single": list(single), "special_tokens": known}:
                seen = False
                for piece in single:
                    seen = seen or "Sequence" in piece
                    named = piece.get("SpecialToken", {}).get("id")
                    ids = [] if named is None else known[named]["ids"]
                    (after if seen else before).extend(ids)
    return tuple(before), tuple(after)


def _processors(part: Any) -> list[Any]:
    """A post-processor, or those of a sequence."""
    inner = part.get("processors") if isinstance(part, dict) else None
    return [one for each in inner for one in _processors(each)] if inner else [part]
