"""Models of other programs, read and written: Hugging Face directories, GGUF files, llama2.c's
files.

Read `Imported` (what every format becomes), then `load` and `save`, which choose by what lies at a
path. A format is a module with `load(path) -> Imported` and `save(path, imported, dtype)`. Nothing
that is read is executed; of what a file says that could change numbers, all is translated or
refused by name.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from gptjax import model
from gptjax.core.config import require
from gptjax.formats.imported import About, Imported
from gptjax.formats.packaged import located
from gptjax.model import ModelConfig
from gptjax.sharding.mesh import param_shardings

__all__ = ["About", "Imported", "kind", "load", "located", "save"]

Kind = Literal["huggingface", "gguf", "llama2c"]


def kind(path: Path | str) -> Kind | None:
    """Says which of these formats lies at a path, or is meant by a path that is not there yet; none
    is no format of other programs."""
    path = Path(path)
    by_name: dict[str, Kind] = {".gguf": "gguf", ".bin": "llama2c"}
    if path.suffix in by_name and not path.is_dir():
        return by_name[path.suffix]
    from gptjax.formats import huggingface

    return "huggingface" if huggingface.lies_at(path) else None


def load(path: Path | str, mesh: Any = None) -> Imported:
    """Reads a model, tensor by tensor.

    Args:
      mesh: place each parameter on this mesh by the rules of `parallel`, as soon as it is read;
        none is the default device.

    Raises:
      ConfigError: there is no such model, it is damaged, or it does what ours does not; says which
        part.
    """
    path, shardings = Path(path), None if mesh is None else functools.partial(_shardings, mesh)
    match kind(path):
        case "huggingface":
            from gptjax.formats import huggingface

            return huggingface.load(path, shardings)
        case "gguf":
            from gptjax.formats import gguf

            return gguf.load(path, shardings)
        case "llama2c":
            from gptjax.formats import llama2c

            return llama2c.load(path)
    require(path.exists(), f"{path} is not there; give a Hugging Face directory or a .gguf file.")
    require(
        False,
        f"{path} is no model that can be read; give a Hugging Face directory (config.json,"
        " *.safetensors) or a .gguf file.",
    )
    raise AssertionError


def _shardings(mesh: Any, config: ModelConfig) -> Any:
    """Where each parameter of a model lies on a mesh."""
    return param_shardings(mesh, model.axes(config), model.shapes(config))


def save(path: Path | str, imported: Imported, dtype: str = "float32") -> None:
    """Writes a model: a path that ends with .gguf becomes a GGUF file, any other a Hugging Face
    directory.

    Args:
      dtype: of the weights: float32, bfloat16, float16, and what else the format has (GGUF: q8_0).

    Raises:
      ConfigError: the format has no place for something in this model; says for what.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        from gptjax.formats import gguf

        return gguf.save(path, imported, dtype)
    from gptjax.formats import huggingface

    return huggingface.save(path, imported, dtype)
