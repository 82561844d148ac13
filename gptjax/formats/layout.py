"""Which of their tensors is which of our leaves, in both directions by one description.

Read `Entry`, then `places` (the entries of a model, one for each tensor), then `read` (their
tensors become our tree) and `tensors` (our tree becomes their tensors).

A layout is written as in Einstein sums: ours `d n h`, theirs `(n h) d`: the same letters in another
order, and in parentheses those that lie in one dimension. Both directions are made of it: taken
apart, turned, put together.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.core.config import require
from gptjax.model import ModelConfig

VOCABULARY = "v"
"""The letter of the tokens; their tensors may have more rows than ours, which no token uses."""


class Entry(NamedTuple):
    """A tensor of theirs, or one for each layer (`{i}` in its name) and expert (`{e}`), and what it
    is made of."""

    theirs: str
    """Their name: `model.layers.{i}.self_attn.q_proj.weight`."""
    ours: tuple[str, ...]
    """Paths of our leaves: `layers/attention/query/kernel`; several lie side by side in one
    tensor."""
    their_axes: str
    """`(n h) d`"""
    our_axes: str
    """`d n h`, without layers and experts."""
    joined: str = ""
    """The letter along which several of ours lie side by side."""
    order: Mapping[str, tuple[int, ...]] = {}
    """Letters whose numbers they order otherwise: number k of theirs is number order[k] of ours."""
    plus: float = 0.0
    """Ours is theirs plus this."""
    folded: str = ""
    """A table of theirs whose first row is added to ours; it is written as zeros, two rows."""


class Place(NamedTuple):
    """One tensor of theirs, and where its parts stand in our tree."""

    name: str
    entry: Entry
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    """(path, index of the layer and expert) of each part."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the parts."""


