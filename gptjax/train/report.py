"""What a run was, in one page: `report.html` for people and `report.json` for programs.

Read in this order: `write` (both files); `report` (the content); `page` (the content as HTML);
`chart` (curves as SVG). Nothing here needs more than the run directory: no script, no network, no
font.
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
NOT_CURVES = {
    "step",
    "tokens",
    "sample",
    "loss",
    "validation_loss",
    "validation_bits_per_byte",
}  # these have their own charts, or none
FIRST = [
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
]  # the order of the small charts; others follow
TITLES = {"mfu": "MFU, fraction of the peak", "spike": "Deviations above the steps before"}


def write(run_dir: Path | str, facts: dict[str, Any]) -> Path:
    """Writes report.json and report.html, each at once or not at all, and gives the path of the
    page.

    Raises:
      OSError: the directory can't be written.
    """
    content = report(run_dir, facts)
    files = {
        "report.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": page(content),
    }
    for name, text in files.items():
        partial = Path(run_dir) / f"{name}.partial"
        partial.write_bytes(
            text.encode(
                "utf-8", "backslashreplace" if name.endswith("json") else "xmlcharrefreplace"
            )
        )
        os.replace(partial, Path(run_dir) / name)
    return Path(run_dir) / "report.html"


def report(run_dir: Path | str, facts: dict[str, Any]) -> dict[str, Any]:
    """Gives `facts` with the headline, the thinned curves and the samples of the run, as strict
    JSON values.

    Args:
      facts: what the training loop knows; everything is optional and what is missing is not shown.
        Keys: name, config, environment, parameters, tokens, seconds (`total` and what it was spent
        on), goodput, final, baselines (bits per byte), skipped_steps, spikes, passed_over_records,
        next, warnings.
    """
    lines = metrics.read(run_dir)
    names = [
        n
        for n in dict.fromkeys(name for line in lines for name in line)
        if n not in {"step", "tokens", "sample"}
    ]
    curves = {
        name: [(line["step"], _finite(line[name])) for line in lines if name in line]
        for name in names
    }
    if len(curves.get("loss", [])) >= 20:
        curves["smoothed_loss"] = _smoothed(curves["loss"])
    samples = [
        {"step": line["step"], **line["sample"]}
        for line in lines
        if isinstance(line.get("sample"), dict)
    ]
    facts = {"name": Path(run_dir).resolve().name} | {
        k: v for k, v in _strict(facts).items() if v not in (None, {}, [], "")
    }
    thinned = {
        name: {"step": [x for x, _ in points], "value": [y for _, y in points]}
        for name, points in ((n, thin(c)) for n, c in curves.items())
    }
    return {"headline": headline(facts), **facts, "curves": thinned, "samples": samples}


def headline(facts: dict[str, Any]) -> str:
    """Says in a sentence what was trained, in which time, and how good it is."""
    seconds, final = facts.get("seconds", {}).get("total"), facts.get("final", {})
    parts = [
        f"Trained {_short(facts['parameters'])} parameters" if "parameters" in facts else "Trained"
    ]
    parts += [f"on {_short(facts['tokens'])} tokens"] if "tokens" in facts else []
    parts += [f"in {metrics.duration(seconds)}"] if seconds is not None else []
    bits, loss = (
        _finite(final.get("validation_bits_per_byte")),
        _finite(final.get("validation_loss")),
    )
    baselines = ", ".join(
        f"{str(name).split()[0]} {value:.2f}"
        for name, value in facts.get("baselines", {}).items()
        if _finite(value) is not None
    )
    result = ""
    if bits is not None:
        result = f"held-out text costs {bits:.2f} bits per byte" + (
            f" ({baselines})" if baselines else ""
        )
    elif loss is not None:
        result = f"held-out loss is {loss:.3f} nats per token"
    if len(parts) == 1 and parts[0] == "Trained":
        return f"{result[:1].upper()}{result[1:]}." if result else "Nothing was measured yet."
    return " ".join(parts) + (f"; {result}." if result else ".")


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """Keeps at most `most` points: of each bucket the lowest, the highest and the first gap, so
    that spikes and gaps stay visible; and the last."""
    if len(points) <= most:
        return points
    buckets = (most - 1) // 3
    kept: list[Point] = []
    for i in range(buckets):
        bucket = list(
            enumerate(points[i * len(points) // buckets : (i + 1) * len(points) // buckets])
        )
        there, gaps = (
            [p for p in bucket if p[1][1] is not None],
            [p for p in bucket if p[1][1] is None],
        )
        chosen = {p[0]: p[1] for p in gaps[:1]}
        for choose in (min, max) if there else ():
            index, point = choose(there, key=lambda p: p[1][1])
            chosen[index] = point
        kept += [chosen[index] for index in sorted(chosen)]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _smoothed(points: list[Point]) -> list[Point]:
    average, decay, out = metrics.Smoothed(), 1 - 1 / min(max(len(points) / 100, 5), 100), []
    for step, value in points:
        average = metrics.smooth(average, value, decay)
        out.append((step, None if value is None else average.value))
    return out


def _finite(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _strict(value: Any) -> Any:
    """What JSON can say: NaN and infinity become null, foreign scalars numbers, and all else
    text."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if hasattr(value, "tolist"):
        return _strict(value.tolist())
    if isinstance(value, float):
        return _finite(value)
    return value if isinstance(value, (int, str, type(None))) else str(value)


