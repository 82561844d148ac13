"""How continuous frames enter their encoder, by a linear layer or by convolutions, and how its
states leave it for the decoder."""

from __future__ import annotations

import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.model.config import ModelConfig
from gptjax.model.layers import Linear, activate

TAPS = 3
"""Frames that a convolution reads at once: one, and its neighbours."""


def frame_layers(config: ModelConfig) -> dict[str, Linear]:
    """Returns the layers of the entrance and the exit by name. A convolution is a linear layer over
    neighbouring frames, kernel [3 channels width]."""
    frames, std = config.frames, config.init_std
    if frames.stem == "convolutions":
        axes = (None, None, "embed")
        layers = {
            "input": Linear((TAPS, frames.channels), (frames.width,), axes, std, bias=True),
            "strided": Linear((TAPS, frames.width), (frames.width,), axes, std, bias=True),
        }
    else:
        layers = {"input": Linear((frames.channels,), (frames.width,), (None, "embed"), std, True)}
    if frames.projected:
        sizes = (frames.width,), (config.width,)
        layers["output"] = Linear(*sizes, ("embed", None), std, bias=True)
    return layers


def enter_frames(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "B F C"],
    positions: Int[Array, "B F"],
) -> tuple[Float[Array, "B S D"], Int[Array, "B S"]]:
    """Takes frames to the encoder's width.

    Args:
      params: those of the encoder of frames.
      positions: −1 is padding, at the end of a row, which a convolution reads as zeros.

    Returns:
      The states, and their positions; convolutions leave half as many of both.

    Raises:
      ValueError: there are more than the encoder's context.

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, section 2.2.
    """
    layers = frame_layers(config)
    if config.frames.stem == "convolutions":
        bend = config.frames.activation
        x = _apply(layers, params, "input", _neighbours(x, positions, 1))
        x = activate(bend, x)
        x = _apply(layers, params, "strided", _neighbours(x, positions, 2))
        x, positions = activate(bend, x), positions[:, ::2]
        positions = jnp.where(positions < 0, -1, positions // 2)
    else:
        x = _apply(layers, params, "input", x)
    if x.shape[1] > config.frames.context:
        raise ValueError(
            f"there are {x.shape[1]} frames and the encoder reads {config.frames.context}"
            " (model.frames.context)."
        )
    return x, positions


def leave_frames(
    config: ModelConfig, params: Params, states: Float[Array, "B S D"]
) -> Float[Array, "B S width"]:
    """Takes the encoder's states to the decoder's width."""
    if not config.frames.projected:
        return states
    return _apply(frame_layers(config), params, "output", states)


def _apply(layers: dict[str, Linear], params: Params, name: str, x: Array) -> Array:
    return layers[name].apply({"params": params[name]}, x)


def _neighbours(
    x: Float[Array, "B F C"], positions: Int[Array, "B F"], stride: int
) -> Float[Array, "B S 3 C"]:
    """Each frame, or every second one, between its neighbours; zeros beyond both ends."""
    x = jnp.where((positions >= 0)[:, :, None], x, jnp.zeros((), x.dtype))
    count, x = x.shape[1], jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    return jnp.stack([x[:, i : i + count : stride] for i in range(TAPS)], axis=2)
