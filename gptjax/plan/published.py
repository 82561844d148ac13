"""Training steps that others have measured and published, and the time that they let one expect of
a step that nobody has run.

`STEPS` are the measurements; `RATES` is fitted to them by `benchmarks/plan_published.py`, whose
report is `docs/reports/plan.md`. Nothing is compiled: a step is its model's FLOPs, each kind at a
share of the chip's peak.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from gptjax.model import Experts, Layer, ModelConfig, flops_per_token, preset
from gptjax.model.cost import products_per_key, seen
from gptjax.plan.target import CHIPS


class Work(NamedTuple):
    """FLOPs of training on one token, by how well chips do them."""

    products: float
    """Products with weights that every token is multiplied by."""
    attention: float
    """Products of queries, keys and values where a token sees a key."""
    experts: float
    """Products with the weights of the experts that read the token."""


class Rates(NamedTuple):
    """Shares of the peak."""

    products: Mapping[str, float]
    """Of products, by kind of chip; it contains whatever else a step waits for."""
    attention: float
    """Of attention, relative to products."""
    experts: float
    """Experts take `1 + experts * count**0.5` times as long as dense products, `count` being the
    number of experts to choose from: an observation, not an explanation."""


RATES = Rates(
    products={
        "v4": 0.57,
        "v5e": 0.57,
        "v5p": 0.69,
        "v6e": 0.45,
        "tpu7x": 0.56,
        "h100": 0.48,
        "h200": 0.48,
    },
    attention=0.54,
    experts=0.15,
)

MARGIN = 0.2
"""Relative error of the expected time: nine tenths of `STEPS` are within it."""


class Step(NamedTuple):
    """A published measurement."""

    chip: str
    """A key of `CHIPS`."""
    devices: int
    model: ModelConfig
    """With its context as the length of a row."""
    rows: float
    """Rows of a device; where only tokens per second are published, 1."""
    seconds: float
    name: str
    source: str

    @property
    def tokens(self) -> float:
        """Tokens of a device."""
        return self.rows * self.model.context


@functools.cache
def work_of(config: ModelConfig) -> Work:
    """Returns what training on one token of a row of the model's context costs."""
    length, mlp = config.context, (3 if config.gated else 2) * config.width
    whole = flops_per_token(config, length)
    attention = 6.0 * sum(
        products_per_key(config) * seen(layer, length, config.causal)
        for layer in config.stack
        if not layer.recurrent
    )
    sparse = sum(map(config.sparse, config.stack))
    experts = 6.0 * mlp * config.expert_width * config.experts.active * sparse if sparse else 0.0
    return Work(whole - attention - experts, attention, experts)


def seconds_of(config: ModelConfig, chip: str, tokens: float, rates: Rates = RATES) -> float:
    """Returns the expected seconds of a step.

    Args:
      config: the model, with its context as the length of a row.
      chip: a key of `rates.products`.
      tokens: of one device.
      rates: shares of the peak.
    """
    work, share = work_of(config), rates.products[chip]
    slower = 1 + rates.experts * config.experts.count**0.5 if work.experts else 1
    peak_seconds = work.products + work.attention / rates.attention + slower * work.experts
    return tokens * peak_seconds / (share * CHIPS[chip].peak)


def expected(config: ModelConfig, chip: str, tokens: float) -> dict[str, Any] | None:
    """Returns the expected `seconds` of a step with `tokens` of one device, its `margin`, and
    `steps`, how many published ones ran on such chips; `None` if none did, and for encoders, models
    that read pictures and recurrent layers, of which none was published."""
    count = sum(step.chip == chip for step in STEPS)
    if not count or not config.continues or config.vision or config.recurrent:
        return None
    return {"seconds": seconds_of(config, chip, tokens), "margin": MARGIN, "steps": count}


def _step(
    chip: str, devices: int, name: str, length: int, rows: float, seconds: float, source: str
) -> Step:
    changes = GPT_OSS if name == "gpt-oss-120b" else {}
    model = preset("qwen-3-30b-a3b" if changes else name, context=length, **changes)
    return Step(chip, devices, model, rows, seconds, name, source)


GPT_OSS: dict[str, Any] = {
    "vocab_size": 201_088,
    "width": 2880,
    "num_layers": 36,
    "num_heads": 64,
    "head_width": 64,
    "num_kv_heads": 8,
    "experts": Experts(count=128, active=4, width=2880),
    "pattern": (Layer("window", span=128), Layer()),
}
"""Its products; its biases and sinks cost nothing here."""

