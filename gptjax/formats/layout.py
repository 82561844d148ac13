"""Which tensor of another program is which of our leaves, in both directions from one description.

Read `Entry`, then `places` (the entries of a model, one for each tensor), then `read_params` (their
tensors to our tree) and `tensors` (our tree to their tensors).

A layout is written as in Einstein sums, for example ours `d n h`, theirs `(n h) d`: the same
letters in another order, and in parentheses those that share a dimension. Both directions follow
from it: split, transpose, join.
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
from gptjax.model.inputs.vision_parts import picture_encoder

VOCABULARY = "v"
"""The letter of tokens. Their tensors may have more rows than ours: padding that no token uses."""


class Entry(NamedTuple):
    """A tensor of theirs, or one for each layer (`{i}` in its name) and expert (`{e}`), and the
    leaves it is made of."""

    theirs: str
    """Their name, such as `model.layers.{i}.self_attn.q_proj.weight`."""
    ours: tuple[str, ...]
    """Paths of our leaves, such as `layers/attention/query/kernel`; several are joined in one
    tensor."""
    their_axes: str
    """For example `(n h) d`; () is a dimension of one number that ours does not have."""
    our_axes: str
    """For example `d n h`, without layers and experts."""
    joined: str = ""
    """The letter along which several of ours are concatenated; or, in parentheses, the letters of a
    dimension of theirs in which parts of other sizes lie one after the other."""
    order: Mapping[str, tuple[int, ...]] = {}
    """Letters that they order otherwise: their number k is our number order[k]."""
    plus: float = 0.0
    """Our values are theirs plus this."""
    folded: str = ""
    """A table of theirs whose first row is added to ours; it is written as rows of zeros."""
    folded_rows: int = 2
    """Number of rows of that table where it is written."""
    skipped: int = 0
    """Rows of theirs before our first, which no text uses: positions of padding. They are written
    as zeros."""
    optional: bool = False
    """Files may lack it; it is zero then."""
    copy: bool = False
    """It repeats another tensor of theirs; files may lack it."""
    constant: float | None = None
    """A number of theirs that is no leaf of ours, the same in all models: `ours` is empty."""


class Place(NamedTuple):
    """One tensor of theirs, and the parts of our tree that it holds."""

    name: str
    entry: Entry
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    """(path, index of layer and expert) of each part."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the parts."""


@functools.lru_cache(maxsize=16)
def leaf_shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and type of each of a model's leaves by its path, `/` between keys."""
    return _by_path(model.shapes(config))


def _by_path(tree: Any) -> dict[str, Any]:
    whole = jax.tree_util.tree_flatten_with_path(tree, lambda node: not isinstance(node, dict))
    pairs = whole[0]
    return {"/".join(key.key for key in path): leaf for path, leaf in pairs}


def places(config: ModelConfig, entries: Sequence[Entry]) -> list[Place]:
    """Returns the tensors of a model; entries whose leaves it lacks have none.

    Raises:
      ValueError: the entries omit a leaf or part of one, so the family's table is wrong.
    """
    known, result = leaf_shapes(config), []
    for entry in entries:
        for name, prefix, index in _instances(config, entry):
            paths = [
                path.replace("layers/", prefix, 1) if "{i}" in entry.theirs else path
                for path in entry.ours
            ]
            if all(path in known for path in paths):
                shapes = tuple(known[path].shape[len(index) :] for path in paths)
                result.append(Place(name, entry, tuple((path, index) for path in paths), shapes))
    covered = dict.fromkeys(known, 0)
    for place in (place for place in result if not place.entry.copy):
        for (path, _), shape in zip(place.parts, place.shapes, strict=True):
            covered[path] += math.prod(shape)
    missing = [path for path, size in covered.items() if size != math.prod(known[path].shape)]
    if missing:
        raise ValueError(f"no tensor of this family is {', '.join(missing)}.")
    return result


def _instances(config: ModelConfig, entry: Entry) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yields name, prefix of our paths and index for each layer and expert of an entry."""
    if "{a}" in entry.theirs:
        yield from _further_instances(config, entry)
        return
    if "{i}" not in entry.theirs:
        yield entry.theirs, "", ()
        return
    first, half = entry.ours[0] if entry.ours else "", config
    if first.startswith("encoder/"):
        half = config.encoder
    elif first.startswith("frames/") and config.frames is not None:
        half = config.frame_encoder
    elif first.startswith("vision/encoder/"):
        half = picture_encoder(config)
    num_before: dict[str, int] = {}
    for i, layer in enumerate(half.stack):
        sparse, own = half.sparse(layer), half.stack_of(layer)
        prefix, row = "layers/", i
        if half.mixed:  # layers with other parameters are stacked apart
            prefix, row = f"layers/{own}/", num_before.get(own, 0)
        num_before[own] = num_before.get(own, 0) + 1
        name = entry.theirs.replace("{i}", str(i))
        if "{e}" in name and sparse:
            for e in range(config.experts.count):
                yield name.replace("{e}", str(e)), prefix, (row, e)
        else:
            yield name, prefix, (row,)


def _further_instances(
    config: ModelConfig, entry: Entry
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The same for the blocks that predict further tokens, whose number is `{a}` in a name; the
    layers of the model are counted before them."""
    for a in range(config.ahead if config.ahead_chained else 0):
        name = entry.theirs.replace("{a}", str(config.num_layers + a))
        if "{e}" in name:
            for e in range(0 if config.experts is None else config.experts.count):
                yield name.replace("{e}", str(e)), "", (a, e)
        else:
            yield name, "", () if entry.copy else (a,)


