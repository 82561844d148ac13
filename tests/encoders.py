"""Architectures of `transformers` with encoders, at a small size. Needs torch and transformers.

Read `CASES` at the end first: BERT, both kinds of T5, and Marian, which is the original
Transformer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from families import BLOCKWISE, REFERENCE, SMALL, Case
from peers import torch, transformers

from gptjax.formats import families as tables
from gptjax.formats.layout import Entry
from gptjax.model import ModelConfig, bert, t5, vaswani

SCAN = (("reference", "scan", 36),)


class Nothing(torch.nn.Module):
    """In the place of an embedding that we do not have: zero."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())


def build_bert(c: ModelConfig) -> Any:
    """Their BERT that fills in masked words, without embeddings of sentences."""
    shape = {
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
    }
    rest = {
        "max_position_embeddings": c.context,
        "layer_norm_eps": c.norm_epsilon,
        "hidden_act": "gelu",
        "pad_token_id": None,
    }
    config = transformers.BertConfig(
        **shape,
        **rest,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    theirs = transformers.BertForMaskedLM(config)
    theirs.bert.embeddings.token_type_embeddings = Nothing()
    return theirs


def build_t5(c: ModelConfig) -> Any:
    """Their T5, the first or 1.1; their 1.1 has a tied output."""
    shape = {
        "vocab_size": c.vocabulary,
        "d_model": c.width,
        "d_kv": c.head_dim,
        "d_ff": c.mlp_dim,
        "num_layers": c.encoder_layers,
        "num_decoder_layers": c.num_layers,
    }
    bias = {
        "num_heads": c.num_heads,
        "relative_attention_num_buckets": c.t5_buckets,
        "relative_attention_max_distance": c.t5_distance,
    }
    rest = {
        "dropout_rate": 0.0,
        "layer_norm_epsilon": c.norm_epsilon,
        "feed_forward_proj": "gated-gelu" if c.gated else "relu",
    }
    rest |= {
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": c.logit_scale != 1.0,
    }  # to them it means this scale
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, **bias, **rest))


def build_marian(c: ModelConfig) -> Any:
    """Their Marian with ReLU: the original Transformer with biases in all linear layers."""
    both = ("encoder", "decoder")
    layers = {"encoder_layers": c.encoder_layers, "decoder_layers": c.num_layers}
    shape = (
        {f"{half}_attention_heads": c.num_heads for half in both}
        | {f"{half}_ffn_dim": c.mlp_dim for half in both}
        | layers
    )
    quiet = {
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "pad_token_id": c.vocabulary - 1,
        "eos_token_id": 0,
    }
    rest = {
        "vocab_size": c.vocabulary,
        "d_model": c.width,
        "max_position_embeddings": c.context,
        "activation_function": "relu",
        "scale_embedding": True,
    }
    return transformers.MarianMTModel(
        transformers.MarianConfig(
            **shape, **quiet, **rest, decoder_start_token_id=0, attn_implementation="eager"
        )
    )


# --- the original Transformer, which is no family of `interop` ---


def _half(theirs: str, ours: str) -> tuple[Entry, ...]:
    layer, where = f"model.{theirs}.layers.{{i}}", f"{ours}layers"
    return (
        *tables.heads(f"{layer}.self_attn", f"{where}/attention", out="out_proj"),
        *tables.norm_entries(f"{layer}.self_attn_layer_norm", f"{where}/attention_norm"),
        *tables.heads(f"{layer}.encoder_attn", f"{where}/cross", out="out_proj"),
        *tables.norm_entries(f"{layer}.encoder_attn_layer_norm", f"{where}/cross_norm"),
        *tables.mlp(layer, f"{where}/mlp", up="fc1", down="fc2"),
        *tables.norm_entries(f"{layer}.final_layer_norm", f"{where}/mlp_norm"),
    )


MARIAN = (
    Entry("model.shared.weight", ("embedding/embedding",), "v d", "v d"),
    *_half("encoder", "encoder/"),
    *_half("decoder", ""),
)

SHAPE = {
    "vocab_size": SMALL.vocabulary,
    "context": SMALL.context,
    "width": 32,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward": 80,
}
QUIET = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
T5 = replace(
    t5("small", **SHAPE, **QUIET, encoder_layers=3, head_width=12, t5_buckets=8, t5_distance=20),
    logit_scale=32**-0.5,
)

CASES = (
    Case("bert", bert("base", **SHAPE, **QUIET), build_bert, tables.BERT, REFERENCE + BLOCKWISE),
    Case("t5", T5, build_t5, tables.t5_entries, REFERENCE + BLOCKWISE),
    Case(
        "t5_1_1",
        replace(T5, activation="geglu", logit_scale=1.0),
        build_t5,
        tables.t5_entries,
        SCAN,
    ),
    Case(
        "original_transformer",
        vaswani("base", **SHAPE | {"vocab_size": 98}, **QUIET, encoder_layers=3, qkv_bias=True),
        build_marian,
        MARIAN,
        REFERENCE + SCAN,
    ),
)
