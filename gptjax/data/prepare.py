"""From a source to a tokenizer and two stores, once; kept in the user's cache folder under a hash
of all that made them.

Read `DataConfig`, then `prepare`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gptjax
from gptjax.core.config import require, to_dict
from gptjax.data import store
from gptjax.data.documents import sources
from gptjax.data.documents.sources import Document, Records, Source, Survey, Text
from gptjax.data.tasks import tasks
from gptjax.data.tasks.tasks import Classification, LanguageModel, SequenceToSequence, Task
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Given, SentencePiece, Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class DataConfig:
    """What is read, how it becomes tokens, and what is held out."""

    source: Source = field(default_factory=Text)
    """Where the text comes from."""
    tokenizer: TokenizerConfig = field(default_factory=SentencePiece)
    """How text becomes ids; trained on the training split only."""
    validation: float = 0.1
    """Share of the text that is held out; 0 holds out nothing."""
    task: Task = field(default_factory=LanguageModel)
    """What is predicted from what."""
    split: Literal["auto", "documents", "tail"] = "auto"
    """Hold out whole documents (picked by a hash of their text), or the tail of each; `auto`:
    documents from 50 on."""
    isolated: bool = True
    """Documents that share a row do not see each other."""
    cache: str | None = None
    """Folder of prepared data; none is the user's cache folder."""

    def __post_init__(self) -> None:
        require(
            0 <= self.validation < 1,
            f"data.validation is {self.validation}, the share of text held out; more than the text"
            " has can't be: it needs [0, 1), for example --data.validation 0.1.",
        )
        task, source = type(self.task).__name__, type(self.source).__name__
        answered = isinstance(self.task, SequenceToSequence | Classification)
        needs = (
            "it needs records of two texts (Records)"
            if answered
            else "another task needs a source of whole texts (Text)"
        )
        require(
            answered == isinstance(self.source, Records),
            f"data.task is {task} and data.source {source}; {needs}.",
        )
        require(
            not answered or self.split != "tail",
            "data.split is 'tail' and records have none to hold out; use --data.split documents.",
        )
        ends = getattr(self.tokenizer, "end_of_document", True)
        require(
            ends or not isinstance(self.task, SequenceToSequence),
            "an answer needs an end: data.tokenizer.end_of_document is False; set it to True.",
        )


class Prepared(NamedTuple):
    """Data that is ready to train on."""

    tokenizer: Tokenizer
    train: store.Store
    validation: store.Store | None
    fingerprint: str
    """sha256 of all that made it, this version included."""
    content: str = ""
    """sha256 of the text and of what decides its ids, in any version: the identity of a run's
    data."""
    passed_over: tuple[str, ...] = ()
    """Bad records that were left out, and why; by source and place."""
    task: Task = LanguageModel()
    """The task of the config, with the labels of the data."""


