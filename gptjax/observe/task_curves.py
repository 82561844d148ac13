"""Tasks that a run answered while it trained: what the report draws of their figures.

Metrics named `tasks/NAME/MEASURE` are a curve each, `tasks/NAME/low` and `high` the interval around
it, `chance` and `majority` lines.
"""

from __future__ import annotations

from collections.abc import Mapping

from gptjax.observe.charts import Curve, Point, chart, escaped

PREFIX = "tasks/"
"""Names of metrics that this room draws begin so."""
_BESIDE = {"chance": "chance", "majority": "commonest"}


def task_charts(curves: Mapping[str, list[Point]]) -> str:
    """Returns the charts of all tasks as HTML; nothing if the run watched none.

    Args:
      curves: all curves of the run by name.
    """
    tasks: dict[str, dict[str, list[Point]]] = {}
    for path, points in curves.items():
        if path.startswith(PREFIX):
            name, _, measure = path.removeprefix(PREFIX).partition("/")
            tasks.setdefault(name, {})[measure] = points
    charts = "".join(_task_chart(name, of) for name, of in tasks.items())
    return f'<div class="multiples tasks">{charts}</div>' if charts else ""


def _task_chart(name: str, of: Mapping[str, list[Point]]) -> str:
    measures = [one for one in of if one not in (*_BESIDE, "low", "high")]
    if not measures:
        return ""
    low, high = dict(of.get("low", [])), dict(of.get("high", []))
    band = [
        (step, below, above)
        for step in low
        if (below := low[step]) is not None and (above := high.get(step)) is not None
    ]
    levels = {
        word: value
        for key, word in _BESIDE.items()
        if (value := (of.get(key) or [(0, None)])[-1][1]) is not None
    }
    title = f"{name}, {measures[0]}"
    curve = Curve(title, of[measures[0]], "validation", dots=True, band=band)
    svg = chart([curve], title=title, size=(330, 180), levels=levels)
    return f"<figure><figcaption>{escaped(title)}</figcaption>{svg}</figure>" if svg else ""
