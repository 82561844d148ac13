"""Every model variant, shrunk. A row here buys all laws of `test_laws.py`.

Rows differ from one of two models in as little as shows what they are for, so that most of what
they compute has shapes that another row has compiled.
"""

from __future__ import annotations

import dataclasses

from gptjax.model import (
    DeltaNet,
    Experts,
    Latent,
    Layer,
    LinearScaling,
    Llama3Scaling,
    Mamba2,
    ModelConfig,
    NTKScaling,
    QueryGrowth,
    ShortConvolution,
    Shortcuts,
    YarnScaling,
    gpt2,
    llama,
)

SHRUNK = {
    "vocab_size": 61,
    "context": 32,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward": 64,
}
"""61 is divided by no mesh axis; llama's 64 is."""

PLAIN = ModelConfig(**SHRUNK)
ROPE = llama(**SHRUNK | {"vocab_size": 64, "num_kv_heads": None})


def _plain(**changes) -> ModelConfig:
    return dataclasses.replace(PLAIN, **changes)


def _rope(**changes) -> ModelConfig:
    return dataclasses.replace(ROPE, **changes)


RECURRENT = Layer(recurrent=True)
LOCAL, GLOBAL = Layer("window", 5, rope_base=100.0, rope_scaled=False), Layer()

