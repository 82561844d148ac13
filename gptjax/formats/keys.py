"""The keys of a config.json, of which every one must be taken, and RoPE in their words, which all
families share."""

from __future__ import annotations

import math
import re
from typing import Any

from gptjax.core.config import ConfigError, require
from gptjax.model import Layer, LinearScaling, Llama3Scaling, ModelConfig, NTKScaling, YarnScaling
from gptjax.model.config import RopeScaling
from gptjax.model.config_parts import GATES

_PROVENANCE = {
    "architectures", "model_type", "auto_map", "transformers_version", "transformers.js_config",
    "torch_dtype", "dtype", "gptjax", "name_or_path", "finetuning_task", "task_specific_params",
    "tokenizer_class", "language", "license", "is_llama_config", "is_encoder_decoder",
}  # fmt: skip
_TOKENS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "eod_token_id",
}  # fmt: skip
_GENERATION = {
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "return_dict_in_generate", "output_scores", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "max_new_tokens", "prefix",
}  # fmt: skip
_TRAINING = {
    "initializer_range", "initializer_factor", "embedding_initializer_range",
    "attention_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "hidden_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "classifier_dropout",
    "activation_dropout", "gradient_checkpointing", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha", "seq_aux", "ep_size",
    "num_nextn_predict_layers", "num_mtp_layers", "pretraining_tp", "moe_capacity",
    "moe_use_aux_free",
    "dropout", "embed_dropout", "resid_dropout", "emb_pdrop", "qa_dropout", "seq_classif_dropout",
    "classif_dropout", "layerdrop", "encoder_layerdrop", "decoder_layerdrop", "init_std",
}  # fmt: skip
_HEADS = {"id2label", "label2id", "num_labels", "problem_type", "directionality"}
"""Of tasks that read a model without writing text, such as classification."""
_EXECUTION = {
    "use_cache", "cache_implementation", "attn_implementation", "chunk_size_feed_forward",
    "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript",
    "use_bfloat16", "tf_legacy_loss", "model_parallel", "output_past", "reorder_and_upcast_attn",
    "predict_special_tokens", "n_ctx", "max_window_layers", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled",
}  # fmt: skip
HARMLESS = _PROVENANCE | _TOKENS | _GENERATION | _TRAINING | _HEADS | _EXECUTION
"""Keys that do not change what a forward pass computes, or that repeat another key."""

HARMLESS_PREFIXES = ("pooler_", "summary_", "unsloth_")
"""Further keys: of heads that are not read (BERT's pooler, GPT-2's summary), and of a trainer."""

OFF = {
    "is_decoder",
    "add_cross_attention",
    "tie_encoder_decoder",
    "use_sliding_window",
    "rope_interleaved",
    "use_mrope",
}
"""Keys that are harmless while they are false: each turns a trait of another architecture on."""


def impossible(where: str, error: ConfigError) -> ConfigError:
    """Returns the error of a file that describes a model that cannot be, with the file's name and
    without the flags of training; one that names the file is returned as it is."""
    if where in str(error):
        return error
    what = re.sub(r",? \(?(or set )?--[^);]*\)?", "", str(error)).rstrip(".")
    return ConfigError(f"{where} describes a model that cannot be: {what}. Get it again.")


class Keys:
    """The keys of a config.json. Every one must be taken by name, so that none is ignored.

    Args:
      where: the file, for messages.
    """

    def __init__(self, data: dict[str, Any], where: str):
        self.data, self.where, self.left = data, where, dict(data)

    def default(self, **values: Any) -> Keys:
        """Returns these keys, where absent ones have the values that a family's class gives
        them."""
        self.data = {**values, **self.data}
        return self

    def take(self, key: str, *default: Any) -> Any:
        """Returns the value of a key; its default if it is absent.

        Raises:
          ConfigError: it is absent and has no default.
        """
        require(
            key in self.data or bool(default),
            f"{self.where} lacks {key!r}, which {self.data.get('model_type')!r} needs.",
        )
        self.left.pop(key, None)
        return self.data[key] if key in self.data else default[0]

    def number(self, key: str, *default: Any) -> Any:
        """Returns an integer, or `None` if that is the default.

        Raises:
          ConfigError: it is something else.
        """
        value = self.take(key, *default)
        allowed_none = value is None and default[:1] == (None,)
        require(
            allowed_none or (type(value) is int and 0 <= value < 2**31),
            f"{self.where} has {key!r}: {value!r}; it needs a whole number.",
        )
        return value

    def same(self, key: str, *allowed: Any) -> None:
        """Takes a key whose only values are those allowed; the first is the default.

        Raises:
          ConfigError: it has another value, which ours cannot compute.
        """
        value = self.take(key, allowed[0])
        require(
            value in allowed,
            f"{self.where} has {key!r}: {value!r}; this program can read"
            f" {' or '.join(map(repr, allowed))} only.",
        )

    def finish(self) -> None:
        """Refuses keys that nothing took and that may change what the model computes.

        Raises:
          ConfigError: names each with its value.
        """
        unknown = {key: value for key, value in self.left.items() if not _is_harmless(key, value)}
        listed = ", ".join(f"{key!r}: {str(value)[:60]}" for key, value in sorted(unknown.items()))
        require(
            not unknown,
            f"{self.where} has {listed}, which may change what the model computes and is not known"
            " here; if it does not, make a copy without it: gptjax convert SRC DST --ignore-keys"
            f" {' '.join(sorted(unknown))}",
        )


