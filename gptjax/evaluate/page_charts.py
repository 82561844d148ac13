"""Charts of an evaluation as SVG: intervals in a row, the unit square, and confusion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gptjax.evaluate.figure import Figure, mean_of
from gptjax.evaluate.report import Bin, Confusion
from gptjax.observe.charts import escaped

WIDE = 12
"""Labels up to which a confusion matrix shows its counts."""


class Mark(NamedTuple):
    """A place on the axis of an interval, such as chance."""

    name: str
    value: float
    style: str
    """A CSS class."""


def interval_svg(figure: Figure, marks: Iterable[Mark], low: float, high: float) -> str:
    """Returns a figure with its interval on an axis from `low` to `high`, as one row."""
    width, middle = 400.0, 12.0

    def x(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return width * min(max(share, 0.0), 1.0)

    parts = [
        f'<line class="{mark.style}" x1="{x(mark.value):.1f}" x2="{x(mark.value):.1f}" y1="2"'
        f' y2="22"><title>{escaped(f"{mark.name} {mark.value:.3f}")}</title></line>'
        for mark in marks
        if math.isfinite(mark.value)
    ]
    says = f"{figure.value:.3f}"
    if math.isfinite(figure.low) and math.isfinite(figure.high):
        says += f", 95% interval {figure.low:.3f} to {figure.high:.3f}"
        ends = x(figure.low), x(figure.high)
        parts.append(f'<path class="whisker" d="M{ends[0]:.1f} {middle}H{ends[1]:.1f}"/>')
        parts += [f'<path class="whisker" d="M{end:.1f} {middle - 4}v8"/>' for end in ends]
    parts.append(f'<circle class="point" cx="{x(figure.value):.1f}" cy="{middle}" r="5"/>')
    return (
        f'<svg class="interval" viewBox="0 0 {width:g} 24" role="img"'
        f' aria-label="{escaped(says)}"><title>{escaped(says)}</title>'
        f'<path class="axis" d="M0 {middle}H{width:g}"/>{"".join(parts)}</svg>'
    )


# --- the unit square


class Square(NamedTuple):
    """Where the unit square lies in its SVG."""

    left: float = 42
    top: float = 12
    side: float = 250

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point whose coordinates are shares."""
        return self.left + self.side * x, self.top + self.side * (1 - y)


def reliability_svg(bins: Sequence[Bin]) -> str:
    """Returns accuracy against confidence, with the interval of each bin."""
    square, parts = Square(), []
    for one in bins:
        right = round(one.accuracy * one.n)
        figure = mean_of([1.0] * right + [0.0] * (one.n - right))
        x, y = square.at(one.confidence, one.accuracy)
        low, high = square.at(0, figure.low)[1], square.at(0, figure.high)[1]
        says = f"confidence {one.confidence:.2f}, accuracy {one.accuracy:.2f}, {one.n} items"
        parts.append(
            f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/><circle class="point"'
            f' cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{says}</title></circle>'
        )
    (x0, y0), (x1, y1) = square.at(0, 0), square.at(1, 1)
    diagonal = f'<path class="level" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>'
    says = "accuracy by confidence; on the diagonal both are equal"
    return _framed(square, "confidence", "accuracy", says, diagonal + "".join(parts))


def selective_svg(confidence: Sequence[float], right: Sequence[bool]) -> str:
    """Returns the accuracy of the most confident items against the share of items that they are,
    with its interval."""
    square = Square()
    order = sorted(range(len(right)), key=lambda at: -confidence[at])
    counts = sorted({max(1, round(len(order) * k / 60)) for k in range(1, 61)})
    points, lows, highs = [], [], []
    for count in counts:
        figure = mean_of([float(right[at]) for at in order[:count]])
        share = count / len(order)
        points.append(square.at(share, figure.value))
        lows.append(square.at(share, figure.low))
        highs.append(square.at(share, figure.high))
    overall = square.at(0, mean_of([float(one) for one in right]).value)[1]
    level = f'<path class="level" d="M{square.left} {overall:.1f}h{square.side}"/>'
    band = f'<path class="band" d="{_path([*lows, *highs[::-1]])}Z"/>'
    says = "accuracy of the most confident items by their share of all items"
    curve = f'<path class="main" d="{_path(points)}"/>'
    return _framed(square, "share answered", "accuracy", says, band + level + curve)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _framed(square: Square, across: str, up: str, says: str, inner: str) -> str:
    """A square with ticks at the quarters."""
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, bottom = square.at(tick, 0)
        left, y = square.at(0, tick)
        kind = "axis" if tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{left:.1f} {y:.1f}h{square.side}"/>')
        parts.append(f'<text class="end" x="{left - 7:.1f}" y="{y + 4:.1f}">{tick:g}</text>')
        parts.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 17:.1f}">{tick:g}</text>')
    middle, bottom = square.at(0.5, 0)
    parts.append(f'<text class="middle" x="{middle:.1f}" y="{bottom + 35:.1f}">{across}</text>')
    centre = square.at(0, 0.5)[1]
    parts.append(
        f'<text class="middle" x="10" y="{centre:.1f}" transform="rotate(-90 10'
        f' {centre:.1f})">{up}</text>'
    )
    width, height = square.left + square.side + 12, bottom + 42
    return (
        f'<svg class="square" viewBox="0 0 {width:g} {height:g}" role="img"'
        f' aria-label="{escaped(says)}">{"".join(parts)}{inner}</svg>'
    )


# --- confusion


def confusion_table(confusion: Confusion) -> str:
    """Returns the counts of right (rows) and chosen (columns) labels; of many labels the pairs that
    are confused most."""
    if len(confusion.labels) > WIDE:
        return _confused_pairs(confusion)
    head = "".join(f'<th scope="col">{escaped(label)}</th>' for label in confusion.labels)
    rows = []
    for number, (label, counts) in enumerate(zip(confusion.labels, confusion.counts, strict=True)):
        total = max(1, sum(counts))
        cells = "".join(
            f'<td class="{"right" if column == number else "wrong"}" style="--heat:'
            f'{100 * count / total:.0f}%">{count:,}</td>'
            for column, count in enumerate(counts)
        )
        rows.append(f'<tr><th scope="row">{escaped(label)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="confusion"><thead><tr><th scope="col">right ↓ chosen'
        f" →</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confused_pairs(confusion: Confusion) -> str:
    pairs = sorted(
        (-count, right, chosen)
        for right, counts in enumerate(confusion.counts)
        for chosen, count in enumerate(counts)
        if right != chosen and count
    )
    labels = confusion.labels
    rows = "".join(
        f"<tr><td>{escaped(labels[right])}</td><td>{escaped(labels[chosen])}</td>"
        f'<td class="number">{-count:,}</td></tr>'
        for count, right, chosen in pairs[:15]
    )
    return (
        f"<p>The pairs that are confused most, of {len(labels)} labels.</p><table><thead><tr>"
        '<th scope="col">right</th><th scope="col">chosen</th><th scope="col" class="number">items'
        f"</th></tr></thead><tbody>{rows}</tbody></table>"
    )
