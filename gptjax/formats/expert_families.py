"""Families whose experts differ from Mixtral's: biases and a clamped gate (gpt-oss), a gated shared
expert (Qwen2-MoE), weights of what enters an expert (Llama 4), Granite's multipliers beside them.

Read `FAMILIES` at the end first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import (
    by_kind,
    kinds_of,
    llama_config,
    llama_json,
    patterned,
    sparse_steps,
    sparse_steps_json,
    window_of,
)
from gptjax.formats.families import (
    ATTENTION,
    LAYER,
    LLAMA,
    PRE,
    around,
    experts,
    heads,
    interleaved,
    linear_entries,
    mlp,
)
from gptjax.formats.family import Family
from gptjax.formats.keys import Keys
from gptjax.formats.layout import Entry
from gptjax.formats.scaled import (
    granite_config,
    granite_json,
    require_whole,
    rope_defaults,
    with_rope,
)
from gptjax.model import Experts, Layer, ModelConfig, QueryGrowth

_INTO = tuple(f"layers/moe/experts/{name}" for name in ("gate", "up"))
_KERNELS = tuple(f"{path}/kernel" for path in _INTO)
_DOWN = "layers/moe/experts/down"


def shared_experts(keys: Keys, key: str, width: int, *default: Any) -> int:
    """Returns how many experts are as wide as the shared one.

    Raises:
      ConfigError: no whole number of them.
    """
    shared = keys.number(key, *default)
    require(
        width > 0 and shared % width == 0,
        f"{keys.where} has {key!r}: {shared}; shared experts are here as wide as the others, so it"
        f" needs a multiple of {width}.",
    )
    return shared // width


# --- gpt-oss -------------------------------------------------------------------------------------


def gpt_oss_config(keys: Keys) -> ModelConfig:
    """Llama with attention sinks, biases, windows in every second layer, and experts with biases
    and a clamped gate."""
    for name, value in (("hidden_act", "silu"), ("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        keys.same(name, value)
    keys.same("mlp_bias", False)
    active = keys.number("num_experts_per_tok", keys.data.get("experts_per_token", 4))
    keys.same("experts_per_token", None, active)
    published: dict[str, Any] = {"attention_bias": True, "rope_theta": 150_000.0, "head_dim": 64}
    published |= {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
    stretched = {"rope_type": "yarn", "factor": 32.0, "truncate": False}
    stretched["original_max_position_embeddings"] = 4096
    keys.data = {**published, **rope_defaults(keys, stretched)}
    c = llama_config(keys)
    original = getattr(c.rope_scaling, "original", None)
    keys.same("initial_context_length", None, original)
    c = dataclasses.replace(
        require_whole(keys, c),
        attention_sink=True,
        activation="swiglu_clamped",
        experts=Experts(
            count=keys.number("num_local_experts", 128),
            active=active,
            width=c.feed_forward,
            biases=True,
            balance=0.001,
        ),
    )
    kinds = keys.take("layer_types", None) or [
        "full_attention" if i % 2 else "sliding_attention" for i in range(c.num_layers)
    ]
    local = Layer("window", keys.number("sliding_window", 128))
    return by_kind(keys, c, kinds, local)


def gpt_oss_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gpt_oss_config`."""
    return with_rope(llama_json(c)) | {
        "hidden_act": "silu" if c.activation == "swiglu_clamped" else None,
        "swiglu_limit": 7.0,
        "intermediate_size": c.expert_width,
        "num_local_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
        "sliding_window": window_of(c) or c.context,
        "layer_types": kinds_of(c),
    }


def gpt_oss_entries(c: ModelConfig) -> tuple[Entry, ...]:
    """Returns the tensors of gpt-oss; gate and up of an expert alternate in one tensor."""
    width, where = c.expert_width, f"{LAYER}.mlp.experts"
    alternating = {"f": tuple(n for i in range(width) for n in (i, width + i))}
    biases = tuple(f"{path}/bias" for path in _INTO)
    into = {"joined": "f", "order": alternating}
    return (
        *around(PRE),
        *ATTENTION,
        Entry(f"{LAYER}.self_attn.sinks", ("layers/attention/sink",), "n", "n"),
        *linear_entries(f"{LAYER}.mlp.router", "layers/moe/router", "e d", "d e"),
        Entry(f"{where}.gate_up_proj", _KERNELS, "e d f", "e d f", **into),
        Entry(f"{where}.gate_up_proj_bias", biases, "e f", "e f", **into),
        Entry(f"{where}.down_proj", (f"{_DOWN}/kernel",), "e f d", "e f d"),
        Entry(f"{where}.down_proj_bias", (f"{_DOWN}/bias",), "e d", "e d"),
    )


# --- Granite with experts ------------------------------------------------------------------------


