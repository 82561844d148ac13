"""Architectures of `transformers` at a small size, with the map from their weights to our tree. Needs torch and transformers.

Read `CASES` at the end first, then `gpt2_tree` and `llama_tree` (which of their weights is which of ours).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from gptjax.model import Experts, Latent, Layer, LinearScaling, Llama3Scaling, ModelConfig, YarnScaling

transformers = pytest.importorskip("transformers", reason="parity is measured against transformers: pip install 'gptjax[test-parity]'")

SMALL = ModelConfig(vocab_size=97, context=64, width=32, num_layers=2, num_heads=4, feed_forward=80)
LLAMA = replace(SMALL, positions="rope", norm="rmsnorm", activation="swiglu", bias=False, tied=False)
REFERENCE = (("reference", "unroll", 33),)
BLOCKS = (("causal_blocks", "scan", 36),)
BLOCKWISE = (("blockwise", "scan", 35),)
"""Ways to run our model: attention implementation, way through the layers, length of a row (`causal_blocks` wants a multiple of four)."""

Take = Callable[[str], np.ndarray]
"""Name of one of their tensors → its values."""


@dataclass(frozen=True)
class Case:
    """One architecture: our config, their model of the same shape, the map between their weights and our tree, our ways to run it."""

    name: str
    config: ModelConfig
    build: Callable[[ModelConfig], Any]
    tree: Callable[[ModelConfig, Take], Any]
    ways: tuple[tuple[str, str, int], ...] = REFERENCE + BLOCKS
    offset: float = 0.0
    """Our norm scales are theirs plus this."""


# --- their models ------------------------------------------------------------------------------------------------


def build_gpt2(c: ModelConfig) -> Any:
    """Their GPT-2, without dropout."""
    shape = dict(vocab_size=c.vocabulary, n_positions=c.context, n_embd=c.width, n_layer=c.num_layers, n_head=c.num_heads, n_inner=c.hidden)
    quiet = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    config = transformers.GPT2Config(
        **shape, **quiet, activation_function="gelu_new", layer_norm_epsilon=c.norm_epsilon, tie_word_embeddings=c.tied, attn_implementation="eager"
    )
    return transformers.GPT2LMHeadModel(config)


def common(c: ModelConfig) -> dict[str, Any]:
    """What the configs of all their models after Llama share."""
    shape = dict(vocab_size=c.vocabulary, max_position_embeddings=c.context, hidden_size=c.width, intermediate_size=c.hidden)
    heads = dict(num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads, num_key_value_heads=c.kv_heads)
    quiet = dict(attention_dropout=0.0, attention_bias=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    rope = dict(rope_parameters=rope_of(c))
    return shape | heads | quiet | rope | dict(rms_norm_eps=c.norm_epsilon, tie_word_embeddings=c.tied, attn_implementation="eager")


def rope_of(c: ModelConfig) -> dict[str, Any]:
    """RoPE in their words."""
    plain = {"rope_type": "default", "rope_theta": c.rope_base}
    match c.rope_scaling:
        case Llama3Scaling(factor, original, fast, slow):
            stretch = dict(rope_type="llama3", factor=factor, original_max_position_embeddings=original, high_freq_factor=fast, low_freq_factor=slow)
        case YarnScaling(factor, original, fast, slow):
            stretch = dict(rope_type="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=fast, beta_slow=slow)
        case LinearScaling(factor):
            stretch = dict(rope_type="linear", factor=factor)
        case _:
            stretch = {}
    return plain | stretch


def build_llama(c: ModelConfig) -> Any:
    """Their Llama, or their Qwen3 where the heads are normalised."""
    kinds = (transformers.Qwen3Config, transformers.Qwen3ForCausalLM) if c.qk_norm else (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    return kinds[1](kinds[0](**common(c), head_dim=c.heads, hidden_act="silu"))


def build_qwen2(c: ModelConfig) -> Any:
    """Their Qwen 2, which 2.5 is too."""
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**common(c), hidden_act="silu"))


def build_mistral(c: ModelConfig) -> Any:
    """Their Mistral, with its window."""
    return transformers.MistralForCausalLM(transformers.MistralConfig(**common(c), head_dim=c.heads, hidden_act="silu", sliding_window=c.pattern[0].span))


def build_mixtral(c: ModelConfig) -> Any:
    """Their Mixtral."""
    experts = dict(num_local_experts=c.experts.count, num_experts_per_tok=c.experts.active)
    config = transformers.MixtralConfig(**common(c) | dict(intermediate_size=c.expert_width), **experts, head_dim=c.heads, hidden_act="silu", sliding_window=None)
    return transformers.MixtralForCausalLM(config)


def build_gemma(c: ModelConfig) -> Any:
    """Their Gemma 2, or their Gemma 3 (its text model) where the heads are normalised."""
    kinds = ["full_attention" if layer.span is None else "sliding_attention" for layer in c.stack]
    rest = dict(head_dim=c.heads, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=round(c.scale**-2), sliding_window=c.pattern[0].span)
    told = common(c) | rest | dict(layer_types=kinds)
    if not c.qk_norm:
        config = transformers.Gemma2Config(**told, attn_logit_softcapping=c.attention_cap, final_logit_softcapping=c.logit_cap)
        return transformers.Gemma2ForCausalLM(config)
    local = {"rope_type": "default", "rope_theta": c.pattern[0].rope_base}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**told | dict(rope_parameters=dict(full_attention=rope_of(c), sliding_attention=local))))


def build_olmo(c: ModelConfig) -> Any:
    """Their OLMo 2."""
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**common(c), hidden_act="silu"))


def build_deepseek(c: ModelConfig) -> Any:
    """Their DeepSeek-V3, with halves of a head turned together as ours are."""
    e, narrow = c.experts, c.latent
    heads = dict(kv_lora_rank=narrow.rank, q_lora_rank=narrow.query_rank, qk_rope_head_dim=narrow.rope_width, qk_nope_head_dim=c.heads, v_head_dim=c.value_width)
    experts = dict(n_routed_experts=e.count, num_local_experts=e.count, num_experts_per_tok=e.active, moe_intermediate_size=c.expert_width)
    experts |= dict(n_shared_experts=e.shared, n_group=e.groups, topk_group=e.active_groups, routed_scaling_factor=e.scale, norm_topk_prob=e.normalised)
    rope = rope_of(c) | dict(mscale=1.0, mscale_all_dim=1.0)
    told = common(c) | heads | experts | dict(rope_parameters=rope, rope_interleave=False, first_k_dense_replace=len(c.first), hidden_act="silu")
    return transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**told))


# --- their weights in our tree -----------------------------------------------------------------------------------


def gpt2_tree(c: ModelConfig, take: Take) -> Any:
    """Their GPT-2 in our shapes. Their Conv1D holds [in out], and query, key and value side by side."""

    def layers(name: str, *shape: int) -> np.ndarray:
        leaves = np.stack([take(f"transformer.h.{i}.{name}") for i in range(c.num_layers)])
        return leaves.reshape(c.num_layers, *shape) if shape else leaves

    def norm(name: str) -> dict:
        return {"scale": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}

    fused = layers("attn.c_attn.weight", c.width, 3, c.num_heads, c.heads)
    fused_bias = layers("attn.c_attn.bias", 3, c.num_heads, c.heads)
    three = {name: {"kernel": fused[:, :, i], "bias": fused_bias[:, i]} for i, name in enumerate(("query", "key", "value"))}
    out = {"kernel": layers("attn.c_proj.weight", c.num_heads, c.heads, c.width), "bias": layers("attn.c_proj.bias")}
    mlp = {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    return {
        "embedding": {"embedding": take("transformer.wte.weight")},
        "positions": {"embedding": take("transformer.wpe.weight")},
        "layers": {
            "attention_norm": norm("ln_1"),
            "attention": {**three, "out": out},
            "mlp_norm": norm("ln_2"),
            "mlp": {ours: {"kernel": layers(f"{theirs}.weight"), "bias": layers(f"{theirs}.bias")} for ours, theirs in mlp.items()},
        },
        "norm": {"scale": take("transformer.ln_f.weight"), "bias": take("transformer.ln_f.bias")},
    }


NORMS = {
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "reordered": {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"},
    "sandwich": {
        "attention_norm": "input_layernorm",
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
}
"""Our norms by placement, and theirs."""


def llama_tree(c: ModelConfig, take: Take) -> Any:
    """Any of their models after Llama in our shapes. Their Linear holds [out in]."""
    kinds = {sparse: [i for i, layer in enumerate(c.stack) if c.sparse(layer) == sparse] for sparse in (False, True)}
    stacks = {name: layers_tree(c, take, kinds[sparse], sparse) for name, sparse in (("dense", False), ("sparse", True)) if kinds[sparse]}
    tree = {
        "embedding": {"embedding": take("model.embed_tokens.weight")},
        "layers": stacks if c.mixed else next(iter(stacks.values())),
        "norm": {"scale": take("model.norm.weight")},
    }
    return tree if c.tied else tree | {"head": {"kernel": take("lm_head.weight").T}}


def layers_tree(c: ModelConfig, take: Take, numbers: list[int], sparse: bool) -> dict:
    """The stack of the layers of these numbers."""

    def raw(name: str) -> np.ndarray:
        return np.stack([take(f"model.layers.{i}.{name}") for i in numbers])

    def linear(name: str, *shape: int) -> dict:
        turned = raw(f"{name}.weight").swapaxes(1, 2)
        found = {"kernel": turned.reshape(len(numbers), *shape) if shape else turned}
        biased = c.biased and name.endswith(("q_proj", "k_proj", "v_proj"))
        return found | ({"bias": raw(f"{name}.bias").reshape(len(numbers), *shape[1:])} if biased else {})

    def scale(name: str) -> dict:
        return {"scale": raw(f"{name}.weight")}

    def mlp(where: str) -> dict:
        return {name: linear(f"{where}.{name}_proj") for name in ("gate", "up", "down")}

    norms = {ours: scale(theirs) for ours, theirs in NORMS[c.norm_placement].items()}
    rest = {"moe": experts_tree(raw, mlp, c)} if sparse else {"mlp": mlp("mlp")}
    return {**norms, "attention": (attention_tree if c.latent is None else latent_tree)(c, linear, scale), **rest}


def attention_tree(c: ModelConfig, linear: Callable, scale: Callable) -> dict:
    """Their plain attention."""
    found = {
        "query": linear("self_attn.q_proj", c.width, c.num_heads, c.heads),
        "key": linear("self_attn.k_proj", c.width, c.kv_heads, c.heads),
        "value": linear("self_attn.v_proj", c.width, c.kv_heads, c.heads),
        "out": linear("self_attn.o_proj", c.num_heads, c.heads, c.width),
    }
    if c.qk_norm:
        found |= {"query_norm": scale("self_attn.q_norm"), "key_norm": scale("self_attn.k_norm")}
    return found


def latent_tree(c: ModelConfig, linear: Callable, scale: Callable) -> dict:
    """Their latent attention, which makes keys and values by one matrix."""
    both = linear("self_attn.kv_b_proj", c.latent.rank, c.num_heads, c.heads + c.value_width)["kernel"]
    return {
        "query_down": linear("self_attn.q_a_proj"),
        "query_norm": scale("self_attn.q_a_layernorm"),
        "query": linear("self_attn.q_b_proj", c.latent.query_rank, c.num_heads, c.query_width),
        "latent_down": linear("self_attn.kv_a_proj_with_mqa"),
        "latent_norm": scale("self_attn.kv_a_layernorm"),
        "key": {"kernel": both[..., : c.heads]},
        "value": {"kernel": both[..., c.heads :]},
        "out": linear("self_attn.o_proj", c.num_heads, c.value_width, c.width),
    }


def experts_tree(raw: Callable, mlp: Callable, c: ModelConfig) -> dict:
    """Their experts: gate and up in one tensor [expert, out, in]."""
    gate, up = np.split(raw("mlp.experts.gate_up_proj").swapaxes(2, 3), 2, axis=3)
    kernels = {"gate": gate, "up": up, "down": raw("mlp.experts.down_proj").swapaxes(2, 3)}
    found = {"router": {"kernel": raw("mlp.gate.weight").swapaxes(1, 2)}, "experts": {name: {"kernel": kernel} for name, kernel in kernels.items()}}
    return found | ({"shared": mlp("mlp.shared_experts")} if c.experts.shared else {})


# --- the cases ---------------------------------------------------------------------------------------------------

GQA = replace(LLAMA, num_kv_heads=2)
LOCAL = Layer("window", 8)
LOUDER = 0.1 * math.log(4.0) + 1
GEMMA = replace(GQA, activation="geglu", norm_placement="sandwich", scaled_embedding=True, tied=True, head_width=16)
DEEPSEEK = replace(
    LLAMA,
    num_layers=3,
    norm_epsilon=1e-6,
    first=(Layer(dense=True),),
    latent=Latent(rank=16, query_rank=24, rope_width=8, value_width=12),
    experts=Experts(count=8, active=2, width=24, shared=1, scores="sigmoid", scale=2.5, groups=4, active_groups=2, balance=0.0),
    rope_scaling=YarnScaling(4.0, original=16, magnitude=1.0),
    attention_scale=16**-0.5 * LOUDER**2,
)

CASES = (
    Case("gpt2", SMALL, build_gpt2, gpt2_tree),
    Case("llama_gqa_untied", GQA, build_llama, llama_tree),
    Case("llama_mha_tied", replace(LLAMA, tied=True, rope_base=500.0), build_llama, llama_tree, BLOCKS),
    Case("llama3_stretched", replace(GQA, rope_scaling=Llama3Scaling(8.0, original=16)), build_llama, llama_tree, BLOCKWISE),
    Case("qwen2_biases", replace(GQA, qkv_bias=True, rope_scaling=YarnScaling(4.0, original=16)), build_qwen2, llama_tree, BLOCKS),
    Case("qwen3_qk_norm", replace(LLAMA, num_kv_heads=1, qk_norm=True, head_width=16, tied=True), build_llama, llama_tree, REFERENCE),
    Case("mistral", replace(GQA, pattern=(LOCAL,)), build_mistral, llama_tree, BLOCKS + BLOCKWISE),
    Case("mixtral", replace(GQA, experts=Experts(count=4, active=2, width=40, balance=0.0)), build_mixtral, llama_tree, REFERENCE + BLOCKS),
    Case("gemma2", replace(GEMMA, pattern=(LOCAL, Layer()), attention_cap=5.0, logit_cap=3.0, attention_scale=24**-0.5), build_gemma, llama_tree, BLOCKWISE, 1.0),
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
        llama_tree,
        BLOCKS,
        1.0,
    ),
    Case("olmo2", replace(GQA, norm_placement="reordered", qk_norm=True, qk_norm_joint=True), build_olmo, llama_tree, BLOCKS),
    Case("deepseek_v3", DEEPSEEK, build_deepseek, llama_tree, REFERENCE + (("auto", "scan", 36),)),
)
