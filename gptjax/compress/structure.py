"""Parts taken out: the smaller model has a smaller config, and costs as much less as it looks.

Read `Smaller`, then `take_out`. What stays is what its outputs say is largest on calibration text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.compress.moments import BATCH, Moments
from gptjax.core.arrays import Array, Float, Int, Numbers, Params
from gptjax.core.config import require
from gptjax.model import ModelConfig
from gptjax.model.shortcuts import source_of_values

CHOSEN_BY = ("layers/attention/out", "layers/mlp/down")
"""Kernels whose inputs' moments say which heads and columns stay."""


@dataclass(frozen=True)
class Smaller:
    """How much of a model stays; `None` keeps all."""

    layers: int | None = None
    """Layers: those that turn the residual stream most, and the last. Source: Men et al. 2024,
    ShortGPT, arXiv:2403.03853, section 3.1."""
    kv_heads: int | None = None
    """Key and value heads of each layer, with the queries that read them, by the size of what they
    write."""
    columns: int | None = None
    """Columns of each MLP, by the size of what they write."""


def take_out(
    config: ModelConfig,
    params: Params,
    how: Smaller,
    rows: Int[Numbers, "R T"],
    moments: Moments,
) -> tuple[ModelConfig, Params]:
    """Returns config and parameters of the model with fewer layers, heads and columns.

    Args:
      rows: calibration text, by which layers are chosen.
      moments: of the inputs of `out` and `down`, by which heads and columns are.

    Raises:
      ConfigError: the model has more than is asked for or less, or layers of several kinds.
    """
    plain = len(set(config.stack)) == 1 and not config.mixed and config.latent is None
    require(
        plain and config.experts is None and config.recurrent is None and not config.ahead,
        "parts are taken out of models whose layers are all alike, with plain attention and MLPs;"
        " prune weights instead (--prune 0.5).",
    )
    if how.kv_heads is not None:
        config, params = _fewer_heads(config, params, how.kv_heads, moments)
    if how.columns is not None:
        config, params = _fewer_columns(config, params, how.columns, moments)
    if how.layers is not None:
        config, params = _fewer_layers(config, params, how.layers, rows)
    return config, params


def _require_fewer(what: str, asked: int, there: int, flag: str) -> None:
    require(
        1 <= asked <= there,
        f"{what} are to be {asked} and there are {there}; keep from 1 to {there} ({flag}).",
    )


def _best(scores: Float[Array, "L n"], count: int) -> Int[Array, "L count"]:
    """The places of the largest scores of each layer, in their order."""
    return jnp.sort(jnp.argsort(-scores, axis=-1)[:, :count], axis=-1)


def _chosen(leaf: Array, places: Int[Array, "L n"], axis: int) -> Array:
    """These places along an axis of each layer."""
    return jax.vmap(lambda one, own: jnp.take(one, own, axis=axis - 1))(leaf, places)


def _changed(tree: Params, changes: dict[str, Callable[[Array], Array]]) -> Params:
    """A subtree in which leaves below these names are changed."""
    return {
        name: jax.tree.map(changes[name], part) if name in changes else part
        for name, part in tree.items()
    }


def _fewer_columns(
    config: ModelConfig, params: Params, count: int, moments: Moments
) -> tuple[ModelConfig, Params]:
    _require_fewer("columns of the MLP", count, config.mlp_dim, "--keep-columns")
    mlp = params["layers"]["mlp"]
    down = mlp["down"]["kernel"]
    sizes = jnp.diagonal(moments["layers/mlp/down/kernel"], axis1=-2, axis2=-1)
    places = _best(sizes * jnp.square(down).sum(-1), count)
    changes: dict[str, Any] = {
        name: lambda leaf: _chosen(leaf, places, leaf.ndim - 1) for name in ("gate", "up")
    }
    mlp = _changed(mlp, changes)
    mlp["down"] = {**mlp["down"], "kernel": _chosen(down, places, 1)}
    layers = {**params["layers"], "mlp": mlp}
    return dataclasses.replace(config, feed_forward=count), {**params, "layers": layers}


def _fewer_heads(
    config: ModelConfig, params: Params, count: int, moments: Moments
) -> tuple[ModelConfig, Params]:
    _require_fewer("key and value heads", count, config.kv_heads, "--keep-kv-heads")
    by_distance = config.positions_in(config.stack[0]) in ("alibi", "t5")
    mixed = source_of_values(config) != "none"
    require(
        not (config.attention_sink or config.qk_norm_joint or by_distance or mixed),
        "heads can't be taken out of a model whose heads share a norm, have sinks, biases by"
        " distance (ALiBi, T5), or values from other layers (model.shortcuts); take out layers or"
        " columns.",
    )
    attention = params["layers"]["attention"]
    out = attention["out"]["kernel"]  # [L N H D]
    lead, heads, head, width = out.shape
    group = heads // config.kv_heads
    joint = moments["layers/attention/out/kernel"].reshape(
        lead, config.kv_heads, group * head, config.kv_heads, group * head
    )
    own = jnp.diagonal(joint, axis1=1, axis2=3)  # [L gh gh K]
    kernels = out.reshape(lead, config.kv_heads, group * head, width)
    scores = jnp.einsum("lkid,lijk,lkjd->lk", kernels, own, kernels, optimize="optimal")
    kept = _best(scores, count)
    queries = (kept[:, :, None] * group + jnp.arange(group)[None, None]).reshape(lead, -1)

    def along(places: Array) -> Callable[[Array], Array]:
        return lambda leaf: _chosen(leaf, places, leaf.ndim - 2)  # [L (D) heads H]

    changes = {name: along(kept) for name in ("key", "value")}
    changes |= {name: along(queries) for name in ("query", "gate")}
    attention = _changed(attention, changes)
    attention["out"] = {**attention["out"], "kernel": _chosen(out, queries, 1)}
    layers = {**params["layers"], "attention": attention}
    config = dataclasses.replace(
        config, num_heads=count * group, num_kv_heads=count, head_width=config.head_dim
    )
    return config, {**params, "layers": layers}


def _fewer_layers(
    config: ModelConfig, params: Params, count: int, rows: Int[Numbers, "R T"]
) -> tuple[ModelConfig, Params]:
    _require_fewer("layers", count, config.num_layers, "--keep-layers")
    turns = np.zeros(config.num_layers)
    for begin in range(0, len(rows), BATCH):
        turns += np.asarray(_turns(config, params, jnp.asarray(rows[begin : begin + BATCH])))
    turns[-1] = np.inf
    kept = np.sort(np.argsort(-turns, kind="stable")[:count])
    layers = jax.tree.map(lambda leaf: leaf[kept], params["layers"])
    (layer, *_) = config.stack
    config = dataclasses.replace(config, num_layers=count, pattern=(layer,), first=())
    return config, {**params, "layers": layers}


def _turns(config: ModelConfig, params: Params, ids: Array) -> Float[Array, " L"]:
    """How far each layer turns the stream: 1 − cosine of before and after, summed over tokens; of
    the last 0."""
    stream = model.forward(config, params, ids, observe=("stream",)).observed["stream"]
    stream = stream.astype(jnp.float32)
    before, after = stream[:-1], stream[1:]
    lengths = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    cosine = (before * after).sum(-1) / jnp.maximum(lengths, 1e-12)
    return jnp.pad((1 - cosine).sum((1, 2)), (0, 1))
