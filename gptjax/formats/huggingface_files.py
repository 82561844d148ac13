"""The files of a Hugging Face directory: JSON objects, and tensors in one or several safetensors
files.

Only plain files inside the directory are read, and nothing is executed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.formats import layout, safetensors
from gptjax.formats.family import Family
from gptjax.formats.quantised import QuantisedTensor, Scheme, assembled
from gptjax.formats.quantised.parts import Raw

FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "source.spm",
    "target.spm",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""All files that are read, besides the shards that an index names."""


def inside(path: Path, name: Any) -> Path:
    """Returns the path of a file of the directory.

    Symbolic links may only lead to where the Hugging Face cache keeps files: from
    snapshots/REVISION to the blobs beside snapshots.

    Raises:
      ConfigError: the name is not a plain file name, or the file is a link that leads elsewhere.
    """
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}", name)
    require(
        bool(plain),
        f"{path} names a file {str(name)[:80]!r}; only plain names of files in the same directory"
        " are followed.",
    )
    file, home = path / name, path.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    require(
        file.resolve().parent in (home, blobs),
        f"{file} is a link to {file.resolve()}, outside of {path}; it is not followed. Put the file"
        " itself there.",
    )
    return file


def read_object(path: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object; empty if the file is absent.

    Raises:
      ConfigError: the file is something else.
    """
    file = inside(path, name)
    if not file.is_file():
        return {}
    size = file.stat().st_size
    require(size <= 32 << 20, f"{file} has {size:,} bytes, too many for a config; get it again.")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        value = None
    require(isinstance(value, dict), f"{file} is not a JSON object; get it again.")
    return value


# --- reading tensors -----------------------------------------------------------------------------


class StoredTensor(NamedTuple):
    """One tensor in one of the files."""

    file: safetensors.File
    name: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Its type in the file: F32, BF16, …"""
        return self.file.tensors[self.name].dtype

    def take(self) -> np.ndarray:
        """Reads the tensor."""
        return self.file.take(self.name)


def equal(one: Raw, other: Raw) -> bool:
    """Whether two tensors hold the same numbers."""
    return one.shape == other.shape and np.array_equal(one.take(), other.take())


def read_tensors(
    path: Path, family: Family, scheme: Scheme | None = None
) -> Mapping[str, Raw | QuantisedTensor]:
    """Opens all tensors of a directory, by their names in a model with a head.

    Args:
      scheme: how quantised weights are stored; each of them is one tensor here.

    Raises:
      ConfigError: a file is absent or damaged, or a tensor is stored in a quantised type of which
        config.json says nothing.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _files(path):
        for name, tensor in file.tensors.items():
            require(
                name not in tensors, f"{path} has the tensor {name} in two files; get them again."
            )
            tensors[name] = StoredTensor(file, name, tensor.shape)
    present = family.present or _present_name
    renamed = {present(name): tensor for name, tensor in tensors.items()}
    if family.prefix and not any(name.startswith(family.prefix) for name in renamed):
        renamed = {family.prefix + name: tensor for name, tensor in renamed.items()}
    whole = assembled(renamed, scheme, str(path))
    for name, tensor in whole.items():
        unused = any(re.fullmatch(pattern, name) for pattern in family.unused)
        require(
            unused or tensor.dtype in ("F64", "F32", "F16", "BF16"),
            f"{path} has {name} as {tensor.dtype}, so it is quantised in a way that is not known"
            " here; use the unquantised model.",
        )
    return whole


def _present_name(name: str) -> str:
    """A tensor's name in a present file of text alone: the oldest BERTs have TensorFlow's names of
    norms, and models that also read images keep the text model apart."""
    name = re.sub(r"^model\.language_model\.", "model.", name.removeprefix("language_model."))
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name


def _files(path: Path) -> list[safetensors.File]:
    """The files of tensors: those that the index names, else model.safetensors."""
    index = read_object(path, "model.safetensors.index.json")
    if not index:
        whole = inside(path, "model.safetensors")
        pickled = next(path.glob("pytorch_model*.bin"), None)
        hint = "get it again"
        if pickled:
            hint = (
                f"it has {pickled.name}, which can run code when it is read, so it is not; get the"
                " safetensors files"
            )
        require(whole.is_file(), f"{path} has no model.safetensors; {hint}.")
        return [safetensors.File(whole)]
    place = index.get("weight_map")
    require(
        isinstance(place, dict),
        f"{path}/model.safetensors.index.json has no weight_map; get it again.",
    )
    names = sorted({*map(str, place.values())})
    files = {name: safetensors.File(inside(path, name)) for name in names}
    lost = sorted(name for name, file in place.items() if name not in files[str(file)].tensors)
    require(
        not lost,
        f"{path}/model.safetensors.index.json names tensors that are not in the files:"
        f" {', '.join(lost[:10])}; get them again.",
    )
    return list(files.values())


# --- writing tensors -----------------------------------------------------------------------------


def write_tensors(
    path: Path, places: list[layout.Place], params: Params, dtype: str, shard_bytes: int
) -> None:
    """Writes the tensors, into several files and an index if they exceed `shard_bytes`."""
    shapes, size = layout.tensor_shapes(places), safetensors.DTYPES[dtype][1].itemsize
    shards = list(_shards(shapes, size, shard_bytes))
    values, weight_map = layout.tensors(params, places), {}
    for i, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        some = itertools.islice(values, len(shard))
        safetensors.write_safetensors(path / name, shard, some, dtype, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * size
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    shapes: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of each file, in order; a tensor larger than a shard has one of its own."""
    shard, room = {}, shard_bytes
    for name, shape in shapes.items():
        num_bytes = math.prod(shape) * itemsize
        if num_bytes > room and shard:
            yield shard
            shard, room = {}, shard_bytes
        shard[name] = shape
        room -= num_bytes
    yield shard
