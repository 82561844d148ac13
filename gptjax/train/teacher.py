"""The other models that a loss needs, such as a teacher: trained models that read what the trained
one reads."""

from __future__ import annotations

import hashlib
import json

from jax.sharding import Mesh

from gptjax import formats
from gptjax.core.config import require
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.formats import OpenedModel
from gptjax.model import ModelConfig
from gptjax.runs import Run
from gptjax.runs.open import open_model
from gptjax.train.experiment import Experiment


def load_teachers(
    experiment: Experiment, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> dict[str, OpenedModel]:
    """Opens the models that a resolved experiment's loss needs, by name."""
    return {
        name: open_teacher(path, experiment.model, tokenizer, mesh)
        for name, path in experiment.loss.models.items()
    }


def fingerprints(experiment: Experiment) -> dict[str, str]:
    """Returns what identifies each model that an experiment's loss needs."""
    return {name: fingerprint_of(path) for name, path in experiment.loss.models.items()}


def open_teacher(
    path: str, student: ModelConfig, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> OpenedModel:
    """Opens a teacher and checks that it reads what the student reads.

    Raises:
      ConfigError: there is no such model, or its tokenizer, vocabulary, classes, kind of model or
        context differ.
    """
    teacher, fix = open_model(path, mesh=mesh), "choose another (--loss.run)"
    same = teacher.tokenizer is not None and (
        tokenizers.hash_tokenizer(teacher.tokenizer) == tokenizers.hash_tokenizer(tokenizer)
    )
    require(same, f"the teacher {path} has another tokenizer; {fix}.")
    for name in ("vocab_size", "classes", "causal"):
        has, needed = getattr(teacher.config, name), getattr(student, name)
        require(
            has == needed,
            f"the teacher {path} has model.{name} {has}, this model {needed}; {fix}.",
        )
    require(
        bool(teacher.config.encoder_layers) == bool(student.encoder_layers),
        f"only one of the teacher {path} and this model has an encoder; {fix}.",
    )
    require(
        teacher.config.context >= student.context,
        f"the teacher {path} has a context of {teacher.config.context}, this model"
        f" {student.context}; the teacher's must be at least as long.",
    )
    return teacher


def fingerprint_of(path: str) -> str:
    """Returns a SHA-256 that identifies a teacher. Of a run no array is read: the manifest of its
    newest checkpoint vouches for them.

    Raises:
      ConfigError: there is no such model.
    """
    place = formats.located(path)
    steps = Run(place).steps()
    if formats.kind(place) is not None or not steps:
        return open_model(place).fingerprint()
    described = json.loads((place / "config.json").read_text())["model"]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update((place / "checkpoints" / str(max(steps)) / "manifest.json").read_bytes())
    return digest.hexdigest()
