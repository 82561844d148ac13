"""Whisper in the files of CTranslate2, as faster-whisper publishes it: model.bin, config.json and
tokenizer.json. They are read, never written.

Read `load_ctranslate2`, then `read_variables`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gptjax.core.config import require
from gptjax.data.tokenizers import published
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.json_form import END
from gptjax.data.tokenizers.spelling import Special
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import layout
from gptjax.formats.huggingface_files import inside, read_object
from gptjax.formats.opened import About, OpenedModel
from gptjax.formats.whisper import WHISPER
from gptjax.model import FrameEncoder, ModelConfig

FILE = "model.bin"
SPEC = "WhisperSpec"
VERSIONS = (5, 6)
"""Of the file's own format."""
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, 5: jnp.bfloat16}
"""By the number of a variable's type."""
MOST = 100_000
"""Variables of a file."""


def holds_ctranslate2(path: Path) -> bool:
    """Says whether a path is a directory with a model of CTranslate2."""
    return path.is_dir() and (path / FILE).is_file() and (path / "config.json").is_file()


def load_ctranslate2(
    path: Path, shardings: Callable[[ModelConfig], Any] | None = None
) -> OpenedModel:
    """Reads a directory; see `formats.load_model`.

    Raises:
      ConfigError: it is damaged, quantised to integers, or no Whisper.
    """
    variables = read_variables(inside(path, FILE))
    theirs = dict(_by_transformers_names(variables, str(path)))
    config = _config(variables, theirs, str(path))
    settings = read_object(path, "config.json")
    places = WHISPER.places(config)
    layout.require_all(places, {name: x.shape for name, x in theirs.items()}, str(path))
    wanted = None if shardings is None else shardings(config)
    params = layout.read_params(config, places, theirs.__getitem__, wanted)
    tokenizer = _tokenizer(path)
    names = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    generation = {names[key]: settings[key] for key in names if key in settings}
    start = None if tokenizer is None else tokenizer.controls.get("<|startoftranscript|>")
    generation |= {} if start is None else {"decoder_start_token_id": start.id}
    about = About("whisper", f"CTranslate2 directory {path.name}", generation=generation)
    return OpenedModel(config, params, tokenizer, about)


def _tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a directory, which says nowhere how a text ends but by the token's name."""
    file = inside(path, "tokenizer.json")
    if not file.is_file():
        return None
    content = file.read_bytes()
    described = published.parsed(content, str(path))
    ids = published.vocabulary(described)
    ids |= {token["content"]: token["id"] for token in described["added_tokens"]}
    return tokenizers.published("tokenizer.json", content, Special(eos=ids.get(END)))


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Returns the variables of a model.bin by name, as views of the mapped file.

    Raises:
      ConfigError: it is damaged or of another version, or of another kind of model.
    """
    with path.open("rb") as file:
        require(path.stat().st_size >= 16, f"{path} is too short for a model; get it again.")
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _variables(content, path)
    except (struct.error, UnicodeDecodeError, ValueError):
        message = f"{path} is damaged or cut off; get it again."
    require(False, message)
    return {}


def _variables(content: memoryview, path: Path) -> dict[str, np.ndarray]:
    place = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return values

    def text() -> str:
        (length,) = take("H")
        return take(f"{length}s")[0].rstrip(b"\0").decode()

    (version,) = take("I")
    require(
        version in VERSIONS,
        f"{path} has the format {version} of CTranslate2; this program reads"
        f" {' and '.join(map(str, VERSIONS))}.",
    )
    kind = text()
    require(
        kind == SPEC, f"{path} is a {kind[:40]!r}; of CTranslate2's models only {SPEC} is read."
    )
    _, count = take("II")
    require(count <= MOST, f"{path} is damaged: it says that it has {count} variables.")
    variables: dict[str, np.ndarray] = {}
    for _ in range(count):
        name, (rank,) = text(), take("B")
        shape = take(f"{rank}I")
        number, num_bytes = take("BI")
        require(number in TYPES, f"{path} has {name!r} in the unknown type {number}.")
        if place + num_bytes > len(content):
            raise ValueError
        values = np.frombuffer(content[place : place + num_bytes], TYPES[number])
        variables[name], place = values.reshape(shape), place + num_bytes
    for _ in range(take("I")[0]):
        alias, name = text(), text()
        if name in variables:
            variables[alias] = variables[name]
    return variables


# --- in the words of transformers

_NORMS = {"gamma": "weight", "beta": "bias"}


def _by_transformers_names(
    variables: Mapping[str, np.ndarray], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors under their names in a Hugging Face directory. Query, key and value lie in
    one tensor here, and the keys' bias, which is zero, with them."""
    num_layers = {half: _num_layers(variables, half) for half in ("encoder", "decoder")}
    yield (
        "model.decoder.embed_tokens.weight",
        _tensor(variables, "decoder/embeddings/weight", where),
    )
    for n in (1, 2):
        for kind in ("weight", "bias"):
            tensor = _tensor(variables, f"encoder/conv{n}/{kind}", where)
            yield f"model.encoder.conv{n}.{kind}", tensor
    for half, count in num_layers.items():
        table = _tensor(variables, f"{half}/position_encodings/encodings", where)
        yield f"model.{half}.embed_positions.weight", table
        for kind, theirs in _NORMS.items():
            tensor = _tensor(variables, f"{half}/layer_norm/{kind}", where)
            yield f"model.{half}.layer_norm.{theirs}", tensor
        for i in range(count):
            layer, ours = f"{half}/layer_{i}", f"model.{half}.layers.{i}"
            yield from _layer(variables, layer, ours, half == "decoder", where)