def _short(n: float) -> str:
    """1.90M as 1.9M, for prose."""
    return (
        re.sub(r"\.?0+(?=[a-zA-Z]?$)", "", human) if "." in (human := metrics.human(n)) else human
    )


# --- curves
# ------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One line of a chart."""

    label: str
    points: list[Point]
    style: str  # a CSS class: raw, main, validation
    dots: bool = False


def chart(
    curves: list[Curve],
    *,
    title: str,
    unit: str = "",
    size: tuple[int, int] = (860, 320),
    levels: dict[str, float] | None = None,
    zero: bool = False,
) -> str:
    """Gives an SVG with axes and gridlines, or "" if no curve has a finite value.

    A few values far outside the others don't flatten the rest: they leave through the border, and
    the chart says how far they go.

    Args:
      levels: label → value of dashed horizontal lines.
      zero: the axis includes it.
    """
    values = sorted(y for c in curves for _, y in c.points if y is not None)
    if not values:
        return ""
    levels = {k: v for k, v in (levels or {}).items() if _finite(v) is not None}
    width, height = size
    left, right, top, bottom = 44, width - (86 if levels else 10), 26 if unit else 12, height - 24
    low, high = _range(values, [*levels.values()] + [0.0] * zero)
    last = max(x for c in curves for x, _ in c.points) or 1
    ys, xs = (
        ticks(low, high, 5 if height > 200 else 3),
        ticks(0, last, 6 if width > 500 else 3, whole=True),
    )

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / last, min(
            max(bottom - (bottom - top) * (y - low) / (high - low), top), bottom
        )

    parts = [_text(0, 13, unit)] if unit else []
    parts += [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{at(0, y)[1]:.1f}"'
        f' y2="{at(0, y)[1]:.1f}"/>'
        for y in ys
    ]
    parts += [_text(left - 7, at(0, y)[1] + 4, _tick(y, ys), "end") for y in ys]
    parts += [f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>']
    steps = [(x, ("" if x else "step ") + (_short(x) if x >= 1e4 else f"{x:g}")) for x in xs]
    parts += [
        _text(at(x, low)[0], bottom + 17, text, "end" if x > 0.96 * last else "middle")
        for x, text in steps
    ]
    for (label, value), place in zip(
        levels.items(), _apart([at(0, v)[1] for v in levels.values()]), strict=True
    ):
        y = at(0, value)[1]
        parts.append(
            f'<line class="level" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            + _text(right + 6, place + 4, f"{label} {value:.2f}")
        )
    parts += [_line(c, at) for c in curves]
    for outside, place, word in ((values[-1], top - 3, "up"), (values[0], bottom - 5, "down")):
        if not low <= outside <= high:
            parts.append(
                _text(
                    right,
                    place,
                    f"{word} to {_short(outside) if abs(outside) >= 1000 else f'{outside:.3g}'}",
                    "end",
                )
            )
    name = html.escape(f"{title} by step, from {values[0]:.4g} to {values[-1]:.4g}")
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    )


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
        + f">{html.escape(_printable(text))}</text>"
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
        return _short(value)
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


