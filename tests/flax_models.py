"""Architectures that `transformers` had Flax classes of until its version 5, at a small size. Needs
torch and transformers.

Read `BUILDERS` at the end first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from peers import transformers

HEADS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
EAGER = {"attn_implementation": "eager"}


def build_gptj(vocabulary: int) -> Any:
    """Their GPT-J, of which half a head is turned."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 80, "n_positions": 64}
    config = transformers.GPTJConfig(vocab_size=vocabulary, rotary_dim=4, **shape, **HEADS, **EAGER)
    return transformers.GPTJForCausalLM(config)


def build_gpt_neo(vocabulary: int) -> Any:
    """Their GPT-Neo, with a window in its second layer."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 80}
    kinds = {"attention_types": [[["global", "local"], 1]], "window_size": 5}
    config = transformers.GPTNeoConfig(
        vocab_size=vocabulary, max_position_embeddings=64, **shape, **kinds, **HEADS, **EAGER
    )
    return transformers.GPTNeoForCausalLM(config)


def build_opt(vocabulary: int, **more: Any) -> Any:
    """Their OPT."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80}
    config = transformers.OPTConfig(
        vocab_size=vocabulary, max_position_embeddings=64, **shape | HEADS | EAGER | more
    )
    return transformers.OPTForCausalLM(config)


def build_bloom(vocabulary: int) -> Any:
    """Their BLOOM, whose number of heads is no power of two."""
    shape = {"hidden_size": 48, "n_layer": 2, "n_head": 6}
    config = transformers.BloomConfig(vocab_size=vocabulary, **shape, **HEADS, **EAGER)
    return transformers.BloomForCausalLM(config)


def build_mpt(vocabulary: int) -> Any:
    """Their MPT."""
    shape = {"d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64}
    config = transformers.MptConfig(vocab_size=vocabulary, **shape, **HEADS, **EAGER)
    return transformers.MptForCausalLM(config)


def build_falcon(vocabulary: int, **more: Any) -> Any:
    """Their Falcon, as 7B."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.FalconConfig(
        vocab_size=vocabulary, ffn_hidden_size=80, **shape, **HEADS, **EAGER, **more
    )
    return transformers.FalconForCausalLM(config)


BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
}


def build_roberta(vocabulary: int, kind: str = "Roberta") -> Any:
    """Their RoBERTa, or a model of that form, with one embedding of sentences."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary, max_position_embeddings=66, type_vocab_size=1, **BERT, **EAGER
    )
    return getattr(transformers, f"{kind}ForMaskedLM")(config)


def build_distilbert(vocabulary: int) -> Any:
    """Their DistilBERT."""
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 80}
    config = transformers.DistilBertConfig(
        vocab_size=vocabulary, max_position_embeddings=64, **shape, **EAGER
    )
    return transformers.DistilBertForMaskedLM(config)


def build_electra(vocabulary: int, width: int = 24) -> Any:
    """Their generator of ELECTRA, whose embeddings are narrower."""
    config = transformers.ElectraConfig(
        vocab_size=vocabulary, max_position_embeddings=64, embedding_size=width, **BERT, **EAGER
    )
    return transformers.ElectraForMaskedLM(config)


def build_bart(vocabulary: int, kind: str = "Bart", **more: Any) -> Any:
    """Their BART or a model like it: three layers of an encoder, two of a decoder."""
    halves = {f"{half}_attention_heads": 4 for half in ("encoder", "decoder")}
    halves |= {f"{half}_ffn_dim": 80 for half in ("encoder", "decoder")}
    shape = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "max_position_embeddings": 64}
    named = {"forced_eos_token_id": None, "vocab_size": vocabulary}
    config = getattr(transformers, f"{kind}Config")(**halves, **shape, **EAGER, **named | more)
    name = "MarianMTModel" if kind == "Marian" else f"{kind}ForConditionalGeneration"
    return getattr(transformers, name)(config)


def build_mt5(vocabulary: int) -> Any:
    """Their mT5."""
    shape = {"d_model": 32, "d_kv": 12, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 2}
    distances = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    config = transformers.MT5Config(vocab_size=vocabulary, num_heads=4, **shape, **distances)
    return transformers.MT5ForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[int], Any]] = {
    "gptj": build_gptj,
    "gpt_neo": build_gpt_neo,
    "opt": build_opt,
    "opt_350m": functools.partial(build_opt, do_layer_norm_before=False, word_embed_proj_dim=24),
    "opt_without_biases": functools.partial(
        build_opt, enable_bias=False, activation_function="gelu"
    ),
    "bloom": build_bloom,
    "mpt": build_mpt,
    "falcon": build_falcon,
    "falcon_rw": functools.partial(build_falcon, multi_query=False, parallel_attn=False, bias=True),
    "roberta": build_roberta,
    "xlm-roberta": functools.partial(build_roberta, kind="XLMRoberta"),
    "camembert": functools.partial(build_roberta, kind="Camembert"),
    "distilbert": build_distilbert,
    "electra": build_electra,
    "electra_base": functools.partial(build_electra, width=32),
    "bart": functools.partial(build_bart, activation_function="gelu"),
    "mbart": functools.partial(
        build_bart, kind="MBart", scale_embedding=True, activation_function="relu"
    ),
    "pegasus": functools.partial(
        build_bart, kind="Pegasus", scale_embedding=True, activation_function="relu"
    ),
    "marian": functools.partial(
        build_bart,
        kind="Marian",
        scale_embedding=True,
        activation_function="swish",
        pad_token_id=2,
        decoder_start_token_id=2,
        eos_token_id=0,
    ),
    "mt5": build_mt5,
}
"""By a name that begins with the `model_type`: each takes the size of its vocabulary."""