@functools.lru_cache(maxsize=16)
def leaves(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Gives shape and type of each of a model's leaves, by its path."""
    tree = model.shapes(config)
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def places(config: ModelConfig, entries: Sequence[Entry]) -> list[Place]:
    """Gives a place for each tensor of theirs that this model has; entries whose leaves it lacks
    have none.

    Raises:
      ValueError: the entries leave out a leaf, or a part of one; the family's table is wrong.
    """
    known, found = leaves(config), []
    for entry in entries:
        for name, prefixes, index in _instances(config, entry):
            paths = [
                path.replace("layers/", prefixes, 1) if "{i}" in entry.theirs else path
                for path in entry.ours
            ]
            if all(path in known for path in paths):
                shapes = tuple(known[path].shape[len(index) :] for path in paths)
                found.append(Place(name, entry, tuple((path, index) for path in paths), shapes))
    covered = dict.fromkeys(known, 0)
    for place in found:
        for (path, _), shape in zip(place.parts, place.shapes, strict=True):
            covered[path] += math.prod(shape)
    wrong = [path for path, count in covered.items() if count != math.prod(known[path].shape)]
    if wrong:
        raise ValueError(f"no tensor of this family is {', '.join(wrong)}.")
    return found


def _instances(config: ModelConfig, entry: Entry) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, prefix of our paths, index for each layer and expert of an entry."""
    if "{i}" not in entry.theirs:
        yield entry.theirs, "", ()
        return
    stack = config.encoder.stack if entry.ours[0].startswith("encoder/") else config.stack
    seen = {False: 0, True: 0}
    for i, layer in enumerate(stack):
        sparse = config.sparse(layer)
        prefix = ("layers/sparse/" if sparse else "layers/dense/") if config.mixed else "layers/"
        row = seen[sparse] if config.mixed else i
        seen[sparse] += 1
        for e in range(config.experts.count) if "{e}" in entry.theirs and sparse else (None,):
            yield (
                entry.theirs.replace("{i}", str(i)).replace("{e}", str(e)),
                prefix,
                (row,) if e is None else (row, e),
            )


# --- one tensor -----------------------------------------------------------------------------------


def _groups(axes: str) -> list[str]:
    """`(n h) d` as ["nh", "d"]."""
    return [group.strip("()").replace(" ", "") for group in re.findall(r"\([^)]*\)|\S+", axes)]


def _sizes(place: Place) -> dict[str, int]:
    """The size of each letter in their tensor."""
    letters = place.entry.our_axes.split()
    sizes = dict(zip(letters, place.shapes[0], strict=True))
    if place.entry.joined:
        sizes[place.entry.joined] = sum(
            shape[letters.index(place.entry.joined)] for shape in place.shapes
        )
    return sizes


def their_shape(place: Place, padding: int = 0) -> tuple[int, ...]:
    """The shape of their tensor, with so many rows more than our vocabulary."""
    sizes = _sizes(place)
    return tuple(
        math.prod(sizes[letter] for letter in group) + padding * (group == VOCABULARY)
        for group in _groups(place.entry.their_axes)
    )


def here(place: Place, part: int, theirs: np.ndarray) -> np.ndarray:
    """Their tensor as one of our parts: a view, unless numbers are ordered otherwise or moved."""
    entry, sizes, groups = place.entry, _sizes(place), _groups(place.entry.their_axes)
    for axis, group in enumerate(groups):
        if group == VOCABULARY:
            theirs = theirs[(slice(None),) * axis + (slice(sizes[VOCABULARY]),)]
    order = "".join(groups)
    value = theirs.reshape([sizes[letter] for letter in order])
    for letter, theirs_to_ours in entry.order.items():
        value = value.take(np.argsort(theirs_to_ours), axis=order.index(letter))
    if entry.joined:
        ends = np.cumsum(
            [0, *(shape[entry.our_axes.split().index(entry.joined)] for shape in place.shapes)]
        )
        value = value[
            (slice(None),) * order.index(entry.joined) + (slice(ends[part], ends[part + 1]),)
        ]
    return value.transpose([order.index(letter) for letter in entry.our_axes.split()])


def there(place: Place, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Our parts as their tensor, the inverse of `here`."""
    entry, order = place.entry, "".join(_groups(place.entry.their_axes))
    letters = entry.our_axes.split()
    turned = [part.transpose([letters.index(letter) for letter in order]) for part in parts]
    value = np.concatenate(turned, axis=order.index(entry.joined)) if entry.joined else turned[0]
    for letter, theirs_to_ours in entry.order.items():
        value = value.take(np.asarray(theirs_to_ours), axis=order.index(letter))
    return value.reshape(their_shape(place))


# --- whole models ---------------------------------------------------------------------------------


def require_all(
    places: Sequence[Place],
    found: Mapping[str, tuple[int, ...]],
    where: str,
    padding: int = 0,
    unused: Sequence[str] = (),
) -> None:
    """Holds the tensors of a file to those that the model needs.

    Args:
      found: the shape of each tensor that is there.
      unused: patterns of names that may be there and are not needed.

    Raises:
      ConfigError: names every tensor that is missing, has no place or has another shape.
    """
    wanted = {place.name: their_shape(place, padding) for place in places}
    folded = {place.entry.folded for place in places if place.entry.folded}
    missing = sorted(({*wanted, *folded}) - found.keys())
    extra = sorted(
        name
        for name in found.keys() - wanted.keys() - folded
        if not any(re.fullmatch(pattern, name) for pattern in unused)
    )
    wrong = [
        f"{name} {list(found[name])}, which should be {list(shape)}"
        for name, shape in sorted(wanted.items())
        if found.get(name, shape) != shape
    ]
    said = [
        f"{kind}: {_listed(names)}"
        for kind, names in (
            ("missing", missing),
            ("without a place here", extra),
            ("of another shape", wrong),
        )
        if names
    ]
    require(
        not said,
        f"the tensors of {where} are not those that its config describes; {'; '.join(said)}. Get"
        " the file again.",
    )


def _listed(names: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read(
    config: ModelConfig,
    places: Sequence[Place],
    take: Callable[[str], np.ndarray],
    shardings: Any = None,
) -> Params:
    """Our tree, of their tensors, float32: leaf by leaf, so that no more than one leaf is held
    beside what is done.

    Args:
      take: name of one of their tensors → its values, best a view of a mapped file.
      shardings: a tree of shardings on which the leaves are placed; none is the default device.
    """
    shapes, by_leaf = leaves(config), {}
    for place in places:
        for part, (path, index) in enumerate(place.parts):
            by_leaf.setdefault(path, []).append((place, part, index))
    targets = (
        {}
        if shardings is None
        else {
            "/".join(key.key for key in path): s
            for path, s in jax.tree_util.tree_flatten_with_path(shardings)[0]
        }
    )

    tree: Params = {}
    for path, shape in sorted(
        shapes.items(), key=lambda item: -item[1].size
    ):  # the largest first, when least is held
        leaf = np.empty(shape.shape, np.float32)
        for place, part, index in by_leaf[path]:
            leaf[index] = here(place, part, take(place.name))
            if place.entry.plus:
                leaf[index] += place.entry.plus
            if place.entry.folded:
                leaf[index] += take(place.entry.folded)[0].astype(np.float32)
        *folders, name = path.split("/")
        spot = functools.reduce(lambda at, folder: at.setdefault(folder, {}), folders, tree)
        spot[name] = _placed(leaf, targets.get(path))
        del leaf  # not to be held beside the next
    return tree


def _placed(leaf: np.ndarray, sharding: Any) -> jax.Array:
    """The leaf on its devices; done when this returns, so that the host's copy can go."""
    return jax.block_until_ready(
        jax.numpy.array(leaf) if sharding is None else jax.device_put(leaf, sharding)
    )


def tensors(params: Params, places: Sequence[Place]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors, of our tree, one at a time in the order of `written`."""
    flat = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    for place in places:
        value = there(place, [np.asarray(flat[path][index]) for path, index in place.parts])
        yield (
            place.name,
            value - np.asarray(place.entry.plus, value.dtype) if place.entry.plus else value,
        )
        if place.entry.folded:
            yield place.entry.folded, np.zeros((2, value.shape[1]), value.dtype)


def written(places: Sequence[Place]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `tensors` gives, in its order."""
    found: dict[str, tuple[int, ...]] = {}
    for place in places:
        shape = found[place.name] = their_shape(place)
        if place.entry.folded:
            found[place.entry.folded] = (2, shape[1])
    return found
