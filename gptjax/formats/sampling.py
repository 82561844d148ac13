"""How a published model asks to be sampled: `sampling_of` reads it without reading the model.

A Hugging Face directory says so in generation_config.json, a GGUF file in `general.sampling.*`;
both give the names of `transformers` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptjax.formats import packaged

GGUF = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
    "general.sampling.penalty_last_n": "penalty_window",
    "general.sampling.xtc_probability": "xtc_probability",
    "general.sampling.xtc_threshold": "xtc_threshold",
}
"""Keys of GGUF metadata, and the names of `transformers`, or ours where it has none."""


def sampling_of(path: Path | str) -> Mapping[str, Any]:
    """Returns the generation settings of a published model by the names of `transformers`; empty
    for other models.

    Raises:
      ConfigError: the file is damaged.
    """
    known = packaged.PACKAGED.get(str(path))
    if known is not None and not Path(path).exists():
        return known.sampling
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        from gptjax.formats.gguf_parts import open_whole

        return of_gguf(open_whole(path).fields)
    if path.is_dir():
        from gptjax.formats import huggingface
        from gptjax.formats.huggingface_files import read_object

        return read_object(path, "generation_config.json") if huggingface.lies_at(path) else {}
    return {}


def of_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in a GGUF file's metadata."""
    return {name: fields[key] for key, name in GGUF.items() if key in fields}


def to_gguf(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as a GGUF file's metadata; the inverse of `of_gguf`."""
    kinds = {"top_k": int, "penalty_window": int}
    return {
        key: kinds.get(name, float)(generation[name])
        for key, name in GGUF.items()
        if isinstance(generation.get(name), int | float)
    }
