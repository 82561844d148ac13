"""config.json of Llama and the families that vary it, as our config and back.

Read `keys.Keys` (every key must be taken, so that none is ignored), then `llama_config` with
`llama_json`. DeepSeek is in `deepseek`, families older than Llama are in `older`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gptjax.core.config import require
from gptjax.formats.keys import OURS, Keys, activation, rope, rope_json
from gptjax.model import Experts, Layer, ModelConfig
from gptjax.model.config_parts import GATES
from gptjax.model.presets import LLAMA

# --- Llama and what came of it --------------------------------------------------------------------


def llama_config(keys: Keys) -> ModelConfig:
    """Translates what most families after Llama have in common."""
    context = keys.number("max_position_embeddings", 2048)
    width, num_heads = keys.number("hidden_size"), keys.number("num_attention_heads")
    head_dim = keys.number("head_dim", None)
    config = dataclasses.replace(
        LLAMA,
        vocab_size=keys.number("vocab_size"),
        context=context,
        width=width,
        feed_forward=keys.number("intermediate_size"),
        num_layers=keys.number("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=keys.number("num_key_value_heads", None),
        head_width=None if head_dim is None or head_dim * num_heads == width else head_dim,
        norm_epsilon=float(keys.take("rms_norm_eps", 1e-6)),
        tied=bool(keys.take("tie_word_embeddings", False)),
        **rope(keys, context),
    )
    biases = [True if keys.take(name, False) else None for name in ("attention_bias", "mlp_bias")]
    return dataclasses.replace(
        config,
        activation=activation(keys, "hidden_act", "silu", gated=True),
        qkv_bias=biases[0],
        out_bias=biases[0],
        mlp_bias=biases[1],
    )


def llama_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `llama_config`."""
    return dict(
        vocab_size=c.vocabulary,
        max_position_embeddings=c.context,
        hidden_size=c.width,
        intermediate_size=c.mlp_dim,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        hidden_act=OURS.get(GATES.get(c.activation, "")),
        rms_norm_eps=c.norm_epsilon,
        tie_word_embeddings=c.tied,
        attention_bias=c.out_bias_enabled,
        **({"mlp_bias": True} if c.mlp_bias_enabled else {}),
        **rope_json(c),
    )


def ungated_config(keys: Keys, default: str) -> ModelConfig:
    """Llama with a plain MLP.

    Args:
      default: their name of its nonlinearity, if the file does not say.
    """
    own = activation(keys, "hidden_act", default)
    keys.data = {**keys.data, "hidden_act": "silu"}  # as `llama_config` requires
    return dataclasses.replace(llama_config(keys), activation=own)


def arcee_config(keys: Keys) -> ModelConfig:
    """Llama with a plain MLP, usually of ReLU²."""
    return ungated_config(keys, "relu2")


def arcee_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `arcee_config`."""
    return llama_json(c) | {"hidden_act": OURS.get(c.activation)}


def no_biases(keys: Keys, *names: str) -> None:
    """Takes keys of biases, by default those of attention and MLP, which have to be false."""
    for name in names or ("attention_bias", "mlp_bias"):
        keys.same(name, False)


def without(data: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Returns a description that lacks some keys."""
    return {key: value for key, value in data.items() if key not in keys}


def patterned(c: ModelConfig, layers: Sequence[Layer], **more: Any) -> ModelConfig:
    """Returns the config with these layers, as the shortest pattern that repeats, and with further
    fields that they need."""
    period = next(
        n
        for n in range(1, len(layers) + 1)
        if all(layer == layers[i % n] for i, layer in enumerate(layers))
    )
    return dataclasses.replace(c, pattern=tuple(layers[:period]), **more)


def window_of(c: ModelConfig) -> int | None:
    """Returns the span of the layers that have a window."""
    return next((layer.span for layer in c.stack if layer.sees == "window"), None)


def kinds_of(c: ModelConfig) -> list[str]:
    """Returns what each layer sees, in their words."""
    return ["full_attention" if layer.sees == "all" else "sliding_attention" for layer in c.stack]


def mistral_config(keys: Keys) -> ModelConfig:
    """Llama with a window in every layer, if any."""
    no_biases(keys)
    window = keys.number("sliding_window", None)
    return dataclasses.replace(
        llama_config(keys), pattern=(Layer() if window is None else Layer("window", window),)
    )