TRILLIUM, V5P, IRONWOOD = (
    f"AI-Hypercomputer/tpu-recipes, training/{folder}" for folder in ("trillium", "v5p", "ironwood")
)
TIERING = "MaxText, docs/reference/models/tiering.md; tokens per second"
LLAMA2 = "MaxText, getting_started/Run_Llama2.md; MFU with attention as a whole square"
RATE_LLAMA2 = 4096 * 444.5e9
"""FLOPs of a row of Llama 2 70B as MaxText counted them then, from a step of which it printed both
FLOP/s and tokens/s."""

STEPS = tuple(
    _step(*row)
    for row in (
        ("v6e", 8, "llama-3.1-8b", 8192, 3, 3.443, TRILLIUM),
        ("v6e", 16, "llama-3.1-8b", 8192, 3, 3.393, TRILLIUM),
        ("v6e", 256, "llama-3.1-8b", 8192, 4, 4.546, TRILLIUM),
        ("v6e", 32, "llama-3-70b", 8192, 2, 17.790, TRILLIUM),
        ("v6e", 64, "llama-3-70b", 8192, 2, 18.688, TRILLIUM),
        ("v6e", 128, "llama-3-70b", 8192, 4, 34.786, TRILLIUM),
        ("v6e", 256, "llama-3-70b", 8192, 5, 42.656, TRILLIUM),
        ("v6e", 256, "llama-70b", 4096, 2, 9.052, TRILLIUM),
        ("v6e", 512, "llama-3-405b", 8192, 1, 54.803, TRILLIUM),
        ("v6e", 8, "mistral-7b", 8192, 6, 6.320, TRILLIUM),
        ("v6e", 256, "gpt3-175b", 2048, 3, 17.182, TRILLIUM),
        ("v6e", 256, "gemma-3-12b", 32_768, 1, 7.318, TRILLIUM),
        ("v6e", 256, "mixtral-8x7b", 4096, 12, 13.360, TRILLIUM),
        ("v6e", 256, "mixtral-8x22b", 4096, 8, 24.706, TRILLIUM),
        ("v5p", 512, "llama-3-405b", 8192, 2, 131.474, V5P),
        ("v5p", 512, "llama-70b", 4096, 1, 4096 / 692, TIERING),
        ("v5p", 512, "deepseek-v3", 4096, 12, 90.668, V5P),
        ("v5p", 256, "mixtral-8x7b", 4096, 1, 4096 / 2909, TIERING),
        ("v4", 64, "llama-70b", 4096, 1, RATE_LLAMA2 / (0.57 * 275e12), LLAMA2),
        ("v5e", 256, "llama-70b", 4096, 1, RATE_LLAMA2 / (0.57 * 197e12), LLAMA2),
        ("tpu7x", 128, "llama-3-70b", 8192, 2, 12.20, IRONWOOD),
        ("tpu7x", 512, "llama-3-70b", 8192, 2, 12.27, IRONWOOD),
        ("tpu7x", 512, "llama-3-70b", 131_072, 0.125, 34.02, IRONWOOD),
        ("tpu7x", 512, "llama-3-405b", 8192, 3, 98.34, IRONWOOD),
        ("tpu7x", 256, "deepseek-v3", 4096, 8, 27.02, IRONWOOD),
        ("tpu7x", 512, "deepseek-v3", 4096, 8, 26.79, IRONWOOD),
        ("tpu7x", 512, "qwen-3-235b-a22b", 4096, 16, 30.87, IRONWOOD),
        ("tpu7x", 128, "gpt-oss-120b", 8192, 10, 14.93, IRONWOOD),
        ("tpu7x", 512, "gpt-oss-120b", 8192, 10, 15.16, IRONWOOD),
        ("h100", 128, "llama-3-70b", 8192, 2, 15.570, "NVIDIA NGC, MaxText Llama 3 70B, 25.02"),
        ("h100", 8, "llama-3.1-8b", 8192, 1, 8192 / 6667, "torchtitan, 2024-12; tokens per second"),
        ("h200", 256, "llama-3-70b", 8192, 2, 15.5, "AI-Hypercomputer/gpu-recipes, a3ultra"),
    )
)
"""Dense bfloat16; devices as XLA counts them, of which an Ironwood chip has two. Mistral's window
is counted as the whole row, as MaxText computed it."""
