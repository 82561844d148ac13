"""Linear, table, norm and MLP: the layers that do not know about positions.

Every parameter is made by `parameter`, with its logical axis names and its role beside it;
`transformer.axes` and `transformer.roles` read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from gptjax.core.arrays import Array, Float, Int, Key
from gptjax.model.activations import Observed, Probe
from gptjax.model.config import ModelConfig
from gptjax.model.config_parts import GATES
from gptjax.sharding.constrain import axis_size, platform
from gptjax.weights.embed import embed
from gptjax.weights.linear import Names, linears
from gptjax.weights.weight import Role, Weight

PLAIN = Role()
"""Multiplies no activation, and does not decay."""


class Declared(nn.LogicallyPartitioned):
    """Linen's box around a new parameter: the logical names of its dimensions, and its role."""

    role: Role = struct.field(default=PLAIN, pytree_node=False)


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[..., Array],
    shape: tuple[int, ...],
    axes: Names,
    role: Role = PLAIN,
) -> Weight:
    """A parameter of a module: the weight, of any kind, that its tree holds, or while parameters
    are initialised a new float32 array."""
    if module.has_variable("params", name):
        return module.get_variable("params", name)

    def make(key: Key) -> Declared:
        return Declared(init(key, shape, jnp.float32), axes, role=role)

    return module.param(name, make)


def normal(std: float) -> Callable[..., Array]:
    """Initialises with this standard deviation, which may be 0."""
    return nn.initializers.normal(std) if std else nn.initializers.zeros


class Linear(nn.Module):
    """Contracts the last `len(inputs)` dimensions of x with a kernel [*inputs *outputs]."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: Names
    std: float
    bias: bool

    @nn.compact
    def weights(self) -> tuple[Weight, Float[Array, "..."] | None]:
        """The kernel and the bias [*outputs]."""
        count = len(self.inputs)
        role = Role(inputs=count, decays=True)
        shape = (*self.inputs, *self.outputs)
        kernel = parameter(self, "kernel", normal(self.std), shape, self.axes, role)
        if not self.bias:
            return kernel, None
        zeros = nn.initializers.zeros
        return kernel, parameter(self, "bias", zeros, self.outputs, self.axes[count:])

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return together(x, (self,))[0]


def to_heads(
    config: ModelConfig, heads: int, axis: str, name: str | None = None, biased: bool = True
) -> Linear:
    """The projection of the residual stream to heads of queries, keys or values."""
    sizes, axes = ((config.width,), (heads, config.head_dim)), ("embed", axis, "head")
    biased = biased and config.qkv_bias_enabled
    return Linear(*sizes, axes, config.init_std, biased, name=name)


def together(
    x: Float[Array, "..."], layers: tuple[Linear, ...], joined: bool = False
) -> list[Float[Array, "..."]]:
    """What each layer makes of the same x.

    Args:
      joined: on a CPU, unless outputs are sharded, multiply kernels as one; see `weights.linears`.
    """
    joined = joined and platform() == "cpu" and axis_size("tensor") == 1
    kernels, biases = zip(*(layer.weights() for layer in layers), strict=True)
    names = [layer.axes for layer in layers]
    outputs = linears(x, kernels, names=names, inputs=len(layers[0].inputs), joined=joined)
    return [
        y
        if bias is None
        else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        for y, bias in zip(outputs, biases, strict=True)
    ]


class Table(nn.Module):
    """Looks up rows of a table [count width], in the compute type."""

    count: int
    width: int
    axis: str
    std: float
    dtype: Any

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        names = (self.axis, "embed")
        table = parameter(
            self, "embedding", normal(self.std), (self.count, self.width), names, Role(decays=True)
        )
        return embed(table, ids, self.dtype, names)


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dimension, in float32; gives x's type back.

    Sources: Ba et al. 2016, arXiv:1607.06450; Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    kind: str
    width: int
    epsilon: float
    bias: bool
    axis: str | None = "embed"
    scaled: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        vector = (1,) * (x.ndim - 1) + (self.width,)
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        if self.scaled:
            scale = parameter(self, "scale", nn.initializers.ones, (self.width,), (self.axis,))
            y = y * scale.reshape(vector)
        if self.bias and self.kind == "layernorm":
            bias = parameter(self, "bias", nn.initializers.zeros, (self.width,), (self.axis,))
            y = y + bias.reshape(vector)
        return y.astype(x.dtype)


def norm(config: ModelConfig, name: str | None = None, width: int | None = None) -> Norm:
    """The config's norm over the residual stream, or over vectors of another width."""
    c, width = config, config.width if width is None else width
    return Norm(c.norm, width, c.norm_epsilon, c.bias, scaled=c.norm_scale, name=name)


