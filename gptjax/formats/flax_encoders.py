"""config.json of encoders like BERT, as our config and back: RoBERTa, DistilBERT, ELECTRA."""

from __future__ import annotations

from typing import Any

from gptjax.core.config import require
from gptjax.formats.keys import OURS, Keys, activation
from gptjax.formats.older import ENCODER, like_bert, like_bert_json
from gptjax.model import ModelConfig


def _with_gelu(keys: Keys, architecture: str, **more: Any) -> ModelConfig:
    """What RoBERTa and ELECTRA have in common with BERT: whatever their MLPs have, their outputs
    have gelu."""
    keys.same("hidden_act", "gelu")
    return like_bert(keys, architecture, activation="gelu_exact", **more)


def roberta_config(keys: Keys, kind: str = "Roberta") -> ModelConfig:
    """Translates RoBERTa's, of which two positions are no token's.

    Args:
      kind: how the names of its classes begin.
    """
    keys.same("pad_token_id", 1)
    positions = keys.number("max_position_embeddings", 512)
    require(
        positions > 2,
        f"{keys.where} has max_position_embeddings {positions}, of which two are no token's; it"
        " needs at least 3.",
    )
    return _with_gelu(keys, f"{kind}Model", context=positions - 2)


def roberta_json(c: ModelConfig, kind: str = "Roberta") -> dict[str, Any]:
    """The inverse of `roberta_config`."""
    return like_bert_json(c) | {
        "max_position_embeddings": c.context + 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "architectures": [f"{kind}ForMaskedLM" if c.head_transform else f"{kind}Model"],
    }


def electra_config(keys: Keys) -> ModelConfig:
    """Translates that of ELECTRA's generator, whose embeddings have a width of their own. The
    discriminator writes nothing and is refused by its tensors."""
    width, embedded = keys.number("hidden_size"), keys.number("embedding_size", 128)
    return _with_gelu(
        keys,
        "ElectraModel",
        context=keys.number("max_position_embeddings", 512),
        embedding_width=None if embedded == width else embedded,
        embedding_projection="tokens" if embedded == width else "stream",
    )


def electra_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `electra_config`."""
    return like_bert_json(c) | {
        "type_vocab_size": 2,
        "embedding_size": c.embedding_dim,
        "architectures": ["ElectraForMaskedLM" if c.head_transform else "ElectraModel"],
    }


def distilbert_config(keys: Keys) -> ModelConfig:
    """Translates DistilBERT's: BERT without embeddings of sentences."""
    keys.take("sinusoidal_pos_embds", None)  # how positions began
    keys.take("tie_weights_", None)
    keys.same("tie_word_embeddings", True)
    fills = "DistilBertModel" not in (keys.take("architectures", None) or ())
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        context=keys.number("max_position_embeddings", 512),
        width=keys.number("dim"),
        num_layers=keys.number("n_layers"),
        num_heads=keys.number("n_heads"),
        feed_forward=keys.number("hidden_dim"),
        activation=activation(keys, "activation", "gelu"),
        norm_epsilon=1e-12,
        head_transform=fills,
        logit_bias=fills,
        **ENCODER,
    )


def distilbert_json(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `distilbert_config`."""
    return {
        "vocab_size": c.vocabulary,
        "max_position_embeddings": c.context,
        "dim": c.width,
        "n_layers": c.num_layers,
        "n_heads": c.num_heads,
        "hidden_dim": c.mlp_dim,
        "activation": OURS.get(c.activation),
        "architectures": ["DistilBertForMaskedLM" if c.head_transform else "DistilBertModel"],
    }
