"""What recurrent mixers share: the convolution before them, and the way of a layer through its
memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Int
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.cache import Cache
from gptjax.model.config import ModelConfig
from gptjax.model.layers import parameter
from gptjax.model.recurrent.recurrence import Tokens, masked, read_tokens
from gptjax.model.recurrent.states import Reading, recall, remember
from gptjax.sharding.constrain import ROWS, constrain


class Convolution(nn.Module):
    """A sum of each channel's last tokens, each weighed by its tap, the token itself by the last.

    Gives float32. Tokens of another text, and what is before the first, count as 0.
    """

    shape: tuple[int, ...]
    """Of the channels."""
    taps: int
    axes: tuple[str | None, ...]
    bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B before ..."], texts: Int[Array, "B S"] | None
    ) -> Float[Array, "B S ..."]:
        count, size = self.taps, x.shape[1] - self.taps + 1
        spread = nn.initializers.normal((3 * count) ** -0.5)
        taps = parameter(self, "taps", spread, (*self.shape, count), (*self.axes, None))
        total = jnp.zeros((x.shape[0], size, *self.shape))
        for i in range(count):
            part = (
                x[:, i : i + size].astype(jnp.float32)
                * taps[..., i].astype(jnp.float32)[None, None]
            )
            back = count - 1 - i
            if texts is not None and back:
                same = jnp.pad(texts[:, back:] == texts[:, :-back], ((0, 0), (back, 0)))
                part = jnp.where(
                    same[:, :size].reshape(*texts.shape, *(1,) * (x.ndim - 2)), part, 0
                )
            total = total + part
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.shape, self.axes)
            total = total + bias[None, None]
        return total


def through_memory(
    config: ModelConfig,
    number: Any,
    layer_inputs: LayerInputs,
    cache: Cache | None,
    inputs: Sequence[Array],
    gates: Sequence[Array],
) -> Reading:
    """What a layer reads of its new tokens and of what it remembers."""
    mask, slots = layer_inputs.mask_inputs, layer_inputs.slots
    states, placement = (None, None) if cache is None else (cache.states, slots.states)
    inputs, gates = (
        tuple(constrain(x, ROWS, (), ("tensor",), *((),) * (x.ndim - 3)) for x in those)
        for those in (inputs, gates)
    )
    return recall(
        config, number, states, placement, inputs, gates, mask.queries, mask.query_segments
    )


def recur(
    config: ModelConfig,
    number: Any,
    cache: Cache | None,
    reading: Reading,
    tokens: Tokens,
) -> tuple[Float[Array, "B T K G value"], Cache | None]:
    """What the new tokens read of the state, and the cache after them."""

    def run(real: Array) -> tuple[Array, Array]:
        real = jnp.broadcast_to(real, tokens.keys.shape[:2])
        return read_tokens(
            masked(tokens, real), reading.state, reading.texts, chunk=config.recurrent.chunk
        )

    read, state = run(reading.real)
    if cache is not None:
        if cache.states.undo:
            _, state = run(reading.settled)
        cache = with_state(config, number, cache, reading, state)
    return reading.own(read), cache


def with_state(
    config: ModelConfig, number: Any, cache: Cache, reading: Reading, state: Array | None
) -> Cache:
    """The cache after a layer has read, with its state after the tokens that are settled."""
    return cache._replace(states=remember(config, number, cache.states, reading, state))


def heads_of(x: Float[Array, "B S K group_width"], group: int) -> Float[Array, "B S K G value"]:
    """The values of the G heads that share a key head."""
    return x.reshape(*x.shape[:-1], group, -1)
