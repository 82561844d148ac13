"""Every model variant, shrunk. A row here buys all laws of `test_laws.py`."""

from __future__ import annotations

import dataclasses

from gptjax.model import ModelConfig, gpt2, llama

SHRUNK = dict(vocab_size=61, context=32, width=32, num_layers=2, num_heads=4)
"""61 is divided by no mesh axis; llama's 64 is."""

PLAIN = ModelConfig(**SHRUNK)
ROPE = llama(**SHRUNK | dict(vocab_size=64, num_kv_heads=None, feed_forward=64))


def _plain(**changes) -> ModelConfig:
    return dataclasses.replace(PLAIN, **changes)


def _rope(**changes) -> ModelConfig:
    return dataclasses.replace(ROPE, **changes)


VARIANTS: dict[str, ModelConfig] = {
    "gpt2": gpt2(**SHRUNK),
    "llama": ROPE,
    "gqa": _rope(num_kv_heads=2),
    "mqa": _plain(num_kv_heads=1),
    "sinusoidal": _plain(positions="sinusoidal"),
    "no_positions": _plain(positions="none"),
    "rmsnorm_with_bias": _plain(norm="rmsnorm"),
    "relu": _plain(activation="relu"),
    "relu2": _plain(activation="relu2"),
    "gelu_exact": _plain(activation="gelu_exact"),
    "silu": _plain(activation="silu"),
    "geglu": _plain(activation="geglu"),
    "qk_norm": _rope(qk_norm=True),
    "untied": _plain(tied=False),
    "zero_residual": _rope(residual_init="zero"),
    "wide_heads": _rope(head_width=12, num_kv_heads=2),
    "scanned": _rope(layers="scan"),
    "dots_scanned": _plain(layers="scan", remat="dots"),
    "full_scanned": _plain(layers="scan", remat="full"),
    "dots_unrolled": _plain(layers="unroll", remat="dots"),
    "full_unrolled": _plain(layers="unroll", remat="full"),
    "causal_blocks": _plain(attention="causal_blocks"),
    "bfloat16": _rope(compute="bfloat16", num_kv_heads=2),
    "one_layer": _plain(num_layers=1),
}
