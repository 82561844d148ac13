"""Families of decoders with recurrent layers: for each, its config.json as our config and back, and
which of its tensors is which of our leaves.

Read `RECURRENT` at the end, then the two functions and the table of a family.
"""

from __future__ import annotations

from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import (
    layers_of,
    llama_config,
    llama_json,
    no_biases,
    patterned,
    sparse_steps,
    sparse_steps_json,
    without,
)
from gptjax.formats.expert_families import GATED_EXPERTS, shared_experts
from gptjax.formats.families import (
    LAYER,
    MLP,
    PRE,
    around,
    heads,
    linear_entries,
    mlp,
    norm_entries,
)
from gptjax.formats.family import Family
from gptjax.formats.keys import Keys
from gptjax.formats.layout import Entry
from gptjax.model import DeltaNet, Experts, Layer, Mamba2, ModelConfig, ShortConvolution
from gptjax.model.config import Recurrent

FLAT = "(k x)"
"""What each key head has, head by head."""


def hybrid(keys: Keys, c: ModelConfig, options: Recurrent, kinds: Any, theirs: str) -> ModelConfig:
    """Returns the config whose layers are recurrent where `kinds` says `theirs`, and else attention
    to all."""
    known = {theirs: Layer(recurrent=True), "full_attention": Layer()}
    present = isinstance(kinds, list) and theirs in kinds
    return layers_of(keys, c, kinds, known, recurrent=options if present else None)


def kinds_json(c: ModelConfig, theirs: str) -> list[str]:
    """The inverse of `hybrid`: the kind of each layer."""
    return [theirs if layer.recurrent else "full_attention" for layer in c.stack]


def taps_entry(theirs: str, ours: tuple[str, ...]) -> Entry:
    """Returns the kernel of a convolution whose channels are those of several of ours."""
    paths = tuple(f"{path}_convolution/taps" for path in ours)
    return Entry(f"{theirs}.weight", paths, f"{FLAT} () w", "k x w", joined=FLAT)


def head_entry(theirs: str, ours: str) -> Entry:
    """Returns a number for each head."""
    return Entry(theirs, (ours,), FLAT, "k x")


# --- Qwen3.5 --------------------------------------------------------------------------------------


def qwen3_5_config(keys: Keys) -> ModelConfig:
    """Gated DeltaNet, and in every fourth layer attention with an output gate; the tensors of norms
    are one less. Of a text, its three positions of RoPE are one."""
    keys.default(head_dim=256, max_position_embeddings=32_768, partial_rotary_factor=0.25)
    rope = dict(keys.data.get("rope_parameters") or {})
    for name in ("mrope_section", "mrope_interleaved"):
        rope.pop(name, None)
    keys.data = {**keys.data, "rope_parameters": rope}
    keys.same("attn_output_gate", True)
    keys.same("mamba_ssm_dtype", "float32")
    for name in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"):
        keys.take(name, None)
    no_biases(keys)
    key_heads = keys.number("linear_num_key_heads", 16)
    value_heads = keys.number("linear_num_value_heads", 32)
    key_width = keys.number("linear_key_head_dim", 128)
    value_width = keys.number("linear_value_head_dim", 128)
    options = DeltaNet(
        key_heads,
        None if value_heads == key_heads else value_heads,
        key_width,
        None if value_width == key_width else value_width,
        taps=keys.number("linear_conv_kernel_dim", 4),
    )
    every = keys.number("full_attention_interval", 4)
    kinds = [
        "linear_attention" if (i + 1) % max(every, 1) else "full_attention"
        for i in range(keys.number("num_hidden_layers"))
    ]
    kinds = keys.take("layer_types", None) or kinds
    c = hybrid(keys, llama_config(keys), options, kinds, "linear_attention")
    return patterned(c, c.pattern, qk_norm=True, attention_gate=True)


