"""Which tensor is which of our leaves, for the families that `transformers` had Flax classes of
until its version 5: decoders, encoders, and both side by side. `flax_families` names them.

Read with `families`, whose parts they are made of.
"""

from __future__ import annotations

from gptjax.formats.families import heads, linear_entries, mlp, norm_entries
from gptjax.formats.layout import Entry
from gptjax.model import ModelConfig

QKV = tuple(f"layers/attention/{name}" for name in ("query", "key", "value"))
HEAD = (
    Entry("lm_head.weight", ("head/kernel",), "v d", "d v"),
    Entry("lm_head.bias", ("logits/bias",), "v", "v"),
)
"""An output of its own."""


def token_table(name: str) -> Entry:
    """Returns the table of token embeddings."""
    return Entry(name, ("embedding/embedding",), "v d", "v d")


def position_table(name: str, ours: str = "", skipped: int = 0) -> Entry:
    """Returns the table of learned positions.

    Args:
      ours: prefix of our paths, such as `encoder/`.
      skipped: rows before that of the first token.
    """
    return Entry(name, (f"{ours}positions/embedding",), "p d", "p d", skipped=skipped)


# --- decoders -------------------------------------------------------------------------------------

_H = "transformer.h.{i}"


def gptj_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """GPT-J. Its RoPE rotates neighbours of a head, ours the halves of the rotated part."""
    half = config.rotary_dim // 2
    pairs = (n for i in range(half) for n in (i, half + i))
    turned = {"h": (*pairs, *range(config.rotary_dim, config.head_dim))}
    where, ours = f"{_H}.attn", "layers/attention"
    return (
        token_table("transformer.wte.weight"),
        *norm_entries(f"{_H}.ln_1", "layers/attention_norm"),
        *linear_entries(f"{where}.q_proj", f"{ours}/query", "(n h) d", "d n h", order=turned),
        *linear_entries(f"{where}.k_proj", f"{ours}/key", "(k h) d", "d k h", order=turned),
        *linear_entries(f"{where}.v_proj", f"{ours}/value", "(k h) d", "d k h"),
        *linear_entries(f"{where}.out_proj", f"{ours}/out", "d (n h)", "n h d"),
        *mlp(f"{_H}.mlp", "layers/mlp", up="fc_in", down="fc_out"),
        *norm_entries("transformer.ln_f", "norm"),
        *HEAD,
    )


GPT_NEO = (
    token_table("transformer.wte.weight"),
    position_table("transformer.wpe.weight"),
    *norm_entries(f"{_H}.ln_1", "layers/attention_norm"),
    *heads(f"{_H}.attn.attention", "layers/attention", out="out_proj"),
    *norm_entries(f"{_H}.ln_2", "layers/mlp_norm"),
    *mlp(f"{_H}.mlp", "layers/mlp", up="c_fc", down="c_proj"),
    *norm_entries("transformer.ln_f", "norm"),
    *HEAD,
)

_OPT = "model.decoder.layers.{i}"
OPT = (
    token_table("model.decoder.embed_tokens.weight"),
    position_table("model.decoder.embed_positions.weight", skipped=2),
    *linear_entries("model.decoder.project_in", "projection/into", "d e", "e d"),
    *heads(f"{_OPT}.self_attn", "layers/attention", out="out_proj"),
    *norm_entries(f"{_OPT}.self_attn_layer_norm", "layers/attention_norm"),
    *mlp(_OPT, "layers/mlp", up="fc1", down="fc2"),
    *norm_entries(f"{_OPT}.final_layer_norm", "layers/mlp_norm"),
    *norm_entries("model.decoder.final_layer_norm", "norm"),
    *linear_entries("model.decoder.project_out", "projection/out_of", "e d", "d e"),
    *HEAD,
)

