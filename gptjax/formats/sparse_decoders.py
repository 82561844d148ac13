"""Families of decoders with experts, beside those of `configs` and `deepseek`: for each, its
config.json as our config and back, and where its tensors differ from Llama's.

Read `SPARSE` at the end, then the two functions of a family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import llama_config, llama_json, no_biases, patterned, without
from gptjax.formats.deepseek import (
    deepseek_experts,
    latent_config,
    latent_json,
    routing_json,
)
from gptjax.formats.dense_decoders import (
    clip_of,
    interleaved_heads,
    near_rope,
    near_rope_json,
    partial_json,
    windowed_config,
    windowed_json,
)
from gptjax.formats.families import (
    ATTENTION,
    EXPERTS,
    LAYER,
    LLAMA,
    MLP,
    OLMO2,
    PRE,
    QWEN_MOE,
    around,
    deepseek_entries,
    experts,
)
from gptjax.formats.family import Family
from gptjax.formats.keys import Keys
from gptjax.formats.layout import Entry
from gptjax.model import Experts, Layer, ModelConfig


def dense_in(c: ModelConfig, dense: list[bool]) -> ModelConfig:
    """Returns the config where these layers have a plain MLP; those that begin it stand before
    the pattern."""
    layers = [
        dataclasses.replace(layer, dense=plain) for layer, plain in zip(c.stack, dense, strict=True)
    ]
    begin = next((i for i, plain in enumerate(dense) if not plain), len(layers))
    rest = patterned(c, layers[begin:] or [Layer()]).pattern
    return dataclasses.replace(c, first=tuple(layers[:begin]), pattern=rest)


def first_dense(keys: Keys, c: ModelConfig, default: int) -> ModelConfig:
    """Returns the config whose first layers, `first_k_dense_replace` of them, have a plain MLP."""
    count = keys.number("first_k_dense_replace", default)
    keys.same("moe_layer_freq", 1)
    return dense_in(c, [i < count for i in range(c.num_layers)])


def named_dense(keys: Keys, c: ModelConfig) -> ModelConfig:
    """Returns the config with a plain MLP where `mlp_layer_types` says `dense`; by default in the
    first layers, `first_k_dense_replace` of them, or one."""
    count = keys.number("first_k_dense_replace", 1)
    default = ["dense" if i < count else "sparse" for i in range(c.num_layers)]
    kinds = keys.take("mlp_layer_types", None) or default
    require(
        len(kinds) == c.num_layers and {*kinds} <= {"dense", "sparse"},
        f"{keys.where} has mlp_layer_types {str(kinds)[:80]}; it needs {c.num_layers} of dense,"
        " sparse.",
    )
    return dense_in(c, [kind == "dense" for kind in kinds])


def _experts(keys: Keys, count: str, active: str = "num_experts_per_tok", **more: Any) -> Experts:
    return Experts(count=keys.number(count), active=keys.number(active), balance=0.001, **more)


def _experts_json(
    c: ModelConfig, count: str, active: str = "num_experts_per_tok", shared: str = ""
) -> dict[str, Any]:
    """Llama's keys and those of experts; where some are shared, of a width of their own."""
    own = {"intermediate_size": c.expert_width}
    if shared:
        own = {"moe_intermediate_size": c.expert_width, shared: c.experts.shared}
    return llama_json(c) | own | {count: c.experts.count, active: c.experts.active}


def named_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `named_dense`."""
    return {"mlp_layer_types": ["sparse" if c.sparse(layer) else "dense" for layer in c.stack]}


# --- softmax routers ------------------------------------------------------------------------------


def olmoe_config(keys: Keys) -> ModelConfig:
    """OLMo with experts: norms before attention and MLP, and of all query heads and all key heads
    as one vector."""
    no_biases(keys, "mlp_bias")
    experts = _experts(keys, "num_experts", normalised=bool(keys.take("norm_topk_prob", False)))
    c = llama_config(keys.default(rms_norm_eps=1e-5))
    c = dataclasses.replace(c, qk_norm=True, qk_norm_joint=True, experts=experts)
    return dataclasses.replace(c, qkv_clip=clip_of(keys))


def olmoe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `olmoe_config`."""
    data = without(_experts_json(c, "num_experts"), "head_dim")
    return data | {"norm_topk_prob": c.experts.normalised, "clip_qkv": c.qkv_clip}


def flex_olmo_config(keys: Keys) -> ModelConfig:
    """OLMoE with OLMo 2's norms."""
    keys.default(rope_theta=5e5, rms_norm_eps=1e-6)
    keys.same("clip_qkv", None)
    return dataclasses.replace(olmoe_config(keys), norm_placement="reordered")


