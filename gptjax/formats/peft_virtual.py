"""Prompts and prefixes of PEFT (PROMPT_TUNING, PREFIX_TUNING), read and written: virtual tokens
instead of products beside weights.

Source: the files that PEFT 0.21.2 writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gptjax.core.config import require
from gptjax.formats import safetensors
from gptjax.formats.huggingface_files import read_object
from gptjax.formats.opened import OpenedModel
from gptjax.formats.peft_config import VERSION
from gptjax.model import ModelConfig
from gptjax.model.virtual import require_virtual
from gptjax.weights.virtual import Prefix, Prompt, Virtual

CONFIG, TENSORS, TENSOR = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"

SIZES = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")
"""Keys that are held to the model."""

INDIFFERENT = (
    *("peft_type", "base_model_name_or_path", "task_type", "auto_mapping", "revision"),
    *("inference_mode", "peft_version", "prompt_tuning_init", "prompt_tuning_init_text"),
    *("tokenizer_name_or_path", "tokenizer_kwargs", "encoder_hidden_size", "prefix_projection"),
    *("init_weights", "num_transformer_submodules", "modules_to_save"),
)
"""Keys that change nothing of what the tensor says; the last two are held to what is computed."""


def is_virtual(path: Path) -> bool:
    """Whether PEFT's directory holds virtual tokens."""
    kind = read_object(path, CONFIG).get("peft_type")
    return kind in ("PROMPT_TUNING", "PREFIX_TUNING")


def read_peft_virtual(path: Path, base: OpenedModel) -> Virtual:
    """Reads the virtual tokens of a model.

    Raises:
      ConfigError: a key or tensor is unknown or of another model's size; names it.
    """
    data, where = read_object(path, CONFIG), path / CONFIG
    require_virtual(base.config, trained=False)
    for key in data:
        known = key in SIZES or key in INDIFFERENT
        require(known, f"{where} has the key {key!r}, which PEFT {VERSION} does not; remove it.")
    for key, usual in (("num_transformer_submodules", 1), ("modules_to_save", None)):
        found = data.get(key)
        require(
            found in (usual, None, []),
            f"{where} has {key} {found!r}, which is not computed here; train it without.",
        )
    file = safetensors.File(path / TENSORS)
    require(
        tuple(file.tensors) == (TENSOR,),
        f"{path / TENSORS} has {', '.join(sorted(file.tensors))}, and needs {TENSOR} alone; get it"
        " again.",
    )
    prefix = data["peft_type"] == "PREFIX_TUNING"
    count = file.tensors[TENSOR].shape[0]
    wanted = _sizes(base.config, prefix, count)
    for key, size in wanted.items():
        require(
            data.get(key) in (size, None),
            f"{where} has {key} {data.get(key)!r}, and {TENSORS} and this model need {size}; get it"
            " again, or open it with its own base.",
        )
    shape = tuple(_shape(base.config, prefix, count))
    found = file.tensors[TENSOR].shape
    require(
        found == (count, math.prod(shape[1:])),
        f"{path / TENSORS} has {TENSOR} of shape {list(found)}, and this model needs"
        f" {[count, math.prod(shape[1:])]}; open it with its own base.",
    )
    values = jnp.asarray(np.asarray(file.take(TENSOR), np.float32).reshape(shape))
    if not prefix:
        return Prompt(values)
    return Prefix(*(jnp.moveaxis(values[:, :, one], 0, 1) for one in (0, 1)))


def write_peft_virtual(path: Path, base: OpenedModel, virtual: Virtual, source: str | None) -> None:
    """Writes virtual tokens of a model as PEFT reads them.

    Args:
      source: what the files name as the base.
    """
    prefix = isinstance(virtual, Prefix)
    if prefix:
        both = np.stack([np.asarray(virtual.keys), np.asarray(virtual.values)], axis=1)
        values = np.moveaxis(both, 2, 0).reshape(virtual.count, -1)
    else:
        values = np.asarray(virtual.embeddings)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "PREFIX_TUNING" if prefix else "PROMPT_TUNING",
        "peft_version": VERSION,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        **_sizes(base.config, prefix, virtual.count),
    }
    tensor = {"format": "pt"}
    safetensors.write_safetensors(
        path / TENSORS, {TENSOR: values.shape}, [(TENSOR, values)], "float32", tensor
    )
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _sizes(c: ModelConfig, prefix: bool, count: int) -> Mapping[str, Any]:
    """What PEFT says of a model's sizes; of a prefix, those of its keys."""
    heads = c.kv_heads if prefix else c.num_heads
    width = heads * c.head_dim if prefix else c.width
    return dict(zip(SIZES, (count, width, c.num_layers, heads), strict=True))


def _shape(c: ModelConfig, prefix: bool, count: int) -> tuple[int, ...]:
    """The dimensions of their tensor, apart."""
    return (count, c.num_layers, 2, c.kv_heads, c.head_dim) if prefix else (count, c.width)
