"""A mixture of experts: who reads which token, the products, and what keeps the experts equally busy.

Read `MoE`, then `route` (the choice), then `by_row` and `by_expert` (two ways to bring tokens to their experts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.arrays import Array, Bool, Float, Int, Params
from gptjax.model.config import Experts, ModelConfig
from gptjax.model.layers import MLP, activate, residual_std
from gptjax.model.spread import platform

Product = Callable[[Array, Array], Array]
"""(tokens by expert, kernels [E I O]) → each token times its expert's kernel."""


class MoE(nn.Module):
    """What a token's experts make of it, weighted, plus what the shared experts make of it. Expert kernels have no biases."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], real: Bool[Array, "#B T"]) -> tuple[Float[Array, "B T D"], dict[str, Array]]:
        """Gives the sum, and the layer's part of `transformer.Output.aux`; tokens that are not real count for nothing there."""
        c, e = self.config, self.config.experts
        routes = route(e, *Router(c, name="router")(x), jnp.broadcast_to(real, x.shape[:2]))
        brought = by_expert(e, x, routes, grouped=platform() == "cpu") if e.capacity is None else by_row(e, x, routes)
        mixed = brought.collect(Expert(c, name="experts")(brought.tokens, brought.product))
        mixed = (mixed.astype(jnp.float32) * (routes.weights * ~brought.dropped)[..., None]).sum(2).astype(x.dtype)
        if e.shared:
            mixed = mixed + MLP(c, e.shared * c.expert_width, name="shared")(x)
        dropped = (brought.dropped & routes.real[:, :, None]).sum().astype(jnp.float32)
        return mixed, {"balance": routes.balance, "router_z": routes.z, "load": routes.load, "dropped": dropped}


class Router(nn.Module):
    """A number for each token and expert, in float32, and the bias that chooses but does not weigh."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T E"], Float[Array, " E"] | None]:
        c, count = self.config, self.config.experts.count
        make = nn.with_partitioning(nn.initializers.normal(c.init_std), ("embed", "experts"))
        logits = x.astype(jnp.float32) @ self.param("kernel", make, (c.width, count), jnp.float32)
        zeros = nn.with_partitioning(nn.initializers.zeros, ("experts",))
        return logits, self.param("bias", zeros, (count,), jnp.float32) if c.experts.bias_step else None


class Expert(nn.Module):
    """Every expert's MLP, each applied to its own tokens by `product`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... D"], product: Product) -> Float[Array, "... D"]:
        c, width = self.config, self.config.expert_width

        def linear(name: str, x: Array, inputs: int, outputs: int, axes: tuple[str, ...], std: float) -> Array:
            return product(x, Kernels((c.experts.count, inputs, outputs), axes, std, name=name)())

        up = lambda name: linear(name, x, c.width, width, ("experts", "embed", "mlp"), c.init_std)
        hidden = activate(c.activation, up("gate")) * up("up") if c.gated else activate(c.activation, up("up"))
        return linear("down", hidden, width, c.width, ("experts", "mlp", "embed"), residual_std(c))


class Kernels(nn.Module):
    """One kernel for each expert [E I O]."""

    shape: tuple[int, int, int]
    axes: tuple[str, ...]
    std: float

    @nn.compact
    def __call__(self) -> Float[Array, "E I O"]:
        init = nn.initializers.normal(self.std) if self.std else nn.initializers.zeros
        return self.param("kernel", nn.with_partitioning(init, self.axes), self.shape, jnp.float32)


# --- the choice --------------------------------------------------------------------------------------------------


class Routes(NamedTuple):
    """Who reads which token."""

    chosen: Int[Array, "B T k"]
    """The experts of each token, best first."""
    weights: Float[Array, "B T k"]
    real: Bool[Array, "B T"]
    balance: Float[Array, "B T"]
    """The row's balance loss, for each of its tokens: 1 when experts are read equally."""
    z: Float[Array, "B T"]
    load: Float[Array, " E"]
    """Real tokens that chose each expert."""


def route(e: Experts, logits: Float[Array, "B T E"], bias: Float[Array, " E"] | None, real: Bool[Array, "B T"]) -> Routes:
    """Chooses each token's experts.

    The balance loss is E · Σ share of tokens · mean probability, over the tokens of a row, so that rows can be read in any
    parts; Switch Transformers take it over whatever a device holds.

    Source: Fedus et al. 2022, arXiv:2101.03961, section 2.2; a row at a time: DeepSeek-V3, arXiv:2412.19437, section 2.1.2; z:
    Zoph et al. 2022, ST-MoE, arXiv:2202.08906, section 2.2.
    """
    found = jax.nn.softmax(logits, axis=-1) if e.scores == "softmax" else jax.nn.sigmoid(logits)
    chosen = _best(e, found if bias is None else found + bias[None, None])
    weights = jnp.take_along_axis(found, chosen, axis=-1)
    if e.normalised:
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-20)
    among = real.astype(jnp.float32)[:, :, None]
    tokens = jnp.maximum(among.sum(1), 1.0)
    counts = (jax.nn.one_hot(chosen, e.count).sum(2) * among).sum(1)
    chance = (found / found.sum(-1, keepdims=True) * among).sum(1) / tokens
    balance = e.count * (jax.lax.stop_gradient(counts / (e.active * tokens)) * chance).sum(-1)
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return Routes(chosen, weights * e.scale, real, jnp.broadcast_to(balance[:, None], real.shape), z, counts.sum(0))


