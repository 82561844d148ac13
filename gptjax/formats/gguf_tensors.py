"""Names and layouts of the tensors of GGUF's architectures: `entries`, then `places`.

Source: llama.cpp's architectures, and the models they were made for, named at
`gptjax.model.presets`.
"""

from __future__ import annotations

import numpy as np

from gptjax.core.config import ConfigError
from gptjax.formats import layout
from gptjax.formats.layout import Entry, Place
from gptjax.model import ModelConfig


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
