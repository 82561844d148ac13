"""Converts a model from one format to another, and proves that it is still the same model.

Read `convert`: it opens the model, writes it, opens the copy, compares what both compute, and notes
the result beside the weights.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.cli.compress import CompressOptions, compressed
from gptjax.cli.push_ready import require_license, write_model_card
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data import (
    GPT2,
    Bytes,
    Characters,
    DataConfig,
    Published,
    SentencePiece,
    Side,
    Text,
)
from gptjax.data.documents import sources
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import OpenedModel, gguf, huggingface
from gptjax.formats.peft import is_peft, write_peft
from gptjax.formats.peft_virtual import write_peft_virtual
from gptjax.formats.quantised.writing import save_packed
from gptjax.model import ModelConfig
from gptjax.runs import Run
from gptjax.runs.adapted import named_base, peft_of
from gptjax.runs.open import open_base, open_model, read_config, write_about
from gptjax.weights import has_packed, merge
from gptjax.weights.adapters import is_adapted
from gptjax.weights.virtual import split_virtual

TEXT = """\
The harbour was quiet in the early morning. "Have you seen the boat?" she asked, and nobody \
answered; 27 gulls sat on the wall.
def area(radius: float) -> float:
    return 3.14159 * radius ** 2  # not exact

Zwölf Boxkämpfer jagen Viktor quer über den großen Deich. Où est la gare ? \
東京は今日も雨です。 1,000,000 + 42 = 1,000,042.
"""
"""Text on which a model and its copy are compared: prose, numbers, code, several languages."""

THRESHOLDS = {"float32": 1e-6, "float16": 1e-4, "q5_1": 0.1, "q5_0": 0.1, "q4_1": 1.0, "q4_0": 1.0}
"""Maximum divergence by dtype, in nats per token; that of all others is `OTHER_THRESHOLD`. What few
bits cost depends on the model: SmolLM2-135M-Instruct loses 0.06 in q4_1 and 0.47 in q4_0."""
OTHER_THRESHOLD = 1e-2


@dataclass(frozen=True)
class ConvertOptions(CompressOptions):
    """Flags of `convert`."""

    to: Literal["huggingface", "gguf", "run", "peft"] | None = None
    """Format to write. `None` writes GGUF if the name ends with .gguf, else a Hugging Face
    directory. `peft` writes the adapter of a run alone, as PEFT reads it."""
    merge: bool = False
    """Write a model with its adapter merged into the weights."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16, float16; in GGUF also q8_0, q5_1, q5_0, q4_1, q4_0. A
    run is always float32."""
    threshold: float | None = None
    """Maximum mean KL divergence of the copy from the model, in nats per token; above it the exit
    status is 1. `None` depends on the dtype: 1e-6 in float32, 1e-4 in float16, 0.1 in five bits, 1
    in four, 1e-2 in others."""
    step: int | None = None
    """Checkpoint of a run; `None` means the newest."""
    ignore_keys: tuple[str, ...] = ()
    """Keys of config.json, or of GGUF metadata without the architecture, that are not known here
    and that you know to change nothing."""
    live: bool = False
    """Take the latest weights of a run, also where it kept averaged ones (--optim.ema)."""
    push_ready: bool = False
    """Write a model card (README.md) beside the weights, so that the directory can be published:
    what the model is, of a run its data, training and figures, and limits. Nothing is uploaded."""
    license: str | None = None
    """Licence under which you publish the model, for the card of --push-ready; for example mit."""


class Comparison(NamedTuple):
    """How much a copy differs from its model."""

    difference: float
    """Largest absolute difference of a logit."""
    divergence: float
    """Mean of KL(model ‖ copy), in nats per token."""
    agreement: float
    """Share of positions at which both find the same token most likely."""
    same_ids: bool
    """Both tokenizers give the text the same ids; true without tokenizers."""
    num_tokens: int


def convert(
    source: Path, target: Path, options: ConvertOptions, say: Callable[[str], Any] = print
) -> bool:
    """Writes the model at `source` to `target` and compares the two; returns whether they are as
    close as the threshold requires.

    Raises:
      ConfigError: the model can't be read, or the format cannot express something in it; nothing is
        left at `target` then.
    """
    kind = options.to or ("gguf" if target.suffix == ".gguf" else "huggingface")
    require(
        (kind == "gguf") == (target.suffix == ".gguf"),
        f"{target} is to be {kind}; GGUF files, and only they, have names that end with .gguf"
        " (--to).",
    )
    require(
        kind != "run" or options.dtype == "float32",
        f"dtype is {options.dtype!r}, and a run keeps float32; omit --dtype.",
    )
    require(not target.exists(), f"{target} exists already; give another name.")
    require_license(kind, options.push_ready, options.license)
    original = open_model(source, options.step, ignored=options.ignore_keys, live=options.live)
    require_plain(source, original, options.merge, kind)
    plain = original._replace(params=merge(original.params)) if options.merge else original
    if options.compresses:
        original = plain = compressed(plain, options, kind, say)
    if kind == "peft":
        write_adapter(source, target, original)
    else:
        write_format(kind, target, plain, options.dtype)
    result = compare(original, open_model(target, packed=has_packed(plain.params)))
    facts = _facts(source, original, options.dtype, result)
    for name, value in facts.items():
        say(f"{name}: {value}")
    _note(kind, target, plain, facts, options.dtype)
    if not result.same_ids:
        say("the two tokenizers encode the text differently")
    limit = options.threshold
    if limit is None:
        limit = THRESHOLDS.get(options.dtype, OTHER_THRESHOLD)
    passed = result.divergence <= limit and result.same_ids  # false for NaN
    say(f"files: {_size(target) / 1e6:.1f} MB")
    say(
        f"{target}: {'the same model within' if passed else 'NOT the same model by'} a threshold of"
        f" {limit:.0e} nats"
    )
    if options.push_ready and options.license and passed:
        write_model_card(target, source, plain, facts, options.license)
        say(f"{target / 'README.md'}: the model card; nothing was uploaded")
    return passed


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _facts(source: Path, model: OpenedModel, dtype: str, result: Comparison) -> dict[str, str]:
    """What a conversion measured, in words."""
    facts = {
        "converted from": model.about.source or str(source),
        "weights": dtype,
        "compared over": f"{result.num_tokens} tokens of a fixed text",
        "largest difference of a logit": f"{result.difference:.2e}",
        "mean KL divergence": f"{result.divergence:.2e} nats",
        "same most likely next token": f"{result.agreement:.1%}",
    }
    if model.about.padding:
        facts["rows of padding removed from the vocabulary"] = str(model.about.padding)
    return facts


def require_plain(source: Path, model: OpenedModel, merged: bool, kind: str) -> None:
    """Refuses to write a model without its adapter, and to merge or write one that it lacks."""
    params, virtual = split_virtual(model.params)
    require(
        virtual is None or (kind == "peft" and not merged),
        f"{source} has virtual tokens before every text (prompt or prefix tuning), which no weight"
        " can hold; write them alone with --to peft.",
    )
    whole = jax.tree.leaves(params, is_leaf=is_adapted)
    adapted = virtual is not None or any(is_adapted(leaf) for leaf in whole)
    require(
        adapted or not (merged or kind == "peft"),
        f"{source} has no adapter; omit {'--merge' if merged else '--to peft'}.",
    )
    require(
        not adapted or merged != (kind == "peft"),
        f"{source} is an adapter beside a model; write the whole model with --merge, or the adapter"
        " alone with --to peft.",
    )


def write_adapter(source: Path, target: Path, model: OpenedModel) -> None:
    """Writes the adapter of a run as PEFT reads it.

    Raises:
      ConfigError: it is not a run, or PEFT can't express its adapter.
    """
    run = None if is_peft(source) else read_config(source)
    require(run is not None, f"{source} is an adapter of PEFT already; copy it.")
    virtual = split_virtual(model.params)[1]
    if virtual is not None:
        write_peft_virtual(target, model, virtual, named_base(run.start))
        return
    base = model._replace(about=open_base(source, run).about)
    write_peft(target, base, peft_of(source, model, run.adapter, run.start))


def write_format(kind: str, path: Path, model: OpenedModel, dtype: str) -> None:
    """Writes a model in one format."""
    if kind == "gguf":
        gguf.save_gguf(path, model, dtype)
    elif kind == "huggingface" and has_packed(model.params):
        save_packed(path, model, dtype)
    elif kind == "huggingface":
        huggingface.save_huggingface(path, model, dtype)
    else:
        write_run(path, model)


def _note(kind: str, path: Path, model: OpenedModel, facts: Mapping[str, str], dtype: str) -> None:
    """Adds the measurements to the written model."""
    about = dataclasses.replace(model.about, notes={**model.about.notes, **facts})
    if kind == "gguf":  # its metadata precede the weights
        gguf.save_gguf(path, model._replace(about=about), dtype)
    elif kind == "huggingface":
        huggingface.write_notes(path, about.notes)
    elif kind == "run":
        write_about(path, about)


def write_run(path: Path, model: OpenedModel) -> None:
    """Makes a run directory with the model as its step 0, without optimizer state.

    Raises:
      ConfigError: the model has no tokenizer, which a run needs.
    """
    from gptjax.train.experiment import Experiment

    require(
        model.tokenizer is not None,
        "the model has no tokenizer, and a run needs one; put its tokenizer.json beside the"
        " weights.",
    )
    folder = path / "tokenizer"
    kinds = {
        "Bytes": Bytes(),
        "Characters": Characters(),
        "SentencePiece": SentencePiece(path=str(folder / "tokenizer.model")),
        "GPT2": GPT2(str(folder)),
    }
    tokenizer = kinds.get(model.tokenizer.kind, Published(str(folder)))
    source = Text()
    if model.task.records:  # of which nothing is known
        source = getattr(sources, model.task.sources[0])("records.jsonl")
    data = DataConfig(source=source, tokenizer=tokenizer, task=model.task)
    tokenizers.save_tokenizer(folder, model.tokenizer)
    run = Run(path)
    with run.lock():
        run.save(0, {"params": model.params})
    config.save_config(path / "config.json", Experiment(model=model.config, data=data))
    write_about(path, model.about)


# --- the comparison ------------------------------------------------------------------------------


def compare(one: OpenedModel, other: OpenedModel) -> Comparison:
    """Compares the logits of two models over the fixed text, encoded by the first; without
    tokenizers, over random ids."""
    if one.tokenizer is None or other.tokenizer is None:
        ids = np.random.default_rng(0).integers(0, one.config.vocabulary, 128)
        same_ids = True
    else:
        text = _encodable(one.tokenizer)
        ids = one.tokenizer.encode(text)
        same_ids = np.array_equal(ids, other.tokenizer.encode(text))
    length = min(one.config.context, other.config.context, 512)
    ids = np.asarray(ids[:length], np.int32)[None]
    first, second = (np.asarray(_logits(m.config, m.params, ids), np.float64) for m in (one, other))
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (first, second))
    return Comparison(
        difference=float(np.abs(first - second).max()),
        divergence=float((np.exp(p) * (p - q)).sum(-1).mean()),
        agreement=float((first.argmax(-1) == second.argmax(-1)).mean()),
        same_ids=same_ids,
        num_tokens=ids.size,
    )


def _encodable(tokenizer: Tokenizer) -> str:
    """The text; for a vocabulary of characters, what it has of it, or else all its characters."""
    if tokenizer.kind != "Characters":
        return TEXT
    known = {piece.decode() for piece in tokenizer.pieces}
    return "".join(c for c in TEXT if c in known) or "".join(sorted(known)) * 4


@functools.partial(jax.jit, static_argnums=0)
def _logits(c: ModelConfig, params: Any, ids: jax.Array) -> jax.Array:
    """Logits [T V] of a text [1 T]; an encoder beside a decoder reads the text too, one of frames a
    wave."""
    c = dataclasses.replace(c, attention="reference", compute="float32")
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    side: Any = Side(ids, positions) if c.encoder_layers else None
    if c.frames is not None:
        number = jnp.arange(c.frames.entering * c.frames.channels, dtype=jnp.float32)
        side = model.Frames(jnp.sin(number).reshape(1, c.frames.entering, -1))
    memory = model.encode(c, params, side)
    return model.unembed(c, params, model.forward(c, params, ids, memory=memory).hidden)[0]
