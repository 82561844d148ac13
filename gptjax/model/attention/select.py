"""Chooses the attention implementation of a layer for the current backend, and says why. A vendor's
kernel is tried first, see `trial`."""

from __future__ import annotations

import jax

from gptjax.model.attention.causal_blocks import BLOCKS
from gptjax.model.attention.kernels import cudnn_lacks, splash_lacks
from gptjax.model.attention.trial import fault_of
from gptjax.model.config import Layer, ModelConfig
from gptjax.sharding.constrain import axis_size, current_mesh, platform


def select_attention(
    config: ModelConfig,
    length: int,
    layer: Layer = Layer(),
    *,
    cached: bool = False,
    backend: str | None = None,
) -> tuple[str, str]:
    """Returns the implementation for rows of `length` queries, and the reason.

    Args:
      cached: there are other keys besides those of the row: a cache, or virtual tokens.
      backend: where it will run; `None` means JAX's default backend. Only a given backend is
        checked against an implementation that the config names, so that a program can be lowered
        for another machine.

    Raises:
      ValueError: the config names an implementation that can't serve this case.
    """
    here = backend or platform()
    if cached:
        return "reference", "keys before the row's own, which the other kernels do not support"
    if config.attention != "auto":
        lacks = _lacks(config.attention, config, length, layer)
        home = {"splash": "tpu", "cudnn": "gpu"}.get(config.attention, backend)
        lacks = lacks or (None if backend is None or home == backend else f"{backend}, only {home}")
        if lacks:
            raise ValueError(
                f"attention {config.attention!r} can't serve {lacks}; use --model.attention auto."
            )
        return config.attention, "the config names it"
    failed = ""
    if here in VENDORS:
        name, failed = _of_vendor(config, length, layer, here)
        if name:
            return name, VENDORS[here][1]
    name, why = _of_xla(config, length, layer, here)
    return name, why + failed


VENDORS = {"tpu": ("splash", "Pallas' kernel for TPU"), "gpu": ("cudnn", "cuDNN's kernel for GPUs")}
"""The vendor's kernel of a platform, and what it is."""


def _of_vendor(config: ModelConfig, length: int, layer: Layer, here: str) -> tuple[str, str]:
    """Returns the vendor's kernel, or "" and why it failed its trial, if it came to one."""
    name, _ = VENDORS[here]
    # without a mesh, many devices have no sharding to follow
    alone = jax.device_count() == 1 or current_mesh() is not None
    if _lacks(name, config, length, layer) is not None or not (alone or name != "splash"):
        return "", ""
    # only a device that is here can be asked; a program for another one takes the kernel
    fault = fault_of(name, config, length, layer) if here == jax.default_backend() else None
    return (name, "") if fault is None else ("", f"; {name} failed its trial: {fault}")


def _of_xla(config: ModelConfig, length: int, layer: Layer, here: str) -> tuple[str, str]:
    """Returns the implementation that XLA compiles for a platform, and the reason."""
    if length >= LONG and _lacks("blockwise", config, length, layer) is None:
        return "blockwise", f"from {LONG} positions on, the square of scores takes too much memory"
    if here == "cpu" and length >= 256 and _lacks("causal_blocks", config, length, layer) is None:
        return (
            "causal_blocks",
            (
                "it skips most of the masked half, which is faster on a CPU from 256 positions on"
                f" (here {length})"
            ),
        )
    return (
        "reference",
        "short rows" if length < 256 else "the plain product, which XLA fuses on this backend",
    )


LONG = 4096
"""Row length from which the matrix of scores is never materialised."""


def _lacks(implementation: str, config: ModelConfig, length: int, layer: Layer) -> str | None:
    """Returns what an implementation does not support in this case, or `None`."""
    positions = axis_size("context")
    if (
        positions > 1
        and implementation in ("causal_blocks", "cudnn", "blockwise")
        and (implementation != "blockwise" or config.attention_dropout > 0)
    ):
        return "positions of a row that are split over devices (mesh.context)" + (
            " with dropout of attention weights" if implementation == "blockwise" else ""
        )
    match implementation:
        case "causal_blocks":
            if not config.causal:
                return "an encoder, whose tokens see later ones"
            if config.prefix_lm:
                return "a prefix LM, whose prefix sees later tokens"
            divides = length % BLOCKS == 0 and length >= BLOCKS
            return None if divides else f"{length} queries, which are not a multiple of {BLOCKS}"
        case "splash":
            return splash_lacks(config, length // positions, layer)
        case "cudnn":
            return cudnn_lacks(config, length, layer)
    return None