def granitemoe_config(keys: Keys) -> ModelConfig:
    """Granite with experts in every layer."""
    keys.same("mlp_bias", False)
    count = keys.number("num_local_experts", 8)
    active = keys.number("num_experts_per_tok", 2)
    return dataclasses.replace(
        granite_config(keys), experts=Experts(count=count, active=active, balance=0.001)
    )


def granitemoe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `granitemoe_config`."""
    return granite_json(c) | {
        "intermediate_size": c.expert_width,
        "num_local_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
    }


def granitemoeshared_config(keys: Keys) -> ModelConfig:
    """The same with an expert that reads every token."""
    c = granitemoe_config(keys)
    shared = shared_experts(keys, "shared_intermediate_size", c.mlp_dim, 0)
    return dataclasses.replace(c, experts=dataclasses.replace(c.experts, shared=shared))


def granitemoeshared_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `granitemoeshared_config`."""
    width = c.experts.shared * c.expert_width
    return granitemoe_json(c) | {"shared_intermediate_size": width}


_BLOCK, _SHARED = f"{LAYER}.block_sparse_moe", "layers/moe/shared"
GRANITE_MOE = (
    *around(PRE),
    *ATTENTION,
    Entry(f"{_BLOCK}.router.layer.weight", ("layers/moe/router/kernel",), "e d", "d e"),
    Entry(f"{_BLOCK}.input_linear.weight", _KERNELS, "e f d", "e d f", joined="f"),
    Entry(f"{_BLOCK}.output_linear.weight", (f"{_DOWN}/kernel",), "e d f", "e f d"),
    *linear_entries(
        f"{LAYER}.shared_mlp.input_linear",
        (f"{_SHARED}/gate", f"{_SHARED}/up"),
        "f d",
        "d f",
        joined="f",
    ),
    *linear_entries(f"{LAYER}.shared_mlp.output_linear", f"{_SHARED}/down", "d f", "f d"),
)


# --- Qwen2-MoE -----------------------------------------------------------------------------------


def qwen2_moe_config(keys: Keys) -> ModelConfig:
    """Qwen 2 with experts, and a shared one that a sigmoid of the token weighs, in every
    `decoder_sparse_step`-th layer but those of `mlp_only_layers`."""
    keys.same("mlp_bias", False)
    keys.same("attention_bias", False)
    width = keys.number("moe_intermediate_size", 1408)
    shared = shared_experts(keys, "shared_expert_intermediate_size", width, 5632)
    used, window = keys.take("use_sliding_window", False), keys.number("sliding_window", None)
    end = keys.number("max_window_layers", 28)
    c = dataclasses.replace(
        llama_config(keys),
        qkv_bias=True if keys.take("qkv_bias", True) else None,
        experts=Experts(
            count=keys.number("num_experts", 60),
            active=keys.number("num_experts_per_tok", 4),
            width=width,
            shared=shared,
            shared_gate=True,
            normalised=bool(keys.take("norm_topk_prob", False)),
            balance=0.001,
        ),
    )
    kinds = keys.take("layer_types", None) or [
        "full_attention" if i % 2 or i >= end or not used else "sliding_attention"
        for i in range(c.num_layers)
    ]
    local = Layer("window", window) if used and window else None
    return sparse_steps(keys, by_kind(keys, c, kinds, local))