def _best(e: Experts, scores: Float[Array, "B T E"]) -> Int[Array, "B T k"]:
    """The best experts, from the groups with the best two."""
    if e.active_groups < e.groups:
        by_group = scores.reshape(*scores.shape[:2], e.groups, e.count // e.groups)
        strength = jax.lax.top_k(by_group, min(2, e.count // e.groups))[0].sum(-1)
        _, kept = jax.lax.top_k(strength, e.active_groups)
        allowed = jax.nn.one_hot(kept, e.groups, dtype=bool).any(2)
        scores = jnp.where(allowed[..., None], by_group, -jnp.inf).reshape(scores.shape)
    return jax.lax.top_k(jax.lax.stop_gradient(scores), e.active)[1]


def rebalanced(config: ModelConfig, params: Params, load: Float[Array, "L E"]) -> Params:
    """Parameters whose routers' biases moved a step: up for experts with less than the mean load, down for those with more.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, arXiv:2408.15664, algorithm 1.
    """
    step = config.experts.bias_step * jnp.sign(load.mean(-1, keepdims=True) - load)

    def moved(path: tuple, leaf: Array) -> Array:
        return leaf + step if [key.key for key in path[-2:]] == ["router", "bias"] else leaf

    return jax.tree_util.tree_map_with_path(moved, params)


# --- tokens to experts and back ----------------------------------------------------------------------------------


class Brought(NamedTuple):
    """Tokens where their experts read them."""

    tokens: Float[Array, "... D"]
    product: Product
    collect: Callable[[Array], Float[Array, "B T k D"]]
    """Brings back what the experts made of them; a dropped token gets nothing."""
    dropped: Bool[Array, "B T k"]


def ranks(chosen: Int[Array, " pairs"], count: int) -> tuple[Int[Array, " pairs"], Int[Array, " E"]]:
    """Each pair's place among those of its expert, in their order, and how many each expert has."""
    mine = jax.nn.one_hot(chosen, count, dtype=jnp.int32)
    return jnp.take_along_axis(jnp.cumsum(mine, axis=0), chosen[:, None], axis=1)[:, 0] - 1, mine.sum(0)


def by_row(e: Experts, x: Float[Array, "B T D"], routes: Routes) -> Brought:
    """Each expert has the same number of places in each row; earlier tokens take them first, so that nobody reads ahead."""
    rows, length, width = x.shape
    places = min(length, -(-round(e.capacity * e.active * length) // e.count))
    rank, _ = jax.vmap(lambda chosen: ranks(chosen, e.count))(routes.chosen.reshape(rows, -1))
    dropped = rank >= places
    slots = jnp.where(dropped, e.count * places, routes.chosen.reshape(rows, -1) * places + rank)

    def bring(x: Array, slots: Array) -> Array:
        return jnp.zeros((e.count * places, width), x.dtype).at[slots].set(jnp.repeat(x, e.active, axis=0), mode="drop")

    def collect(y: Array) -> Array:
        back = jax.vmap(lambda y, slots: y.at[slots].get(mode="fill", fill_value=0))
        return back(y.reshape(rows, e.count * places, width), slots).reshape(rows, length, e.active, width)

    tokens = jax.vmap(bring)(x, slots).reshape(rows, e.count, places, width)
    product = lambda x, kernels: jnp.einsum("becd,edf->becf", x, kernels.astype(x.dtype))
    return Brought(tokens, product, collect, dropped.reshape(rows, length, e.active))


def by_expert(e: Experts, x: Float[Array, "B T D"], routes: Routes, *, grouped: bool) -> Brought:
    """All tokens of a batch stand by expert, as many as there are; nobody is dropped.

    Args:
      grouped: fill up each expert's tokens to whole groups of one size and multiply group by group; on a CPU, where XLA
        multiplies all tokens with all experts otherwise.
    """
    rows, length, width = x.shape
    pairs = rows * length * e.active
    size = min(256, max(8, 1 << (pairs // (4 * e.count)).bit_length() >> 1)) if grouped else 1
    chosen = routes.chosen.reshape(-1)
    rank, counts = ranks(chosen, e.count)
    groups = -(-counts // size)
    ends = jnp.cumsum(groups)
    slots = (ends - groups)[chosen] * size + rank
    num_groups = -(-pairs // size) + e.count if grouped else pairs
    tokens = jnp.zeros((num_groups * size, width), x.dtype).at[slots].set(jnp.repeat(x.reshape(-1, width), e.active, axis=0))
    collect = lambda y: y.reshape(-1, width)[slots].reshape(rows, length, e.active, width)
    nobody = jnp.zeros(routes.chosen.shape, bool)
    if not grouped:
        return Brought(tokens, lambda x, kernels: jax.lax.ragged_dot(x, kernels.astype(x.dtype), counts), collect, nobody)
    whose = jnp.minimum(jnp.searchsorted(ends, jnp.arange(num_groups), side="right"), e.count - 1)
    product = lambda x, kernels: jnp.einsum("nbd,ndf->nbf", x, kernels[whose].astype(x.dtype))
    return Brought(tokens.reshape(num_groups, size, width), product, collect, nobody)
