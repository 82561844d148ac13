"""The canonical form of a tokenizer: tokenizer.json, as the `tokenizers` library reads it.

Every other form is converted to it: `byte_level` (vocabularies with merges), `joined_by_score`
(SentencePiece's BPE, GGUF, llama2.c), `of_model` (a SentencePiece .model), and `of_tokenizer`, any
of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gptjax.data.tokenizers import sentencepieces
from gptjax.data.tokenizers.sentencepieces import SPACE
from gptjax.data.tokenizers.spelling import Tokenizer, letters

END = "<|endoftext|>"
"""Name of the id that ends a document, in tokenizers that give it none."""
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts text before pieces are merged."""
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen 2 does."""


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    patterns: Sequence[str] = (GPT2_PATTERN,),
    *,
    composed: bool = False,
    whole_words: bool = False,
) -> dict[str, Any]:
    """Describes pieces of bytes, written in GPT-2's letters.

    Args:
      patterns: each cuts what the one before has left into matches and the rest.
      composed: compose Unicode (NFC) first.
      whole_words: a word that is a piece stays whole, whatever the merges say.
    """
    splits = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
            "ignore_merges": whole_words,
        },
    }


def joined_by_score(
    pieces: Sequence[str], scores: np.ndarray, joined: np.ndarray, unknown: int, prefix: bool
) -> dict[str, Any]:
    """Describes SentencePiece's kind of BPE, in which the pair is joined first whose union has the
    best score.

    Args:
      pieces: spaces are written as ▁, bytes as `<0x0A>`.
      joined: bool [pieces], true of those that are joined from others.
      unknown: id of the piece for what the others cannot spell.
      prefix: put a space before a text.

    Source: Kudo and Richardson 2018, SentencePiece, arXiv:1808.06226.
    """
    ids = {p: i for i, p in enumerate(pieces)}
    known = {pieces[i] for i in np.flatnonzero(joined).tolist()}
    merges = [
        (float(scores[ids[p]]), p[:k], p[k:])
        for p in known
        for k in range(1, len(p))
        if p[:k] in known and p[k:] in known
    ]
    merges.sort(key=lambda m: (-m[0], -len(m[1]), ids[m[1]], ids[m[2]]))
    model = {
        "type": "BPE",
        "vocab": ids,
        "merges": [[left, right] for _, left, right in merges],
        "unk_token": pieces[unknown],
        "fuse_unk": True,
        "byte_fallback": all(f"<0x{b:02X}>" in ids for b in range(256)),
    }
    return _with_spaces(model, prefix)


def of_model(content: bytes) -> dict[str, Any]:
    """Describes a SentencePiece .model, but for its normalisation."""
    model = sentencepieces.described(content)
    types, unknown = np.asarray(model.types), model.types.index(sentencepieces.UNKNOWN)
    if model.by_pairs:
        joined = types == sentencepieces.NORMAL
        scores = np.asarray(model.scores)
        made = joined_by_score(model.pieces, scores, joined, unknown, model.prefix)
    else:
        unigram = {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [list(pair) for pair in zip(model.pieces, model.scores, strict=True)],
            "byte_fallback": sentencepieces.BYTE in model.types,
        }
        made = _with_spaces(unigram, model.prefix)
    given = np.flatnonzero(types == sentencepieces.GIVEN).tolist()
    made["added_tokens"] = [
        added(unknown, model.pieces[unknown], special=True),
        *(added(i, model.pieces[i], special=False) for i in given),
    ]
    return made


def _with_spaces(model: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """A model whose pieces write spaces as ▁."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [*first, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def added(i: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    """Describes a token that is matched in texts before they are cut."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **plain, "special": special} | flags


def of_files(payload: Mapping[str, bytes]) -> dict[str, Any]:
    """Reads tokenizer.json, or GPT-2's vocab.json and merges.txt, which earlier runs keep."""
    if "tokenizer.json" in payload:
        return json.loads(payload["tokenizer.json"])
    vocabulary = json.loads(payload["vocab.json"])
    lines = payload["merges.txt"].decode().split("\n")[1:-1]
    described = byte_level(vocabulary, [line.split(" ") for line in lines])
    ends = [added(vocabulary[END], END, special=True)] if END in vocabulary else []
    return described | {"added_tokens": ends}


def of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes a tokenizer of any kind; of those made here, the id that ends a document also
    stands before each."""
    if tokenizer.special is not None and "tokenizer.json" in tokenizer.payload:
        return of_files(tokenizer.payload)
    if tokenizer.kind == "GPT2":
        described = of_files(tokenizer.payload)
    elif tokenizer.kind == "Bytes":
        spelled = {byte: letter for letter, byte in letters().items()}
        described = byte_level({spelled[i]: i for i in range(256)} | {END: 256}, (), ())
    elif tokenizer.kind == "Characters":
        vocabulary = {piece.decode() or END: i for i, piece in enumerate(tokenizer.pieces)}
        model = {"type": "BPE", "vocab": vocabulary, "merges": []}
        if tokenizer.unknown is not None:
            model["unk_token"] = tokenizer.pieces[tokenizer.unknown].decode()
        # Without a decoder the library puts spaces between tokens.
        described = {"version": "1.0", "decoder": {"type": "Fuse"}, "model": model}
    else:
        described = of_model(tokenizer.payload["tokenizer.model"])
    return described if tokenizer.special is not None else _ended(described, tokenizer)


def end_name(tokenizer: Tokenizer) -> str | None:
    """Returns the name of the token that ends a document; `None` where there is none."""
    if tokenizer.end_of_document is None:
        return None
    if tokenizer.kind != "SentencePiece":
        return END
    model = sentencepieces.described(tokenizer.payload["tokenizer.model"])
    return model.pieces[tokenizer.end_of_document]


def _ended(described: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The same with the token that ends documents, put before each text."""
    name, end = end_name(tokenizer), tokenizer.end_of_document
    if name is None:
        return described
    others = [t for t in described.get("added_tokens", []) if t["id"] != end]
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return described | {
        "added_tokens": sorted([*others, added(end, name, special=True)], key=lambda t: t["id"]),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [end], "tokens": [name]}},
        },
    }


def patterns(cut: Any) -> Iterator[str | None]:
    """Yields the patterns by which a pre-tokenizer cuts, one after another; `None` stands for
    anything else that it does."""
    match cut:
        case {"type": "Sequence", "pretokenizers": list(inner)}:
            for one in inner:
                yield from patterns(one)
        case {"type": "Digits"}:
            yield r"\p{N}" if cut.get("individual_digits") else r"\p{N}+"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            yield from (GPT2_PATTERN,) if cut.get("use_regex", True) else ()
        case {
            "type": "Split",
            "pattern": {"Regex": str(pattern)},
            "behavior": "Isolated",
        } if not cut.get("invert"):
            yield pattern
        case _:
            yield None
