"""`eval.html`: an evaluation as one page, without a script, the network or a font.

Read `eval_page`, then its sections in the order of the page: `_summary`, `_comparisons`, `_task`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.evaluate.figure import Figure
from gptjax.evaluate.figures.calibration import option_probabilities, padded_scores
from gptjax.evaluate.page_charts import (
    Mark,
    confusion_table,
    interval_svg,
    reliability_svg,
    selective_svg,
)
from gptjax.evaluate.page_items import flips_section, samples_section
from gptjax.evaluate.report import Calibration, Comparison, Item, Measure, Report, TaskReport
from gptjax.observe.charts import escaped, finite
from gptjax.observe.html_page import html_page
from gptjax.observe.progress import duration

EVAL_STYLE = Path(__file__).with_name("eval.css")


def write_page(report: Report, path: Path | str) -> None:
    """Writes eval.html, at once or not at all.

    Raises:
      ConfigError: the file can't be written.
    """
    partial = Path(f"{path}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(eval_page(report).encode("utf-8", "xmlcharrefreplace"))
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror}); choose another folder (--out DIR)."
        ) from None


def eval_page(report: Report) -> str:
    """Returns an evaluation as one HTML file."""
    body = "".join(
        [
            _section("Results", _summary(report.tasks) + _averages(report)),
            _section("Compared", _comparisons(report)),
            *(_section(escaped(task.name), _task(task), task.name) for task in report.tasks),
            _section("Environment", _pairs(_environment(report))),
        ]
    )
    footer = "Written by gptjax. The same figures and all items, for programs: eval.json."
    return html_page(report.model, "evaluation", _lead(report), body, footer, EVAL_STYLE)


def _section(title: str, inner: str, anchor: str = "") -> str:
    mark = f' id="{escaped(anchor)}"' if anchor else ""
    return f"<section{mark}><h2>{title}</h2>{inner}</section>" if inner else ""


def _lead(report: Report) -> str:
    """Says in a sentence how many tasks are above chance."""
    items = sum(task.n for task in report.tasks)
    tasks = len(report.tasks)
    parts = [f"{items:,} items of {tasks} task{'s' * (tasks != 1)} in {duration(report.seconds)}"]
    compared = [
        (task.measure(task.headline), task)
        for task in report.tasks
        if _floor(task.measure(task.headline)) is not None
    ]
    above = sum(_is_above(measure) for measure, _ in compared)
    if compared:
        parts.append(f"above chance and majority in {above} of {len(compared)}")
    return "; ".join(parts) + "."


def _floor(measure: Measure) -> float | None:
    """The better of chance and majority."""
    known = [value for value in (measure.chance, measure.majority) if value is not None]
    return max(known) if known else None


def _is_above(measure: Measure) -> bool:
    floor = _floor(measure)
    return floor is not None and measure.figure.low > floor


# --- all tasks in one table


def _summary(tasks: Sequence[TaskReport]) -> str:
    rows = []
    for task in tasks:
        measure = task.measure(task.headline)
        link = f'<a href="#{escaped(task.name)}">{escaped(task.name)}</a>'
        shots = task.settings.get("shots")
        told = f"{measure.name}, {task.n:,} items" + (f", {shots} shots" if shots else "")
        rows.append(
            f'<tr><th scope="row">{link}<br><span class="soft">{escaped(told)}</span></th>'
            f'<td class="number">{_number(measure.figure.value)}<br><span class="soft">'
            f"{_range_of(measure.figure)}</span></td><td class=chart>{_row_svg(measure)}</td></tr>"
        )
    ticks = "".join(f"<span>{tick}</span>" for tick in ("0", "0.25", "0.5", "0.75", "1"))
    return (
        f'{_LEGEND}<table class="summary"><thead><tr><th scope="col">task</th>'
        '<th scope="col" class="number">figure</th><th scope="col">with its 95 % interval</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody>"
        f'<tfoot aria-hidden="true"><tr><td></td><td></td><td><div class="ticks">{ticks}</div></td>'
        "</tr></tfoot></table>"
    )


_LEGEND = (
    '<p class="legend"><span class="key point">figure</span><span class="key whisker">95 %'
    ' interval</span><span class="key chance">chance</span><span class="key majority">commonest'
    " answer</span></p>"
)


def _row_svg(measure: Measure) -> str:
    """The figure on the axis of shares; none for other units."""
    if not _is_share(measure):
        return f'<span class="soft">{escaped(measure.unit or "no share")}</span>'
    marks = [
        Mark(name, value, style)
        for name, value, style in (
            ("chance", measure.chance, "chance"),
            ("commonest answer", measure.majority, "majority"),
        )
        if value is not None
    ]
    return interval_svg(measure.figure, marks, 0.0, 1.0)


def _is_share(measure: Measure) -> bool:
    figure = measure.figure
    ends = [v for v in (figure.value, figure.low, figure.high) if finite(v) is not None]
    return measure.better != "lower" and not measure.unit and all(-0.001 <= v <= 1 for v in ends)


def _averages(report: Report) -> str:
    if not report.averages:
        return ""
    rows = [
        (one.name, _number(one.figure.value), _range_of(one.figure), f"{len(one.tasks)} tasks")
        for one in report.averages
    ]
    return _table(("average", "value", "95 % interval", "over"), rows)


# --- against another evaluation


def _comparisons(report: Report) -> str:
    return "".join(_comparison(one, report.tasks) for one in report.comparisons)


def _comparison(one: Comparison, tasks: Sequence[TaskReport]) -> str:
    figure = one.figure
    reach = max([0.01, *(abs(v) for v in figure[:1] + figure[3:] if finite(v) is not None)]) * 1.15
    chart = interval_svg(figure, [Mark("no difference", 0.0, "chance")], -reach, reach)
    p = "" if one.p is None else f", p = {one.p:.2g} (McNemar, exact)"
    notes = "".join(f'<p class="warning">{escaped(note)}</p>' for note in one.notes)
    return (
        f"<h3>{escaped(one.task)}, {escaped(one.measure)}: against {escaped(one.other)}</h3>"
        f"<p>{figure.value:+.3f} ({figure.low:+.3f} to {figure.high:+.3f}){p}; {one.gained:,} items"
        f' gained, {one.lost:,} lost.</p><div class="difference">{chart}<div class="ticks">'
        f"<span>{-reach:.2f}</span><span>0</span><span>+{reach:.2f}</span></div></div>{notes}"
        f"{flips_section(one, tasks)}"
    )


# --- one task


def _task(task: TaskReport) -> str:
    notes = [*task.notes]
    if task.truncated:
        notes.append(f"prompts that did not fit and lost their beginning: {task.truncated:,}")
    warnings = "".join(f'<p class="warning">{escaped(note)}</p>' for note in notes)
    told = f"{escaped(task.sample)}, from {escaped(task.file)}; {_spent(task)}."
    charts = "".join(_calibrated(one, task.items) for one in task.calibration)
    confusions = "".join(
        f"<h3>Confusion{_of_form(one.form)}</h3>{confusion_table(one)}" for one in task.confusion
    )
    identity = [("identity", task.identity.sha256), *task.identity.parts.items()]
    reasons = "".join(
        f'<p class="warning">may differ when repeated: {escaped(reason)}</p>'
        for reason in task.identity.not_reproducible
    )
    return (
        f"<p>{told}</p>{warnings}{_measures(task.measures)}{charts}{confusions}"
        f"<h3>Items</h3>{samples_section(task)}"
        f"{_fold('Settings', _pairs(_flat(task.settings)))}"
        f"{_fold('Identity', reasons + _pairs(identity))}"
    )


def _spent(task: TaskReport) -> str:
    """What the responses took."""
    parts = [f"{task.requests:,} requests in {duration(task.seconds)}"]
    shared = ""
    if task.tokens_alone > task.tokens_read > 0:
        shared = f" ({task.tokens_alone / task.tokens_read:.1f} times fewer than one by one)"
    parts += [f"{task.tokens_read:,} tokens read{shared}"] if task.tokens_read else []
    parts += [f"{task.tokens_written:,} tokens written"] if task.tokens_written else []
    tokens = task.tokens_read + task.tokens_written
    parts += [f"{tokens / task.seconds:,.0f} a second"] if tokens and task.seconds > 0 else []
    return ", ".join(parts)


def _measures(measures: Sequence[Measure]) -> str:
    rows = [
        (
            one.name,
            _number(one.figure.value) + (f" {one.unit}" if one.unit else ""),
            _range_of(one.figure),
            _maybe(one.chance),
            _maybe(one.majority),
            f"{one.figure.n:,}",
        )
        for one in measures
    ]
    head = ("measure", "value", "95 % interval", "chance", "commonest", "items")
    return _table(head, rows)


def _calibrated(one: Calibration, items: Sequence[Item]) -> str:
    """The reliability diagram and the selective curve of a form, with their figures."""
    own = [item for item in items if item.form == one.form and len(item.logprobs) > 1]
    chances = option_probabilities(padded_scores([item.logprobs for item in own] or [(0.0,)]))
    right = [int(take) == item.gold for take, item in zip(chances.argmax(1), own, strict=False)]
    figures = "".join(
        f"<tr><th scope=row>{escaped(m.name)}</th><td class=number>{_number(m.figure.value)}</td>"
        f"<td class=number>{_range_of(m.figure)}</td></tr>"
        for m in one.measures
    )
    selective = (
        "<figure><figcaption>Answering only where it is sure</figcaption>"
        f"{selective_svg(chances.max(1).tolist(), right)}</figure>"
        if len(right) > 1
        else ""
    )
    return (
        f"<h3>Calibration{_of_form(one.form)}</h3><div class=pair><figure><figcaption>Can its"
        f" confidence be believed?</figcaption>{reliability_svg(one.bins)}</figure>{selective}"
        f"</div><p>{_advice(one.temperature)}</p><table class=measures><tbody>{figures}</tbody>"
        "</table>"
    )


def _advice(temperature: float) -> str:
    """What a fitted temperature says; see `fitted_temperature` for its limits."""
    if temperature > 19.9:
        return "No temperature up to 20 is high enough: its confidence does not say what is right."
    sure = "too sure" if temperature > 1 else "not sure enough"
    return f"The temperature {temperature:.2f} makes right choices likeliest: it is {sure}."


def _of_form(form: str) -> str:
    return f", {escaped(form)} form" if form else ""


# --- pieces


def _environment(report: Report) -> list[tuple[str, Any]]:
    return [
        ("parameters", f"{report.parameters:,}"),
        ("created", report.created),
        ("seconds", f"{report.seconds:.1f}"),
        *report.versions.items(),
    ]


def _flat(value: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, inner in value.items():
        path = f"{where}.{key}".lstrip(".")
        rows += _flat(inner, path) if isinstance(inner, dict) else [(path, inner)]
    return rows


def _pairs(rows: Iterable[tuple[str, Any]]) -> str:
    inner = "".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(_word(value))}</td></tr>'
        for name, value in rows
    )
    return f"<table><tbody>{inner}</tbody></table>" if inner else ""


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_word, value)) or "none"
    if isinstance(value, str) and (not value or value != " ".join(value.split())):
        return json.dumps(value, ensure_ascii=False)  # white space that counts
    shown = {True: "yes", False: "no", None: "none"}
    return shown[value] if isinstance(value, bool) or value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = "".join(
        f'<th scope="col"{"" if number == 0 else " class=number"}>{name}</th>'
        for number, name in enumerate(head)
    )
    body = "".join(
        f'<tr><th scope="row">{escaped(first)}</th>'
        + "".join(f'<td class="number">{escaped(cell)}</td>' for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table class="measures"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>" if body else ""


def _range_of(figure: Figure) -> str:
    low, high = finite(figure.low), finite(figure.high)
    return "" if low is None or high is None else f"{_number(low)} – {_number(high)}"


def _maybe(value: float | None) -> str:
    return "" if value is None else _number(value)


def _number(value: float) -> str:
    if finite(value) is None:
        return "none"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.4g}"
