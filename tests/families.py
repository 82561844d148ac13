"""Architectures of `transformers` at a small size. Needs torch and transformers.

Read `CASES` at the end first. Which of their weights is which of ours is in
`gptjax.formats.families`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from peers import transformers

from gptjax.formats import families as tables
from gptjax.formats.layout import Entry
from gptjax.model import (
    Experts,
    Latent,
    Layer,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    YarnScaling,
)

SMALL = ModelConfig(vocab_size=97, context=64, width=32, num_layers=2, num_heads=4, feed_forward=80)
LLAMA = replace(
    SMALL, positions="rope", norm="rmsnorm", activation="swiglu", bias=False, tied=False
)
REFERENCE = (("reference", "unroll", 33),)
BLOCKS = (("causal_blocks", "scan", 36),)
BLOCKWISE = (("blockwise", "scan", 35),)
"""Ways to run our model: attention implementation, way through the layers, length of a row
(`causal_blocks` wants a multiple of four)."""

Entries = tuple[Entry, ...] | Callable[[ModelConfig], tuple[Entry, ...]]
"""Which of their tensors is which of our leaves."""


@dataclass(frozen=True)
class Case:
    """One architecture: our config, their model of the same shape, the map between their weights
    and our tree, our ways to run it."""

    name: str
    config: ModelConfig
    build: Callable[[ModelConfig], Any]
    entries: Entries = field(hash=False)
    ways: tuple[tuple[str, str, int], ...] = REFERENCE + BLOCKS
    offset: float = 0.0
    """Our norm scales are theirs plus this."""


# --- their models ---


def build_gpt2(c: ModelConfig) -> Any:
    """Their GPT-2, without dropout."""
    shape = {
        "vocab_size": c.vocabulary,
        "n_positions": c.context,
        "n_embd": c.width,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": c.mlp_dim,
    }
    quiet = {
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = transformers.GPT2Config(
        **shape,
        **quiet,
        activation_function="gelu_new",
        layer_norm_epsilon=c.norm_epsilon,
        tie_word_embeddings=c.tied,
        attn_implementation="eager",
    )
    return transformers.GPT2LMHeadModel(config)


def common(c: ModelConfig) -> dict[str, Any]:
    """What the configs of all their models after Llama share."""
    shape = {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_dim,
    }
    heads = {
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.kv_heads,
    }
    quiet = {
        "attention_dropout": 0.0,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    rope = {"rope_parameters": rope_of(c)}
    return (
        shape
        | heads
        | quiet
        | rope
        | {
            "rms_norm_eps": c.norm_epsilon,
            "tie_word_embeddings": c.tied,
            "attn_implementation": "eager",
        }
    )


def rope_of(c: ModelConfig) -> dict[str, Any]:
    """RoPE in their words."""
    plain = {"rope_type": "default", "rope_theta": c.rope_base}
    match c.rope_scaling:
        case Llama3Scaling(factor, original, fast, slow):
            stretch = {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": original,
                "high_freq_factor": fast,
                "low_freq_factor": slow,
            }
        case YarnScaling(factor, original, fast, slow):
            stretch = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": fast,
                "beta_slow": slow,
            }
        case LinearScaling(factor):
            stretch = {"rope_type": "linear", "factor": factor}
        case _:
            stretch = {}
    return plain | stretch


def build_llama(c: ModelConfig) -> Any:
    """Their Llama, or their Qwen3 where the heads are normalised."""
    kinds = (
        (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)
        if c.qk_norm
        else (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    )
    return kinds[1](kinds[0](**common(c), head_dim=c.head_dim, hidden_act="silu"))


def build_qwen2(c: ModelConfig) -> Any:
    """Their Qwen 2, which 2.5 is too."""
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common(c), hidden_act="silu"))


def build_mistral(c: ModelConfig) -> Any:
    """Their Mistral, with its window."""
    return transformers.MistralForCausalLM(
        transformers.MistralConfig(
            **common(c), head_dim=c.head_dim, hidden_act="silu", sliding_window=c.pattern[0].span
        )
    )


def build_mixtral(c: ModelConfig) -> Any:
    """Their Mixtral."""
    experts = {"num_local_experts": c.experts.count, "num_experts_per_tok": c.experts.active}
    told = (
        common(c)
        | experts
        | {
            "intermediate_size": c.expert_width,
            "head_dim": c.head_dim,
            "hidden_act": "silu",
            "sliding_window": None,
        }
    )
    config = transformers.MixtralConfig(**told)
    return transformers.MixtralForCausalLM(config)


def build_gemma(c: ModelConfig) -> Any:
    """Their Gemma 2, or their Gemma 3 (its text model) where the heads are normalised."""
    kinds = ["full_attention" if layer.span is None else "sliding_attention" for layer in c.stack]
    rest = {
        "head_dim": c.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(c.scale**-2),
        "sliding_window": c.pattern[0].span,
    }
    told = common(c) | rest | {"layer_types": kinds}
    if not c.qk_norm:
        config = transformers.Gemma2Config(
            **told, attn_logit_softcapping=c.attention_cap, final_logit_softcapping=c.logit_cap
        )
        return transformers.Gemma2ForCausalLM(config)
    local = {"rope_type": "default", "rope_theta": c.pattern[0].rope_base}
    return transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **told | {"rope_parameters": {"full_attention": rope_of(c), "sliding_attention": local}}
        )
    )


def build_olmo(c: ModelConfig) -> Any:
    """Their OLMo 2."""
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**common(c), hidden_act="silu"))


def build_deepseek(c: ModelConfig) -> Any:
    """Their DeepSeek-V3."""
    e, narrow = c.experts, c.latent
    heads = {
        "kv_lora_rank": narrow.rank,
        "q_lora_rank": narrow.query_rank,
        "qk_rope_head_dim": narrow.rope_width,
        "qk_nope_head_dim": c.head_dim,
        "v_head_dim": c.value_width,
    }
    experts = {
        "n_routed_experts": e.count,
        "num_local_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": c.expert_width,
    }
    experts |= {
        "n_shared_experts": e.shared,
        "n_group": e.groups,
        "topk_group": e.active_groups,
        "routed_scaling_factor": e.scale,
        "norm_topk_prob": e.normalised,
    }
    rope = rope_of(c) | {"mscale": 1.0, "mscale_all_dim": 1.0}
    told = (
        common(c)
        | heads
        | experts
        | {
            "rope_parameters": rope,
            "first_k_dense_replace": len(c.first),
            "hidden_act": "silu",
        }
    )
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**told))


# --- their weights by the names of their files ---


def as_saved(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their tensors by the names that they have in files, where each expert has tensors of its
    own."""
    found: dict[str, np.ndarray] = {}
    mixtral = any("experts" in name for name in values) and not any(
        "shared_experts" in name or "gate_proj" in name for name in values
    )
    names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    for name, value in values.items():
        where = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[where] = value
            continue
        for e, matrix in enumerate(value):
            parts = np.split(matrix, 2) if name.endswith("gate_up_proj") else [matrix]
            for part, own in zip(parts, names[:2] if len(parts) == 2 else names[2:], strict=True):
                found[f"{where.rpartition('.')[0]}.{e}.{own}.weight"] = part
    return found


