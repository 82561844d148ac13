"""How the factors of a low-rank product lie in PEFT's files, by the table that says how the weight
itself does: the first has the weight's inputs, the second its outputs, and what a family orders
otherwise, such as the halves of rotary heads, it orders in the factors too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gptjax import model
from gptjax.formats import layout
from gptjax.formats.huggingface_families import FAMILIES, family_of
from gptjax.formats.layout import Entry, Place
from gptjax.formats.opened import OpenedModel
from gptjax.weights.adapters import role_at
from gptjax.weights.lora import adaptable


class Factors(NamedTuple):
    """Where the factors of one of their tensors belong."""

    a: Place
    """[R inputs] of theirs; shared by all parts that are joined along outputs."""
    b: Place
    """[outputs R] of theirs."""
    magnitude: Place
    """[outputs] of theirs."""


def factors(place: Place, inputs: int, ranks: tuple[int, ...]) -> Factors | None:
    """How the factors of the weight at a place lie; `None` where several are joined along inputs,
    which no product of factors is.

    Args:
      inputs: number of its dimensions that are summed over; those of a table are its rows.
      ranks: of each part.
    """
    entry, letters = place.entry, place.entry.our_axes.split()
    count = inputs or 1
    ours = {"in": letters[:count], "out": letters[count:]}
    along = {*entry.joined.strip("()").split()}
    if along & {*ours["in"]}:
        return None
    groups = re.findall(r"\([^)]*\)|\S+", entry.their_axes)

    def axes(side: str) -> str:
        return " ".join(g for g in groups if set(g.strip("()").split()) & set(ours[side]))

    def part(their_axes: str, side: str, our_axes: list[str], shapes: Any) -> Place:
        order = {letter: to for letter, to in entry.order.items() if letter in ours[side]}
        joined = entry.joined if along & {*ours[side]} else ""
        described = Entry(entry.theirs, entry.ours, their_axes, " ".join(our_axes), joined, order)
        return Place(place.name, described, place.parts, tuple(shapes))

    a_shapes = [(*shape[:count], rank) for shape, rank in zip(place.shapes, ranks, strict=True)]
    b_shapes = [(rank, *shape[count:]) for shape, rank in zip(place.shapes, ranks, strict=True)]
    return Factors(
        part(f"r {axes('in')}", "in", [*ours["in"], "r"], a_shapes),
        part(f"{axes('out')} r", "out", ["r", *ours["out"]], b_shapes),
        part(axes("out"), "out", ours["out"], [shape[1:] for shape in b_shapes]),
    )


class Weights(NamedTuple):
    """The weights of a model that can have an adapter, under their names."""

    places: dict[str, Place]
    """All tensors by name, `.weight` left out."""
    inputs: dict[str, int]
    """Of each weight that can have an adapter, by our path."""
    roles: Any


def weights_of(base: OpenedModel) -> Weights:
    """The weights of a model that can have an adapter, by the names of their family."""
    family = FAMILIES[family_of(base.config, base.about.family)]
    roles = model.roles(base.config)
    able = adaptable(model.shapes(base.config), roles)
    places = {place.name.removesuffix(".weight"): place for place in family.places(base.config)}
    return Weights(places, {path: role_at(roles, path).inputs for path in able}, roles)


def shared_part(place: Place) -> Place:
    """A factor that all parts of a place share."""
    return place._replace(parts=place.parts[:1], shapes=place.shapes[:1])


def with_padding(place: Place, value: np.ndarray, padding: int) -> np.ndarray:
    """Their tensor with zeros for the rows of padding that their vocabulary has."""
    groups = re.findall(r"\([^)]*\)|\S+", place.entry.their_axes)
    return np.pad(value, [(0, padding * (group == layout.VOCABULARY)) for group in groups])


def conv1d(known: Weights, modules: Mapping[str, Any]) -> bool:
    """Whether their adapted modules keep kernels with inputs first."""

    def inputsfirst(module: str) -> bool:
        entry = known.places[module].entry
        return entry.our_axes[0] in entry.their_axes.split(")")[0].split()[0]

    return any(
        inputsfirst(module) and known.inputs[known.places[module].parts[0][0]] for module in modules
    )