def cache_folder(config: DataConfig) -> Path:
    """The folder of prepared data: `data.cache`, or `gptjax/data` in XDG's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(config.cache) if config.cache else base / "gptjax" / "data"


def prepare(
    config: DataConfig,
    say: Callable[[str], None] = lambda line: None,
    given: Tokenizer | None = None,
) -> Prepared:
    """Tokenises the source, or opens what an earlier call tokenised from the same text with the
    same settings.

    Args:
      given: the tokenizer to use instead of `config.tokenizer`: that of the run that resumes, or of
        the model that training starts from.

    Raises:
      ConfigError: the source, the tokenizer or the split can't be used.
    """
    unlabelled = config.task == Classification()
    found = sources.survey(config.source, labels=unlabelled)
    config = replace(config, task=Classification(found.labels)) if unlabelled else config
    if bad := found.passed_over:
        say(
            f"passed over {len(bad)} bad record{'s' * (len(bad) > 1)}, which"
            f" --data.source.max-bad-records allows; the first: {bad[0]}"
        )
    stored = (
        "tokenizer",
        "validation",
        "split",
        *(() if config.task == LanguageModel() else ("task",)),
    )
    settings = {k: v for k, v in to_dict(config).items() if k in stored}
    if given is not None and isinstance(config.tokenizer, Given):
        settings |= {"given": tokenizers.fingerprint(given)}
    content = _hash([found.fingerprint, settings])
    made_of = [found.fingerprint, settings, store.FORMAT, gptjax.__version__]
    fingerprint = _hash(made_of)
    folder = cache_folder(config) / fingerprint[:32]
    if given is not None and not _made_with(given, folder, config.tokenizer):
        fingerprint = _hash([*made_of, tokenizers.fingerprint(given)])
        folder = cache_folder(config) / fingerprint[:32]
    if not store.is_sealed(folder / "train"):
        draft = folder.with_name(f".making-{folder.name}-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed and had this number
        try:
            _make(config, found, draft, fingerprint, say, given)
            if folder.exists() and not store.is_sealed(folder / "train"):
                shutil.rmtree(folder)  # from before there were seals, or someone deleted a part
            if not folder.exists():
                draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    tokenizer = tokenizers.load(folder / "tokenizer")
    train, held_out = (
        store.open_store(folder / half) if share else None
        for half, share in (("train", 1), ("validation", _holds_out(config)))
    )
    for opened in filter(None, (train, held_out)):
        fits = (opened.header.vocab_size, opened.header.fingerprint) == (
            tokenizer.vocab_size + config.task.extra_ids,
            fingerprint,
        )
        require(
            fits,
            f"the token store {opened.path} is of another text or tokenizer; delete the folder"
            f" {folder}, it is made again.",
        )
    return Prepared(
        tokenizer, train, held_out, fingerprint, content, found.passed_over, config.task
    )


def _hash(made_of: Any) -> str:
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _made_with(given: Tokenizer, folder: Path, chosen: TokenizerConfig) -> bool:
    """Whether the text in a folder was, or will be, tokenised with the given tokenizer."""
    if isinstance(chosen, Given):
        return True
    if not store.is_sealed(folder / "train"):
        return False
    kept = tokenizers.load(folder / "tokenizer")
    return tokenizers.fingerprint(kept) == tokenizers.fingerprint(given)


def _make(
    config: DataConfig,
    source: Survey,
    folder: Path,
    fingerprint: str,
    say: Callable[[str], None],
    given: Tokenizer | None,
) -> None:
    """Reads the source once for a tokenizer that learns, and once for both stores."""
    begun, count = time.monotonic(), source.documents
    by_document = config.split == "documents" or (
        config.split == "auto" and (count >= 50 or isinstance(config.source, Records))
    )
    names = ("train", "validation") if _holds_out(config) else ("train",)

    def require_some(found: bool, name: str) -> None:
        mend = "use another share (--data.validation 0.1) or hold out tails (--data.split tail)"
        require(
            found,
            f"data.validation {config.validation} of {count} documents leaves nothing for {name};"
            f" {mend}.",
        )

    def texts() -> Iterator[str]:
        learned = False
        for document in sources.read(config.source):
            if text := _split(config, by_document, document)["train"]:
                learned = True
                yield from (
                    (text,)
                    if document.source is None
                    else (
                        (document.source,)
                        if isinstance(config.task, Classification)
                        else (document.source, text)
                    )
                )
        require_some(learned, "train")

    tokenizer = given or tokenizers.train(config.tokenizer, texts())
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.save(folder / "tokenizer", tokenizer)
    halves = {
        name: _Half(folder / name, tokenizer, config.task, compare=name == "validation")
        for name in names
    }
    digest = hashlib.sha256()
    for document in sources.digested(sources.read(config.source), digest):
        for name, text in _split(config, by_document, document).items():
            if text and name in halves:
                halves[name].add(document._replace(text=text))
    require(
        digest.hexdigest() == source.fingerprint,
        "the text (data.source) changed while it was read; start again when nothing writes to it.",
    )
    for name, half in halves.items():
        made = half.close(fingerprint)
        require_some(made.num_examples > 0, name)
        need = "use more text (--data.source.path) or another share (--data.validation 0.1)"
        require(
            made.num_tokens > made.num_examples,
            f"the {name} text has {made.num_tokens} tokens, so there is nothing to predict;"
            f" {need}.",
        )
        if name == "train":
            size = (
                f"{made.num_tokens:,} training tokens ({made.num_bytes / made.num_tokens:.2f} bytes"
                " each)"
            )
    say(
        f"tokenised {count:,} documents into {size} in {time.monotonic() - begun:.1f}s; kept in"
        f" {folder.parent}"
    )


def _holds_out(config: DataConfig) -> bool:
    return config.validation > 0 or (
        isinstance(config.source, Records) and config.source.held_out is not None
    )


def _split(config: DataConfig, by_document: bool, document: Document) -> dict[str, str]:
    """What of a document is trained on and what is held out. All answers to one text are on one
    side."""
    text, held_out = document.text, document.held_out
    if held_out is None and by_document:
        digest = hashlib.sha256((document.source or text).encode("utf-8", "surrogatepass")).digest()
        held_out = int.from_bytes(digest[:8], "big") < config.validation * 2**64
    if held_out is not None:
        return {"train": "" if held_out else text, "validation": text if held_out else ""}
    cut = int(len(text) * (1 - config.validation))
    return {"train": text[:cut], "validation": text[cut:]}


class _Half:
    """One of the two stores on its way: texts are collected until there are enough for the
    tokenizer to use all cores."""

    ENOUGH = 2**22
    """Characters."""

    def __init__(self, path: Path, tokenizer: Tokenizer, task: Task, *, compare: bool):
        self.tokenizer, self.task, self.writer = (
            tokenizer,
            task,
            store.Writer(path, tokenizer.vocab_size + task.extra_ids),
        )
        self.packed = (
            _Packers()
            if compare and not isinstance(task, SequenceToSequence | Classification)
            else None
        )
        self.documents: list[Document] = []
        self.num_bytes = self.waiting = 0

    def add(self, document: Document) -> None:
        self.documents.append(document)
        self.waiting += len(document.text) + len(document.source or "")
        if self.waiting >= self.ENOUGH:
            self.tokenise()

    def tokenise(self) -> None:
        for document in self.documents:
            content = document.text.encode()
            self.num_bytes += len(content)
            if self.packed:
                self.packed.add(content)
        texts, answers = (
            [document.source or document.text for document in self.documents],
            [None] * len(self.documents),
        )
        try:
            if isinstance(self.task, Classification):
                answers = self._labels()
            elif isinstance(self.task, SequenceToSequence):
                answers = self.tokenizer.encode_all([document.text for document in self.documents])
            for ids, answer in zip(self.tokenizer.encode_all(texts), answers, strict=True):
                self.writer.add(tasks.example(self.task, ids, self.tokenizer, answer).ids)
        except Exception as error:
            error.add_note(f"It happened in {self._culprit()}.")
            raise
        self.documents, self.waiting = [], 0

    def _labels(self) -> list[str]:
        for document in self.documents:
            known = document.text in self.task.labels
            require(
                known,
                f"{document.name} has the label {document.text!r}, which is not in"
                " data.task.labels; name it there, or leave labels empty.",
            )
        return [document.text for document in self.documents]

    def _culprit(self) -> str:
        """The first document that can't be tokenised alone."""
        for document in self.documents:
            try:
                list(self.tokenizer.encode_all([document.source or document.text, document.text]))
            except Exception:
                return document.name
        return f"one of {self.documents[0].name} to {self.documents[-1].name}"

    def close(self, fingerprint: str) -> store.Header:
        self.tokenise()
        facts = self.packed.bits_per_byte() if self.packed else {}
        return self.writer.close(num_bytes=self.num_bytes, fingerprint=fingerprint, facts=facts)


class _Packers:
    """gzip -9 and xz -9 over the same bytes, one stream each: what a compressor without learning
    reaches.

    They read the first `MOST` bytes, so that neither time nor memory grows with the text.
    """

    MOST = 2**22

    def __init__(self) -> None:
        whole = {
            "id": lzma.FILTER_LZMA2,
            "preset": 9,
            "dict_size": self.MOST,
        }  # larger than the text it would find nothing more
        self.streams = {
            "gzip -9": zlib.compressobj(9, wbits=31),
            "xz -9": lzma.LZMACompressor(filters=[whole]),
        }
        self.sizes = dict.fromkeys(self.streams, 0)
        self.read = 0

    def add(self, data: bytes) -> None:
        data = data[: self.MOST - self.read]
        self.read += len(data)
        for name, stream in self.streams.items():
            self.sizes[name] += len(stream.compress(data))

    def bits_per_byte(self) -> dict[str, float]:
        return {
            name: 8 * (self.sizes[name] + len(stream.flush())) / max(1, self.read)
            for name, stream in self.streams.items()
        }