def _layer(
    variables: Mapping[str, np.ndarray], layer: str, ours: str, crossed: bool, where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one layer."""
    parts = {"self_attention": ("self_attn", (("q", "k", "v"), ("out",)))}
    if crossed:
        parts["attention"] = ("encoder_attn", (("q",), ("k", "v"), ("out",)))
    parts["ffn"] = ("final", (("fc1",), ("fc2",)))
    for part, (name, linears) in parts.items():
        for kind, theirs in _NORMS.items():
            tensor = _tensor(variables, f"{layer}/{part}/layer_norm/{kind}", where)
            yield f"{ours}.{name}_layer_norm.{theirs}", tensor
        for n, joined in enumerate(linears):
            for kind in ("weight", "bias"):
                whole = _tensor(variables, f"{layer}/{part}/linear_{n}/{kind}", where)
                for one, own in zip(joined, np.split(whole, len(joined)), strict=True):
                    if (one, kind) == ("k", "bias"):
                        require(not own.any(), f"{where} has a bias of keys; get it again.")
                    elif part == "ffn":
                        yield f"{ours}.{one}.{kind}", own
                    else:
                        yield f"{ours}.{name}.{one}_proj.{kind}", own


def _tensor(variables: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    require(name in variables, f"{where} lacks the variable {name}; get it again.")
    value = variables[name]
    require(
        jnp.issubdtype(value.dtype, jnp.floating),
        f"{where} has {name} in {value.dtype}, quantised; use a model in float16 or float32.",
    )
    return value


def _num_layers(variables: Mapping[str, np.ndarray], half: str) -> int:
    """The layers of a half: their variables count from 0."""
    count = 0
    while f"{half}/layer_{count}/ffn/linear_0/weight" in variables:
        count += 1
    return count


def _config(
    variables: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], where: str
) -> ModelConfig:
    """The config of a model, from the shapes of its tensors."""
    vocabulary, width = theirs["model.decoder.embed_tokens.weight"].shape
    num_heads = {}
    for half in ("encoder", "decoder"):
        found = variables.get(f"{half}/num_heads")
        require(found is not None, f"{where} does not say how many heads its {half} has.")
        num_heads[half] = int(found)

    def shape(half: str) -> dict[str, Any]:
        return {
            "context": len(theirs[f"model.{half}.embed_positions.weight"]),
            "width": width,
            "num_layers": _num_layers(variables, half),
            "num_heads": num_heads[half],
            "feed_forward": len(theirs[f"model.{half}.layers.0.fc1.weight"]),
            "positions": "learned",
            "activation": "gelu_exact",
            "key_bias": False,
        }

    channels = theirs["model.encoder.conv1.weight"].shape[1]
    frames = FrameEncoder(
        channels=channels, stem="convolutions", projected=False, **shape("encoder")
    )
    return ModelConfig(vocab_size=vocabulary, frames=frames, **shape("decoder"))
