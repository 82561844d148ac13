"""Linear, norm, MLP and dropout: the layers that do not know about positions.

Every parameter is made with its logical axis names beside it (`nn.with_partitioning`);
`transformer.axes` reads them.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from gptjax.core.arrays import Array, Float, Key
from gptjax.model.config import ModelConfig
from gptjax.weights.linear import WIDE, products
from gptjax.weights.products import as_computed


class Linear(nn.Module):
    """Contracts the last `len(inputs)` dimensions of x with a kernel [*inputs *outputs].

    The one place where a weight meets an activation: adapters and quantisation scales will be read
    here.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    bias: bool
    dtype: Any

    @nn.compact
    def weights(self) -> tuple[Array, Array | None, Array | None]:
        """The kernel as a matrix [inputs outputs] and the bias as a row [outputs], in the compute
        type, and the scale of each column of an int8 kernel.

        A kernel that is stored narrower than the compute type stays so; see `decoding.prepared`.
        """
        init = nn.initializers.normal(self.std) if self.std else nn.initializers.zeros
        kernel = self.param(
            "kernel",
            nn.with_partitioning(init, self.axes),
            (*self.inputs, *self.outputs),
            jnp.float32,
        )
        matrix = as_computed(
            kernel.reshape(math.prod(self.inputs), math.prod(self.outputs)), self.dtype
        )
        scale = (
            self.get_variable("params", "scale").reshape(-1)
            if self.has_variable("params", "scale")
            else None
        )
        if not self.bias:
            return matrix, None, scale
        zeros = nn.with_partitioning(nn.initializers.zeros, self.axes[len(self.inputs) :])
        return (
            matrix,
            self.param("bias", zeros, self.outputs, jnp.float32).reshape(-1).astype(self.dtype),
            scale,
        )

    def __call__(self, x: Array) -> Array:
        return together(x.reshape(*x.shape[: x.ndim - len(self.inputs)], -1), (self,))[0]


def together(
    x: Float[Array, "... I"], layers: tuple[Linear, ...], joined: bool = False
) -> list[Array]:
    """What each layer makes of the same x.

    Args:
      joined: by one product with their kernels side by side: on a CPU, one large product is faster
        than three small ones. Not of kernels that are stored for decoding, where to put them side
        by side would cost as much as to read them.
    """
    kernels, biases, scales = zip(*(layer.weights() for layer in layers), strict=True)
    names = tuple((layer.axes[0], layer.axes[len(layer.inputs)]) for layer in layers)
    if joined and kernels[0].dtype == x.dtype:
        ends = list(itertools.accumulate(kernel.shape[1] for kernel in kernels))
        found = jnp.split(
            products(x, (jnp.concatenate(kernels, axis=1),), names[:1], (1,))[0], ends[:-1], axis=-1
        )
    else:
        units = (
            math.prod(layer.inputs[1:] if layer.axes[0] in WIDE else layer.outputs[1:])
            for layer in layers
        )
        found = products(x, kernels, names, tuple(units), scales=scales)
    added = (
        y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
        for y, bias in zip(found, biases, strict=True)
    )
    return [
        y.reshape(*x.shape[:-1], *layer.outputs) for y, layer in zip(added, layers, strict=True)
    ]


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dimension, in float32; gives x's type back.

    Sources: Ba et al. 2016, arXiv:1607.06450; Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    kind: str
    width: int
    epsilon: float
    bias: bool
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        vector = (1,) * (x.ndim - 1) + (self.width,)
        scale = self.param(
            "scale",
            nn.with_partitioning(nn.initializers.ones, (self.axis,)),
            (self.width,),
            jnp.float32,
        )
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = (
            y
            * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
            * scale.reshape(vector)
        )
        if self.bias and self.kind == "layernorm":
            y = y + self.param(
                "bias",
                nn.with_partitioning(nn.initializers.zeros, (self.axis,)),
                (self.width,),
                jnp.float32,
            ).reshape(vector)
        return y.astype(x.dtype)


def norm(config: ModelConfig, name: str | None = None) -> Norm:
    """The config's norm over the residual stream."""
    return Norm(config.norm, config.width, config.norm_epsilon, config.bias, name=name)


class MLP(nn.Module):
    """Up, nonlinearity, down; gated forms multiply by a second projection.

    Sources: Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202; ReLU²: So et al.
    2021, Primer, arXiv:2109.08668.
    """

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config

        def up(name: str) -> Linear:
            return Linear(
                (c.width,),
                (self.width,),
                ("embed", "mlp"),
                c.init_std,
                c.bias,
                c.compute,
                name=name,
            )

        *gate, risen = together(x, (up("gate"), up("up")) if c.gated else (up("up"),))
        hidden = checkpoint_name(
            activate(c.activation, gate[0]) * risen if gate else activate(c.activation, risen),
            "mlp",
        )
        return Linear(
            (self.width,),
            (c.width,),
            ("mlp", "embed"),
            residual_std(c),
            c.bias,
            c.compute,
            name="down",
        )(hidden)


def activate(kind: str, x: Array) -> Array:
    """The nonlinearity named `kind`; for a gated kind, that of its gate."""
    match kind:
        case "gelu" | "geglu":
            return nn.gelu(x, approximate=True)
        case "gelu_exact":
            return nn.gelu(x, approximate=False)
        case "relu":
            return nn.relu(x)
        case "relu2":
            return jnp.square(nn.relu(x))
        case "silu" | "swiglu":
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


def dropout(x: Array, rate: float, key: Key | None) -> Array:
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 − rate). No key changes nothing.

    Sixteen random bits decide each value, half the cost of a uniform float; the rate is exact to
    2⁻¹⁶.

    Source: Srivastava et al. 2014, JMLR 15.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(threshold)
    return jnp.where(
        kept, x * jnp.asarray(2**16 / (2**16 - threshold), x.dtype), jnp.zeros((), x.dtype)
    )
