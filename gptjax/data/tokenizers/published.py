"""Tokenizers of published models, from the files that a run keeps of them: a `tokenizer.json` or a
SentencePiece `tokenizer.model`, with their control tokens named.

A control token is an id that means something to the model (`<|im_start|>`) and spells nothing: no
text is ever encoded as one. Read `payload` and `from_files`, then `_of_json` and `_Speller`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import json_form, sentencepieces, spelling
from gptjax.data.tokenizers.around import marks_around
from gptjax.data.tokenizers.sentencepieces import SPACE
from gptjax.data.tokenizers.spelling import (
    UNKNOWN_BYTES,
    Control,
    Ids,
    Special,
    Tokenizer,
    in_chunks,
)

KINDS = {"tokenizer.json": "Published", "tokenizer.model": "PublishedModel"}
NEED = "give a folder with the tokenizer.json or tokenizer.model of a published model"


def payload(name: str, content: bytes, special: Special) -> tuple[str, dict[str, bytes]]:
    """Returns the kind and the files of a tokenizer that is made of one file's bytes.

    Args:
      name: `tokenizer.json`, in the form of the `tokenizers` library, or `tokenizer.model`, a
        SentencePiece model.
      content: its bytes.
      special: what they do not say.
    """
    return KINDS[name], {name: content, "special.json": (json.dumps(vars(special)) + "\n").encode()}


def from_files(files: Mapping[str, bytes], name: str) -> Tokenizer:
    """Returns the tokenizer of what `payload` returned, or of GPT-2's vocab.json and merges.txt.

    Args:
      name: what error messages call it.

    Raises:
      ConfigError: a file is not what its name says, or has pieces of an unsupported kind.
    """
    if "vocab.json" in files:
        described = parsed(json.dumps(json_form.of_files(files)).encode(), name)
        end = described["model"]["vocab"].get(json_form.END)
        table = _of_json("GPT2", files, described, Special(eos=end), name)
        return dataclasses.replace(table, special=None, controls={})
    try:
        fields = json.loads(files["special.json"])
        special = Special(**{n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()})
    except (ValueError, TypeError):
        raise ConfigError(
            f"{name} has a special.json that does not describe control tokens; {NEED}."
        ) from None
    if "tokenizer.model" in files:
        table = _of_model(files, special, name)
    else:
        described = parsed(files["tokenizer.json"], name)
        table = _of_json(KINDS["tokenizer.json"], files, described, special, name)
    roles = [("bos", special.bos), ("eos", special.eos), *(("ends", i) for i in special.ends)]
    for role, i in roles:
        require(
            i is None or 0 <= i < table.vocab_size,
            f"{name} calls the id {i} its {role}, and has 0 to {table.vocab_size - 1}; {NEED}.",
        )
    return table


def parsed(content: bytes, name: str) -> dict[str, Any]:
    """Parses a tokenizer.json, and checks it as far as it is used here.

    Raises:
      ConfigError: it is not one, or its model is not BPE, Unigram or WordPiece.
    """
    try:
        described = json.loads(content)
        added = described.setdefault("added_tokens", [])
        for token in added:
            token.update({f: bool(token.get(f)) for f in ("special", "lstrip", "rstrip")})
        ids = [*vocabulary(described).values(), *(t["id"] for t in added)]
        good = (
            all(isinstance(t["content"], str) for t in added)
            and all(type(i) is int and 0 <= i < 1 << 24 for i in ids)
            and bool(ids)
        )
        kind = described["model"].get("type", "BPE")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        good, kind = False, None
    require(good, f"{name} has a tokenizer.json that is not of the tokenizers library; {NEED}.")
    require(
        kind in ("BPE", "Unigram", "WordPiece"),
        f"{name} has a tokenizer.json with a model of the kind {kind}; supported are BPE, Unigram"
        " and WordPiece.",
    )
    return described


def vocabulary(described: Mapping[str, Any]) -> dict[str, int]:
    """Returns the ids of the pieces in a tokenizer.json, without its added tokens."""
    vocab = described["model"]["vocab"]
    if isinstance(vocab, dict):
        return dict(vocab)
    return {piece: i for i, (piece, _) in enumerate(vocab)}


def merges(described: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the pairs that a tokenizer.json joins, the first first."""
    pairs = described["model"].get("merges", ())
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]


