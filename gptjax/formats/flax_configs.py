"""config.json of decoders that `transformers` had Flax classes of until its version 5, and of MPT
and Falcon, as our config and back. Encoders are in `flax_encoders`; those with an encoder beside
the decoder are in `bart`."""

from __future__ import annotations

from typing import Any

from gptjax.core.config import require
from gptjax.formats.configs import patterned, window_of
from gptjax.formats.keys import OURS, Keys, activation, rope, rope_json
from gptjax.model import Layer, ModelConfig


def gptj_config(keys: Keys) -> ModelConfig:
    """Translates GPT-J's: RoPE in a part of each head, attention and MLP side by side."""
    width, num_heads = keys.number("n_embd"), keys.number("n_head")
    keys.take("rotary", True)  # of the first files; their RoPE is not optional
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("n_positions", 2048),
        width=width,
        num_layers=keys.number("n_layer"),
        num_heads=num_heads,
        feed_forward=keys.number("n_inner", None),
        activation=activation(keys, "activation_function", "gelu_new"),
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-5)),
        positions="rope",
        rope_share=keys.number("rotary_dim", 64) * num_heads / width,
        parallel="shared",
        qkv_bias=False,
        out_bias=False,
        tied=bool(keys.take("tie_word_embeddings", False)),
        logit_bias=True,
    )


def gptj_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gptj_config`."""
    return {
        "vocab_size": c.vocabulary,
        "n_positions": c.context,
        "n_embd": c.width,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": c.mlp_dim,
        "rotary_dim": c.rotary_dim,
        "activation_function": OURS.get(c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied,
    }


def gpt_neo_config(keys: Keys) -> ModelConfig:
    """Translates GPT-Neo's: unscaled attention, windows in every second layer."""
    layers, local = keys.number("num_layers"), Layer("window", keys.number("window_size", 256))
    repeated = keys.take("attention_types", None) or [[["global", "local"], layers // 2]]
    kinds = keys.take("attention_layers", None) or [
        kind for group, count in repeated for _ in range(count) for kind in group
    ]
    known = {"global": Layer(), "local": local}
    require(
        len(kinds) == layers and all(kind in known for kind in kinds),
        f"{keys.where} has attention_types {str(repeated)[:80]}; they need to name {layers} layers,"
        " each global or local.",
    )
    c = ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("max_position_embeddings", 2048),
        width=keys.number("hidden_size"),
        num_layers=layers,
        num_heads=keys.number("num_heads"),
        feed_forward=keys.number("intermediate_size", None),
        activation=activation(keys, "activation_function", "gelu_new"),
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-5)),
        attention_scale=1.0,
        qkv_bias=False,
        tied=bool(keys.take("tie_word_embeddings", True)),
    )
    return patterned(c, [known[kind] for kind in kinds])


def gpt_neo_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gpt_neo_config`."""
    kinds = ["global" if layer.sees == "all" else "local" for layer in c.stack]
    return {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_layers": c.num_layers,
        "num_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "window_size": window_of(c) or 256,
        "attention_types": [[kinds, 1]],
        "activation_function": OURS.get(c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied,
    }


def opt_config(keys: Keys) -> ModelConfig:
    """Translates OPT's. Norms come first, in the one of 350M last; its embeddings are narrower."""
    width, bias = keys.number("hidden_size"), bool(keys.take("enable_bias", True))
    embedded = keys.number("word_embed_proj_dim", None)
    before = bool(keys.take("do_layer_norm_before", True))
    keys.same("_remove_final_layer_norm", False, not before)
    keys.same("layer_norm_elementwise_affine", True)
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("max_position_embeddings", 2048),
        width=width,
        num_layers=keys.number("num_hidden_layers"),
        num_heads=keys.number("num_attention_heads"),
        feed_forward=keys.number("ffn_dim"),
        activation=activation(keys, "activation_function", "relu"),
        norm_placement="pre" if before else "post",
        qkv_bias=None if bias else False,
        out_bias=None if bias else False,
        mlp_bias=None if bias else False,
        embedding_width=None if embedded in (None, width) else embedded,
        tied=bool(keys.take("tie_word_embeddings", True)),
    )


