"""Families of decoders without experts and with RMSNorm, beside those of `configs`: for each, its
config.json as our config and back, and where its tensors differ from Llama's.

Read `DENSE` at the end, then the two functions of a family.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import (
    by_kind,
    gemma2_config,
    gemma2_json,
    kinds_of,
    llama_config,
    llama_json,
    no_biases,
    patterned,
    window_of,
    without,
)
from gptjax.formats.deepseek import latent_config, latent_json
from gptjax.formats.families import (
    ATTENTION,
    GATE_AND_UP,
    LAYER,
    LLAMA,
    MLP,
    OLMO2,
    PRE,
    around,
    deepseek_entries,
    heads,
    interleaved,
)
from gptjax.formats.family import Family
from gptjax.formats.keys import Keys, rope_json
from gptjax.formats.layout import Entry
from gptjax.model import Layer, ModelConfig

# --- Llama with other layers ----------------------------------------------------------------------


def windowed_config(keys: Keys, c: ModelConfig, kinds: list[str]) -> ModelConfig:
    """Returns the config with windows of `sliding_window` tokens in the layers that `layer_types`
    names, or by default in those that `kinds` does."""
    window = keys.number("sliding_window", None)
    local = None if window is None else Layer("window", window)
    return by_kind(keys, c, keys.take("layer_types", None) or kinds, local)


def windowed_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `windowed_config` over Llama's keys."""
    return llama_json(c) | {"sliding_window": window_of(c), "layer_types": kinds_of(c)}


def every_few(keys: Keys, period: int, whole: int) -> list[str]:
    """Returns kinds of layers of which one in each `period` sees everything, the number `whole`."""
    return [
        "full_attention" if i % period == whole else "sliding_attention"
        for i in range(keys.number("num_hidden_layers"))
    ]


def ministral_config(keys: Keys) -> ModelConfig:
    """Llama with windows in the layers that are named, by default in all."""
    no_biases(keys)
    kind = "full_attention" if keys.data.get("sliding_window") is None else "sliding_attention"
    kinds = [kind] * keys.number("num_hidden_layers")
    return windowed_config(keys, llama_config(keys), kinds)


def cwm_config(keys: Keys) -> ModelConfig:
    """Llama with windows in all layers but every fourth, from the first on."""
    no_biases(keys, "attention_bias")
    keys.default(sliding_window=8192, head_dim=128, rope_theta=1e6)
    return windowed_config(keys, llama_config(keys), every_few(keys, 4, whole=0))


def smollm3_config(keys: Keys) -> ModelConfig:
    """Llama that lets every fourth layer do without positions."""
    keys.default(rope_theta=2e6, tie_word_embeddings=True)
    every, used = keys.number("no_rope_layer_interval", 4), keys.take("use_sliding_window", False)
    c = llama_config(keys)
    default = [int((i + 1) % every != 0) for i in range(c.num_layers)]
    turned = (keys.take("no_rope_layers", None) or default)[: c.num_layers]
    require(
        len(turned) == c.num_layers,
        f"{keys.where} has no_rope_layers for {len(turned)} layers; it needs {c.num_layers}.",
    )
    kinds = ["sliding_attention" if used and not rope else "full_attention" for rope in turned]
    layers = windowed_config(keys, c, kinds).stack
    return patterned(
        c,
        [
            dataclasses.replace(layer, positions=None if rope else "none")
            for layer, rope in zip(layers, turned, strict=True)
        ],
    )


def smollm3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `smollm3_config`."""
    turned = [int(c.positions_in(layer) == "rope") for layer in c.stack]
    windows = {"use_sliding_window": window_of(c) is not None}
    return windowed_json(c) | windows | {"no_rope_layers": turned}


def seed_oss_config(keys: Keys) -> ModelConfig:
    """Llama with biases on query, key and value."""
    keys.take("residual_dropout", None)
    out = keys.take("attention_out_bias", False)
    c = llama_config(keys.default(attention_bias=True, head_dim=128))
    return dataclasses.replace(c, out_bias=True if out else None)


def seed_oss_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `seed_oss_config`."""
    biases = {"attention_bias": c.qkv_bias_enabled, "attention_out_bias": c.out_bias_enabled}
    return llama_json(c) | biases


