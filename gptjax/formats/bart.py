"""config.json of BART and the models like it, as our config and back: mBART, Pegasus, Marian. Each
is an encoder beside a decoder; they differ in where norms stand and how positions are made."""

from __future__ import annotations

from typing import Any

from gptjax.core.config import require
from gptjax.formats.keys import OURS, Keys, activation
from gptjax.model import ModelConfig

LEGACY = {
    "BART": {"normalize_before": False, "add_final_layer_norm": False},
    "mBART": {"normalize_before": True, "add_final_layer_norm": True},
    "Pegasus": {"normalize_before": True, "add_final_layer_norm": True},
    "Marian": {"normalize_before": False, "add_final_layer_norm": False},
}
"""Keys of files from before each of them was a class of its own, and their only value there."""


def _halves_equal(keys: Keys, name: str) -> int:
    """A number that encoder and decoder must have alike."""
    one, other = keys.number(f"encoder_{name}"), keys.number(f"decoder_{name}")
    require(
        one == other,
        f"{keys.where} has encoder_{name} {one} and decoder_{name} {other}; this program can read"
        " models whose encoder and decoder have the same.",
    )
    return one


def _config(keys: Keys, kind: str, **more: Any) -> ModelConfig:
    """What they have in common."""
    learned, width = more["positions"] == "learned", keys.number("d_model")
    legacy = LEGACY[kind] | {
        "normalize_embedding": learned,
        "static_position_embeddings": not learned,
        "add_bias_logits": False,
        "is_decoder": False,
    }
    for name, value in legacy.items():
        keys.same(name, value)
    for name in ("num_hidden_layers", "extra_pos_embeddings", "_num_labels", "save_step"):
        keys.take(name, None)
    keys.take("force_bos_token_to_be_generated", None)
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("max_position_embeddings", 1024),
        width=width,
        num_layers=keys.number("decoder_layers"),
        encoder_layers=keys.number("encoder_layers"),
        num_heads=_halves_equal(keys, "attention_heads"),
        feed_forward=_halves_equal(keys, "ffn_dim"),
        activation=activation(keys, "activation_function", "gelu"),
        scaled_embedding=bool(keys.take("scale_embedding", False)),
        tied=bool(keys.take("tie_word_embeddings", True)),
        embedding_norm=learned,
        logit_bias=True,
        **more,
    )


def bart_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `bart_config` and of the others."""
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (("attention_heads", c.num_heads), ("ffn_dim", c.mlp_dim))
    }
    return halves | {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "d_model": c.width,
        "encoder_layers": c.encoder_layers,
        "decoder_layers": c.num_layers,
        "activation_function": OURS.get(c.activation),
        "scale_embedding": c.scaled_embedding,
        "tie_word_embeddings": c.tied,
        "is_encoder_decoder": True,
    }


def bart_config(keys: Keys) -> ModelConfig:
    """Translates BART's: learned positions, norms behind what attention and MLP add."""
    return _config(keys, "BART", positions="learned", norm_placement="post")


def mbart_config(keys: Keys) -> ModelConfig:
    """Translates mBART's: learned positions, norms first."""
    return _config(keys, "mBART", positions="learned", norm_placement="pre")


def pegasus_config(keys: Keys) -> ModelConfig:
    """Translates Pegasus's: sinusoidal positions, norms first."""
    return _config(keys, "Pegasus", positions="sinusoidal", norm_placement="pre")


def marian_config(keys: Keys) -> ModelConfig:
    """Translates Marian's, which is the original Transformer, where source and target share their
    vocabulary."""
    keys.same("share_encoder_decoder_embeddings", True)
    keys.same("decoder_vocab_size", None, keys.number("vocab_size"))
    return _config(keys, "Marian", positions="sinusoidal", norm_placement="post")
