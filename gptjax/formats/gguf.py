"""GGUF files: llama.cpp's models, read into ours and written from ours.

Read `load_gguf`, then `save_gguf`. The file itself is in `gguf_file`, architectures are in
`gguf_models`, names of tensors in `gguf_tensors`, tokenizers in `gguf_tokenizer`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError, nearest, require
from gptjax.formats import gguf_models, gguf_tensors, gguf_tokenizer, layout, sampling
from gptjax.formats.gguf_file import File, Kind, numbers
from gptjax.formats.gguf_narrow import mixed_tensors, narrow_tensors
from gptjax.formats.gguf_parts import open_whole
from gptjax.formats.gguf_writer import Planned, write_gguf
from gptjax.formats.opened import About, OpenedModel, nothing_packed
from gptjax.formats.quantised.ggml_blocks import grid_of_blocks
from gptjax.formats.quantised.leaves import held, narrow_weights
from gptjax.model import Llama3Scaling

KINDS = {
    "float32": Kind.F32,
    "float16": Kind.F16,
    "bfloat16": Kind.BF16,
    "q8_0": Kind.Q8_0,
    "q5_1": Kind.Q5_1,
    "q5_0": Kind.Q5_0,
    "q4_1": Kind.Q4_1,
    "q4_0": Kind.Q4_0,
}
"""Formats that are written: those that the package `gguf` rounds to. It has no K-quants."""

PLAIN = (Kind.F32, Kind.F16, Kind.BF16)
"""Those without blocks."""


def load_gguf(
    path: Path | str,
    shardings: Any = None,
    ignored: Collection[str] = (),
    packed: bool = False,
) -> OpenedModel:
    """Reads a model in float32, leaf by leaf: at most one leaf is held besides the placed ones.

    Args:
      shardings: maps the config to a tree of shardings; `None` means the default device.
      ignored: keys of the metadata, without the architecture, that are passed over.
      packed: keep quantised weights as they are stored, see `quantised.leaves`.

    Raises:
      ConfigError: the file is damaged, or its model or tokenizer does something that ours does not.
    """
    file = open_whole(path)
    quantised = any(tensor.kind not in PLAIN for tensor in file.tensors.values())
    require(not packed or quantised, nothing_packed(path))
    table, pieces = file.tensors.get("token_embd.weight"), gguf_tokenizer.num_pieces(file)
    require(
        table is not None and len(table.shape) == 2,
        f"{path} has no table token_embd.weight, so it is no language model.",
    )
    rows = table.shape[0]
    used = rows if pieces is None else pieces
    require(
        used <= rows,
        f"{path} has a tokenizer of {used} ids and a model of {rows}; the file is damaged.",
    )
    if ignored:
        arch = file.fields.get("general.architecture")
        dropped = {f"{arch}.{key}" for key in ignored}
        kept = {key: value for key, value in file.fields.items() if key not in dropped}
        file = file._replace(fields=kept)
    config = gguf_models.config_from_metadata(file, used)
    fits = config.width == table.shape[1] and config.num_layers <= len(file.tensors)
    require(
        fits,
        f"{path} says that its model has {config.num_layers} layers of width {config.width}, and"
        " its tensors say otherwise; get it again.",
    )
    places = gguf_tensors.gguf_places(file.fields["general.architecture"], config)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    layout.require_all(places, shapes, str(path), rows - used, unused=(r"rope_freqs\.weight",))
    params = layout.read_params(
        config,
        places,
        lambda name: numbers(file, file.tensors[name]),
        None if shardings is None else shardings(config),
        functools.partial(held, grid_of=lambda name: grid_of_blocks(file, file.tensors[name]))
        if packed
        else None,
    )
    # The tokenizer last, since its temporaries would be held besides the parameters.
    return OpenedModel(config, params, gguf_tokenizer.tokenizer_of(file), _about(file, rows - used))


def _about(file: File, padding: int) -> About:
    name, pad = file.fields.get("general.name"), file.fields.get("tokenizer.ggml.padding_token_id")
    return About(
        family=file.fields["general.architecture"],
        source=name if isinstance(name, str) else file.path.name,
        pad=pad if type(pad) is int else None,
        generation=sampling.of_gguf(file.fields),
        padding=padding,
        notes={
            key.removeprefix(NOTES): file.get(key, str)
            for key in file.fields
            if key.startswith(NOTES)
        },
    )


NOTES = "gptjax."
"""Prefix of the keys of `About.notes`."""


def save_gguf(path: Path | str, model: OpenedModel, dtype: str = "float32") -> None:
    """Writes a model that llama.cpp runs, with its tokenizer and chat template.

    Args:
      dtype: of matrices: float32, float16, bfloat16, or one of `KINDS` that has 4, 5 or 8 bits for
        each number and a scale for each 32, and if its name ends with 1 also a minimum (rows that
        32 does not divide become float16). Vectors, learned positions and routers stay float32;
        weights that are narrow already keep their codes and scales.

    A model whose layers all have the same window, which llama.cpp's Llama cannot have, is written
    with a context as long as the window; within it, both are the same.

    Raises:
      ConfigError: llama.cpp has no architecture for the model, or no tokenizer like its own.
    """
    require(
        dtype in KINDS,
        f"GGUF files are not written as {dtype!r}; it can be"
        f" {', '.join(KINDS)}.{nearest(dtype, KINDS)}",
    )
    config, about, tokenizer = model.config, model.about, model.tokenizer
    try:
        arch = gguf_models.architecture(config, about.family)
    except ConfigError:
        config = gguf_models.in_window(config)
        arch = gguf_models.architecture(config, about.family)
    places = gguf_tensors.gguf_places(arch, config)
    blocks = narrow_tensors(places, narrow_weights(model.params))
    planned = [
        Planned(
            name, shape, blocks[name].kind if name in blocks else _kind(name, shape, KINDS[dtype])
        )
        for name, shape in layout.tensor_shapes(places).items()
    ]
    values = mixed_tensors(model.params, places, blocks)
    if isinstance(config.rope_scaling, Llama3Scaling):
        stretch = gguf_models.stretch(config.rope_scaling, config.rotary_dim, config.rope_base)
        planned = [Planned("rope_freqs.weight", stretch.shape, Kind.F32), *planned]
        values = itertools.chain([stretch], values)
    fields = {
        "general.name": about.source or "gptjax",
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
    }
    fields |= sampling.to_gguf(about.generation)
    fields |= gguf_models.metadata(arch, config)
    if tokenizer is not None:
        fields |= gguf_tokenizer.metadata_of(tokenizer, config.vocabulary)
        if tokenizer.template:
            fields["tokenizer.chat_template"] = tokenizer.template
    if about.pad is not None:
        fields["tokenizer.ggml.padding_token_id"] = about.pad
    write_gguf(
        path,
        arch,
        fields | {NOTES + key: value for key, value in about.notes.items()},
        planned,
        values,
    )


FILE_TYPES = {
    "float32": 0,
    "float16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "bfloat16": 32,
}
"""`general.file_type` for the type of most tensors."""


def _kind(name: str, shape: tuple[int, ...], wanted: Kind) -> Kind:
    if len(shape) == 1 or name.startswith("position_embd") or "ffn_gate_inp" in name:
        return Kind.F32
    return Kind.F16 if wanted not in PLAIN and shape[-1] % 32 else wanted
