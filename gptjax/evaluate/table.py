"""An evaluation as lines of text.

Read `report_lines`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gptjax.evaluate.figure import Figure
from gptjax.evaluate.report import Comparison, Measure, Report, TaskReport
from gptjax.observe.progress import duration

FLIPS = 3
"""Items that a comparison shows."""


def report_lines(report: Report) -> Iterator[str]:
    """Yields a table of tasks with intervals and baselines, then averages and comparisons."""
    rows = [("task", "items", "measure", "value", "± error", "95 % interval", "chance", "majority")]
    for task in report.tasks:
        rows += task_rows(task)
    yield from _columns(rows)
    for task in report.tasks:
        yield from (f"{task.name}: {note}" for note in remarks(task))
    for average in report.averages:
        yield (
            f"centred average of {average.figure.n} tasks (0 is chance, 1 is all):"
            f" {_value(average.figure.value)} {_interval(average.figure)}"
        )
    for comparison in report.comparisons:
        yield from comparison_lines(comparison)


def task_rows(task: TaskReport) -> list[tuple[str, ...]]:
    """Returns the rows of a task: its headline, then the usual ones of its other measures."""
    form = "letters/" if task.headline.startswith("letters/") else ""
    own = [one for made in task.calibration for one in made.measures if one.name == f"{form}ece"]
    hidden = {f"{form}{name}" for form in ("", "letters/") for name in HIDDEN} - {task.headline}
    shown = [one for one in task.measures if one.name not in hidden] + own
    beside = [(task.name, f"{task.n:,}"), *[("", "")] * len(shown)]
    return [(*left, *_cells(one)) for left, one in zip(beside, shown, strict=False)]


HIDDEN = ("acc_bytes", "acc_token", "rouge1", "rouge2", "nats", "contained")
"""Measures that the table leaves to eval.json."""


def remarks(task: TaskReport) -> Iterator[str]:
    """Yields what a reader of a task's figures should know."""
    yield f"{task.sample}; {_work(task)}; identity {task.identity.sha256[:12]}"
    headline = task.measures[0]
    if headline.chance is not None and headline.better and _reaches(headline, headline.chance):
        yield f"{headline.name} is not above chance: its interval reaches {headline.chance:.3f}"
    elif headline.majority is not None and _reaches(headline, headline.majority):
        yield (
            f"{headline.name} is not above always giving the commonest answer: its interval reaches"
            f" {headline.majority:.3f}"
        )
    if task.truncated:
        yield f"{task.truncated:,} prompts did not fit the model and lost their beginning"
    yield from task.notes
    yield from (f"not reproducible: {reason}" for reason in task.identity.not_reproducible)


def comparison_lines(comparison: Comparison) -> Iterator[str]:
    """Yields what a paired comparison found."""
    change = comparison.figure
    told = "" if comparison.p is None else f", McNemar p = {comparison.p:.3g}"
    yield (
        f"{comparison.task} against {comparison.other}: {comparison.measure} {change.value:+.4f}"
        f" [{change.low:+.4f}, {change.high:+.4f}] over {change.n:,} items; {comparison.gained:,}"
        f" better, {comparison.lost:,} worse{told}"
    )
    if comparison.flips:
        shown = ", ".join(flip.id for flip in comparison.flips[:FLIPS])
        more = len(comparison.flips) - FLIPS
        yield f"  items that differ: {shown}" + (f" and {more:,} more" if more > 0 else "")
    yield from (f"  {note}" for note in comparison.notes)


def _reaches(measure: Measure, value: float) -> bool:
    return measure.better == "higher" and measure.figure.low <= value


def _work(task: TaskReport) -> str:
    """What a task took."""
    parts = [f"{task.requests:,} requests"]
    if task.tokens_read:
        alone = f"one request at a time takes {task.tokens_alone / task.tokens_read:.1f} times that"
        parts.append(f"{task.tokens_read:,} tokens read ({alone})")
    if task.tokens_written:
        parts.append(f"{task.tokens_written:,} tokens written")
    return ", ".join([*parts, duration(task.seconds)])


def _cells(measure: Measure) -> tuple[str, ...]:
    return (
        f"{measure.name} ({measure.unit})" if measure.unit else measure.name,
        _value(measure.figure.value),
        _value(measure.figure.stderr),
        _interval(measure.figure),
        _optional(measure.chance),
        _optional(measure.majority),
    )


def _interval(figure: Figure) -> str:
    if math.isnan(figure.low):
        return ""
    return f"[{_value(figure.low)}, {_value(figure.high)}]"


def _optional(value: float | None) -> str:
    return "" if value is None else _value(value)


def _value(value: float) -> str:
    if math.isnan(value):
        return ""
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if at in (0, 2) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
