"""What a family of Hugging Face models is: `Family`. A file of families defines some of them, and
`huggingface_families` gathers all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gptjax.formats import layout
from gptjax.formats.keys import Keys
from gptjax.model import ModelConfig


class Family(NamedTuple):
    """An architecture of `transformers`: its config.json translated both ways, and which of its
    tensors is which of our leaves."""

    architecture: str
    """Name of its class."""
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    entries: tuple[layout.Entry, ...] | Callable[[ModelConfig], tuple[layout.Entry, ...]]
    prefix: str = "model."
    """Prefix of names in a model with a head; files of bare models lack it."""
    output: str = "lm_head.weight"
    """Name of the output, which repeats the embedding if the two are tied."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors that a forward pass does not use."""
    present: Callable[[str], str] | None = None
    """From the name of a tensor in any version of its files to that in `entries`; `None` means what
    all families of text have in common."""
    further: bool = False
    """Layers after the last predict further tokens, chained as DeepSeek-V3's."""

    def places(self, config: ModelConfig) -> list[layout.Place]:
        """Returns the tensors of a model."""
        entries = self.entries(config) if callable(self.entries) else self.entries
        return layout.places(config, entries)
