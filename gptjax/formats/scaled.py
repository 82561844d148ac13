"""Families that are Llama but for one choice of a dense model: the multipliers of Granite, the
queries of Ministral 3 that grow, the learned nonlinearity of Apertus, the norms of nanochat, the
parallel blocks of Cohere.

Read `FAMILIES` at the end first. Those whose experts differ are in `expert_families`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import (
    kinds_of,
    layers_of,
    llama_config,
    llama_json,
    mistral_config,
    mistral_json,
    window_of,
)
from gptjax.formats.families import LAYER, LLAMA, MLP, around, heads, interleaved, mlp
from gptjax.formats.family import Family
from gptjax.formats.keys import OURS, Keys, activation
from gptjax.formats.layout import Entry
from gptjax.model import Layer, ModelConfig, QueryGrowth


def inverse(number: float) -> float:
    """Returns 1 / number, whole if it is that but for rounding."""
    result = 1 / number
    return float(round(result)) if abs(result - round(result)) < 1e-9 * result else result


def require_whole(keys: Keys, c: ModelConfig) -> ModelConfig:
    """Returns the config of a family whose heads are turned as a whole.

    Raises:
      ConfigError: RoPE turns a part of each head.
    """
    require(
        c.rope_share == 1.0,
        f"{keys.where} has partial_rotary_factor {c.rope_share}; this family's heads are turned as"
        " a whole, so it needs 1.",
    )
    return c


def rope_defaults(keys: Keys, stretched: dict[str, Any]) -> dict[str, Any]:
    """Returns a config without keys of RoPE that are empty; where there are none, with that of the
    family's class."""
    empty = {name for name in ("rope_parameters", "rope_scaling") if not keys.data.get(name)}
    data = {name: value for name, value in keys.data.items() if name not in empty}
    return {**data, "rope_scaling": stretched} if len(empty) == 2 else data


