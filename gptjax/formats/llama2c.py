"""The files of llama2.c: seven whole numbers and the weights of a Llama, and beside them a file of
scored pieces.

Read `load_llama2c`. Weights are those of the format's first version, float32; later versions are
refused by name.

Source: karpathy/llama2.c, its export.py and tokenizer.py.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.data.tokenizers import json_form
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.spelling import Special
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import gguf_models, gguf_tensors, layout
from gptjax.formats.opened import About, OpenedModel
from gptjax.model import ModelConfig

ORDER = (
    "token_embd",
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_down",
    "ffn_up",
    "output_norm",
)
"""Tensors in the order of the file, each for all layers in turn. They have GGUF's names, whose
order of rows they share."""

NUMBERS = ("width", "MLP width", "layers", "heads", "key/value heads", "vocabulary", "context")
LATER = 0x616B3432
"""First number of later versions of the format."""


def load_llama2c(
    path: Path | str, shardings: Callable[[ModelConfig], Any] | None = None
) -> OpenedModel:
    """Reads NAME.bin, and the tokenizer from `tokenizer.bin` or `tokN.bin` beside it, where N is
    its number of pieces.

    Raises:
      ConfigError: it is not such a file, or a damaged one.
    """
    path = Path(path)
    config, size, described = _header(path)
    places = gguf_tensors.gguf_places("llama", config)
    offsets, end = _offsets(config, layout.tensor_shapes(places))
    require(
        size == end,
        f"{path} has {size:,} bytes, and with {described} it needs {end:,}; get it again.",
    )

    def take(name: str) -> np.ndarray:
        offset, shape = offsets[name]
        values = np.fromfile(path, "<f4", math.prod(shape), offset=offset)
        require(
            values.size == math.prod(shape) and bool(np.isfinite(values).all()),
            f"{path}: {name} is cut short, or has numbers that are not finite; get it again.",
        )
        return values.reshape(shape)

    params = layout.read_params(
        config, places, take, None if shardings is None else shardings(config)
    )
    tokenizer = _tokenizer(path, config.vocabulary)
    return OpenedModel(config, params, tokenizer, About(source=f"llama2.c file {path.name}"))


def _header(path: Path) -> tuple[ModelConfig, int, str]:
    """Reads the config; returns the file's size and the seven numbers in words too."""
    require(path.is_file(), f"{path} does not exist; give a llama2.c file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(28)
    require(len(head) == 28, f"{path} has {size} bytes, too few for a llama2.c file; get it again.")
    numbers = struct.unpack("<7i", head)
    require(
        numbers[0] != LATER,
        f"{path} is of a later version of llama2.c's format; export it with --version 0.",
    )
    width, mlp_dim, layers, heads, kv_heads, vocab, context = numbers
    described = ", ".join(f"{name} {n}" for name, n in zip(NUMBERS, numbers, strict=True))
    sound = all(0 < n <= 1 << 24 for n in (*numbers[:5], abs(vocab), context)) and layers <= 1 << 10
    sound = sound and width % heads == 0 and width // heads % 2 == 0 and heads % kv_heads == 0
    require(
        sound, f"{path} is not a llama2.c file: it begins with {described}, which no model has."
    )
    least = 4 * width * (abs(vocab) + layers * (3 * mlp_dim + 2 * width))
    require(
        size >= least,
        f"{path} has {size:,} bytes, and with {described} it needs more than {least:,}; get it"
        " again.",
    )
    config = dataclasses.replace(
        gguf_models.BASES["llama"],
        vocab_size=abs(vocab),
        context=context,
        width=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        feed_forward=mlp_dim,
        tied=vocab > 0,
    )
    return config, size, described


def _offsets(
    config: ModelConfig, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Where each tensor begins, and where the file ends. A table of RoPE's waves, which is not
    needed, precedes an output of its own."""
    offsets, at = {}, 28
    for name in (*ORDER, "waves", *(() if config.tied else ("output",))):
        if name == "waves":
            at += 4 * config.context * config.head_dim
            continue
        tensors = [f"{name}.weight"]
        if tensors[0] not in shapes:
            tensors = [f"blk.{i}.{name}.weight" for i in range(config.num_layers)]
        for tensor in tensors:
            offsets[tensor] = at, shapes[tensor]
            at += 4 * math.prod(shapes[tensor])
    return offsets, at


def _tokenizer(path: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer beside the weights: pieces and scores of SentencePiece's kind, the first three
    of which control the model."""
    beside = next(
        (
            f
            for f in (path.with_name(f"tok{vocab_size}.bin"), path.with_name("tokenizer.bin"))
            if f.is_file()
        ),
        None,
    )
    if beside is None:
        return None
    data, at, pieces, scores = beside.read_bytes(), 4, [], []
    try:
        for _ in range(vocab_size):
            score, length = struct.unpack_from("<fi", data, at)
            if not 0 <= length <= len(data) - at - 8:
                raise ValueError
            pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
            scores.append(score)
            at += 8 + length
        good = at == len(data) and bool(np.isfinite(scores).all())
    except (struct.error, ValueError):
        good = False
    if not good:
        raise ConfigError(
            f"{beside} is no tokenizer of {vocab_size} pieces in llama2.c's form; get it again."
        )
    pieces[:3] = "<unk>", "<s>", "</s>"
    pieces[3:259] = [f"<0x{b:02X}>" for b in range(256)]
    joined = np.arange(vocab_size) >= 259
    described = json_form.joined_by_score(pieces, np.asarray(scores), joined, 0, prefix=True)
    described["added_tokens"] = [json_form.added(i, pieces[i], special=True) for i in range(3)]
    return tokenizers.published(
        "tokenizer.json", json.dumps(described).encode(), Special(bos=1, eos=2, begins=True)
    )
