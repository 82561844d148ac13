"""Which implementation of attention serves a layer of a model on a machine, and why."""

from __future__ import annotations

import jax

from gptjax.model.attention.causal_blocks import BLOCKS
from gptjax.model.attention.kernels import cudnn_lacks, splash_lacks
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
    """Gives the implementation that serves a row of `length` queries, and why.

    Args:
      cached: there are keys besides those of the row: of a cache, or of virtual tokens.
      backend: where it will run; none is where JAX runs by default, and then a named one is not
        held to its own backend, so that a program can be lowered for another machine.

    Raises:
      ValueError: the config names an implementation that can't serve this case.
    """
    here = backend or platform()
    if cached:
        return "reference", "keys before the row's own, which the other implementations are not for"
    if config.attention != "auto":
        lacks = _lacks(config.attention, config, length, layer)
        home = {"splash": "tpu", "cudnn": "gpu"}.get(config.attention, backend)
        lacks = lacks or (None if backend is None or home == backend else f"{backend}, only {home}")
        if lacks:
            raise ValueError(
                f"attention {config.attention!r} can't serve {lacks}; use --model.attention auto."
            )
        return config.attention, "the config names it"
    alone = (
        jax.device_count() == 1 or current_mesh() is not None
    )  # many devices without a mesh: nobody says which part is whose
    if here == "tpu" and alone and _lacks("splash", config, length, layer) is None:
        return "splash", "Pallas' kernel for TPU"
    if here == "gpu" and _lacks("cudnn", config, length, layer) is None:
        return "cudnn", "cuDNN's kernel for GPUs"
    if length >= LONG and _lacks("blockwise", config, length, layer) is None:
        return "blockwise", f"from {LONG} positions on, the square of scores takes too much memory"
    if here == "cpu" and length >= 256 and _lacks("causal_blocks", config, length, layer) is None:
        return (
            "causal_blocks",
            (
                "it skips most of the masked half, which pays from 256 positions on a CPU (here"
                f" {length})"
            ),
        )
    return (
        "reference",
        "short rows" if length < 256 else "the plain product, which XLA fuses on this backend",
    )


LONG = 4096
"""Positions from which a row's scores are never held whole."""


def _lacks(implementation: str, config: ModelConfig, length: int, layer: Layer) -> str | None:
    """What an implementation can't serve in this case, or none."""
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
