"""Pictures that are drawn: a few coloured shapes, with a caption or with questions about them.

Which colour has which shape decides what is held out, so that a model is asked about combinations
that it has never seen. Read `Shapes`, then `read_shapes` and `draw_scene`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gptjax.core.config import require
from gptjax.data.documents.document import Document
from gptjax.data.documents.media import Pictured

SCENE = "scene:"
"""A picture whose name begins so is drawn: a list of objects in JSON follows."""

FORMS = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (235, 200, 30),
    "purple": (148, 60, 180),
}
APART = 5
"""One combination of colour and form in so many is held out."""


@dataclass(frozen=True)
class Shapes:
    """Drawn pictures of one to three coloured shapes side by side, no two of which are equal.

    `captions` names them from left to right (`a red circle and a blue square`). `questions` asks
    how many there are of a colour or a form, which colour one has, what stands left or right of
    one, and whether there is one.
    """

    about: Literal["captions", "questions"] = "captions"
    """What is asked about a picture."""
    count: int = 4000
    """Number of pictures to train on."""
    held_out_count: int = 500
    """Number of further pictures that are held out."""
    unseen: bool = True
    """Held-out pictures show a combination of colour and form that no training picture shows;
    otherwise they are like those of training."""
    seed: int = 0
    """Which pictures."""

    def __post_init__(self) -> None:
        for name in ("count", "held_out_count"):
            value, flag = getattr(self, name), f"--data.source.{name.replace('_', '-')} N"
            require(value >= 1, f"data.source.{name} is {value}; it needs 1 or more: pass {flag}.")


class Thing(NamedTuple):
    """One shape of a picture; places and sizes are shares of the picture's side."""

    form: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def words(self) -> str:
        """Its name, `red circle`."""
        return f"{self.colour} {self.form}"

    @property
    def held_out(self) -> bool:
        """Its combination of colour and form is never shown in training."""
        return (FORMS.index(self.form) + 2 * list(COLOURS).index(self.colour)) % APART == 0


def read_shapes(source: Shapes) -> Iterator[Document]:
    """Yields the pictures with what is asked about them; several questions share a picture."""
    for part, count in (("train", source.count), ("held out", source.held_out_count)):
        draw = np.random.default_rng([source.seed, int(part == "train"), int(source.unseen)])
        unseen, seen, made = part == "held out" and source.unseen, set(), 0
        while made < count:
            things = _things(draw)
            new = any(thing.held_out for thing in things)
            name = SCENE + json.dumps([list(thing) for thing in things])
            if new != unseen or name in seen:
                continue
            seen.add(name)
            made += 1
            asked = [("", caption(things))] if source.about == "captions" else _asked(things, draw)
            for number, (prompt, answer) in enumerate(asked):
                yield Document(
                    Pictured(prompt, answer, (name,)).dump(),
                    f"{source.about}:{part}:{made - 1}:{number}",
                    source=name,
                    held_out=part != "train",
                    pictures=(name,),
                )


def _things(draw: np.random.Generator) -> list[Thing]:
    """One to three shapes from left to right."""
    count = int(draw.integers(1, 4))
    things = []
    for place in range(count):
        radius = float(draw.uniform(0.09, 0.14))
        things.append(
            Thing(
                FORMS[draw.integers(len(FORMS))],
                list(COLOURS)[draw.integers(len(COLOURS))],
                round((place + 0.5) / count + float(draw.uniform(-0.02, 0.02)), 3),
                round(float(draw.uniform(0.2, 0.8)), 3),
                round(radius, 3),
            )
        )
    return things


def caption(things: list[Thing]) -> str:
    """Names the shapes from left to right."""
    *first, last = (f"a {thing.words}" for thing in things)
    return f"{', '.join(first)} and {last}" if first else last


NUMBERS = ("zero", "one", "two", "three")


def _asked(things: list[Thing], draw: np.random.Generator) -> list[tuple[str, str]]:
    """Questions about a picture that have one answer each, one of each kind that it has."""
    form, colour = FORMS[draw.integers(len(FORMS))], list(COLOURS)[draw.integers(len(COLOURS))]
    shown = things[draw.integers(len(things))]
    forms, colours = [t.form for t in things], [t.colour for t in things]
    asked = [
        (f"how many {colour} shapes are there?", NUMBERS[colours.count(colour)]),
        (f"how many {shown.form}s are there?", NUMBERS[forms.count(shown.form)]),
    ]
    there = bool(draw.integers(2))
    words = shown.words if there else f"{colour} {form}"
    asked.append((f"is there a {words}?", "yes" if words in [t.words for t in things] else "no"))
    if forms.count(shown.form) == 1:
        asked.append((f"what colour is the {shown.form}?", shown.colour))
    place = things.index(shown)
    for side, other in (("left", place - 1), ("right", place + 1)):
        if 0 <= other < len(things) and [t.words for t in things].count(shown.words) == 1:
            asked.append((f"what is just {side} of the {shown.words}?", things[other].words))
    return asked


FINER = 4
"""Points of a pixel's side that are looked at, so that borders are smooth."""


def draw_scene(name: str, size: tuple[int, int]) -> np.ndarray:
    """Draws a scene: a picture, 8 bits a colour [H W 3]."""
    return draw_things((Thing(*fields) for fields in json.loads(name.removeprefix(SCENE))), size)


def draw_things(things: Iterable[Thing], size: tuple[int, int]) -> np.ndarray:
    """Draws objects, each over those before it, on a light ground [H W 3]."""
    height, width = size
    y, x = np.mgrid[0 : height * FINER, 0 : width * FINER] + 0.5
    x, y = x / (width * FINER), y / (height * FINER)
    picture = np.full((height * FINER, width * FINER, 3), 240.0, np.float32)
    for thing in things:
        across, down = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
        picture[_inside(thing.form, across, down)] = COLOURS[thing.colour]
    blocks = picture.reshape(height, FINER, width, FINER, 3).mean((1, 3))
    return np.round(blocks).astype(np.uint8)


def _inside(form: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The points of a form of radius 1 around 0."""
    match form:
        case "circle":
            return x * x + y * y < 1
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) < 0.85
        case "triangle":
            return (y < 0.8) & (np.abs(x) < 0.55 * (y + 1))
        case "diamond":
            return np.abs(x) + np.abs(y) < 1.1
    inside = np.maximum(np.abs(x), np.abs(y)) < 1
    return inside & (np.minimum(np.abs(x), np.abs(y)) < 0.35)
