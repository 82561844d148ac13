"""Gated DeltaNet as a layer."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Key
from gptjax.model.activations import Observed
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.cache import Cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import Linear, Norm, parameter, residual_std, together
from gptjax.model.recurrent.mixing import Convolution, heads_of, recur, through_memory
from gptjax.model.recurrent.recurrence import Tokens


class GatedDelta(nn.Module):
    """Takes the place of `attention.Attention`; see `options.DeltaNet`."""

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer_inputs: LayerInputs,
        cache: Cache | None,
        number: Any,
        key: Key | None,
        seen: Observed,
    ) -> tuple[Float[Array, "B T D"], Cache | None, Observed]:
        c, options = self.config, self.config.recurrent
        probe, record = layer_inputs.probe._replace(layer=number), options.record(c.width)
        heads = record.gates[0]
        sizes = dict(zip(("query", "key", "value"), record.inputs, strict=True))
        sizes |= {"gate": sizes["value"], "rate": heads, "decay": heads}
        layers = [to_key_heads(c, shape, name) for name, shape in sizes.items()]
        *inputs, gate, rate, decay = together(x, tuple(layers), joined=True)
        gates = (
            decay_rates(self, heads) * steps(self, heads, decay),
            nn.sigmoid(rate.astype(jnp.float32)),
        )
        reading = through_memory(c, number, layer_inputs, cache, inputs, gates)
        q, k, v = (
            nn.silu(
                Convolution(shape, options.taps, AXES, name=f"{name}_convolution")(x, reading.texts)
            )
            for (name, shape), x in zip(sizes.items(), reading.inputs, strict=False)
        )
        tokens = Tokens(
            queries=unit(q) * options.key_width**-0.5,
            keys=unit(k),
            values=heads_of(v, options.group),
            decays=reading.gates[0],
            rates=reading.gates[1],
        )
        read, cache = recur(c, number, cache, reading, tokens)
        read, seen = probe.saved("recurrent", read, seen)
        read = Norm("rmsnorm", options.value_dim, c.norm_epsilon, False, "head", name="norm")(read)
        read = (read.reshape(gate.shape) * nn.silu(gate.astype(jnp.float32))).astype(x.dtype)
        return from_key_heads(c, sizes["value"], "out")(read), cache, seen


AXES = ("kv_heads", "head")
"""Of what each key head has, the values of its group side by side."""


def to_key_heads(
    config: ModelConfig, shape: tuple[int, ...], name: str, bias: bool = False
) -> Linear:
    """A projection of the residual stream to what each key head has."""
    return Linear((config.width,), shape, ("embed", *AXES), config.init_std, bias, name=name)


def from_key_heads(
    config: ModelConfig, shape: tuple[int, ...], name: str, bias: bool = False
) -> Linear:
    """The projection of all heads back to the residual stream."""
    return Linear(shape, (config.width,), (*AXES, "embed"), residual_std(config), bias, name=name)


def decay_rates(module: nn.Module, shape: tuple[int, ...]) -> Float[Array, "1 1 K G"]:
    """−exp(decay_rate), by which a step is multiplied to ln of what a token leaves of the state; in
    the beginning −1 to −16.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7.
    """
    return -jnp.exp(parameter(module, "decay_rate", _log_rates, shape, AXES))[None, None]


def steps(
    module: nn.Module, shape: tuple[int, ...], x: Float[Array, "B T K G"]
) -> Float[Array, "B T K G"]:
    """softplus(x + decay_bias), float32: for how long a token acts; in the beginning 0.001 to 0.1.

    Source: Gu and Dao 2023, Mamba, arXiv:2312.00752, section 3.6.
    """
    bias = parameter(module, "decay_bias", _step_biases, shape, AXES)
    return jax.nn.softplus(x.astype(jnp.float32) + bias[None, None])


def _log_rates(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


def _step_biases(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """What softplus makes steps of 0.001 to 0.1 of, evenly spread by their logarithm."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(1e-1)))
    return step + jnp.log(-jnp.expm1(-step))


def unit(x: Float[Array, "B S K H"]) -> Float[Array, "B S K H"]:
    """Vectors of length 1; of length 0 if they are."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