def begins_with(content: bytes, bos: int | None) -> bool:
    """Says whether the post-processor of a tokenizer.json puts `bos` before a text."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(content.decode()).encode("").ids[:1] == [bos]


# --- tokenizer.model


def _of_model(files: Mapping[str, bytes], special: Special, name: str) -> Tokenizer:
    table = sentencepieces.from_model(files, name)
    controls = {
        piece: Control(i)
        for piece, i in sentencepieces.controls(files["tokenizer.model"], name).items()
        if special.control is None or i in special.control
    }
    return dataclasses.replace(
        table,
        kind=KINDS["tokenizer.model"],
        end_of_document=special.eos,
        special=special,
        controls=controls,
    )


# --- tokenizer.json


def _of_json(
    kind: str,
    files: Mapping[str, bytes],
    described: dict[str, Any],
    special: Special,
    name: str,
) -> Tokenizer:
    added = {t["id"]: t for t in described["added_tokens"]}
    names = {i: piece for piece, i in vocabulary(described).items()}
    names |= {i: token["content"] for i, token in added.items()}
    called = {i for i, token in added.items() if token["special"]}
    hidden = called if special.control is None else set(special.control) & set(names)
    unknown = _unknown(described["model"])
    controls = {
        names[i]: Control(i, *(added[i][f] for f in ("lstrip", "rstrip") if i in added))
        for i in sorted(hidden)
        if names[i] != unknown
    }
    speller = _Speller(described, {names[i] for i in hidden}, name)
    pieces, spelled = [b""] * (max(names) + 1), _speller(described)
    for i, piece in names.items():
        if piece == unknown:
            pieces[i] = UNKNOWN_BYTES
        elif piece not in controls:
            pieces[i] = piece.encode() if i in added else spelled(piece)
    leading = b"".join(pieces[i] for i in speller.ids(["a"])[0]).startswith(b" ")
    cut = _whole if leading or not _cuts_between_words(described, speller) else _between_words

    def spell(texts: list[str]) -> list[Ids]:
        return in_chunks(texts, speller.ids, cut)

    return Tokenizer(
        kind=kind,
        pieces=tuple(pieces),
        end_of_document=special.eos,
        payload=files,
        spell=spell,
        leading_space=leading,
        spell_after=speller.after,
        around=marks_around(described),
        special=special,
        controls=controls,
    )


class _Speller:
    """The library's tokenizer, in which no text reaches the tokens in `hidden`."""

    def __init__(self, described: dict[str, Any], hidden: set[str], name: str) -> None:
        import tokenizers

        try:
            self._library = tokenizers.Tokenizer.from_str(
                json.dumps(_unspeakable(described, hidden))
            )
            self._library.encode_special_tokens = True
            # It stands for the control token before a text; its own id is dropped.
            self._mark = secrets.token_hex(16)
            self._library.add_tokens([tokenizers.AddedToken(self._mark, normalized=False)])
            self.ids(["a", "x\nB"])
        except BaseException as error:  # the library panics on some files: that is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{name} has a tokenizer.json that can't be used ({reason}); {NEED}."
            ) from None

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Returns the ids of texts."""
        return [e.ids for e in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def after(self, texts: list[str]) -> list[Ids]:
        """Returns the ids of texts that stand behind a control token."""
        marked = self.ids([self._mark + text for text in texts])
        return [np.asarray(ids[1:], np.int32) for ids in marked]


def _unknown(model: dict[str, Any]) -> str | None:
    if model.get("type") == "Unigram":
        return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _speller(described: dict[str, Any]) -> Callable[[str], bytes]:
    """Returns a function that gives the bytes of a piece, by the way in which this file writes
    bytes and spaces."""
    parts = _types(described.get("pre_tokenizer")) | _types(described.get("decoder"))
    if "ByteLevel" in parts:
        letters = spelling.letters()
        return lambda piece: (
            bytes(letters[c] for c in piece) if letters.keys() >= set(piece) else piece.encode()
        )
    if described["model"].get("type") == "WordPiece":
        mark = described["model"].get("continuing_subword_prefix", "##")
        return lambda piece: (
            piece.removeprefix(mark).encode() if piece.startswith(mark) else b" " + piece.encode()
        )
    fallback = "ByteFallback" in parts or bool(described["model"].get("byte_fallback"))

    def spelled(piece: str) -> bytes:
        if fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        return piece.replace(SPACE, " ").encode()

    return spelled


def _types(part: Any) -> set[str]:
    """The types of a pre-tokenizer or decoder, those in a sequence included."""
    if not isinstance(part, dict):
        return set()
    inner = [*part.get("pretokenizers", ()), *part.get("decoders", ())]
    return {part.get("type")}.union(*map(_types, inner))


def _unspeakable(described: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
    """The same tokenizer, in which no text reaches the tokens in `hidden`: each has a new, secret
    name, and no merge makes it.

    The library has a switch against special tokens in texts (`encode_special_tokens`), but pieces
    of a vocabulary with the name of one are matched all the same: all those of Unigram,
    and whole words where `ignore_merges` is set.
    """
    secret = secrets.token_hex(16)
    renamed = {piece: f"{secret}{n}" for n, piece in enumerate(sorted(hidden))}

    def name(piece):
        return renamed.get(piece, piece)

    model = dict(described["model"])
    model["vocab"] = (
        [[name(p), s] for p, s in model["vocab"]]
        if isinstance(model["vocab"], list)
        else {name(p): i for p, i in model["vocab"].items()}
    )
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            list(pair)
            for pair in merges(described)
            if not hidden.intersection((*pair, "".join(pair)))
        ]
    added = [t | {"content": name(t["content"])} for t in described["added_tokens"]]
    return described | {
        "model": model,
        "added_tokens": added,
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "decoder": None,
    }


def _cuts_between_words(described: dict[str, Any], speller: _Speller) -> bool:
    """Whether a byte-level pre-tokenizer joins nothing across a space between letters, nor across a
    line break before a letter."""
    if "ByteLevel" not in _types(described.get("pre_tokenizer")):
        return False
    x, spaced, word, line, first, letter, sign, break_ = speller.ids(
        ["x", "x B", " B", "x\nB", "x\n", "B", "x).\nB", "x).\n"]
    )
    return spaced == x + word and line == first + letter and sign == break_ + letter


def _whole(text: str) -> list[str]:
    return [text]


def _between_words(text: str) -> list[str]:
    """Cuts a long text before words that follow a word or begin a line: no byte-level pre-tokenizer
    that passed the probes joins anything across that. Without such words for sixteen chunks it
    cuts anywhere, since spelling needs far more memory than the text: the ids there may differ, the
    text does not."""
    parts, start = [], 0
    while len(text) - start > spelling.CHUNK:
        word = _WORD.search(text, start + spelling.CHUNK, start + 16 * spelling.CHUNK)
        end = word.start() if word else min(start + 16 * spelling.CHUNK, len(text))
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


_WORD = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\S\n)(?=[^\W\d_])")
"""Before a space between letters, or before a letter that begins a line."""
