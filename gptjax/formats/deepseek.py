"""config.json of DeepSeek V2 and V3 as our config, and back: latent attention and experts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import llama_config, llama_json
from gptjax.formats.keys import Keys, yarn_magnitude
from gptjax.model import Experts, Latent, Layer, ModelConfig


def deepseek_config(keys: Keys) -> ModelConfig:
    """Translates the config.json of V2 and V3."""
    experts = deepseek_experts(keys, third=keys.data["model_type"] == "deepseek_v3")
    num_dense = keys.number("first_k_dense_replace", 0)
    keys.same("moe_layer_freq", 1)
    dense = (Layer(dense=True),) * num_dense
    return dataclasses.replace(latent_config(keys), experts=experts, first=dense)


def latent_config(keys: Keys) -> ModelConfig:
    """Returns Llama with latent attention, without experts."""
    content_dim, rope_dim = keys.number("qk_nope_head_dim"), keys.number("qk_rope_head_dim")
    keys.same("num_key_value_heads", None, keys.data["num_attention_heads"])
    keys.take("head_dim", None)
    keys.take("qk_head_dim", None)
    scaling = {**(keys.data.get("rope_parameters") or {}), **(keys.data.get("rope_scaling") or {})}
    keys.data = {**keys.data, "num_key_value_heads": None, "head_dim": content_dim}
    keys.same("attention_bias", False)
    keys.same("mlp_bias", False)
    keys.same("rope_interleave", True)
    c = llama_config(keys)
    magnitude = 1.0
    if c.rope_scaling and scaling.get("mscale_all_dim"):
        magnitude = yarn_magnitude(scaling["factor"], scaling["mscale_all_dim"])
    latent = Latent(
        rank=keys.number("kv_lora_rank"),
        query_rank=keys.number("q_lora_rank", None),
        rope_width=rope_dim,
        value_width=keys.number("v_head_dim"),
        norm_epsilon=None if c.norm_epsilon == 1e-6 else 1e-6,  # whatever rms_norm_eps says
    )
    scale = (content_dim + rope_dim) ** -0.5 * magnitude**2
    return dataclasses.replace(c, latent=latent, attention_scale=scale)


def deepseek_experts(keys: Keys, third: bool = True) -> Experts:
    """Returns the experts: V3 scores them by sigmoids, in groups, and balances them by biases."""
    groups, active_groups = keys.number("n_group", None), keys.number("topk_group", None)
    experts = Experts(
        count=keys.number("n_routed_experts"),
        active=keys.number("num_experts_per_tok"),
        width=keys.number("moe_intermediate_size"),
        shared=keys.number("n_shared_experts"),
        normalised=bool(keys.take("norm_topk_prob", third)),
        scale=float(keys.take("routed_scaling_factor")),
        balance=1e-4,
    )
    if third:
        keys.same("scoring_func", "sigmoid")
        keys.same("topk_method", "noaux_tc")
        return dataclasses.replace(
            experts,
            scores="sigmoid",
            groups=groups or 1,
            active_groups=active_groups or 1,
            bias_step=1e-3,
        )
    ungrouped = ["group_limited_greedy"] if groups == active_groups else []
    keys.same("scoring_func", "softmax")
    keys.same("topk_method", "greedy", *ungrouped)
    require(
        not experts.normalised,
        f"{keys.where} has 'norm_topk_prob': true, with which V2's routers are not computed by"
        " `transformers` either.",
    )
    return experts


def deepseek_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `deepseek_config`."""
    return latent_json(c) | routing_json(c) | {"moe_layer_freq": 1}


def latent_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `latent_config`."""
    latent, data = c.latent, llama_json(c)
    del data["head_dim"]
    magnitude = math.sqrt(c.scale * math.sqrt(c.query_width))
    if data["rope_scaling"] and magnitude > 1:
        weight = (magnitude - 1) / (0.1 * math.log(data["rope_scaling"]["factor"]))
        data["rope_scaling"] |= {"mscale": weight, "mscale_all_dim": weight}
    attention = {
        "qk_nope_head_dim": c.head_dim,
        "qk_rope_head_dim": latent.rope_width,
        "v_head_dim": c.value_width,
        "num_key_value_heads": c.num_heads,
        "kv_lora_rank": latent.rank,
        "q_lora_rank": latent.query_rank,
    }
    return data | attention


def routing_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `deepseek_experts`, and how many layers before the first with experts are
    dense."""
    e, sparse = c.experts, (i for i, layer in enumerate(c.stack) if c.sparse(layer))
    routing = {
        "n_group": e.groups,
        "topk_group": e.active_groups,
        "norm_topk_prob": e.normalised,
        "routed_scaling_factor": e.scale,
        "n_shared_experts": e.shared,
        "n_routed_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": c.expert_width,
        "first_k_dense_replace": next(sparse, c.num_layers),
        "scoring_func": e.scores,
        "topk_method": "greedy",
    }
    if e.scores == "sigmoid":
        further = c.ahead if c.ahead_chained else 0
        routing |= {"topk_method": "noaux_tc", "num_nextn_predict_layers": further}
        routing["num_mtp_layers"] = further
    return routing


def with_further(c: ModelConfig, names: Collection[str]) -> ModelConfig:
    """Returns the config with the blocks of further tokens that a file has, whatever its config
    says of them: what `transformers` saves says one and has none."""
    count = 0
    while f"model.layers.{c.num_layers + count}.eh_proj.weight" in names:
        count += 1
    return dataclasses.replace(c, ahead=count, ahead_chained=count > 0)
