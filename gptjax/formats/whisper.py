"""Whisper: an encoder of log-mel frames beside a decoder. Its config.json both ways, its tensors,
and where else its weights lie."""

from __future__ import annotations

from typing import Any

from gptjax.formats.families import heads, linear_entries, mlp, norm_entries
from gptjax.formats.family import Family
from gptjax.formats.flax_tables import position_table, token_table
from gptjax.formats.keys import OURS, Keys, activation
from gptjax.formats.layout import Entry
from gptjax.model import FrameEncoder, ModelConfig

AUGMENTATION = (
    "apply_spec_augment",
    "mask_time_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_feature_prob",
    "mask_feature_length",
    "mask_feature_min_masks",
)
"""Keys of the frames that `transformers` hides while it trains."""


def whisper_config(keys: Keys) -> ModelConfig:
    """Translates Whisper's config.json. Its encoder's positions are sinusoids, which its files hold
    as a table."""
    for name, value in (
        ("scale_embedding", False),
        ("tie_word_embeddings", True),
        ("use_weighted_layer_sum", False),
    ):
        keys.same(name, value)
    for name in (*AUGMENTATION, "classifier_proj_size", "median_filter_width", "num_hidden_layers"):
        keys.take(name, None)
    bend, width = activation(keys, "activation_function", "gelu"), keys.number("d_model")
    frames = FrameEncoder(
        channels=keys.number("num_mel_bins", 80),
        stem="convolutions",
        context=keys.number("max_source_positions", 1500),
        width=width,
        num_layers=keys.number("encoder_layers"),
        num_heads=keys.number("encoder_attention_heads"),
        feed_forward=keys.number("encoder_ffn_dim"),
        positions="learned",
        activation=bend,
        key_bias=False,
        projected=False,
    )
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("max_target_positions", 448),
        width=width,
        num_layers=keys.number("decoder_layers"),
        frames=frames,
        num_heads=keys.number("decoder_attention_heads"),
        feed_forward=keys.number("decoder_ffn_dim"),
        activation=bend,
        key_bias=False,
    )


def whisper_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `whisper_config`."""
    frames = c.frame_encoder
    halves = (("encoder", frames), ("decoder", c))
    return {
        **{f"{half}_layers": own.num_layers for half, own in halves},
        **{f"{half}_attention_heads": own.num_heads for half, own in halves},
        **{f"{half}_ffn_dim": own.mlp_dim for half, own in halves},
        "vocab_size": c.vocabulary,
        "num_mel_bins": c.frames.channels,
        "d_model": c.width,
        "max_source_positions": frames.context,
        "max_target_positions": c.context,
        "activation_function": OURS[c.activation],
        "scale_embedding": False,
        "tie_word_embeddings": c.tied,
        "is_encoder_decoder": True,
    }


def _half(theirs: str, ours: str) -> tuple[Entry, ...]:
    """The encoder or the decoder."""
    layer, where = f"model.{theirs}.layers.{{i}}", f"{ours}layers"
    return (
        position_table(f"model.{theirs}.embed_positions.weight", ours),
        *heads(f"{layer}.self_attn", f"{where}/attention", out="out_proj"),
        *norm_entries(f"{layer}.self_attn_layer_norm", f"{where}/attention_norm"),
        *mlp(layer, f"{where}/mlp", up="fc1", down="fc2"),
        *norm_entries(f"{layer}.final_layer_norm", f"{where}/mlp_norm"),
        *norm_entries(f"model.{theirs}.layer_norm", f"{ours}norm"),
    )


_CROSS = "model.decoder.layers.{i}.encoder_attn"
WHISPER = Family(
    "WhisperForConditionalGeneration",
    whisper_config,
    whisper_json,
    (
        token_table("model.decoder.embed_tokens.weight"),
        *linear_entries("model.encoder.conv1", "frames/input", "d c t", "t c d"),
        *linear_entries("model.encoder.conv2", "frames/strided", "d c t", "t c d"),
        *_half("encoder", "frames/"),
        *_half("decoder", ""),
        *heads(_CROSS, "layers/cross", out="out_proj"),
        *norm_entries(f"{_CROSS}_layer_norm", "layers/cross_norm"),
        Entry("proj_out.weight", ("head/kernel",), "v d", "d v"),
    ),
    output="proj_out.weight",
)
