"""Marian's tokenizers: one SentencePiece model cuts what is read, another what is written, and both
name pieces of one vocabulary.

Read `marian_files` (the files of a published model), then `marian_tokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers import sentencepieces
from gptjax.data.tokenizers.spelling import UNKNOWN_BYTES, Control, Ids, Special, Tokenizer

FILES = ("source.spm", "target.spm", "vocab.json")
NEED = "restore it from where the model came from"
END, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"
LANGUAGE = ">>", "<<"
"""Around the name of the language to translate to, at the beginning of a text."""


def has_marian(folder: Path) -> bool:
    """Whether a directory has such a tokenizer."""
    return all((folder / name).is_file() for name in FILES)


def marian_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of the tokenizer in a directory.

    Raises:
      ConfigError: its two halves have vocabularies of their own.
    """
    settings = folder / "tokenizer_config.json"
    named = json.loads(settings.read_bytes()) if settings.is_file() else {}
    require(
        not named.get("separate_vocabs"),
        f"{folder} has a tokenizer with two vocabularies (separate_vocabs), which this program"
        " cannot read; use a model whose source and target share one.",
    )
    return {name: (folder / name).read_bytes() for name in FILES}


def marian_tokenizer(files: Mapping[str, bytes], name: str) -> Tokenizer:
    """Returns the tokenizer of its three files.

    Args:
      name: what error messages call it.

    Raises:
      ConfigError: a file is damaged, or the vocabulary is none.
    """
    vocabulary = _vocabulary(files["vocab.json"], name)
    source, target = (
        _spelling(sentencepieces.cutter(files[file], name), vocabulary) for file in FILES[:2]
    )
    controls = {c: Control(vocabulary[c]) for c in (END, PAD) if c in vocabulary}
    pieces = [
        b"" if piece in controls else UNKNOWN_BYTES if piece == UNKNOWN else _spelled(piece)
        for piece in sorted(vocabulary, key=vocabulary.__getitem__)
    ]
    return Tokenizer(
        "Marian",
        tuple(pieces),
        end_of_document=vocabulary[END],
        payload=files,
        spell=source,
        leading_space=True,
        special=Special(eos=vocabulary[END]),
        controls=controls,
        spell_answer=target,
    )


def written_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """Returns the files that `transformers` reads as the same tokenizer, by name."""
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "model_max_length": context,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "pad_token": PAD,
        "separate_vocabs": False,
    }
    made = {name: tokenizer.payload[name] for name in FILES}
    return made | {"tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode()}


def _vocabulary(content: bytes, name: str) -> dict[str, int]:
    try:
        vocabulary = json.loads(content)
        good = (
            sorted(vocabulary.values()) == list(range(len(vocabulary)))
            and {END, UNKNOWN} <= vocabulary.keys()
        )
    except (ValueError, RecursionError, AttributeError, TypeError):
        good, vocabulary = False, {}
    require(
        good,
        f"{name} has a vocab.json that does not number pieces from 0 on, {END} and {UNKNOWN} among"
        f" them; {NEED}.",
    )
    return vocabulary


def _spelled(piece: str) -> bytes:
    return piece.replace(sentencepieces.SPACE, " ").encode()


def _spelling(
    cut: Callable[[list[str]], list[list[str]]], vocabulary: Mapping[str, int]
) -> Callable[[list[str]], list[Ids]]:
    """Spells texts with the pieces of one model. A language at the beginning is one token; no other
    text yields a control token."""
    known = {piece: i for piece, i in vocabulary.items() if piece not in (END, PAD)}
    unknown = vocabulary[UNKNOWN]

    def spell(texts: list[str]) -> list[Ids]:
        parts = [_language(text, known) for text in texts]
        cuts = cut([rest for _, rest in parts])
        return [
            np.asarray([*code, *(known.get(piece, unknown) for piece in pieces)], np.int32)
            for (code, _), pieces in zip(parts, cuts, strict=True)
        ]

    return spell


def _language(text: str, known: Mapping[str, int]) -> tuple[list[int], str]:
    """The id of the language that a text begins with, if it is one, and the rest."""
    begin, end = LANGUAGE
    if not text.startswith(begin) or (at := text.find(end)) < 0:
        return [], text
    code = text[: at + len(end)]
    return ([known[code]], text[at + len(end) :]) if code in known else ([], text)
