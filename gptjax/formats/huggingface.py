"""Hugging Face directories: config.json, safetensors, tokenizer files, settings of generation; in
and out.

Read `FAMILIES`, then `load`, then `save`. Configs are translated in `configs`, tensors are placed
by the tables in `families`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Published, Tokenizer
from gptjax.formats import configs, families, huggingface_tokenizer, layout, older, safetensors
from gptjax.formats.keys import Keys
from gptjax.formats.opened import About, OpenedModel
from gptjax.model import ModelConfig


class Family(NamedTuple):
    """An architecture of theirs."""

    architecture: str
    """The class that loads it."""
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    entries: tuple[layout.Entry, ...] | Callable[[ModelConfig], tuple[layout.Entry, ...]]
    prefix: str = "model."
    """What stands before names in a model with a head; a file without one lacks it."""
    output: str = "lm_head.weight"
    """The tensor that is the embedding again where the two are tied."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors that are no part of what ours computes."""

    def places(self, config: ModelConfig) -> list[layout.Place]:
        """Their tensors of a model."""
        return layout.places(
            config, self.entries(config) if callable(self.entries) else self.entries
        )


_SECOND_TOKEN = (r"model\.layers\.{last}\..*",)
_DEEPSEEK = (configs.deepseek, configs.deepseek_json, families.deepseek)
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        older.gpt2,
        older.gpt2_json,
        families.GPT2,
        "transformer.",
        unused=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    ),
    "llama": Family(
        "LlamaForCausalLM",
        configs.llama,
        configs.llama_json,
        families.LLAMA,
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
    "arcee": Family("ArceeForCausalLM", configs.arcee, configs.arcee_json, families.LLAMA),
    "mistral": Family("MistralForCausalLM", configs.mistral, configs.mistral_json, families.LLAMA),
    "mixtral": Family(
        "MixtralForCausalLM", configs.mixtral, configs.mixtral_json, families.MIXTRAL
    ),
    "qwen2": Family("Qwen2ForCausalLM", configs.qwen2, configs.qwen2_json, families.LLAMA),
    "qwen3": Family("Qwen3ForCausalLM", configs.qwen3, configs.qwen3_json, families.LLAMA),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", configs.qwen3_moe, configs.qwen3_moe_json, families.QWEN_MOE
    ),
    "gemma2": Family("Gemma2ForCausalLM", configs.gemma2, configs.gemma2_json, families.GEMMA),
    "gemma3_text": Family("Gemma3ForCausalLM", configs.gemma3, configs.gemma3_json, families.GEMMA),
    "olmo2": Family("Olmo2ForCausalLM", configs.olmo2, configs.llama_json, families.OLMO2),
    "phi3": Family("Phi3ForCausalLM", configs.phi3, configs.phi3_json, families.PHI3),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        older.gpt_neox,
        older.gpt_neox_json,
        families.GPT_NEOX,
        "gpt_neox.",
        "embed_out.weight",
        (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq"),
    ),
    "deepseek_v2": Family("DeepseekV2ForCausalLM", *_DEEPSEEK),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", *_DEEPSEEK, unused=_SECOND_TOKEN),
    "bert": Family(
        "BertForMaskedLM",
        older.bert,
        older.bert_json,
        families.BERT,
        "bert.",
        "cls.predictions.decoder.weight",
        (
            r"bert\.pooler\..*",
            r"cls\.seq_relationship\..*",
            r"bert\.embeddings\.position_ids",
            r"cls\.predictions\.decoder\.bias",
        ),
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        older.t5,
        older.t5_json,
        families.t5,
        "",
        unused=(r"(en|de)coder\.embed_tokens\.weight",),
    ),
}
"""By their `model_type`. SmolLM2 is a Llama, Pythia a GPT-NeoX."""


FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""All that is read of a directory, beside the shards that an index names."""


def lies_at(path: Path) -> bool:
    """Says whether a path is a directory with a config.json that names an architecture; a run's own
    config.json does not."""
    try:
        return (
            path.is_dir()
            and (path / "config.json").is_file()
            and isinstance(_object(path, "config.json").get("model_type"), str)
        )
    except ConfigError:
        return False


# --- in
# ----------------------------------------------------------------------------------------------------------


def load(path: Path, shardings: Callable[[ModelConfig], Any] | None = None) -> OpenedModel:
    """Reads a directory; see `interop.load`."""
    for name in FILES:
        _inside(path, name)
    data = _object(path, "config.json")
    family, keys = _family(data, path), Keys(data, str(path / "config.json"))
    config = family.read(keys)
    keys.finish()
    tensors = _tensors(path, family)
    output, table = tensors.get(family.output), tensors.get(family.places(config)[0].name)
    if config.tied and output is not None and table is not None:
        same = output.shape == table.shape and all(
            np.array_equal(a, b) for a, b in zip(_pieces(output), _pieces(table), strict=True)
        )
        wrong = (
            f"{path} has a {family.output} that is not its embedding, and says that the two are"
            " tied"
        )
        require(same, f"{wrong}; set tie_word_embeddings to false in config.json.")
    tokenizer = _tokenizer(path, config.vocabulary)
    padding = 0 if tokenizer is None else config.vocabulary - tokenizer.vocab_size
    config = dataclasses.replace(config, vocab_size=config.vocabulary - padding)
    places = family.places(config)
    unused = [
        pattern.replace("{last}", f"({config.num_layers})")
        for pattern in (*family.unused, *([re.escape(family.output)] if config.tied else []))
    ]
    layout.require_all(
        places, {name: tensor.shape for name, tensor in tensors.items()}, str(path), padding, unused
    )
    params = layout.read(
        config,
        places,
        lambda name: tensors[name].take(),
        None if shardings is None else shardings(config),
    )
    generation = {
        k: v
        for k, v in _object(path, "generation_config.json").items()
        if k not in ("transformers_version", "_from_model_config")
    }
    pad = next(
        (i for i in (data.get("pad_token_id"), generation.get("pad_token_id")) if type(i) is int),
        None,
    )
    notes = (
        {str(k): str(v) for k, v in data["gptjax"].items()}
        if isinstance(data.get("gptjax"), dict)
        else {}
    )
    return OpenedModel(
        config,
        params,
        tokenizer,
        About(
            data["model_type"],
            f"Hugging Face directory {path.name}",
            pad,
            generation,
            padding,
            notes,
        ),
    )


def _family(data: Mapping[str, Any], path: Path) -> Family:
    name = data.get("model_type")
    known = isinstance(name, str) and name in FAMILIES
    require(
        known,
        f"{path / 'config.json'} has the model_type {name!r}; known are"
        f" {', '.join(FAMILIES)}.{nearest(str(name), FAMILIES)}",
    )
    return FAMILIES[name]


def _object(path: Path, name: str) -> dict[str, Any]:
    """A JSON object in the directory; empty where the file is not there."""
    file = _inside(path, name)
    if not file.is_file():
        return {}
    try:
        require(
            file.stat().st_size <= 32 << 20,
            f"{file} has {file.stat().st_size:,} bytes, too many for a config; get it again.",
        )
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    require(isinstance(found, dict), f"{file} is not a JSON object; get it again.")
    return found


def _inside(path: Path, name: Any) -> Path:
    """A file of the directory by its plain name.

    Symbolic links may only lead to where the Hugging Face cache keeps files: from
    snapshots/REVISION to the blobs beside snapshots.

    Raises:
      ConfigError: the name is a path, or the file is a link that leads elsewhere.
    """
    plain = (
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,254}", name) is not None
    )
    require(
        plain,
        f"{path} names a file {str(name)[:80]!r}; only plain names of files in the same directory"
        " are followed.",
    )
    file, home = path / name, path.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    target = file.resolve().parent
    require(
        target in (home, blobs),
        f"{file} is a link to {file.resolve()}, outside of {path}; it is not followed. Put the file"
        " itself there.",
    )
    return file


class _Tensor(NamedTuple):
    """One tensor, in one of the files."""

    file: safetensors.File
    name: str
    shape: tuple[int, ...]

    def take(self) -> np.ndarray:
        return self.file.take(self.name)


def _pieces(tensor: _Tensor, rows: int = 4096) -> Any:
    value = tensor.take()
    return (value[i : i + rows] for i in range(0, len(value), rows))


def _tensors(path: Path, family: Family) -> dict[str, _Tensor]:
    """All tensors, by the names that they have in a model with a head."""
    index, found = _object(path, "model.safetensors.index.json"), {}
    whole = _inside(path, "model.safetensors")
    if index:
        named = index.get("weight_map")
        require(
            isinstance(named, dict),
            f"{path}/model.safetensors.index.json has no weight_map; get it again.",
        )
        files = {
            name: safetensors.File(_inside(path, name))
            for name in sorted({*map(str, named.values())})
        }
        lost = sorted(name for name, file in named.items() if name not in files[str(file)].tensors)
        require(
            not lost,
            f"{path}/model.safetensors.index.json names tensors that are not in the files:"
            f" {', '.join(lost[:10])}; get them again.",
        )
    else:
        pickled = next(path.glob("pytorch_model*.bin"), None)
        why = (
            f"it has {pickled.name}, which can run code when it is read, so it is not; ask for"
            " safetensors"
            if pickled
            else "get it again"
        )
        require(whole.is_file(), f"{path} has no model.safetensors; {why}.")
        files = {whole.name: safetensors.File(whole)}
    for file in files.values():
        for name, tensor in file.tensors.items():
            require(
                name not in found, f"{path} has the tensor {name} in two files; get them again."
            )
            found[name] = _Tensor(file, name, tensor.shape)

    def newer(name):
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        )

    renamed = {newer(name): tensor for name, tensor in found.items()}
    if family.prefix and not any(name.startswith(family.prefix) for name in renamed):
        renamed = {family.prefix + name: tensor for name, tensor in renamed.items()}
    for name, tensor in renamed.items():
        kind = tensor.file.tensors[tensor.name].dtype
        used = kind in ("F64", "F32", "F16", "BF16") or any(
            re.fullmatch(pattern, name) for pattern in family.unused
        )
        require(
            used,
            f"{path} has {name} as {kind}, so it is quantised in a way that is not known here; take"
            " the unquantised model.",
        )
    return renamed


def _tokenizer(path: Path, rows: int) -> Tokenizer | None:
    """The tokenizer of the directory, with no more tokens than the model has rows."""
    names = [
        name
        for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
        if _inside(path, name).is_file()
    ]
    if not names:
        return None
    found = huggingface_tokenizer.fitting(tokenizers.train(Published(str(path)), ()), rows)
    wrong = f"{path} has a tokenizer of {found.vocab_size} tokens and a model of {rows}"
    require(found.vocab_size <= rows, f"{wrong}; get the tokenizer that belongs to the model.")
    return found


# --- out
# ---------------------------------------------------------------------------------------------------------


def save(
    path: Path, model: OpenedModel, dtype: str = "float32", shard: int = 5_000_000_000
) -> None:
    """Writes a directory; see `interop.save`. config.json comes last: a directory without it is not
    whole.

    Args:
      shard: bytes from which on the tensors are in several files.

    Raises:
      ConfigError: the path holds something already, or no family of theirs computes what this model
        does.
    """
    known = (
        f"a Hugging Face directory can have {', '.join(safetensors.DTYPES)}"
        f" (--dtype).{nearest(dtype, safetensors.DTYPES)}"
    )
    require(dtype in safetensors.DTYPES, f"dtype is {dtype!r}; {known}")
    empty = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    require(empty, f"{path} holds something already; give a directory that is not there yet.")
    name = family_of(model.config, model.about.family)
    family = FAMILIES[name]
    path.mkdir(parents=True, exist_ok=True)
    if model.tokenizer is not None:
        for file, content in huggingface_tokenizer.files(
            model.tokenizer, model.config.context
        ).items():
            (path / file).write_bytes(content)
    _write_tensors(path, family.places(model.config), model.params, dtype, shard)
    ids = _ids(model)
    settings = {**model.about.generation, **ids}
    if model.config.causal:
        (path / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    data = dict(
        architectures=[family.architecture],
        model_type=name,
        **family.write(model.config),
        **ids,
        torch_dtype=dtype,
    )
    write_notes(path, model.about.notes, data)


def write_notes(path: Path, notes: Mapping[str, str], data: dict[str, Any] | None = None) -> None:
    """Writes config.json with these facts below `gptjax`, which other programs pass over; without
    `data`, that which is there again."""
    data = _object(path, "config.json") if data is None else data
    fresh = path / "config.json.new"
    fresh.write_text(
        json.dumps({**data, "gptjax": dict(notes)} if notes else data, indent=2, ensure_ascii=False)
        + "\n",
        encoding="utf-8",
    )
    fresh.replace(path / "config.json")


def _ids(model: OpenedModel) -> dict[str, Any]:
    """Where texts begin and end, as their configs say it."""
    tokenizer, found = model.tokenizer, {}
    if tokenizer is not None:
        ends = [i for i in (tokenizer.end_of_document, *tokenizer.ends) if i is not None]
        begin = tokenizer.begin_of_document if tokenizer.special is None else tokenizer.special.bos
        found = {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    if model.config.encoder_layers:
        found |= {"decoder_start_token_id": 0 if model.about.pad is None else model.about.pad}
    return {**found, "pad_token_id": model.about.pad}


def _write_tensors(
    path: Path, places: list[layout.Place], params: Any, dtype: str, shard: int
) -> None:
    shapes, size = layout.written(places), safetensors.DTYPES[dtype][1].itemsize
    files: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard
    for name, shape in shapes.items():
        needed = math.prod(shape) * size
        if needed > room and files[-1]:
            files, room = [*files, {}], shard
        files[-1][name] = shape
        room -= needed
    values, named = layout.tensors(params, places), {}
    for i, part in enumerate(files):
        file = (
            "model.safetensors"
            if len(files) == 1
            else f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        )
        safetensors.write(
            path / file, part, itertools.islice(values, len(part)), dtype, {"format": "pt"}
        )
        named |= dict.fromkeys(part, file)
    if len(files) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * size
        (path / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": named}, indent=2) + "\n"
        )


def family_of(config: ModelConfig, preferred: str | None = None) -> str:
    """Names the family that computes what a config computes: the first whose config.json, read
    again, is the same.

    Raises:
      ConfigError: there is none; says in what the nearest one differs.
    """

    def again(name: str) -> ModelConfig:
        keys = Keys(
            dict(model_type=name, **json.loads(json.dumps(FAMILIES[name].write(config)))),
            f"a config.json of {name}",
        )
        found = FAMILIES[name].read(keys)
        keys.finish()
        return found

    return configs.same_again(
        config,
        [*([preferred] if preferred in FAMILIES else []), *FAMILIES],
        again,
        "family of Hugging Face models",
    )
