"""Architectures of `transformers` with encoders, at a small size, with the map from their weights to our tree. Needs torch and transformers.

Read `CASES` at the end first: BERT, both kinds of T5, and Marian, which is the original Transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from families import BLOCKWISE, REFERENCE, SMALL, Case, Take

from gptjax.model import ModelConfig, bert, t5, vaswani

SCAN = (("reference", "scan", 36),)


class Nothing(torch.nn.Module):
    """In the place of an embedding that we do not have: zero."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(())


def build_bert(c: ModelConfig) -> Any:
    """Their BERT that fills in masked words, without embeddings of sentences."""
    shape = dict(vocab_size=c.vocabulary, hidden_size=c.width, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads, intermediate_size=c.hidden)
    rest = dict(max_position_embeddings=c.context, layer_norm_eps=c.norm_epsilon, hidden_act="gelu", pad_token_id=None)
    config = transformers.BertConfig(**shape, **rest, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager")
    theirs = transformers.BertForMaskedLM(config)
    theirs.bert.embeddings.token_type_embeddings = Nothing()
    return theirs


def build_t5(c: ModelConfig) -> Any:
    """Their T5, the first or 1.1; their 1.1 has a tied output."""
    shape = dict(vocab_size=c.vocabulary, d_model=c.width, d_kv=c.heads, d_ff=c.hidden, num_layers=c.encoder_layers, num_decoder_layers=c.num_layers)
    bias = dict(num_heads=c.num_heads, relative_attention_num_buckets=c.t5_buckets, relative_attention_max_distance=c.t5_distance)
    rest = dict(dropout_rate=0.0, layer_norm_epsilon=c.norm_epsilon, feed_forward_proj="gated-gelu" if c.gated else "relu")
    rest |= dict(pad_token_id=0, decoder_start_token_id=0, tie_word_embeddings=c.logit_scale != 1.0)  # to them it means this scale
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, **bias, **rest))


def build_marian(c: ModelConfig) -> Any:
    """Their Marian with ReLU: the original Transformer with biases in all linear layers."""
    both = ("encoder", "decoder")
    layers = {"encoder_layers": c.encoder_layers, "decoder_layers": c.num_layers}
    shape = {f"{half}_attention_heads": c.num_heads for half in both} | {f"{half}_ffn_dim": c.hidden for half in both} | layers
    quiet = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=c.vocabulary - 1, eos_token_id=0)
    rest = dict(vocab_size=c.vocabulary, d_model=c.width, max_position_embeddings=c.context, activation_function="relu", scale_embedding=True)
    return transformers.MarianMTModel(transformers.MarianConfig(**shape, **quiet, **rest, decoder_start_token_id=0, attn_implementation="eager"))


# --- their weights in our tree -----------------------------------------------------------------------------------


def stacked(c: ModelConfig, take: Take, prefix: str, count: int) -> tuple[Callable, Callable]:
    """(linear, norm) of a stack of their layers: (name of theirs, our shape) → our leaves."""

    def raw(name: str) -> np.ndarray:
        return np.stack([take(f"{prefix}.{i}.{name}") for i in range(count)])

    def linear(name: str, *shape: int) -> dict:
        turned = raw(f"{name}.weight").swapaxes(1, 2)
        found = {"kernel": turned.reshape(count, *shape) if shape else turned}
        inputs = 2 if shape and shape[-1] == c.width and len(shape) == 3 else 1
        return found | ({"bias": raw(f"{name}.bias").reshape(count, *shape[inputs:] if shape else (-1,))} if c.bias else {})

    def norm(name: str) -> dict:
        return {"scale": raw(f"{name}.weight")} | ({"bias": raw(f"{name}.bias")} if c.bias else {})

    return linear, norm


def heads(c: ModelConfig, linear: Callable, where: str, names: tuple[str, str, str, str]) -> dict:
    """Query, key, value and out, by their names."""
    into, out = (c.width, c.num_heads, c.heads), (c.num_heads, c.heads, c.width)
    shapes = dict(zip(("query", "key", "value", "out"), (into, into, into, out), strict=True))
    return {ours: linear(f"{where}{theirs}", *shapes[ours]) for ours, theirs in zip(shapes, names, strict=True)}


