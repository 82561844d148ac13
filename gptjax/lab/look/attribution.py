"""Which tokens of the prompt an answer comes from: gradient × input, integrated gradients,
occlusion.

All three compare a token's embedding with a baseline embedding that says nothing. The measure
decides the question: with `logit_difference` it is contrastive, why this token and not that one
(Yin and Neubig 2022, arXiv:2202.10419).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import model
from gptjax.core.arrays import Array, Float, Int, Params
from gptjax.lab.look.measures import Measure
from gptjax.model import ModelConfig, Soft
from gptjax.weights.weight import dense


class Attribution(NamedTuple):
    """What each token brings to a measure."""

    tokens: Float[Array, "B T"]
    value: Float[Array, " B"]
    """The measure of the prompt."""
    baseline: Float[Array, " B"]
    """The measure with every token at the baseline."""

    @property
    def error(self) -> Float[Array, " B"]:
        """The sum over tokens minus (value − baseline): near 0 for integrated gradients with enough
        steps (completeness); no other method promises it."""
        return self.tokens.sum(-1) - (self.value - self.baseline)


def mean_embedding(config: ModelConfig, params: Params) -> Float[Array, " entrance"]:
    """Returns the mean of all token embeddings, as they enter the model: the baseline by default.

    A zero embedding suits badly where norms divide by its size (RMSNorm): the measure then changes
    by a jump near 0.
    """
    table = dense(params["embedding"]["embedding"]).astype(jnp.float32)
    ids = jnp.zeros((1, 1), jnp.int32)
    mean = {**params, "embedding": {"embedding": table.mean(0, keepdims=True)}}
    return model.embed_tokens(config, mean, ids)[0, 0]


def _line(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    measure: Measure,
    baseline: Array | None,
    inputs: dict[str, Any],
) -> tuple[Float[Array, "B T entrance"], Float[Array, "B T entrance"], Callable[[Array], Array]]:
    """The prompt's embeddings, the baseline's, and the measure as a function of embeddings."""
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length)[None], (rows, length))

    def measured(embeddings: Float[Array, "B T entrance"]) -> Float[Array, " B"]:
        soft = Soft(embeddings, index)
        return measure(model.forward(config, params, tokens, soft=soft, **inputs).hidden)

    x = model.embed_tokens(config, params, tokens)
    given = mean_embedding(config, params) if baseline is None else jnp.asarray(baseline)
    shaped = given.reshape((1,) * (x.ndim - given.ndim) + given.shape)
    return x, jnp.broadcast_to(shaped.astype(x.dtype), x.shape), measured


def grad_input(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    measure: Measure,
    baseline: Float[Array, "..."] | None = None,
    **inputs: Any,
) -> Attribution:
    """Returns the gradient at the prompt times (embedding − baseline): the first order of what
    `occlusion` measures, in one backward pass.

    Args:
      baseline: embedding [entrance] or embeddings [B T entrance]; `None` is the mean of all.
      inputs: further arguments of `model.forward`.
    """
    x, begin, measured = _line(config, params, tokens, measure, baseline, inputs)
    slope = jax.grad(lambda e: measured(e).sum())(x)
    found = jnp.einsum("btd,btd->bt", slope, x - begin)
    return Attribution(found, measured(x), measured(begin))


def integrated_gradients(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    measure: Measure,
    baseline: Float[Array, "..."] | None = None,
    steps: int = 64,
    **inputs: Any,
) -> Attribution:
    """Returns the mean gradient along the straight line from baseline to prompt, times their
    difference; `error` says how far the sum is off.

    Args:
      baseline: as in `grad_input`.
      steps: points on the line, at the nodes of Gauss and Legendre, one backward pass each.

    Source: Sundararajan et al. 2017, arXiv:1703.01365.
    """
    x, begin, measured = _line(config, params, tokens, measure, baseline, inputs)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    slope = jax.grad(lambda e: measured(e).sum())

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        share, weight = point
        here = slope(begin + share.astype(x.dtype) * (x - begin))
        return total + weight * here.astype(jnp.float32), None

    points = (jnp.asarray((nodes + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32))
    mean, _ = jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), points)
    found = jnp.einsum("btd,btd->bt", mean, (x - begin).astype(jnp.float32))
    return Attribution(found, measured(x), measured(begin))


def occlusion(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    measure: Measure,
    baseline: Float[Array, "..."] | None = None,
    **inputs: Any,
) -> Attribution:
    """Returns by how much the measure falls when one token's embedding alone is the baseline.

    Args:
      baseline: as in `grad_input`.

    Source: Li et al. 2016, Understanding Neural Networks through Representation Erasure,
    arXiv:1612.08220.
    """
    x, begin, measured = _line(config, params, tokens, measure, baseline, inputs)
    value = measured(x)

    def without(place: Array) -> Float[Array, " B"]:
        hidden = (jnp.arange(x.shape[1]) == place)[None, :, None]
        return value - measured(jnp.where(hidden, begin, x))

    found = jax.lax.map(without, jnp.arange(x.shape[1])).T
    return Attribution(found, value, measured(begin))
