"""The families that `transformers` had Flax classes of until its version 5, besides those in
`huggingface_families`: decoders, encoders, and encoders beside decoders."""

from __future__ import annotations

import functools

from gptjax.formats import bart, older
from gptjax.formats import families as tables
from gptjax.formats import flax_configs as configs
from gptjax.formats import flax_encoders as encoders
from gptjax.formats import flax_tables as flax
from gptjax.formats.family import Family

_MASKS = (r"transformer\.h\.\d+\.attn\.(attention\.)?(masked_)?bias",)
_TABLES = (
    r"model\.(en|de)coder\.embed_tokens\.weight",
    r"(model\.)?(en|de)coder\.version",
    r"model\.(en|de)coder\.embed_positions\.weight",
)
"""Copies of the embedding, and sinusoidal positions."""


def _roberta(kind: str) -> Family:
    """RoBERTa, or a model of its form whose classes begin with another name."""
    return Family(
        f"{kind}ForMaskedLM",
        functools.partial(encoders.roberta_config, kind=kind),
        functools.partial(encoders.roberta_json, kind=kind),
        flax.ROBERTA,
        "roberta.",
        "lm_head.decoder.weight",
        (r"roberta\.pooler\..*", r"roberta\.embeddings\.position_ids", r"lm_head\.decoder\.bias"),
    )


FLAX = {
    "gptj": Family(
        "GPTJForCausalLM",
        configs.gptj_config,
        configs.gptj_json,
        flax.gptj_entries,
        "transformer.",
        unused=_MASKS,
    ),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        configs.gpt_neo_config,
        configs.gpt_neo_json,
        flax.GPT_NEO,
        "transformer.",
        unused=_MASKS,
    ),
    "opt": Family("OPTForCausalLM", configs.opt_config, configs.opt_json, flax.OPT),
    "bloom": Family(
        "BloomForCausalLM", configs.bloom_config, configs.bloom_json, flax.BLOOM, "transformer."
    ),
    "mpt": Family("MptForCausalLM", configs.mpt_config, configs.mpt_json, flax.MPT, "transformer."),
    "falcon": Family(
        "FalconForCausalLM",
        configs.falcon_config,
        configs.falcon_json,
        flax.falcon_entries,
        "transformer.",
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        encoders.distilbert_config,
        encoders.distilbert_json,
        flax.DISTILBERT,
        "distilbert.",
        "vocab_projector.weight",
        (r"distilbert\.embeddings\.position_ids",),
    ),
    "electra": Family(
        "ElectraForMaskedLM",
        encoders.electra_config,
        encoders.electra_json,
        flax.ELECTRA,
        "electra.",
        "generator_lm_head.weight",
        (r"electra\.embeddings\.position_ids",),
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        bart.bart_config,
        bart.bart_json,
        flax.BART,
        unused=_TABLES[:2],
    ),
    "mbart": Family(
        "MBartForConditionalGeneration",
        bart.mbart_config,
        bart.bart_json,
        flax.BART,
        unused=_TABLES[:2],
    ),
    "pegasus": Family(
        "PegasusForConditionalGeneration",
        bart.pegasus_config,
        bart.bart_json,
        flax.BART,
        unused=_TABLES,
    ),
    "marian": Family(
        "MarianMTModel", bart.marian_config, bart.bart_json, flax.BART, unused=_TABLES
    ),
    "mt5": Family(
        "MT5ForConditionalGeneration",
        older.mt5_config,
        older.t5_json,
        tables.t5_entries,
        "",
        unused=(
            r"(en|de)coder\.embed_tokens\.weight",
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        ),
    ),
}
"""By `model_type`."""
