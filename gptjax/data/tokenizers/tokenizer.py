"""Text ↔ token ids, exactly: what `encode` writes, `decode` gives back, whatever the text.

Read in this order: the configs (`Bytes`, `Characters`, `SentencePiece`, `GPT2`, `Published`);
`Tokenizer`, what all of them become; `train`, `save`, `load`, `fingerprint`; then how each kind is
made. A tokenizer is a table of what each id spells and a function that spells text; everything else
is common to all kinds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import directory, sentencepieces
from gptjax.data.tokenizers import published as publisheds
from gptjax.data.tokenizers.directory import GPT2, Published
from gptjax.data.tokenizers.sentencepieces import SentencePiece
from gptjax.data.tokenizers.spelling import CONFIG_FILE, PROBE, Control, Ids, Special, Table, utf8


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8, and an id that ends a document."""


@dataclass(frozen=True)
class Characters:
    """The distinct characters of the training text."""

    end_of_document: bool = True
    """Add an id that ends a document."""


@dataclass(frozen=True)
class Given:
    """The tokenizer of the model that the experiment starts from."""


TokenizerConfig = Bytes | Characters | SentencePiece | GPT2 | Published | Given


@runtime_checkable
class Tokenizer(Protocol):
    """What every kind becomes."""

    vocab_size: int
    begin_of_document: int | None
    """Stands before each text; none where texts begin bare."""
    end_of_document: int | None
    """Stands after each text, and ends an answer."""
    ends: tuple[int, ...]
    """More ids that end an answer."""
    special: Special | None
    """What is known of a published tokenizer beside its pieces, its chat template among it."""
    controls: Mapping[str, Control]
    """Control tokens by name: ids that mean something to the model and spell nothing."""

    def encode(self, text: str) -> Ids:
        """Gives the ids of `text`; neither control tokens nor the ends of a document are ever among
        them, whatever the text says.

        Raises:
          ConfigError: the text has a lone surrogate, or a character that a `Characters` vocabulary
            lacks.
        """

    def encode_after(self, text: str) -> Ids:
        """Like `encode`, for a text that stands behind a control token: some tokenizers put a space
        before the first text alone."""

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        """Gives the ids of every text, on all cores."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Gives the text; the end of a document is nothing, bytes that aren't UTF-8 are U+FFFD.

        Raises:
          ValueError: an id is outside the vocabulary.
        """

    def token_bytes(self, ids: Iterable[SupportsIndex]) -> bytes:
        """Gives the exact bytes; those of a concatenation are the concatenation of theirs, so they
        can be streamed."""

    def files(self) -> dict[str, bytes]:
        """Gives what `save` writes, by file name."""


