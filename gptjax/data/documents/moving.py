"""Videos that are drawn: one or two coloured shapes, each on its way in one of four directions.

Where a shape ends says nothing of where it came from, so that the last frame alone does not tell
its direction. Read `MovingShapes`, then `read_moving` and `draw_video`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptjax.core.config import require
from gptjax.data.documents.document import Document
from gptjax.data.documents.media import Pictured
from gptjax.data.documents.shapes import COLOURS, FORMS, Thing, draw_things

MOVING = "moving:"
"""A video whose name begins so is drawn: a list of objects and their ways in JSON follows."""

WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Right and down by direction."""


@dataclass(frozen=True)
class MovingShapes:
    """Drawn videos of one or two shapes of different colours, which move straight on. Each is asked
    about: `which way does the red circle move?`

    A shape's last place is drawn from the middle of the picture, or of its upper or lower half,
    whatever its direction: of the last frame alone the best answer is a guess, right once in four
    times.
    """

    count: int = 4000
    """Number of videos to train on."""
    held_out_count: int = 500
    """Number of further videos that are held out."""
    seed: int = 0
    """Which videos."""

    def __post_init__(self) -> None:
        for name in ("count", "held_out_count"):
            value, flag = getattr(self, name), f"--data.source.{name.replace('_', '-')} N"
            require(value >= 1, f"data.source.{name} is {value}; it needs 1 or more: pass {flag}.")


def read_moving(source: MovingShapes) -> Iterator[Document]:
    """Yields each question about each video, all held-out videos after those to train on."""
    draw, seen = np.random.default_rng(source.seed), set[str]()
    while len(seen) < source.count + source.held_out_count:
        things, ways = _moving(draw)
        name = MOVING + json.dumps(
            [[*thing, *way] for thing, way in zip(things, ways, strict=True)]
        )
        if name in seen:
            continue
        held_out = len(seen) >= source.count
        seen.add(name)
        for number, (thing, way) in enumerate(zip(things, ways, strict=True)):
            yield Document(
                Pictured(f"which way does the {thing.words} move?", _named(way), (name,)).dump(),
                f"moving:{len(seen) - 1}:{number}",
                source=name,
                held_out=held_out,
                pictures=(name,),
            )


def _moving(draw: np.random.Generator) -> tuple[list[Thing], list[tuple[float, float]]]:
    """Shapes where they end, and how far they come to the right and down."""
    count = int(draw.integers(1, 3))
    things, ways = [], []
    for place, colour in enumerate(draw.permutation(len(COLOURS))[:count]):
        x = round(float(draw.uniform(0.4, 0.6)), 3)
        y = round((place + 0.5) / count + float(draw.uniform(-0.05, 0.05)), 3)
        radius, far = round(float(draw.uniform(0.09, 0.13)), 3), float(draw.uniform(0.2, 0.3))
        form = FORMS[draw.integers(len(FORMS))]
        things.append(Thing(form, list(COLOURS)[colour], x, y, radius))
        right, down = list(WAYS.values())[draw.integers(len(WAYS))]
        ways.append((round(right * far, 3), round(down * far, 3)))
    return things, ways


def _named(way: tuple[float, float]) -> str:
    """The direction of a way."""
    signs = tuple(int(np.sign(part)) for part in way)
    return next(name for name, direction in WAYS.items() if direction == signs)


def draw_video(name: str, size: tuple[int, int], frames: int) -> np.ndarray:
    """Draws a video, 8 bits a colour [frames H W 3]; in the last frame every shape is at its
    end."""
    found, shown = json.loads(name.removeprefix(MOVING)), []
    for part in np.linspace(1, 0, frames).tolist():
        things = [
            Thing(form, colour, x - part * right, y - part * down, radius)
            for form, colour, x, y, radius, right, down in found
        ]
        shown.append(draw_things(things, size))
    return np.stack(shown)
