"""Low-rank adapters: a tree of their own beside a parameter tree.

    adapters = LoRA(rank=8).init(params, model.roles(config), key)     what trains
    model.forward(config, attach(params, adapters), tokens)            how it is read
    merge(attach(params, adapters))                                    a plain tree again

`lora` holds their settings; this file what can be done with them: `attach`, `merge`, `sum_adapters`
and `side_by_side`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Array, Int, Key, Node, Numbers, Params
from gptjax.core.config import require
from gptjax.weights import dora
from gptjax.weights.virtual import VIRTUAL, split_virtual
from gptjax.weights.weight import Adapted, Leaf, Role, Weight, dense


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["a", "b", "magnitude"], meta_fields=["scale"]
)
@dataclass(frozen=True)
class Adapter:
    """The factors of one weight's low-rank product, stacked as the weight is; with several
    adapters, they are a dimension A after the stacked ones."""

    a: Leaf
    """float32 [… *inputs R]"""
    b: Leaf
    """float32 [… R *outputs]"""
    scale: float = 1.0
    magnitude: Leaf = None
    """float32 [… *outputs]: of DoRA, see `dora`."""


Adapters = dict[str, Any]
"""Nested dicts with the paths of the adapted weights; leaves are `Adapter`. Virtual tokens lie
under `VIRTUAL`."""


def attach(
    params: Node,
    adapters: Adapters | Adapter,
    rows: Int[Array, " B"] | None = None,
    dropout: float = 0.0,
) -> Node:
    """The parameter tree in which every weight that has an adapter is `Adapted`.

    Args:
      rows: of adapters from `side_by_side`, the one that serves each row; −1 selects none.
      dropout: see `Adapted`; it is applied where `with_keys` has given keys.
    """
    if isinstance(adapters, Adapter):
        several = 0 if rows is None else 2
        stacked = adapters.a.ndim + adapters.b.ndim - 2 - several - len(params.shape)
        shape = () if rows is None else (*adapters.a.shape[:stacked], len(rows))
        return Adapted(
            params,
            adapters.a,
            adapters.b,
            adapters.scale,
            None if rows is None else jnp.broadcast_to(rows, shape),
            adapters.magnitude,
            None if adapters.magnitude is None else _squares(params, adapters, stacked, several),
            dropout,
        )
    virtual = {name: adapters[name] for name in (VIRTUAL,) if name in adapters}
    return virtual | {
        name: attach(tree, adapters[name], rows, dropout) if name in adapters else tree
        for name, tree in params.items()
    }


def _squares(base: Weight, adapter: Adapter, stacked: int, several: int) -> Array:
    """The squared length of each column of a base, in the shape of its outputs."""
    outputs = adapter.magnitude.shape[stacked + several // 2 :]
    lead = base.shape[:stacked]
    matrix = dense(base).reshape(*lead, -1, math.prod(outputs))
    return dora.column_squares(matrix).reshape(*lead, *outputs)


def detach(params: Node) -> tuple[Node, Adapters | Adapter]:
    """The base of a tree and its adapters: the inverse of `attach`."""
    if isinstance(params, Adapted):
        return params.base, Adapter(params.a, params.b, params.scale, params.magnitude)
    if not isinstance(params, dict):
        return params, {}
    params, virtual = split_virtual(params)
    own = {} if virtual is None else {VIRTUAL: virtual}
    parts = {name: detach(tree) for name, tree in params.items()}
    adapters = {name: part[1] for name, part in parts.items() if part[1] != {}}
    return {name: part[0] for name, part in parts.items()}, own | adapters


def merge(params: Params) -> Params:
    """The tree with every weight as one array: equal to the adapted one up to rounding. A quantised
    base is merged as the numbers that it stands for, on which the adapter was trained."""
    return jax.tree.map(dense, params, is_leaf=lambda node: not isinstance(node, dict))


def unmerge(params: Node, adapters: Adapters | Adapter) -> Node:
    """The base of merged weights, up to rounding.

    Raises:
      ConfigError: an adapter has magnitudes, which do not say how long the base's columns were.
    """
    if isinstance(adapters, Adapter):
        require(
            adapters.magnitude is None,
            "a DoRA adapter can't be taken out of merged weights; open the base itself.",
        )
        return dense(Adapted(params, adapters.a, adapters.b, -adapters.scale))
    return {
        name: unmerge(tree, adapters[name]) if name in adapters else tree
        for name, tree in params.items()
    }


def sum_adapters(several: Sequence[Adapters], shares: Sequence[float], roles: Any) -> Adapters:
    """One adapter whose products are the weighted sum of the products of several: exactly, since
    their ranks are put side by side.

    Raises:
      ConfigError: one of them has magnitudes, whose columns have no such sum.
    """

    def one(role: Role, each: list[Adapter | None]) -> Adapter:
        parts = [
            (share * adapter.scale, adapter)
            for share, adapter in zip(shares, each, strict=True)
            if adapter is not None
        ]
        require(
            all(adapter.magnitude is None for _, adapter in parts),
            "DoRA adapters have no weighted sum; merge one, or serve them side by side.",
        )
        a = jnp.concatenate([adapter.a for _, adapter in parts], axis=-1)
        b = jnp.concatenate([share * adapter.b for share, adapter in parts], axis=role.stacked)
        return Adapter(a, b)

    return _together(one, several, roles)


def side_by_side(several: Sequence[Adapters], roles: Any) -> Adapters:
    """Adapters as one tree, of which each row of a batch may use another one. Ranks and adapted
    weights may differ: a missing product is zero."""

    def one(role: Role, each: list[Adapter | None]) -> Adapter:
        like = next(adapter for adapter in each if adapter is not None)
        rank = max(adapter.a.shape[-1] for adapter in each if adapter is not None)
        filled = [
            Adapter(jnp.zeros_like(like.a), jnp.zeros_like(like.b)) if adapter is None else adapter
            for adapter in each
        ]
        lengths = None
        if any(adapter.magnitude is not None for adapter in filled):
            outputs = like.b.shape[: role.stacked] + like.b.shape[role.stacked + 1 :]
            none = jnp.full(outputs, jnp.nan)
            magnitudes = (adapter.magnitude for adapter in filled)
            lengths = jnp.stack(
                [none if own is None else own for own in magnitudes], axis=role.stacked
            )
        # scales are part of b, so that adapters may differ in them
        a = [_padded(adapter.a, rank, -1) for adapter in filled]
        b = [_padded(adapter.scale * adapter.b, rank, role.stacked) for adapter in filled]
        stack = functools.partial(jnp.stack, axis=role.stacked)
        return Adapter(stack(a), stack(b), magnitude=lengths)

    return _together(one, several, roles)


def serve(params: Params, rows: Int[Numbers, " B"]) -> Params:
    """The tree in which each row of a batch uses this one of several attached adapters; −1 uses
    none."""

    def one(leaf: Any) -> Any:
        if not is_adapted(leaf) or leaf.rows is None:
            return leaf
        each = jnp.broadcast_to(rows, (*leaf.rows.shape[:-1], *rows.shape))
        return dataclasses.replace(leaf, rows=each)

    return jax.tree.map(one, params, is_leaf=is_adapted)


def choose_adapter(params: Params, number: int) -> Params:
    """The tree with one of several attached adapters, for all rows; −1 leaves the base."""

    def one(leaf: Any) -> Any:
        if not is_adapted(leaf) or leaf.rows is None:
            return leaf
        if number < 0:
            return leaf.base
        a, b, magnitude = (
            None if x is None else jnp.take(x, number, axis=leaf.stacked)
            for x in (leaf.a, leaf.b, leaf.magnitude)
        )
        return dataclasses.replace(leaf, a=a, b=b, magnitude=magnitude, rows=None)

    return jax.tree.map(one, params, is_leaf=is_adapted)


def _padded(factor: Array, rank: int, axis: int) -> Array:
    """A factor with zeros up to a rank: its product stays, and so does what trains of it."""
    widths = [(0, 0)] * factor.ndim
    widths[axis] = (0, rank - factor.shape[axis])
    return jnp.pad(factor, widths)


def pad_rank(adapters: Adapters, rank: int, roles: Any) -> Adapters:
    """The same adapters with zeros up to a rank. Their scales stay, so they train as before."""

    def one(role: Role, each: list[Adapter | None]) -> Adapter | None:
        (adapter,) = each
        return adapter and dataclasses.replace(
            adapter,
            a=_padded(adapter.a, rank, -1),
            b=_padded(adapter.b, rank, role.stacked),
        )

    return _together(one, [adapters], roles)


def with_keys(params: Params, key: Key | None) -> Params:
    """The tree with a random key for dropout in each adapted weight that has any, another one for
    each weight of a stack; no key changes nothing."""
    if key is None:
        return params
    leaves, structure = jax.tree.flatten(params, is_leaf=is_adapted)

    def keyed(number: int, leaf: Any) -> Any:
        if not (is_adapted(leaf) and leaf.dropout):
            return leaf
        lead = leaf.shape[: leaf.stacked]
        keys = jax.random.split(jax.random.fold_in(key, number), lead)
        return dataclasses.replace(leaf, key=jax.random.key_data(keys))

    return jax.tree.unflatten(structure, [keyed(*pair) for pair in enumerate(leaves)])


def is_adapted(leaf: Any) -> bool:
    """Whether a leaf of a tree is an adapted weight."""
    return isinstance(leaf, Adapted)


def by_path(adapters: Adapters | Adapter, where: str = "") -> dict[str, Adapter]:
    """The adapters by the paths of their weights."""
    if isinstance(adapters, Adapter):
        return {where: adapters}
    return {
        path: adapter
        for name, tree in adapters.items()
        for path, adapter in by_path(tree, f"{where}/{name}".lstrip("/")).items()
    }


def tree_by_path(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        parent = functools.reduce(lambda node, key: node.setdefault(key, {}), folders, tree)
        parent[name] = leaf
    return tree


def role_at(roles: Any, path: str) -> Role:
    """The role of the weight at a path."""
    return functools.reduce(lambda node, name: node[name], path.split("/"), roles)


def _together(
    function: Callable[[Role, list[Adapter | None]], Adapter | None],
    several: Sequence[Adapters],
    roles: Any,
) -> Adapters:
    """A tree of what a function gives of all adapters of a weight; `None` for those that leave it
    as it is."""
    flat = [by_path(adapters) for adapters in several]
    every = dict.fromkeys(path for adapters in flat for path in adapters)
    return tree_by_path(
        {
            path: function(role_at(roles, path), [adapters.get(path) for adapters in flat])
            for path in every
        }
    )
