"""In which order the devices of `mesh.context` hold the positions of a row, and the layers of a
model in zig-zag order.

Only attention minds the order: it brings the keys back to that of positions (`sharded`). All else
is computed position by position, so positions, segments and angles are permuted once, the residual
stream when it enters the layers and when it leaves them, and losses see the order of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.core.arrays import Array, Key, Params
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.attention.select import select_attention
from gptjax.model.config import ModelConfig
from gptjax.sharding.constrain import axis_size, constrain_residual
from gptjax.sharding.zigzag import exchange_chunks, zigzag_positions

SKIP = ("blockwise", "splash")
"""Implementations whose work is less where fewer keys are seen; the others compute all scores."""


def context_order(config: ModelConfig, length: int) -> tuple[str, str]:
    """Returns `contiguous` or `zigzag` for rows of `length` positions on the traced mesh, and the
    reason.

    `auto` is zig-zag where that evens out work and changes no number but by rounding.
    """
    lacks = zigzag_lacks(config, length)
    if lacks or config.context_order == "contiguous":
        return "contiguous", lacks or "the config says so"
    if config.context_order == "zigzag":
        return "zigzag", "the config says so"
    if config.uses_dropout:
        return "contiguous", "dropout, whose bits would be others than those of one device"
    uneven = any(
        (layer.sees != "window" or layer.sinks)
        and select_attention(config, length, layer)[0] in SKIP
        for layer in config.stack
    )
    if uneven:
        return "zigzag", "later positions see more keys, and so each device has early and late ones"
    return "contiguous", "no device has more scores to compute than another"


def zigzag_lacks(config: ModelConfig, length: int) -> str | None:
    """Returns what zig-zag order does not support in this case, or `None`."""
    chunks = 2 * axis_size("context")
    lacks = {
        "one device for all positions of a row": chunks == 2,
        f"{length} positions, which {chunks} chunks do not divide": length % chunks != 0,
        "tokens that see later ones": not config.causal or config.prefix_lm,
        "recurrent layers, which read from left to right": config.recurrent is not None,
        "experts with a capacity, whose places go to earlier tokens first": (
            config.experts is not None and config.experts.capacity is not None
        ),
    }
    return next((what for what, here in lacks.items() if here), None)


def goes_in_zigzag(config: ModelConfig, x: Array, layer_inputs: LayerInputs) -> bool:
    """Whether the layers read this row in zig-zag order; activations that are observed or changed
    keep the order of positions."""
    probe = layer_inputs.probe
    plain = not (probe.observe or probe.intervene or layer_inputs.zigzag or layer_inputs.virtual)
    return plain and context_order(config, x.shape[1])[0] == "zigzag"


def run_in_zigzag(
    run: Callable[..., tuple[Array, None, Any]],
    config: ModelConfig,
    layers: Params | tuple[Params, ...],
    x: Array,
    layer_inputs: LayerInputs,
    key: Key | None,
) -> tuple[Array, None, Any]:
    """Computes `stack.run_stack` in zig-zag order; what it gives is in the order of positions."""
    order = zigzag_positions(x.shape[1], axis_size("context"))
    back = np.argsort(order)

    def permuted(leaf: Array | None) -> Array | None:
        return leaf if leaf is None else leaf[:, order]

    inputs = layer_inputs._replace(
        mask_inputs=type(layer_inputs.mask_inputs)(*map(permuted, layer_inputs.mask_inputs)),
        angles={layer: permuted(turns) for layer, turns in layer_inputs.angles.items()},
        zigzag=True,
        entrance=jax.tree.map(permuted, layer_inputs.entrance),
    )
    x, _, outputs = run(config, layers, exchange_chunks(x), inputs, None, key)
    by_token = ("balance", "router_z")
    aux = {n: leaf[:, :, back] if n in by_token else leaf for n, leaf in outputs.aux.items()}
    x = constrain_residual(exchange_chunks(x, back=True))
    return x, None, outputs._replace(aux=aux)