# --- one tensor ----------------------------------------------------------------------------------


def axis_groups(axes: str) -> list[str]:
    """Splits `(n h) d` into ["nh", "d"]."""
    return [group.strip("()").replace(" ", "") for group in re.findall(r"\([^)]*\)|\S+", axes)]


def sizes_of(place: Place) -> dict[str, int]:
    """The size of each letter in their tensor."""
    entry, letters = place.entry, place.entry.our_axes.split()
    sizes = dict(zip(letters, place.shapes[0], strict=True))
    if entry.joined:
        axis = letters.index(entry.joined)
        sizes[entry.joined] = sum(shape[axis] for shape in place.shapes)
    return sizes


def their_shape(place: Place, padding: int = 0) -> tuple[int, ...]:
    """Returns the shape of their tensor, with `padding` more rows than our vocabulary."""
    if place.entry.constant is not None or not place.entry.their_axes:
        return ()
    if own := _apart(place):
        shapes, axis = [their_shape(one) for one in own], _joined_axis(place)
        total = sum(shape[axis] for shape in shapes)
        return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
    sizes = sizes_of(place)
    shape = [
        math.prod(sizes[letter] for letter in group) + padding * (group == VOCABULARY)
        for group in axis_groups(place.entry.their_axes)
    ]
    return (shape[0] + place.entry.skipped, *shape[1:])


def from_theirs(place: Place, part: int, theirs: np.ndarray) -> np.ndarray:
    """Returns one of our parts of their tensor: a view, unless they order its numbers otherwise."""
    if own := _apart(place):
        axis = _joined_axis(place)
        ends = np.cumsum([0, *(their_shape(one)[axis] for one in own)])
        return from_theirs(own[part], 0, _along(theirs, axis, ends[part], ends[part + 1]))
    if not place.entry.their_axes:
        return theirs
    entry, sizes, groups = place.entry, sizes_of(place), axis_groups(place.entry.their_axes)
    for axis, group in enumerate(groups):
        if group == VOCABULARY:
            theirs = _along(theirs, axis, 0, sizes[VOCABULARY])
    theirs = theirs[entry.skipped :]
    order = "".join(groups)
    value = theirs.reshape([sizes[letter] for letter in order])
    for letter, theirs_to_ours in entry.order.items():
        value = value.take(np.argsort(theirs_to_ours), axis=order.index(letter))
    if entry.joined:
        axis = entry.our_axes.split().index(entry.joined)
        ends = np.cumsum([0, *(shape[axis] for shape in place.shapes)])
        value = _along(value, order.index(entry.joined), ends[part], ends[part + 1])
    return value.transpose([order.index(letter) for letter in entry.our_axes.split()])


def _apart(place: Place) -> list[Place]:
    """The parts as places of their own, where they lie one after the other in a dimension."""
    if not place.entry.joined.startswith("("):
        return []
    return [
        place._replace(
            entry=place.entry._replace(ours=(path,), joined=""), parts=(part,), shapes=(shape,)
        )
        for path, part, shape in zip(place.entry.ours, place.parts, place.shapes, strict=True)
    ]


def _joined_axis(place: Place) -> int:
    """Their dimension in which the parts lie."""
    return axis_groups(place.entry.their_axes).index(axis_groups(place.entry.joined)[0])


def _along(value: np.ndarray, axis: int, begin: int, end: int) -> np.ndarray:
    """A range of an axis, as a view."""
    return value[(slice(None),) * axis + (slice(begin, end),)]