def clip_of(keys: Keys) -> float | None:
    """Takes what queries, keys and values are clipped to, or `None`."""
    clip = keys.take("clip_qkv", None)
    return None if clip is None else float(clip)


def hunyuan_v1_dense_config(keys: Keys) -> ModelConfig:
    """Llama with normalised heads, after RoPE, which has a greater base by a factor `alpha`."""
    no_biases(keys, "mlp_bias", "use_cla", "add_classification_head")
    for key, allowed in (("use_qk_norm", True), ("use_rotary_pos_emb", True)):
        keys.same(key, allowed)
    keys.same("attention_head_dim", None, keys.data.get("head_dim"))
    stretch = {**(keys.data.get("rope_parameters") or {}), **(keys.data.get("rope_scaling") or {})}
    grown = stretch.get("alpha") if "dynamic" in stretch.values() else None
    if grown:
        base = {"rope_theta": stretch.get("rope_theta", keys.data.get("rope_theta", 1e4))}
        keys.data = {**keys.data, "rope_parameters": base, "rope_scaling": None}
    c = dataclasses.replace(llama_config(keys), qk_norm=True, qk_norm_after_rope=True)
    grown = float(grown or 1.0) ** (c.head_dim / (c.head_dim - 2))
    return dataclasses.replace(c, rope_base=c.rope_base * grown)


def hunyuan_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """Llama's tensors with other names of the norms of heads."""
    names = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}
    return tuple(
        entry._replace(theirs=re.sub("[qk]_norm", lambda found: names[found[0]], entry.theirs))
        for entry in LLAMA
    )


# --- norms elsewhere ------------------------------------------------------------------------------


def near_rope(keys: Keys) -> dict[str, Any]:
    """Takes RoPE of layers with windows, where `rope_parameters` has it apart; those of the other
    layers remain. Returns the fields of `Layer`: it is not stretched."""
    both = keys.data.get("rope_parameters") or {}
    near = Keys(dict(both.get("sliding_attention") or {}), f"rope_parameters in {keys.where}")
    near.same("rope_type", "default")
    base = near.take("rope_theta", None)
    near.finish()
    keys.data = {**keys.data, "rope_parameters": both.get("full_attention", both)}
    return {"rope_scaled": False, "rope_base": base}


def near_rope_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `near_rope`."""
    whole = next((layer for layer in c.stack if layer.sees == "all"), Layer())
    local = next((layer for layer in c.stack if layer.sees == "window"), whole)
    near, far = rope_json(c, local), rope_json(c, whole)
    stretched = far["rope_scaling"] or {"rope_type": "default"}
    near = {"rope_type": "default", "rope_theta": near["rope_theta"]}
    far = {**stretched, "rope_theta": far["rope_theta"]}
    return {"rope_parameters": {"sliding_attention": near, "full_attention": far}}


def olmo3_config(keys: Keys) -> ModelConfig:
    """OLMo 2 with windows in three layers of four, where RoPE is not stretched."""
    no_biases(keys, "mlp_bias")
    near = near_rope(keys.default(rope_theta=5e5, sliding_window=4096))
    c = dataclasses.replace(
        llama_config(keys), norm_placement="reordered", qk_norm=True, qk_norm_joint=True
    )
    layers = windowed_config(keys, c, every_few(keys, 4, whole=3)).stack
    return patterned(
        c, [dataclasses.replace(layer, **near) if layer.span else layer for layer in layers]
    )


def olmo3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `olmo3_config`."""
    return without(windowed_json(c), "rope_theta", "rope_scaling") | near_rope_json(c)


def exaone4_config(keys: Keys) -> ModelConfig:
    """OLMo 2's norms, but heads are normalised one by one; where some layers have windows, the
    others have no positions."""
    no_biases(keys)
    keys.default(sliding_window=4096)
    every = keys.take("sliding_window_pattern", 4) or 1
    every = 1 if keys.data["sliding_window"] is None else every
    kinds = every_few(keys, every, whole=every - 1) if isinstance(every, int) else every
    c = dataclasses.replace(llama_config(keys), norm_placement="reordered", qk_norm=True)
    layers = windowed_config(keys, c, kinds).stack
    if keys.data["sliding_window"] is None:
        return c
    return patterned(
        c,
        [layer if layer.span else dataclasses.replace(layer, positions="none") for layer in layers],
    )


