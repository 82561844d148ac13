"""Models of the families that `transformers` had Flax classes of until its version 5, as configs of
ours: rows of `test_interop.MODELS`."""

from __future__ import annotations

import dataclasses

from gptjax.model import Layer, ModelConfig, bert, t5

SMALL = {
    "vocab_size": 61,
    "context": 32,
    "width": 32,
    "num_layers": 3,
    "num_heads": 4,
    "feed_forward": 48,
}
QUIET = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
PLAIN = ModelConfig(**SMALL)
ENCODER = bert("base", **SMALL, **QUIET)
BART = dataclasses.replace(
    PLAIN,
    encoder_layers=2,
    norm_placement="post",
    embedding_norm=True,
    logit_bias=True,
    activation="gelu_exact",
)
MARIAN = dataclasses.replace(
    BART,
    positions="sinusoidal",
    embedding_norm=False,
    scaled_embedding=True,
    activation="silu",
)
FALCON = dataclasses.replace(
    PLAIN,
    positions="rope",
    num_kv_heads=1,
    parallel="shared",
    activation="gelu_exact",
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
)

MODELS: dict[str, tuple[str, ModelConfig]] = {
    "gptj": (
        "gptj",
        dataclasses.replace(
            PLAIN,
            positions="rope",
            rope_share=0.5,
            parallel="shared",
            qkv_bias=False,
            out_bias=False,
            tied=False,
            logit_bias=True,
        ),
    ),
    "gpt_neo": (
        "gpt_neo",
        dataclasses.replace(
            PLAIN, pattern=(Layer(), Layer("window", 8)), attention_scale=1.0, qkv_bias=False
        ),
    ),
    "opt": ("opt", dataclasses.replace(PLAIN, activation="relu")),
    "opt 350m": (
        "opt",
        dataclasses.replace(PLAIN, activation="relu", norm_placement="post", embedding_width=24),
    ),
    "bloom": (
        "bloom",
        dataclasses.replace(PLAIN, positions="alibi", embedding_norm=True, feed_forward=None),
    ),
    "mpt": (
        "mpt",
        dataclasses.replace(
            PLAIN, positions="alibi", bias=False, activation="gelu_exact", feed_forward=None
        ),
    ),
    "falcon": ("falcon", FALCON),
    "falcon with a head for each query": (
        "falcon",
        dataclasses.replace(FALCON, num_kv_heads=None, parallel="none"),
    ),
    "roberta": ("roberta", ENCODER),
    "xlm-roberta": ("xlm-roberta", ENCODER),
    "camembert": ("camembert", ENCODER),
    "distilbert": ("distilbert", dataclasses.replace(ENCODER, norm_epsilon=1e-12)),
    "electra": (
        "electra",
        dataclasses.replace(ENCODER, embedding_width=24, embedding_projection="stream"),
    ),
    "bart": ("bart", BART),
    "mbart": ("mbart", dataclasses.replace(BART, norm_placement="pre")),
    "pegasus": ("pegasus", dataclasses.replace(MARIAN, norm_placement="pre", activation="relu")),
    "marian": ("marian", MARIAN),
    "mt5": ("mt5", t5("1.1-small", **SMALL, encoder_layers=2, head_width=12)),
}
"""By a name: the family, and a config that it computes."""
