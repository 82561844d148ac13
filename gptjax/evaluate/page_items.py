"""Items of a task for people to read: right ones, wrong ones, those that were wrong and sure, and
those of which two models differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gptjax.evaluate.figures.calibration import option_probabilities, padded_scores
from gptjax.evaluate.report import Comparison, Item, TaskReport
from gptjax.observe.charts import escaped

SHOWN = 4
"""Items of each kind."""
FLIPS = 12
"""Items of a comparison."""
CONTEXT = 1200
"""Characters of a prompt that are shown: the last ones."""


def item_confidence(item: Item) -> float | None:
    """Returns the probability of the option that was chosen, among all options; `None` where there
    are no several."""
    if item.chosen is None or len(item.logprobs) < 2 or len(item.logprobs) != len(item.options):
        return None
    return float(option_probabilities(padded_scores([item.logprobs]))[0, item.chosen])


def item_score(item: Item, headline: str) -> float | None:
    """Returns what an item counts in the headline; `None` where it is no mean over items."""
    return item.values.get(headline)


def samples_section(task: TaskReport) -> str:
    """Returns some items of a task as HTML."""
    prefix, _, _ = task.headline.rpartition("/")
    items = [one for one in task.items if one.form in ("", prefix or "cloze")] or [*task.items]
    scored = [(item_score(one, task.headline), one) for one in items]
    known = [(value, one) for value, one in scored if value is not None]
    if not known:
        return _group("Items", [one for _, one in scored[:SHOWN]], {})
    best, worst = max(value for value, _ in known), min(value for value, _ in known)
    values = {one.id: value for value, one in known}
    if {value for value, _ in known} <= {0.0, 0.5, 1.0}:
        right = [one for value, one in known if value == 1]
        wrong = [one for value, one in known if value < 1]
        groups = {"Right": right, "Wrong": _spread([w for w in wrong if w not in _surest(wrong)])}
        groups["Wrong and most confident"] = _surest(wrong)
    else:
        ordered = [one for _, one in sorted(known, key=lambda pair: pair[0])]
        if task.measure(task.headline).better == "lower":
            ordered.reverse()
        groups = {"Best": ordered[::-1][:SHOWN], "Worst": ordered[:SHOWN]}
        values = values if best != worst else {}
    return "".join(_group(name, _spread(some), values) for name, some in groups.items())


def flips_section(comparison: Comparison, tasks: Sequence[TaskReport]) -> str:
    """Returns the items that differ most between two evaluations, as HTML."""
    items = {item.id: item for task in tasks if task.name == comparison.task for item in task.items}
    rows = []
    for flip in comparison.flips[:FLIPS]:
        way = f"{flip.before:g} → {flip.after:g}"
        body = _item(items[flip.id], None) if flip.id in items else ""
        rows.append(f"<details><summary>item {escaped(flip.id)}: {way}</summary>{body}</details>")
    more = len(comparison.flips) - len(rows)
    return "".join(rows) + (f"<p>{more:,} more are in eval.json.</p>" if more > 0 else "")


def _surest(wrong: Sequence[Item]) -> list[Item]:
    """The wrong items of which the model was most confident."""
    known = [(item_confidence(one), one) for one in wrong]
    order = sorted(
        ((sure, number) for number, (sure, _) in enumerate(known) if sure is not None),
        key=lambda pair: (-pair[0], pair[1]),
    )
    return [wrong[number] for _, number in order[:SHOWN]]


def _spread(items: Sequence[Item]) -> list[Item]:
    """A few of the items, evenly spread."""
    few = min(SHOWN, len(items))
    places = np.linspace(0, len(items) - 1, few).round().astype(int) if few else []
    return [items[place] for place in places]


def _group(name: str, items: Iterable[Item], values: Mapping[str, float]) -> str:
    body = "".join(_item(item, values.get(item.id)) for item in items)
    return f"<details><summary>{name}</summary>{body}</details>" if body else ""


def _item(item: Item, value: float | None) -> str:
    """One item: the end of its prompt, and its options or answers."""
    cut = max(0, len(item.prompt) - CONTEXT)
    before = f"<p class=soft>… {cut:,} characters before</p>" if cut else ""
    head = [f"item {escaped(item.id)}"]
    if value is not None and value not in (0, 1):
        head.append(f"{value:.3g}")
    if item.truncated:
        head.append("the beginning of its prompt did not fit the model")
    prompt = f"<pre>{escaped(item.prompt[cut:])}</pre>" if item.prompt else ""
    return (
        f'<article class="item"><p class="soft">{", ".join(head)}</p>{before}{prompt}'
        f"{_options(item)}{_written(item)}</article>"
    )


def _options(item: Item) -> str:
    if not item.options:
        return ""
    several = len(item.logprobs) == len(item.options) > 1
    chances = option_probabilities(padded_scores([item.logprobs]))[0] if several else None
    rows = []
    for number, option in enumerate(item.options):
        says = [
            word
            for word, place in (("right", item.gold), ("chosen", item.chosen))
            if place == number and several
        ]
        kind = "gold" if number == item.gold else "taken" if number == item.chosen else ""
        share = "" if chances is None else f"{chances[number]:.3f}"
        bar = "" if chances is None else f' style="--heat:{100 * chances[number]:.1f}%"'
        nats = f"{item.logprobs[number]:.2f}" if number < len(item.logprobs) else ""
        rows.append(
            f'<tr class="{kind}"><td>{escaped(option)}</td><td>{", ".join(says)}</td>'
            f'<td class="number">{nats}</td><td class="number share"{bar}>{share}</td></tr>'
        )
    return (
        '<table class="options"><thead><tr><th scope="col">option</th><th scope="col">is</th>'
        '<th scope="col" class="number">ln p</th><th scope="col" class="number">share</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _written(item: Item) -> str:
    if not (item.answers or item.written):
        return ""
    right = " · ".join(item.answers[:5]) + (" · …" if len(item.answers) > 5 else "")
    return (
        '<table class="options"><tbody>'
        f'<tr><th scope="row">written</th><td><pre>{escaped(item.written)}</pre></td></tr>'
        f'<tr class="gold"><th scope="row">right</th><td><pre>{escaped(right)}</pre></td></tr>'
        "</tbody></table>"
    )
