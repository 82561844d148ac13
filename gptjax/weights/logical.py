"""Logical axes of the arrays that a weight holds, from those of the array that it stands for, so
that a mesh splits every kind of weight alike."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh

from gptjax.core.arrays import Axes, Params
from gptjax.sharding.mesh import param_shardings
from gptjax.weights.linear import Names
from gptjax.weights.virtual import VIRTUAL, split_virtual
from gptjax.weights.weight import Adapted, Weight


def on_mesh(mesh: Mesh, params: Params, axes: Axes) -> Params:
    """Places parameters on the devices of a mesh.

    Args:
      axes: `model.axes(config)`.
    """
    return jax.device_put(params, param_shardings(mesh, axes_within(params, axes), params))


def axes_within(params: Params, axes: Axes) -> Axes:
    """Gives the logical axes of every array inside the weights.

    Args:
      axes: `model.axes(config)`, those of the weights.
    """
    params, virtual = split_virtual(params)
    known = jax.tree.map(
        lambda names, weight: weight_axes(weight, names),
        axes,
        params,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    return known if virtual is None else {**known, VIRTUAL: jax.tree.map(_whole, virtual)}


@functools.singledispatch
def weight_axes(weight: Weight, names: Names) -> Any:
    """Gives the names of each array of one weight, in its place: scales of blocks have those of the
    values that they multiply; what has other dimensions is not split."""
    return jax.tree.map(lambda leaf: names if leaf.ndim == len(names) else _whole(leaf), weight)


@weight_axes.register
def _(weight: Adapted, names: Names) -> Any:
    """A factor is split along the inputs or outputs that it shares with the base, never along the
    rank or the number of adapters."""
    several = () if weight.rows is None else (None,)
    stacked, border = weight.stacked, weight.a.ndim - 1 - len(several)
    lead, inputs, outputs = names[:stacked], names[stacked:border], names[border:]
    others = {
        field.name: jax.tree.map(_whole, getattr(weight, field.name))
        for field in dataclasses.fields(weight)
        if field.name not in ("base", "a", "b") and not isinstance(field.default, float)
    }
    return dataclasses.replace(
        weight,
        base=weight_axes(weight.base, names),
        a=(*lead, *several, *inputs, None),
        b=(*lead, *several, None, *outputs),
        **others,
    )


def _whole(leaf: Any) -> Names:
    return (None,) * leaf.ndim