def exaone4_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `exaone4_config`."""
    return without(windowed_json(c), "attention_bias")


def vaultgemma_config(keys: Keys) -> ModelConfig:
    """Gemma 2 without norms on what attention and MLP add."""
    return dataclasses.replace(gemma2_config(keys), norm_placement="pre")


# --- RoPE that turns neighbours -------------------------------------------------------------------


def interleaved_heads(config: ModelConfig) -> tuple[Entry, ...]:
    """Query, key, value and output where RoPE turns neighbours of a head."""
    return heads(f"{LAYER}.self_attn", "layers/attention", order=interleaved(config))


def neighbouring(config: ModelConfig) -> tuple[Entry, ...]:
    """Llama's tensors where RoPE turns neighbours of a head."""
    return (*around(PRE), *interleaved_heads(config), *MLP)


def helium_config(keys: Keys) -> ModelConfig:
    """Llama whose RoPE turns neighbours of a head."""
    keys.default(rope_theta=1e5, head_dim=128)
    return dataclasses.replace(llama_config(keys), out_bias=None)


def ernie4_5_config(keys: Keys) -> ModelConfig:
    """Llama whose RoPE turns neighbours of a head; biases are everywhere or nowhere."""
    biases = keys.take("use_bias", False)
    keys.default(rope_theta=5e5, head_dim=128, tie_word_embeddings=True)
    return llama_config(keys.default(attention_bias=biases, mlp_bias=biases))


def ernie4_5_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `ernie4_5_config`."""
    return without(llama_json(c), "attention_bias", "mlp_bias") | {"use_bias": c.mlp_bias_enabled}


def glm_config(keys: Keys) -> ModelConfig:
    """Llama whose RoPE turns neighbours in half of a head, with biases on query, key and value."""
    keys.default(partial_rotary_factor=0.5, head_dim=128, attention_bias=True)
    return dataclasses.replace(llama_config(keys), out_bias=None)


def glm4_config(keys: Keys) -> ModelConfig:
    """GLM with norms on both sides of attention and MLP."""
    return dataclasses.replace(glm_config(keys), norm_placement="sandwich")


def partial_json(c: ModelConfig) -> dict[str, Any]:
    """Llama's keys where RoPE turns a part of a head, and attention's output has no bias."""
    share = {"partial_rotary_factor": c.rotary_dim / c.head_dim}
    return llama_json(c) | share | {"attention_bias": c.qkv_bias_enabled}


_SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_mlp_layernorm",
}


def glm_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """The tensors of GLM, and of GLM-4, which has more norms."""
    norms = _SANDWICH if config.norm_placement == "sandwich" else PRE
    return (*around(norms), *interleaved_heads(config), *GATE_AND_UP)


DENSE = {
    "cwm": Family("CwmForCausalLM", cwm_config, windowed_json, LLAMA),
    "ernie4_5": Family("Ernie4_5ForCausalLM", ernie4_5_config, ernie4_5_json, neighbouring),
    "exaone4": Family("Exaone4ForCausalLM", exaone4_config, exaone4_json, OLMO2),
    "glm": Family("GlmForCausalLM", glm_config, partial_json, glm_entries),
    "glm4": Family("Glm4ForCausalLM", glm4_config, partial_json, glm_entries),
    "helium": Family("HeliumForCausalLM", helium_config, partial_json, neighbouring),
    "hunyuan_v1_dense": Family(
        "HunYuanDenseV1ForCausalLM", hunyuan_v1_dense_config, llama_json, hunyuan_entries
    ),
    "ministral": Family("MinistralForCausalLM", ministral_config, windowed_json, LLAMA),
    "olmo3": Family("Olmo3ForCausalLM", olmo3_config, olmo3_json, OLMO2),
    "seed_oss": Family("SeedOssForCausalLM", seed_oss_config, seed_oss_json, LLAMA),
    "smollm3": Family("SmolLM3ForCausalLM", smollm3_config, smollm3_json, LLAMA),
    "vaultgemma": Family(
        "VaultGemmaForCausalLM",
        vaultgemma_config,
        gemma2_json,
        (
            *around(PRE | {"mlp_norm": "pre_feedforward_layernorm"}, plus=1.0),
            *ATTENTION,
            *MLP,
        ),
    ),
    "youtu": Family("YoutuForCausalLM", latent_config, latent_json, deepseek_entries),
}
"""By `model_type`."""
