"""A family's config.json as our config, and back.

Read `keys.Keys` (every key of theirs must be asked for, so that none is ignored), `llama` with
`llama_json` (the pair that most families vary), then `computed` (what of a config changes numbers)
by which `same_again` finds the family that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.formats.keys import OURS, Keys, activation, louder_by, rope, rope_json
from gptjax.model import Experts, Latent, Layer, ModelConfig
from gptjax.model.presets import LLAMA

# --- Llama and what came of it
# -----------------------------------------------------------------------------------


def llama(keys: Keys) -> ModelConfig:
    """What most families after Llama have in common."""
    context = keys.number("max_position_embeddings", 2048)
    width, num_heads, head_width = (
        keys.number("hidden_size"),
        keys.number("num_attention_heads"),
        keys.number("head_dim", None),
    )
    found = dict(
        vocab_size=keys.number("vocab_size"),
        context=context,
        width=width,
        feed_forward=keys.number("intermediate_size"),
        num_layers=keys.number("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=keys.number("num_key_value_heads", None),
        head_width=None if head_width is None or head_width * num_heads == width else head_width,
        norm_epsilon=float(keys.take("rms_norm_eps", 1e-6)),
        tied=bool(keys.take("tie_word_embeddings", False)),
        **rope(keys, context),
    )
    keys.same("hidden_act", "silu")
    keys.same("attention_bias", False)
    keys.same("mlp_bias", False)
    return dataclasses.replace(LLAMA, **found)


def llama_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `llama`."""
    return dict(
        vocab_size=c.vocabulary,
        max_position_embeddings=c.context,
        hidden_size=c.width,
        intermediate_size=c.mlp_dim,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        hidden_act="silu",
        rms_norm_eps=c.norm_epsilon,
        tie_word_embeddings=c.tied,
        attention_bias=False,
        **rope_json(c),
    )


def arcee(keys: Keys) -> ModelConfig:
    """Llama with a plain MLP, whose nonlinearity is ReLU² as a rule."""
    found = activation(keys, "hidden_act", "relu2")
    keys.data = {**keys.data, "hidden_act": "silu"}
    return dataclasses.replace(llama(keys), activation=found)


def arcee_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `arcee`."""
    return llama_json(c) | {"hidden_act": OURS.get(c.activation)}


def patterned(c: ModelConfig, layers: Sequence[Layer]) -> ModelConfig:
    """The config with these layers, as the shortest pattern that repeats."""
    period = next(
        n
        for n in range(1, len(layers) + 1)
        if all(layer == layers[i % n] for i, layer in enumerate(layers))
    )
    return dataclasses.replace(c, pattern=tuple(layers[:period]))


def window_of(c: ModelConfig) -> int | None:
    """The span of the layers with a window."""
    return next((layer.span for layer in c.stack if layer.sees == "window"), None)


def kinds_of(c: ModelConfig) -> list[str]:
    """What each layer sees, in their words."""
    return ["full_attention" if layer.sees == "all" else "sliding_attention" for layer in c.stack]


def mistral(keys: Keys) -> ModelConfig:
    """Llama with a window in every layer, if any."""
    window = keys.number("sliding_window", None)
    return dataclasses.replace(
        llama(keys), pattern=(Layer() if window is None else Layer("window", window),)
    )


def mistral_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `mistral`."""
    return llama_json(c) | {"sliding_window": window_of(c)}


def mixtral(keys: Keys) -> ModelConfig:
    """Mistral with experts."""
    experts = Experts(
        count=keys.number("num_local_experts"),
        active=keys.number("num_experts_per_tok"),
        balance=0.02,
    )
    return dataclasses.replace(mistral(keys), experts=experts)


