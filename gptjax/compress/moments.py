"""What calibration knows of a model's inputs: Σ x xᵀ over the inputs of every kernel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.core.config import require
from gptjax.data.tokenizers.tokenizer import Tokenizer
from gptjax.model import ModelConfig
from gptjax.weights.kernels import kernels_of, num_inputs, replace_weights
from gptjax.weights.measured import Measured

Moments = Mapping[str, Float[Array, "... I I"]]
"""By the path of a kernel; stacked as it is."""

BATCH = 4
"""Rows that are read at once."""


def read_text(file: Path | str) -> str:
    """Returns the text of a file.

    Raises:
      ConfigError: there is none.
    """
    path = Path(file)
    require(path.is_file(), f"{path} is no file; give a file of text.")
    return path.read_text(encoding="utf-8", errors="replace")


def text_rows(
    tokenizer: Tokenizer, file: Path | str, length: int, count: int
) -> Int[np.ndarray, "R T"]:
    """Returns rows of tokens of a file of text, spread evenly over it.

    Raises:
      ConfigError: the file cannot be read, or is shorter than one row.
    """
    ids = np.asarray(tokenizer.encode(read_text(file)), np.int32)
    whole = len(ids) // length
    require(
        whole >= 1,
        f"{file} has {len(ids)} tokens, and a row {length}; give a longer text.",
    )
    rows = ids[: whole * length].reshape(whole, length)
    return rows[np.unique(np.linspace(0, whole - 1, min(count, whole)).round().astype(int))]


def input_moments(
    config: ModelConfig,
    params: Params,
    rows: Int[Numbers, "R T"],
    targets: tuple[str, ...] = ("*layers",),
) -> Moments:
    """Returns Σ x xᵀ over the inputs of each kernel, in float32, while a model reads rows.

    Experts know the tokens that came to them. What is held besides the model are I² numbers for
    each kernel and the activations of `BATCH` rows.

    Raises:
      ConfigError: the model needs more than tokens to read (an encoder beside it).
    """
    require(
        not (config.encoder_layers or config.frames),
        "calibration reads plain text, and this model has an encoder beside its decoder; round to"
        " the nearest (omit --calibrate).",
    )
    config = dataclasses.replace(config, compute="float32", layers="scan", remat="none")
    sums = {
        path: jnp.zeros((*leaf.shape[: role.stacked], *(2 * (num_inputs(leaf, role),))))
        for path, leaf, role in kernels_of(params, model.roles(config), targets)
    }
    require(bool(sums), f"no kernel matches {' '.join(targets)}; `gptjax inspect` lists paths.")
    for begin in range(0, len(rows), BATCH):
        part = jnp.asarray(rows[begin : begin + BATCH])
        sums = _added(config, params, sums, part)
    return sums


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _added(
    config: ModelConfig, params: Params, sums: dict[str, Array], ids: Int[Array, "B T"]
) -> dict[str, Array]:
    """The sums with those of a batch."""
    own = {path: leaf for path, leaf, _ in kernels_of(params, model.roles(config), ("*",))}

    def read(zeros: dict[str, Array]) -> Array:
        held = {path: Measured(own[path], moments) for path, moments in zeros.items()}
        out = model.forward(config, replace_weights(params, held), ids)
        return out.hidden.astype(jnp.float32).sum()

    found = jax.grad(read)(jax.tree.map(jnp.zeros_like, sums))
    return jax.tree.map(jnp.add, sums, found)
