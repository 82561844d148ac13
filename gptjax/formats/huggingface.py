"""Hugging Face directories, read and written: config.json, safetensors, tokenizer files and
generation settings.

Read `load_huggingface`, then `save_huggingface`. Families are in `huggingface_families`, files in
`huggingface_files`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError, first_line, nearest, require
from gptjax.data.tokenizers import directory
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Published, Tokenizer
from gptjax.formats import deepseek, huggingface_tokenizer, layout, llada, repeated, safetensors
from gptjax.formats.family import Family
from gptjax.formats.huggingface_families import FAMILIES, INSIDE, family_of
from gptjax.formats.huggingface_files import (
    FILES,
    equal,
    inside,
    read_object,
    read_tensors,
    write_tensors,
)
from gptjax.formats.keys import Keys, impossible
from gptjax.formats.opened import About, OpenedModel, decoder_start, nothing_packed
from gptjax.formats.picture_configs import PREPROCESSOR, preprocessor_json, with_preprocessor
from gptjax.formats.quantised import QuantisedTensor, scheme_of
from gptjax.formats.quantised.grid import Grid
from gptjax.formats.quantised.leaves import held
from gptjax.formats.quantised.parts import Raw
from gptjax.model import ModelConfig

STARTS = ("decoder_start_token_id", "forced_bos_token_id")
"""Settings of generation that older files have in config.json."""


def lies_at(path: Path) -> bool:
    """Whether a path is a directory with a config.json that names an architecture; a run's own
    config.json does not."""
    try:
        return (
            path.is_dir()
            and (path / "config.json").is_file()
            and isinstance(read_object(path, "config.json").get("model_type"), str)
        )
    except ConfigError:
        return False


# --- reading -------------------------------------------------------------------------------------


def load_huggingface(
    path: Path,
    shardings: Callable[[ModelConfig], Any] | None = None,
    ignored: Collection[str] = (),
    packed: bool = False,
) -> OpenedModel:
    """Reads a directory; see `formats.load_model`."""
    for name in FILES:
        inside(path, name)
    data = read_object(path, "config.json")
    inner = INSIDE.get(str(data.get("model_type")))
    data = data if inner is None else inner(data)
    data, scheme = scheme_of(data, str(path / "config.json"))
    require(not packed or scheme is not None, nothing_packed(path))
    family = _family(data, path)
    data = {key: value for key, value in data.items() if key not in ignored}
    keys = Keys(data, str(path / "config.json"))
    config = config_of_keys(family, keys)
    config = with_preprocessor(config, read_object(path, PREPROCESSOR))
    stored = read_tensors(path, family, scheme)
    _require_tied(path, family, config, stored)
    config = deepseek.with_further(config, stored) if family.further else config
    tokenizer = _tokenizer(path, config.vocabulary)
    mask = llada.mask_of(data)
    used = 0 if tokenizer is None else max(tokenizer.vocab_size, 0 if mask is None else mask + 1)
    # Whisper's tokenizers may lack its timestamps, the last ids.
    bare = tokenizer is None or config.frames is not None
    padding = 0 if bare else config.vocabulary - used
    config = dataclasses.replace(config, vocab_size=config.vocabulary - padding)
    places = family.places(config)
    unused = [pattern.replace("{last}", str(config.num_layers)) for pattern in family.unused]
    if config.tied:
        unused.append(re.escape(family.output))
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    layout.require_all(places, shapes, str(path), padding, unused)
    repeated.require_constants(places, lambda name: stored[name].take(), str(path))
    repeated.require_copies(places, lambda name: stored[name].take(), stored, str(path))
    absent = {
        place.name: np.zeros(layout.their_shape(place, padding), np.float32)
        for place in places
        if place.entry.optional and place.name not in stored
    }
    params = layout.read_params(
        config,
        places,
        lambda name: absent[name] if name in absent else stored[name].take(),
        None if shardings is None else shardings(config),
        functools.partial(held, grid_of=lambda name: _grid(stored.get(name))) if packed else None,
    )
    return OpenedModel(config, params, tokenizer, _about(path, data, padding))


def config_of_keys(family: Family, keys: Keys) -> ModelConfig:
    """Returns the model that the keys of a config.json describe.

    Raises:
      ConfigError: it cannot be, a key is not known, or a value is damaged.
    """
    try:
        config = family.read(keys)
    except ConfigError as error:
        raise impossible(keys.where, error) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise ConfigError(
            f"{keys.where} has a value of a kind that {keys.data.get('model_type')!r} does not"
            f" have ({type(error).__name__}: {first_line(error)}); get it again."
        ) from error
    keys.finish()
    return config


def _grid(tensor: Raw | QuantisedTensor | None) -> Grid | None:
    return tensor.grid() if isinstance(tensor, QuantisedTensor) else None


def _about(path: Path, data: Mapping[str, Any], padding: int) -> About:
    generation = read_object(path, "generation_config.json")
    generation.pop("transformers_version", None)
    generation.pop("_from_model_config", None)
    own = {name: data[name] for name in STARTS if data.get(name) is not None}
    generation = {**own, **generation}
    pads = (data.get("pad_token_id"), generation.get("pad_token_id"))
    notes = data.get("gptjax")
    return About(
        family=data["model_type"],
        source=f"Hugging Face directory {path.name}",
        pad=next((pad for pad in pads if type(pad) is int), None),
        mask=llada.mask_of(data),
        generation=generation,
        padding=padding,
        notes={str(k): str(v) for k, v in notes.items()} if isinstance(notes, dict) else {},
    )


def _family(data: Mapping[str, Any], path: Path) -> Family:
    name = data.get("model_type")
    require(
        isinstance(name, str) and name in FAMILIES,
        f"{path / 'config.json'} has the model_type {name!r}; known are"
        f" {', '.join(FAMILIES)}.{nearest(str(name), FAMILIES)}",
    )
    return FAMILIES[name]


def _require_tied(
    path: Path, family: Family, config: ModelConfig, stored: Mapping[str, Raw]
) -> None:
    """Refuses a file whose output differs from the embedding that it is said to be."""
    output, table = stored.get(family.output), stored.get(family.places(config)[0].name)
    if config.tied and output is not None and table is not None:
        require(
            equal(output, table),
            f"{path} has a {family.output} that is not its embedding, and says that the two are"
            " tied; set tie_word_embeddings to false in config.json.",
        )


def _tokenizer(path: Path, num_rows: int) -> Tokenizer | None:
    """The tokenizer of the directory, with no more tokens than the model has rows."""
    if not any(inside(path, name).is_file() for name in directory.FILES):
        return None
    tokenizer = huggingface_tokenizer.fitting(
        tokenizers.train_tokenizer(Published(str(path)), ()), num_rows
    )
    require(
        tokenizer.vocab_size <= num_rows,
        f"{path} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {num_rows}; get"
        " the tokenizer that belongs to the model.",
    )
    return tokenizer


# --- writing -------------------------------------------------------------------------------------


def save_huggingface(
    path: Path,
    model: OpenedModel,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
    write: Callable[..., None] = write_tensors,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes a directory; see `formats.save_model`. config.json is written last: a directory
    without it is not complete.

    Args:
      shard_bytes: maximum size of a file of tensors.
      write: writes the tensors, see `write_tensors`.
      more: further keys of config.json.

    Raises:
      ConfigError: the path holds something already, or no family computes what this model does.
    """
    require(
        dtype in safetensors.DTYPES,
        f"dtype is {dtype!r}; a Hugging Face directory can have {', '.join(safetensors.DTYPES)}"
        f" (--dtype).{nearest(dtype, safetensors.DTYPES)}",
    )
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(empty, f"{path} holds something already; give a directory that does not exist yet.")
    name = family_of(model.config, model.about.family)
    family = FAMILIES[name]
    path.mkdir(parents=True, exist_ok=True)
    if model.tokenizer is not None:
        files = huggingface_tokenizer.files(model.tokenizer, model.config.context)
        for file, content in files.items():
            (path / file).write_bytes(content)
    write(path, family.places(model.config), model.params, dtype, shard_bytes)
    if model.config.vision is not None:
        said = json.dumps(preprocessor_json(model.config.vision), indent=2)
        (path / PREPROCESSOR).write_text(said + "\n")
    ids = _special_ids(model)
    if model.config.causal:
        settings = {**model.about.generation, **ids}
        (path / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    data = {
        "architectures": [family.architecture],
        "model_type": name,
        **ids,
        **family.write(model.config),
        "torch_dtype": dtype,
        **(more or {}),
    }
    write_notes(path, model.about.notes, data)


def write_notes(path: Path, notes: Mapping[str, str], data: dict[str, Any] | None = None) -> None:
    """Writes config.json with notes under `gptjax`, which other programs ignore. Without `data` the
    present content stays."""
    data = read_object(path, "config.json") if data is None else data
    data = {**data, "gptjax": dict(notes)} if notes else data
    staged = path / "config.json.new"
    staged.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    staged.replace(path / "config.json")


def _special_ids(model: OpenedModel) -> dict[str, Any]:
    """The ids with which texts begin and end, under the names in their configs."""
    tokenizer, ids = model.tokenizer, {}
    if tokenizer is not None:
        ends = [i for i in (tokenizer.end_of_document, *tokenizer.ends) if i is not None]
        begin = tokenizer.begin_of_document if tokenizer.special is None else tokenizer.special.bos
        ids = {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    if tokenizer is not None and (mask := model.task.mask_id(tokenizer)) is not None:
        ids["mask_token_id"] = mask
    if model.config.has_encoder:
        ids["decoder_start_token_id"] = decoder_start(model.about)
    return {**ids, "pad_token_id": model.about.pad}
