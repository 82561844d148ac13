"""Attention of a decoder to what an encoder beside it has read."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from gptjax.core.arrays import Array, Float, Key
from gptjax.model.attention.layer import LayerInputs, attend, from_heads
from gptjax.model.attention.mask import MaskInputs, ScoreConfig
from gptjax.model.config import ModelConfig
from gptjax.model.layers import to_heads


class CrossAttention(nn.Module):
    """Attends to what an encoder has read: queries from the decoder, keys and values from the
    encoder's hidden states.

    No positions are turned or biased here. Source: Vaswani et al. 2017, arXiv:1706.03762, section
    3.2.3.
    """

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        self.query = to_heads(c, c.num_heads, "heads")
        self.key = to_heads(c, c.kv_heads, "kv_heads", biased=c.key_bias)
        self.value = to_heads(c, c.kv_heads, "kv_heads")
        self.out = from_heads(c, c.head_dim)

    def remember(
        self, states: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """This layer's keys and values of the encoder's hidden states."""
        return self.key(states), self.value(states)

    def __call__(
        self, x: Float[Array, "B T D"], layer_inputs: LayerInputs, number: Any, key: Key | None
    ) -> Float[Array, "B T D"]:
        c, memory = self.config, layer_inputs.memory
        k, v = (
            self.remember(x) if memory is None else (memory.keys[number], memory.values[number])
        )  # none: parameters are made
        mask_inputs = layer_inputs.mask_inputs
        if memory is not None:
            mask_inputs = MaskInputs(
                mask_inputs.queries, memory.positions, mask_inputs.query_segments, memory.segments
            )
        how = ScoreConfig(scale=c.scale, cap=c.attention_cap, causal=False)
        return self.out(
            attend(self.query(x), k, v, mask_inputs, how, rate=c.attention_dropout, key=key)
        )