def with_rope(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a config with RoPE in its newer form, which says too that it is not stretched: the
    family's class would stretch what says nothing."""
    rest = {name: data[name] for name in data if name not in ("rope_theta", "rope_scaling")}
    plain = {"rope_type": "default", "rope_theta": data["rope_theta"]}
    return {**rest, "rope_parameters": {**plain, **(data["rope_scaling"] or {})}}


# --- nanochat ------------------------------------------------------------------------------------


def nanochat_config(keys: Keys) -> ModelConfig:
    """Llama with a plain MLP of ReLU², norms without scales (of embeddings and of turned heads
    too), and capped logits."""
    own = activation(keys, "hidden_act", "relu2")
    keys.same("mlp_bias", False)
    cap = keys.take("final_logit_softcapping", 15.0)
    keys.data = {**keys.data, "hidden_act": "silu"}  # as `llama_config` requires
    return dataclasses.replace(
        require_whole(keys, llama_config(keys)),
        activation=own,
        norm_scale=False,
        embedding_norm=True,
        qk_norm=True,
        qk_norm_scale=False,
        qk_norm_after_rope=True,
        logit_cap=None if cap is None else float(cap),
    )


def nanochat_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `nanochat_config`."""
    own = {"hidden_act": OURS.get(c.activation), "final_logit_softcapping": c.logit_cap}
    return llama_json(c) | own


def swapped_halves(width: int) -> tuple[int, ...]:
    """Returns the order of the numbers of a head that RoPE turns the other way round: with its
    halves swapped it is turned backwards."""
    return (*range(width // 2, width), *range(width // 2))


def nanochat_entries(c: ModelConfig) -> tuple[Entry, ...]:
    """Returns the tensors of nanochat, whose heads are turned backwards."""
    return (
        *around({}),
        *heads(f"{LAYER}.self_attn", "layers/attention", order=swapped_halves(c.head_dim)),
        *mlp(f"{LAYER}.mlp", "layers/mlp", up="fc1", down="fc2"),
    )


# --- Granite -------------------------------------------------------------------------------------


def granite_config(keys: Keys) -> ModelConfig:
    """Llama with multipliers of embeddings, of what layers add, of scores and of logits."""
    names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier")
    names += ("logits_scaling",)
    found = {name: keys.take(name, 1.0) for name in names}
    found = {name: 1.0 if value is None else float(value) for name, value in found.items()}
    for name, value in found.items():
        require(value > 0, f"{keys.where} has {name!r}: {value}; it needs a positive number.")
    return dataclasses.replace(
        llama_config(keys),
        embedding_scale=found["embedding_multiplier"],
        residual_scale=found["residual_multiplier"],
        attention_scale=found["attention_multiplier"],
        logit_scale=1 / found["logits_scaling"],
    )


def granite_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `granite_config`."""
    return llama_json(c) | {
        "embedding_multiplier": c.embedding_scale,
        "residual_multiplier": c.residual_scale,
        "attention_multiplier": c.scale,
        "logits_scaling": inverse(c.logit_scale),
    }


# --- Ministral 3 ---------------------------------------------------------------------------------


def ministral3_config(keys: Keys) -> ModelConfig:
    """Mistral whose queries grow with every `original_max_position_embeddings` positions."""
    form = "rope_parameters" if keys.data.get("rope_parameters") else "rope_scaling"
    rope = {**(keys.data.get(form) or {})}
    names = ("llama_4_scaling_beta", "original_max_position_embeddings")
    for name in names:
        require(
            type(rope.get(name)) in (int, float),
            f"{keys.where} has {form} without a number {name!r}, which 'ministral3' needs.",
        )
    strength, span = float(rope.pop(names[0])), int(rope[names[1]])
    keys.data = {"sliding_window": None, "rms_norm_eps": 1e-5, **keys.data, form: rope}
    repeated = rope.pop("max_position_embeddings", None)
    require(
        repeated in (None, keys.data.get("max_position_embeddings")),
        f"{keys.where} has max_position_embeddings {repeated} in {form} and another one beside it;"
        " get it again.",
    )
    growth = QueryGrowth(span, strength) if strength else None
    return dataclasses.replace(mistral_config(keys), query_growth=growth)


def ministral3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `ministral3_config`."""
    data, growth = with_rope(mistral_json(c)), c.query_growth
    rope = data["rope_parameters"]
    rope["llama_4_scaling_beta"] = 0.0 if growth is None else growth.strength
    if growth is not None:
        rope["original_max_position_embeddings"] = growth.span
    return data


# --- Apertus -------------------------------------------------------------------------------------


def apertus_config(keys: Keys) -> ModelConfig:
    """Llama with normalised heads and a plain MLP whose nonlinearity is learned."""
    for name, value in (("hidden_act", "xielu"), ("qk_norm", True), ("post_norm", False)):
        keys.same(name, value)
    keys.same("mlp_bias", False)
    published = {"rope_theta": 12e6, "rms_norm_eps": 1e-5}
    stretched = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    stretched |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    keys.data = {**published, **rope_defaults(keys, stretched), "hidden_act": "silu"}
    return dataclasses.replace(llama_config(keys), activation="xielu", qk_norm=True)


def apertus_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `apertus_config`."""
    own = {"hidden_act": "xielu" if c.activation == "xielu" else None}
    return with_rope(llama_json(c)) | own


_NUMBERS = f"{LAYER}.mlp.act_fn"
APERTUS = (
    *(entry for entry in LLAMA if "layernorm" not in entry.theirs),
    *(
        Entry(f"{LAYER}.{theirs}.weight", (f"layers/{ours}/scale",), "d", "d")
        for ours, theirs in (
            ("attention_norm", "attention_layernorm"),
            ("mlp_norm", "feedforward_layernorm"),
        )
    ),
    Entry(f"{_NUMBERS}.alpha_p", ("layers/mlp/xielu/positive",), "o", "o"),
    Entry(f"{_NUMBERS}.alpha_n", ("layers/mlp/xielu/negative",), "o", "o"),
    Entry(f"{_NUMBERS}.beta", (), "", "", constant=0.5),
    Entry(f"{_NUMBERS}.eps", (), "", "", constant=-1e-6),
)


# --- Cohere --------------------------------------------------------------------------------------


def cohere_config(keys: Keys) -> ModelConfig:
    """Llama with one LayerNorm before an attention and an MLP in parallel, and scaled logits."""
    require(
        not keys.take("use_qk_norm", False),
        f"{keys.where} has 'use_qk_norm': true, a LayerNorm of its own for each head, which this"
        " program lacks; Command R, R7B and Aya do without.",
    )
    keys.same("mlp_bias", False)
    keys.take("model_max_length", None)  # of a table of sines that is no longer kept
    scale, epsilon = keys.take("logit_scale", 0.0625), keys.take("layer_norm_eps", 1e-5)
    theta = 500_000.0 if keys.data["model_type"] == "cohere" else 10_000.0
    published = {"tie_word_embeddings": True, "max_position_embeddings": 8192, "rope_theta": theta}
    keys.data = {**published, **keys.data, "rms_norm_eps": epsilon}
    return dataclasses.replace(
        require_whole(keys, llama_config(keys)),
        norm="layernorm",
        parallel="shared",
        logit_scale=float(scale),
    )


def cohere_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `cohere_config`."""
    data = llama_json(c)
    data |= {"layer_norm_eps": data.pop("rms_norm_eps"), "logit_scale": c.logit_scale}
    return data | {"use_qk_norm": False}


def cohere2_config(keys: Keys) -> ModelConfig:
    """Cohere with windows in layers with RoPE, and layers that see all without it."""
    for name, value in _COHERE2.items():
        keys.same(name, value)
    window, every = keys.number("sliding_window", 4096), keys.number("sliding_window_pattern", 4)
    c = cohere_config(keys)
    kinds = keys.take("layer_types", None) or [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(c.num_layers)
    ]
    known = {"sliding_attention": Layer("window", window)}
    return layers_of(keys, c, kinds, known | {"full_attention": Layer(positions="none")})


_COHERE2 = {
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "order_of_interleaved_layers": "local_attn_first",
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": False,
}
"""Keys of published files that describe what all models of the family are."""


def cohere2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `cohere2_config`."""
    data = {name: value for name, value in cohere_json(c).items() if name != "use_qk_norm"}
    return data | {"sliding_window": window_of(c), "layer_types": kinds_of(c)}


def cohere_entries(c: ModelConfig) -> tuple[Entry, ...]:
    """Returns the tensors of Cohere, whose RoPE turns neighbours of a head."""
    turned = heads(f"{LAYER}.self_attn", "layers/attention", order=interleaved(c))
    return (*around({"attention_norm": "input_layernorm"}), *turned, *MLP)


FAMILIES = {
    "nanochat": Family("NanoChatForCausalLM", nanochat_config, nanochat_json, nanochat_entries),
    "granite": Family("GraniteForCausalLM", granite_config, granite_json, LLAMA),
    "ministral3": Family("Ministral3ForCausalLM", ministral3_config, ministral3_json, LLAMA),
    "apertus": Family("ApertusForCausalLM", apertus_config, apertus_json, APERTUS),
    "cohere": Family("CohereForCausalLM", cohere_config, cohere_json, cohere_entries),
    "cohere2": Family("Cohere2ForCausalLM", cohere2_config, cohere2_json, cohere_entries),
}
"""By `model_type`."""