class MLP(nn.Module):
    """Up, nonlinearity, down; gated forms multiply by a second projection.

    Sources: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; ReLU²: So et al.
    2021, Primer, arXiv:2109.08668.
    """

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], probe: Probe, seen: Observed
    ) -> tuple[Float[Array, "B T D"], Observed]:
        c = self.config

        def up(name: str) -> Linear:
            sizes, axes = ((c.width,), (self.width,)), ("embed", "mlp")
            return Linear(*sizes, axes, c.init_std, c.mlp_bias_enabled, name=name)

        *gate, risen = together(x, (up("gate"), up("up")) if c.gated else (up("up"),))
        bend = XIELU(name="xielu") if c.activation == "xielu" else partial(activate, c.activation)
        hidden = gated(c.activation, gate[0], risen) if gate else bend(risen)
        hidden, seen = probe.saved("mlp", hidden, seen)
        sizes, axes = ((self.width,), (c.width,)), ("mlp", "embed")
        down = Linear(*sizes, axes, residual_std(c), c.mlp_bias_enabled, name="down")
        return down(hidden), seen


class XIELU(nn.Module):
    """A parabola for positive numbers and an exponential for negative ones, each with a learned
    size. Source: Huang and Schlag 2024, xIELU, arXiv:2411.13010, section 3.2."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        def size(name: str, begin: float) -> Array:
            before = nn.initializers.constant(math.log(math.expm1(begin)))
            learned = jax.nn.softplus(parameter(self, name, before, (1,), (None,)))
            return learned.reshape((1,) * x.ndim)

        above, below = size("positive", 0.8), XIELU_SLOPE + size("negative", 0.3)
        y = x.astype(jnp.float32)
        curve = jnp.expm1(jnp.minimum(y, XIELU_EPSILON)) - y
        bent = jnp.where(y > 0, above * y * y, below * curve)
        return (bent + XIELU_SLOPE * y).astype(x.dtype)


XIELU_SLOPE, XIELU_EPSILON = 0.5, -1e-6
"""Slope at 0, and the largest argument of the exponential, so that its gradient stays finite."""


def gated(kind: str, gate: Array, up: Array) -> Array:
    """What a gated nonlinearity makes of its gate and of what it multiplies.

    Source: clamped: OpenAI 2025, gpt-oss, arXiv:2508.10925, section 2.3, and its code.
    """
    if kind == "swiglu_clamped":
        gate, up = jnp.minimum(gate, GATE_LIMIT), jnp.clip(up, -GATE_LIMIT, GATE_LIMIT) + 1
    return activate(kind, gate) * up


GATE_LIMIT = 7.0
"""The largest number that enters a clamped gate."""


def activate(kind: str, x: Array) -> Array:
    """The nonlinearity named `kind`; for a gated kind, that of its gate."""
    match GATES.get(kind, kind):
        case "gelu":
            return nn.gelu(x, approximate=True)
        case "gelu_exact":
            return nn.gelu(x, approximate=False)
        case "gelu_quick":
            return x * nn.sigmoid(1.702 * x)
        case "relu":
            return nn.relu(x)
        case "relu2":
            return jnp.square(nn.relu(x))
        case "silu":
            return nn.silu(x)
    raise ValueError(f"{kind!r} is not an activation.")


def residual_std(config: ModelConfig) -> float:
    """Initial standard deviation of what writes into the residual stream: as in GPT-2, so that its
    variance does not grow with depth."""
    return (
        0.0
        if config.residual_init == "zero"
        else config.init_std / math.sqrt(2 * config.num_layers)
    )


def skip_rows(
    x: Float[Array, "B T D"], rate: float, depth: Any, key: Key | None
) -> Float[Array, "B T D"]:
    """Zeroes a share `rate · depth` of the rows and scales the rest up. No key changes nothing.

    Args:
      depth: share of the layers up to this one, in (0, 1].

    Source: Huang et al. 2016, Deep Networks with Stochastic Depth, arXiv:1603.09382, with a choice
    for each row and branch.
    """
    if key is None or rate == 0.0:
        return x
    keep = 1 - rate * depth
    kept = jax.random.uniform(jax.random.fold_in(key, 1), (x.shape[0], 1, 1)) < keep
    return jnp.where(kept, (x / keep).astype(x.dtype), jnp.zeros((), x.dtype))
