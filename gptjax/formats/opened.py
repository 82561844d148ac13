"""`OpenedModel`, which every format is read into and written from, and `About`, its provenance."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Params
from gptjax.data.tasks import (
    LanguageModel,
    MaskedDiffusion,
    MaskedLanguageModel,
    SequenceToSequence,
    Task,
)
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class About:
    """What a model's files say besides weights and tokenizer. It is kept when the model is written
    in another format.

    Control tokens and the chat template belong to the tokenizer: `tokenizer.special`.
    """

    family: str | None = None
    """The architecture's name in the source format (`llama`, `qwen2`, …); `None` for our own."""
    source: str | None = None
    """Where the model came from, in a few words."""
    pad: int | None = None
    """Id of the padding token."""
    mask: int | None = None
    """Id of a token that is not written yet, of models that write by filling in masks."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The source's generation settings: temperature, top_p, …"""
    padding: int = 0
    """Number of unused rows that were removed from the end of the vocabulary."""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Short facts for the file's metadata, such as what `convert` measured."""


class OpenedModel(NamedTuple):
    """A trained model, whatever format it was read from or will be written to."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    """`None` if the files have none."""
    about: About = About()
    task: Task = LanguageModel()
    """What the model was trained to do with its input."""

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the parameters: names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()


def task_of(config: ModelConfig, about: About) -> Task:
    """Returns the task of a model whose files do not name one.

    An encoder-decoder (T5) answers, starting from the id its files give as
    `decoder_start_token_id`; an encoder (BERT) fills in masked tokens, and writes so where its
    files give a `mask` (LLaDA); a decoder continues text.
    """
    if config.encoder_layers:
        begin = about.generation.get("decoder_start_token_id", about.pad or 0)
        return SequenceToSequence(begin=int(begin), closed=True)
    if config.continues:
        return LanguageModel()
    return MaskedLanguageModel() if about.mask is None else MaskedDiffusion(mask=about.mask)
