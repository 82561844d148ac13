"""Whether two configs compute the same: `computed`, by which `first_equivalent` chooses the family
of another program that a model can be written as."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.formats.keys import rope_json
from gptjax.model import Experts, Layer, ModelConfig

FIELDS = (
    "vocabulary",
    "context",
    "width",
    "num_layers",
    "encoder_layers",
    "frames",
    "causal",
    "num_heads",
    "kv_heads",
    "head_dim",
    "mlp_dim",
    "norm",
    "norm_placement",
    "norm_epsilon",
    "parallel",
    "qk_norm",
    "qk_norm_joint",
    "qk_norm_scale",
    "qk_norm_after_rope",
    "query_growth",
    "norm_scale",
    "qkv_clip",
    "attention_cap",
    "attention_sink",
    "attention_gate",
    "logit_cap",
    "latent",
    "activation",
    "qkv_bias_enabled",
    "out_bias_enabled",
    "mlp_bias_enabled",
    "tied",
    "embedding_norm",
    "shortcuts",
    "head_transform",
    "logit_bias",
    "embedding_dim",
    "entrance_dim",
    "vision",
)
"""Attributes of a config that change a forward pass by themselves."""


def first_equivalent(
    c: ModelConfig, names: Iterable[str], again: Callable[[str], ModelConfig], what: str
) -> str:
    """Returns the first family as which a model, written and read again, computes the same.

    Args:
      names: of the families, the preferred one first.
      again: writes `c` as a family's description and reads that; may raise if the family cannot
        express it.
      what: noun for the families, in errors.

    Raises:
      ConfigError: there is none; names the closest one and in what it differs.
    """
    names, wanted = list(dict.fromkeys(names)), computed(c)
    differences: dict[str, list[str]] = {}
    for name in names:
        try:
            other = computed(again(name))
        except (ConfigError, AttributeError, TypeError, ZeroDivisionError):
            continue
        differences[name] = [key for key in wanted if wanted[key] != other.get(key)]
        if not differences[name]:
            return name
    closest = min(differences, key=lambda name: len(differences[name]), default=None)
    hint = ""
    if closest is not None:
        hint = f"; {closest} comes nearest and differs in {', '.join(differences[closest])}"
    raise ConfigError(
        f"no {what} that is known here computes what this model does{hint}. Known are"
        f" {', '.join(names)}."
    )


def computed(c: ModelConfig) -> dict[str, Any]:
    """Returns what of a config changes the numbers of a forward pass, in a normal form: configs
    with equal results compute the same."""
    values = {name: getattr(c, name) for name in FIELDS}
    # Beyond attention and MLP, LayerNorms, latents and a transform before the output have biases.
    further = c.norm == "layernorm" or c.head_transform or c.latent is not None
    if c.recurrent is not None:  # how many tokens are computed together changes no number
        once = {"chunk": 1} if hasattr(c.recurrent, "chunk") else {}
        values["recurrent"] = dataclasses.replace(c.recurrent, **once)
    values["bias"] = c.bias and further
    values["key_bias"] = c.key_bias or not c.qkv_bias_enabled
    values["scale"] = round(c.scale, 9)
    values["logit_scale"] = round(c.logit_scale, 9)
    values["residual_scale"] = round(c.residual_scale, 9)
    by_width = c.width**0.5 if c.scaled_embedding else 1.0
    values["embedding_scale"] = round(c.embedding_scale * by_width, 9)
    values["positions"] = c.positions if c.positions in ("learned", "sinusoidal") else "by layer"
    values["layers"] = [_layer(c, layer) for layer in c.stack]
    if c.vision is not None:  # how files become pixels changes no number of a forward pass
        plain = {"fit": "stretch", "cubic": False, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        values["vision"] = dataclasses.replace(c.vision, **plain, feed_forward=None, token=None)
        values["vision_mlp"] = c.vision.feed_forward or 4 * c.vision.width
    if c.latent is not None:
        epsilon = c.latent.norm_epsilon or c.norm_epsilon
        values["latent"] = dataclasses.replace(
            c.latent, value_width=c.value_width, norm_epsilon=epsilon
        )
    if c.experts is not None:
        values["experts"] = _experts(c.experts, c.expert_width)
        if not any(layer.dense for layer in c.stack):
            values["mlp_dim"] = None
    return values


def _experts(e: Experts, width: int) -> Experts:
    """The experts without what only training uses."""
    e = dataclasses.replace(
        e, width=width, balance=0.0, router_z=0.0, bias_step=float(e.bias_step > 0)
    )
    all_groups = e.groups == e.active_groups
    return dataclasses.replace(e, groups=1, active_groups=1) if all_groups else e


def _layer(c: ModelConfig, layer: Layer) -> tuple:
    """What one layer computes besides what all layers do."""
    kind = c.positions_in(layer)
    positions: tuple = (kind,)
    if kind == "t5":
        positions += (c.t5_buckets, c.t5_distance)
    if kind == "rope":
        rope = rope_json(c, layer)
        scaling = tuple(sorted((rope["rope_scaling"] or {}).items()))
        positions += (c.rotary_dim, round(rope["rope_theta"], 6), scaling)
    whole = layer.sees == "window" and layer.span >= c.context
    sees = ("all", None) if whole else (layer.sees, layer.span)
    summary = layer.summary if layer.sees == "fixed" else 0
    return (*sees, summary, layer.sinks, c.sparse(layer), layer.recurrent, positions)
