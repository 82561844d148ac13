"""From a source to a tokenizer and two stores, once; kept in the user's cache folder under a hash of all that made them.

Read `DataConfig`, then `prepare`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import gptjax
from gptjax.config import require, to_dict
from gptjax.data import sources, store, tasks
from gptjax.data import tokenizer as tokenizers
from gptjax.data.sources import Document, Source, Text
from gptjax.data.tokenizer import SentencePiece, Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class DataConfig:
    """What is read, how it becomes tokens, and what is held out."""

    source: Source = field(default_factory=Text)
    """Where the text comes from."""
    tokenizer: TokenizerConfig = field(default_factory=SentencePiece)
    """How text becomes ids; trained on the training split only."""
    validation: float = 0.1
    """Share of the text that is held out; 0 holds out nothing."""
    split: Literal["auto", "documents", "tail"] = "auto"
    """Hold out whole documents (picked by a hash of their text), or the tail of each; `auto`: documents from 50 on."""
    isolated: bool = True
    """Documents that share a row do not see each other."""
    cache: str | None = None
    """Folder of prepared data; none is the user's cache folder."""

    def __post_init__(self) -> None:
        require(
            0 <= self.validation < 1,
            f"data.validation is {self.validation}, the share of text held out; more than the text has can't be: it needs [0, 1), "
            "for example --data.validation 0.1.",
        )


class Prepared(NamedTuple):
    """Data that is ready to train on."""

    tokenizer: Tokenizer
    train: store.Store
    validation: store.Store | None
    fingerprint: str


def cache_folder(config: DataConfig) -> Path:
    """The folder of prepared data: `data.cache`, or `gptjax/data` in XDG's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(config.cache) if config.cache else base / "gptjax" / "data"


def prepare(config: DataConfig, say: Callable[[str], None] = lambda line: None) -> Prepared:
    """Tokenises the source, or opens what an earlier call tokenised from the same text with the same settings.

    Raises:
      ConfigError: the source, the tokenizer or the split can't be used.
    """
    source = sources.fingerprint(config.source)
    settings = {k: v for k, v in to_dict(config).items() if k in ("tokenizer", "validation", "split")}
    made_of = json.dumps([source, settings, store.FORMAT, gptjax.__version__], sort_keys=True)
    fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
    folder = cache_folder(config) / fingerprint[:32]
    if not (folder / "train" / "header.json").is_file():
        draft = folder.with_name(f".making-{folder.name}-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed and had this number
        try:
            _make(config, draft, fingerprint, say)
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not folder.exists():
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    held_out = store.open_store(folder / "validation") if config.validation else None
    return Prepared(tokenizers.load(folder / "tokenizer"), store.open_store(folder / "train"), held_out, fingerprint)


def _make(config: DataConfig, folder: Path, fingerprint: str, say: Callable[[str], None]) -> None:
    begun = time.monotonic()
    count = sum(1 for _ in sources.read(config.source))
    by_document = config.split == "documents" or (config.split == "auto" and count >= 50)
    halves = {name: (lambda name=name: _split(config, by_document, name)) for name in ("train", "validation") if name == "train" or config.validation}
    for name, texts in halves.items():
        require(
            any(True for _ in texts()),
            f"data.validation {config.validation} of {count} documents leaves nothing for {name}; use another share (--data.validation 0.1) "
            "or hold out tails (--data.split tail).",
        )
    tokenizer = tokenizers.train(config.tokenizer, (d.text for d in halves["train"]()))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save(folder / "tokenizer", tokenizer)
    for name, texts in halves.items():
        _tokenise(folder / name, texts(), tokenizer, fingerprint, compare=name == "validation")
        made = store.open_store(folder / name).header
        need = "use more text (--data.source.path) or another share (--data.validation 0.1)"
        require(made.num_tokens > made.num_examples, f"the {name} text has {made.num_tokens} tokens, so there is nothing to predict; {need}.")
    header = store.open_store(folder / "train").header
    say(
        f"tokenised {count:,} documents into {header.num_tokens:,} training tokens ({header.num_bytes / max(1, header.num_tokens):.2f} bytes each) "
        f"in {time.monotonic() - begun:.1f}s; kept in {folder.parent}"
    )


def _split(config: DataConfig, by_document: bool, half: str) -> Iterator[Document]:
    for document in sources.read(config.source):
        if by_document:
            digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest()
            held_out = int.from_bytes(digest[:8], "big") < config.validation * 2**64
            if held_out == (half == "validation"):
                yield document
        else:
            cut = int(len(document.text) * (1 - config.validation))
            text = document.text[:cut] if half == "train" else document.text[cut:]
            if text:
                yield document._replace(text=text)


def _tokenise(path: Path, documents: Iterator[Document], tokenizer: Tokenizer, fingerprint: str, *, compare: bool) -> None:
    """Writes one store, a few megabytes of text at a time."""
    num_bytes, packed = 0, _Packers() if compare else None

    def examples() -> Iterator[tasks.Example]:
        nonlocal num_bytes
        for group in _groups(documents, 2**22):
            encoded = [text.encode() for text in group]
            num_bytes += sum(map(len, encoded))
            if packed:
                packed.add(b"".join(encoded))
            for ids in tokenizer.encode_all(group):
                yield tasks.language_model(ids, tokenizer)

    store.build(
        path,
        examples(),
        vocab_size=tokenizer.vocab_size,
        num_bytes=lambda: num_bytes,
        fingerprint=fingerprint,
        facts=lambda: packed.bits_per_byte(num_bytes) if packed else {},
    )


def _groups(documents: Iterator[Document], size: int) -> Iterator[list[str]]:
    """Texts in groups of about `size` characters, so that the tokenizer can use all cores."""
    total = 0

    def group_of(document: Document) -> int:
        nonlocal total
        total += len(document.text)
        return total // size

    for _, group in itertools.groupby(documents, group_of):
        yield [document.text for document in group]


class _Packers:
    """gzip -9 and xz -9 over the same bytes, one stream each: what a compressor without learning reaches."""

    def __init__(self) -> None:
        self.streams = {"gzip -9": zlib.compressobj(9, wbits=31), "xz -9": lzma.LZMACompressor(preset=9)}
        self.sizes = dict.fromkeys(self.streams, 0)

    def add(self, data: bytes) -> None:
        for name, stream in self.streams.items():
            self.sizes[name] += len(stream.compress(data))

    def bits_per_byte(self, num_bytes: int) -> dict[str, float]:
        return {name: 8 * (self.sizes[name] + len(stream.flush())) / max(1, num_bytes) for name, stream in self.streams.items()}