# --- the cases ---

GQA = replace(LLAMA, num_kv_heads=2)
LOCAL = Layer("window", 8)
LOUDER = 0.1 * math.log(4.0) + 1
GEMMA = replace(
    GQA,
    activation="geglu",
    norm_placement="sandwich",
    scaled_embedding=True,
    tied=True,
    head_width=16,
)
DEEPSEEK = replace(
    LLAMA,
    num_layers=3,
    norm_epsilon=1e-6,
    first=(Layer(dense=True),),
    latent=Latent(rank=16, query_rank=24, rope_width=8, value_width=12),
    experts=Experts(
        count=8,
        active=2,
        width=24,
        shared=1,
        scores="sigmoid",
        scale=2.5,
        groups=4,
        active_groups=2,
        balance=0.0,
    ),
    rope_scaling=YarnScaling(4.0, original=16, magnitude=1.0),
    attention_scale=16**-0.5 * LOUDER**2,
)

CASES = (
    Case("gpt2", SMALL, build_gpt2, tables.GPT2),
    Case("llama_gqa_untied", GQA, build_llama, tables.LLAMA),
    Case(
        "llama_mha_tied",
        replace(LLAMA, tied=True, rope_base=500.0),
        build_llama,
        tables.LLAMA,
        BLOCKS,
    ),
    Case(
        "llama3_stretched",
        replace(GQA, rope_scaling=Llama3Scaling(8.0, original=16)),
        build_llama,
        tables.LLAMA,
        BLOCKWISE,
    ),
    Case(
        "qwen2_biases",
        replace(GQA, qkv_bias=True, rope_scaling=YarnScaling(4.0, original=16)),
        build_qwen2,
        tables.LLAMA,
        BLOCKS,
    ),
    Case(
        "qwen3_qk_norm",
        replace(LLAMA, num_kv_heads=1, qk_norm=True, head_width=16, tied=True),
        build_llama,
        tables.LLAMA,
        REFERENCE,
    ),
    Case(
        "mistral", replace(GQA, pattern=(LOCAL,)), build_mistral, tables.LLAMA, BLOCKS + BLOCKWISE
    ),
    Case(
        "mixtral",
        replace(GQA, experts=Experts(count=4, active=2, width=40, balance=0.0)),
        build_mixtral,
        tables.MIXTRAL,
        REFERENCE + BLOCKS,
    ),
    Case(
        "gemma2",
        replace(
            GEMMA,
            pattern=(LOCAL, Layer()),
            attention_cap=5.0,
            logit_cap=3.0,
            attention_scale=24**-0.5,
        ),
        build_gemma,
        tables.GEMMA2,
        BLOCKWISE,
        1.0,
    ),
    Case(
        "gemma3",
        replace(
            GEMMA,
            num_layers=3,
            qk_norm=True,
            attention_scale=16**-0.5,
            pattern=(replace(LOCAL, rope_base=100.0, rope_scaled=False),) * 2 + (Layer(),),
            rope_scaling=LinearScaling(8.0),
        ),
        build_gemma,
        tables.GEMMA2,
        BLOCKS,
        1.0,
    ),
    Case(
        "olmo2",
        replace(GQA, norm_placement="reordered", qk_norm=True, qk_norm_joint=True),
        build_olmo,
        tables.OLMO2,
        BLOCKS,
    ),
    Case(
        "deepseek_v3",
        DEEPSEEK,
        build_deepseek,
        tables.deepseek_entries,
        (*REFERENCE, ("auto", "scan", 36)),
    ),
)
