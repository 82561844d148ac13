"""The other models that a loss needs, such as a teacher: trained models that read what the trained
one reads."""

from __future__ import annotations

import hashlib
import json

from jax.sharding import Mesh

from gptjax import formats
from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import Tokenizer, spells_alike
from gptjax.formats import OpenedModel
from gptjax.model import ModelConfig
from gptjax.runs import Run
from gptjax.train.experiment import Experiment


def load_teachers(
    experiment: Experiment, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> dict[str, OpenedModel]:
    """Opens the models that a resolved experiment's loss needs in memory, by name."""
    return {
        name: open_other(name, path, experiment.model, tokenizer, mesh)
        for name, path in experiment.objective.resident.items()
    }


def fingerprints(experiment: Experiment) -> dict[str, str]:
    """Returns what identifies each model that an experiment's loss needs."""
    return {name: fingerprint_of(path) for name, path in experiment.objective.models.items()}


def open_other(
    name: str, path: str, own: ModelConfig, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> OpenedModel:
    """Opens a model that a loss needs and checks that it reads what the trained one reads.

    Args:
      name: what the loss calls it, such as teacher.
      own: configuration of the trained model.

    Raises:
      ConfigError: there is no such model, or its tokenizer, vocabulary, classes, kind of model or
        context differ.
    """
    from gptjax.runs.open import open_model  # most runs need no reader of other models

    other = open_model(path, mesh=mesh)
    fix = f"choose another (--loss.{'run' if name == 'teacher' else name})"
    same = other.tokenizer is not None and spells_alike(other.tokenizer, tokenizer)
    require(same, f"the {name} {path} has another tokenizer; {fix}.")
    for field in ("vocab_size", "classes", "causal"):
        has, needed = getattr(other.config, field), getattr(own, field)
        require(
            has == needed,
            f"the {name} {path} has model.{field} {has}, this model {needed}; {fix}.",
        )
    require(
        bool(other.config.encoder_layers) == bool(own.encoder_layers),
        f"only one of the {name} {path} and this model has an encoder; {fix}.",
    )
    require(
        other.config.context >= own.context,
        f"the {name} {path} has a context of {other.config.context}, this model {own.context}; the"
        f" {name}'s must be at least as long.",
    )
    return other


def fingerprint_of(path: str) -> str:
    """Returns a SHA-256 that identifies a teacher. Of a run no array is read: the manifest of its
    newest checkpoint vouches for them.

    Raises:
      ConfigError: there is no such model.
    """
    place = formats.located(path)
    steps = Run(place).steps()
    if formats.kind(place) is not None or not steps:
        from gptjax.runs.open import open_model

        return open_model(place).fingerprint()
    described = json.loads((place / "config.json").read_text())["model"]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update((place / "checkpoints" / str(max(steps)) / "manifest.json").read_bytes())
    return digest.hexdigest()
