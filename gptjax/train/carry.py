"""The optimizer state of a run whose optimizer has changed: what has the same name is kept, the
rest begins anew.

An optimizer is a chain of transformations, and a checkpoint names their arrays by place in it. The
names of fields do not depend on the place: a transformation is recognised by its fields (Adam's
`count`, `mu` and `nu`), and an array by its field and its parameter. Read `as_saved`, which says
how to read any saved state, then `carried`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax.core.arrays import Params
from gptjax.core.trees import paths
from gptjax.runs.manifest import Leaf, named, nested

WORDS = {
    frozenset(("count", "values")): "recent losses and norms",
    frozenset(("count", "mu", "nu")): "Adam's moments",
    frozenset(("count", "mu")): "momentum",
    frozenset(("trace",)): "momentum",
    frozenset(("ema",)): "averaged weights",
    frozenset(("count",)): "count of steps",
}
"""The transformations that a user knows by another name than their fields."""


def same(saved: Iterable[Leaf], opt_state: Any) -> bool:
    """Whether a saved state has the arrays of `opt_state`, by name and shape."""
    wanted = {name: tuple(leaf.shape) for name, leaf in named(opt_state)[0].items()}
    return {leaf.path: leaf.shape for leaf in saved} == wanted


def as_saved(saved: Iterable[Leaf], trainable: Params, anywhere: Any) -> dict[str, Any]:
    """Returns shapes, types and shardings of a saved state, as nested dicts. What belongs to a
    parameter and has its shape lies where the parameter lies.

    Args:
      anywhere: the sharding of the rest.
    """
    known = named(trainable)[0]
    leaves = {}
    for leaf in saved:
        parameter = known.get(_split(leaf.path, known)[2])
        beside = parameter is not None and tuple(parameter.shape) == leaf.shape
        leaves[leaf.path] = jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.dtype(leaf.dtype),
            sharding=parameter.sharding if beside else anywhere,
        )
    return nested(leaves)


class Carried(NamedTuple):
    """An optimizer state, partly restored."""

    opt_state: Any
    note: str
    """What was kept, what begins anew and what is dropped, for the banner."""


def carried(saved: dict[str, Any], fresh: Any, trainable: Params) -> Carried:
    """Returns `fresh` with the transformations that `saved` has too, as they were saved. One of
    which an array is absent, or has another shape, stays fresh as a whole.

    Args:
      saved: what was read by `as_saved`.
      fresh: the initial state of the present optimizer.
    """
    known = dict.fromkeys(paths(trainable))
    old, new = _groups(named(saved)[0], known), _groups(named(fresh)[0], known)
    values = {}
    kept: set[frozenset[str]] = set()
    for group in new:
        match = next((other for other in old if _fits(other, group)), None)
        if match is None:
            continue
        kept.add(group.fields)
        values |= {
            name: jax.device_put(match.leaves[key].astype(leaf.dtype), leaf.sharding)
            for (key, leaf), name in zip(group.leaves.items(), group.names, strict=True)
        }
    leaves, structure = named(fresh)
    opt_state = structure.unflatten([values.get(name, leaf) for name, leaf in leaves.items()])
    anew = {group.fields for group in new} - kept
    dropped = {group.fields for group in old} - kept
    parts = (("kept", kept), ("begun anew", anew), ("dropped", dropped))
    said = "; ".join(f"{word}: {_words(fields)}" for word, fields in parts if fields)
    return Carried(opt_state, f"state of the optimizer {said}")


class _Group(NamedTuple):
    """The arrays of one transformation."""

    fields: frozenset[str]
    leaves: dict[tuple[str, str], Any]
    """By field and parameter."""
    names: list[str]


def _groups(leaves: dict[str, Any], known: dict[str, Any]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for name, leaf in leaves.items():
        place, field, parameter = _split(name, known)
        group = groups.setdefault(place, _Group(frozenset(), {}, []))
        group.leaves[field, parameter] = leaf
        group.names.append(name)
        groups[place] = group._replace(fields=group.fields | {field})
    return list(groups.values())


def _split(name: str, known: dict[str, Any]) -> tuple[str, str, str]:
    """The place in the chain, the field, and the parameter of an array; the last is empty if it
    belongs to none."""
    parts = name.split("/")
    for at in range(1, len(parts)):
        if "/".join(parts[at:]) in known:
            return "/".join(parts[: at - 1]), parts[at - 1], "/".join(parts[at:])
    return "/".join(parts[:-1]), parts[-1], ""


def _fits(old: _Group, new: _Group) -> bool:
    return old.fields == new.fields and all(
        key in old.leaves and old.leaves[key].shape == leaf.shape
        for key, leaf in new.leaves.items()
    )


def _words(groups: set[frozenset[str]]) -> str:
    named_groups = (WORDS.get(fields, " and ".join(sorted(fields))) for fields in groups)
    return ", ".join(sorted(set(named_groups)))
