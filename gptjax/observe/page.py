"""A report as one HTML page: no script, no network, no font."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptjax.observe import rollouts
from gptjax.observe.charts import Curve, Point, chart, escaped, finite
from gptjax.observe.progress import duration
from gptjax.observe.task_curves import PREFIX, task_charts

STYLE = Path(__file__).with_name("report.css")

MOST_SAMPLES = 30  # steps of which samples are shown, evenly spread
NOT_CURVES = {
    "step",
    "tokens",
    "sample",
    "loss",
    "validation_loss",
    "validation_bits_per_byte",
}  # these have their own charts, or none
OF_REWARDS = {"reward", "validation_reward", "pass_rate", "validation_pass_rate"}
"""Likewise where a run learns from rewards."""
FIRST = [
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
]  # the order of the small charts; others follow
TITLES = {"mfu": "MFU, fraction of the peak", "spike": "Deviations above the steps before"}


def page(content: dict[str, Any]) -> str:
    """Returns a report's content as one HTML file that asks for nothing else."""
    name = _escape(content.get("name", "run"))
    warnings = "".join(f'<p class="warning">{_escape(w)}</p>' for w in content.get("warnings", []))
    sections = [
        ("", _curves(content)),
        ("Tasks, answered while training, with 95 % intervals", task_charts(_points(content))),
        ("Samples", _samples(content["samples"])),
        ("Answers that it learned from", rollouts.section(content.get("rollouts", []))),
        ("Figures", _table(_figures(content))),
        ("Where the time went", _time(content.get("seconds", {}))),
        (
            "What to type next",
            "".join(
                f"<pre class=command>{_escape(command)}</pre>"
                for command in content.get("next", [])
            ),
        ),
        ("How the text was cleaned", _table(_flat(content.get("cleaning") or {}))),
        ("Environment", _table(_flat(content.get("environment", {})))),
        ("Config", _fold("every setting of this run", _table(_flat(content.get("config", {}))))),
    ]
    body = "".join(
        f"<section>{f'<h2>{title}</h2>' if title else ''}{inner}</section>"
        for title, inner in sections
        if inner
    )
    style = STYLE.read_text(encoding="utf-8")
    lead = _escape(content["headline"]).replace("held-out", "<span class=whole>held-out</span>")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} · gptjax</title><style>{style}</style></head>
<body><header><h1>{name}</h1><p class="lead">{lead}</p>{warnings}</header>
<main>{body}</main>
<footer>Written by gptjax. The same figures for programs: report.json; all of them: metrics.jsonl.
</footer></body></html>
"""


def _title(name: str) -> str:
    return _escape(TITLES.get(name, _words(name).capitalize()))


def _points(content: dict[str, Any]) -> dict[str, list[Point]]:
    return {
        name: list(zip(c["step"], c["value"], strict=True)) for name, c in content["curves"].items()
    }


def _curves(content: dict[str, Any]) -> str:
    found = _points(content)
    rewarded = "pass_rate" in found
    bits = [Curve("held-out", found.get("validation_bits_per_byte", []), "validation", dots=True)]
    others = [
        n
        for n in found
        if n not in {*NOT_CURVES, *FIRST, *(OF_REWARDS if rewarded else ())}
        and not n.startswith(("smoothed_", PREFIX))
        and len({y for _, y in found[n]}) > 1
    ]  # a constant says nothing
    names = [n for n in FIRST if n in found] + ["loss"] * rewarded + others
    small = [
        (n, chart([Curve(n, found[n], "main")], title=_words(n), size=(280, 140), zero=True))
        for n in names
    ]
    if rewarded:
        out = _rewarded(found)
    else:
        out = _learned("Loss", found, "loss", f"nats per {content.get('unit', 'token')}")
    out += _both(
        "Bits per byte of held-out text", bits, "bits per byte", levels=content.get("baselines", {})
    )
    multiples = "".join(
        f"<figure><figcaption>{_title(n)}</figcaption>{svg}</figure>" for n, svg in small if svg
    )
    return out + (f'<div class="multiples">{multiples}</div>' if multiples else "")


def _rewarded(found: dict[str, list[Point]]) -> str:
    """Charts of a run that learns from rewards. The loss says little there: held out it is the
    reward, negated."""
    right = _learned("Right answers", found, "pass_rate", "share of answers")
    if found.get("reward") == found["pass_rate"]:
        return right
    return _learned("Reward", found, "reward", "mean of the answers") + right


def _learned(title: str, found: dict[str, list[Point]], name: str, unit: str) -> str:
    """The chart of a metric: in training, smoothed, and held out."""
    smoothed = f"smoothed_{name}" in found
    shown = [
        ("training", name, "raw" if smoothed else "main"),
        ("training, smoothed", f"smoothed_{name}", "main"),
        ("held-out", f"validation_{name}", "validation"),
    ]
    curves = [
        Curve(label, found[key], style, dots=style == "validation")
        for label, key, style in shown
        if key in found
    ]
    legend = "".join(
        f'<span class="{c.style}"><svg viewBox="0 0 18 8"><path class="{c.style}" d="M1'
        f' 4h16"/></svg>{c.label}</span>'
        for c in curves
    )
    return _both(title, curves, unit, legend)


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
    spent = {k: v for k, v in seconds.items() if k != "total" and (finite(v) or 0) > 0}
    total = max(finite(seconds.get("total")) or 0, sum(spent.values()))
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
        says = f"{_words(name)} {duration(value)}, {width:.1f}%"
        parts.append(
            f'<rect class="{kind}" x="{x:.3f}%" width="{max(width - 0.2, 0.15):.3f}%"'
            f' height="22"><title>{_escape(says)}</title></rect>'
        )
        rows.append(
            f'<tr><th><i class="{kind}"></i>{_escape(_words(name))}</th>'
            f"<td>{duration(value)}</td><td>{width:.1f}%</td></tr>"
        )
        x += width
    rows.append(f"<tr class=total><th>total</th><td>{duration(total)}</td><td></td></tr>")
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


def _escape(text: Any) -> str:
    return escaped(str(text))
