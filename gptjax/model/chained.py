"""Blocks that predict further tokens one after the other, as in DeepSeek-V3: each reads the hidden
states of the one before it, and the embedding of the token that this one predicts.

Source: DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Int, Key, Params
from gptjax.model.attention.layer import LayerInputs
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import Linear, norm
from gptjax.model.stack import Block


class Chained(nn.Module):
    """One block: both inputs are normalised and projected to one, and its output is normalised, as
    the model's final hidden states are. Where it has experts, `rebalance` leaves its router alone.
    """

    config: ModelConfig
    layer: Layer

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        embedded: Float[Array, "B T D"],
        layer_inputs: LayerInputs,
        number: int = 0,
        key: Key | None = None,
    ) -> Float[Array, "B T D"]:
        c = self.config
        both = (norm(c, "embedding_norm")(embedded), norm(c, "hidden_norm")(hidden))
        sizes = (2 * c.width,), (c.width,)
        joint = Linear(*sizes, ("embed", None), c.init_std, False, name="joint")
        x = joint(jnp.concatenate(both, axis=-1))
        x, _, _ = Block(c, self.layer, name="block")(x, layer_inputs, None, number, key)
        return norm(c, "out_norm")(x)


def init_chained(further: ModelConfig, key: Key, x: Array, layer_inputs: LayerInputs) -> Params:
    """Initial parameters of all blocks, each leaf with a leading dimension, in Linen's boxes.

    Args:
      further: the blocks as a stack of their own.
    """

    def one(key: Key) -> Params:
        return Chained(further, further.stack[0]).init(key, x, x, layer_inputs)["params"]

    return jax.vmap(one)(jax.random.split(key, further.num_layers))


def chained_states(
    further: ModelConfig,
    weights: Params,
    hidden: Float[Array, "B T D"],
    following: Int[Array, "B T"],
    embed: Callable[[Int[Array, "B T"]], Float[Array, "B T D"]],
    layer_inputs: LayerInputs,
    key: Key | None,
) -> list[Float[Array, "B T D"]]:
    """Hidden states that predict the token after the next one, the one after that, and so on.

    Args:
      weights: of all blocks, stacked.
      following: the token after each.
    """
    states = []
    for number in range(further.num_layers):
        token = jnp.pad(following[:, number:], ((0, 0), (0, min(number, following.shape[1]))))
        own_key = None if key is None else jax.random.fold_in(key, number)
        own = jax.tree.map(lambda leaf, number=number: leaf[number], weights)
        block = Chained(further, further.stack[0])
        hidden = block.apply({"params": own}, hidden, embed(token), layer_inputs, number, own_key)
        states.append(hidden)
    return states
