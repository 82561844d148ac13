"""The families of Hugging Face models: the table `FAMILIES`, and `family_of`, which chooses one for
a model of ours.

A family is a config translated both ways (`configs`, `older`) and a table of tensors (`families`);
families that came later have both in one file, such as `dense_decoders`.
"""

from __future__ import annotations

import json

from gptjax.formats import (
    configs,
    deepseek,
    equivalence,
    expert_families,
    families,
    llada,
    older,
    picture_configs,
    scaled,
)
from gptjax.formats.dense_decoders import DENSE
from gptjax.formats.family import Family
from gptjax.formats.flax_families import FLAX
from gptjax.formats.keys import Keys
from gptjax.formats.layernorm_decoders import WITH_LAYERNORM
from gptjax.formats.recurrent_decoders import RECURRENT, qwen3_5_text
from gptjax.formats.sparse_decoders import SPARSE
from gptjax.formats.whisper import WHISPER
from gptjax.model import ModelConfig

_SECOND_TOKEN = (r"model\.layers\.{last}\..*",)
_DEEPSEEK = (deepseek.deepseek_config, deepseek.deepseek_json, families.deepseek_entries)
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        older.gpt2_config,
        older.gpt2_json,
        families.GPT2,
        "transformer.",
        unused=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    ),
    "llama": Family(
        "LlamaForCausalLM",
        configs.llama_config,
        configs.llama_json,
        families.LLAMA,
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
    "llada": llada.LLADA,
    "arcee": Family("ArceeForCausalLM", configs.arcee_config, configs.arcee_json, families.LLAMA),
    "mistral": Family(
        "MistralForCausalLM", configs.mistral_config, configs.mistral_json, families.LLAMA
    ),
    "mixtral": Family(
        "MixtralForCausalLM", configs.mixtral_config, configs.mixtral_json, families.MIXTRAL
    ),
    "qwen2": Family("Qwen2ForCausalLM", configs.qwen2_config, configs.qwen2_json, families.LLAMA),
    "qwen3": Family("Qwen3ForCausalLM", configs.qwen3_config, configs.qwen3_json, families.LLAMA),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", configs.qwen3_moe_config, configs.qwen3_moe_json, families.QWEN_MOE
    ),
    "gemma": Family("GemmaForCausalLM", configs.gemma_config, configs.gemma_json, families.GEMMA),
    "gemma2": Family(
        "Gemma2ForCausalLM", configs.gemma2_config, configs.gemma2_json, families.GEMMA2
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        configs.gemma3_config,
        configs.gemma3_json,
        families.GEMMA2,
        unused=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    ),
    "olmo2": Family("Olmo2ForCausalLM", configs.olmo2_config, configs.llama_json, families.OLMO2),
    "phi3": Family("Phi3ForCausalLM", configs.phi3_config, configs.phi3_json, families.PHI3),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        older.gpt_neox_config,
        older.gpt_neox_json,
        families.GPT_NEOX,
        "gpt_neox.",
        "embed_out.weight",
        (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq"),
    ),
    "deepseek_v2": Family("DeepseekV2ForCausalLM", *_DEEPSEEK),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", *_DEEPSEEK, unused=_SECOND_TOKEN, further=True),
    "bert": Family(
        "BertForMaskedLM",
        older.bert_config,
        older.bert_json,
        families.BERT,
        "bert.",
        "cls.predictions.decoder.weight",
        (
            r"bert\.pooler\..*",
            r"cls\.seq_relationship\..*",
            r"bert\.embeddings\.position_ids",
            r"cls\.predictions\.decoder\.bias",
        ),
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        older.t5_config,
        older.t5_json,
        families.t5_entries,
        "",
        unused=(
            r"(en|de)coder\.embed_tokens\.weight",
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        ),
    ),
    "whisper": WHISPER,
    **DENSE,
    **WITH_LAYERNORM,
    **SPARSE,
    **RECURRENT,
    **FLAX,
    **scaled.FAMILIES,
    **expert_families.FAMILIES,
    **picture_configs.FAMILIES,
}
"""By `model_type`. SmolLM2 is a Llama, Pythia a GPT-NeoX."""


INSIDE = {"gemma3": configs.gemma3_text, "qwen3_5": qwen3_5_text}
"""Of models that hold one of a family, which reads texts: from their config.json to its own."""


def family_of(config: ModelConfig, preferred: str | None = None) -> str:
    """Returns the family that computes what a config computes: the first whose config.json, read
    back, computes the same.

    Raises:
      ConfigError: there is none; names the closest one and in what it differs.
    """

    def again(name: str) -> ModelConfig:
        data = json.loads(json.dumps(FAMILIES[name].write(config)))
        keys = Keys({"model_type": name, **data}, f"a config.json of {name}")
        result = FAMILIES[name].read(keys)
        keys.finish()
        return result

    names = [preferred, *FAMILIES] if preferred in FAMILIES else FAMILIES
    return equivalence.first_equivalent(config, names, again, "family of Hugging Face models")
