"""Curves as SVG, drawn without any library."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gptjax.observe.progress import human

Point = tuple[float, float | None]  # (step, value); None leaves a gap


class Curve(NamedTuple):
    """One line of a chart."""

    label: str
    points: list[Point]
    style: str  # a CSS class: raw, main, validation
    dots: bool = False
    band: Sequence[tuple[float, float, float]] = ()
    """(step, low, high) of an interval around it."""


def chart(
    curves: list[Curve],
    *,
    title: str,
    unit: str = "",
    size: tuple[int, int] = (860, 320),
    levels: dict[str, float] | None = None,
    zero: bool = False,
) -> str:
    """Returns an SVG with axes and gridlines, or "" if no curve has a finite value.

    A few values far outside the others don't flatten the rest: they leave through the border, and
    the chart says how far they go.

    Args:
      levels: label → value of dashed horizontal lines.
      zero: the axis includes it.
    """
    values = sorted(y for c in curves for _, y in c.points if y is not None)
    if not values:
        return ""
    levels = {k: v for k, v in (levels or {}).items() if finite(v) is not None}
    width, height = size
    left, right, top, bottom = 44, width - (86 if levels else 10), 26 if unit else 12, height - 24
    low, high = _range(values, [*levels.values(), *_ends(curves)] + [0.0] * zero)
    last = max(x for c in curves for x, _ in c.points) or 1
    ys = ticks(low, high, 5 if height > 200 else 3)
    xs = ticks(0, last, 6 if width > 500 else 3, whole=True)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / last, min(
            max(bottom - (bottom - top) * (y - low) / (high - low), top), bottom
        )

    parts = [_text(0, 13, unit)] if unit else []
    parts += [
        _horizontal("grid", left, right, at(0, y)[1])
        + _text(left - 7, at(0, y)[1] + 4, _tick(y, ys), "end")
        for y in ys
    ]
    parts += [_horizontal("axis", left, right, bottom)]
    for x in xs:
        label = ("" if x else "step ") + (short_number(x) if x >= 1e4 else f"{x:g}")
        align = "end" if x > 0.96 * last else "middle"
        parts.append(_text(at(x, low)[0], bottom + 17, label, align))
    heights = [at(0, v)[1] for v in levels.values()]
    for (label, value), y, place in zip(levels.items(), heights, _apart(heights), strict=True):
        parts.append(
            _horizontal("level", left, right, y)
            + _text(right + 6, place + 4, f"{label} {value:.2f}")
        )
    parts += [draw(c, at) for draw in (_band, _line) for c in curves]
    for outside, place, word in ((values[-1], top - 3, "up"), (values[0], bottom - 5, "down")):
        if not low <= outside <= high:
            shown = short_number(outside) if abs(outside) >= 1000 else f"{outside:.3g}"
            parts.append(_text(right, place, f"{word} to {shown}", "end"))
    name = html.escape(f"{title} by step, from {values[0]:.4g} to {values[-1]:.4g}")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    )


def _horizontal(kind: str, left: float, right: float, y: float) -> str:
    """A horizontal line; `kind` is its CSS class."""
    return f'<line class="{kind}" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _ends(curves: Sequence[Curve]) -> list[float]:
    """The ends of all intervals."""
    return [end for curve in curves for _, *ends in curve.band for end in ends]


def _band(curve: Curve, at: Callable[[float, float], tuple[float, float]]) -> str:
    """The area of an interval, if it has one; of a single step a line."""
    if not curve.band:
        return ""
    ends = [at(x, low) for x, low, _ in curve.band]
    ends += [at(x, high) for x, _, high in reversed(curve.band)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in ends)
    kind = "band" if len(curve.band) > 1 else "whisker"
    return f'<path class="{kind} {curve.style}" d="M{path}{"Z" * (kind == "band")}"/>'


def _line(curve: Curve, at: Callable[[float, float], tuple[float, float]]) -> str:
    path, pen = [], "M"
    for x, y in curve.points:
        if y is None:
            pen = "M"
            continue
        px, py = at(x, y)
        path.append(
            f"{pen}{px:.1f} {py:.1f}" + ("h0" if pen == "M" else "")
        )  # h0: a lone point shows as a dot
        pen = "L"
    drawn = f'<path class="{curve.style}" d="{"".join(path)}"/>' if path else ""
    if curve.dots:
        for x, y in curve.points:
            if y is not None:
                px, py = at(x, y)
                says = html.escape(f"{curve.label} {y:.4f} at step {x:,}")
                drawn += (
                    f'<circle class="{curve.style}" cx="{px:.1f}" cy="{py:.1f}"'
                    f' r="{3 if len(curve.points) <= 60 else 1.5}"><title>{says}</title></circle>'
                )
    return drawn


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}"'
        + (f' class="{kind}"' if kind else "")
        + f">{escaped(text)}</text>"
    )


def _range(values: list[float], levels: list[float]) -> tuple[float, float]:
    """What an axis shows: the sorted `values`, without the outermost hundredth if it lies far away,
    and all `levels`."""
    low, high = values[0], values[-1]
    inner_low, inner_high = values[len(values) // 100], values[-1 - len(values) // 100]
    reach = 2 * (inner_high - inner_low)
    if reach > 0:
        low, high = max(low, inner_low - reach), min(high, inner_high + reach)
    low, high = min([low, *levels]), max([high, *levels])
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough)) if 0 < rough < math.inf else 1.0
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.75)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)] or [low, high]


def _tick(value: float, ys: list[float]) -> str:
    gap = ys[1] - ys[0] if len(ys) > 1 else abs(value) or 1
    if abs(value) >= 1e4:
        return short_number(value)
    if max(abs(y) for y in ys) < 1e-2:
        return "0" if value == 0 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    power = 10 ** math.floor(math.log10(gap))
    decimals = math.ceil(-math.log10(gap) - 1e-9) + (round(gap / power, 6) == 2.5)
    return f"{value:.{min(max(0, decimals), 6)}f}"


def _apart(places: list[float], least: float = 13) -> list[float]:
    """The same places, those that lie too close pushed downwards."""
    out: dict[int, float] = {}
    below = -math.inf
    for index in sorted(range(len(places)), key=places.__getitem__):
        below = out[index] = max(places[index], below + least)
    return [out[i] for i in range(len(places))]


def finite(value: Any) -> float | None:
    """Returns a finite number as it is, and `None` for everything else."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def short_number(n: float) -> str:
    """Returns 1.90M as 1.9M, for prose."""
    text = human(n)
    return re.sub(r"\.?0+(?=[a-zA-Z]?$)", "", text) if "." in text else text


def escaped(text: str) -> str:
    """Returns a text as HTML or XML shows it, letter by letter."""
    return html.escape(printable(text))


def printable(text: str) -> str:
    """Replaces characters that neither HTML nor XML may hold by Unicode's pictures of them."""
    pictures = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", pictures)
