"""Keys of GGUF metadata, below the name of an architecture: `COMPUTED`, `HARMLESS`, `NEUTRAL` and
`REFUSED`, and `Metadata`, which lets none of a file be ignored.

Every key that the `gguf` package names is in one of them; docs/keys.md lists them.
"""

from __future__ import annotations

import math
from typing import Any

from gptjax.core.config import require
from gptjax.formats.gguf_file import File, abbreviate

COMPUTED = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_gating_func",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "leading_dense_block_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "use_parallel_residual",
}
"""Keys that are translated, where the architecture has what they say."""

HARMLESS = {
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "pooling_type",
    "rope.scaling.original_context_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
}
"""Keys that change nothing in the architectures that are known here. (Of the two epsilons, only the
one of the architecture's norm counts; the original context counts with YaRN.)"""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_used_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (0.0, 1.0),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}
"""Values at which keys change nothing; at others they are refused, if they are not computed."""


REFUSED = {
    "activation_sparsity_scale", "altup.active_idx", "altup.num_inputs",
    "attention.decay_lora_rank", "attention.gate_lora_rank", "attention.group_norm_epsilon",
    "attention.group_norm_groups", "attention.iclr_lora_rank", "attention.indexer.head_count",
    "attention.indexer.key_length", "attention.indexer.top_k", "attention.key_length_mla",
    "attention.key_length_swa", "attention.kv_lora_rank", "attention.output_scale",
    "attention.q_lora_rank", "attention.relative_buckets_count", "attention.temperature_length",
    "attention.temperature_scale", "attention.value_length_mla", "attention.value_length_swa",
    "attention.value_residual_mix_lora_rank", "classifier.output_labels", "convnext.block_count",
    "convnext.embedding_length", "decoder_block_count", "decoder_start_token_id",
    "embedding_length_out", "embedding_length_per_layer_input",
    "expert_chunk_feed_forward_length", "expert_group_scale", "experts_per_group",
    "features_length", "full_attention_interval", "interleave_moe_layer_step", "kda.head_dim",
    "moe_every_n_layers", "moe_latent_size", "n_deepstack_layers", "posnet.block_count",
    "posnet.embedding_length", "rescale_every_n_layers", "rope.dimension_count_swa",
    "rope.dimension_sections", "router_logit_softcapping", "shortconv.l_cache", "ssm.conv_kernel",
    "ssm.dt_b_c_rms", "ssm.group_count", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank",
    "swiglu_clamp_exp", "swiglu_clamp_shexp", "swin_norm", "time_decay_extra_dim",
    "time_mix_extra_dim", "token_shift_count", "wkv.head_size",
    "{dense}_feat_in", "{dense}_feat_out",
}  # fmt: skip
"""Keys that would change what a model computes, none of which is translated: a file that has one is
refused by the key's name, and so is one with a key that is in none of these lists."""


class Metadata:
    """The metadata of an architecture. Every key must be taken by name, so that none is ignored."""

    def __init__(self, file: File, arch: str):
        self.file, self.arch = file, arch
        keys = (key for key in file.fields if key.startswith(f"{arch}."))
        self._left = {key.removeprefix(f"{arch}.") for key in keys}

    def has(self, key: str) -> bool:
        """Whether the file has a key."""
        return f"{self.arch}.{key}" in self.file.fields

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Returns a value of a type; `default` if the key is absent.

        Raises:
          ConfigError: it is of another type, or absent without a default.
        """
        self._left.discard(key)
        return self.file.get(f"{self.arch}.{key}", kind, default)

    def number(self, key: str, default: int | None = None, most: int = 1 << 24) -> int:
        """Returns an integer in [0, most]."""
        value = self.take(key, int, default)
        require(
            0 <= value <= most,
            f"{self.file.path}: {self.arch}.{key} is {value}, which no model has; it can be at most"
            f" {most}.",
        )
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Returns a finite number."""
        value = float(self.take(key, (int, float), default))
        require(math.isfinite(value), f"{self.file.path}: {self.arch}.{key} is {value}.")
        return value

    def finish(self) -> None:
        """Refuses keys that nothing took and that may change what the model computes.

        Raises:
          ConfigError: names each with its value.
        """
        unknown = {
            f"{self.arch}.{key}": abbreviate(self.file.fields[f"{self.arch}.{key}"])
            for key in sorted(self._left - HARMLESS)
            if not _is_neutral(key, self.file.fields[f"{self.arch}.{key}"])
        }
        listed = ", ".join(f"{key} = {value}" for key, value in list(unknown.items())[:10])
        require(
            not unknown,
            f"{self.file.path} has {listed}, which may change what the model computes and is not"
            " known here; use another version of the model, or if you know that they change"
            " nothing, make a copy: gptjax convert SRC DST --ignore-keys"
            f" {' '.join(key.removeprefix(f'{self.arch}.') for key in unknown)}",
        )


def _is_neutral(key: str, value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in NEUTRAL.get(key, ())
