"""The pictures of the course: what is larger is drawn larger, and what cannot be drawn is
refused."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest

from gptjax.observe.plot import bars, plot, shades

WORDS = {"title": "A < B", "y": "nats"}


def drawn(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    """The attributes of the marks of a class, without those of the legend."""
    every = ET.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")
    own = [mark.attrib for mark in every if mark.attrib.get("class", "").startswith(kind)]
    return [mark for mark in own if "h14" not in mark.get("d", "") and mark.get("y") != "34"]


def corners(mark: dict[str, str]) -> list[tuple[float, float]]:
    found = re.findall(r"[ML]([\d.]+) ([\d.]+)", mark["d"])
    return [(float(across), float(down)) for across, down in found]


@pytest.mark.parametrize("log", [False, True])
def test_equal_steps_are_equally_far_apart(log: bool) -> None:
    values = [10.0**i if log else 10.0 * i for i in range(4)]
    svg = plot({"a": list(enumerate(values))}, x="step", log=log, **WORDS)
    places = corners(drawn(svg, "path", "line")[0])
    for axis, rises in ((0, True), (1, False)):
        gaps = [b[axis] - a[axis] for a, b in itertools.pairwise(places)]
        assert all((gap > 0) == rises for gap in gaps)
        assert max(gaps) - min(gaps) < 0.2


def test_what_is_not_finite_is_a_gap() -> None:
    points = [(0, 1.0), (1, math.nan), (2, 2.0), (3, 0.0), (4, 3.0)]
    line, other = drawn(
        plot({"a": points, "b": [(0, 1)]}, x="x", log=True, **WORDS), "path", "line"
    )
    assert line["d"].count("M") == 3
    assert other["d"].count("M") == 1


def test_a_bar_and_a_shade_are_as_large_as_their_number() -> None:
    one, two, none = drawn(bars({"a": {"x": 1, "y": 2}, "b": {"x": 0}}, **WORDS), "rect", "fill")
    assert float(two["width"]) == pytest.approx(2 * float(one["width"]), abs=0.2)
    assert float(none["width"]) < 1
    svg = shades([[0.25, 0.5], [0.0, 0.5]], ["a", "b"], ["x", "y"], **WORDS)
    cells = [float(cell["fill-opacity"]) for cell in drawn(svg, "rect", "fill")]
    assert cells == [0.5, 1.0, 1.0]  # of 0 nothing is drawn


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_what_no_length_shows_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="give numbers of 0 or more"):
        bars({"a": {"x": wrong}}, **WORDS)
    with pytest.raises(ValueError, match="give numbers of 0 or more"):
        shades([[wrong]], ["a"], ["x"], **WORDS)
    with pytest.raises(ValueError, match="give at least one"):
        plot({"a": [(0, wrong)]}, x="x", log=True, **WORDS)