def mixtral_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `mixtral`."""
    return mistral_json(c) | {
        "intermediate_size": c.expert_width,
        "num_local_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
    }


def qwen2(keys: Keys) -> ModelConfig:
    """Llama with biases on query, key and value; layers from `max_window_layers` on may have a
    window."""
    return dataclasses.replace(_windows(keys, llama(keys)), qkv_bias=True)


def _windows(keys: Keys, c: ModelConfig) -> ModelConfig:
    used, window, begin = (
        keys.take("use_sliding_window", False),
        keys.number("sliding_window", None),
        keys.number("max_window_layers", 28),
    )
    kinds = keys.take("layer_types", None) or [
        "sliding_attention" if used and i >= begin else "full_attention"
        for i in range(c.num_layers)
    ]
    return _by_kind(keys, c, kinds, Layer("window", window) if used and window else None)


def _by_kind(keys: Keys, c: ModelConfig, kinds: Any, local: Layer | None) -> ModelConfig:
    """The config with the layers that `layer_types` names."""
    known = {"full_attention": Layer()} | ({} if local is None else {"sliding_attention": local})
    fine = (
        isinstance(kinds, list)
        and len(kinds) == c.num_layers
        and all(kind in known for kind in kinds)
    )
    require(
        fine,
        f"{keys.where} has layer_types {str(kinds)[:80]}; it needs {c.num_layers} of"
        f" {', '.join(known)}.",
    )
    return patterned(c, [known[kind] for kind in kinds])


def qwen2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen2`."""
    window = window_of(c)
    said = {
        key: value
        for key, value in llama_json(c).items()
        if key not in ("head_dim", "attention_bias")
    }
    return said | {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": kinds_of(c),
        "max_window_layers": c.num_layers,
    }


def qwen3(keys: Keys) -> ModelConfig:
    """Llama with normalised heads."""
    return dataclasses.replace(_windows(keys, llama(keys)), qk_norm=True)


def qwen3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3`."""
    return qwen2_json(c) | {"head_dim": c.head_dim, "attention_bias": False}


def qwen3_moe(keys: Keys) -> ModelConfig:
    """Qwen 3 with experts in every `decoder_sparse_step`-th layer but those of
    `mlp_only_layers`."""
    step, plain = keys.number("decoder_sparse_step", 1), keys.take("mlp_only_layers", None) or []
    experts = Experts(
        count=keys.number("num_experts", keys.number("num_local_experts", 128)),
        active=keys.number("num_experts_per_tok"),
        width=keys.number("moe_intermediate_size"),
        normalised=bool(keys.take("norm_topk_prob", False)),
        balance=0.001,
    )
    c = dataclasses.replace(qwen3(keys), experts=experts)
    return patterned(
        c,
        [
            dataclasses.replace(layer, dense=i in plain or (i + 1) % step != 0)
            for i, layer in enumerate(c.stack)
        ],
    )


def qwen3_moe_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3_moe`."""
    e = c.experts
    said = {
        "num_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": c.expert_width,
        "norm_topk_prob": e.normalised,
    }
    plain = [i for i, layer in enumerate(c.stack) if layer.dense]
    return (
        {k: v for k, v in qwen3_json(c).items() if k != "layer_types"}
        | said
        | {"decoder_sparse_step": 1, "mlp_only_layers": plain}
    )


def olmo2(keys: Keys) -> ModelConfig:
    """Llama with norms on what attention and MLP add, and on all query heads and all key heads as
    one vector."""
    return dataclasses.replace(
        llama(keys), norm_placement="reordered", qk_norm=True, qk_norm_joint=True
    )


def phi3(keys: Keys) -> ModelConfig:
    """Llama with fused tensors, and a window in every layer, if any."""
    keys.number(
        "original_max_position_embeddings", None
    )  # of a stretched RoPE, which says it again
    return mistral(keys)


def phi3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `phi3`; its padding must be said, since its default lies in a vocabulary of
    32,000."""
    said = {
        key: value
        for key, value in mistral_json(c).items()
        if key not in ("head_dim", "attention_bias")
    }
    return said | ({"partial_rotary_factor": c.rope_share} if c.rope_share != 1 else {})


def gemma2(keys: Keys) -> ModelConfig:
    """Sandwich norms, caps, windows in every second layer."""
    window = keys.number("sliding_window", 4096)
    keys.same("sliding_window_size", None, window)  # published configs say it twice
    return _gemma(keys, Layer("window", window), every=2)


def _gemma(keys: Keys, local: Layer, every: int) -> ModelConfig:
    act = "gelu_pytorch_tanh"
    keys.same("hidden_activation", act, None)
    keys.same("hidden_act", act)
    keys.same("use_bidirectional_attention", False, None)
    keys.data = {"head_dim": 256, "tie_word_embeddings": True, **keys.data, "hidden_act": "silu"}
    c = dataclasses.replace(
        llama(keys),
        activation="geglu",
        norm_placement="sandwich",
        scaled_embedding=True,
        attention_scale=float(keys.take("query_pre_attn_scalar", 256)) ** -0.5,
        attention_cap=keys.take("attn_logit_softcapping", 50.0 if every == 2 else None),
        logit_cap=keys.take("final_logit_softcapping", 30.0 if every == 2 else None),
    )
    kinds = keys.take("layer_types", None) or [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention"
        for i in range(c.num_layers)
    ]
    return _by_kind(keys, c, kinds, local)


