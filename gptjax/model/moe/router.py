"""A mixture of experts: who reads which token, the kernels, and what keeps the experts equally
busy.

Read `MoE`, then `route` (the choice). How tokens come to their experts is in `dispatch`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gptjax.core.arrays import Array, Bool, Float, Int, Params
from gptjax.model.activations import Observed, Probe
from gptjax.model.config import Experts, ModelConfig
from gptjax.model.layers import MLP, Linear, normal, parameter, residual_std
from gptjax.model.moe.dispatch import apply_experts, mix_over_mesh
from gptjax.sharding.constrain import current_mesh
from gptjax.weights.linear import Names, contract, require_for_all_rows
from gptjax.weights.weight import Role, Weight


class MoE(nn.Module):
    """What a token's experts make of it, weighted, plus what the shared experts make of it.

    Sources: a gate of the shared experts: Qwen2-MoE's code; weights of the input: Llama 4's.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], real: Bool[Array, "#B T"], probe: Probe, seen: Observed
    ) -> tuple[Float[Array, "B T D"], dict[str, Array], Observed]:
        """Returns the sum, and the layer's part of `transformer.Output.aux`; tokens that are not
        real count for nothing there."""
        c, e = self.config, self.config.experts
        logits, bias = Router(c, name="router")(x)
        logits, seen = probe("router", logits, seen)
        routes = route(e, logits, bias, jnp.broadcast_to(real, x.shape[:2]))
        own = Expert(c, name="experts")()
        require_for_all_rows(own, "experts")
        mixed, unread = (apply_experts if current_mesh() is None else mix_over_mesh)(
            c, x, routes.chosen, routes.weights, own
        )
        if e.shared:
            shared, _ = MLP(c, e.shared * c.expert_width, name="shared")(x, Probe(), {})
            if e.shared_gate:
                names, named = ("embed", None), "shared_gate"
                gate = Linear((c.width,), (1,), names, c.init_std, False, name=named)
                shared = shared * nn.sigmoid(gate(x))
            mixed = mixed + shared
        dropped = (unread & routes.real[:, :, None]).sum().astype(jnp.float32)
        aux = {
            "balance": routes.balance,
            "router_z": routes.z,
            "load": routes.load,
            "dropped": dropped,
        }
        return mixed, aux, seen


class Router(nn.Module):
    """A number for each token and expert, in float32, and the bias that chooses but does not
    weigh. With `biases` each number has a bias of its own."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T E"], Float[Array, " E"] | None]:
        c, count = self.config, self.config.experts.count
        names, role = ("embed", "experts"), Role(inputs=1, decays=True, exact=True)
        kernel = parameter(self, "kernel", normal(c.init_std), (c.width, count), names, role)
        logits = contract("btd,de->bte", x.astype(jnp.float32), kernel)
        if not (c.experts.bias_step or c.experts.biases):
            return logits, None
        bias = parameter(self, "bias", nn.initializers.zeros, (count,), ("experts",))
        return (logits + bias[None, None], None) if c.experts.biases else (logits, bias)


class Expert(nn.Module):
    """The kernels of every expert's MLP: `up`, `down` and, where it is gated, `gate`; their biases
    are `up_bias` and so on."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> dict[str, Weight]:
        c, width = self.config, self.config.expert_width

        def into(name: str) -> dict[str, Weight]:
            shape, axes = (c.experts.count, c.width, width), ("experts", "embed", "mlp")
            return Kernels(shape, axes, c.init_std, c.experts.biases, name=name)()

        kernels = {name: into(name) for name in (("gate", "up") if c.gated else ("up",))}
        shape, axes = (c.experts.count, width, c.width), ("experts", "mlp", "embed")
        down = Kernels(shape, axes, residual_std(c), c.experts.biases, name="down")
        kernels["down"] = down()
        return {
            name if part == "kernel" else f"{name}_{part}": weight
            for name, parts in kernels.items()
            for part, weight in parts.items()
        }