def to_theirs(place: Place, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns their tensor of our parts, the inverse of `from_theirs`."""
    if own := _apart(place):
        values = [to_theirs(one, [part]) for one, part in zip(own, parts, strict=True)]
        return np.concatenate(values, axis=_joined_axis(place))
    entry = place.entry
    if entry.constant is not None:
        return np.asarray(entry.constant, np.float32)
    if not entry.their_axes:
        return parts[0]
    order = "".join(axis_groups(entry.their_axes))
    letters = entry.our_axes.split()
    transposed = [part.transpose([letters.index(letter) for letter in order]) for part in parts]
    value = transposed[0]
    if entry.joined:
        value = np.concatenate(transposed, axis=order.index(entry.joined))
    for letter, theirs_to_ours in entry.order.items():
        value = value.take(np.asarray(theirs_to_ours), axis=order.index(letter))
    rows, *others = their_shape(place)
    value = value.reshape(rows - entry.skipped, *others)
    empty = np.zeros((entry.skipped, *others), value.dtype)
    return np.concatenate([empty, value]) if entry.skipped else value


# --- whole models --------------------------------------------------------------------------------


def require_all(
    places: Sequence[Place],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    padding: int = 0,
    unused: Sequence[str] = (),
) -> None:
    """Compares the tensors of a file with those that the model needs.

    Args:
      shapes: of each tensor in the file.
      where: the file, for the message.
      padding: number of rows that their vocabulary has more than ours.
      unused: patterns of names that may be present and are not needed.

    Raises:
      ConfigError: names every tensor that is missing, unknown or of another shape.
    """
    wanted = {place.name: their_shape(place, padding) for place in places}
    folded = {place.entry.folded for place in places if place.entry.folded}
    optional = {place.name for place in places if place.entry.optional or place.entry.copy}
    missing = sorted({*wanted, *folded} - shapes.keys() - optional)
    unknown = sorted(
        name
        for name in shapes.keys() - wanted.keys() - folded
        if not any(re.fullmatch(pattern, name) for pattern in unused)
    )
    wrong = [
        f"{name} {list(shapes[name])}, which should be {list(shape)}"
        for name, shape in sorted(wanted.items())
        if shapes.get(name, shape) != shape
    ]
    kinds = {"missing": missing, "without a place here": unknown, "of another shape": wrong}
    listed = "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)
    require(
        not listed,
        f"the tensors of {where} are not those that its config describes; {listed}. Get the file"
        " again.",
    )


def _listed(names: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read_params(
    config: ModelConfig,
    places: Sequence[Place],
    take: Callable[[str], np.ndarray],
    shardings: Any = None,
    keep: Callable[[tuple[int, ...], Sequence[Any]], Any] | None = None,
) -> Params:
    """Returns our tree of their tensors, in float32. It is built leaf by leaf, so that at most one
    leaf is held in memory besides the placed ones.

    Args:
      take: maps the name of one of their tensors to its values, ideally a view of a mapped file.
      shardings: a tree of shardings for the leaves; `None` means the default device.
      keep: makes a leaf of its shape and parts that is not in float32; `None` if it can't.
    """
    parts_of: dict[str, list[tuple[Place, int, tuple[int, ...]]]] = {}
    for place in (place for place in places if not place.entry.copy):
        for part, (path, index) in enumerate(place.parts):
            parts_of.setdefault(path, []).append((place, part, index))
    targets = {} if shardings is None else _by_path(shardings)
    tree: Params = {}
    # The largest first, while the fewest others are held.
    for path, described in sorted(leaf_shapes(config).items(), key=lambda item: -item[1].size):
        leaf = keep(described.shape, parts_of[path]) if keep else None
        if leaf is None:
            leaf = _placed(_wide(described.shape, parts_of[path], take), targets.get(path))
        *folders, name = path.split("/")
        parent = functools.reduce(lambda node, key: node.setdefault(key, {}), folders, tree)
        parent[name] = leaf
    return tree


def _wide(
    shape: tuple[int, ...],
    parts: Sequence[tuple[Place, int, tuple[int, ...]]],
    take: Callable[[str], np.ndarray],
) -> np.ndarray:
    """A leaf in float32."""
    leaf = np.empty(shape, np.float32)
    for place, part, index in parts:
        leaf[index] = from_theirs(place, part, take(place.name))
        if place.entry.plus:
            leaf[index] += place.entry.plus
        if place.entry.folded:
            leaf[index] += take(place.entry.folded)[0].astype(np.float32)
    return leaf


def _placed(leaf: np.ndarray, sharding: Any) -> jax.Array:
    """The leaf on its devices. Waits, so that the host's copy can be freed."""
    array = jax.numpy.array(leaf) if sharding is None else jax.device_put(leaf, sharding)
    return jax.block_until_ready(array)


def tensors(params: Params, places: Sequence[Place]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields their tensors of our tree one at a time, in the order of `tensor_shapes`."""
    flat = _by_path(params)
    for place in places:
        value = to_theirs(place, [np.asarray(flat[path][index]) for path, index in place.parts])
        if place.entry.plus:
            value = value - np.asarray(place.entry.plus, value.dtype)
        yield place.name, value
        if place.entry.folded:
            yield place.entry.folded, np.zeros(_folded_shape(place, value.shape), value.dtype)


def tensor_shapes(places: Sequence[Place]) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of what `tensors` yields, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place in places:
        shape = shapes[place.name] = their_shape(place)
        if place.entry.folded:
            shapes[place.entry.folded] = _folded_shape(place, shape)
    return shapes


def _folded_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, int]:
    return (place.entry.folded_rows, shape[1])
