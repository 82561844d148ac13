"""Scaling before rounding, after AWQ: inputs that are large get larger weights, whose rounding is
then relatively finer, and what makes these inputs is divided by as much. The model stays the same
function; only its rounding changes.

Source: Lin et al. 2023, AWQ, arXiv:2306.00978, section 3.2. Here the size of an input is its root
mean square, and the error of an output is exact, by the inputs' moments, instead of sampled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.compress.moments import Moments
from gptjax.core.arrays import Array, Float, Params
from gptjax.model import ModelConfig
from gptjax.model.shortcuts import source_of_values
from gptjax.weights import Role, dense
from gptjax.weights.adapters import role_at
from gptjax.weights.kernels import leaves_of, replace_weights
from gptjax.weights.rounding import Rounding, rounded

EXPONENTS = tuple(n / 10 for n in range(10))
"""Powers of the inputs' sizes that are tried; 0 leaves them as they are."""


class _Pair(NamedTuple):
    """Weights that read the same inputs, and what makes these."""

    readers: tuple[str, ...]
    makers: tuple[str, ...]
    """Their last dimensions are the readers' inputs."""


def scaled_for_rounding(
    config: ModelConfig, params: Params, roles: Any, grid: Rounding, moments: Moments
) -> Params:
    """The same model with inputs scaled so that rounding costs less.

    Norms take the scales of what reads them, gated MLPs those of `down`, values those of `out`
    (query heads that share a value share its scales). Other kernels stay as they are.
    """
    changed: dict[str, Any] = {}
    flat = dict(leaves_of(params))
    for pair in _pairs(config, flat, moments):
        own = {path: changed.get(path, flat[path]) for path in (*pair.readers, *pair.makers)}
        size = _sizes(moments[pair.readers[0]], flat[pair.makers[0]])
        scales = _best(grid, pair, own, roles, moments, size)
        changed |= _apply(own, pair, roles, scales)
    return replace_weights(params, changed)


def _pairs(config: ModelConfig, flat: Mapping[str, Any], moments: Moments) -> list[_Pair]:
    """The pairs of each stack of layers."""
    stacks = {path.rpartition("/attention/")[0] for path in moments if "/attention/" in path}
    stacks |= {path.rpartition("/mlp/")[0] for path in moments if "/mlp/" in path}
    found = []
    normed = config.norm_placement in ("pre", "sandwich") and config.parallel != "shared"
    for stack in sorted(stacks):
        for branch in ("attention", "mlp"):
            names = ("query", "key", "value", "gate") if branch == "attention" else ("gate", "up")
            readers = tuple(f"{stack}/{branch}/{name}/kernel" for name in names)
            readers = tuple(path for path in readers if path in moments)
            norm = f"{stack}/{branch}_norm"
            makers = tuple(
                f"{norm}/{part}" for part in ("scale", "bias") if f"{norm}/{part}" in flat
            )
            plain = config.latent is None or branch == "mlp"
            if normed and plain and readers and f"{norm}/scale" in flat:
                found.append(_Pair(readers, makers))
        inner = [("mlp", "up", "down")] if config.gated else []
        own = config.latent is None and source_of_values(config) == "none"
        inner += [("attention", "value", "out")] if own else []
        for branch, maker, reader in inner:
            path = f"{stack}/{branch}/{reader}/kernel"
            made = tuple(f"{stack}/{branch}/{maker}/{part}" for part in ("kernel", "bias"))
            made = tuple(one for one in made if one in flat)
            clamped = config.activation == "swiglu_clamped" and branch == "mlp"
            if path in moments and made and not clamped and not config.qkv_clip:
                found.append(_Pair((path,), made))
    return found


def _shared(maker: Array, inputs: int) -> int:
    """How many inputs of a reader are made by the same number: query heads to a value head."""
    return inputs // (math.prod(maker.shape[-2:]) if maker.ndim == 4 else maker.shape[-1])


def _sizes(moments: Array, maker: Array) -> Float[Array, "S made"]:
    """The root of the mean moment of each number that is made, in each layer."""
    squares = jnp.diagonal(moments, axis1=-2, axis2=-1)
    repeats = _shared(maker, squares.shape[-1])
    if repeats > 1:  # [kv heads, queries of each, head]
        heads, head = maker.shape[-2:]
        squares = squares.reshape(-1, heads, repeats, head).mean(2).reshape(len(squares), -1)
    return jnp.sqrt(jnp.maximum(squares, 1e-12))


def _spread(scales: Array, maker: Array, inputs: int) -> Float[Array, "S I"]:
    """The scale of each input of a reader."""
    repeats = _shared(maker, inputs)
    if repeats == 1:
        return scales
    heads, head = maker.shape[-2:]
    apart = scales.reshape(-1, heads, 1, head)
    return jnp.broadcast_to(apart, (len(apart), heads, repeats, head)).reshape(len(apart), -1)


def _best(
    grid: Rounding,
    pair: _Pair,
    own: Mapping[str, Any],
    roles: Any,
    moments: Moments,
    size: Float[Array, "S made"],
) -> Float[Array, "S made"]:
    """Of each layer the scales that make the error of the readers' outputs least."""
    maker = own[pair.makers[0]]
    best = least = None
    for exponent in EXPONENTS:
        scales = size**exponent
        spread = jnp.sqrt(scales.max(-1, keepdims=True) * scales.min(-1, keepdims=True))
        scales = scales / jnp.maximum(spread, 1e-12)
        error = jnp.zeros(len(size))
        for path in pair.readers:
            each = _spread(scales, maker, moments[path].shape[-1])
            error = error + _error(grid, role_at(roles, path), own[path], each, moments[path])
        if best is None or least is None:
            best, least = scales, error
        best = jnp.where((error < least)[:, None], scales, best)
        least = jnp.minimum(error, least)
    assert best is not None
    return best


@functools.partial(jax.jit, static_argnums=(0, 1))
def _error(
    grid: Rounding, role: Role, weight: Array, scales: Float[Array, "S I"], moments: Array
) -> Float[Array, " S"]:
    """The sum of squared errors of the outputs in each layer, if inputs are divided by scales."""
    larger = _times(weight, scales, role)
    lost = dense(rounded(grid, larger, role)) - larger
    lost = lost.reshape(len(scales), scales.shape[1], -1) / scales[..., None]
    return jnp.einsum("sio,sij,sjo->s", lost, moments, lost, optimize=[(0, 1), (0, 1)])


def _times(weight: Array, scales: Float[Array, "S I"], role: Role) -> Array:
    inputs = weight.shape[role.stacked : role.stacked + role.inputs]
    rest = (1,) * (weight.ndim - role.stacked - role.inputs)
    return weight * scales.reshape(*weight.shape[: role.stacked], *inputs, *rest)


def _apply(
    own: Mapping[str, Any], pair: _Pair, roles: Any, scales: Float[Array, "S made"]
) -> dict[str, Any]:
    changed = {}
    maker = own[pair.makers[0]]
    for path in pair.readers:
        role, weight = role_at(roles, path), own[path]
        inputs = math.prod(weight.shape[role.stacked : role.stacked + role.inputs])
        changed[path] = _times(weight, _spread(scales, maker, inputs), role)
    for path in pair.makers:
        made = own[path]
        width = (1,) if path.endswith("/kernel") else ()  # [S D …] beside [S …]
        outputs = made.shape[1 + len(width) :]
        changed[path] = made / scales.reshape(len(scales), *width, *outputs)
    return changed
