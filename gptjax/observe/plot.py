"""Lines, bars and shaded tables as SVG files of their own, drawn without any library.

Each has a title, names of its axes and a legend, brings its colours with it, and is readable in a
light and in a dark page. `charts` draws what stands inside a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gptjax.observe.charts import escaped, ticks
from gptjax.observe.page import STYLE

WIDTH, LEFT, RIGHT, TOP = 720, 64, 700, 80
COLOURS = 6
"""Number of different colours; further lines are dashed."""


def plot(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
) -> str:
    """Returns lines as an SVG file. What is not finite is a gap.

    Args:
      lines: the points (x, y) of each line, by its name in the legend.
      x: what the horizontal axis shows.
      y: what the vertical axis shows.
      log: the vertical axis has powers of ten at equal distances; numbers of 0 and less are gaps.

    Raises:
      ValueError: there is nothing to draw.
    """

    def up(value: float) -> float:
        if not math.isfinite(value) or (log and value <= 0):
            return math.nan
        return math.log10(value) if log else value

    drawn = {name: [(float(a), up(float(b))) for a, b in points] for name, points in lines.items()}
    finite = [(a, b) for points in drawn.values() for a, b in points if not math.isnan(b)]
    if not finite:
        raise ValueError("lines has no finite point; give at least one.")
    (left, right), (low, high) = (_ends([point[axis] for point in finite]) for axis in (0, 1))
    bottom = 340

    def at(a: float, b: float) -> str:
        across = LEFT + (RIGHT - LEFT) * (a - left) / (right - left)
        return f"{across:.1f} {bottom - (bottom - TOP) * (b - low) / (high - low):.1f}"

    parts = []
    marks = ticks(low, high, 5, whole=log)
    for mark in marks:
        place = float(at(left, mark).split()[1])
        number = _number(10.0**mark) if log else _number(mark)
        parts.append(f'<path class="grid" d="M{LEFT} {place}H{RIGHT}"/>')
        parts.append(_text(LEFT - 8, place + 4, number, "end"))
    parts += [
        _text(float(at(mark, low).split()[0]), bottom + 18, _number(mark), "middle")
        for mark in ticks(left, right, 6)
    ]
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{RIGHT}"/>')
    parts.append(_text((LEFT + RIGHT) / 2, bottom + 38, x, "middle"))
    for index, points in enumerate(drawn.values()):
        path, pen = "", "M"
        for a, b in points:
            path += "" if math.isnan(b) else f"{pen}{at(a, b)}"
            pen = "M" if math.isnan(b) else "L"
        parts.append(f'<path class="{_kind(index)}" d="{path}"/>')
    return _file(bottom + 52, title, y, list(drawn), parts)


def bars(values: Mapping[str, Mapping[str, float]], *, title: str, y: str, digits: int = 2) -> str:
    """Returns numbers of at least 0 as horizontal bars in groups, as an SVG file.

    Args:
      values: for each group, the number of each name in the legend.
      y: what the length of a bar shows.
      digits: after the point.

    Raises:
      ValueError: a number is below 0 or not finite, or there is none.
    """
    numbers = [value for group in values.values() for value in group.values()]
    _check(numbers)
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    begin = 24 + 7 * max(len(label) for label in values)
    longest, height, parts = max(numbers) or 1.0, TOP + 4, []
    for label, group in values.items():
        parts.append(_text(begin - 8, height + 8 * len(group) + 3, label, "end"))
        for name, value in group.items():
            length = max((RIGHT - 50 - begin) * value / longest, 0.5)
            kind = f"fill{names.index(name) % COLOURS}"
            parts.append(
                f'<rect class="{kind}" x="{begin}" y="{height}" width="{length:.1f}" height="13"/>'
            )
            parts.append(_text(begin + length + 6, height + 11, f"{value:.{digits}f}"))
            height += 16
        height += 8
    return _file(height + 6, title, y, names, parts, filled=True)


def shades(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    y: str,
) -> str:
    """Returns a table of numbers of at least 0 as shaded cells, each with its number as a tooltip,
    as an SVG file. The largest number has the full shade, 0 none.

    Raises:
      ValueError: a number is below 0 or not finite, or there is none.
    """
    table = [[float(value) for value in row] for row in values]
    numbers = [value for row in table for value in row]
    _check(numbers)
    begin = 24 + 7 * max(len(name) for name in rows)
    wide, largest = min((RIGHT - begin) / len(columns), 60.0), max(numbers) or 1.0
    high = min(wide, 22.0) if len(rows) > 3 else 30.0
    parts = [
        _text(begin + (c + 0.5) * wide, TOP - 8, name, "middle") for c, name in enumerate(columns)
    ]
    for r, (name, row) in enumerate(zip(rows, table, strict=True)):
        down = TOP + r * high
        parts.append(_text(begin - 8, down + high / 2 + 4, name, "end"))
        for c, (column, value) in enumerate(zip(columns, row, strict=True)):
            if value == 0:
                continue
            said = escaped(f"{name}, {column}: {value:.3g}")
            parts.append(
                f'<rect class="fill0" x="{begin + c * wide:.1f}" y="{down:.1f}"'
                f' width="{wide - 1:.1f}" height="{high - 1:.1f}"'
                f' fill-opacity="{value / largest:.3f}"><title>{said}</title></rect>'
            )
    return _file(TOP + 14 + len(rows) * high, title, y, [], parts)


def _check(numbers: Sequence[float]) -> None:
    """Refuses what no length and no shade can show."""
    wrong = [value for value in numbers if not (math.isfinite(value) and value >= 0)]
    if wrong or not numbers:
        found = f"has {wrong[0]}" if wrong else "is empty"
        raise ValueError(f"values {found}; give numbers of 0 or more.")


def _file(
    height: float, title: str, y: str, names: list[str], parts: list[str], filled: bool = False
) -> str:
    """The SVG file: a card with its title, the legend, and what is drawn."""
    legend, across = [], 16.0
    for index, name in enumerate(names if len(names) > 1 else []):
        mark = (
            f'<rect class="fill{index % COLOURS}" x="{across}" y="34" width="12" height="10"/>'
            if filled
            else f'<path class="{_kind(index)}" d="M{across} 39h14"/>'
        )
        legend.append(mark + _text(across + 19, 43, name))
        across += 36 + 6.6 * len(name)
    below = _text(16, 62 if legend else 46, y)
    size = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escaped(title)}">'
        f"<style>{_style()}</style>"
        f'<rect class="card" width="{WIDTH}" height="{height:g}" rx="8"/>'
        f"{_text(16, 24, title, 'title')}{''.join(legend)}{below}{''.join(parts)}</svg>"
    )


def _style() -> str:
    """The colours of all pages, and how they are used here."""
    colours = STYLE.read_text(encoding="utf-8").split("*{", 1)[0]
    own = [f".line{i}{{stroke:var(--p{i})}}.fill{i}{{fill:var(--p{i})}}" for i in range(COLOURS)]
    return (
        f"{colours}.card{{fill:var(--page)}}path{{fill:none;stroke-width:2;stroke-linejoin:round}}"
        "text{fill:var(--soft);font:12px system-ui,sans-serif}.title{fill:var(--text);"
        "font-size:14px;font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}"
        ".grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}"
        f".dashed{{stroke-dasharray:5 4}}{''.join(own)}"
    )


def _kind(index: int) -> str:
    """The classes of a line."""
    return f"line{index % COLOURS}" + " dashed" * (index >= COLOURS)


def _ends(values: list[float]) -> tuple[float, float]:
    """The ends of an axis; those of a single number lie beside it."""
    low, high = min(values), max(values)
    beside = (high - low) * 0.02 or abs(high) * 0.1 or 1.0
    return (low, high) if high > low else (low - beside, high + beside)


def _number(value: float) -> str:
    return f"{value:.6g}" if 1e-4 <= abs(value) < 1e6 or not value else f"{value:.0e}"


def _text(across: float, down: float, text: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{across:.1f}" y="{down:.1f}"{named}>{escaped(text)}</text>'
