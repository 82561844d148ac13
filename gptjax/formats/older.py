"""config.json of families older than Llama, as our config and back: GPT-2, GPT-NeoX, BERT, T5."""

from __future__ import annotations

from typing import Any

from gptjax.core.config import require
from gptjax.formats.keys import OURS, Keys, activation, rope, rope_json
from gptjax.model import ModelConfig


def gpt2_config(keys: Keys) -> ModelConfig:
    """Translates GPT-2's."""
    for key, value in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        keys.same(key, value)
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("n_positions", 1024),
        width=keys.number("n_embd"),
        num_layers=keys.number("n_layer"),
        num_heads=keys.number("n_head"),
        feed_forward=keys.number("n_inner", None),
        activation=activation(keys, "activation_function", "gelu_new"),
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-5)),
        tied=bool(keys.take("tie_word_embeddings", True)),
    )


def gpt2_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gpt2_config`."""
    shape = {
        "vocab_size": c.vocabulary,
        "n_positions": c.context,
        "n_embd": c.width,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": c.mlp_dim,
    }
    return shape | {
        "activation_function": OURS.get(c.activation),
        "layer_norm_epsilon": c.norm_epsilon,
        "tie_word_embeddings": c.tied,
    }


def gpt_neox_config(keys: Keys) -> ModelConfig:
    """Translates GPT-NeoX's and Pythia's."""
    context = keys.number("max_position_embeddings", 2048)
    parallel = keys.take("use_parallel_residual", True)
    theta, share = keys.take("rotary_emb_base", 10_000), keys.take("rotary_pct", 0.25)
    keys.same("attention_bias", True)
    keys.data = {"partial_rotary_factor": share, **keys.data}
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=context,
        width=keys.number("hidden_size"),
        num_layers=keys.number("num_hidden_layers"),
        num_heads=keys.number("num_attention_heads"),
        feed_forward=keys.number("intermediate_size"),
        activation=activation(keys, "hidden_act", "gelu"),
        norm_epsilon=float(keys.take("layer_norm_eps", 1e-5)),
        tied=bool(keys.take("tie_word_embeddings", False)),
        parallel="separate" if parallel else "none",
        positions="rope",
        **rope(keys, context, float(theta)),
    )


def gpt_neox_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `gpt_neox_config`."""
    rope_data = rope_json(c)
    return {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "hidden_act": OURS.get(c.activation),
        "layer_norm_eps": c.norm_epsilon,
        "tie_word_embeddings": c.tied,
        "use_parallel_residual": c.parallel == "separate",
        "rotary_emb_base": rope_data["rope_theta"],
        "rotary_pct": c.rotary_dim / c.head_dim,
        "rope_scaling": rope_data["rope_scaling"],
    }


ENCODER = {"norm_placement": "post", "causal": False, "embedding_norm": True}
"""What all encoders like BERT have in ours."""


def like_bert(keys: Keys, architecture: str, **more: Any) -> ModelConfig:
    """Translates what BERT, RoBERTa and ELECTRA have in common.

    Args:
      architecture: the class that ends with its hidden states (sentence embeddings such as MiniLM).
      more: the fields that each translates in its own way.
    """
    keys.number("type_vocab_size", 2)
    fills = architecture not in (keys.take("architectures", None) or ())
    for key, value in (
        ("is_decoder", False),
        ("add_cross_attention", False),
        ("position_embedding_type", "absolute"),
        ("tie_word_embeddings", True),
    ):
        keys.same(key, value)
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        width=keys.number("hidden_size"),
        num_layers=keys.number("num_hidden_layers"),
        num_heads=keys.number("num_attention_heads"),
        feed_forward=keys.number("intermediate_size"),
        norm_epsilon=float(keys.take("layer_norm_eps", 1e-12)),
        head_transform=fills,
        logit_bias=fills,
        **ENCODER,
        **more,
    )


def like_bert_json(c: ModelConfig) -> dict[str, Any]:
    """What the inverse of `like_bert` has of all three."""
    return {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "hidden_act": OURS.get(c.activation),
        "layer_norm_eps": c.norm_epsilon,
    }


def bert_config(keys: Keys) -> ModelConfig:
    """Translates BERT's. The first of its two sentence embeddings is part of our positions."""
    return like_bert(
        keys,
        "BertModel",
        context=keys.number("max_position_embeddings", 512),
        activation=activation(keys, "hidden_act", "gelu"),
    )


def bert_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `bert_config`."""
    return like_bert_json(c) | {
        "type_vocab_size": 2,
        "architectures": ["BertForMaskedLM" if c.head_transform else "BertModel"],
    }


MLPS = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
"""T5's to ours."""


def t5_config(keys: Keys) -> ModelConfig:
    """Translates T5's, whose tied output is scaled, and T5 1.1's, whose own output is not."""
    layers, width = keys.number("num_layers"), keys.number("d_model")
    kind = keys.take("feed_forward_proj", "relu")
    require(
        kind in MLPS,
        f"{keys.where} has 'feed_forward_proj': {kind!r}; this program can read {', '.join(MLPS)}.",
    )
    for key in ("dense_act_fn", "is_gated_act"):  # feed_forward_proj implies them
        keys.take(key, None)
    keys.same("is_decoder", False)
    tied = bool(keys.take("tie_word_embeddings", True))
    scaled = bool(keys.take("scale_decoder_outputs", tied))
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("n_positions", 512),
        width=width,
        num_layers=keys.number("num_decoder_layers", None) or layers,
        encoder_layers=layers,
        num_heads=keys.number("num_heads"),
        head_width=keys.number("d_kv"),
        feed_forward=keys.number("d_ff"),
        activation=MLPS[kind],  # type: ignore[arg-type]
        positions="t5",
        t5_buckets=keys.number("relative_attention_num_buckets", 32),
        t5_distance=keys.number("relative_attention_max_distance", 128),
        norm="rmsnorm",
        norm_epsilon=float(keys.take("layer_norm_epsilon", 1e-6)),
        bias=False,
        attention_scale=1.0,
        tied=tied,
        logit_scale=width**-0.5 if scaled else 1.0,
    )


def t5_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `t5_config`."""
    return {
        "vocab_size": c.vocabulary,
        "n_positions": c.context,
        "d_model": c.width,
        "d_kv": c.head_dim,
        "d_ff": c.mlp_dim,
        "num_layers": c.encoder_layers,
        "num_decoder_layers": c.num_layers,
        "num_heads": c.num_heads,
        "relative_attention_num_buckets": c.t5_buckets,
        "relative_attention_max_distance": c.t5_distance,
        "layer_norm_epsilon": c.norm_epsilon,
        "feed_forward_proj": {ours: theirs for theirs, ours in MLPS.items()}.get(c.activation),
        "tie_word_embeddings": c.tied,
        "scale_decoder_outputs": c.logit_scale != 1.0,
        "is_encoder_decoder": True,
    }


def mt5_config(keys: Keys) -> ModelConfig:
    """Translates mT5's: T5 1.1, whose output is never scaled."""
    more = {"feed_forward_proj": "gated-gelu", **keys.data, "scale_decoder_outputs": False}
    keys.data = more
    return t5_config(keys)
