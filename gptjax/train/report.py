"""What a run was, in one page: `report.html` for people and `report.json` for programs.

Read in this order: `write` (both files); `report` (the content); `page` (the content as HTML); `chart` (curves as SVG).
Nothing here needs more than the run directory: no script, no network, no font.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.train import metrics

Point = tuple[float, float | None]  # (step, value); None leaves a gap

MOST_POINTS = 1000  # a curve
MOST_SAMPLES = 30  # steps of which samples are shown, evenly spread
NOT_CURVES = {"step", "tokens", "sample", "loss", "validation_loss", "validation_bits_per_byte"}  # these have their own charts, or none
FIRST = ["learning_rate", "gradient_norm", "tokens_per_second"]  # the order of the small charts; others follow
UNITS = {"tokens_per_second": "tokens/s", "mfu": "fraction of peak"}


def write(run_dir: Path | str, facts: dict[str, Any]) -> Path:
    """Writes report.json and report.html, each at once or not at all, and gives the path of the page.

    Raises:
      OSError: the directory can't be written.
    """
    content = report(run_dir, facts)
    files = {"report.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "report.html": page(content)}
    for name, text in files.items():
        partial = Path(run_dir) / f"{name}.partial"
        partial.write_bytes(text.encode("utf-8", "backslashreplace" if name.endswith("json") else "xmlcharrefreplace"))
        os.replace(partial, Path(run_dir) / name)
    return Path(run_dir) / "report.html"


def report(run_dir: Path | str, facts: dict[str, Any]) -> dict[str, Any]:
    """Gives `facts` with the headline, the thinned curves and the samples of the run, as strict JSON values.

    Args:
      facts: what the training loop knows; everything is optional and what is missing is not shown. Keys: name, config, environment,
        parameters, tokens, seconds (`total` and what it was spent on), final, baselines (bits per byte), skipped_steps, next, warnings.
    """
    lines = metrics.read(run_dir)
    names = [n for n in dict.fromkeys(name for line in lines for name in line) if n not in {"step", "tokens", "sample"}]
    curves = {name: [(line["step"], _finite(line[name])) for line in lines if name in line] for name in names}
    if len(curves.get("loss", [])) >= 20:
        curves["smoothed_loss"] = _smoothed(curves["loss"])
    samples = [{"step": line["step"], **line["sample"]} for line in lines if isinstance(line.get("sample"), dict)]
    facts = {"name": Path(run_dir).resolve().name} | {k: v for k, v in facts.items() if v not in (None, {}, [], "")}
    thinned = {name: {"step": [x for x, _ in points], "value": [y for _, y in points]} for name, points in ((n, thin(c)) for n, c in curves.items())}
    return _strict({"headline": headline(facts), **facts, "curves": thinned, "samples": samples})


def headline(facts: dict[str, Any]) -> str:
    """Says in a sentence what was trained, in which time, and how good it is."""
    seconds, final = facts.get("seconds", {}).get("total"), facts.get("final", {})
    parts = [f"Trained {_short(facts['parameters'])} parameters" if "parameters" in facts else "Trained"]
    parts += [f"on {_short(facts['tokens'])} tokens"] if "tokens" in facts else []
    parts += [f"in {metrics.duration(seconds)}"] if seconds is not None else []
    bits, loss = _finite(final.get("validation_bits_per_byte")), _finite(final.get("validation_loss"))
    baselines = ", ".join(f"{str(name).split()[0]} {value:.2f}" for name, value in facts.get("baselines", {}).items() if _finite(value) is not None)
    result = ""
    if bits is not None:
        result = f"held-out text costs {bits:.2f} bits per byte" + (f" ({baselines})" if baselines else "")
    elif loss is not None:
        result = f"held-out loss is {loss:.3f} nats per token"
    if len(parts) == 1 and parts[0] == "Trained":
        return f"{result[:1].upper()}{result[1:]}." if result else "Nothing was measured yet."
    return " ".join(parts) + (f"; {result}." if result else ".")


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """Keeps at most `most` points: of each bucket the lowest, the highest and the first gap, so that spikes and gaps stay visible."""
    if len(points) <= most:
        return points
    buckets = most // 3
    kept: list[Point] = []
    for i in range(buckets):
        bucket = list(enumerate(points[i * len(points) // buckets : (i + 1) * len(points) // buckets]))
        there, gaps = [p for p in bucket if p[1][1] is not None], [p for p in bucket if p[1][1] is None]
        chosen = {p[0]: p[1] for p in gaps[:1]}
        for choose in (min, max) if there else ():
            index, point = choose(there, key=lambda p: p[1][1])
            chosen[index] = point
        kept += [chosen[index] for index in sorted(chosen)]
    return kept


def _smoothed(points: list[Point]) -> list[Point]:
    average, decay, out = metrics.Smoothed(), 1 - 1 / min(max(len(points) / 40, 5), 100), []
    for step, value in points:
        average = metrics.smooth(average, value, decay)
        out.append((step, _finite(average.value)))
    return out


def _finite(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _strict(value: Any) -> Any:
    """What JSON can say: NaN and infinity become null, foreign scalars numbers, and all else text."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return _finite(value)
    return value if isinstance(value, (int, str, type(None))) else str(value)


