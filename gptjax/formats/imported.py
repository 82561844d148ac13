"""What every format becomes: a model, and what its files say beside the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gptjax.core.arrays import Params
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig


@dataclass(frozen=True)
class About:
    """What a model's files say beside weights and tokenizer; it is carried along when the model is
    written in another format.

    Control tokens and the chat template belong to the tokenizer: `tokenizer.special`.
    """

    family: str | None = None
    """Their word for the architecture (`llama`, `qwen2`, …); none for a model of our own."""
    source: str | None = None
    """Where it came from, in a few words."""
    pad: int | None = None
    """The id of padding."""
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Their settings of generation: temperature, top_p, …"""
    padding: int = 0
    """Rows at the end of the vocabulary that no token uses; they were taken off."""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Short facts for the file's metadata, such as what `convert` measured."""


class Imported(NamedTuple):
    """A model that was read from a file of another program, or that is to be written as one."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer | None
    """None where the files have none."""
    about: About = About()