def _is_harmless(key: str, value: Any) -> bool:
    absent = value is None or value == [] or value == {}
    off = key in OFF and value is False
    return absent or off or key in HARMLESS or key.startswith(HARMLESS_PREFIXES)


ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "gelu_python_tanh": "gelu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""Theirs to ours."""
OURS = {
    "gelu": "gelu_new",
    "gelu_exact": "gelu",
    "gelu_quick": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
}
"""Ours to theirs."""
_GATED = {gate: name for name, gate in GATES.items() if name != "swiglu_clamped"}


def activation(keys: Keys, key: str, default: str, gated: bool = False) -> Any:
    """Returns our name of their activation.

    Args:
      gated: it is that of a gate.

    Raises:
      ConfigError: we do not have it.
    """
    value = keys.take(key, default)
    named = {name: _GATED.get(ours) if gated else ours for name, ours in ACTIVATIONS.items()}
    known = [name for name, ours in named.items() if ours is not None]
    require(
        value in known,
        f"{keys.where} has {key!r}: {value!r}; this program can read {', '.join(known)}.",
    )
    return named[value]


# --- RoPE ----------------------------------------------------------------------------------------


def rope(keys: Keys, context: int, theta: float = 10_000.0) -> dict[str, Any]:
    """Returns our fields of RoPE, from either of the two forms that their configs have had."""
    newer, older = keys.take("rope_parameters", None), keys.take("rope_scaling", None)
    inner = Keys({**(newer or {}), **(older or {})}, f"rope_scaling in {keys.where}")
    base = inner.take("rope_theta", keys.take("rope_theta", theta))
    share = inner.take("partial_rotary_factor", keys.take("partial_rotary_factor", 1.0))
    kind = inner.take("rope_type", inner.take("type", "default"))
    inner.left.pop("type", None)
    return {
        "rope_base": float(base),
        "rope_share": float(share),
        "rope_scaling": scaling(inner, kind, context),
    }


def scaling(keys: Keys, kind: str, context: int) -> RopeScaling | None:
    """Returns how RoPE is stretched.

    Raises:
      ConfigError: in a way that is not known here.
    """
    result: RopeScaling | None = None
    if kind == "linear":
        result = LinearScaling(float(keys.take("factor")))
    elif kind == "llama3":
        result = Llama3Scaling(
            float(keys.take("factor")),
            original=keys.number("original_max_position_embeddings"),
            fast=float(keys.take("high_freq_factor")),
            slow=float(keys.take("low_freq_factor")),
        )
    elif kind == "yarn":
        result = _yarn(keys, context)
    elif kind == "dynamic":
        # It changes nothing up to max_position_embeddings, which is all that we let a model see.
        for key in ("factor", "alpha", "original_max_position_embeddings"):
            keys.take(key, None)
    else:
        require(
            kind == "default",
            f"{keys.where} is {kind!r}; this program can stretch RoPE by 'linear', 'llama3',"
            " 'yarn' or 'dynamic'.",
        )
    keys.finish()
    return result


def _yarn(keys: Keys, context: int) -> YarnScaling:
    factor, magnitude = float(keys.take("factor")), keys.take("attention_factor", None)
    weights = keys.take("mscale", None), keys.take("mscale_all_dim", None)
    if magnitude is None and all(weights):
        magnitude = yarn_magnitude(factor, weights[0]) / yarn_magnitude(factor, weights[1])
    return YarnScaling(
        factor,
        original=keys.number("original_max_position_embeddings", context),
        fast=float(keys.take("beta_fast", None) or 32),
        slow=float(keys.take("beta_slow", None) or 1),
        magnitude=magnitude,
        truncate=bool(keys.take("truncate", True)),
    )


def yarn_magnitude(factor: float, weight: float) -> float:
    """Returns YaRN's factor of rotated queries and keys for a context `factor` times longer."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rope_json(config: ModelConfig, layer: Layer | None = None) -> dict[str, Any]:
    """Returns RoPE in their older form, which all programs read: rope_theta and rope_scaling."""
    layer = layer or config.stack[-1]
    base, data = layer.rope_base or config.rope_base, None
    match config.scaling_in(layer):
        case LinearScaling(factor):
            data = {"rope_type": "linear", "factor": factor}
        case NTKScaling(factor):
            base *= factor ** (config.rotary_dim / max(config.rotary_dim - 2, 1))
        case Llama3Scaling(factor, original, fast, slow):
            data = {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": original,
                "high_freq_factor": fast,
                "low_freq_factor": slow,
            }
        case YarnScaling(factor, original, fast, slow, magnitude, truncate):
            data = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": fast,
                "beta_slow": slow,
            }
            data |= {} if magnitude is None else {"attention_factor": magnitude}
            data |= {} if truncate else {"truncate": False}
    return {"rope_theta": base, "rope_scaling": data}
