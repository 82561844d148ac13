"""Text ↔ token ids, exactly: `decode` returns the text that `encode` was given, whatever it is.

Read the configs (`Bytes`, `Characters`, `SentencePiece`, `GPT2`, `Published`, `Given`), then
`train_tokenizer`, `save_tokenizer`, `load_tokenizer` and `hash_tokenizer`. What every kind becomes
is `spelling.Tokenizer`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import directory, marian, sentencepieces
from gptjax.data.tokenizers import published as published_files
from gptjax.data.tokenizers.directory import GPT2, Published
from gptjax.data.tokenizers.sentencepieces import SentencePiece
from gptjax.data.tokenizers.spelling import (
    CONFIG_FILE,
    PROBE,
    TEMPLATE_FILE,
    UNKNOWN_BYTES,
    Ids,
    Special,
    Tokenizer,
    utf8,
)


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8, and an id that ends a document."""


@dataclass(frozen=True)
class Characters:
    """The distinct characters of the training text, and an id for unknown ones if the held-out
    text has any."""

    end_of_document: bool = True
    """Add an id that ends a document."""


@dataclass(frozen=True)
class Given:
    """The tokenizer of the model that training starts from."""


TokenizerConfig = Bytes | Characters | SentencePiece | GPT2 | Published | Given


PAYLOAD = {
    "Bytes": (),
    "Characters": ("characters.json",),
    "SentencePiece": ("tokenizer.model",),
    "GPT2": ("vocab.json", "merges.txt"),
    "Marian": marian.FILES,
}
PAYLOAD |= {kind: (name, "special.json") for name, kind in published_files.KINDS.items()}


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], held_out: Iterable[str] = ()
) -> Tokenizer:
    """Returns the tokenizer that `config` describes.

    Args:
      texts: whole documents to learn from; left unread by kinds that learn nothing.
      held_out: further documents to encode; read by `Characters` alone.

    Raises:
      ConfigError: a file is absent or is something else, or the text is too small for the
        vocabulary.
    """
    require(
        not isinstance(config, Given),
        "data.tokenizer is that of a model to start from, and there is none; pass --start MODEL.",
    )
    if isinstance(config, Bytes):
        return _from_payload("Bytes", {})
    if isinstance(config, Characters):
        return _from_payload("Characters", _learn_characters(config, texts, held_out))
    if isinstance(config, GPT2):
        return _from_payload("GPT2", directory.read_gpt2(Path(config.path)))
    if isinstance(config, Published):
        return _from_payload(*directory.read_directory(Path(config.path)), name=config.path)
    if config.path is None:
        return _from_payload(
            "SentencePiece", {"tokenizer.model": sentencepieces.learn(config, texts)}
        )
    path = Path(config.path)
    require(
        path.is_file(),
        f"{path} is not there; give a SentencePiece .model file with --data.tokenizer.path FILE.",
    )
    return _from_payload("SentencePiece", {"tokenizer.model": path.read_bytes()}, name=str(path))


def published(name: str, content: bytes, special: Special) -> Tokenizer:
    """Returns the tokenizer of a published model.

    Args:
      name: `tokenizer.json`, in the form of the `tokenizers` library, or `tokenizer.model`, a
        SentencePiece model.
      content: its bytes. Of a tokenizer.json the model (BPE, Unigram, WordPiece), normalizer,
        pre-tokenizer, decoder and `added_tokens` count; the post-processor does not,
        `special.begins` stands for it.
      special: which ids begin and end texts, which end answers, which no text may yield, and the
        chat template.

    Raises:
      ConfigError: the content is not such a file.
    """
    return _from_payload(*published_files.payload(name, content, special))


def with_template(tokenizer: Tokenizer, source: str) -> Tokenizer:
    """Returns the tokenizer with a chat template, in Jinja, as its own; `save_tokenizer` keeps
    it."""
    if tokenizer.template == source:
        return tokenizer
    return replace(tokenizer, payload={**tokenizer.payload, TEMPLATE_FILE: source.encode()})


