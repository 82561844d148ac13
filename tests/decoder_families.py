"""Tiny config.jsons of families of decoders, in the words of `transformers`. Each is read, written
and compared with its model there; each of `CHANGED` is refused.

Nothing here needs torch.
"""

from __future__ import annotations

from typing import Any

from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.keys import Keys
from gptjax.model import ModelConfig

SHAPE = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
WIDE = SHAPE | {"head_dim": 16}
"""Heads wider than a share of the residual stream."""
DEEP = WIDE | {"num_hidden_layers": 4}
ROUTED = WIDE | {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
STRETCHED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "bamba": SHAPE
    | {"num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8}
    | {"mamba_n_groups": 2, "mamba_d_state": 6, "mamba_expand": 2, "mamba_chunk_size": 16},
    "cwm": DEEP | {"sliding_window": 8, "rope_theta": 1e4, "rope_scaling": STRETCHED},
    "dots1": ROUTED
    | {"num_hidden_layers": 3, "first_k_dense_replace": 1, "attention_bias": True}
    | {"sliding_window": 8, "max_window_layers": 2},
    "ernie4_5": WIDE | {"use_bias": True},
    "ernie4_5_moe": SHAPE
    | {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 24}
    | {"num_hidden_layers": 3, "moe_num_shared_experts": 2},
    "exaone4": DEEP | {"sliding_window": 8, "rope_scaling": STRETCHED},
    "flex_olmo": SHAPE | {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": WIDE | {"tie_word_embeddings": True},
    "glm": WIDE,
    "glm4": WIDE,
    "glm4_moe": ROUTED | {"use_qk_norm": True, "attention_bias": True, "num_hidden_layers": 3},
    "glm4_moe_lite": ROUTED | LATENT | {"num_hidden_layers": 3},
    "helium": WIDE | {"num_key_value_heads": 4, "head_dim": 8, "attention_bias": True},
    "hunyuan_v1_dense": WIDE
    | {"rope_scaling": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0}},
    "hy_v3": WIDE
    | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    | {"num_shared_experts": 2, "num_hidden_layers": 3},
    "jais2": SHAPE,
    "lfm2": SHAPE
    | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}
    | {"conv_bias": True, "block_multiple_of": 16},
    "mellum": DEEP
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    | {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"] * 2}
    | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
    | {
        "rope_parameters": {
            "full_attention": YARN | {"rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        }
    },
    "minimax_m2": WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8},
    "ministral": DEEP
    | {"sliding_window": 8}
    | {"layer_types": ["full_attention", "sliding_attention"] * 2},
    "nemotron": SHAPE,
    "olmo": SHAPE | {"clip_qkv": 0.5},
    "olmo3": DEEP | {"sliding_window": 8, "rope_theta": 5e5, "rope_scaling": YARN},
    "olmoe": SHAPE | {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.5},
    "phi": SHAPE,
    "qwen3_5_text": WIDE
    | {"num_hidden_layers": 3, "full_attention_interval": 2}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    | {"linear_value_head_dim": 6},
    "qwen3_next": WIDE
    | {"num_hidden_layers": 3, "full_attention_interval": 2}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    | {"linear_value_head_dim": 6, "num_experts": 8, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "seed_oss": WIDE,
    "smollm3": SHAPE | {"num_hidden_layers": 4},
    "solar_open": ROUTED,
    "stablelm": SHAPE | {"use_parallel_residual": True, "use_qkv_bias": True},
    "starcoder2": SHAPE | {"sliding_window": 8},
    "vaultgemma": WIDE
    | {"sliding_window": 8, "query_pre_attn_scalar": 24}
    | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "youtu": SHAPE | LATENT,
}
"""By `model_type`."""

CHANGED: dict[str, dict[str, Any]] = {
    "bamba": {"mlp_bias": True},
    "cwm": {"attention_bias": True},
    "dots1": {"scoring_func": "softmax"},
    "ernie4_5": {"rope_scaling": {"type": "longrope"}},
    "ernie4_5_moe": {"use_bias": True},
    "exaone4": {"layer_types": ["full_attention"]},
    "flex_olmo": {"clip_qkv": 8.0},
    "gemma": {"use_bidirectional_attention": True},
    "glm": {"hidden_act": "relu6"},
    "glm4": {"post_scale": 2.0},
    "glm4_moe": {"topk_method": "greedy"},
    "glm4_moe_lite": {"mlp_layer_types": ["dense"]},
    "helium": {"attn_temperature": 0.5},
    "hunyuan_v1_dense": {"use_cla": True},
    "hy_v3": {"use_qk_bias": True},
    "jais2": {"mup_scale": 2.0},
    "lfm2": {"layer_types": ["conv", "sliding_attention", "conv"]},
    "mellum": {"mlp_bias": True},
    "minimax_m2": {"attn_type_list": [0, 1]},
    "ministral": {"mlp_bias": True},
    "nemotron": {"hidden_act": "xielu"},
    "olmo": {"mlp_bias": True},
    "olmo3": {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}},
    "olmoe": {"mlp_bias": True},
    "phi": {"qk_layernorm": True},
    "qwen3_5_text": {"attn_output_gate": False},
    "qwen3_next": {"shared_expert_intermediate_size": 25},
    "seed_oss": {"logit_scale": 0.5},
    "smollm3": {"no_rope_layers": [1]},
    "solar_open": {"use_qk_norm": True},
    "stablelm": {"qk_layernorm": True},
    "starcoder2": {"norm_type": "rms_norm"},
    "vaultgemma": {"use_bidirectional_attention": True},
    "youtu": {"rope_interleave": False},
}
"""Of each family a key that is unknown, or has another value than is computed."""


def read(name: str, **changes: Any) -> ModelConfig:
    """Our config of a family's config.json."""
    keys = Keys({"model_type": name, **CONFIGS[name], **changes}, "config.json")
    config = FAMILIES[name].read(keys)
    keys.finish()
    return config


MODELS: dict[str, tuple[str, ModelConfig]] = {name: (name, read(name)) for name in CONFIGS}
"""As `test_interop.MODELS`: the family and our config."""