def mistral_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `mistral_config`."""
    return llama_json(c) | {"sliding_window": window_of(c)}


def mixtral_config(keys: Keys) -> ModelConfig:
    """Mistral with experts."""
    experts = Experts(
        count=keys.number("num_local_experts"),
        active=keys.number("num_experts_per_tok"),
        balance=0.02,
    )
    return dataclasses.replace(mistral_config(keys), experts=experts)


def mixtral_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `mixtral_config`."""
    return mistral_json(c) | {
        "intermediate_size": c.expert_width,
        "num_local_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
    }


def qwen2_config(keys: Keys) -> ModelConfig:
    """Llama with biases on query, key and value; layers from `max_window_layers` on may have a
    window."""
    keys.same("attention_bias", False, True)  # which Qwen 2 does not ask for
    keys.same("mlp_bias", False)
    return dataclasses.replace(qwen_windows(keys, llama_config(keys)), qkv_bias=True, out_bias=None)


def qwen_windows(keys: Keys, c: ModelConfig) -> ModelConfig:
    """Returns the config with Qwen's windows: in the layers that `layer_types` names, or from
    `max_window_layers` on, if `use_sliding_window` is true."""
    used, window = keys.take("use_sliding_window", False), keys.number("sliding_window", None)
    begin = keys.number("max_window_layers", 28)
    kinds = keys.take("layer_types", None) or [
        "sliding_attention" if used and i >= begin else "full_attention"
        for i in range(c.num_layers)
    ]
    return by_kind(keys, c, kinds, Layer("window", window) if used and window else None)


def layers_of(
    keys: Keys, c: ModelConfig, kinds: Any, known: Mapping[str, Layer], **more: Any
) -> ModelConfig:
    """Returns the config with the layers that `layer_types` names, and with further fields.

    Args:
      kinds: the value of that key.

    Raises:
      ConfigError: it names one that is not known, or not as many as there are layers.
    """
    valid = isinstance(kinds, list) and len(kinds) == c.num_layers
    require(
        valid and all(kind in known for kind in kinds),
        f"{keys.where} has layer_types {str(kinds)[:80]}; it needs {c.num_layers} of"
        f" {', '.join(known)}.",
    )
    return patterned(c, [known[kind] for kind in kinds], **more)


def by_kind(keys: Keys, c: ModelConfig, kinds: Any, local: Layer | None) -> ModelConfig:
    """Returns `layers_of` those that see all and, unless `local` is `None`, those with a window."""
    windows = {} if local is None else {"sliding_attention": local}
    return layers_of(keys, c, kinds, {"full_attention": Layer()} | windows)


def qwen2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen2_config`."""
    window = window_of(c)
    return without(llama_json(c), "head_dim", "attention_bias") | {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": kinds_of(c),
        "max_window_layers": c.num_layers,
    }


def qwen3_config(keys: Keys) -> ModelConfig:
    """Llama with normalised heads."""
    no_biases(keys, "mlp_bias")
    return dataclasses.replace(qwen_windows(keys, llama_config(keys)), qk_norm=True)


def qwen3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3_config`."""
    return qwen2_json(c) | {"head_dim": c.head_dim, "attention_bias": c.out_bias_enabled}


def sparse_steps(keys: Keys, c: ModelConfig, **more: Any) -> ModelConfig:
    """Returns the config with experts in every `decoder_sparse_step`-th layer but those of
    `mlp_only_layers`, and with further fields."""
    step, dense = keys.number("decoder_sparse_step", 1), keys.take("mlp_only_layers", None) or []
    layers = [
        dataclasses.replace(layer, dense=i in dense or (i + 1) % step != 0)
        for i, layer in enumerate(c.stack)
    ]
    return patterned(c, layers, **more)


def sparse_steps_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `sparse_steps`."""
    dense = [i for i, layer in enumerate(c.stack) if layer.dense]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def qwen3_moe_config(keys: Keys) -> ModelConfig:
    """Qwen 3 with experts."""
    experts = Experts(
        count=keys.number("num_experts", keys.number("num_local_experts", 128)),
        active=keys.number("num_experts_per_tok"),
        width=keys.number("moe_intermediate_size"),
        normalised=bool(keys.take("norm_topk_prob", False)),
        balance=0.001,
    )
    return sparse_steps(keys, qwen3_config(keys), experts=experts)


