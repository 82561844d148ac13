"""Whisper's published shapes."""

from __future__ import annotations

from typing import Any

from gptjax.core.config import nearest, require
from gptjax.model.config import FrameEncoder, ModelConfig

SIZES = {
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
    "large-v3": (1280, 32, 20),
    "large-v3-turbo": (1280, 32, 20),
}
"""Width, layers of each half, and heads; those up to medium also know English alone (tiny.en)."""


def whisper(size: str = "tiny.en", **changes: Any) -> ModelConfig:
    """Whisper's published shapes, whose encoder reads 30 seconds of log-mel frames.

    Args:
      changes: fields of `ModelConfig`.

    Raises:
      ConfigError: there is no such size.

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, table 1; the model cards.
    """
    plain, large = size.removesuffix(".en"), size.startswith("large")
    require(
        plain in SIZES and not (large and size.endswith(".en")),
        f"whisper has no size {size!r}; there are {', '.join(SIZES)}.{nearest(size, SIZES)}",
    )
    width, layers, heads = SIZES[plain]
    frames = FrameEncoder(
        channels=128 if large else 80,
        stem="convolutions",
        context=1500,
        width=width,
        num_layers=layers,
        num_heads=heads,
        positions="learned",
        activation="gelu_exact",
        key_bias=False,
        projected=False,
    )
    shape: dict[str, Any] = {
        "vocab_size": 51_866 if large else 51_865 - size.endswith(".en"),
        "context": 448,
        "width": width,
        "num_layers": 4 if size.endswith("turbo") else layers,
        "num_heads": heads,
        "frames": frames,
        "activation": "gelu_exact",
        "key_bias": False,
    }
    return ModelConfig(**shape | changes)
