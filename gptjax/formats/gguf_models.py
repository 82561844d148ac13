"""GGUF's architectures: their metadata and a `ModelConfig`, in both directions, and the names of
their tensors.

Read `BASES` (what an architecture is), `describe` (metadata → config), `metadata` (config →
metadata) and `architecture`, which chooses for a model of ours the one whose metadata, read back,
gives the same model. Then `entries`: which of their tensors are which of our leaves.

Sources: llama.cpp's architectures and the models that they were made for, named at
`gptjax.model.presets`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.core.config import ConfigError, nearest, require
from gptjax.formats import configs, layout
from gptjax.formats.gguf_file import File, Kind, Tensor, numbers, short
from gptjax.formats.layout import Entry, Place
from gptjax.model import Experts, Layer, LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from gptjax.model.rope_scaling import frequencies

LLAMA = ModelConfig(positions="rope", norm="rmsnorm", activation="swiglu", bias=False)
GEMMA = replace(LLAMA, activation="geglu", scaled_embedding=True)

BASES: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "arcee": replace(LLAMA, activation="relu2"),
    "qwen2": replace(LLAMA, qkv_bias=True),
    "qwen3": replace(LLAMA, qk_norm=True),
    "qwen3moe": replace(LLAMA, qk_norm=True, experts=Experts()),
    "olmo2": replace(LLAMA, norm_placement="reordered", qk_norm=True, qk_norm_joint=True),
    "phi3": LLAMA,
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norm_placement="sandwich", attention_cap=50.0, logit_cap=30.0),
    "gemma3": replace(GEMMA, norm_placement="sandwich", qk_norm=True, rope_base=1e6),
    "gpt2": ModelConfig(),
}
"""What all models of an architecture have in common."""

LARGEST = {"gemma2": 46, "gemma3": 62}
"""Layers of those Gemmas that divide queries by another root than that of the head's width;
metadata does not say it."""


# --- metadata → config
# -------------------------------------------------------------------------------------------


def describe(file: File, vocab_size: int) -> ModelConfig:
    """Gives the config that a file's metadata describes.

    Raises:
      ConfigError: it is of an architecture, or has a trait, that is not known here.
    """
    arch = file.get("general.architecture", str)
    require(
        arch in BASES,
        f"{file.path} is of the architecture {short(arch)}; known are"
        f" {', '.join(BASES)}.{nearest(arch[:40], BASES)}",
    )

    def known(key):
        return f"{arch}.{key}" in file.fields

    def number(key: str, default: int | None = None, most: int = 1 << 24) -> int:
        found = file.get(f"{arch}.{key}", int, default)
        require(
            0 <= found <= most,
            f"{file.path}: {arch}.{key} is {found}, which no model has; it can be at most {most}.",
        )
        return found

    def real(key, default=None):
        return float(file.get(f"{arch}.{key}", (int, float), default))

    base, width, num_heads = BASES[arch], number("embedding_length"), number("attention.head_count")
    head_width = number("attention.key_length", width // max(num_heads, 1))
    require(
        number("attention.value_length", head_width) == head_width,
        f"{file.path} has values of another width than keys, which is not known here.",
    )
    changes = {
        "vocab_size": vocab_size,
        "context": number("context_length"),
        "width": width,
        "num_layers": number("block_count", most=1 << 10),
        "num_heads": num_heads,
        "num_kv_heads": number("attention.head_count_kv", num_heads),
        "head_width": None if head_width * num_heads == width else head_width,
        "feed_forward": number("feed_forward_length"),
        "norm_epsilon": real(
            "attention.layer_norm_epsilon"
            if base.norm == "layernorm"
            else "attention.layer_norm_rms_epsilon"
        ),
        "tied": "output.weight" not in file.tensors,
        "qkv_bias": (
            True
            if not base.qkv_bias_enabled and "blk.0.attn_q.bias" in file.tensors
            else base.qkv_bias
        ),
    }
    if base.positions == "rope":
        changes |= {
            "rope_base": real("rope.freq_base", base.rope_base),
            "rope_share": number("rope.dimension_count", head_width) / head_width,
        }
        changes |= {
            "rope_scaling": _scaling(
                file, arch, number("rope.dimension_count", head_width), changes["rope_base"]
            )
        }
    if known("expert_count") and number("expert_count"):
        of_expert = number("expert_feed_forward_length", changes["feed_forward"])
        changes |= {
            "experts": Experts(
                count=number("expert_count"), active=number("expert_used_count"), width=of_expert
            )
        }
    for cap, key in (
        ("attention_cap", "attn_logit_softcapping"),
        ("logit_cap", "final_logit_softcapping"),
    ):
        if known(key) and arch == "gemma2":
            changes[cap] = real(key)
    if (
        known("attention.sliding_window")
        and number("attention.sliding_window")
        and arch in ("phi3", "gemma2", "gemma3")
    ):
        changes |= {
            "pattern": _windows(
                arch, number("attention.sliding_window"), real("rope.freq_base_swa", 10_000.0)
            )
        }
    if changes["num_layers"] == LARGEST.get(arch):
        changes |= {"attention_scale": (width / num_heads) ** -0.5}
    return replace(base, **changes)


def _windows(arch: str, span: int, base: float) -> tuple[Layer, ...]:
    if arch == "gemma3":
        return (Layer("window", span, rope_base=base, rope_scaled=False),) * 5 + (Layer(),)
    return (Layer("window", span), Layer()) if arch == "gemma2" else (Layer("window", span),)


def _scaling(file: File, arch: str, turned: int, base: float) -> Any:
    """How RoPE is stretched: Llama 3's way stands in a tensor, wave by wave, of which the whole
    factor is read and the rest known."""
    kind = file.get(f"{arch}.rope.scaling.type", str, "none")
    factor = float(file.get(f"{arch}.rope.scaling.factor", (int, float), 1.0))
    waves = file.tensors.get("rope_freqs.weight")
    if waves is not None:
        found = waves if isinstance(waves, np.ndarray) else numbers(file, waves)
        guess = Llama3Scaling(round(float(found.max()), 3))
        same = found.shape == (turned // 2,) and np.allclose(
            found, stretch(guess, turned, base), rtol=1e-4
        )
        require(
            same,
            f"{file.path}: rope_freqs.weight stretches RoPE otherwise than Llama 3 does, which is"
            " not known here.",
        )
        return guess
    longer = [name for name in file.tensors if "rope_factors" in name]
    require(
        kind in ("none", "linear", "yarn") and not longer,
        f"{file.path} stretches RoPE by {short(longer[0] if longer else kind)}; none, linear and"
        " yarn are known.",
    )
    if kind == "linear":
        return LinearScaling(factor)
    return (
        YarnScaling(factor, file.get(f"{arch}.rope.scaling.original_context_length", int))
        if kind == "yarn"
        else None
    )


def stretch(scaling: Llama3Scaling, width: int, base: float) -> np.ndarray:
    """How many times longer each wave becomes."""
    return np.asarray(frequencies(width, base, None) / frequencies(width, base, scaling))


# --- config → metadata
# -------------------------------------------------------------------------------------------


def metadata(arch: str, c: ModelConfig) -> dict[str, Any]:
    """Gives the metadata of a model as one of an architecture; what there is no key for is left
    out."""
    fields: dict[str, Any] = {
        "context_length": c.context,
        "embedding_length": c.width,
        "block_count": c.num_layers,
        "feed_forward_length": c.mlp_dim,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.kv_heads,
        (
            "attention.layer_norm_epsilon"
            if c.norm == "layernorm"
            else "attention.layer_norm_rms_epsilon"
        ): float(c.norm_epsilon),
        "vocab_size": c.vocabulary,
    }
    if c.positions == "rope":
        fields |= {"rope.freq_base": float(c.rope_base), "rope.dimension_count": c.rotary_dim}
        fields |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    if isinstance(c.rope_scaling, LinearScaling | YarnScaling):
        fields |= {
            "rope.scaling.type": "yarn" if isinstance(c.rope_scaling, YarnScaling) else "linear",
            "rope.scaling.factor": float(c.rope_scaling.factor),
        }
    if isinstance(c.rope_scaling, YarnScaling):
        fields |= {"rope.scaling.original_context_length": c.rope_scaling.original}
    if c.experts is not None:
        fields |= {"expert_count": c.experts.count, "expert_used_count": c.experts.active}
        fields |= {
            (
                "expert_feed_forward_length" if arch == "qwen3moe" else "feed_forward_length"
            ): c.expert_width
        }
    for cap, key in (
        (c.attention_cap, "attn_logit_softcapping"),
        (c.logit_cap, "final_logit_softcapping"),
    ):
        if cap is not None:
            fields[key] = float(cap)
    if c.stack[0].sees == "window":
        fields["attention.sliding_window"] = c.stack[0].span
        if c.stack[0].rope_base is not None:
            fields["rope.freq_base_swa"] = float(c.stack[0].rope_base)
    return {f"{arch}.{key}": value for key, value in fields.items()}


def architecture(c: ModelConfig, preferred: str | None = None) -> str:
    """Gives the architecture that a model of ours is written as: one whose metadata, read back,
    computes the same.

    Phi-3's joins tensors that Llama's has apart, and is only taken if preferred.

    Raises:
      ConfigError: there is none; says in what the nearest differs.
    """

    def again(arch: str) -> ModelConfig:
        tensors = {name: Tensor(name, (), Kind.F32, 0) for name, has in TELLING.items() if has(c)}
        if isinstance(c.rope_scaling, Llama3Scaling):
            tensors["rope_freqs.weight"] = stretch(c.rope_scaling, c.rotary_dim, c.rope_base)
        return describe(
            File(Path("the file"), {"general.architecture": arch, **metadata(arch, c)}, tensors),
            c.vocabulary,
        )

    names = [
        *([preferred] if preferred in BASES else []),
        *(arch for arch in BASES if arch != "phi3"),
    ]
    return configs.same_again(c, names, again, "GGUF architecture")


TELLING = {"output.weight": lambda c: not c.tied, "blk.0.attn_q.bias": lambda c: c.qkv_bias_enabled}
"""Tensors whose presence says something that metadata does not."""


def in_window(c: ModelConfig) -> ModelConfig:
    """The same model with a context as long as its window, where all layers have the same: within
    it, they see everything."""
    spans = {
        layer.span if layer.sees == "window" and not layer.sinks else None for layer in c.stack
    }
    span = spans.pop() if len(spans) == 1 else None
    return c if span is None else replace(c, context=min(c.context, span))


# --- tensors
# -----------------------------------------------------------------------------------------------------


def _norms(theirs: str, ours: str) -> tuple[Entry, ...]:
    return Entry(f"{theirs}.weight", (f"{ours}/scale",), "d", "d"), Entry(
        f"{theirs}.bias", (f"{ours}/bias",), "d", "d"
    )


def _linear(theirs: str, *ours: str) -> tuple[Entry, ...]:
    """A linear layer of the MLP; several of ours lie below each other."""
    joined = "o" if len(ours) > 1 else ""
    kernels, biases = (
        tuple(f"layers/{path}/{leaf}" for path in ours) for leaf in ("kernel", "bias")
    )
    return Entry(f"blk.{{i}}.{theirs}.weight", kernels, "o i", "i o", joined), Entry(
        f"blk.{{i}}.{theirs}.bias", biases, "o", "o", joined
    )


def _heads(theirs: str, *ours: str, order: tuple[int, ...] = ()) -> tuple[Entry, ...]:
    """A linear layer that gives heads."""
    joined, turned = "n" if len(ours) > 1 else "", {"h": order} if order else {}
    kernels, biases = (
        tuple(f"layers/attention/{path}/{leaf}" for path in ours) for leaf in ("kernel", "bias")
    )
    weight = Entry(f"blk.{{i}}.{theirs}.weight", kernels, "(n h) d", "d n h", joined, turned)
    return weight, Entry(f"blk.{{i}}.{theirs}.bias", biases, "(n h)", "n h", joined, turned)


def entries(arch: str, c: ModelConfig) -> list[Entry]:
    """Gives what the tensors of an architecture are; those that a model does not have are left out
    by `layout.places`.

    The RoPE of Llama and Arcee turns neighbours there and halves here: number 2k + j of a query or
    key head is our number k + j · half.
    """
    inside = (
        ("attention_norm", "attn_norm"),
        ("mlp_norm", "ffn_norm"),
        ("attention_out_norm", "post_attention_norm"),
        ("mlp_out_norm", "post_ffw_norm"),
    )
    if arch == "olmo2":
        inside = ("attention_norm", "post_attention_norm"), ("mlp_norm", "post_ffw_norm")
    joint = "w" if c.qk_norm_joint else "h"
    half, head = c.rotary_dim // 2, np.arange(c.head_dim)
    head[: 2 * half] = head[: 2 * half].reshape(2, half).T.ravel()
    order = tuple(head.tolist()) if arch in ("llama", "arcee") else ()
    if arch in ("gpt2", "phi3"):
        attention = _heads("attn_qkv", "query", "key", "value")
    else:
        attention = (
            *_heads("attn_q", "query", order=order),
            *_heads("attn_k", "key", order=order),
            *_heads("attn_v", "value"),
        )

    def expert(theirs, ours):
        return Entry(
            f"blk.{{i}}.ffn_{theirs}_exps.weight",
            (f"layers/moe/experts/{ours}/kernel",),
            "e o i",
            "e i o",
        )

    return [
        Entry("token_embd.weight", ("embedding/embedding",), "v d", "v d"),
        Entry("position_embd.weight", ("positions/embedding",), "c d", "c d"),
        *_norms("output_norm", "norm"),
        Entry("output.weight", ("head/kernel",), "v d", "d v"),
        *(
            entry
            for ours, theirs in inside
            for entry in _norms(f"blk.{{i}}.{theirs}", f"layers/{ours}")
        ),
        *attention,
        Entry("blk.{i}.attn_output.weight", ("layers/attention/out/kernel",), "d (n h)", "n h d"),
        Entry("blk.{i}.attn_output.bias", ("layers/attention/out/bias",), "d", "d"),
        *(
            Entry(
                f"blk.{{i}}.attn_{x}_norm.weight",
                (f"layers/attention/{ours}_norm/scale",),
                joint,
                joint,
            )
            for x, ours in (("q", "query"), ("k", "key"))
        ),
        *(
            _linear("ffn_up", "mlp/gate", "mlp/up")
            if arch == "phi3"
            else (*_linear("ffn_gate", "mlp/gate"), *_linear("ffn_up", "mlp/up"))
        ),
        *_linear("ffn_down", "mlp/down"),
        Entry("blk.{i}.ffn_gate_inp.weight", ("layers/moe/router/kernel",), "e d", "d e"),
        *(expert(name, name) for name in ("gate", "up", "down")),
    ]


def places(arch: str, c: ModelConfig) -> list[Place]:
    """Gives what each tensor of a model is.

    Raises:
      ConfigError: a parameter has no place in this architecture.
    """
    try:
        return layout.places(c, entries(arch, c))
    except (ValueError, OverflowError, TypeError) as error:  # jax's, where sizes are absurd
        raise ConfigError(
            f"as GGUF's architecture {arch}, {' '.join(str(error).split())[:300]}"
        ) from None