def save_tokenizer(folder: Path | str, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.files()` into `folder`, the file with the hashes of the others last."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in sorted(tokenizer.files().items(), key=lambda item: item[0] == CONFIG_FILE):
        Path(folder, name).write_bytes(content)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Reads what `save_tokenizer` wrote. Nothing in it is executed, and no other file is needed.

    Raises:
      ConfigError: a file is absent or not what was saved; the message names it.
    """
    restore = f"restore it from a copy of {folder}"

    def read(name: str) -> bytes:
        require(
            Path(folder, name).is_file(),
            f"{Path(folder, name)} is not there, so the tokenizer can't be read; {restore}.",
        )
        return Path(folder, name).read_bytes()

    try:
        described = json.loads(read(CONFIG_FILE))
        hashes = dict(described["sha256"])
        names = (*PAYLOAD[described["kind"]], *({TEMPLATE_FILE} & hashes.keys()))
        payload = {name: read(name) for name in names}
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ConfigError(
            f"{Path(folder, CONFIG_FILE)} does not describe a tokenizer; {restore}."
        ) from None
    for name, content in payload.items():
        same = hashes.get(name) == hashlib.sha256(content).hexdigest()
        require(
            same,
            f"{Path(folder, name)} is not the file that was saved (its sha256 differs from"
            f" {CONFIG_FILE}); {restore}.",
        )
    tokenizer = _from_payload(described["kind"], payload, name=str(folder))
    same = described == json.loads(tokenizer.files()[CONFIG_FILE])
    require(same, f"{Path(folder, CONFIG_FILE)} does not describe the files beside it; {restore}.")
    return tokenizer


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """Returns the sha256, in hex, of everything that makes the tokenizer, wherever it came
    from."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def spells_alike(one: Tokenizer, other: Tokenizer) -> bool:
    """Says whether two tokenizers spell all texts alike; their chat templates may differ."""

    def spelling(tokenizer: Tokenizer) -> dict[str, bytes]:
        return {name: file for name, file in tokenizer.payload.items() if name != "special.json"}

    return spelling(one) == spelling(other) and one.controls == other.controls


def lossless(tokenizer: Tokenizer) -> bool:
    """Says whether any text survives encoding: true of all kinds that are trained here except
    `Characters`, and of few foreign .model files."""
    try:
        return tokenizer.decode(tokenizer.encode(PROBE)) == PROBE
    except ConfigError:
        return False


def _from_payload(
    kind: str, payload: Mapping[str, bytes], name: str = "the tokenizer"
) -> Tokenizer:
    """The inverse of `files`.

    Args:
      name: what error messages call the tokenizer.
    """
    make = {"Bytes": _bytes, "Characters": _characters, "SentencePiece": sentencepieces.from_model}
    make["Marian"] = marian.marian_tokenizer
    own = {file: content for file, content in payload.items() if file != TEMPLATE_FILE}
    tokenizer = make.get(kind, published_files.from_files)(own, name)
    template = payload.get(TEMPLATE_FILE)
    return tokenizer if template is None else with_template(tokenizer, template.decode())


# --- bytes and characters


def _bytes(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    def spell(texts: list[str]) -> list[Ids]:
        return [np.frombuffer(utf8(text), np.uint8).astype(np.int32) for text in texts]

    pieces = (*(bytes([i]) for i in range(256)), b"")
    return Tokenizer("Bytes", pieces, end_of_document=256, payload={}, spell=spell)


def _learn_characters(
    config: Characters, texts: Iterable[str], held_out: Iterable[str]
) -> dict[str, bytes]:
    characters: set[str] = set()
    for text in texts:
        utf8(text)
        characters.update(text)
    require(
        bool(characters),
        "the training text has no characters; give a text with --data.source.path FILE.",
    )
    described = {
        "characters": "".join(sorted(characters)),
        "end_of_document": config.end_of_document,
    }
    if any(not characters.issuperset(text) for text in held_out):
        described["unknown"] = True
    return {"characters.json": (json.dumps(described) + "\n").encode()}


def _characters(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    described = json.loads(payload["characters.json"])
    characters, ends = described["characters"], described["end_of_document"]
    known = np.array([ord(c) for c in characters], np.uint32)
    unknown = len(characters) if described.get("unknown") else None

    def ids(text: str) -> Ids:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        wrong = np.flatnonzero(known[ids] != codes)
        if wrong.size and unknown is None:
            at = int(wrong[0])
            raise ConfigError(
                f"the character {text[at]!r} (U+{ord(text[at]):04X}), number {at} of the text, is"
                f" not among the {len(known)} of the training text; remove it, or train with a"
                " tokenizer that spells any text: Bytes() or SentencePiece() as data.tokenizer."
            )
        ids[wrong] = unknown or 0
        return ids.astype(np.int32)

    def spell(texts: list[str]) -> list[Ids]:
        return [ids(text) for text in texts]

    more = [UNKNOWN_BYTES] if unknown else []
    pieces = (*(c.encode() for c in characters), *more, *([b""] if ends else []))
    return Tokenizer(
        "Characters",
        pieces,
        end_of_document=len(pieces) - 1 if ends else None,
        payload=payload,
        spell=spell,
        unknown=unknown,
    )
