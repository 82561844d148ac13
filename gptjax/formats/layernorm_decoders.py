"""Families of decoders with LayerNorm that are otherwise like Llama: for each, its config.json as
our config and back, and where its tensors differ from Llama's.

Read `WITH_LAYERNORM` at the end, then the two functions of a family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gptjax.formats.configs import (
    llama_config,
    llama_json,
    no_biases,
    ungated_config,
    window_of,
    without,
)
from gptjax.formats.dense_decoders import clip_of, partial_json
from gptjax.formats.families import ATTENTION, LAYER, LLAMA, MLP, PRE, around, heads, mlp
from gptjax.formats.family import Family
from gptjax.formats.keys import OURS, Keys
from gptjax.formats.layout import Entry
from gptjax.model import Layer, ModelConfig


def layernorm_config(c: ModelConfig) -> ModelConfig:
    """Returns the config with LayerNorm and its biases."""
    return dataclasses.replace(
        c,
        norm="layernorm",
        bias=True,
        qkv_bias=c.qkv_bias_enabled,
        out_bias=c.out_bias_enabled,
        mlp_bias=c.mlp_bias_enabled,
    )


def ungated_json(c: ModelConfig, epsilon: str) -> dict[str, Any]:
    """Llama's keys where the MLP is plain and the norm's epsilon has another name."""
    data = without(llama_json(c), "rms_norm_eps")
    return data | {epsilon: c.norm_epsilon, "hidden_act": OURS.get(c.activation)}


def olmo_config(keys: Keys) -> ModelConfig:
    """Llama with LayerNorm that has neither scales nor biases."""
    no_biases(keys, "mlp_bias")
    c = llama_config(keys.default(rms_norm_eps=1e-5))
    return dataclasses.replace(c, norm="layernorm", norm_scale=False, qkv_clip=clip_of(keys))


def olmo_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `olmo_config`. Their epsilon is always 1e-5."""
    return without(llama_json(c), "rms_norm_eps") | {"clip_qkv": c.qkv_clip}


def starcoder2_config(keys: Keys) -> ModelConfig:
    """LayerNorm, biases, a plain MLP, and a window in every layer, if any."""
    for key in ("residual_dropout", "embedding_dropout", "activation_function"):
        keys.take(key, None)
    keys.same("norm_type", "layer_norm")
    keys.same("mlp_type", "default")
    biases, window = keys.take("use_bias", True), keys.number("sliding_window", None)
    keys.default(tie_word_embeddings=True, attention_bias=biases, mlp_bias=biases)
    keys.default(rms_norm_eps=keys.take("norm_epsilon", 1e-5))
    keys.same("layer_norm_epsilon", None, keys.data["rms_norm_eps"])
    c = layernorm_config(ungated_config(keys, "gelu_pytorch_tanh"))
    return c if window is None else dataclasses.replace(c, pattern=(Layer("window", window),))


def starcoder2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `starcoder2_config`."""
    data = without(ungated_json(c, "norm_epsilon"), "attention_bias", "mlp_bias")
    return data | {"use_bias": c.mlp_bias_enabled, "sliding_window": window_of(c)}


STARCODER2 = (
    *around(PRE),
    *ATTENTION,
    *mlp(f"{LAYER}.mlp", "layers/mlp", up="c_fc", down="c_proj"),
)


def stablelm_config(keys: Keys) -> ModelConfig:
    """Llama with LayerNorm and RoPE in a quarter of a head; attention and MLP may stand side by
    side."""
    keys.same("qk_layernorm", False)
    parallel = keys.take("use_parallel_residual", False)
    keys.default(rms_norm_eps=keys.take("layer_norm_eps", 1e-5), partial_rotary_factor=0.25)
    keys.default(attention_bias=keys.take("use_qkv_bias", False))
    c = dataclasses.replace(llama_config(keys), out_bias=None)
    return dataclasses.replace(layernorm_config(c), parallel="shared" if parallel else "none")


def stablelm_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `stablelm_config`."""
    data = without(partial_json(c), "head_dim", "rms_norm_eps", "attention_bias")
    return data | {
        "layer_norm_eps": c.norm_epsilon,
        "use_qkv_bias": c.qkv_bias_enabled,
        "use_parallel_residual": c.parallel == "shared",
    }


def phi_config(keys: Keys) -> ModelConfig:
    """Attention and a plain MLP side by side behind one LayerNorm, biases everywhere, RoPE in a
    part of a head."""
    keys.same("qk_layernorm", False)
    keys.default(rms_norm_eps=keys.take("layer_norm_eps", 1e-5), partial_rotary_factor=0.5)
    c = ungated_config(keys.default(attention_bias=True, mlp_bias=True), "gelu_new")
    return dataclasses.replace(layernorm_config(c), parallel="shared", logit_bias=True)


def phi_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `phi_config`."""
    data = without(ungated_json(c, "layer_norm_eps"), "attention_bias", "mlp_bias")
    return data | {"partial_rotary_factor": c.rotary_dim / c.head_dim}


PHI = (
    *around(PRE, last="model.final_layernorm"),
    *heads(f"{LAYER}.self_attn", "layers/attention", out="dense"),
    *mlp(f"{LAYER}.mlp", "layers/mlp", up="fc1", down="fc2"),
    Entry("lm_head.bias", ("logits/bias",), "v", "v"),
)


def nemotron_config(keys: Keys) -> ModelConfig:
    """LayerNorm, whose scales are stored minus one, and a plain MLP of ReLU²; RoPE in half of a
    head."""
    keys.default(rms_norm_eps=keys.take("norm_eps", 1e-5), partial_rotary_factor=0.5)
    return layernorm_config(ungated_config(keys, "relu2"))


def nemotron_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `nemotron_config`."""
    return ungated_json(c, "norm_eps") | {"partial_rotary_factor": c.rotary_dim / c.head_dim}


def jais2_config(keys: Keys) -> ModelConfig:
    """LayerNorm, biases everywhere, and a plain MLP of ReLU²."""
    keys.default(rms_norm_eps=keys.take("layer_norm_eps", 1e-5), attention_bias=True)
    return layernorm_config(ungated_config(keys.default(mlp_bias=True), "relu2"))


def jais2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `jais2_config`."""
    return ungated_json(c, "layer_norm_eps") | {"mlp_bias": c.mlp_bias_enabled}


WITH_LAYERNORM = {
    "jais2": Family("Jais2ForCausalLM", jais2_config, jais2_json, LLAMA),
    "nemotron": Family(
        "NemotronForCausalLM",
        nemotron_config,
        nemotron_json,
        (*around(PRE, plus=1.0), *ATTENTION, *MLP),
    ),
    "olmo": Family("OlmoForCausalLM", olmo_config, olmo_json, LLAMA),
    "phi": Family("PhiForCausalLM", phi_config, phi_json, PHI),
    "stablelm": Family("StableLmForCausalLM", stablelm_config, stablelm_json, LLAMA),
    "starcoder2": Family("Starcoder2ForCausalLM", starcoder2_config, starcoder2_json, STARCODER2),
}
"""By `model_type`."""
