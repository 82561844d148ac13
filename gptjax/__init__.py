"""gptjax: the GPT stack in JAX and Flax. `gptjax.load(path)` opens a trained model; `gptjax --help`
says the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gptjax.api import Model


def load(path: Any, step: int | None = None) -> Model:
    """Opens a run directory, a Hugging Face directory or a GGUF file:
    `gptjax.load("runs/quickstart").generate("def ")`. See `gptjax.api.load`."""
    from gptjax.api import load

    return load(path, step)