def bert_tree(c: ModelConfig, take: Take) -> Any:
    """Their BERT in our shapes."""
    linear, norm = stacked(c, take, "bert.encoder.layer", c.num_layers)
    one = lambda name: {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}
    transform = "cls.predictions.transform"
    return {
        "embedding": {"embedding": take("bert.embeddings.word_embeddings.weight")},
        "positions": {"embedding": take("bert.embeddings.position_embeddings.weight")},
        "embedding_norm": one("bert.embeddings.LayerNorm"),
        "layers": {
            "attention": heads(c, linear, "attention.", ("self.query", "self.key", "self.value", "output.dense")),
            "attention_norm": norm("attention.output.LayerNorm"),
            "mlp": {"up": linear("intermediate.dense"), "down": linear("output.dense")},
            "mlp_norm": norm("output.LayerNorm"),
        },
        "transform": {"linear": {"kernel": take(f"{transform}.dense.weight").T, "bias": take(f"{transform}.dense.bias")}, "norm": one(f"{transform}.LayerNorm")},
        "logits": {"bias": take("cls.predictions.bias")},
    }


def t5_tree(c: ModelConfig, take: Take) -> Any:
    """Their T5 in our shapes. The first layer of each half holds the bias that all of its layers use."""

    def half(name: str, count: int, cross: bool) -> dict:
        linear, norm = stacked(c, take, f"{name}.block", count)
        letters, last = ("q", "k", "v", "o"), f"layer.{1 + cross}"
        up = {"gate": "wi_0", "up": "wi_1"} if c.gated else {"up": "wi"}
        layers = {
            "attention": heads(c, linear, "layer.0.SelfAttention.", letters),
            "attention_norm": norm("layer.0.layer_norm"),
            "mlp": {ours: linear(f"{last}.DenseReluDense.{theirs}") for ours, theirs in {**up, "down": "wo"}.items()},
            "mlp_norm": norm(f"{last}.layer_norm"),
        }
        if cross:
            layers |= {"cross": heads(c, linear, "layer.1.EncDecAttention.", letters), "cross_norm": norm("layer.1.layer_norm")}
        bias = take(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        return {"layers": layers, "norm": {"scale": take(f"{name}.final_layer_norm.weight")}, "distances": {"bias": bias}}

    return {"embedding": {"embedding": take("shared.weight")}, **half("decoder", c.num_layers, True), "encoder": half("encoder", c.encoder_layers, False)}


def marian_tree(c: ModelConfig, take: Take) -> Any:
    """Their Marian in our shapes."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")

    def layers(half: str, count: int, cross: bool) -> dict:
        linear, norm = stacked(c, take, f"model.{half}.layers", count)
        found = {
            "attention": heads(c, linear, "self_attn.", names),
            "attention_norm": norm("self_attn_layer_norm"),
            "mlp": {"up": linear("fc1"), "down": linear("fc2")},
            "mlp_norm": norm("final_layer_norm"),
        }
        return found | ({"cross": heads(c, linear, "encoder_attn.", names), "cross_norm": norm("encoder_attn_layer_norm")} if cross else {})

    encoder = {"layers": layers("encoder", c.encoder_layers, False)}
    return {"embedding": {"embedding": take("model.shared.weight")}, "layers": layers("decoder", c.num_layers, True), "encoder": encoder}


SHAPE = dict(vocab_size=SMALL.vocabulary, context=SMALL.context, width=32, num_layers=2, num_heads=4, feed_forward=80)
QUIET = dict(embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
T5 = replace(t5("small", **SHAPE, **QUIET, encoder_layers=3, head_width=12, t5_buckets=8, t5_distance=20), logit_scale=32**-0.5)

CASES = (
    Case("bert", bert("base", **SHAPE, **QUIET), build_bert, bert_tree, REFERENCE + BLOCKWISE),
    Case("t5", T5, build_t5, t5_tree, REFERENCE + BLOCKWISE),
    Case("t5_1_1", replace(T5, activation="geglu", logit_scale=1.0), build_t5, t5_tree, SCAN),
    Case("original_transformer", vaswani("base", **SHAPE | dict(vocab_size=98), **QUIET, encoder_layers=3, qkv_bias=True), build_marian, marian_tree, REFERENCE + SCAN),
)