def qwen3_moe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3_moe_config`."""
    return without(qwen3_json(c), "layer_types") | {
        "num_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
        "moe_intermediate_size": c.expert_width,
        "norm_topk_prob": c.experts.normalised,
        **sparse_steps_json(c),
    }


def olmo2_config(keys: Keys) -> ModelConfig:
    """Llama with norms on what attention and MLP add, and on all query heads and all key heads as
    one vector."""
    no_biases(keys, "mlp_bias")
    return dataclasses.replace(
        llama_config(keys), norm_placement="reordered", qk_norm=True, qk_norm_joint=True
    )


def phi3_config(keys: Keys) -> ModelConfig:
    """Llama with fused tensors, and a window in every layer, if any."""
    keys.number("original_max_position_embeddings", None)  # of a stretched RoPE, which repeats it
    return mistral_config(keys)


def phi3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `phi3_config`."""
    data = without(mistral_json(c), "head_dim", "attention_bias")
    return data | ({"partial_rotary_factor": c.rope_share} if c.rope_share != 1 else {})


def gemma2_config(keys: Keys) -> ModelConfig:
    """Sandwich norms, caps, windows in every second layer."""
    window = keys.number("sliding_window", 4096)
    keys.same("sliding_window_size", None, window)  # published configs repeat it
    return _gemma(keys, Layer("window", window), every=2)


def gemma_config(keys: Keys) -> ModelConfig:
    """Llama with a GELU gate and scaled embeddings; the tensors of its norms are one less."""
    act = "gelu_pytorch_tanh"
    keys.same("hidden_activation", act, None)
    keys.same("hidden_act", act, "gelu")  # the first files said gelu and meant its tanh form
    keys.same("use_bidirectional_attention", False, None)
    no_biases(keys, "mlp_bias")
    keys.data = {"head_dim": 256, "tie_word_embeddings": True, **keys.data, "hidden_act": act}
    return dataclasses.replace(llama_config(keys), scaled_embedding=True)


def gemma_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma_config`."""
    act = "gelu_pytorch_tanh"
    return llama_json(c) | {"hidden_act": act, "hidden_activation": act}


def _gemma(keys: Keys, local: Layer, every: int) -> ModelConfig:
    keys.same("hidden_act", "gelu_pytorch_tanh")
    c = dataclasses.replace(
        gemma_config(keys),
        norm_placement="sandwich",
        attention_scale=float(keys.take("query_pre_attn_scalar", 256)) ** -0.5,
        attention_cap=keys.take("attn_logit_softcapping", 50.0 if every == 2 else None),
        logit_cap=keys.take("final_logit_softcapping", 30.0 if every == 2 else None),
    )
    kinds = keys.take("layer_types", None) or [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention"
        for i in range(c.num_layers)
    ]
    return by_kind(keys, c, kinds, local)


def gemma2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma2_config`."""
    scalar = c.scale**-2
    caps = {"attn_logit_softcapping": c.attention_cap, "final_logit_softcapping": c.logit_cap}
    near = round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar
    return (
        gemma_json(c)
        | caps
        | {
            "query_pre_attn_scalar": near,
            "sliding_window": window_of(c),
            "layer_types": kinds_of(c),
        }
    )


def gemma3_config(keys: Keys) -> ModelConfig:
    """Gemma 2 with normalised heads instead of caps; RoPE of layers with a window has a base of its
    own and is not stretched."""
    both = keys.take("rope_parameters", None) or {}
    base = float(keys.take("rope_local_base_freq", 10_000.0))
    window = keys.number("sliding_window", 4096)
    if "sliding_attention" in both:
        near = Keys(both["sliding_attention"], f"rope_parameters in {keys.where}")
        base = float(near.take("rope_theta", base))
        near.same("rope_type", "default")
        near.finish()
    every = keys.number("sliding_window_pattern", keys.take("_sliding_window_pattern", 6))
    keys.data = {
        "rope_theta": 1e6,
        **keys.data,
        "rope_parameters": both.get("full_attention", both),
    }
    return dataclasses.replace(
        _gemma(keys, Layer("window", window, rope_base=base, rope_scaled=False), every),
        qk_norm=True,
    )


def gemma3_text(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of the text model in that of Gemma 3 from 4B on, which reads images too:
    its own keys, and those beside it that are of texts. What it omits has its class's default."""
    images = {"vision_config", "text_config", "mm_tokens_per_image"}
    images |= {f"{part}_token_{how}" for part in ("boi", "eoi", "image") for how in ("index", "id")}
    around = {key: value for key, value in data.items() if key not in images}
    own = data.get("text_config")
    defaults = {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    }
    own = own if isinstance(own, dict) else {}
    return {**defaults, **around, **own, "model_type": "gemma3_text"}


def gemma3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma3_config`."""
    local = next((layer for layer in c.stack if layer.sees == "window"), Layer())
    whole = next((layer for layer in c.stack if layer.sees == "all"), Layer())
    return (
        gemma2_json(c)
        | rope_json(c, whole)
        | {"rope_local_base_freq": local.rope_base or c.rope_base}
    )
