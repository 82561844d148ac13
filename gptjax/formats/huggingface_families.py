"""The families of Hugging Face models: `Family`, the table `FAMILIES`, and `family_of`, which
chooses one for a model of ours.

A family is a config translated both ways (`configs`, `older`) and a table of tensors (`families`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from gptjax.formats import configs, deepseek, equivalence, families, layout, older
from gptjax.formats.keys import Keys
from gptjax.model import ModelConfig


class Family(NamedTuple):
    """An architecture of theirs."""

    architecture: str
    """The class that loads it."""
    read: Callable[[Keys], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    entries: tuple[layout.Entry, ...] | Callable[[ModelConfig], tuple[layout.Entry, ...]]
    prefix: str = "model."
    """What stands before names in a model with a head; a file without one lacks it."""
    output: str = "lm_head.weight"
    """The tensor that is the embedding again where the two are tied."""
    unused: tuple[str, ...] = ()
    """Patterns of tensors that are no part of what ours computes."""

    def places(self, config: ModelConfig) -> list[layout.Place]:
        """Their tensors of a model."""
        return layout.places(
            config, self.entries(config) if callable(self.entries) else self.entries
        )


_SECOND_TOKEN = (r"model\.layers\.{last}\..*",)
_DEEPSEEK = (deepseek.deepseek, deepseek.deepseek_json, families.deepseek)
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        older.gpt2,
        older.gpt2_json,
        families.GPT2,
        "transformer.",
        unused=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    ),
    "llama": Family(
        "LlamaForCausalLM",
        configs.llama,
        configs.llama_json,
        families.LLAMA,
        unused=(r".*\.rotary_emb\.inv_freq",),
    ),
    "arcee": Family("ArceeForCausalLM", configs.arcee, configs.arcee_json, families.LLAMA),
    "mistral": Family("MistralForCausalLM", configs.mistral, configs.mistral_json, families.LLAMA),
    "mixtral": Family(
        "MixtralForCausalLM", configs.mixtral, configs.mixtral_json, families.MIXTRAL
    ),
    "qwen2": Family("Qwen2ForCausalLM", configs.qwen2, configs.qwen2_json, families.LLAMA),
    "qwen3": Family("Qwen3ForCausalLM", configs.qwen3, configs.qwen3_json, families.LLAMA),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", configs.qwen3_moe, configs.qwen3_moe_json, families.QWEN_MOE
    ),
    "gemma2": Family("Gemma2ForCausalLM", configs.gemma2, configs.gemma2_json, families.GEMMA),
    "gemma3_text": Family("Gemma3ForCausalLM", configs.gemma3, configs.gemma3_json, families.GEMMA),
    "olmo2": Family("Olmo2ForCausalLM", configs.olmo2, configs.llama_json, families.OLMO2),
    "phi3": Family("Phi3ForCausalLM", configs.phi3, configs.phi3_json, families.PHI3),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        older.gpt_neox,
        older.gpt_neox_json,
        families.GPT_NEOX,
        "gpt_neox.",
        "embed_out.weight",
        (r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\.inv_freq"),
    ),
    "deepseek_v2": Family("DeepseekV2ForCausalLM", *_DEEPSEEK),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", *_DEEPSEEK, unused=_SECOND_TOKEN),
    "bert": Family(
        "BertForMaskedLM",
        older.bert,
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
        older.t5,
        older.t5_json,
        families.t5,
        "",
        unused=(
            r"(en|de)coder\.embed_tokens\.weight",
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        ),
    ),
}
"""By their `model_type`. SmolLM2 is a Llama, Pythia a GPT-NeoX."""


def family_of(config: ModelConfig, preferred: str | None = None) -> str:
    """Names the family that computes what a config computes: the first whose config.json, read
    again, is the same.

    Raises:
      ConfigError: there is none; says in what the nearest one differs.
    """

    def again(name: str) -> ModelConfig:
        keys = Keys(
            dict(model_type=name, **json.loads(json.dumps(FAMILIES[name].write(config)))),
            f"a config.json of {name}",
        )
        found = FAMILIES[name].read(keys)
        keys.finish()
        return found

    return equivalence.first_equivalent(
        config,
        [*([preferred] if preferred in FAMILIES else []), *FAMILIES],
        again,
        "family of Hugging Face models",
    )
