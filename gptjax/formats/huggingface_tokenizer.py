"""Tokenizers in the files of a Hugging Face directory: `files` writes any kind of ours, `fitting`
takes off tokens that a model lacks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptjax.data.tokenizers import sentencepieces
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.spelling import Special
from gptjax.data.tokenizers.spelling import letters as byte_letters
from gptjax.data.tokenizers.tokenizer import Tokenizer

END = "<|endoftext|>"


def files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """Gives the files that `transformers` reads as the same tokenizer.

    A SentencePiece text that has the mark for spaces itself (U+2581) is the one exception: their
    form can't tell it from a space.
    """
    special, payload = tokenizer.special, dict(tokenizer.payload)
    names = {control.id: name for name, control in tokenizer.controls.items()}
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if special is not None:
        said |= {
            "bos_token": names.get(special.bos),
            "eos_token": names.get(special.eos),
            "add_bos_token": special.begins,
        }
        said |= {} if special.template is None else {"chat_template": special.template}
        if "tokenizer.json" not in payload:
            said |= {
                "tokenizer_class": "LlamaTokenizer",
                "unk_token": _model(tokenizer).pieces[_model(tokenizer).types.index(UNKNOWN)],
            }
    else:
        end = tokenizer.end_of_document
        payload = {"tokenizer.json": _described(tokenizer)}
        said |= (
            {}
            if end is None
            else {"bos_token": _end(tokenizer), "eos_token": _end(tokenizer), "add_bos_token": True}
        )
    found = {
        name: content
        for name, content in payload.items()
        if name in ("tokenizer.json", "tokenizer.model")
    }
    found["tokenizer_config.json"] = (
        json.dumps({k: v for k, v in said.items() if v is not None}, indent=2, ensure_ascii=False)
        + "\n"
    ).encode()
    if special is not None and special.template is not None:
        found["chat_template.jinja"] = special.template.encode()
    return found


# --- our kinds as tokenizer.json
# ---------------------------------------------------------------------------------


def _end(tokenizer: Tokenizer) -> str:
    """The name of the token that ends a document."""
    if tokenizer.kind != "SentencePiece":
        return END
    return _model(tokenizer).pieces[tokenizer.end_of_document]


def _model(tokenizer: Tokenizer) -> sentencepieces.Described:
    return sentencepieces.described(tokenizer.payload["tokenizer.model"])


def _described(tokenizer: Tokenizer) -> bytes:
    payload = tokenizer.payload
    if tokenizer.kind == "SentencePiece":
        described = _of_sentencepiece(tokenizer)
    elif tokenizer.kind == "Characters":
        described = _bpe({piece.decode() or END: i for i, piece in enumerate(tokenizer.pieces)}, [])
    else:
        letters = {byte: letter for letter, byte in byte_letters().items()}
        vocabulary = (
            json.loads(payload["vocab.json"])
            if tokenizer.kind == "GPT2"
            else {letters[i]: i for i in range(256)} | {END: 256}
        )
        lines = payload["merges.txt"].decode().split("\n")[1:-1] if tokenizer.kind == "GPT2" else []
        described = _bpe(vocabulary, [line.split(" ") for line in lines])
        level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": tokenizer.kind == "GPT2",
        }
        described |= {"pre_tokenizer": level, "decoder": level}
    if tokenizer.end_of_document is not None:
        name, begin = _end(tokenizer), {"SpecialToken": {"id": _end(tokenizer), "type_id": 0}}
        described["added_tokens"].append(_added(tokenizer.end_of_document, name, special=True))
        text = [
            begin,
            {"Sequence": {"id": "A", "type_id": 0}},
        ]  # documents begin with what ends them
        ids = {name: {"id": name, "ids": [tokenizer.end_of_document], "tokens": [name]}}
        pair = [*text, {"Sequence": {"id": "B", "type_id": 1}}]
        described["post_processor"] = {
            "type": "TemplateProcessing",
            "single": text,
            "pair": pair,
            "special_tokens": ids,
        }
    described["added_tokens"].sort(key=lambda token: token["id"])
    return (json.dumps(described, ensure_ascii=False) + "\n").encode()


def _bpe(
    vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], **more: Any
) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
    }
    model |= dict(
        ignore_merges=False, vocab=dict(vocabulary), merges=[list(pair) for pair in merges], **more
    )
    return _whole(model)


def _whole(model: dict[str, Any]) -> dict[str, Any]:
    parts = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    # Without a decoder their library puts spaces between tokens.
    return {
        "version": "1.0",
        **parts,
        "added_tokens": [],
        "decoder": {"type": "Fuse"},
        "model": model,
    }


def _added(i: int, content: str, special: bool) -> dict[str, Any]:
    return {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _of_sentencepiece(tokenizer: Tokenizer) -> dict[str, Any]:
    """A .model as a tokenizer.json: BPE's merges are all ways to put a piece together of two
    others, better pieces first."""
    model = _model(tokenizer)
    names, unknown = model.pieces, model.types.index(UNKNOWN)
    if model.by_pairs:
        ordinary = {
            name: i
            for i, (name, kind) in enumerate(zip(names, model.types, strict=True))
            if kind == NORMAL
        }
        halves = [
            (i, name[:at], name[at:]) for name, i in ordinary.items() for at in range(1, len(name))
        ]
        merges = sorted(
            (-model.scores[i], ordinary[a], ordinary[b], a, b)
            for i, a, b in halves
            if a in ordinary and b in ordinary
        )
        described = _bpe({name: i for i, name in enumerate(names)}, [pair[-2:] for pair in merges])
        described["model"] |= {
            "unk_token": names[unknown],
            "fuse_unk": True,
            "byte_fallback": BYTE in model.types,
        }
    else:
        scores = [list(pair) for pair in zip(names, model.scores, strict=True)]
        described = _whole(
            {
                "type": "Unigram",
                "unk_id": unknown,
                "vocab": scores,
                "byte_fallback": BYTE in model.types,
            }
        )
    mark = sentencepieces.SPACE
    spaced = {"type": "Replace", "pattern": {"String": " "}, "content": mark}
    described["normalizer"] = (
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": mark}, spaced]}
        if model.prefix
        else spaced
    )
    back = [
        {"type": "Replace", "pattern": {"String": mark}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    back += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.prefix else []
    described["decoder"] = {"type": "Sequence", "decoders": back}
    given = [
        _added(i, names[i], special=False) for i, kind in enumerate(model.types) if kind == GIVEN
    ]
    described["added_tokens"] = [_added(unknown, names[unknown], special=True), *given]
    return described


NORMAL, UNKNOWN, GIVEN, BYTE = 1, 2, 4, 6
"""Types of pieces; `GIVEN` are found before any other, as the line break is in tokenizers that are
learned here."""


# --- what a model has no rows for
# --------------------------------------------------------------------------------


def fitting(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer without added tokens beyond a model's rows, such as those of images in Gemma
    3's text models."""
    content = tokenizer.payload.get("tokenizer.json")
    if tokenizer.vocab_size <= rows or content is None:
        return tokenizer
    described = json.loads(content)
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < rows]
    special = tokenizer.special or Special()
    return tokenizers.published("tokenizer.json", json.dumps(described).encode(), special)
