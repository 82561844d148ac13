"""GGUF's architectures: metadata to `ModelConfig` and back.

Read `BASES` (what an architecture is), `config_from_metadata` (metadata to config), `metadata`
(config to metadata) and `architecture`, which chooses for a model the one whose metadata, read
back, gives the same model. The tensors are in `gguf_tensors`.

Sources: llama.cpp's architectures and the models that they were made for, named at
`gptjax.model.presets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError, nearest, require
from gptjax.formats import configs, equivalence, keys
from gptjax.formats.gguf_file import File, Kind, Tensor, abbreviate, numbers
from gptjax.formats.gguf_keys import Metadata
from gptjax.formats.gguf_routers import BIAS, SIGMOID, experts_metadata, experts_of
from gptjax.model import Experts, Layer, LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from gptjax.model.config import RopeScaling
from gptjax.model.rope_scaling import frequencies

LLAMA = ModelConfig(positions="rope", norm="rmsnorm", activation="swiglu", bias=False)
GEMMA = replace(LLAMA, activation="geglu", scaled_embedding=True)
JOINT = replace(LLAMA, qk_norm=True, qk_norm_joint=True)
LAYERNORM = replace(
    LLAMA, norm="layernorm", bias=True, qkv_bias=False, out_bias=False, mlp_bias=False
)

BASES: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "arcee": replace(LLAMA, activation="relu2"),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen3": replace(LLAMA, qk_norm=True),
    "qwen3moe": replace(LLAMA, qk_norm=True, experts=Experts()),
    "olmo2": replace(JOINT, norm_placement="reordered"),
    "phi3": LLAMA,
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norm_placement="sandwich", attention_cap=50.0, logit_cap=30.0),
    "gemma3": replace(GEMMA, norm_placement="sandwich", qk_norm=True, rope_base=1e6),
    "gpt2": ModelConfig(),
    "smollm3": replace(LLAMA, pattern=(Layer(),) * 3 + (Layer(positions="none"),)),
    "exaone4": replace(LLAMA, norm_placement="reordered", qk_norm=True),
    "ernie4_5": LLAMA,
    "glm4": replace(LLAMA, norm_placement="sandwich"),
    "seed_oss": LLAMA,
    "nemotron": replace(LAYERNORM, activation="relu2"),
    "jais2": replace(LAYERNORM, activation="relu2"),
    "phi2": ModelConfig(positions="rope", parallel="shared", logit_bias=True),
    "stablelm": LAYERNORM,
    "starcoder2": replace(LAYERNORM, activation="gelu"),
    "olmo": replace(LLAMA, norm="layernorm", norm_scale=False),
    "olmoe": replace(JOINT, experts=Experts(normalised=False)),
    "minimax-m2": replace(JOINT, experts=SIGMOID),
    "dots1": replace(LLAMA, qk_norm=True, experts=SIGMOID),
    "glm4moe": replace(LLAMA, experts=SIGMOID),
}
"""What all models of an architecture share."""

BIASES = {"out_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"}
"""Biases that only some models of an architecture have, and a tensor that shows them."""
BIASED = {"llama", "nemotron", "jais2", "starcoder2"}
"""Architectures of which some models have them, and some not."""

QUERY_NORM = "blk.0.attn_q_norm.weight"
"""Shows that heads are normalised, where only some models of an architecture do so."""

LARGEST = {"gemma2": 46, "gemma3": 62}
"""Number of layers of the Gemmas that scale scores by another root than that of the head's width,
which the metadata does not say."""


# --- metadata to config --------------------------------------------------------------------------


def config_from_metadata(file: File, vocab_size: int) -> ModelConfig:
    """Returns the config that a file's metadata describes.

    Raises:
      ConfigError: its architecture is unknown, or it has a key or value that is not known here.
    """
    arch = file.get("general.architecture", str)
    require(
        arch in BASES,
        f"{file.path} is of the architecture {abbreviate(arch)}; known are"
        f" {', '.join(BASES)}.{nearest(arch[:40], BASES)}",
    )
    base, fields = BASES[arch], Metadata(file, arch)
    changes = _sizes(fields, base) | {"vocab_size": vocab_size}
    changes["tied"] = "output.weight" not in file.tensors
    if not base.qkv_bias_enabled and "blk.0.attn_q.bias" in file.tensors:
        changes["qkv_bias"] = True
    if arch == "olmo":
        changes["qkv_clip"] = fields.real("attention.clamp_kqv", 0.0) or None
    if arch == "glm4moe":
        changes["qk_norm"] = QUERY_NORM in file.tensors
    if arch in BIASED:
        changes |= {name: True for name, tensor in BIASES.items() if tensor in file.tensors}
    if base.positions == "rope":
        changes |= _rope(fields, base, changes["width"] // max(changes["num_heads"], 1))
    changes |= experts_of(fields, base, changes["feed_forward"]) | _caps(fields)
    if arch == "stablelm":
        parallel = fields.take("use_parallel_residual", bool, True)
        changes["parallel"] = "shared" if parallel else "none"
    if changes["num_layers"] == LARGEST.get(arch):
        changes["attention_scale"] = (changes["width"] / changes["num_heads"]) ** -0.5
    try:
        config = replace(base, **changes)
    except ConfigError as error:
        raise keys.impossible(str(file.path), error) from None
    if arch in WINDOWS and fields.has("attention.sliding_window"):
        config = _windowed(fields, config)
    fields.finish()
    return config


def _sizes(fields: Metadata, base: ModelConfig) -> dict[str, Any]:
    width, num_heads = fields.number("embedding_length"), fields.number("attention.head_count")
    head_dim = fields.number("attention.key_length", width // max(num_heads, 1))
    require(
        fields.number("attention.value_length", head_dim) == head_dim,
        f"{fields.file.path} has values of another width than keys, which is not known here.",
    )
    norm = "layer_norm_epsilon" if base.norm == "layernorm" else "layer_norm_rms_epsilon"
    return {
        "context": fields.number("context_length"),
        "width": width,
        "num_layers": fields.number("block_count", most=1 << 10),
        "num_heads": num_heads,
        "num_kv_heads": fields.number("attention.head_count_kv", num_heads),
        "head_width": None if head_dim * num_heads == width else head_dim,
        "feed_forward": fields.number("feed_forward_length"),
        "norm_epsilon": fields.real(f"attention.{norm}"),
    }


def _caps(fields: Metadata) -> dict[str, float]:
    """Soft caps of scores and logits, in the architectures that have them; 0 is none."""
    caps = {
        name: fields.real(key) for name, key in CAPS.get(fields.arch, {}).items() if fields.has(key)
    }
    return {name: cap for name, cap in caps.items() if cap}


CAPS = {
    "gemma2": {
        "attention_cap": "attn_logit_softcapping",
        "logit_cap": "final_logit_softcapping",
    },
    "gemma3": {"logit_cap": "final_logit_softcapping"},
}

WINDOWS = {"phi3": 0, "gemma2": 2, "gemma3": 6, "olmo2": 4, "exaone4": 4}
"""Every how many layers one sees everything, if the file does not say; 0: none does."""


EXAONE_LAYERS = 64
"""Layers of the EXAONE 4 that has windows; llama.cpp knows it by them."""


def _windowed(fields: Metadata, c: ModelConfig) -> ModelConfig:
    """The config with windows in the layers that have them."""
    span, arch = fields.number("attention.sliding_window"), fields.arch
    base = fields.real("rope.freq_base_swa", 10_000.0) if arch == "gemma3" else None
    key = "attention.sliding_window_pattern"
    pattern = fields.take(key, (int, np.ndarray), WINDOWS[arch])
    if not span:
        return c
    local = Layer("window", span, rope_base=base, rope_scaled=arch not in ("gemma3", "olmo2"))
    require(
        arch != "exaone4" or c.num_layers == EXAONE_LAYERS,
        f"{fields.file.path}: {arch}.{key} is for {EXAONE_LAYERS} layers; other models of the"
        f" architecture have no windows, and this one has {c.num_layers} layers.",
    )
    whole = Layer(positions="none") if arch == "exaone4" else Layer()
    if isinstance(pattern, int):
        require(0 <= pattern <= c.num_layers, f"{fields.file.path}: {arch}.{key} is {pattern}.")
        period = (local,) * (pattern - 1) + (whole,) if pattern else (local,)
        return replace(c, pattern=period)
    require(
        len(pattern) == c.num_layers,
        f"{fields.file.path}: {arch}.{key} has {len(pattern)} values for {c.num_layers} layers.",
    )
    return configs.patterned(c, [local if has else whole for has in pattern])


def _rope(fields: Metadata, base: ModelConfig, head_dim: int) -> dict[str, Any]:
    head_dim = fields.number("attention.key_length", head_dim)
    rotary_dim = fields.number("rope.dimension_count", head_dim)
    theta = fields.real("rope.freq_base", base.rope_base)
    return {
        "rope_base": theta,
        "rope_share": rotary_dim / max(head_dim, 1),
        "rope_scaling": _scaling(fields, rotary_dim, theta),
    }


def _scaling(fields: Metadata, rotary_dim: int, base: float) -> RopeScaling | None:
    """How RoPE is stretched. Llama 3's way is a tensor, one factor a wave: the whole factor is read
    from it, the rest is known."""
    factor = fields.real("rope.scale_linear", 1.0)  # the older key
    factor = fields.real("rope.scaling.factor", factor) or 1.0
    kind, path = fields.take("rope.scaling.type", str, "linear"), fields.file.path
    longer = [name for name in fields.file.tensors if "rope_factors" in name]
    require(
        kind in ("none", "linear", "yarn") and not longer and factor > 0,
        f"{path} stretches RoPE by {abbreviate(longer[0] if longer else kind)}, factor {factor};"
        " none, linear and yarn are known, with a positive factor.",
    )
    waves = fields.file.tensors.get("rope_freqs.weight")
    if waves is not None:
        factors = waves if isinstance(waves, np.ndarray) else numbers(fields.file, waves)
        guess = Llama3Scaling(round(float(factors.max()), 3))
        same = factors.shape == (rotary_dim // 2,) and np.allclose(
            factors, stretch(guess, rotary_dim, base), rtol=1e-4
        )
        require(
            same and factor == 1.0,
            f"{path}: rope_freqs.weight stretches RoPE otherwise than Llama 3 does, which is not"
            " known here.",
        )
        return guess
    if kind == "yarn":
        return _yarn(fields, factor)
    return LinearScaling(factor) if kind == "linear" and factor != 1.0 else None


def _yarn(fields: Metadata, factor: float) -> YarnScaling:
    louder = 1.0
    for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        louder *= fields.real(key, 1.0) or 1.0
    return YarnScaling(
        factor,
        original=fields.number("rope.scaling.original_context_length"),
        fast=fields.real("rope.scaling.yarn_beta_fast", 32.0),
        slow=fields.real("rope.scaling.yarn_beta_slow", 1.0),
        magnitude=None if louder == 1.0 else louder * (0.1 * math.log(factor) + 1),
    )


def stretch(scaling: Llama3Scaling, width: int, base: float) -> np.ndarray:
    """Returns how many times longer each wave becomes."""
    return np.asarray(frequencies(width, base, None) / frequencies(width, base, scaling))


# --- config to metadata ---------------------------------------------------------------------------


def metadata(arch: str, c: ModelConfig) -> dict[str, Any]:
    """Returns the metadata of a model as one of an architecture, without what it has no key for."""
    epsilon = "layer_norm_epsilon" if c.norm == "layernorm" else "layer_norm_rms_epsilon"
    fields: dict[str, Any] = {
        "context_length": c.context,
        "embedding_length": c.width,
        "block_count": c.num_layers,
        "feed_forward_length": c.mlp_dim,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.kv_heads,
        f"attention.{epsilon}": float(c.norm_epsilon),
        "vocab_size": c.vocabulary,
    }
    if c.positions == "rope":
        fields |= {
            "rope.freq_base": float(c.rope_base),
            "rope.dimension_count": c.rotary_dim,
            "attention.key_length": c.head_dim,
            "attention.value_length": c.head_dim,
        }
    if isinstance(c.rope_scaling, LinearScaling | YarnScaling):
        fields |= {
            "rope.scaling.type": "yarn" if isinstance(c.rope_scaling, YarnScaling) else "linear",
            "rope.scaling.factor": float(c.rope_scaling.factor),
        }
    if isinstance(c.rope_scaling, YarnScaling):
        fields |= {
            "rope.scaling.original_context_length": c.rope_scaling.original,
            "rope.scaling.yarn_beta_fast": float(c.rope_scaling.fast),
            "rope.scaling.yarn_beta_slow": float(c.rope_scaling.slow),
        }
    fields |= experts_metadata(arch, c)
    if arch == "olmo" and c.qkv_clip is not None:
        fields["attention.clamp_kqv"] = c.qkv_clip
    if arch == "stablelm":
        fields["use_parallel_residual"] = c.parallel == "shared"
    for cap, key in CAPS.get(arch, {}).items():
        if getattr(c, cap) is not None:
            fields[key] = float(getattr(c, cap))
    local = next((layer for layer in c.stack if layer.sees == "window"), None)
    if local is not None and arch in WINDOWS:
        fields["attention.sliding_window"] = local.span
        if arch == "gemma3":
            fields["rope.freq_base_swa"] = float(local.rope_base or c.rope_base)
    return {f"{arch}.{key}": value for key, value in fields.items()}


def architecture(c: ModelConfig, preferred: str | None = None) -> str:
    """Returns the architecture that a model is written as: one whose metadata, read back, computes
    the same.

    Phi-3 is used only if preferred: it joins tensors that are separate in Llama.

    Raises:
      ConfigError: there is none; names the closest one and in what it differs.
    """

    def again(arch: str) -> ModelConfig:
        tensors = {name: Tensor(name, (), Kind.F32, 0) for name, has in TRAITS.items() if has(c)}
        if isinstance(c.rope_scaling, Llama3Scaling):
            tensors["rope_freqs.weight"] = stretch(c.rope_scaling, c.rotary_dim, c.rope_base)
        fields = {"general.architecture": arch, **metadata(arch, c)}
        return config_from_metadata(File(Path("the file"), fields, tensors), c.vocabulary)

    names = [arch for arch in BASES if arch != "phi3"]
    names = [preferred, *names] if preferred in BASES else names
    return equivalence.first_equivalent(c, names, again, "GGUF architecture")


TRAITS: dict[str, Callable[[ModelConfig], bool]] = {
    "output.weight": lambda c: not c.tied,
    "blk.0.attn_q.bias": lambda c: c.qkv_bias_enabled,
    BIASES["out_bias"]: lambda c: c.out_bias_enabled,
    BIASES["mlp_bias"]: lambda c: c.mlp_bias_enabled,
    QUERY_NORM: lambda c: c.qk_norm,
    f"blk.0{BIAS}.bias": lambda c: c.experts is not None and c.experts.bias_step > 0,
}
"""Tensors whose presence shows a trait that metadata does not."""


def in_window(c: ModelConfig) -> ModelConfig:
    """Returns the model with a context as long as its window, if all layers have the same: within
    it, they see everything."""
    spans = {layer.span for layer in c.stack if layer.sees == "window" and not layer.sinks}
    every = all(layer.sees == "window" and not layer.sinks for layer in c.stack)
    return replace(c, context=min(c.context, *spans)) if every and len(spans) == 1 else c