def ernie4_5_moe_config(keys: Keys) -> ModelConfig:
    """ERNIE 4.5 with experts from one layer to another, chosen by their probability and a bias."""
    no_biases(keys, "use_bias")
    keys.same("moe_norm_min", 1e-12)
    width, shared = keys.number("moe_intermediate_size"), keys.number("moe_num_shared_experts", 2)
    experts = _experts(keys, "moe_num_experts", "moe_k", width=width, shared=shared, bias_step=1e-3)
    c = llama_config(keys.default(rope_theta=5e5, tie_word_embeddings=True))
    begin, every = keys.number("moe_layer_start_index", 1), keys.number("moe_layer_interval", 1)
    last = keys.take("moe_layer_end_index", None)
    last = c.num_layers - 1 if last in (-1, None) else last
    dense = [(i + 1) % every != 0 or not begin <= i <= last for i in range(c.num_layers)]
    return dense_in(dataclasses.replace(c, experts=experts), dense)


def ernie4_5_moe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `ernie4_5_moe_config`."""
    sparse = [i for i, layer in enumerate(c.stack) if c.sparse(layer)] or [0]
    every = 1 if len(sparse) < 2 else sparse[1] - sparse[0]
    layers = {"moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1]}
    data = _experts_json(c, "moe_num_experts", "moe_k", shared="moe_num_shared_experts")
    return without(data, "attention_bias") | layers | {"moe_layer_interval": every}


def ernie4_5_moe_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """ERNIE 4.5's with experts."""
    routed = experts(f"{LAYER}.mlp", bias="moe_statics.e_score_correction_bias", bias_axes="() e")
    return (*around(PRE), *interleaved_heads(config), *MLP, *routed)


def mellum_config(keys: Keys) -> ModelConfig:
    """Qwen 3 with experts and named windows, where RoPE has a base of its own and no stretch."""
    near, named = near_rope(keys.default(head_dim=128)), keys.number("num_local_experts", 64)
    width, norm = keys.number("moe_intermediate_size", 896), keys.take("norm_topk_prob", True)
    keys.default(num_experts=named, rope_theta=5e5)
    experts = _experts(keys, "num_experts", width=width, normalised=bool(norm))
    no_biases(keys, "mlp_bias")
    c = dataclasses.replace(llama_config(keys), qk_norm=True, experts=experts)
    layers = windowed_config(keys, c, ["full_attention"] * c.num_layers).stack
    c = patterned(c, [dataclasses.replace(one, **near) if one.span else one for one in layers])
    return named_dense(keys.default(first_k_dense_replace=0), c)


def mellum_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `mellum_config`."""
    data = without(windowed_json(c), "rope_theta", "rope_scaling") | near_rope_json(c)
    experts = {"num_experts": c.experts.count, "num_experts_per_tok": c.experts.active}
    experts |= {"moe_intermediate_size": c.expert_width, "norm_topk_prob": c.experts.normalised}
    return data | named_json(c) | experts


# --- sigmoid routers ------------------------------------------------------------------------------


def glm4_moe_config(keys: Keys) -> ModelConfig:
    """Llama with DeepSeek's experts and RoPE in half of a head; heads may be normalised."""
    experts, normalised = deepseek_experts(keys), bool(keys.take("use_qk_norm", False))
    c = llama_config(keys.default(partial_rotary_factor=0.5))
    c = dataclasses.replace(c, out_bias=None, qk_norm=normalised, experts=experts)
    return first_dense(keys, c, default=1)


def glm4_moe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `glm4_moe_config`."""
    return partial_json(c) | routing_json(c) | {"use_qk_norm": c.qk_norm}


def solar_open_config(keys: Keys) -> ModelConfig:
    """GLM-4.5 with experts in every layer and RoPE in whole heads."""
    keys.same("use_qk_norm", False)
    keys.default(partial_rotary_factor=1.0, first_k_dense_replace=0, head_dim=128)
    keys.default(intermediate_size=keys.data.get("moe_intermediate_size"), rope_theta=1e6)
    return glm4_moe_config(keys)


def dots1_config(keys: Keys) -> ModelConfig:
    """Qwen 3 with DeepSeek's experts; layers from `max_window_layers` on may have a window."""
    keys.default(norm_topk_prob=False, routed_scaling_factor=1.0)
    experts, begin = deepseek_experts(keys), keys.number("max_window_layers", 62)
    no_biases(keys, "mlp_bias")
    c = dataclasses.replace(llama_config(keys), qk_norm=True, experts=experts)
    some = keys.data.get("sliding_window") is not None
    kinds = [
        "sliding_attention" if some and i >= begin else "full_attention"
        for i in range(c.num_layers)
    ]
    return first_dense(keys, windowed_config(keys, c, kinds), default=0)


def dots1_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `dots1_config`."""
    return windowed_json(c) | routing_json(c) | {"attention_bias": c.out_bias_enabled}


def glm4_moe_lite_config(keys: Keys) -> ModelConfig:
    """DeepSeek-V3, whose layers without experts are named."""
    c = dataclasses.replace(latent_config(keys), experts=deepseek_experts(keys))
    return named_dense(keys, c)


def glm4_moe_lite_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `glm4_moe_lite_config`."""
    return latent_json(c) | routing_json(c) | named_json(c)


