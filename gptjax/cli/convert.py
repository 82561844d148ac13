"""A model from one format to another, with the proof that it is still the same model.

Read `convert`: load, write, load what was written, compare what both compute, write that down
beside the weights.
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
from gptjax.core import config
from gptjax.core.config import require
from gptjax.data import (
    GPT2,
    Bytes,
    Characters,
    DataConfig,
    Published,
    Records,
    SentencePiece,
    Side,
)
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.formats import OpenedModel, gguf, huggingface
from gptjax.model import ModelConfig
from gptjax.runs import Run
from gptjax.runs.open import open_model, write_about

TEXT = """The harbour was quiet in the early morning. "Have you seen the boat?" she asked, and nobody answered; 27 gulls sat on the wall.
def area(radius: float) -> float:
    return 3.14159 * radius ** 2  # not exact

Zwölf Boxkämpfer jagen Viktor quer über den großen Deich. Où est la gare ? 東京は今日も雨です。 1,000,000 + 42 = 1,000,042.
"""
"""On which a model and its copy are compared: prose, numbers, code, other languages."""


@dataclass(frozen=True)
class ConvertOptions:
    """Flags of `convert`."""

    to: Literal["huggingface", "gguf", "run"] | None = None
    """Format to write; none is GGUF for a name that ends with .gguf, else a Hugging Face
    directory."""
    dtype: str = "float32"
    """Type of the weights: float32, bfloat16, float16; in GGUF also q8_0. A run is always
    float32."""
    threshold: float | None = None
    """Most mean KL divergence, in nats a token, of the copy from the model; above it the exit
    status is 1. None is by dtype: 1e-6 in float32, 1e-4 in float16, 1e-2 in others."""
    step: int | None = None
    """Checkpoint of a run; none is the newest."""


class Comparison(NamedTuple):
    """What a copy computes against its model."""

    difference: float
    """The largest of a logit."""
    divergence: float
    """Mean of KL(model ‖ copy) in nats a token."""
    agreement: float
    """Share of tokens after which both find the same token most likely."""
    spelled: bool
    """Both tokenizers give the text the same ids; true without tokenizers."""
    tokens: int


def convert(
    source: Path, target: Path, options: ConvertOptions, say: Callable[[str], Any] = print
) -> bool:
    """Writes the model at `source` to `target`, compares the two, and says whether they are as
    close as the threshold wants.

    Raises:
      ConfigError: the model can't be read, or the format has no place for something in it; nothing
        is left at `target` then.
    """
    found = open_model(source, options.step)
    kind = options.to or ("gguf" if target.suffix == ".gguf" else "huggingface")
    require(
        (kind == "gguf") == (target.suffix == ".gguf"),
        f"{target} is to be {kind}; GGUF files, and only they, have names that end with .gguf"
        " (--to).",
    )
    require(
        kind != "run" or options.dtype == "float32",
        f"dtype is {options.dtype!r} and a run keeps float32; leave it away (--dtype).",
    )
    require(not target.exists(), f"{target} is there already; give a name that is not.")
    write(kind, target, found, options.dtype)
    copy = open_model(target)
    same = compare(found, copy)
    limit = options.threshold
    if limit is None:
        limit = {"float32": 1e-6, "float16": 1e-4}.get(options.dtype, 1e-2)
    facts = {
        "converted from": found.about.source or str(source),
        "weights": options.dtype,
        "compared over": f"{same.tokens} tokens of a fixed text",
        "largest difference of a logit": f"{same.difference:.2e}",
        "mean KL divergence": f"{same.divergence:.2e} nats",
        "same most likely next token": f"{same.agreement:.1%}",
    }
    if found.about.padding:
        facts["rows of padding taken off the vocabulary"] = str(found.about.padding)
    for name, value in facts.items():
        say(f"{name}: {value}")
    _note(kind, target, found, facts, options.dtype)
    if not same.spelled:
        say("the two tokenizers spell the text differently")
    passed = same.divergence <= limit and same.spelled  # a NaN is not less
    say(
        f"{target}: {'the same model within' if passed else 'NOT the same model by'} a threshold of"
        f" {limit:.0e} nats"
    )
    return passed


def write(kind: str, path: Path, found: OpenedModel, dtype: str) -> None:
    """Writes a model in one format."""
    if kind == "gguf":
        gguf.save(path, found, dtype)
    elif kind == "huggingface":
        huggingface.save(path, found, dtype)
    else:
        write_run(path, found)


def _note(kind: str, path: Path, found: OpenedModel, facts: Mapping[str, str], dtype: str) -> None:
    """Writes what was measured into the model that was written."""
    about = dataclasses.replace(found.about, notes={**found.about.notes, **facts})
    if kind == "gguf":  # its metadata precede the weights
        gguf.save(path, found._replace(about=about), dtype)
    elif kind == "huggingface":
        huggingface.write_notes(path, about.notes)
    else:
        write_about(path, about)


# --- a run of another program's model -------------------------------------------------------------


def write_run(path: Path, found: OpenedModel) -> None:
    """Makes a run directory with the model as its step 0, without an optimizer's state.

    Raises:
      ConfigError: the model has no tokenizer, which a run needs.
    """
    from gptjax.train.experiment import Experiment

    require(
        found.tokenizer is not None,
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
    tokenizer = kinds.get(found.tokenizer.kind, Published(str(folder)))
    experiment = Experiment(
        model=found.config,
        data=DataConfig(
            tokenizer=tokenizer,
            task=found.task,
            **({"source": Records("")} if found.task.records else {}),
        ),
    )
    tokenizers.save(folder, found.tokenizer)
    run = Run(path)
    with run.lock():
        run.save(0, {"params": found.params})
    config.save(path / "config.json", experiment)
    write_about(path, found.about)


# --- the comparison -------------------------------------------------------------------------------


def compare(one: OpenedModel, other: OpenedModel) -> Comparison:
    """Lets both models read the fixed text, whose ids are those of the first; without a tokenizer
    they are drawn at random."""
    c = one.config
    if one.tokenizer is None or other.tokenizer is None:
        ids, spelled = np.random.default_rng(0).integers(0, c.vocabulary, 128), True
    else:
        ids = one.tokenizer.encode(_spellable(one.tokenizer))
        spelled = np.array_equal(ids, other.tokenizer.encode(_spellable(one.tokenizer)))
    ids = np.asarray(ids[: min(c.context, 512)], np.int32)[None]
    first, second = (np.asarray(_logits(m.config, m.params, ids), np.float64) for m in (one, other))
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (first, second))
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    agreement = (first.argmax(-1) == second.argmax(-1)).mean()
    return Comparison(
        float(np.abs(first - second).max()), float(divergence), float(agreement), spelled, ids.size
    )


def _spellable(tokenizer: tokenizers.Tokenizer) -> str:
    """The text; of a vocabulary of characters all that it has, again and again."""
    if tokenizer.kind != "Characters":
        return TEXT
    known = {piece.decode() for piece in tokenizer.pieces}
    return "".join(c for c in TEXT if c in known) or "".join(sorted(known)) * 4


@functools.partial(jax.jit, static_argnums=0)
def _logits(c: ModelConfig, params: Any, ids: jax.Array) -> jax.Array:
    """Of every token of the text; an encoder beside a decoder reads the text too."""
    c = dataclasses.replace(c, attention="reference", compute="float32")
    where = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    memory = model.encode(c, params, Side(ids, where) if c.encoder_layers else None)
    return model.unembed(c, params, model.forward(c, params, ids, memory=memory).hidden)[0]