def qwen3_5_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3_5_config`."""
    own = c.recurrent if isinstance(c.recurrent, DeltaNet) else DeltaNet()
    rope = {"partial_rotary_factor": c.rotary_dim / c.head_dim}
    return (
        llama_json(c)
        | rope
        | {
            "layer_types": kinds_json(c, "linear_attention"),
            "linear_num_key_heads": own.key_heads,
            "linear_num_value_heads": own.key_heads * own.group,
            "linear_key_head_dim": own.key_width,
            "linear_value_head_dim": own.value_dim,
            "linear_conv_kernel_dim": own.taps,
        }
    )


def qwen3_5_text(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of the text model in that of Qwen3.5, which reads images too."""
    own = data.get("text_config")
    outer = {"tie_word_embeddings", "torch_dtype", "dtype", "transformers_version"}
    around = {key: value for key, value in data.items() if key in outer}
    return {**around, **(own if isinstance(own, dict) else {}), "model_type": "qwen3_5_text"}


_ATTENTION, _DELTA, _LINEAR = "layers/attention", "layers/delta", f"{LAYER}.linear_attn"
_QKV = tuple(f"{_DELTA}/{name}" for name in ("query", "key", "value"))
GATED_ATTENTION = tuple(
    linear_entries(
        f"{LAYER}.self_attn.q_proj",
        (f"{_ATTENTION}/query", f"{_ATTENTION}/gate"),
        "(n h) d",
        "d n h",
        joined="h",
    )
    + tuple(e for e in heads(f"{LAYER}.self_attn", _ATTENTION) if ".q_proj." not in e.theirs)
)
"""Query and gate of each head are side by side."""
QWEN3_5 = (
    *around(PRE, plus=1.0),
    *GATED_ATTENTION,
    *linear_entries(f"{_LINEAR}.in_proj_qkv", _QKV, f"{FLAT} d", "d k x", joined=FLAT),
    *linear_entries(f"{_LINEAR}.in_proj_z", f"{_DELTA}/gate", f"{FLAT} d", "d k x"),
    *linear_entries(f"{_LINEAR}.in_proj_b", f"{_DELTA}/rate", f"{FLAT} d", "d k x"),
    *linear_entries(f"{_LINEAR}.in_proj_a", f"{_DELTA}/decay", f"{FLAT} d", "d k x"),
    taps_entry(f"{_LINEAR}.conv1d", _QKV),
    head_entry(f"{_LINEAR}.dt_bias", f"{_DELTA}/decay_bias"),
    head_entry(f"{_LINEAR}.A_log", f"{_DELTA}/decay_rate"),
    *norm_entries(f"{_LINEAR}.norm", f"{_DELTA}/norm"),
    *linear_entries(f"{_LINEAR}.out_proj", f"{_DELTA}/out", f"d {FLAT}", "k x d"),
    *MLP,
)

# --- Qwen3-Next -----------------------------------------------------------------------------------


def qwen3_next_config(keys: Keys) -> ModelConfig:
    """Qwen3.5 with experts, and a shared one that a sigmoid of the token weighs."""
    width = keys.number("moe_intermediate_size", 512)
    experts = Experts(
        count=keys.number("num_experts", 512),
        active=keys.number("num_experts_per_tok", 10),
        width=width,
        shared=shared_experts(keys, "shared_expert_intermediate_size", width, 512),
        shared_gate=True,
        normalised=bool(keys.take("norm_topk_prob", True)),
        balance=0.001,
    )
    return sparse_steps(keys, qwen3_5_config(keys), experts=experts)


def qwen3_next_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `qwen3_next_config`."""
    return qwen3_5_json(c) | {
        "num_experts": c.experts.count,
        "num_experts_per_tok": c.experts.active,
        "moe_intermediate_size": c.expert_width,
        "shared_expert_intermediate_size": c.experts.shared * c.expert_width,
        "norm_topk_prob": c.experts.normalised,
        **sparse_steps_json(c),
    }


_TWO = (f"{_DELTA}/rate", f"{_DELTA}/decay")
QWEN3_NEXT = (
    *(e for e in QWEN3_5 if ".linear_attn.in_proj" not in e.theirs),
    *linear_entries(
        f"{_LINEAR}.in_proj_qkvz", (*_QKV, f"{_DELTA}/gate"), f"{FLAT} d", "d k x", joined="x"
    ),
    *linear_entries(f"{_LINEAR}.in_proj_ba", _TWO, f"{FLAT} d", "d k x", joined="x"),
    *GATED_EXPERTS,
)
"""What a key head has is side by side."""

# --- Bamba ----------------------------------------------------------------------------------------


_INFINITE = {"__float__": "Infinity"}
"""In a config.json."""


def bamba_config(keys: Keys) -> ModelConfig:
    """Mamba 2, and attention whose RoPE turns half of a head in the layers that are named."""
    keys.default(max_position_embeddings=262_144, partial_rotary_factor=0.5, rms_norm_eps=1e-5)
    for name in ("num_logits_to_keep", "z_loss_coefficient", "use_mamba_kernels"):
        keys.take(name, None)
    no_biases(keys, "mlp_bias")
    count, width = keys.number("mamba_n_heads", 128), keys.number("hidden_size")
    inner = keys.number("mamba_expand", 2) * width
    own = keys.take("mamba_d_head", "auto")
    head_width = inner // max(count, 1) if own == "auto" else own
    require(
        head_width * count == inner,
        f"{keys.where} has {count} heads of Mamba of {head_width}; they need to be {inner} wide in"
        " all.",
    )
    shortest, longest = keys.take("time_step_limit", None) or (0.0, None)
    options = Mamba2(
        count,
        head_width,
        groups=keys.number("mamba_n_groups", 1),
        state_width=keys.number("mamba_d_state", 256),
        taps=keys.number("mamba_d_conv", 4),
        convolution_bias=bool(keys.take("mamba_conv_bias", True)),
        bias=bool(keys.take("mamba_proj_bias", False)),
        shortest_step=float(shortest),
        longest_step=None if longest in (None, float("inf"), _INFINITE) else float(longest),
    )
    keys.take("mamba_chunk_size", None)
    attending = keys.take("attn_layer_indices", None) or []
    c = llama_config(keys)
    keys.same("attn_rotary_emb", None, c.rotary_dim)
    kinds = ["full_attention" if i in attending else "mamba" for i in range(c.num_layers)]
    return hybrid(keys, c, options, kinds, "mamba")


def bamba_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `bamba_config`."""
    own = c.recurrent
    require(isinstance(own, Mamba2), "Bamba's recurrent layers are Mamba 2.")
    longest = _INFINITE if own.longest_step is None else own.longest_step
    bounded = own.longest_step is not None or own.shortest_step > 0
    return without(llama_json(c), "head_dim") | {
        "partial_rotary_factor": c.rotary_dim / c.head_dim,
        "attn_layer_indices": [i for i, layer in enumerate(c.stack) if not layer.recurrent],
        "mamba_n_heads": own.heads,
        "mamba_d_head": own.head_width,
        "mamba_n_groups": own.groups,
        "mamba_d_state": own.state_width,
        "mamba_d_conv": own.taps,
        "mamba_expand": own.heads * own.head_width // c.width,
        "mamba_conv_bias": own.convolution_bias,
        "mamba_proj_bias": own.bias,
        **({"time_step_limit": [own.shortest_step, longest]} if bounded else {}),
    }


_MAMBA = f"{LAYER}.mamba"
_INSIDE = {name: f"layers/mamba/{name}" for name in ("gate", "value", "key", "query", "step")}
_CONVOLVED = tuple(_INSIDE[name] for name in ("value", "key", "query"))
BAMBA = (
    *(e for e in around({"attention_norm": PRE["attention_norm"]}) if "model.norm" not in e.theirs),
    *norm_entries("model.final_layernorm", "norm"),
    *norm_entries(f"{LAYER}.pre_ff_layernorm", "layers/mlp_norm"),
    *heads(f"{LAYER}.self_attn", _ATTENTION),
    *linear_entries(
        f"{_MAMBA}.in_proj", tuple(_INSIDE.values()), f"{FLAT} d", "d k x", joined=FLAT
    ),
    taps_entry(f"{_MAMBA}.conv1d", _CONVOLVED),
    Entry(
        f"{_MAMBA}.conv1d.bias",
        tuple(f"{path}_convolution/bias" for path in _CONVOLVED),
        FLAT,
        "k x",
        joined=FLAT,
    ),
    head_entry(f"{_MAMBA}.dt_bias", "layers/mamba/decay_bias"),
    head_entry(f"{_MAMBA}.A_log", "layers/mamba/decay_rate"),
    head_entry(f"{_MAMBA}.D", "layers/mamba/skip"),
    head_entry(f"{_MAMBA}.norm.weight", "layers/mamba/norm/scale"),
    *linear_entries(f"{_MAMBA}.out_proj", "layers/mamba/out", f"d {FLAT}", "k x d"),
    *mlp(f"{LAYER}.feed_forward", "layers/mlp"),
)

# --- LFM2 -----------------------------------------------------------------------------------------


def lfm2_config(keys: Keys) -> ModelConfig:
    """Short convolutions, and attention with normalised heads in the layers that are named."""
    keys.default(rope_theta=1e6, max_position_embeddings=128_000)
    no_biases(keys)
    feed_forward = keys.number("block_ff_dim", keys.number("intermediate_size", 12_288))
    multiplier = keys.take("block_ffn_dim_multiplier", 1.0)
    multiple = keys.number("block_multiple_of", 256)
    if keys.take("block_auto_adjust_ff_dim", True):
        feed_forward = int(2 * feed_forward / 3)
        if multiplier is not None:
            feed_forward = -(-int(multiplier * feed_forward) // multiple) * multiple
    tied = keys.take("tie_embedding", keys.take("tie_word_embeddings", True))
    keys.data = {
        **keys.data,
        "intermediate_size": feed_forward,
        "rms_norm_eps": keys.take("norm_eps", 1e-5),
        "tie_word_embeddings": tied,
    }
    keys.same("block_norm_eps", None, keys.data["rms_norm_eps"])
    for name in ("block_dim", "block_mlp_init_scale", "block_out_init_scale", "block_use_swiglu"):
        keys.take(name, None)
    for name in ("block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init"):
        keys.take(name, None)
    options = ShortConvolution(
        keys.number("conv_L_cache", 3), bias=bool(keys.take("conv_bias", False))
    )
    c = llama_config(keys)
    attending = keys.take("full_attn_idxs", None)
    attending = range(c.num_layers) if attending is None else attending
    kinds = ["full_attention" if i in attending else "conv" for i in range(c.num_layers)]
    kinds = keys.take("layer_types", None) or kinds
    c = hybrid(keys, c, options, kinds, "conv")
    return patterned(c, c.pattern, qk_norm=True)


def lfm2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `lfm2_config`."""
    own = c.recurrent if isinstance(c.recurrent, ShortConvolution) else ShortConvolution()
    data = without(llama_json(c), "head_dim", "rms_norm_eps", "attention_bias", "hidden_act")
    return data | {
        "norm_eps": c.norm_epsilon,
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": own.taps,
        "conv_bias": own.bias,
        "layer_types": kinds_json(c, "conv"),
    }


_CONV, _OURS = f"{LAYER}.conv", "layers/convolution"
LFM2 = (
    Entry("model.embed_tokens.weight", ("embedding/embedding",), "v d", "v d"),
    *norm_entries(f"{LAYER}.operator_norm", "layers/attention_norm"),
    *norm_entries(f"{LAYER}.ffn_norm", "layers/mlp_norm"),
    *norm_entries("model.embedding_norm", "norm"),
    *heads(f"{LAYER}.self_attn", _ATTENTION, out="out_proj"),
    *norm_entries(f"{LAYER}.self_attn.q_layernorm", f"{_ATTENTION}/query_norm"),
    *norm_entries(f"{LAYER}.self_attn.k_layernorm", f"{_ATTENTION}/key_norm"),
    *linear_entries(
        f"{_CONV}.in_proj",
        (f"{_OURS}/before", f"{_OURS}/after", f"{_OURS}/value"),
        "f d",
        "d f",
        joined="f",
    ),
    Entry(f"{_CONV}.conv.weight", (f"{_OURS}/convolution/taps",), "f () w", "f w"),
    Entry(f"{_CONV}.conv.bias", (f"{_OURS}/convolution/bias",), "f", "f"),
    *linear_entries(f"{_CONV}.out_proj", f"{_OURS}/out", "d f", "f d"),
    *mlp(f"{LAYER}.feed_forward", "layers/mlp", "w1", "w3", "w2"),
    Entry("lm_head.weight", ("head/kernel",), "v d", "d v"),
)


RECURRENT = {
    "bamba": Family("BambaForCausalLM", bamba_config, bamba_json, BAMBA),
    "lfm2": Family("Lfm2ForCausalLM", lfm2_config, lfm2_json, LFM2),
    "qwen3_5_text": Family(
        "Qwen3_5ForCausalLM",
        qwen3_5_config,
        qwen3_5_json,
        QWEN3_5,
        unused=(r"mtp\..*", r"(model\.)?visual\..*"),
    ),
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        qwen3_next_config,
        qwen3_next_json,
        QWEN3_NEXT,
        unused=(r"mtp\..*",),
    ),
}
"""By `model_type`."""
