"""What a sweep found: report.json for programs, report.html for people.

Read `sweep_facts` (the content), then `sweep_page`. The page asks for nothing: no script, no
network, no font.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptjax.observe.charts import Curve, Point, chart, escaped, finite
from gptjax.observe.html_page import html_page
from gptjax.observe.log import read_metrics
from gptjax.observe.progress import duration
from gptjax.train.paired import LEVEL, student_quantile

if TYPE_CHECKING:
    from gptjax.train.sweep import Outcome


SWEEP_STYLE = Path(__file__).with_name("sweep.css")


def write_sweep_report(
    path: Path, outcomes: Sequence[Outcome], over: Sequence[str], seconds: float
) -> Path:
    """Writes report.json and report.html into the folder of a sweep; returns the page's path.

    Args:
      over: the settings that were swept, by dotted name.
      seconds: wall time of this start.
    """
    facts = sweep_facts(path, outcomes, over, seconds)
    texts = {
        "report.json": json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": sweep_page(facts, curves_of(outcomes)),
    }
    for name, text in texts.items():
        partial = path / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path / name)
    return path / "report.html"


def sweep_facts(
    path: Path, outcomes: Sequence[Outcome], over: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Returns the figures of a sweep as strict JSON values: each run, and each combination of
    settings with mean, spread and 95 % interval over its seeds, the best first."""
    figure = "validation_loss" if any("validation_loss" in o.figures for o in outcomes) else "loss"
    names = [name for name in over if name != "seed"]
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(json.dumps([one.settings.get(n) for n in names]), []).append(one)
    combined = [_combined(group, names, figure) for group in groups.values()]
    combined.sort(key=lambda one: math.inf if one["mean"] is None else one["mean"])
    return {
        "name": path.resolve().name,
        "figure": figure,
        "settings": names,
        "seconds": seconds,
        "finished": all(one.finished for one in outcomes),
        "best": combined[0] if combined else None,
        "combinations": combined,
        "runs": [
            {
                "name": one.name,
                "seed": one.seed,
                "settings": one.settings,
                "skipped_steps": _skipped(one.path),
                "figures": {name: finite(value) for name, value in one.figures.items()},
            }
            for one in outcomes
        ],
    }


def _combined(group: Sequence[Outcome], names: Sequence[str], figure: str) -> dict[str, Any]:
    """One combination of settings over its seeds. A run without a finite figure has diverged, and
    so has their mean."""
    values = [one.figures.get(figure, math.nan) for one in group]
    n, mean, sd = len(values), float(np.mean(values)), None
    reach = None
    if n > 1 and math.isfinite(mean):
        sd = float(np.std(values, ddof=1))
        reach = student_quantile(1 - LEVEL / 2, n - 1) * sd / math.sqrt(n)
    return {
        "settings": {name: group[0].settings.get(name) for name in names},
        "n": n,
        "mean": finite(mean),
        "sd": sd,
        "interval": None if reach is None else [mean - reach, mean + reach],
        "least": finite(min(values, key=lambda v: math.inf if math.isnan(v) else v)),
        "most": finite(max(values, key=lambda v: math.inf if math.isnan(v) else v)),
        "runs": [one.name for one in group],
    }


def _skipped(path: Path) -> int:
    return sum(bool(line.get("skipped")) for line in read_metrics(path))


def curves_of(outcomes: Sequence[Outcome]) -> dict[str, list[Point]]:
    """Returns the held-out loss of each run by step; without held-out text its training loss."""
    found = {}
    for one in outcomes:
        lines = read_metrics(one.path)
        key = "validation_loss" if any("validation_loss" in line for line in lines) else "loss"
        found[one.name] = [(line["step"], finite(line[key])) for line in lines if key in line]
    return found


# --- the page


def sweep_page(facts: Mapping[str, Any], curves: Mapping[str, list[Point]]) -> str:
    """Returns the content of a report as one HTML page."""
    best = facts["best"]
    chosen = set(best["runs"]) if best else set()
    drawn = [Curve(run, points, "raw") for run, points in curves.items() if run not in chosen]
    drawn += [Curve(run, points, "main") for run, points in curves.items() if run in chosen]
    figure = facts["figure"].replace("_", " ")
    picture = chart(drawn, title=figure, unit="nats") if curves else ""
    legend = '<span class="legend">blue: the best combination; pale: the others</span>'
    sections = [
        ("", f"<figure><figcaption>{escaped(figure)}{legend}</figcaption>{picture}</figure>"),
        (_title_of_map(facts), map_of_settings(facts)),
        ("Combinations, the best first", _combinations(facts)),
        ("Runs", _runs(facts)),
    ]
    body = "".join(
        f"<section>{f'<h2>{escaped(title)}</h2>' if title else ''}{inner}</section>"
        for title, inner in sections
        if inner
    )
    footer = (
        "Written by gptjax sweep. The same figures for programs: report.json; of each run:"
        " metrics.jsonl in its folder."
    )
    return html_page(facts["name"], "sweep", sweep_headline(facts), body, footer, SWEEP_STYLE)


