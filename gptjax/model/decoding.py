"""Weights as decoding reads them: once a token, so what costs is their bytes and their order, not
arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Float, Params
from gptjax.core.backend import fast_bfloat16
from gptjax.model.config import ModelConfig

Stored = Literal["float32", "bfloat16", "int8"]


def prepare_weights(
    config: ModelConfig, params: Params, stored: Stored | None = None
) -> tuple[ModelConfig, Params]:
    """Gives the same model with its weights in a narrower type, each layer's apart, and an output
    of its own for tied embeddings.

    Only for generation: what comes out can't be trained, saved or exported. Models with experts,
    latent attention or an encoder beside their decoder, and those that predict several tokens, are
    given back as they are.

    Args:
      stored: int8 keeps matrices in 8 bits with a scale for each output. None stays with the type
        that the model computes in, and gives the model back as it is on anything but a CPU, and on
        a CPU with fast products of bfloat16 if it computes in that.
    """
    on_cpu = jax.default_backend() == "cpu"
    if stored is None and (not on_cpu or config.compute == "bfloat16" and fast_bfloat16()):
        return config, params
    stored = stored or config.compute
    if (
        config.experts is not None
        or config.latent is not None
        or config.encoder_layers
        or config.ahead
    ):
        return config, params
    config = dataclasses.replace(
        config, compute="float32" if on_cpu else config.compute, layers="unroll"
    )
    found = dict(params)
    if config.tied and not config.classes:
        config, found["head"] = (
            dataclasses.replace(config, tied=False),
            {"kernel": params["embedding"]["embedding"].T},
        )
    layers = [
        _narrowed(jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]), stored)
        for n in range(config.num_layers)
    ]
    found["layers"] = jax.tree.map(lambda *leaves: leaves, *layers)
    return config, {
        name: tree if name == "layers" else _narrowed(tree, stored) for name, tree in found.items()
    }


def _narrowed(tree: Any, stored: Stored, name: str = "") -> Any:
    """The same tree with narrow kernels; embeddings, norms and biases stay."""
    if not isinstance(tree, dict):
        return tree
    if "kernel" not in tree:  # embeddings too stay as they are: a token reads a row of them
        return {key: _narrowed(leaf, stored, key) for key, leaf in tree.items()}
    inputs = tuple(range(2 if name == "out" else 1))  # attention's output reads heads
    return tree | (
        eight_bits(tree["kernel"], inputs)
        if stored == "int8"
        else {"kernel": jnp.asarray(tree["kernel"], stored)}
    )


def eight_bits(kernel: Float[Array, "..."], inputs: tuple[int, ...] = (0,)) -> dict[str, Array]:
    """The kernel in whole numbers from −127 to 127, and what each output is multiplied by; off by
    half of that at most.

    Source: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 3.1 (one scale an output),
    for weights alone.
    """
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=inputs) / 127, 1e-30)
    return {
        "kernel": jnp.round(kernel / jnp.expand_dims(scale, inputs)).astype(jnp.int8),
        "scale": scale,
    }
