"""Multi-head latent attention: keys and values are made of one narrow latent a token, which is all
that the cache holds.

Read without a cache, each head's keys and values are made of the latents. Read with one, the
matrices that would make them are absorbed into the query and the output, so that all heads attend
to the latents themselves.

Source: DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434, section 2.1.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Float, Key
from gptjax.model.activations import Observed
from gptjax.model.attention.layer import (
    LayerInputs,
    apply_rope,
    attend_in,
    from_heads,
    with_cache,
)
from gptjax.model.cache import Cache
from gptjax.model.config import Layer, ModelConfig
from gptjax.model.layers import Linear, Norm
from gptjax.weights.linear import contract


class LatentAttention(nn.Module):
    """Takes the place of `attention.Attention`. Only the output projection may have a bias."""

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
        c, narrow = self.config, self.config.latent
        probe = layer_inputs.probe._replace(layer=number)

        def linear(name: str, source: str, inputs: int, *outputs: int) -> Linear:
            axes = (source, "heads", "head") if len(outputs) == 2 else (source, "latent")
            return Linear((inputs,), outputs, axes, c.init_std, False, name=name)

        def latent_norm(name: str, x: Array) -> Array:
            epsilon = narrow.norm_epsilon or c.norm_epsilon
            return Norm("rmsnorm", x.shape[-1], epsilon, False, "latent", name=name)(x)

        if narrow.query_rank is None:
            q = linear("query", "embed", c.width, c.num_heads, c.query_width)(x)
        else:
            source = latent_norm(
                "query_norm", linear("query_down", "embed", c.width, narrow.query_rank)(x)
            )
            q = linear("query", "latent", narrow.query_rank, c.num_heads, c.query_width)(source)
        q, turned_q = q[..., : c.head_dim], q[..., c.head_dim :]
        down = linear("latent_down", "embed", c.width, narrow.rank + narrow.rope_width)(x)
        latent = latent_norm("latent_norm", down[..., : narrow.rank])[:, :, None]
        turned_k = down[:, :, None, narrow.rank :]
        turned_q, turned_k = apply_rope(c, self.layer, layer_inputs, turned_q, turned_k)
        make_k = linear("key", "latent", narrow.rank, c.num_heads, c.head_dim)
        make_v = linear("value", "latent", narrow.rank, c.num_heads, c.value_width)

        def mix(q: Array, k: Array, v: Array) -> Array:
            cached = cache is not None
            return attend_in(c, self.layer, q, k, v, layer_inputs, None, cached, key)

        if cache is None:
            k, v = make_k(latent[:, :, 0]), make_v(latent[:, :, 0])
            turned_k = jnp.broadcast_to(turned_k, (*k.shape[:3], narrow.rope_width))
            q, k = jnp.concatenate([q, turned_q], -1), jnp.concatenate([k, turned_k], -1)
            q, seen = probe("query", q, seen)
            k, seen = probe("key", k, seen)
            v, seen = probe("value", v, seen)
            mixed = mix(q, k, v)
        else:
            cache, turned_k, latent, layer_inputs = with_cache(
                c, self.layer, number, cache, layer_inputs, turned_k, latent
            )
            (to_k, _), (to_v, _) = make_k.weights(), make_v.weights()
            q = contract("btnh,rnh->btnr", q, to_k)
            q, k = jnp.concatenate([q, turned_q], -1), jnp.concatenate([latent, turned_k], -1)
            mixed = contract("btnr,rnh->btnh", mix(q, k, latent), to_v)
        mixed, seen = probe("attention", mixed, seen)
        return from_heads(c, c.value_width, "out")(mixed), cache, seen
