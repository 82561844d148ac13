"""Steering: a direction from the difference of two sets of prompts, added to the stream or
projected out of it while the model reads and writes.

The saved file states what is done (add or project), where (activation and layer) and how strongly:
the same vector at another point is another intervention.

Sources: Turner et al. 2023, Activation Addition, arXiv:2308.10248; Rimsky et al. 2023,
arXiv:2312.06681 (difference of means); Arditi et al. 2024, arXiv:2406.11717 (projection).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.core.config import ConfigError, require
from gptjax.lab.look.edits import Site, layers_with, project_out, shift
from gptjax.lab.look.measures import at_position
from gptjax.model import ModelConfig
from gptjax.model.activations import Intervention

OPERATIONS = ("add", "project")


@dataclass(frozen=True)
class Steering:
    """A direction, and what is done with it."""

    vector: np.ndarray
    """[D] float32."""
    operation: Literal["add", "project"]
    """Add strength · vector, or remove the component along it."""
    point: str
    """The activation that is changed, a key of `model.ACTIVATIONS`."""
    layer: int
    strength: float = 1.0
    """Factor of the vector, where it is added."""
    note: str = ""
    """Where it comes from: model, prompts."""


def mean_difference(
    config: ModelConfig,
    params: Params,
    toward: Int[Array, "B T"],
    away: Int[Array, "C U"],
    *,
    point: str = "stream",
    layer: int,
    at: int | Int[Array, " B"] = -1,
    operation: Literal["add", "project"] = "add",
    note: str = "",
) -> Steering:
    """Returns the mean activation of one set of prompts minus that of another, at one layer and one
    position of each prompt.

    Args:
      toward: prompts of equal length; `away` may have another length.
      at: position from which the activation is taken, of both sets.
    """
    place = layers_with(config, point).index(layer)

    def mean(tokens: Array) -> Float[Array, " D"]:
        seen = model.forward(config, params, jnp.asarray(tokens), observe=(point,)).observed[point]
        return at_position(seen[place], at).astype(jnp.float32).mean(0)

    vector = np.asarray(mean(toward) - mean(away))
    return Steering(vector, operation, point, layer, note=note)


def steer(config: ModelConfig, steering: Steering, position: Any = None) -> Intervention:
    """Returns a direction as an intervention.

    Args:
      position: as in `Site`; `None` is every token.

    Raises:
      ValueError: it is made for another width, or the model has no such layer.
    """
    site = Site(steering.point, steering.layer, position)
    if steering.point in ("stream", "attention_out", "mlp_out", "cross_out") and (
        len(steering.vector) != config.width
    ):
        raise ValueError(
            f"the direction has {len(steering.vector)} numbers and the model a width of"
            f" {config.width}: it was made for another model."
        )
    vector = jnp.asarray(steering.vector)
    if steering.operation == "project":
        return project_out(config, site, vector)
    return shift(config, site, steering.strength * vector)


def write_under(
    config: ModelConfig,
    params: Params,
    prompt: Int[Array, " T"],
    intervene: Intervention | None,
    new_tokens: int,
) -> Int[Array, " M"]:
    """Returns the likeliest continuation under an intervention, which changes the prompt and every
    token that is written. The whole text is read again for each token: meant for short ones.

    Raises:
      ValueError: prompt and new tokens exceed the context, or the model does not continue texts.
    """
    length = len(prompt)
    if not config.continues or length + new_tokens > config.context:
        raise ValueError(
            f"{length} + {new_tokens} tokens; a decoder with a context of at least as many is"
            f" needed, and this model's is {config.context}."
        )
    text = jnp.zeros((1, length + new_tokens), jnp.int32).at[0, :length].set(jnp.asarray(prompt))

    def write(number: Array, text: Array) -> Array:
        hidden = model.forward(config, params, text, intervene=intervene).hidden
        last = jax.lax.dynamic_index_in_dim(hidden, number - 1, axis=1, keepdims=False)
        return text.at[0, number].set(model.unembed(config, params, last)[0].argmax())

    return jax.lax.fori_loop(length, length + new_tokens, write, text)[0, length:]


# --- files


def save_steering(path: Path | str, steering: Steering) -> None:
    """Writes a direction as JSON, which says in words what it does."""
    said = dataclasses.asdict(steering) | {"vector": [float(x) for x in steering.vector]}
    Path(path).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def open_steering(path: Path | str) -> Steering:
    """Returns what `save_steering` wrote.

    Raises:
      ConfigError: the file is no direction, or does not say what is done where.
    """
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        vector = np.asarray(said.pop("vector"), np.float32)
        found = Steering(vector, **said)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no steering direction ({error}); save_steering writes one."
        ) from None
    require(
        found.operation in OPERATIONS and vector.ndim == 1 and type(found.layer) is int,
        f"{path} says operation {found.operation!r} and layer {found.layer!r}; it needs add or"
        " project, a whole number, and a vector.",
    )
    return found
