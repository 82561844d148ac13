"""Names and layouts of the tensors of GGUF's architectures: `entries`, then `gguf_places`.

Source: llama.cpp's architectures, and the models they were made for, named at
`gptjax.model.presets`.
"""

from __future__ import annotations

from gptjax.core.config import ConfigError
from gptjax.formats import layout
from gptjax.formats.families import interleaved
from gptjax.formats.gguf_routers import BIAS
from gptjax.formats.layout import Entry, Place
from gptjax.model import ModelConfig


def entries(arch: str, c: ModelConfig) -> list[Entry]:
    """Returns the tensors of an architecture. `layout.places` leaves out those that a model does
    not have."""
    norms = NORMS_OF.get(arch, NORMS)
    return [
        Entry("token_embd.weight", ("embedding/embedding",), "v d", "v d"),
        Entry("position_embd.weight", ("positions/embedding",), "c d", "c d"),
        *_norm("output_norm", "norm"),
        Entry("output.weight", ("head/kernel",), "v d", "d v"),
        Entry("output.bias", ("logits/bias",), "v", "v"),
        *(e for ours, theirs in norms for e in _norm(f"blk.{{i}}.{theirs}", f"layers/{ours}")),
        *_attention(arch, c),
        *_mlp(arch),
        Entry("blk.{i}.ffn_gate_inp.weight", ("layers/moe/router/kernel",), "e d", "d e"),
        Entry(f"blk.{{i}}{BIAS}.bias", ("layers/moe/router/bias",), "e", "e"),
        *(_experts(name) for name in ("gate", "up", "down")),
        *(e for x in ("gate", "up", "down") for e in _linear(f"ffn_{x}_shexp", f"moe/shared/{x}")),
    ]


NORMS = (
    ("attention_norm", "attn_norm"),
    ("mlp_norm", "ffn_norm"),
    ("attention_out_norm", "post_attention_norm"),
    ("mlp_out_norm", "post_ffw_norm"),
)
"""Our norms of a layer, and theirs."""
NORMS_REORDERED = (("attention_norm", "post_attention_norm"), ("mlp_norm", "post_ffw_norm"))
NORMS_PRE = (("attention_norm", "attn_norm"), ("mlp_norm", "post_attention_norm"))
NORMS_OF = {
    "olmo2": NORMS_REORDERED,
    "exaone4": NORMS_REORDERED,
    "seed_oss": NORMS_PRE,
    "glm4moe": NORMS_PRE,
}
"""Those of architectures that name them otherwise."""
NEIGHBOURS = {"llama", "arcee", "smollm3", "glm4", "ernie4_5", "olmo"}
"""Architectures whose RoPE turns neighbours of a head."""


def _attention(arch: str, c: ModelConfig) -> tuple[Entry, ...]:
    order = interleaved(c) if arch in NEIGHBOURS else ()
    if arch in ("gpt2", "phi3"):
        inputs = _heads("attn_qkv", "query", "key", "value")
    else:
        inputs = (
            *_heads("attn_q", "query", order=order),
            *_heads("attn_k", "key", order=order),
            *_heads("attn_v", "value"),
        )
    axes = "w" if c.qk_norm_joint else "h"
    query, key = (
        Entry(f"blk.{{i}}.attn_{x}_norm.weight", (f"layers/attention/{name}/scale",), axes, axes)
        for x, name in (("q", "query_norm"), ("k", "key_norm"))
    )
    out = "layers/attention/out"
    return (
        *inputs,
        Entry("blk.{i}.attn_output.weight", (f"{out}/kernel",), "d (n h)", "n h d"),
        Entry("blk.{i}.attn_output.bias", (f"{out}/bias",), "d", "d"),
        query,
        key,
    )


def _mlp(arch: str) -> tuple[Entry, ...]:
    if arch in ("phi3", "glm4"):
        up = _linear("ffn_up", "mlp/gate", "mlp/up")
    else:
        up = (*_linear("ffn_gate", "mlp/gate"), *_linear("ffn_up", "mlp/up"))
    return (*up, *_linear("ffn_down", "mlp/down"))


def _experts(name: str) -> Entry:
    ours = (f"layers/moe/experts/{name}/kernel",)
    return Entry(f"blk.{{i}}.ffn_{name}_exps.weight", ours, "e o i", "e i o")


def _norm(theirs: str, ours: str) -> tuple[Entry, ...]:
    return (
        Entry(f"{theirs}.weight", (f"{ours}/scale",), "d", "d"),
        Entry(f"{theirs}.bias", (f"{ours}/bias",), "d", "d"),
    )


def _linear(theirs: str, *ours: str) -> tuple[Entry, ...]:
    """A linear layer of the MLP; several of ours lie one below the other."""
    joined = "o" if len(ours) > 1 else ""
    kernels = tuple(f"layers/{path}/kernel" for path in ours)
    biases = tuple(f"layers/{path}/bias" for path in ours)
    return (
        Entry(f"blk.{{i}}.{theirs}.weight", kernels, "o i", "i o", joined),
        Entry(f"blk.{{i}}.{theirs}.bias", biases, "o", "o", joined),
    )


def _heads(theirs: str, *ours: str, order: tuple[int, ...] = ()) -> tuple[Entry, ...]:
    """A linear layer whose outputs are heads; several of ours lie one below the other."""
    joined, orders = "n" if len(ours) > 1 else "", {"h": order} if order else {}
    kernels = tuple(f"layers/attention/{path}/kernel" for path in ours)
    biases = tuple(f"layers/attention/{path}/bias" for path in ours)
    return (
        Entry(f"blk.{{i}}.{theirs}.weight", kernels, "(n h) d", "d n h", joined, orders),
        Entry(f"blk.{{i}}.{theirs}.bias", biases, "(n h)", "n h", joined, orders),
    )


def gguf_places(arch: str, c: ModelConfig) -> list[Place]:
    """Returns the tensors of a model with their parts in our tree.

    Raises:
      ConfigError: a parameter has no tensor in this architecture.
    """
    try:
        return layout.places(c, entries(arch, c))
    except (ValueError, OverflowError, TypeError) as error:  # jax's, for absurd sizes
        raise ConfigError(
            f"as GGUF's architecture {arch}, {' '.join(str(error).split())[:300]}"
        ) from None