# --- the page
# ----------------------------------------------------------------------------------------------------


def page(content: dict[str, Any]) -> str:
    """Gives a report's content as one HTML file that asks for nothing else."""
    name = _escape(content.get("name", "run"))
    warnings = "".join(f'<p class="warning">{_escape(w)}</p>' for w in content.get("warnings", []))
    sections = [
        ("", _curves(content)),
        ("Samples", _samples(content["samples"])),
        ("Figures", _table(_figures(content))),
        ("Where the time went", _time(content.get("seconds", {}))),
        (
            "What to type next",
            "".join(
                f"<pre class=command>{_escape(command)}</pre>"
                for command in content.get("next", [])
            ),
        ),
        ("Environment", _table(_flat(content.get("environment", {})))),
        ("Config", _fold("every setting of this run", _table(_flat(content.get("config", {}))))),
    ]
    body = "".join(
        f"<section>{f'<h2>{title}</h2>' if title else ''}{inner}</section>"
        for title, inner in sections
        if inner
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{name} · gptjax</title><style>{STYLE}</style></head>
<body><header><h1>{name}</h1><p class="lead">{_escape(content["headline"]).replace("held-out", "<span class=whole>held-out</span>")}</p>{warnings}</header>
<main>{body}</main><footer>Written by gptjax. The same figures for programs: report.json; all of them: metrics.jsonl.</footer></body></html>
"""


def _curves(content: dict[str, Any]) -> str:
    found = {
        name: list(zip(c["step"], c["value"], strict=True)) for name, c in content["curves"].items()
    }
    smoothed = "smoothed_loss" in found
    shown = [
        ("training", "loss", "raw" if smoothed else "main"),
        ("training, smoothed", "smoothed_loss", "main"),
        ("held-out", "validation_loss", "validation"),
    ]
    loss = [
        Curve(label, found[name], style, dots=style == "validation")
        for label, name, style in shown
        if name in found
    ]
    legend = "".join(
        f'<span class="{c.style}"><svg viewBox="0 0 18 8"><path class="{c.style}" d="M1'
        f' 4h16"/></svg>{c.label}</span>'
        for c in loss
    )
    bits = [Curve("held-out", found.get("validation_bits_per_byte", []), "validation", dots=True)]
    others = [
        n
        for n in found
        if n not in NOT_CURVES | {*FIRST, "smoothed_loss"} and len({y for _, y in found[n]}) > 1
    ]  # a constant says nothing
    names = [n for n in FIRST if n in found] + others
    small = [
        (n, chart([Curve(n, found[n], "main")], title=_words(n), size=(280, 140), zero=True))
        for n in names
    ]
    out = _both("Loss", loss, "nats per token", legend) + _both(
        "Bits per byte of held-out text", bits, "bits per byte", levels=content.get("baselines", {})
    )
    multiples = "".join(
        f"<figure><figcaption>{_escape(TITLES.get(n, _words(n).capitalize()))}</figcaption>{svg}</figure>"
        for n, svg in small
        if svg
    )
    return out + (f'<div class="multiples">{multiples}</div>' if multiples else "")


def _both(
    title: str,
    curves: list[Curve],
    unit: str,
    legend: str = "",
    levels: dict[str, float] | None = None,
) -> str:
    """A chart drawn twice, for a wide and for a narrow page, so that its text stays readable; CSS
    shows one."""
    wide, narrow = (
        chart(curves, title=title, unit=unit, size=size, levels=levels)
        for size in ((860, 320), (380, 260))
    )
    head = f'<figcaption>{title}<span class="legend">{legend}</span></figcaption>'
    return (
        f'<figure>{head}<div class="wide">{wide}</div><div class="narrow">{narrow}</div></figure>'
        if wide
        else ""
    )


def _samples(samples: list[dict[str, Any]]) -> str:
    steps = list(dict.fromkeys(s["step"] for s in samples))
    few = min(MOST_SAMPLES, len(steps))
    out = []
    for index in (round(i * (len(steps) - 1) / max(1, few - 1)) for i in reversed(range(few))):
        texts = [s for s in samples if s["step"] == steps[index]]
        body = "".join(
            f"<pre><mark>{_escape(s.get('prompt', ''))}</mark>{_escape(s.get('text', ''))}</pre>"
            for s in texts
        )
        out.append(_fold(f"step {steps[index]:,}", body, opened=index == len(steps) - 1))
    return "".join(out)


def _figures(content: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = [(_words(k), v) for k, v in _flat(content.get("final", {}))]
    rows += [
        (f"bits per byte of {name}", value) for name, value in content.get("baselines", {}).items()
    ]
    rows += [
        (_words(k), content[k])
        for k in ("parameters", "tokens", "skipped_steps", "spikes", "passed_over_records")
        if k in content
    ]
    rows += [(_words(k), v) for k, v in _flat(content.get("goodput", {}))]
    speeds = sorted(
        v for v in content["curves"].get("tokens_per_second", {}).get("value", []) if v is not None
    )
    return rows + ([("tokens per second, median", speeds[len(speeds) // 2])] if speeds else [])


def _time(seconds: dict[str, float]) -> str:
    spent = {k: v for k, v in seconds.items() if k != "total" and (_finite(v) or 0) > 0}
    total = max(_finite(seconds.get("total")) or 0, sum(spent.values()))
    if not total:
        return ""
    largest = dict(sorted(spent.items(), key=lambda item: -item[1])[:6])
    rest = total - sum(largest.values())
    if rest > 0.005 * total:
        largest["other"] = rest
    parts, rows, x = [], [], 0.0
    for index, (name, value) in enumerate(largest.items()):
        width = 100 * value / total
        kind = "part-other" if name == "other" else f"part-{index}"
        says = f"{_words(name)} {metrics.duration(value)}, {width:.1f}%"
        parts.append(
            f'<rect class="{kind}" x="{x:.3f}%" width="{max(width - 0.2, 0.15):.3f}%"'
            f' height="22"><title>{_escape(says)}</title></rect>'
        )
        rows.append(
            "<tr><th><i"
            f' class="{kind}"></i>{_escape(_words(name))}</th><td>{metrics.duration(value)}</td><td>{width:.1f}%</td></tr>'
        )
        x += width
    rows.append(f"<tr class=total><th>total</th><td>{metrics.duration(total)}</td><td></td></tr>")
    return (
        '<svg class="bar" height="22" role="img" aria-label="where the time'
        f' went">{"".join(parts)}</svg><table class="times">{"".join(rows)}</table>'
    )


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    inner = "".join(
        f"<tr><th>{_escape(name)}</th><td>{_escape(_value(value))}</td></tr>"
        for name, value in rows
    )
    return f"<table>{inner}</table>" if inner else ""


def _fold(title: str, body: str, opened: bool = False) -> str:
    return (
        f"<details{' open' if opened else ''}><summary>{_escape(title)}</summary>{body}</details>"
        if body
        else ""
    )


def _flat(value: Any, where: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            row
            for key, inner in value.items()
            for row in _flat(inner, f"{where}.{key}".lstrip("."))
        ]
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return [row for i, inner in enumerate(value) for row in _flat(inner, f"{where}.{i}")]
    return [(where, value)] if where else []


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return (
        (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}")
        if isinstance(value, float)
        else str(value)
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _printable(text: str) -> str:
    """Characters that neither HTML nor XML may hold as Unicode's pictures of them."""
    pictures = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda m: chr(0x2400 + ord(m[0])), text)
    return re.sub("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", pictures)