def sweep_headline(facts: Mapping[str, Any]) -> str:
    """Says in a sentence how many runs there were and which settings were the best."""
    best, runs = facts["best"], len(facts["runs"])
    said = f"{runs} runs in {duration(facts['seconds'])}"
    if best is None or best["mean"] is None:
        return f"{said}; none has a finite {facts['figure'].replace('_', ' ')}."
    settings = ", ".join(f"{k} {v}" for k, v in best["settings"].items())
    spread = "" if best["sd"] is None else f" ± {best['sd']:.4f} over {best['n']} seeds"
    of = f" with {settings}" if settings else ""
    return (
        f"{said}; the best {facts['figure'].replace('_', ' ')} is {best['mean']:.4f}{spread}{of}."
    )


def _combinations(facts: Mapping[str, Any]) -> str:
    head = [*facts["settings"], "mean", "standard deviation", "95 % interval", "seeds"]
    rows = [
        [
            *(str(value) for value in one["settings"].values()),
            _number(one["mean"]),
            _number(one["sd"]),
            "" if one["interval"] is None else " to ".join(map(_number, one["interval"])),
            str(one["n"]),
        ]
        for one in facts["combinations"]
    ]
    return _table(head, rows)


def _runs(facts: Mapping[str, Any]) -> str:
    rows = [
        [
            one["name"],
            str(one["seed"]),
            _number(one["figures"].get(facts["figure"])),
            str(one["skipped_steps"] or ""),
        ]
        for one in facts["runs"]
    ]
    return _table(["run", "seed", facts["figure"].replace("_", " "), "skipped steps"], rows)


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escaped(word)}</th>" for word in head)
    rest = "".join(
        f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<table class="sweep"><tr>{first}</tr>{rest}</table>'


# --- a grid of two settings


def _axes(facts: Mapping[str, Any]) -> tuple[list, list] | None:
    """The values of the two settings that vary, if there are just two."""
    if len(facts["settings"]) != 2:
        return None
    axes = tuple(
        list(dict.fromkeys(one["settings"][name] for one in _in_order(facts)))
        for name in facts["settings"]
    )
    return (axes[0], axes[1]) if min(map(len, axes)) > 1 else None


def _in_order(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The combinations by their values, numbers rising."""

    def key(one: Mapping[str, Any]) -> list:
        return [
            (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))
            for value in one["settings"].values()
        ]

    return sorted(facts["combinations"], key=key)


def _title_of_map(facts: Mapping[str, Any]) -> str:
    down, across = (facts["settings"] * 2)[:2] or ("", "")
    return f"{down} (down) by {across} (across)"


def map_of_settings(facts: Mapping[str, Any]) -> str:
    """Returns a grid of the means of two settings, the better the darker; an empty string if other
    than two were swept."""
    axes = _axes(facts)
    means = [one["mean"] for one in facts["combinations"] if one["mean"] is not None]
    if axes is None or not means:
        return ""
    down, across = axes
    by = {tuple(one["settings"].values()): one["mean"] for one in facts["combinations"]}
    ranked = sorted(means)
    cells = ["<div></div>", *(f'<div class="name">{escaped(str(x))}</div>' for x in across)]
    for y in down:
        cells.append(f'<div class="name">{escaped(str(y))}</div>')
        for x in across:
            mean = by.get((y, x))
            if mean is None:
                cells.append("<div>—</div>")
                continue
            # by rank: one diverged run would wash out all other colours
            much = 75 * (1 - ranked.index(mean) / max(1, len(ranked) - 1))
            best = " best" if mean == ranked[0] else ""
            style = f"--much:{much:.0f}%"
            cells.append(f'<div class="cell{best}" style="{style}">{mean:.4f}</div>')
    columns = f"grid-template-columns:auto repeat({len(across)},1fr)"
    return f'<div class="map" style="{columns}">{"".join(cells)}</div>'