BLOOM = (
    token_table("transformer.word_embeddings.weight"),
    *norm_entries("transformer.word_embeddings_layernorm", "embedding_norm"),
    *norm_entries(f"{_H}.input_layernorm", "layers/attention_norm"),
    *linear_entries(f"{_H}.self_attention.query_key_value", QKV, "(n h) d", "d n h", joined="h"),
    *linear_entries(f"{_H}.self_attention.dense", "layers/attention/out", "d (n h)", "n h d"),
    *norm_entries(f"{_H}.post_attention_layernorm", "layers/mlp_norm"),
    *mlp(f"{_H}.mlp", "layers/mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
    *norm_entries("transformer.ln_f", "norm"),
    *HEAD,
)

_BLOCK = "transformer.blocks.{i}"
MPT = (
    token_table("transformer.wte.weight"),
    *norm_entries(f"{_BLOCK}.norm_1", "layers/attention_norm"),
    *linear_entries(f"{_BLOCK}.attn.Wqkv", QKV, "(n h) d", "d n h", joined="n"),
    *linear_entries(f"{_BLOCK}.attn.out_proj", "layers/attention/out", "d (n h)", "n h d"),
    *norm_entries(f"{_BLOCK}.norm_2", "layers/mlp_norm"),
    *mlp(f"{_BLOCK}.ffn", "layers/mlp", up="up_proj", down="down_proj"),
    *norm_entries("transformer.norm_f", "norm"),
    *HEAD,
)


def falcon_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """Falcon: all query heads and then the one of keys and values, or three of each head."""
    joined = "n" if config.kv_heads == 1 else "h"
    where = f"{_H}.self_attention"
    return (
        token_table("transformer.word_embeddings.weight"),
        *norm_entries(f"{_H}.input_layernorm", "layers/attention_norm"),
        *linear_entries(f"{where}.query_key_value", QKV, "(n h) d", "d n h", joined=joined),
        *linear_entries(f"{where}.dense", "layers/attention/out", "d (n h)", "n h d"),
        *norm_entries(f"{_H}.post_attention_layernorm", "layers/mlp_norm"),
        *mlp(f"{_H}.mlp", "layers/mlp", up="dense_h_to_4h", down="dense_4h_to_h"),
        *norm_entries("transformer.ln_f", "norm"),
        *HEAD,
    )


# --- encoders -------------------------------------------------------------------------------------


def _bert_layers(where: str) -> tuple[Entry, ...]:
    """The layers of BERT, which RoBERTa and ELECTRA name alike."""
    layer = f"{where}.encoder.layer.{{i}}"
    names = ("self.query", "self.key", "self.value", "output.dense")
    return (
        *heads(f"{layer}.attention", "layers/attention", *names),
        *norm_entries(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *linear_entries(f"{layer}.intermediate.dense", "layers/mlp/up", "f d", "d f"),
        *linear_entries(f"{layer}.output.dense", "layers/mlp/down", "d f", "f d"),
        *norm_entries(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
    )


def _bert_embeddings(where: str, skipped: int, rows: int) -> tuple[Entry, ...]:
    """Their embeddings; the first of the `rows` of sentences is part of our positions."""
    where = f"{where}.embeddings"
    return (
        token_table(f"{where}.word_embeddings.weight"),
        position_table(f"{where}.position_embeddings.weight", skipped=skipped)._replace(
            folded=f"{where}.token_type_embeddings.weight", folded_rows=rows
        ),
        *norm_entries(f"{where}.LayerNorm", "embedding_norm"),
    )


ROBERTA = (
    *_bert_embeddings("roberta", skipped=2, rows=1),
    *_bert_layers("roberta"),
    *linear_entries("lm_head.dense", "transform/linear", "o d", "d o"),
    *norm_entries("lm_head.layer_norm", "transform/norm"),
    Entry("lm_head.bias", ("logits/bias",), "v", "v"),
)
"""Positions begin behind that of padding, whose id is 1."""

ELECTRA = (
    *_bert_embeddings("electra", skipped=0, rows=2),
    *linear_entries("electra.embeddings_project", "projection/into", "d e", "e d"),
    *_bert_layers("electra"),
    *linear_entries("generator_predictions.dense", "transform/linear", "o d", "d o"),
    *norm_entries("generator_predictions.LayerNorm", "transform/norm"),
    Entry("generator_lm_head.bias", ("logits/bias",), "v", "v"),
)

_DISTILBERT = "distilbert.transformer.layer.{i}"
DISTILBERT = (
    token_table("distilbert.embeddings.word_embeddings.weight"),
    position_table("distilbert.embeddings.position_embeddings.weight"),
    *norm_entries("distilbert.embeddings.LayerNorm", "embedding_norm"),
    *heads(f"{_DISTILBERT}.attention", "layers/attention", "q_lin", "k_lin", "v_lin", "out_lin"),
    *norm_entries(f"{_DISTILBERT}.sa_layer_norm", "layers/attention_norm"),
    *mlp(f"{_DISTILBERT}.ffn", "layers/mlp", up="lin1", down="lin2"),
    *norm_entries(f"{_DISTILBERT}.output_layer_norm", "layers/mlp_norm"),
    *linear_entries("vocab_transform", "transform/linear", "o d", "d o"),
    *norm_entries("vocab_layer_norm", "transform/norm"),
    Entry("vocab_projector.bias", ("logits/bias",), "v", "v"),
)


# --- an encoder and a decoder ---------------------------------------------------------------------


def _half(theirs: str, ours: str) -> tuple[Entry, ...]:
    """The encoder or the decoder of BART and those like it."""
    whole, where = f"model.{theirs}", f"{ours}layers"
    layer = f"{whole}.layers.{{i}}"
    return (
        position_table(f"{whole}.embed_positions.weight", ours, skipped=2),
        *norm_entries(f"{whole}.layernorm_embedding", f"{ours}embedding_norm"),
        *heads(f"{layer}.self_attn", f"{where}/attention", out="out_proj"),
        *norm_entries(f"{layer}.self_attn_layer_norm", f"{where}/attention_norm"),
        *mlp(layer, f"{where}/mlp", up="fc1", down="fc2"),
        *norm_entries(f"{layer}.final_layer_norm", f"{where}/mlp_norm"),
        *norm_entries(f"{whole}.layer_norm", f"{ours}norm"),
    )


_CROSS = "model.decoder.layers.{i}.encoder_attn"
BART = (
    token_table("model.shared.weight"),
    *_half("encoder", "encoder/"),
    *_half("decoder", ""),
    *heads(_CROSS, "layers/cross", out="out_proj"),
    *norm_entries(f"{_CROSS}_layer_norm", "layers/cross_norm"),
    Entry("final_logits_bias", ("logits/bias",), "() v", "v", optional=True),
    Entry("lm_head.weight", ("head/kernel",), "v d", "d v"),
)
"""BART, mBART, Pegasus and Marian, of which each lacks some."""
