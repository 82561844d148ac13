"""Builds a tokenizer and the stores of a source.

Read `build_stores`, then `StoreBuilder`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptjax.core.config import require
from gptjax.data import store
from gptjax.data.compressors import Compressors
from gptjax.data.coverage import Coverage
from gptjax.data.documents import sources
from gptjax.data.documents.sources import Document, Survey
from gptjax.data.split import Split
from gptjax.data.swap import Swap, swapped_documents
from gptjax.data.tasks import Task
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import SentencePiece, Tokenizer, TokenizerConfig

if TYPE_CHECKING:
    from gptjax.data.prepare import DataConfig


def build_stores(
    folder: Path,
    config: DataConfig,
    split: Split,
    survey: Survey,
    *,
    fingerprint: str,
    given: Tokenizer | None = None,
) -> str:
    """Writes `tokenizer/` and a store for each part of the split, and returns a line about them.

    Reads the source once for a tokenizer that learns, and once for the stores.

    Args:
      survey: an earlier reading of the source, which this one has to equal.
      given: a finished tokenizer; `None` trains that of the config.

    Raises:
      ConfigError: the source can't be read, changed since the survey, or leaves a part empty.
    """
    begun = time.monotonic()
    texts = _texts(config, split)
    held_out = _texts(config, split, part="validation")
    tokenizer = given or config.task.equip(
        tokenizers.train_tokenizer(config.tokenizer, texts, held_out)
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save_tokenizer(folder / "tokenizer", tokenizer)
    builders = {
        name: StoreBuilder(folder / name, tokenizer, config.task, compress=name == "validation")
        for name in split.names
    }
    digest = hashlib.sha256()
    for document in sources.digested(sources.read_documents(config.source), digest):
        for name, text in split.parts(document).items():
            if text and name in builders:
                for changed in _changed(config, document._replace(text=text), name):
                    builders[name].add(changed)
    require(
        digest.hexdigest() == survey.fingerprint,
        "the text (data.source) changed while it was read; start again when nothing writes to it.",
    )
    headers = {name: builder.close(fingerprint) for name, builder in builders.items()}
    for name, header in headers.items():
        split.require_some(header.num_examples > 0, name)
        require(
            header.num_tokens > header.num_examples,
            f"the {name} text has {header.num_tokens} tokens, so there is nothing to predict; use"
            " more text (--data.source.path) or another share (--data.validation 0.1).",
        )
    unknown = sum(builder.unknown for builder in builders.values())
    tokens = builders["train"].tokens
    return _summary(headers, split, tokens, unknown, time.monotonic() - begun) + _smaller(
        config.tokenizer, tokenizer
    )


def _smaller(asked: TokenizerConfig, made: Tokenizer) -> str:
    """Says that a text was too small for the pieces that were asked for."""
    size = asked.vocab_size if isinstance(asked, SentencePiece) and asked.path is None else 0
    if made.vocab_size >= size:
        return ""
    return f"; {made.vocab_size:,} pieces, since the text is too small for {size:,}"


def _summary(
    headers: dict[str, store.Header], split: Split, tokens: int, unknown: int, seconds: float
) -> str:
    """A line about the stores.

    Args:
      tokens: number of ids to train on that the tokenizer has; a store has ids of the task too.
      unknown: number of held-out characters that the tokenizer has no id for.
    """
    train = headers["train"]
    summary = (
        f"tokenised {split.documents:,} document{'s' * (split.documents != 1)}"
        f" into {tokens:,} training tokens ({train.num_bytes / max(1, tokens):.2f} bytes each)"
        f" in {seconds:.1f}s"
    )
    if unknown:
        summary += f", {unknown:,} held-out characters unknown to the tokenizer"
    if split.undivided:
        summary += "; the tail of each document is held out, as they are too few to hold out any"
    share = 1 - train.num_bytes / sum(header.num_bytes for header in headers.values())
    if split.is_met(share):
        return summary
    return (
        f"{summary}; {share:.0%} of the bytes are held out, not {split.share:.0%}, because whole"
        " documents are (--data.split tail divides them)"
    )


def _texts(config: DataConfig, split: Split, part: str = "train") -> Iterator[str]:
    """The texts of one part of the split, as a tokenizer meets them."""
    any_text = False
    for document in sources.read_documents(config.source):
        if text := split.parts(document).get(part):
            any_text = True
            for changed in _changed(config, document._replace(text=text), part):
                yield from config.task.texts(changed)
    split.require_some(any_text or part not in split.names, part)


def _changed(config: DataConfig, document: Document, part: str) -> Iterator[Document]:
    """What a document of a part of the split becomes: training documents may be swapped."""
    return swapped_documents(config.swap if part == "train" else Swap(), document)


class StoreBuilder:
    """Writes one store. Documents are collected until there are enough for the tokenizer to use all
    cores."""

    ENOUGH = 2**22
    """Characters."""

    def __init__(self, path: Path, tokenizer: Tokenizer, task: Task, *, compress: bool):
        self.tokenizer, self.task = tokenizer, task
        self.writer = store.Writer(path, tokenizer.vocab_size + task.extra_ids)
        self.compressors = Compressors() if compress and not task.records else None
        self.coverage = Coverage(tokenizer)
        self.frames = task.frame_writer(path)
        self.documents: list[Document] = []
        self.num_bytes = self.waiting = self.unknown = self.tokens = 0

    def add(self, document: Document) -> None:
        """Takes one document."""
        self.documents.append(document)
        self.waiting += len(document.text) + len(document.source or "")
        if self.waiting >= self.ENOUGH:
            self.tokenise()

    def tokenise(self) -> None:
        """Writes the documents that are waiting."""
        for document in self.documents:
            self.num_bytes += self.task.num_bytes(document)
            if self.compressors:
                self.compressors.add(document.text.encode())
        try:
            for ids in self.task.examples(self.documents, self.tokenizer):
                self.writer.add(ids)
                self.tokens += int((np.asarray(ids) < self.tokenizer.vocab_size).sum())
                if self.tokenizer.unknown is not None:
                    self.unknown += int((np.asarray(ids) == self.tokenizer.unknown).sum())
            for document in self.documents:
                self.coverage.add(self.task.texts(document))
                if self.frames:
                    self.frames.add(document.pictures)
        except Exception as error:
            error.add_note(f"It happened in {self._culprit()}.")
            raise
        self.documents, self.waiting = [], 0

    def _culprit(self) -> str:
        """The first document that can't be tokenised alone."""
        for document in self.documents:
            try:
                list(self.task.examples([document], self.tokenizer))
            except Exception:
                return document.name
        return f"one of {self.documents[0].name} to {self.documents[-1].name}"

    def close(self, fingerprint: str) -> store.Header:
        """Writes what is left and seals the store."""
        self.tokenise()
        if self.frames:
            self.frames.close()
        facts: dict[str, Any] = self.compressors.bits_per_byte() if self.compressors else {}
        if lost := self.coverage.lost():
            facts |= {"lost": lost, "lost characters": self.coverage.examples()}
        written = round(self.num_bytes * (1 - lost))  # the bytes that the ids spell
        return self.writer.close(num_bytes=written, fingerprint=fingerprint, facts=facts)
