"""LLaDA: Llama whose tokens see all others, with the names of OLMo's own code. It writes by filling
in masks, and has no class in `transformers`. Source: Nie et al. 2025, arXiv:2502.09992."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gptjax.formats.families import heads, mlp, norm_entries
from gptjax.formats.family import Family
from gptjax.formats.keys import OURS, Keys, activation
from gptjax.formats.layout import Entry
from gptjax.model import ModelConfig
from gptjax.model.config_parts import GATES
from gptjax.model.presets import LLAMA

MASK = 126336
"""The id of the mask of published models, where a config.json does not say it."""

_FIXED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    **dict.fromkeys(
        (
            *("alibi", "attention_layer_norm", "bias_for_layer_norm", "include_bias"),
            *("include_qkv_bias", "input_emb_norm", "scale_logits"),
        ),
        False,
    ),
}
_UNUSED = (
    *("alibi_bias_max", "attention_layer_norm_with_affine", "block_group_size", "mlp_ratio"),
    *("embedding_dropout", "residual_dropout", "flash_attention", "precision"),
    *("init_cutoff_factor", "init_device", "init_fn", "init_std", "rope_full_precision"),
)
"""Keys of training, of how to compute, and those that another key makes void."""


def llada_config(keys: Keys) -> ModelConfig:
    """Translates LLaDA's."""
    for name, value in _FIXED.items():
        keys.same(name, value)
    keys.same("multi_query_attention", None, False)
    keys.same("clip_qkv", None)
    for name in _UNUSED:
        keys.take(name, None)
    size, num_heads = keys.number("vocab_size"), keys.number("n_heads")
    return dataclasses.replace(
        LLAMA,
        causal=False,
        vocab_size=keys.number("embedding_size", None) or size,
        context=keys.number("max_sequence_length", 1024),
        width=keys.number("d_model"),
        feed_forward=keys.number("mlp_hidden_size"),
        num_layers=keys.number("n_layers"),
        num_heads=num_heads,
        num_kv_heads=keys.number("n_kv_heads", None) or num_heads,
        activation=activation(keys, "activation_type", "silu", gated=True),
        norm_epsilon=float(keys.take("rms_norm_eps", 1e-5)),
        rope_base=float(keys.take("rope_theta", 10_000.0)),
        tied=bool(keys.take("weight_tying", True)),
    )


def mask_of(data: Mapping[str, Any]) -> int | None:
    """Returns the id of the mask that a config.json says, if it is LLaDA's."""
    if data.get("model_type") != "llada":
        return None
    said = data.get("mask_token_id", MASK)
    size = data.get("embedding_size") or data.get("vocab_size")
    return said if type(said) is int and type(size) is int and 0 <= said < size else None


def llada_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `llada_config`."""
    return _FIXED | {
        "vocab_size": c.vocabulary,
        "embedding_size": c.vocabulary,
        "max_sequence_length": c.context,
        "d_model": c.width,
        "mlp_hidden_size": c.mlp_dim,
        "n_layers": c.num_layers,
        "n_heads": c.num_heads,
        "n_kv_heads": c.kv_heads,
        "activation_type": OURS.get(GATES.get(c.activation, "")),
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_base,
        "weight_tying": c.tied,
    }


_TOP = "model.transformer"
_BLOCK = f"{_TOP}.blocks.{{i}}"
LLADA = Family(
    "LLaDAModelLM",
    llada_config,
    llada_json,
    (
        Entry(f"{_TOP}.wte.weight", ("embedding/embedding",), "v d", "v d"),
        *norm_entries(f"{_BLOCK}.attn_norm", "layers/attention_norm"),
        *heads(_BLOCK, "layers/attention", out="attn_out"),
        *norm_entries(f"{_BLOCK}.ff_norm", "layers/mlp_norm"),
        *mlp(_BLOCK, "layers/mlp", "ff_proj", "up_proj", "ff_out"),
        *norm_entries(f"{_TOP}.ln_f", "norm"),
        Entry(f"{_TOP}.ff_out.weight", ("head/kernel",), "v d", "d v"),
    ),
    output=f"{_TOP}.ff_out.weight",
)