def _short(n: float) -> str:
    """1.90M as 1.9M, for prose."""
    return re.sub(r"\.?0+(?=[a-zA-Z]?$)", "", human) if "." in (human := metrics.human(n)) else human


# --- curves ------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One line of a chart."""

    label: str
    points: list[Point]
    style: str  # a CSS class: raw, main, validation
    dots: bool = False


def chart(curves: list[Curve], *, title: str, unit: str = "", size: tuple[int, int] = (860, 320), levels: dict[str, float] | None = None) -> str:
    """Gives an SVG with axes and gridlines, or "" if no curve has a finite value.

    A few values far outside the others don't flatten the rest: they leave through the border, and the chart says how far they go.

    Args:
      levels: label → value of dashed horizontal lines.
    """
    values = sorted(y for c in curves for _, y in c.points if y is not None)
    if not values:
        return ""
    levels = {k: v for k, v in (levels or {}).items() if _finite(v) is not None}
    width, height = size
    left, right, top, bottom = 46, width - (86 if levels else 12), 26, height - 24
    low, high = _range(values, list(levels.values()))
    ys, xs = ticks(low, high, 5 if height > 200 else 3), ticks(0, max(x for c in curves for x, _ in c.points) or 1, 6 if width > 500 else 3, whole=True)
    low, high, last = min(low, ys[0]), max(high, ys[-1]), max(x for c in curves for x, _ in c.points) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / last, min(max(bottom - (bottom - top) * (y - low) / (high - low), top), bottom)

    parts = [_text(left - 40, 13, unit or title, "unit")]
    parts += [f'<line class="grid" x1="{left}" x2="{right}" y1="{at(0, y)[1]:.1f}" y2="{at(0, y)[1]:.1f}"/>' for y in ys]
    parts += [_text(left - 7, at(0, y)[1] + 4, _tick(y, ys), "end") for y in ys]
    parts += [_text(at(x, low)[0], bottom + 17, metrics.human(x) if x >= 1e4 else f"{x:g}", "middle") for x in xs if x < last * 0.97 or width <= 500]
    parts += [_text(right, bottom + 17, "step", "end")] if xs[-1] < last * 0.93 and width > 500 else []
    for (label, value), place in zip(levels.items(), _apart([at(0, v)[1] for v in levels.values()]), strict=True):
        y = at(0, value)[1]
        parts.append(f'<line class="level" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>' + _text(right + 6, place + 4, f"{label} {value:.2f}"))
    parts += [_line(c, at) for c in curves]
    for outside, place, word in ((values[-1], top - 3, "up"), (values[0], bottom - 5, "down")):
        if not low <= outside <= high:
            parts.append(_text(right, place, f"{word} to {outside:.3g}", "end"))
    name = html.escape(f"{title} by step, from {values[0]:.4g} to {values[-1]:.4g}")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _line(curve: Curve, at: Callable[[float, float], tuple[float, float]]) -> str:
    path, pen = [], "M"
    for x, y in curve.points:
        if y is None:
            pen = "M"
            continue
        px, py = at(x, y)
        path.append(f"{pen}{px:.1f} {py:.1f}" + ("h0" if pen == "M" else ""))  # h0: a lone point shows as a dot
        pen = "L"
    drawn = f'<path class="{curve.style}" d="{"".join(path)}"/>' if path else ""
    if curve.dots:
        for x, y in curve.points:
            if y is not None:
                px, py = at(x, y)
                says = html.escape(f"{curve.label} {y:.4f} at step {x:,}")
                drawn += f'<circle class="{curve.style}" cx="{px:.1f}" cy="{py:.1f}" r="{3 if len(curve.points) <= 60 else 1.5}"><title>{says}</title></circle>'
    return drawn


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"' + (f' class="{kind}"' if kind else "") + f">{html.escape(_printable(text))}</text>"


def _range(values: list[float], levels: list[float]) -> tuple[float, float]:
    """The sorted `values`, without the outermost hundredth if it lies far away, and all `levels`."""
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
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)] or [low, high]


def _tick(value: float, ys: list[float]) -> str:
    gap = ys[1] - ys[0] if len(ys) > 1 else abs(value) or 1
    if abs(value) >= 1e4:
        return metrics.human(value).replace(".00", "").replace(".0", "")
    if max(abs(y) for y in ys) < 1e-2:
        return "0" if value == 0 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.{min(max(0, math.ceil(-math.log10(gap) - 1e-9) + (round(gap / 10 ** math.floor(math.log10(gap)), 6) == 2.5)), 6)}f}"


def _apart(places: list[float], least: float = 13) -> list[float]:
    """The same places, those that lie too close pushed downwards."""
    out: dict[int, float] = {}
    below = -math.inf
    for index in sorted(range(len(places)), key=places.__getitem__):
        below = out[index] = max(places[index], below + least)
    return [out[i] for i in range(len(places))]
