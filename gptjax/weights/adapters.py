"""Low-rank adapters (LoRA): a tree of their own beside a frozen parameter tree.

    adapters = lora(params, model.roles(config), key, rank=8)     what trains
    model.forward(config, attach(params, adapters), tokens)       how it is read
    merge(attach(params, adapters))                               a plain tree again

Source: Hu et al. 2021, LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Int, Key, Params
from gptjax.core.config import require
from gptjax.weights.weight import Adapted, Leaf, Role, Weight, dense


@functools.partial(jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=["scale"])
@dataclass(frozen=True)
class Adapter:
    """The factors of one weight's low-rank product, stacked as the weight is; with several
    adapters, they are a dimension A after the stacked ones."""

    a: Leaf
    """float32 [… *inputs R]"""
    b: Leaf
    """float32 [… R *outputs]"""
    scale: float = 1.0


Adapters = dict[str, Any]
"""Nested dicts with the paths of the adapted weights; leaves are `Adapter`."""

TARGETS = r"layers/.*"
"""Every kernel of the layers."""


def lora(
    params: Params,
    roles: Any,
    key: Key,
    *,
    rank: int,
    targets: str = TARGETS,
    alpha: float | None = None,
) -> Adapters:
    """Initial adapters, whose product is zero: `a` is uniform in ± 1/√inputs, `b` is zero.

    Args:
      roles: `model.roles(config)`.
      targets: regular expression of the whole path of a weight, such as
        `layers/.*(query|value)/kernel`. Routers and what multiplies no activation are left out.
      alpha: the product is multiplied by alpha / rank. `None` means rank.

    Raises:
      ConfigError: no weight matches.
    """
    scale = 1.0 if alpha is None else alpha / rank
    keys = iter(jax.random.split(key, len(jax.tree.leaves(roles, is_leaf=_is_role))))

    def one(path: str, weight: Weight, role: Role) -> Adapter | None:
        own = next(keys)
        if role.inputs == 0 or role.exact or not re.fullmatch(targets, path):
            return None
        border = role.stacked + role.inputs
        lead, outputs = weight.shape[: role.stacked], weight.shape[border:]
        bound = jnp.prod(jnp.asarray(weight.shape[role.stacked : border])) ** -0.5
        a = jax.random.uniform(own, (*weight.shape[:border], rank), minval=-bound, maxval=bound)
        return Adapter(a, jnp.zeros((*lead, rank, *outputs)), scale)

    adapters = _mapped(one, params, roles)
    require(bool(adapters), f"no weight that multiplies activations matches {targets!r}.")
    return adapters


def attach(
    params: Params, adapters: Adapters | Adapter, rows: Int[Array, " B"] | None = None
) -> Params:
    """The parameter tree in which every weight that has an adapter is `Adapted`.

    Args:
      rows: of adapters from `side_by_side`, the one that serves each row; −1 selects none.
    """
    if isinstance(adapters, Adapter):
        shape = () if rows is None else (*adapters.a.shape[: _stacked(params, adapters)], len(rows))
        chosen = None if rows is None else jnp.broadcast_to(rows, shape)
        return Adapted(params, adapters.a, adapters.b, adapters.scale, chosen)
    return {
        name: attach(tree, adapters[name], rows) if name in adapters else tree
        for name, tree in params.items()
    }


def _stacked(weight: Weight, adapter: Adapter) -> int:
    """Stacked dimensions of one of several adapters; `a` and `b` have 2 · (stacked + A) + 2 more
    than the base has inputs and outputs."""
    return adapter.a.ndim + adapter.b.ndim - 4 - len(weight.shape)


def side_by_side(several: Sequence[Adapters], roles: Any) -> Adapters:
    """Adapters of the same weights and rank as one tree, of which each row of a batch may use
    another one."""

    def one(path: str, first: Adapter, role: Role) -> Adapter:
        each = [first, *(_at(other, path) for other in several[1:])]
        a = jnp.stack([adapter.a for adapter in each], axis=role.stacked)
        # scales are part of b, so that adapters may differ in them
        b = jnp.stack([adapter.scale * adapter.b for adapter in each], axis=role.stacked)
        return Adapter(a, b)

    return _mapped(one, several[0], roles)


def _at(tree: Any, path: str) -> Any:
    return functools.reduce(lambda node, name: node[name], path.split("/"), tree)


def merge(params: Params) -> Params:
    """The tree with every adapted weight as one array: equal to the adapted one up to rounding."""
    return jax.tree.map(
        lambda leaf: dense(leaf) if isinstance(leaf, Adapted) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, Adapted),
    )


def _is_role(node: Any) -> bool:
    return isinstance(node, Role)


def _mapped(
    function: Callable[[str, Any, Role], Any], tree: Any, roles: Any, path: tuple[str, ...] = ()
) -> Any:
    """A tree of what a function of (path, leaf, role) gives; leaves for which it gives `None` are
    left out."""
    if isinstance(roles, Role):
        return function("/".join(path), tree, roles)
    parts = {
        name: _mapped(function, subtree, roles[name], (*path, name))
        for name, subtree in tree.items()
    }
    return {name: part for name, part in parts.items() if part is not None and part != {}}
