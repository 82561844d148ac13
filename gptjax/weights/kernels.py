"""The kernels of a parameter tree by their paths, for whatever walks over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gptjax.core.arrays import Params
from gptjax.core.trees import path_matches
from gptjax.weights.weight import Role

TABLE = Role(stacked=1, inputs=1)
"""An embedding as a kernel: each token's row has scales of its own."""


def is_kernel(role: Role) -> bool:
    """Whether products with activations read a weight that may be narrow: not a router."""
    return role.inputs > 0 and not role.exact


def num_inputs(weight: Any, role: Role) -> int:
    """The number of inputs of a kernel."""
    return math.prod(weight.shape[role.stacked : role.stacked + role.inputs])


def kernels_of(
    params: Params, roles: Any, targets: tuple[str, ...], where: str = ""
) -> Iterator[tuple[str, Any, Role]]:
    """Yields path, weight and role of each kernel that a pattern matches.

    Args:
      roles: `model.roles(config)`.
      targets: patterns as of `--freeze`, such as `layers/attention/*`.
    """
    for name, part in params.items():
        path, role = f"{where}/{name}".lstrip("/"), roles.get(name)
        if isinstance(role, Role):
            if is_kernel(role) and any(path_matches(path, pattern) for pattern in targets):
                yield path, part, role
        elif isinstance(role, Mapping) and isinstance(part, Mapping):
            yield from kernels_of(part, role, targets, path)


def leaves_of(params: Params, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yields path and weight of each leaf, of any kind."""
    for name, part in params.items():
        path = f"{where}/{name}".lstrip("/")
        if isinstance(part, Mapping):
            yield from leaves_of(part, path)
        else:
            yield path, part


def replace_weights(params: Params, changed: Mapping[str, Any], where: str = "") -> Params:
    """The tree with other weights at some paths."""
    tree = {}
    for name, part in params.items():
        path = f"{where}/{name}".lstrip("/")
        if path in changed:
            tree[name] = changed[path]
        else:
            tree[name] = replace_weights(part, changed, path) if isinstance(part, Mapping) else part
    return tree
