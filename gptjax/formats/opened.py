"""`OpenedModel`, which every format is read into and written from, and `About`, its provenance."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax.core.arrays import Params
from gptjax.data.tasks import (
    LanguageModel,
    MaskedDiffusion,
    MaskedLanguageModel,
    PictureTexts,
    SequenceToSequence,
    Task,
    Transcription,
    VisualAnswers,
)
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig, Vision


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


MASKS = ("[MASK]", "<mask>")
"""Names of the token that stands for a hidden one."""


def nothing_packed(path: Path | str) -> str:
    """What is wrong with keeping the weights of a model as they are stored if none is quantised."""
    return f"{path} has no quantised weights that can be kept as they are; omit --packed."


def task_of(config: ModelConfig, about: About, tokenizer: Tokenizer | None = None) -> Task:
    """Returns the task of a model whose files do not name one.

    An encoder-decoder (T5, BART) answers: what it reads stands between the ids that its tokenizer
    puts there, or before the end of a document, and what it writes begins with the ids that its
    files give as `decoder_start_token_id` and `forced_bos_token_id`. An encoder (BERT) fills in
    masked tokens, and writes so where its files give a `mask` (LLaDA); a decoder continues text. A
    model of frames (Whisper) writes what it hears.
    """
    if config.frames is not None:
        return Transcription(begin=(decoder_start(about),))
    if config.encoder_layers:
        lead = about.generation.get("forced_bos_token_id")
        before, after = ((), ()) if tokenizer is None else tokenizer.around
        marked = bool(after) and (before, after) != ((), (tokenizer.end_of_document,))
        return SequenceToSequence(
            begin=decoder_start(about),
            closed=not marked,
            before=before if marked else (),
            after=after if marked else (),
            lead=(lead,) if type(lead) is int else (),
        )
    if config.vision is not None and not config.classes:
        return _about_pictures(config.vision)
    if config.continues:
        return LanguageModel()
    if about.mask is not None:
        return MaskedDiffusion(mask=about.mask)
    controls = {} if tokenizer is None else tokenizer.controls
    own = next((controls[name].id for name in MASKS if name in controls), None)
    return MaskedLanguageModel(mask=own)


def _about_pictures(vision: Vision) -> Task:
    """The task of a model that reads pictures: to answer, or to compare."""
    how: dict[str, Any] = {"size": vision.size, "fit": vision.fit, "cubic": vision.cubic}
    if vision.joint is not None:
        return PictureTexts(**how)
    return VisualAnswers(**how, tokens=vision.tokens, picture=vision.token, begin=-1)


def decoder_start(about: About) -> int:
    """Returns the id from which an encoder-decoder begins to write."""
    begin = about.generation.get("decoder_start_token_id")
    return begin if type(begin) is int else about.pad or 0