def minimax_m2_config(keys: Keys) -> ModelConfig:
    """Mixtral whose experts are chosen by sigmoids and a bias, with norms of all query heads and
    all key heads as one vector, and RoPE in a part of a head."""
    no_biases(keys, "attention_bias", "mlp_bias", "shared_intermediate_size")
    for key, value in MINIMAX_FIXED.items():
        keys.same(key, value)
    for key in ("use_mtp", "num_mtp_modules", "mtp_transformer_layers"):
        keys.take(key, None)
    kinds = keys.take("attn_type_list", None) or [1]
    require({*kinds} == {1}, f"{keys.where} has attn_type_list {str(kinds)[:80]}; it needs ones.")
    keys.default(head_dim=128, rope_theta=5e6)
    turned = keys.number("rotary_dim", keys.data["head_dim"])
    c = llama_config(keys.default(partial_rotary_factor=turned / keys.data["head_dim"]))
    experts = _experts(keys, "num_local_experts", scores="sigmoid", bias_step=1e-3)
    return dataclasses.replace(c, qk_norm=True, qk_norm_joint=True, experts=experts)


def minimax_m2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `minimax_m2_config`."""
    data = without(_experts_json(c, "num_local_experts"), "attention_bias")
    return data | {"rotary_dim": c.rotary_dim}


MINIMAX_FIXED = {"use_qk_norm": True, "qk_norm_type": "per_layer", "scoring_func": "sigmoid"}
MINIMAX_FIXED |= {"use_routing_bias": True, "sliding_window": None}
MINIMAX_M2 = (
    *around(PRE),
    *ATTENTION,
    *experts(f"{LAYER}.block_sparse_moe", "w1", "w3", "w2", bias="e_score_correction_bias"),
)


def hy_v3_config(keys: Keys) -> ModelConfig:
    """Qwen 3 whose experts are chosen by sigmoids and a bias, beside shared ones."""
    keys.take("enable_moe_fp32_combine", None)  # of sums in narrower types
    no_biases(keys, "mlp_bias")
    sizes = {"width": "moe_intermediate_size", "shared": "num_shared_experts"}
    sizes = {ours: keys.number(theirs) for ours, theirs in sizes.items()}
    scale = float(keys.take("router_scaling_factor", 2.826))
    how = {"scores": "sigmoid", "scale": scale, "bias_step": 1e-3}
    c = llama_config(keys.default(rope_theta=11158840.0, head_dim=128))
    experts = _experts(keys, "num_experts", **sizes, **how)
    return named_dense(keys, dataclasses.replace(c, qk_norm=True, experts=experts))


def hy_v3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `hy_v3_config`."""
    data = _experts_json(c, "num_experts", shared="num_shared_experts")
    return data | named_json(c) | {"router_scaling_factor": c.experts.scale}


HY_V3 = (
    *LLAMA,
    *experts(f"{LAYER}.mlp", router="router.gate.weight", bias="expert_bias", shared="shared_mlp"),
)

_FURTHER = (r"model\.layers\.{last}\..*",)
"""Tensors of a layer that predicts a second token."""

SPARSE = {
    "dots1": Family("Dots1ForCausalLM", dots1_config, dots1_json, QWEN_MOE),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeForCausalLM",
        ernie4_5_moe_config,
        ernie4_5_moe_json,
        ernie4_5_moe_entries,
        unused=(r"model\.mtp_.*",),
    ),
    "flex_olmo": Family("FlexOlmoForCausalLM", flex_olmo_config, olmoe_json, (*OLMO2, *EXPERTS)),
    "glm4_moe": Family(
        "Glm4MoeForCausalLM", glm4_moe_config, glm4_moe_json, QWEN_MOE, unused=_FURTHER
    ),
    "glm4_moe_lite": Family(
        "Glm4MoeLiteForCausalLM",
        glm4_moe_lite_config,
        glm4_moe_lite_json,
        deepseek_entries,
        unused=_FURTHER,
    ),
    "hy_v3": Family("HYV3ForCausalLM", hy_v3_config, hy_v3_json, HY_V3, unused=_FURTHER),
    "mellum": Family("MellumForCausalLM", mellum_config, mellum_json, QWEN_MOE, unused=_FURTHER),
    "minimax_m2": Family(
        "MiniMaxM2ForCausalLM", minimax_m2_config, minimax_m2_json, MINIMAX_M2, unused=_FURTHER
    ),
    "olmoe": Family("OlmoeForCausalLM", olmoe_config, olmoe_json, QWEN_MOE),
    "solar_open": Family("SolarOpenForCausalLM", solar_open_config, glm4_moe_json, QWEN_MOE),
}
"""By `model_type`."""
