"""`clean.html`: a cleaning as one page, without a script, the network or a font.

Read `clean_page`, then its sections in the order of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptjax.core.config import flat_settings
from gptjax.observe.charts import escaped
from gptjax.observe.html_page import html_page

CLEAN_STYLE = Path(__file__).with_name("clean.css")
MOST = 20
"""Languages and labels that are listed."""
TITLES = {
    "read": "could not be read",
    "normalise": "blank",
    "language": "language",
    "quality": "quality",
    "decontaminate": "test items",
    "classifier": "classifier",
    "exact": "equal to an earlier one",
    "near": "similar to an earlier one",
    "lines": "only lines that stood before",
    "sample": "not sampled",
}


def clean_page(report: Mapping[str, Any]) -> str:
    """Returns a report of a cleaning as one HTML file."""
    sections = [
        ("Where the records went", _flow(report)),
        ("Rules that dropped", _rules(report)),
        ("Replaced", _replaced(report)),
        ("Languages", _shares(report["counts"].get("language", {}))),
        ("Labels of the classifier", _shares(report["counts"].get("classifier", {}))),
        ("Lengths", _lengths(report["lengths"])),
        ("Examples of what was dropped", _examples(report["examples"])),
        ("Hashes", _hashes(report)),
        ("Settings", _fold("every setting of this cleaning", _settings(report["config"]))),
    ]
    body = "".join(
        f"<section><h2>{title}</h2>{inner}</section>" for title, inner in sections if inner
    )
    footer = (
        "Written by gptjax. The same figures for programs: clean.json; each dropped record with its"
        " rule and line: dropped.jsonl."
    )
    lead = f"{report['headline']} are left"
    return html_page(report["name"], "cleaning", lead, body, footer, CLEAN_STYLE)


def _flow(report: Mapping[str, Any]) -> str:
    """One bar for all records: written, and dropped by stage."""
    parts = [("written", min(report["written"].get("records", 0), _read(report)))]
    parts += [
        (TITLES.get(stage["stage"], stage["stage"]), number)
        for stage in report["stages"]
        if (number := sum(stage["dropped"].values()))
    ]
    total = max(1, sum(number for _, number in parts))
    bar, rows, x = "", "", 0.0
    for at, (title, number) in enumerate(parts):
        kind = f"part-{at}" if at < 6 else "part-other"
        width = 100 * number / total
        bar += f'<rect class="{kind}" x="{x:.3f}%" width="{width:.3f}%" height="22"></rect>'
        rows += (
            f'<tr><th scope="row"><i class="{kind}"></i>{escaped(str(title))}</th>'
            f"<td>{number:,}</td><td>{number / total:.1%}</td></tr>"
        )
        x += width
    written = report["written"].get("characters", 0)
    read = report["source"].get("characters", 0)
    rows += (
        '<tr class="total"><th scope="row">characters, of those that were read</th>'
        f"<td>{written:,}</td><td>{written / max(1, read):.1%}</td></tr>"
    )
    svg = f'<svg class="bar" role="img" aria-label="Records by what became of them">{bar}</svg>'
    return f'{svg}<table class="times">{rows}</table>'


def _read(report: Mapping[str, Any]) -> int:
    return report["source"].get("records", 0)


def _rules(report: Mapping[str, Any]) -> str:
    rules = [
        (rule, number) for stage in report["stages"] for rule, number in stage["dropped"].items()
    ]
    return _bars(sorted(rules, key=lambda one: -one[1]))


def _replaced(report: Mapping[str, Any]) -> str:
    counts = {
        **{f"{name.upper()}": n for name, n in report["counts"].get("pii", {}).items()},
        **{
            f"records with another spelling ({name})": n
            for name, n in report["counts"].get("normalise", {}).items()
        },
        **{f"repeated {name} removed": n for name, n in report["edits"].items()},
    }
    return _bars(counts.items())


def _shares(counts: Mapping[str, int]) -> str:
    listed = list(counts.items())
    rest = sum(number for _, number in listed[MOST:])
    return _bars([*listed[:MOST], *([("others", rest)] if rest else [])])


def _bars(rows: Iterable[tuple[str, int]]) -> str:
    """A table of counts, each with a bar."""
    rows = list(rows)
    most = max((number for _, number in rows), default=0)
    if not most:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td class="number">{number:,}</td>'
        f'<td><svg class="count" aria-hidden="true"><rect width="{100 * number / most:.2f}%"'
        ' height="12"></rect></svg></td></tr>'
        for name, number in rows
    )
    return f'<table class="counts">{lines}</table>'


def _lengths(lengths: Mapping[str, Mapping[str, int]]) -> str:
    """Histograms of characters per record, before and after, by powers of two."""
    read, written = lengths["read"], lengths["written"]
    powers = sorted({int(k) for k in (*read, *written)})
    if not powers:
        return ""
    span = range(powers[0], powers[-1] + 1)
    most = max([*read.values(), *written.values()])
    width, height, foot = 860 / len(span), 180, 24
    marks = ""
    for at, power in enumerate(span):
        for kind, counts, shift in (("before", read, 0.08), ("after", written, 0.5)):
            tall = height * counts.get(str(power), 0) / most
            marks += (
                f'<rect class="{kind}" x="{(at + shift) * width:.1f}" y="{height - tall:.1f}"'
                f' width="{0.4 * width:.1f}" height="{tall:.1f}"></rect>'
            )
        marks += (
            f'<text class="middle" x="{(at + 0.5) * width:.1f}" y="{height + 17}">'
            f"{_power(power)}</text>"
        )
    legend = (
        '<span class="legend"><span><i class="before"></i>read</span>'
        '<span><i class="after"></i>written</span></span>'
    )
    return (
        "<figure><figcaption>Records by length, from so many characters to twice as many"
        f"{legend}</figcaption>"
        f'<div class="scroll"><svg class="lengths" viewBox="0 0 860 {height + foot}" role="img"'
        f' aria-label="Lengths of records before and after">{marks}</svg></div></figure>'
    )


def _power(power: int) -> str:
    size = 2**power
    for unit, name in ((2**30, "G"), (2**20, "M"), (2**10, "k")):
        if size >= unit:
            return f"{size // unit}{name}"
    return str(size)


def _examples(examples: Mapping[str, list[Mapping[str, Any]]]) -> str:
    out = ""
    for rule, some in examples.items():
        rows = "".join(
            f'<p class="soft">{escaped(_told(one))}</p>'
            + (f"<pre>{escaped(one['text'])}</pre>" if one["text"].strip() else "")
            for one in some
        )
        out += _fold(escaped(rule), rows)
    return out


def _told(one: Mapping[str, Any]) -> str:
    """The place of a dropped record, and what its rule measured."""
    return " · ".join(str(part) for part in (one["place"], one["value"]) if part not in ("", None))


def _hashes(report: Mapping[str, Any]) -> str:
    versions = report.get("made_of", {}).get("versions", {})
    rows = {
        "all records that were read": report["source"]["sha256"],
        "all files that were written": report["written"]["sha256"],
        "dropped.jsonl": report["dropped"]["sha256"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "seed": report["seed"],
    }
    return _table(rows.items())


def _settings(settings: Mapping[str, Any]) -> str:
    return _table(
        (name, ", ".join(map(str, value)) if isinstance(value, list) else value)
        for name, value in flat_settings(settings)
    )


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escaped(str(name))}</th><td>{escaped(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table>{lines}</table>"


def _fold(title: str, inner: str) -> str:
    return f"<details><summary>{title}</summary>{inner}</details>"
