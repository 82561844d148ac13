"""A config.json whose every key must be asked for, and RoPE in their words, which all families
share."""

from __future__ import annotations

import math
from typing import Any

from gptjax.core.config import require
from gptjax.model import Layer, LinearScaling, Llama3Scaling, ModelConfig, NTKScaling, YarnScaling

HARMLESS = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "auto_map", "transformers.js_config", "gptjax"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "task_specific_params"),
    *("use_cache", "initializer_range", "initializer_factor", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation"),
    *("cache_implementation",),
    *("attention_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate"),
    *("classifier_dropout", "output_past", "gradient_checkpointing", "id2label", "label2id", "num_labels", "n_ctx", "output_router_logits", "torchscript"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn"),
    *("router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers", "num_mtp_layers", "pretraining_tp"),
    *("is_llama_config", "is_encoder_decoder", "return_dict", "output_hidden_states", "output_attentions", "use_bfloat16", "problem_type", "tokenizer_class"),
    *("max_window_layers", "model_parallel", "predict_special_tokens", "finetuning_task"),
}  # fmt: skip
"""Keys that change no number of a forward pass, or only those of training, or that another key
makes good for."""
OFF = {
    "is_decoder",
    "add_cross_attention",
    "tie_encoder_decoder",
    "use_sliding_window",
    "rope_interleaved",
    "use_mrope",
}
"""Keys that say false of what another architecture has."""


class Keys:
    """A config.json from which every key is taken by name."""

    def __init__(self, data: dict[str, Any], where: str):
        self.data, self.where, self.left = data, where, dict(data)

    def take(self, key: str, *default: Any) -> Any:
        """The value of a key; its default where it is absent.

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
        """A whole number, or none where that is the default."""
        value = self.take(key, *default)
        fine = (type(value) is int and 0 <= value < 2**31) or (
            value is None and default[:1] == (None,)
        )
        require(fine, f"{self.where} has {key!r}: {value!r}; it needs a whole number.")
        return value

    def same(self, key: str, *allowed: Any) -> None:
        """Takes a key whose only values are those allowed; the first is the default.

        Raises:
          ConfigError: it has another value, which ours can't compute.
        """
        value = self.take(key, allowed[0])
        require(
            value in allowed,
            f"{self.where} has {key!r}: {value!r}; this program can read"
            f" {' or '.join(map(repr, allowed))} only.",
        )

    def finish(self) -> None:
        """Refuses what nobody asked for.

        Raises:
          ConfigError: names every key that is unknown and not null.
        """

        def off(key, value):
            return value is None or (value is False and key in OFF)

        unknown = {
            key: value
            for key, value in self.left.items()
            if key not in HARMLESS and not off(key, value)
        }
        said = ", ".join(f"{key!r}: {str(value)[:60]}" for key, value in sorted(unknown.items()))
        require(
            not unknown,
            f"{self.where} says {said}, which may change what the model computes and is not known"
            " here; remove it if it does not.",
        )


ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
}
"""Theirs, and ours."""
OURS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu", "relu2": "relu2", "silu": "silu"}


def activation(keys: Keys, key: str, default: str) -> Any:
    """Our word for their activation."""
    value = keys.take(key, default)
    require(
        value in ACTIVATIONS,
        f"{keys.where} has {key!r}: {value!r}; this program can read {', '.join(ACTIVATIONS)}.",
    )
    return ACTIVATIONS[value]


# --- RoPE
# --------------------------------------------------------------------------------------------------------


def rope(keys: Keys, context: int, theta: float = 10_000.0) -> dict[str, Any]:
    """Our fields of RoPE, from either of the two forms that their configs have had."""
    given = keys.take("rope_parameters", None) or {}
    stretched = keys.take("rope_scaling", None) or {}
    found = Keys({**given, **stretched}, f"rope_scaling in {keys.where}")
    base = keys.take("rope_theta", theta)
    base, share = (
        found.take("rope_theta", base),
        found.take("partial_rotary_factor", keys.take("partial_rotary_factor", 1.0)),
    )
    kind = found.take("rope_type", found.take("type", "default"))
    found.left.pop("type", None)
    return {
        "rope_base": float(base),
        "rope_share": float(share),
        "rope_scaling": scaling(found, kind, context),
    }


def scaling(keys: Keys, kind: str, context: int) -> Any:
    """How RoPE is stretched."""
    found: Any = None
    if kind == "linear":
        found = LinearScaling(float(keys.take("factor")))
    elif kind == "llama3":
        original, fast, slow = (
            keys.number("original_max_position_embeddings"),
            keys.take("high_freq_factor"),
            keys.take("low_freq_factor"),
        )
        found = Llama3Scaling(float(keys.take("factor")), original, float(fast), float(slow))
    elif kind == "yarn":
        factor, original = (
            float(keys.take("factor")),
            keys.number("original_max_position_embeddings", context),
        )
        fast, slow = (
            float(keys.take("beta_fast", None) or 32),
            float(keys.take("beta_slow", None) or 1),
        )
        keys.same("truncate", True)
        louder, both = (
            keys.take("attention_factor", None),
            (keys.take("mscale", None), keys.take("mscale_all_dim", None)),
        )
        if louder is None and all(both):
            louder = louder_by(factor, both[0]) / louder_by(factor, both[1])
        found = YarnScaling(factor, original, fast, slow, louder)
    else:
        require(
            kind == "default",
            f"{keys.where} is {kind!r}; this program can stretch RoPE by 'linear', 'llama3' or"
            " 'yarn'.",
        )
    keys.finish()
    return found


def louder_by(factor: float, weight: float) -> float:
    """YaRN's growth of attention for a context that is `factor` times longer."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rope_json(config: ModelConfig, layer: Layer | None = None) -> dict[str, Any]:
    """RoPE in their older words, which all programs read: rope_theta and rope_scaling."""
    layer = layer or config.stack[-1]
    base, stretch = layer.rope_base or config.rope_base, None
    match config.scaling_in(layer):
        case LinearScaling(factor):
            stretch = {"rope_type": "linear", "factor": factor}
        case NTKScaling(factor):
            base *= factor ** (config.rotary_dim / max(config.rotary_dim - 2, 1))
        case Llama3Scaling(factor, original, fast, slow):
            stretch = {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": original,
                "high_freq_factor": fast,
                "low_freq_factor": slow,
            }
        case YarnScaling(factor, original, fast, slow, magnitude):
            stretch = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": fast,
                "beta_slow": slow,
            }
            stretch |= {} if magnitude is None else {"attention_factor": magnitude}
    return {"rope_theta": base, "rope_scaling": stretch}