def _escape(text: Any) -> str:
    return html.escape(_printable(str(text)))


STYLE = """
:root{--page:#fcfcfb;--text:#1b1b1a;--soft:#63625d;--grid:#e6e5e1;--panel:#f4f3f0;--main:#2a6fc9;--raw:#a9c5ea;--validation:#d9590b;--mark:#fdeec4;
--p0:#2a6fc9;--p1:#e08a1e;--p2:#1f9b7a;--p3:#8a5fc4;--p4:#c9497d;--p5:#7a8c2b;--other:#b9b7b0}
@media(prefers-color-scheme:dark){:root{--page:#161615;--text:#ecebe6;--soft:#a09e96;--grid:#2d2d2a;--panel:#20201e;--main:#5c9cf0;--raw:#34527a;--validation:#f08a4b;
# 4a3d14;--p0:#4b8ce6;--p1:#d68a2c;--p2:#2aa583;--p3:#9a76d0;--p4:#d0608f;--p5:#8d9e3c;--other:#5d5c57}}
--mark:
*{box-sizing:border-box}
body{margin:0 auto;padding:40px 24px 32px;max-width:908px;background:var(--page);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{margin:0;font-size:15px;font-weight:600;color:var(--soft);overflow-wrap:anywhere}
.lead{margin:6px 0 20px;font-size:25px;line-height:1.32;font-weight:600;letter-spacing:-.012em;text-wrap:balance}
.whole{white-space:nowrap}
h2{margin:44px 0 12px;font-size:18px;font-weight:600}
.warning{margin:8px 0;padding:9px 14px;border-left:3px solid var(--p1);background:var(--panel);overflow-wrap:anywhere}
figure{margin:26px 0 0}figcaption{display:flex;flex-wrap:wrap;gap:2px 18px;align-items:baseline;font-weight:600;font-size:15px;margin-bottom:4px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-weight:400;font-size:13px;color:var(--soft)}.legend svg{width:18px;height:8px;margin-right:6px;display:inline}
svg{display:block;width:100%;overflow:visible}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}.end{text-anchor:end}.middle{text-anchor:middle}
.multiples svg text{font-size:11px}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1;opacity:.5}.level{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 4}
path{fill:none;stroke-linejoin:round;stroke-linecap:round}path.raw{stroke:var(--raw);stroke-width:1}path.main{stroke:var(--main);stroke-width:2}
.multiples path.main{stroke-width:1.25}path.validation{stroke:var(--validation);stroke-width:1.75}circle{fill:var(--validation);stroke:var(--page);stroke-width:1}
.narrow{display:none}.multiples{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:0 20px}.multiples svg{max-width:400px}.multiples figcaption{font-size:14px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:5px 0;border-bottom:1px solid var(--grid);text-align:left;vertical-align:top;font-weight:400;overflow-wrap:anywhere}
th{color:var(--soft);padding-right:16px;width:45%}.times td{text-align:right;width:20%}.total th,.total td{color:var(--text);font-weight:600;border:0}
i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:9px}.bar{height:22px;margin-bottom:10px;border-radius:3px;overflow:hidden}
.part-0{fill:var(--p0);background:var(--p0)}.part-1{fill:var(--p1);background:var(--p1)}.part-2{fill:var(--p2);background:var(--p2)}
.part-3{fill:var(--p3);background:var(--p3)}.part-4{fill:var(--p4);background:var(--p4)}.part-5{fill:var(--p5);background:var(--p5)}
.part-other{fill:var(--other);background:var(--other)}
pre{margin:8px 0;padding:12px 14px;background:var(--panel);border-radius:6px;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4}
.command{user-select:all}mark{background:var(--mark);color:inherit;border-radius:2px}
details{border-bottom:1px solid var(--grid);padding:5px 0}summary{cursor:pointer;font-size:14px;color:var(--soft);font-variant-numeric:tabular-nums}
footer{margin-top:48px;font-size:13px;color:var(--soft)}
@media(max-width:600px){body{padding:24px 16px}.lead{font-size:20px}.wide{display:none}.narrow{display:block}}
"""
