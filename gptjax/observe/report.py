"""What a run was, in one page: `report.html` for people and `report.json` for programs.

Read in this order: `write_run_report` (both files); `report` (the content); `page` (the content as
HTML); `chart` (curves as SVG). Nothing here needs more than the run directory: no script, no
network, no font.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gptjax.observe import rollouts
from gptjax.observe.charts import Point, finite, short_number
from gptjax.observe.log import read_metrics
from gptjax.observe.page import page
from gptjax.observe.progress import Smoothed, duration, smooth

MOST_POINTS = 1000  # a curve


def write_run_report(run_dir: Path | str, facts: dict[str, Any]) -> Path:
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
    """Returns `facts` with the headline, the thinned curves and the samples of the run, as strict
    JSON values.

    Args:
      facts: what the training loop knows; everything is optional and what is missing is not shown.
        Keys: name, config, environment, parameters, tokens, seconds (`total` and what it was spent
        on), goodput, final, baselines (bits per byte), skipped_steps, spikes, passed_over_records,
        cleaning, next, warnings.
    """
    lines = read_metrics(run_dir)
    names = [
        n
        for n in dict.fromkeys(name for line in lines for name in line)
        if n not in {"step", "tokens", "sample"}
    ]
    curves = {
        name: [(line["step"], finite(line[name])) for line in lines if name in line]
        for name in names
    }
    curves |= {
        f"smoothed_{name}": _smoothed(curves[name])
        for name in ("loss", "reward", "pass_rate")
        if len(curves.get(name, [])) >= 20
    }
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
    return {
        "headline": headline(facts),
        **facts,
        "curves": thinned,
        "samples": samples,
        "rollouts": rollouts.answers_shown(run_dir),
    }


def headline(facts: dict[str, Any]) -> str:
    """Says in a sentence what was trained, in which time, and how good it is."""
    seconds, final = facts.get("seconds", {}).get("total"), facts.get("final", {})
    parts = [
        f"Trained {short_number(facts['parameters'])} parameters"
        if "parameters" in facts
        else "Trained"
    ]
    parts += [f"on {short_number(facts['tokens'])} tokens"] if "tokens" in facts else []
    parts += [f"in {duration(seconds)}"] if seconds is not None else []
    bits, loss = (
        finite(final.get("validation_bits_per_byte")),
        finite(final.get("validation_loss")),
    )
    baselines = ", ".join(
        f"{str(name).split()[0]} {value:.2f}"
        for name, value in facts.get("baselines", {}).items()
        if finite(value) is not None
    )
    result = ""
    if bits is not None:
        most = "at most " * ("validation_interval" in final)
        result = f"held-out text costs {most}{bits:.2f} bits per byte" + (
            f" ({baselines})" if baselines else ""
        )
    elif (passed := finite(final.get("validation_pass_rate"))) is not None:
        result = f"{passed:.0%} of the answers to held-out prompts are right"
    elif loss is not None:
        result = f"held-out loss is {loss:.3f} nats per {facts.get('unit', 'token')}"
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
    average, decay, out = Smoothed(), 1 - 1 / min(max(len(points) / 100, 5), 100), []
    for step, value in points:
        average = smooth(average, value, decay)
        out.append((step, None if value is None else average.value))
    return out


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
        return finite(value)
    return value if isinstance(value, (int, str, type(None))) else str(value)
