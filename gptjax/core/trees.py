"""A parameter tree as two: the leaves that train and those that are frozen.

Both halves have the whole tree's structure, with `None` where the other one has a leaf. JAX treats
`None` as an empty subtree, so gradients and optimizer states of a half have only its own leaves.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax

from gptjax.core.arrays import Params
from gptjax.core.config import nearest, require


def combine(frozen: Mapping[str, Params], trainable: Params) -> Params:
    """Returns the model's parameters: `trainable`, with the leaves that it lacks taken from
    `frozen["params"]`. Without those it is `trainable` itself.

    A `None` in `trainable` may stand for a leaf or for a whole subtree, so any partition of any
    pytree works: layers, single kernels, or the base of an adapted weight.
    """
    own = frozen.get("params")
    if own is None:
        return trainable
    return jax.tree.map(
        lambda mine, other: other if mine is None else mine, trainable, own, is_leaf=_absent
    )


def partition(params: Params, trains: Any) -> tuple[Params, Params]:
    """Returns (trainable, frozen).

    Args:
      trains: a tree of booleans like `params`.
    """
    trainable = jax.tree.map(lambda leaf, mine: leaf if mine else None, params, trains)
    frozen = jax.tree.map(lambda leaf, mine: None if mine else leaf, params, trains)
    return trainable, frozen


def trainable_part(params: Params, trainable: Params) -> Params:
    """Returns the leaves of `params` that `trainable` has."""
    return jax.tree.map(
        lambda mine, leaf: None if mine is None else leaf, trainable, params, is_leaf=_absent
    )


def trains(params: Params, freeze: tuple[str, ...]) -> Any:
    """Returns a tree of booleans like `params`: whether each leaf trains.

    Args:
      freeze: glob patterns of paths such as `layers/attention/query/kernel`. A pattern that matches
        the path of a subtree freezes all of it; `*` matches `/` too.

    Raises:
      ConfigError: a pattern matches no weight, or all weights match.
    """
    names = paths(params)
    for pattern in freeze:
        known = any(path_matches(name, pattern) for name in names)
        hint = "" if known else nearest(pattern, names)
        require(
            known,
            f"freeze names {pattern!r}, which matches no weight of the model; use a path such as"
            f" {names[0]!r} (--freeze).{hint}",
        )
    frozen = [any(path_matches(name, pattern) for pattern in freeze) for name in names]
    require(
        not frozen or not all(frozen),
        f"freeze is {' '.join(freeze)}, which matches all weights, so nothing would train; name"
        " fewer (--freeze).",
    )
    return jax.tree.unflatten(jax.tree.structure(params), [not one for one in frozen])


def paths(tree: Any) -> list[str]:
    """Returns the path of each leaf, such as `layers/mlp/up/kernel`, in the order of
    `jax.tree.leaves`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def leaf_at(tree: Any, path: str) -> Any:
    """Returns the leaf or subtree at a path such as `layers/mlp`."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def path_matches(name: str, pattern: str) -> bool:
    """Whether a glob pattern matches a path, or the path of a subtree that holds it."""
    parts = name.split("/")
    return any(
        fnmatch.fnmatchcase("/".join(parts[:count]), pattern) for count in range(1, len(parts) + 1)
    )


def _absent(leaf: Any) -> bool:
    return leaf is None