VARIANTS: dict[str, ModelConfig] = {
    "gpt2": gpt2(**SHRUNK),
    "llama": ROPE,
    # heads
    "gqa": _rope(num_kv_heads=2),
    "mqa": _plain(num_kv_heads=1),
    "wide_heads": _rope(head_width=12, num_kv_heads=2),
    "qk_norm": _rope(qk_norm=True),
    "qk_norm_joint": _rope(qk_norm=True, qk_norm_joint=True, num_kv_heads=2),
    "capped": _rope(attention_cap=2.0, logit_cap=5.0, attention_scale=0.5),
    "attention_sink": _rope(attention_sink=True, num_kv_heads=2),
    "qkv_bias": _rope(qkv_bias=True),
    "qkv_clip": _rope(qkv_clip=0.1, num_kv_heads=2),
    # positions
    "sinusoidal": _plain(positions="sinusoidal", scaled_embedding=True),
    "no_positions": _plain(positions="none"),
    "alibi": _plain(positions="alibi"),
    "t5": _plain(positions="t5", t5_buckets=8, t5_distance=12, attention_scale=1.0),
    "rope_in_part": _rope(rope_share=0.5),
    "rope_linear": _rope(rope_scaling=LinearScaling(4.0)),
    "rope_ntk": _rope(rope_scaling=NTKScaling(4.0)),
    "rope_yarn": _rope(rope_scaling=YarnScaling(4.0, original=16)),
    "rope_llama3": _rope(rope_scaling=Llama3Scaling(4.0, original=16)),
    # norms and blocks
    "rmsnorm_with_bias": _plain(norm="rmsnorm"),
    "post_norm": _plain(norm_placement="post"),
    "sandwich": _rope(norm_placement="sandwich"),
    "reordered": _rope(norm_placement="reordered", qk_norm=True, qk_norm_joint=True),
    "parallel": _plain(parallel="shared"),
    "parallel_separate": _plain(parallel="separate", layers="scan"),
    # MLPs
    "relu": _plain(activation="relu"),
    "relu2": _plain(activation="relu2"),
    "gelu_exact": _plain(activation="gelu_exact"),
    "silu": _plain(activation="silu"),
    "geglu": _plain(activation="geglu"),
    # what layers see
    "window": _rope(pattern=(Layer("window", 5),)),
    "window_with_sinks": _rope(pattern=(Layer("window", 4, sinks=2),)),
    "chunks_and_all_without_positions": _rope(pattern=(Layer("chunk", 4), Layer(positions="none"))),
    "strided": _plain(pattern=(Layer("strided", 4),)),
    "fixed": _plain(pattern=(Layer("fixed", 4, summary=2),)),
    "local_and_global": _rope(
        num_layers=6,
        first=(GLOBAL,),
        pattern=(LOCAL, LOCAL, GLOBAL),
        layers="scan",
        rope_scaling=LinearScaling(8.0),
    ),
    # experts
    "experts": _rope(experts=Experts(count=4, active=2, router_z=1e-3)),
    "experts_every_second": _rope(
        num_layers=4,
        layers="scan",
        pattern=(Layer(dense=True), Layer()),
        experts=Experts(count=4, active=1, normalised=False),
    ),
    "experts_with_places_for_all": _plain(experts=Experts(count=4, active=2, capacity=2.0)),
    "experts_by_group": _rope(
        experts=Experts(
            count=8,
            active=2,
            width=16,
            shared=2,
            scores="sigmoid",
            scale=2.5,
            groups=4,
            active_groups=2,
            bias_step=0.01,
        )
    ),
    # latents
    "latent": _rope(latent=Latent(rank=8, rope_width=4, value_width=12, norm_epsilon=1e-4)),
    "deepseek": _rope(
        num_layers=3,
        latent=Latent(rank=8, query_rank=12, rope_width=4),
        first=(Layer(dense=True),),
        experts=Experts(count=4, active=2, width=16, shared=1, scores="sigmoid", bias_step=0.01),
        rope_scaling=YarnScaling(4.0, original=16, magnitude=1.0),
    ),
    # recurrent layers
    "delta": _rope(
        positions="none", recurrent=DeltaNet(4, key_width=8, chunk=4), pattern=(RECURRENT,)
    ),
    "delta_and_attention": _rope(
        recurrent=DeltaNet(2, 4, key_width=8, value_width=6, chunk=8), pattern=(RECURRENT, GLOBAL)
    ),
    "three_to_one": _rope(
        num_layers=4,
        layers="scan",
        recurrent=DeltaNet(4, key_width=8, chunk=8),
        pattern=(RECURRENT, RECURRENT, RECURRENT, GLOBAL),
        attention_gate=True,
        qk_norm=True,
        num_kv_heads=2,
        rope_share=0.5,
    ),
    "mamba": _rope(
        positions="none",
        recurrent=Mamba2(4, head_width=8, groups=2, state_width=6, bias=True, chunk=4),
        pattern=(RECURRENT,),
    ),
    "mamba_and_attention": _plain(
        recurrent=Mamba2(4, head_width=8, state_width=6, longest_step=1.0, chunk=8),
        pattern=(RECURRENT, GLOBAL),
    ),
    "convolution_and_attention": _rope(
        num_layers=4,
        layers="scan",
        recurrent=ShortConvolution(),
        pattern=(RECURRENT, GLOBAL),
        qk_norm=True,
    ),
    "experts_and_recurrent": _rope(
        recurrent=ShortConvolution(2, bias=True),
        first=(Layer(dense=True), RECURRENT),
        num_layers=3,
        experts=Experts(count=4, active=2),
    ),
    # encoders
    "encoder": _plain(
        causal=False,
        norm_placement="post",
        embedding_norm=True,
        head_transform=True,
        logit_bias=True,
        activation="gelu_exact",
    ),
    "embedding_projected": _plain(embedding_width=24, norm_placement="post", activation="relu"),
    "encoder_embedding_projected": _plain(
        causal=False,
        embedding_width=24,
        embedding_projection="stream",
        norm_placement="post",
        embedding_norm=True,
        head_transform=True,
        logit_bias=True,
    ),
    "encoder_with_windows": _rope(
        causal=False, pattern=(Layer("window", 4), Layer()), num_kv_heads=2
    ),
    "encoder_with_alibi": _plain(
        causal=False, positions="alibi", pattern=(Layer("chunk", 8), Layer())
    ),
    "beside_an_encoder": _plain(
        encoder_layers=2,
        norm_placement="post",
        positions="sinusoidal",
        scaled_embedding=True,
        activation="relu",
        qkv_bias=False,
    ),
    "beside_an_encoder_t5": _plain(
        encoder_layers=1,
        positions="t5",
        t5_buckets=8,
        t5_distance=12,
        norm="rmsnorm",
        bias=False,
        activation="relu",
        attention_scale=1.0,
        logit_scale=32**-0.5,
    ),
    "beside_an_encoder_learned": _plain(
        encoder_layers=1, embedding_norm=True, logit_bias=True, scaled_embedding=True
    ),
    "beside_an_encoder_scanned": _rope(encoder_layers=2, num_kv_heads=2, layers="scan"),
    # prefixes, further tokens
    "prefix_lm": _rope(prefix_lm=True, num_kv_heads=2),
    "ahead": _plain(ahead=2),
    "ahead_chained": _rope(
        num_layers=3,
        ahead=2,
        ahead_chained=True,
        first=(Layer(dense=True),),
        experts=Experts(count=4, active=2, width=16, shared=1, scores="sigmoid", bias_step=0.01),
    ),
    # what one family has
    "gpt_oss": _rope(
        num_layers=4,
        num_kv_heads=2,
        attention_sink=True,
        qkv_bias=True,
        out_bias=True,
        activation="swiglu_clamped",
        pattern=(Layer("window", 5), Layer()),
        experts=Experts(count=4, active=2, biases=True),
    ),
    "nanochat": _rope(
        activation="relu2",
        norm_scale=False,
        embedding_norm=True,
        qk_norm=True,
        qk_norm_scale=False,
        qk_norm_after_rope=True,
        logit_cap=15.0,
    ),
    "granite": _rope(
        embedding_scale=12.0, residual_scale=0.22, attention_scale=0.3, logit_scale=0.25
    ),
    "ministral3": _rope(
        num_kv_heads=2,
        query_growth=QueryGrowth(span=4, strength=0.5),
        rope_scaling=YarnScaling(4.0, original=4, magnitude=1.0),
    ),
    "apertus": _rope(activation="xielu", qk_norm=True),
    "qwen2_moe": _rope(
        qkv_bias=True,
        experts=Experts(count=4, active=2, width=32, shared=2, shared_gate=True, normalised=False),
    ),
    "llama4": _rope(
        num_layers=4,
        num_kv_heads=2,
        pattern=(Layer("chunk", 4, dense=True), Layer(positions="none")),
        qk_norm=True,
        qk_norm_scale=False,
        qk_norm_after_rope=True,
        query_growth=QueryGrowth(span=3, strength=0.5, first=1, unrotated_only=True),
        experts=Experts(
            count=4,
            active=1,
            width=32,
            shared=1,
            scores="sigmoid",
            normalised=False,
            weighs="input",
        ),
    ),
    "cohere2": _rope(
        parallel="shared",
        norm="layernorm",
        pattern=(Layer("window", 5), Layer(positions="none")),
        tied=True,
        logit_scale=0.25,
    ),
    # shortcuts from the embedded tokens
    "shortcut_stream": _plain(shortcuts=Shortcuts()),
    "shortcut_first_values": _rope(
        num_kv_heads=2, qkv_bias=True, shortcuts=Shortcuts(values="first"), layers="scan"
    ),
    "shortcut_table": _rope(
        num_kv_heads=2, shortcuts=Shortcuts(stream=False, values="table"), qkv_clip=0.5
    ),
    # outputs, initial weights, ways to run
    "untied": _plain(tied=False),
    "zero_residual": _rope(residual_init="zero"),
    "scanned": _rope(layers="scan"),
    "dots_scanned": _plain(layers="scan", remat="dots"),
    "full_scanned": _plain(layers="scan", remat="full"),
    "dots_unrolled": _plain(layers="unroll", remat="dots"),
    "full_unrolled": _plain(layers="unroll", remat="full"),
    "causal_blocks": _plain(attention="causal_blocks"),
    "blockwise": _rope(attention="blockwise"),
    "bfloat16": _rope(compute="bfloat16", num_kv_heads=2),
    "one_layer": _plain(num_layers=1),
}

FEW = (
    *("gpt2", "llama", "qk_norm_joint", "alibi", "t5", "post_norm"),
    *(
        "parallel_separate",
        "local_and_global",
        "experts_by_group",
        "causal_blocks",
        "encoder",
        "beside_an_encoder_t5",
        "delta_and_attention",
        "shortcut_first_values",
        "bfloat16",
    ),
)
"""Rows whose laws run by default, one of each way to compute; those of all rows run with `-m
slow`."""