def opt_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `opt_config`."""
    return {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "ffn_dim": c.mlp_dim,
        "activation_function": OURS.get(c.activation),
        "do_layer_norm_before": c.norm_placement == "pre",
        "enable_bias": c.out_bias_enabled,
        "word_embed_proj_dim": c.embedding_dim,
        "tie_word_embeddings": c.tied,
    }


def bloom_config(keys: Keys) -> ModelConfig:
    """Translates BLOOM's: ALiBi, and a norm behind the embeddings. Its files do not say up to which
    length it was trained; without `seq_length` that is 2,048 here."""
    width = keys.number("hidden_size", keys.number("n_embed", None))
    keys.same("n_embed", width)
    keys.same("apply_residual_connection_post_layernorm", False)
    keys.take("slow_but_exact", None)  # an order of summation
    for name in ("skip_bias_add", "skip_bias_add_qkv", "attention_softmax_in_fp32"):
        keys.take(name, None)  # of the program that trained it
    for name in ("masked_softmax_fusion", "bias_dropout_fusion", "unk_token_id", "offset_alibi"):
        keys.take(name, None)
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("seq_length", 2048),
        width=width,
        num_layers=keys.number("n_layer", keys.number("num_hidden_layers", None)),
        num_heads=keys.number("n_head", keys.number("num_attention_heads", None)),
        activation="gelu",
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-5)),
        positions="alibi",
        embedding_norm=True,
        tied=bool(keys.take("tie_word_embeddings", True)),
    )


def bloom_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `bloom_config`."""
    return {
        "vocab_size": c.vocabulary,
        "seq_length": c.context,
        "hidden_size": c.width,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied,
    }


def mpt_config(keys: Keys) -> ModelConfig:
    """Translates MPT's with ALiBi."""
    inner = Keys(keys.take("attn_config", None) or {}, f"attn_config in {keys.where}")
    allowed = {"attn_type": ("multihead_attention",), "clip_qkv": (None,), "alibi_bias_max": (8,)}
    allowed |= {"alibi": (True,), "prefix_lm": (False,), "qk_ln": (False,)}
    allowed |= {"attn_uses_sequence_id": (False,)}
    for name, values in allowed.items():
        inner.same(name, *values)
    scale = inner.take("softmax_scale", None)
    inner.take("attn_impl", None)
    inner.take("attn_pdrop", None)
    inner.finish()
    outer = {"no_bias": (True,), "logit_scale": (None,), "embedding_fraction": (1.0,)}
    outer |= {"norm_type": ("low_precision_layernorm", "layernorm"), "expansion_ratio": (4,)}
    for name, values in outer.items():
        keys.same(name, *values)
    for name in ("learned_pos_emb", "init_device", "init_config", "verbose"):
        keys.take(name, None)
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("max_seq_len", 2048),
        width=keys.number("d_model"),
        num_layers=keys.number("n_layers"),
        num_heads=keys.number("n_heads"),
        activation="gelu_exact",
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-5)),
        positions="alibi",
        bias=False,
        attention_scale=scale,
        tied=bool(keys.take("tie_word_embeddings", True)),
    )


def mpt_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `mpt_config`."""
    return {
        "vocab_size": c.vocabulary,
        "max_seq_len": c.context,
        "d_model": c.width,
        "n_layers": c.num_layers,
        "n_heads": c.num_heads,
        "layer_norm_epsilon": c.norm_epsilon,
        "attn_config": {"alibi": True, "softmax_scale": c.attention_scale},
        "tie_word_embeddings": c.tied,
    }


def falcon_config(keys: Keys) -> ModelConfig:
    """Translates Falcon's with RoPE and one head of keys and values, or one for each query, as
    Falcon-7B. The larger ones group their tensors otherwise."""
    context = keys.number("max_position_embeddings", 2048)
    keys.same("alibi", False)
    keys.same("new_decoder_architecture", False)
    keys.same("num_ln_in_parallel_attn", None, 1)
    single, parallel = keys.take("multi_query", True), keys.take("parallel_attn", True)
    num_heads = keys.number("num_attention_heads", keys.number("n_head", None))
    keys.take("num_kv_heads", None)  # which counts only in the larger ones
    bias = bool(keys.take("bias", False))
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=context,
        width=keys.number("hidden_size"),
        num_layers=keys.number("num_hidden_layers", keys.number("n_layer", None)),
        num_heads=num_heads,
        num_kv_heads=1 if single else None,
        feed_forward=keys.number("ffn_hidden_size", None),
        activation=activation(keys, "activation", "gelu"),
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-5)),
        positions="rope",
        parallel="shared" if parallel else "none",
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tied=bool(keys.take("tie_word_embeddings", True)),
        **rope(keys, context),
    )


def falcon_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `falcon_config`."""
    return {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "multi_query": c.kv_heads == 1,
        "ffn_hidden_size": c.mlp_dim,
        "activation": OURS.get(c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "parallel_attn": c.parallel == "shared",
        "bias": c.out_bias_enabled,
        "alibi": False,
        "new_decoder_architecture": False,
        "tie_word_embeddings": c.tied,
        **rope_json(c),
    }
