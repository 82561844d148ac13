"""Models of other programs, read and written: Hugging Face directories, GGUF and llama2.c files;
read, Whisper in CTranslate2's files.

`load_model` and `save_model` choose the format. Reading never executes anything. Whatever a file
says that could change what the model computes is translated, or refused by name.
`gptjax.runs.open.open_model` opens these and our own runs alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from gptjax.core.config import require
from gptjax.data.tokenizers import directory
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Published, Tokenizer
from gptjax.formats.opened import About, OpenedModel, nothing_packed, task_of
from gptjax.formats.packaged import located
from gptjax.model import ModelConfig
from gptjax.weights import has_packed

__all__ = [
    "About",
    "OpenedModel",
    "holds_tokenizer",
    "kind",
    "load_model",
    "located",
    "nothing_packed",
    "read_model_tokenizer",
    "save_model",
]

Kind = Literal["huggingface", "gguf", "llama2c", "ctranslate2"]
SUFFIXES: dict[str, Kind] = {".gguf": "gguf", ".bin": "llama2c"}


def kind(path: Path | str) -> Kind | None:
    """Returns the format of the model at a path, which need not exist yet if its suffix says so.
    `None` means none of these formats."""
    path = Path(path)
    if path.suffix in SUFFIXES and not path.is_dir():
        return SUFFIXES[path.suffix]
    from gptjax.formats import ctranslate2, huggingface

    if huggingface.lies_at(path):
        return "huggingface"
    return "ctranslate2" if ctranslate2.holds_ctranslate2(path) else None


def load_model(
    path: Path | str,
    shardings: Callable[[ModelConfig], Any] | None = None,
    ignored: Collection[str] = (),
    packed: bool = False,
) -> OpenedModel:
    """Reads a model, tensor by tensor.

    Args:
      shardings: maps the config to a tree of shardings; each parameter is placed as soon as it is
        read. `None` means the default device.
      ignored: keys of config.json, or of a GGUF file's metadata without the architecture, that are
        known to change nothing, though not here.
      packed: keep quantised weights as they are stored, where ours can hold them, instead of
        widening them to float32; on the default device.

    Raises:
      ConfigError: there is no such model, it is damaged, or it computes something that ours does
        not; names the part.
    """
    path = Path(path)
    chosen = kind(path)
    require(
        path.exists() or chosen is not None,
        f"{path} does not exist; give a Hugging Face directory or a .gguf file.",
    )
    require(
        chosen is not None,
        f"{path} is not a model that can be read; give a Hugging Face directory (config.json,"
        " *.safetensors) or a .gguf file.",
    )
    require(
        not ignored or chosen in ("huggingface", "gguf"),
        f"{path} has no keys to ignore; omit --ignore-keys.",
    )
    if chosen == "huggingface":
        from gptjax.formats.huggingface import load_huggingface

        model = load_huggingface(path, shardings, ignored, packed)
    elif chosen == "gguf":
        from gptjax.formats.gguf import load_gguf

        model = load_gguf(path, shardings, ignored, packed)
    elif chosen == "ctranslate2":
        from gptjax.formats.ctranslate2 import load_ctranslate2

        model = load_ctranslate2(path, shardings)
    else:
        from gptjax.formats.llama2c import load_llama2c

        model = load_llama2c(path, shardings)
    require(not packed or has_packed(model.params), nothing_packed(path))
    return model._replace(task=task_of(model.config, model.about, model.tokenizer))


def holds_tokenizer(path: Path) -> bool:
    """Whether a path is a directory with a Hugging Face tokenizer, with or without a model."""
    return path.is_dir() and any((path / name).is_file() for name in directory.FILES)


def read_model_tokenizer(path: Path | str) -> Tokenizer:
    """Reads a model's tokenizer without its weights, which need not be there.

    Raises:
      ConfigError: there is no such model, or it has no tokenizer.
    """
    path, tokenizer = Path(path), None
    if kind(path) == "huggingface" or holds_tokenizer(path):
        return tokenizers.train_tokenizer(Published(str(path)), ())
    require(path.is_file(), f"{path} does not exist; give a model with a tokenizer.")
    if kind(path) == "gguf":
        from gptjax.formats import gguf_tokenizer
        from gptjax.formats.gguf_file import open_file

        tokenizer = gguf_tokenizer.tokenizer_of(open_file(path))
    require(tokenizer is not None, f"{path} has no tokenizer; give another model.")
    return tokenizer


def save_model(path: Path | str, model: OpenedModel, dtype: str = "float32") -> None:
    """Writes a model: a GGUF file if the path ends with .gguf, else a Hugging Face directory.

    Args:
      dtype: of the weights: float32, bfloat16, float16, or another that the format has (GGUF:
        q8_0).

    Raises:
      ConfigError: the format cannot express something in this model; names it.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        from gptjax.formats.gguf import save_gguf

        save_gguf(path, model, dtype)
    else:
        from gptjax.formats.huggingface import save_huggingface

        save_huggingface(path, model, dtype)
