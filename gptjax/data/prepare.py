"""From a source to a tokenizer and two stores, made once and kept in the user's cache folder under
a hash of all that made them.

Read `DataConfig`, then `prepare`; `build_stores` makes what is not there yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gptjax
from gptjax.core import backend
from gptjax.core.config import formerly, require, stable_dict
from gptjax.data import store
from gptjax.data.build import build_stores
from gptjax.data.cleaning import Cleaning
from gptjax.data.documents import sources
from gptjax.data.documents.sources import (
    Source,
    Survey,
    Text,
)
from gptjax.data.noise import TASKS as NOISED
from gptjax.data.noise import CharacterNoise
from gptjax.data.split import Census, Split
from gptjax.data.swap import Swap
from gptjax.data.tasks import LanguageModel, Task, TaskConfig
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Given, SentencePiece, Tokenizer, TokenizerConfig


@formerly(added=("clean", "swap", "noise"))
@dataclass(frozen=True)
class DataConfig:
    """The text, how it becomes tokens, and what is held out."""

    source: Source = field(default_factory=Text)
    """Where the text comes from."""
    tokenizer: TokenizerConfig = field(default_factory=SentencePiece)
    """How text becomes ids; trained on the training split only."""
    validation: float = 0.1
    """Share of the text that is held out; 0 holds out nothing."""
    task: TaskConfig = field(default_factory=LanguageModel)
    """What is predicted from what."""
    split: Literal["auto", "documents", "tail"] = "auto"
    """Hold out whole documents (chosen by a hash of their text), or the tail of each; `auto`:
    documents if there are 50 or more."""
    isolated: bool = True
    """Documents that share a row do not see each other."""
    swap: Swap = field(default_factory=Swap)
    """Counterfactual augmentation: training documents whose words of one gender are exchanged for
    those of the other."""
    noise: CharacterNoise = field(default_factory=CharacterNoise)
    """Slips of the keyboard in training rows, others each time."""
    max_lost: float = 0.01
    """Largest share of the text that may consist of characters which the tokenizer cannot write."""
    cache: str | None = None
    """Folder of prepared data; `None` is the user's cache folder."""
    clean: Cleaning | None = None
    """How the text is cleaned first, as `gptjax clean` does; `None` takes it as it is."""

    def __post_init__(self) -> None:
        require(
            0 <= self.validation < 1,
            f"data.validation is {self.validation}, the share of text held out; it needs a number"
            " in [0, 1), for example --data.validation 0.1.",
        )
        task, source, pairs = self.task, type(self.source).__name__, self.task.records
        require(
            source in task.sources,
            f"data.task is {type(task).__name__} and data.source {source}; it needs"
            f" {' or '.join(task.sources)}.",
        )
        require(
            not pairs or self.split != "tail",
            "data.split is 'tail' and records have none to hold out; use --data.split documents.",
        )
        require(
            not self.swap.share or source in ("Text", "Tfds", "Mixture", "Records"),
            f"data.swap changes whole texts and data.source is {source}; use a Text, or omit it.",
        )
        require(
            not self.noise.words or (type(task) in NOISED and self.isolated),
            f"data.noise changes rows of {' or '.join(kind.__name__ for kind in NOISED)} with"
            f" data.isolated, and data.task is {type(task).__name__}; omit it.",
        )
        require(
            self.clean is None or source in ("Text", "Mixture"),
            f"data.clean cleans text, and data.source is {source}; clean its files first: gptjax"
            " clean FILE OUT --fields messages.*.content.",
        )
        answers_end = getattr(self.tokenizer, "end_of_document", True)
        require(
            answers_end or not (pairs and self.task.writes),
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
    cleaned: tuple[dict[str, Any], ...] = ()
    """What `data.clean` did to each text, with hashes."""


class Kept(NamedTuple):
    """What a run remembers of its prepared data, for when the text is no longer there."""

    content: str
    fingerprint: str


def cache_folder(config: DataConfig) -> Path:
    """Returns the folder of prepared data: `data.cache`, or `gptjax/data` in XDG's cache folder."""
    return Path(config.cache) if config.cache else backend.user_cache() / "data"


def prepare(
    config: DataConfig,
    say: Callable[[str], None] = lambda line: None,
    given: Tokenizer | None = None,
    kept: Kept | None = None,
) -> Prepared:
    """Tokenises the source, or opens what an earlier call tokenised from the same text with the
    same settings.

    Args:
      given: the tokenizer to use instead of `config.tokenizer`: that of the run that resumes, or of
        the model that training starts from.
      kept: the data to open if the source is not there.

    Raises:
      ConfigError: the source, the tokenizer or the split can't be used.
    """
    if kept is not None and not sources.is_there(config.source):
        folder = cache_folder(config) / kept.fingerprint[:32]
        if store.is_sealed(folder / "train"):
            say(f"the text is not there any more; training on what was prepared of it, in {folder}")
            return _opened(config, folder, kept)
    config = replace(config, source=sources.fetched(config.source))
    config, cleaned = _cleaned(config, say)
    census = Census() if config.validation and config.split != "tail" else None
    survey = sources.survey(
        config.source, labels=config.task.classes == 0, visit=census and census.add
    )
    config = replace(config, task=config.task.resolve(survey.labels))
    given = given and config.task.equip(given)
    _say_what_is_missing(survey, say)
    split = Split.of(config.split, config.validation, config.source, survey.documents, census)
    made_of = [survey.fingerprint, _settings(config, split, given)]
    content = digest_of(made_of)
    made_of += [store.FORMAT, gptjax.__version__]
    fingerprint = digest_of(made_of)
    folder = cache_folder(config) / fingerprint[:32]
    if given is not None and not _made_with(given, folder, config.tokenizer):
        fingerprint = digest_of([*made_of, tokenizers.hash_tokenizer(given)])
        folder = cache_folder(config) / fingerprint[:32]
    if not _is_whole(folder, split):
        _build_beside(folder, config, survey, split, fingerprint, say, given)
    prepared = _opened(config, folder, Kept(content, fingerprint))
    stores = (prepared.train, prepared.validation or prepared.train)
    _require_covered(max((s.header.facts for s in stores), key=_lost), config.max_lost, say)
    return prepared._replace(passed_over=survey.passed_over, cleaned=cleaned)


def _cleaned(
    config: DataConfig, say: Callable[[str], None]
) -> tuple[DataConfig, tuple[dict[str, Any], ...]]:
    """The config with its text cleaned, and what was done."""
    if config.clean is None:
        return config, ()
    from gptjax.clean.cached import cleaned_source  # a client room, which most runs need not

    source: Any = config.source
    source, facts = cleaned_source(source, config.clean, cache_folder(config), say)
    for one in facts:
        say(f"cleaned: {one['headline']}; {one['page']}")
    return replace(config, source=source, clean=None), facts


def _opened(config: DataConfig, folder: Path, made: Kept) -> Prepared:
    """Opens the stores of a folder.

    Raises:
      ConfigError: they are of another text or tokenizer.
    """
    tokenizer = tokenizers.load_tokenizer(folder / "tokenizer")
    names = ("train", "validation") if (folder / "validation").is_dir() else ("train",)
    stores = {name: store.open_store(folder / name) for name in names}
    for opened in stores.values():
        header = (opened.header.vocab_size, opened.header.fingerprint)
        require(
            header == (tokenizer.vocab_size + config.task.extra_ids, made.fingerprint),
            f"the token store {opened.path} is of another text or tokenizer; delete the folder"
            f" {folder}, it is made again.",
        )
    return Prepared(
        tokenizer=tokenizer,
        train=stores["train"],
        validation=stores.get("validation"),
        fingerprint=made.fingerprint,
        content=made.content,
        task=config.task,
    )


def _say_what_is_missing(survey: Survey, say: Callable[[str], None]) -> None:
    if bad := survey.passed_over:
        say(
            f"passed over {len(bad)} bad record{'s' * (len(bad) > 1)}, which"
            f" --data.source.max-bad-records allows; the first: {bad[0]}"
        )
    if names := survey.left_out:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(
            f"left out {len(names)} files, binary or links to nothing: {', '.join(names[:3])}{more}"
        )


def _lost(facts: dict[str, Any]) -> float:
    """The share of a store's text that the tokenizer cannot write."""
    return facts.get("lost", 0.0)


def _require_covered(facts: dict[str, Any], most: float, say: Callable[[str], None]) -> None:
    """Refuses a text of which the tokenizer loses too much."""
    lost = _lost(facts)
    if not lost:
        return
    loss = f"the tokenizer cannot write {lost:.2%} of the text ({facts['lost characters']})"
    require(
        lost <= most,
        f"{loss}; use another data.tokenizer, or allow the loss with --data.max-lost"
        f" {min(1.0, 1.1 * lost):.2g}.",
    )
    say(f"{loss}; bits per byte are those of the rest")


def _settings(config: DataConfig, split: Split, given: Tokenizer | None) -> dict[str, Any]:
    """The settings that decide ids. The default task is left out, as it was before tasks."""
    names = ["tokenizer", "validation", "split"]
    if config.task != LanguageModel():
        names.append("task")
    if config.swap.share:
        names.append("swap")
    settings = {name: value for name, value in stable_dict(config).items() if name in names}
    if split.largest is not None:
        settings["largest"] = split.largest
    if given is not None and isinstance(config.tokenizer, Given):
        settings["given"] = tokenizers.hash_tokenizer(given)
    return settings


def digest_of(made_of: Any) -> str:
    """Returns the SHA-256 of plain values: of their JSON, with sorted keys."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _made_with(given: Tokenizer, folder: Path, chosen: TokenizerConfig) -> bool:
    """Whether the text in a folder was, or will be, tokenised with the given tokenizer."""
    if isinstance(chosen, Given):
        return True
    if not store.is_sealed(folder / "train"):
        return False
    kept = tokenizers.load_tokenizer(folder / "tokenizer")
    return tokenizers.hash_tokenizer(kept) == tokenizers.hash_tokenizer(given)


def _is_whole(folder: Path, split: Split) -> bool:
    """Whether a folder has a store of each part: it lacks one if that was deleted, or if an earlier
    version did not hold out what the source says."""
    return all(store.is_sealed(folder / name) for name in split.names)


def _build_beside(
    folder: Path,
    config: DataConfig,
    survey: Survey,
    split: Split,
    fingerprint: str,
    say: Callable[[str], None],
    given: Tokenizer | None,
) -> None:
    """Builds the folder under another name and renames it, so that it is whole or absent."""
    draft = folder.with_name(f".making-{folder.name}-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed and had this number
    try:
        summary = build_stores(draft, config, split, survey, fingerprint=fingerprint, given=given)
        if folder.exists() and not _is_whole(folder, split):
            shutil.rmtree(folder)
        if not folder.exists():
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"{summary}; kept in {folder}")