class Kernels(nn.Module):
    """One kernel for each expert: a weight [E I O], and perhaps a bias [E O]."""

    shape: tuple[int, int, int]
    axes: Names
    std: float
    bias: bool

    @nn.compact
    def __call__(self) -> dict[str, Weight]:
        role = Role(stacked=1, inputs=1, decays=True)
        kernel = parameter(self, "kernel", normal(self.std), self.shape, self.axes, role)
        if not self.bias:
            return {"kernel": kernel}
        shape, axes = (self.shape[0], self.shape[2]), (self.axes[0], self.axes[2])
        zeros, role = nn.initializers.zeros, Role(stacked=1)
        return {"kernel": kernel, "bias": parameter(self, "bias", zeros, shape, axes, role)}


# --- the choice


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


def route(
    e: Experts,
    logits: Float[Array, "B T E"],
    bias: Float[Array, " E"] | None,
    real: Bool[Array, "B T"],
) -> Routes:
    """Chooses each token's experts.

    The balance loss is E · Σ share of tokens · mean probability, over the tokens of a row, so that
    rows can be read in any parts; Switch Transformers take it over whatever a device holds.

    Source: Fedus et al. 2022, arXiv:2101.03961, section 2.2; a row at a time: DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2; z: Zoph et al. 2022, ST-MoE, arXiv:2202.08906, section 2.2.
    """
    scores = jax.nn.softmax(logits, axis=-1) if e.scores == "softmax" else jax.nn.sigmoid(logits)
    chosen = _best(e, scores if bias is None else scores + bias[None, None])
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if e.normalised:
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-20)
    among = real.astype(jnp.float32)[:, :, None]
    tokens = jnp.maximum(among.sum(1), 1.0)
    counts = (jax.nn.one_hot(chosen, e.count).sum(2) * among).sum(1)
    chance = (scores / scores.sum(-1, keepdims=True) * among).sum(1) / tokens
    balance = e.count * (jax.lax.stop_gradient(counts / (e.active * tokens)) * chance).sum(-1)
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    return Routes(
        chosen,
        weights * e.scale,
        real,
        jnp.broadcast_to(balance[:, None], real.shape),
        z,
        counts.sum(0),
    )


def _best(e: Experts, scores: Float[Array, "B T E"]) -> Int[Array, "B T k"]:
    """The best experts, from the groups with the best two."""
    if e.active_groups < e.groups:
        by_group = scores.reshape(*scores.shape[:2], e.groups, e.count // e.groups)
        strength = jax.lax.top_k(by_group, min(2, e.count // e.groups))[0].sum(-1)
        _, kept = jax.lax.top_k(strength, e.active_groups)
        allowed = jax.nn.one_hot(kept, e.groups, dtype=bool).any(2)
        scores = jnp.where(allowed[..., None], by_group, -jnp.inf).reshape(scores.shape)
    return jax.lax.top_k(jax.lax.stop_gradient(scores), e.active)[1]


def rebalance(config: ModelConfig, params: Params, load: Float[Array, "L E"]) -> Params:
    """Parameters whose routers' biases moved a step: up for experts with less than the mean load,
    down for those with more.

    Args:
      load: of all layers with experts, in the order of depth, whatever stack they lie in.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, arXiv:2408.15664, algorithm 1.
    """
    step = config.experts.bias_step * jnp.sign(load.mean(-1, keepdims=True) - load)
    stacks = [config.stack_of(layer) for layer in config.stack if config.sparse(layer)]

    def moved(path: tuple, leaf: Array) -> Array:
        keys = [key.key for key in path]
        if keys[0] != "layers" or keys[-2:] != ["router", "bias"]:
            return leaf
        own = [row for row, stack in enumerate(stacks) if stack == keys[1]]  # none in one stack
        return leaf + (step[jnp.asarray(own)] if own else step)

    return jax.tree_util.tree_map_with_path(moved, params)