def gemma2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma2`."""
    scalar = c.scale**-2
    caps = {"attn_logit_softcapping": c.attention_cap, "final_logit_softcapping": c.logit_cap}
    act = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    near = round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar
    return (
        llama_json(c)
        | act
        | caps
        | {
            "query_pre_attn_scalar": near,
            "sliding_window": window_of(c),
            "layer_types": kinds_of(c),
        }
    )


def gemma3(keys: Keys) -> ModelConfig:
    """Gemma 2 with normalised heads in the place of caps; layers with a window turn with a base of
    their own and are not stretched."""
    both = keys.take("rope_parameters", None) or {}
    base, window = (
        float(keys.take("rope_local_base_freq", 10_000.0)),
        keys.number("sliding_window", 4096),
    )
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


def gemma3_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gemma3`."""
    local = next((layer for layer in c.stack if layer.sees == "window"), Layer())
    whole = next((layer for layer in c.stack if layer.sees == "all"), Layer())
    return (
        gemma2_json(c)
        | rope_json(c, whole)
        | {"rope_local_base_freq": local.rope_base or c.rope_base}
    )


# --- DeepSeek
# ----------------------------------------------------------------------------------------------------


def deepseek(keys: Keys) -> ModelConfig:
    """Latent attention and experts, of V2 and V3."""
    third = keys.data["model_type"] == "deepseek_v3"
    active, shared = keys.number("num_experts_per_tok"), keys.number("n_shared_experts")
    count, width, scale = (
        keys.number("n_routed_experts"),
        keys.number("moe_intermediate_size"),
        float(keys.take("routed_scaling_factor")),
    )
    experts = Experts(
        count,
        active,
        width,
        shared,
        normalised=bool(keys.take("norm_topk_prob", third)),
        scale=scale,
        balance=1e-4,
    )
    groups, some = keys.number("n_group", None), keys.number("topk_group", None)
    if third:
        keys.same("scoring_func", "sigmoid")
        keys.same("topk_method", "noaux_tc")
        keys.same("rope_interleave", True)
        experts = dataclasses.replace(
            experts, scores="sigmoid", groups=groups or 1, active_groups=some or 1, bias_step=1e-3
        )
    else:
        keys.same("scoring_func", "softmax")
        keys.same("topk_method", "greedy", *(["group_limited_greedy"] if groups == some else []))
        require(
            not experts.normalised,
            f"{keys.where} has 'norm_topk_prob': true, with which V2's routers are not computed by"
            " `transformers` either.",
        )
    nope, turned, value = (
        keys.number("qk_nope_head_dim"),
        keys.number("qk_rope_head_dim"),
        keys.number("v_head_dim"),
    )
    keys.same("num_key_value_heads", None, keys.data["num_attention_heads"])
    keys.take("head_dim", None), keys.take("qk_head_dim", None)
    dense = keys.number("first_k_dense_replace", 0)
    keys.same("moe_layer_freq", 1)
    stretch = {**(keys.data.get("rope_parameters") or {}), **(keys.data.get("rope_scaling") or {})}
    keys.data = {**keys.data, "num_key_value_heads": None, "head_dim": nope}
    c = llama(keys)
    louder = (
        louder_by(stretch["factor"], stretch["mscale_all_dim"])
        if c.rope_scaling and stretch.get("mscale_all_dim")
        else 1.0
    )
    return dataclasses.replace(
        c,
        latent=Latent(keys.number("kv_lora_rank"), keys.number("q_lora_rank", None), turned, value),
        experts=experts,
        first=(Layer(dense=True),) * dense,
        attention_scale=(nope + turned) ** -0.5 * louder**2,
    )


def deepseek_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `deepseek`."""
    e, narrow, said = c.experts, c.latent, llama_json(c)
    dense = next((i for i, layer in enumerate(c.stack) if c.sparse(layer)), c.num_layers)
    heads = {
        "qk_nope_head_dim": c.head_dim,
        "qk_rope_head_dim": narrow.rope_width,
        "v_head_dim": c.value_width,
        "num_key_value_heads": c.num_heads,
    }
    routing = {
        "n_group": e.groups,
        "topk_group": e.active_groups,
        "norm_topk_prob": e.normalised,
        "routed_scaling_factor": e.scale,
        "n_shared_experts": e.shared,
    }
    if e.scores == "sigmoid":
        routing |= {
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "num_nextn_predict_layers": 0,
            "num_mtp_layers": 0,
        }
    else:
        routing |= {"scoring_func": "softmax", "topk_method": "greedy"}
    louder = math.sqrt(c.scale * math.sqrt(c.query_width))
    if said["rope_scaling"] and louder > 1:
        weight = (louder - 1) / (0.1 * math.log(said["rope_scaling"]["factor"]))
        said["rope_scaling"] |= {"mscale": weight, "mscale_all_dim": weight}
    del said["head_dim"]
    return said | heads | routing | {
        "kv_lora_rank": narrow.rank,
        "q_lora_rank": narrow.query_rank,
        "n_routed_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": c.expert_width,
        "first_k_dense_replace": dense,
        "moe_layer_freq": 1,
    }  # fmt: skip