PAYLOAD = {
    "Bytes": (),
    "Characters": ("characters.json",),
    "SentencePiece": ("tokenizer.model",),
    "GPT2": ("vocab.json", "merges.txt"),
}
PAYLOAD |= {kind: (name, "special.json") for name, kind in publisheds.KINDS.items()}


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Makes the tokenizer that `config` describes; kinds that learn nothing don't touch `texts`
    (whole documents).

    Raises:
      ConfigError: a file is absent or is something else, or the text is too small for the
        vocabulary.
    """
    require(
        not isinstance(config, Given),
        "data.tokenizer is that of a model to start from, and there is none; name one (--start).",
    )
    if isinstance(config, Bytes):
        return _from_payload("Bytes", {})
    if isinstance(config, Characters):
        return _from_payload("Characters", _learn_characters(config, texts))
    if isinstance(config, GPT2):
        return _from_payload("GPT2", directory.read_gpt2(Path(config.path)))
    if isinstance(config, Published):
        return _from_payload(*directory.read(Path(config.path)), name=config.path)
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
    """Makes the tokenizer of a published model from the bytes of one file, whatever that came from.

    Args:
      name: `tokenizer.json`, in the form of the `tokenizers` library, or `tokenizer.model`, a
        SentencePiece model.
      content: its bytes. Of a tokenizer.json the model (BPE, Unigram, WordPiece), normalizer,
        pre-tokenizer, decoder and `added_tokens` count; the post-processor does not,
        `special.begins` stands for it.
      special: which ids begin and end texts, which end answers, which no text may yield, and the
        chat template.

    Raises:
      ConfigError: the bytes are no such file.
    """
    return _from_payload(*publisheds.payload(name, content, special))


def save(dir: Path | str, tokenizer: Tokenizer) -> None:
    """Writes `tokenizer.files()` into `dir`, the file that vouches for the others last."""
    Path(dir).mkdir(parents=True, exist_ok=True)
    for name, content in sorted(tokenizer.files().items(), key=lambda item: item[0] == CONFIG_FILE):
        Path(dir, name).write_bytes(content)


def load(dir: Path | str) -> Tokenizer:
    """Reads what `save` wrote. Nothing in it is executed, and no other file is needed.

    Raises:
      ConfigError: names the file that is absent or isn't what was saved.
    """
    restore = f"restore it from a copy of {dir}"

    def read(name: str) -> bytes:
        require(
            Path(dir, name).is_file(),
            f"{Path(dir, name)} is not there, so the tokenizer can't be read; {restore}.",
        )
        return Path(dir, name).read_bytes()

    try:
        found = json.loads(read(CONFIG_FILE))
        payload, hashes = (
            {name: read(name) for name in PAYLOAD[found["kind"]]},
            dict(found["sha256"]),
        )
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ConfigError(
            f"{Path(dir, CONFIG_FILE)} describes no tokenizer of ours; {restore}."
        ) from None
    for name, content in payload.items():
        same = hashes.get(name) == hashlib.sha256(content).hexdigest()
        require(
            same,
            f"{Path(dir, name)} is not the file that was saved (its sha256 differs from"
            f" {CONFIG_FILE}); {restore}.",
        )
    tokenizer = _from_payload(found["kind"], payload, name=str(dir))
    same = found == json.loads(tokenizer.files()[CONFIG_FILE])
    require(same, f"{Path(dir, CONFIG_FILE)} does not describe the files beside it; {restore}.")
    return tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """Gives the sha256, in hex, of all that makes the tokenizer; where it came from doesn't
    matter."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def lossless(tokenizer: Tokenizer) -> bool:
    """Says whether any text survives: true of all that is trained here but `Characters`, of few
    foreign .model files."""
    try:
        return tokenizer.decode(tokenizer.encode(PROBE)) == PROBE
    except ConfigError:
        return False


def _from_payload(
    kind: str, payload: Mapping[str, bytes], name: str = "the tokenizer"
) -> Tokenizer:
    """The inverse of `files`; `name` is for errors."""
    if kind == "Bytes":
        pieces = (*(bytes([i]) for i in range(256)), b"")
        return Table(
            kind,
            pieces,
            256,
            {},
            lambda texts: [np.frombuffer(utf8(t), np.uint8).astype(np.int32) for t in texts],
        )
    make = {"Characters": _characters, "SentencePiece": sentencepieces.load}
    return make.get(kind, publisheds.load)(payload, name)


# --- characters
# --------------------------------------------------------------------------------------------------


def _learn_characters(config: Characters, texts: Iterable[str]) -> dict[str, bytes]:
    found: set[str] = set()
    for text in texts:
        utf8(text)
        found.update(text)
    require(
        bool(found),
        "the training text has no characters; give a text with --data.source.path FILE.",
    )
    described = {"characters": "".join(sorted(found)), "end_of_document": config.end_of_document}
    return {"characters.json": (json.dumps(described) + "\n").encode()}


def _characters(payload: Mapping[str, bytes], name: str) -> Tokenizer:
    described = json.loads(payload["characters.json"])
    characters, ends = described["characters"], described["end_of_document"]
    known = np.array([ord(c) for c in characters], np.uint32)

    def spell(text: str) -> Ids:
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        wrong = np.flatnonzero(known[ids] != codes)
        if wrong.size:
            at = int(wrong[0])
            found = (
                f"the character {text[at]!r} (U+{ord(text[at]):04X}), number {at} of the text, is"
                f" not among the {len(known)} of the training text"
            )
            raise ConfigError(
                f"{found}; remove it, or train with a tokenizer that spells any text: Bytes() or"
                " SentencePiece() as data.tokenizer."
            )
        return ids.astype(np.int32)

    pieces = tuple(c.encode() for c in characters) + ((b"",) if ends else ())
    return Table(
        "Characters",
        pieces,
        len(characters) if ends else None,
        payload,
        lambda texts: [spell(t) for t in texts],
    )