def qwen2_moe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen2_moe_config`."""
    e, window = c.experts, window_of(c)
    data = {name: value for name, value in llama_json(c).items() if name != "attention_bias"}
    return data | {
        "qkv_bias": c.qkv_bias_enabled,
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": kinds_of(c),
        "max_window_layers": c.num_layers,
        "moe_intermediate_size": c.expert_width,
        "shared_expert_intermediate_size": e.shared * c.expert_width,
        "num_experts": e.count,
        "num_experts_per_tok": e.active,
        "norm_topk_prob": e.normalised,
        **sparse_steps_json(c),
    }


_GATE = f"{LAYER}.mlp.shared_expert_gate.weight"
GATED_EXPERTS = (
    *(
        entry._replace(theirs=entry.theirs.replace("shared_experts", "shared_expert"))
        for entry in experts(f"{LAYER}.mlp", "gate_proj", "up_proj", "down_proj")
    ),
    Entry(_GATE, ("layers/moe/shared_gate/kernel",), "o d", "d o"),
)
"""Of Qwen 2 and Qwen3-Next: experts, and a shared one with a gate."""
QWEN2_MOE = (*LLAMA, *GATED_EXPERTS)


# --- Llama 4 -------------------------------------------------------------------------------------


def llama4_config(keys: Keys) -> ModelConfig:
    """Llama with chunks in layers with RoPE, normalised heads there, and layers without RoPE whose
    queries grow; each expert reads the token times its weight."""
    keys.same("mlp_bias", False)
    width = keys.number("intermediate_size", 8192)
    experts = Experts(
        count=keys.number("num_local_experts", 16),
        active=keys.number("num_experts_per_tok", 1),
        width=width,
        shared=1,
        scores="sigmoid",
        normalised=False,
        weighs="input",
        balance=0.001,
    )
    published = {"head_dim": 128, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5}
    published |= {"max_position_embeddings": 131_072}
    dense_width = keys.number("intermediate_size_mlp", 16_384)
    keys.data = {**published, **keys.data, "intermediate_size": dense_width}
    normalised = bool(keys.take("use_qk_norm", True))
    c = dataclasses.replace(
        require_whole(keys, llama_config(keys)),
        qk_norm=normalised,
        qk_norm_scale=not normalised,
        qk_norm_after_rope=normalised,
        experts=experts,
    )
    tuned = bool(keys.take("attn_temperature_tuning", True))
    span, strength = keys.number("floor_scale", 8192), float(keys.take("attn_scale", 0.1))
    if tuned:
        c = dataclasses.replace(
            c, query_growth=QueryGrowth(span, strength, first=1, unrotated_only=True)
        )
    return patterned(c, _llama4_layers(keys, c.num_layers))


def _llama4_layers(keys: Keys, count: int) -> list[Layer]:
    every, chunk = (
        keys.number("no_rope_layer_interval", 4),
        keys.number("attention_chunk_size", 8192),
    )
    turned = keys.take("no_rope_layers", None) or [int((i + 1) % every != 0) for i in range(count)]
    kinds = keys.take("layer_types", None) or [
        "chunked_attention" if one and chunk else "full_attention" for one in turned
    ]
    step = keys.number("interleave_moe_layer_step", 1)
    sparse = keys.take("moe_layers", None)
    sparse = range(step - 1, count, step) if sparse is None else sparse
    known = ["full_attention", *(["chunked_attention"] if chunk else [])]
    require(
        len(turned) >= count and len(kinds) == count and all(kind in known for kind in kinds),
        f"{keys.where} has layer_types {str(kinds)[:80]} and no_rope_layers {str(turned)[:80]}; it"
        f" needs {count} each, of {', '.join(known)}, and of 0 and 1.",
    )
    return [
        Layer(
            "chunk" if kind == "chunked_attention" else "all",
            chunk if kind == "chunked_attention" else None,
            positions=None if one else "none",
            dense=i not in sparse,
        )
        for i, (kind, one) in enumerate(zip(kinds, turned, strict=False))
    ]


def llama4_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `llama4_config`."""
    growth = c.query_growth or QueryGrowth()
    return llama_json(c) | {
        "intermediate_size": c.expert_width,
        "intermediate_size_mlp": c.mlp_dim,
        "num_local_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
        "moe_layers": [i for i, layer in enumerate(c.stack) if c.sparse(layer)],
        "no_rope_layers": [int(c.positions_in(layer) == "rope") for layer in c.stack],
        "attention_chunk_size": next((x.span for x in c.stack if x.sees == "chunk"), None),
        "layer_types": [
            "chunked_attention" if layer.sees == "chunk" else "full_attention" for layer in c.stack
        ],
        "use_qk_norm": c.qk_norm,
        "attn_temperature_tuning": c.query_growth is not None,
        "floor_scale": growth.span,
        "attn_scale": growth.strength,
    }


def llama4_entries(c: ModelConfig) -> tuple[Entry, ...]:
    """Returns the tensors of Llama 4's text model, whose RoPE turns neighbours of a head."""
    where = f"{LAYER}.feed_forward"
    return (
        *around(PRE),
        *heads(f"{LAYER}.self_attn", "layers/attention", order=interleaved(c)),
        *mlp(where, "layers/mlp"),
        Entry(f"{where}.router.weight", ("layers/moe/router/kernel",), "e d", "d e"),
        Entry(f"{where}.experts.gate_up_proj", _KERNELS, "e d f", "e d f", joined="f"),
        Entry(f"{where}.experts.down_proj", (f"{_DOWN}/kernel",), "e f d", "e f d"),
        *mlp(f"{where}.shared_expert", _SHARED),
    )


FAMILIES = {
    "gpt_oss": Family("GptOssForCausalLM", gpt_oss_config, gpt_oss_json, gpt_oss_entries),
    "granitemoe": Family("GraniteMoeForCausalLM", granitemoe_config, granitemoe_json, GRANITE_MOE),
    "granitemoeshared": Family(
        "GraniteMoeSharedForCausalLM",
        granitemoeshared_config,
        granitemoeshared_json,
        GRANITE_MOE,
    ),
    "qwen2_moe": Family("Qwen2MoeForCausalLM", qwen2_moe_config, qwen2_moe_json, QWEN2_MOE),
    "llama4_text": Family("Llama4ForCausalLM", llama4_config, llama4_json, llama4_entries),
}
"""By `model_type`."""