# --- which family computes what a config computes
# ----------------------------------------------------------------


def same_again(
    c: ModelConfig, names: Iterable[str], again: Callable[[str], ModelConfig], what: str
) -> str:
    """Gives the first name as which a model, written and read again, computes the same.

    Args:
      names: of families of theirs, the preferred one first.
      again: writes `c` as that family's description and reads it; may raise where it has no word
        for something.
      what: they are, for the error.

    Raises:
      ConfigError: there is none; says in what the nearest one differs.
    """
    wanted, differ, names = computed(c), {}, list(dict.fromkeys(names))
    for name in names:
        try:
            found = computed(again(name))
        except (ConfigError, AttributeError, TypeError, ZeroDivisionError):
            continue
        differ[name] = [key for key in wanted if wanted[key] != found.get(key)]
        if not differ[name]:
            return name
    least = min(differ, key=lambda name: len(differ[name]), default=None)
    nearly = f"; {least} comes nearest and differs in {', '.join(differ[least])}" if least else ""
    raise ConfigError(
        f"no {what} that is known here computes what this model does{nearly}. Known are"
        f" {', '.join(names)}."
    )


def computed(c: ModelConfig) -> dict[str, Any]:
    """What of a config changes the numbers of a forward pass, in one form: two configs with the
    same compute the same."""
    plain = (
        "vocabulary context width num_layers encoder_layers causal num_heads kv_heads head_dim mlp_dim"
        " norm norm_placement norm_epsilon parallel qk_norm "
    )
    plain += (
        "qk_norm_joint attention_cap attention_sink logit_cap latent activation bias qkv_bias_enabled tied"
        " scaled_embedding embedding_norm head_transform logit_bias"
    )
    found = {name: getattr(c, name) for name in plain.split()}
    found |= {"scale": round(c.scale, 9), "logit_scale": round(c.logit_scale, 9)}
    found["positions"] = c.positions if c.positions in ("learned", "sinusoidal") else "by layer"
    found["layers"] = [_layer(c, layer) for layer in c.stack]
    if c.latent is not None:
        found |= {"latent": dataclasses.replace(c.latent, value_width=c.value_width)}
    if c.experts is not None:
        e, quiet = (
            c.experts,
            {"balance": 0.0, "router_z": 0.0, "bias_step": float(c.experts.bias_step > 0)},
        )
        found["experts"] = dataclasses.replace(
            e,
            width=c.expert_width,
            **quiet,
            **({"groups": 1, "active_groups": 1} if e.groups == e.active_groups else {}),
        )
        found["mlp_dim"] = found["mlp_dim"] if any(layer.dense for layer in c.stack) else None
    return found


def _layer(c: ModelConfig, layer: Layer) -> tuple:
    """What one layer computes."""
    kind = c.positions_in(layer)
    how: tuple = (kind,)
    if kind == "t5":
        how += (c.t5_buckets, c.t5_distance)
    if kind == "rope":
        said = rope_json(c, layer)
        how += (
            c.rotary_dim,
            round(said["rope_theta"], 6),
            tuple(sorted((said["rope_scaling"] or {}).items())),
        )
    seen = (
        ("all", None)
        if layer.sees == "window" and layer.span >= c.context
        else (layer.sees, layer.span)
    )
    return (*seen, layer.summary if layer.sees == "fixed" else 0, layer.sinks, c.sparse(layer), how)
