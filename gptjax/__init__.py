"""gptjax: the GPT stack in JAX and Flax. `gptjax.load(path)` opens a trained model; `gptjax --help`
says the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pathlib import Path

    from jax.sharding import Mesh

    from gptjax.api import Model
    from gptjax.core.config import Classes
    from gptjax.sharding.mesh import MeshConfig


def load(
    path: Path | str,
    step: int | None = None,
    mesh: MeshConfig | Mesh | None = None,
    *,
    live: bool = False,
    known: Classes = (),
    packed: bool = False,
) -> Model:
    """Opens a run directory, a Hugging Face directory or a GGUF file:
    `gptjax.load("runs/quickstart").generate("def ")`. See `gptjax.api.load`."""
    from gptjax.api import load

    return load(path, step, mesh, live=live, known=known, packed=packed)
