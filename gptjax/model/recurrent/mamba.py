"""Mamba 2 as a layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Key
from gptjax.model.activations import Observed
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.cache import Cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import parameter, together
from gptjax.model.recurrent.delta import (
    AXES,
    decay_rates,
    from_key_heads,
    steps,
    to_key_heads,
)
from gptjax.model.recurrent.mixing import Convolution, heads_of, recur, through_memory
from gptjax.model.recurrent.recurrence import Tokens


class Mamba(nn.Module):
    """Takes the place of `attention.Attention`; see `options.Mamba2`. A group is a key head."""

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
        sizes = dict(zip(("value", "key", "query"), record.inputs, strict=True))
        sizes |= {"gate": sizes["value"], "step": heads}
        layers = [to_key_heads(c, shape, name, options.bias) for name, shape in sizes.items()]
        *inputs, gate, chosen = together(x, tuple(layers), joined=True)
        step = jnp.clip(steps(self, heads, chosen), options.shortest_step, options.longest_step)
        gates = (decay_rates(self, heads) * step, step)
        reading = through_memory(c, number, layer_inputs, cache, inputs, gates)

        def convolved(name: str, x: Array) -> Array:
            own = Convolution(
                sizes[name],
                options.taps,
                AXES,
                options.convolution_bias,
                name=f"{name}_convolution",
            )
            return nn.silu(own(x, reading.texts))

        v, k, q = map(convolved, ("value", "key", "query"), reading.inputs)
        v = heads_of(v, options.group)
        decays, step = reading.gates
        tokens = Tokens(queries=q, keys=k, values=v * step[..., None], decays=decays, rates=None)
        read, cache = recur(c, number, cache, reading, tokens)
        skip = parameter(self, "skip", nn.initializers.ones, heads, AXES)
        read = read + skip[None, None, ..., None] * reading.own(v)
        read, seen = probe.saved("recurrent", read, seen)
        read = read.reshape(gate.shape) * nn.silu(gate.astype(jnp.float32))
        read = GroupNorm(sizes["value"], c.norm_epsilon, name="norm")(read).astype(x.dtype)
        return from_key_heads(c, sizes["value"], "out", options.bias)(read), cache, seen


class GroupNorm(nn.Module):
    """RMSNorm of each group alone, with a scale for each of its numbers."""

    shape: tuple[int, ...]
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T K group_width"]) -> Float[Array, "B T K group_width"]:
        scale = parameter(self, "scale", nn.initializers.ones, self.shape, AXES)
        size = jnp.square(x).mean(-1, keepdims=True) + self.epsilon
        return x * jnp.reciprocal(jnp.sqrt(size)) * scale[None, None]
