"""Answers that a run learned from, over time: what the report shows of rollouts.jsonl.

Read `answers_shown`, which chooses them, then `section`, which writes them as HTML.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gptjax.observe.charts import escaped

STEPS = 12
"""Steps that are shown, evenly spread; the last is one of them."""
PROMPTS = 4
"""Prompts of each."""
ANSWERS = 8
"""Answers to each."""

_STEP = re.compile(rb'\{"step": (\d+),')


def answers_shown(run_dir: Path | str) -> list[dict[str, Any]]:
    """Returns prompts of some steps with their answers: `step`, `prompt`, and `answers`, each with
    `text`, `reward`, `right` and `finished`. The file is read line by line; torn lines are left
    out."""
    file = Path(run_dir) / "rollouts.jsonl"
    if not file.is_file():
        return []
    steps: dict[int, None] = {}
    with open(file, "rb") as lines:
        for line in lines:
            if found := _STEP.match(line):
                steps[int(found[1])] = None
    known = list(steps)
    few = min(STEPS, len(known))
    wanted = {known[round(i * (len(known) - 1) / max(1, few - 1))] for i in range(few)}
    with open(file, "rb") as lines:
        chosen = [line for line in lines if (m := _STEP.match(line)) and int(m[1]) in wanted]
    return _grouped(chosen)


def _grouped(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            one = json.loads(line)
            step, prompt = int(one["step"]), _last(one["prompt"])
            answer = {
                "text": _last(one["completion"]),
                "reward": one["reward"],
                "right": bool(one["label"]),
                "finished": bool(one["finished"]),
            }
            if not groups or (groups[-1]["step"], groups[-1]["prompt"]) != (step, prompt):
                groups.append({"step": step, "prompt": prompt, "answers": []})
            groups[-1]["answers"].append(answer)
    kept: list[dict[str, Any]] = []
    for group in groups:
        if sum(other["step"] == group["step"] for other in kept) < PROMPTS:
            kept.append(group | {"answers": group["answers"][:ANSWERS]})
    return kept


def _last(said: Any) -> str:
    """A text; of messages what the last one says."""
    return str(said[-1]["content"] if isinstance(said, list) else said)


def section(groups: list[dict[str, Any]]) -> str:
    """Returns the groups as HTML, the newest step first and open."""
    out = []
    for step in sorted({group["step"] for group in groups}, reverse=True):
        own = [group for group in groups if group["step"] == step]
        answers = [answer for group in own for answer in group["answers"]]
        right = sum(answer["right"] for answer in answers)
        body = "".join(_group(group) for group in own)
        judged = any(answer["reward"] is not None for answer in answers)
        says = f": {right} of these {len(answers)} answers are right" if judged else ""
        title = f"step {step:,}{says}"
        out.append(f"<details{'' if out else ' open'}><summary>{title}</summary>{body}</details>")
    return "".join(out)


def _group(group: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{'✓' if one['right'] else ''}</td><td>{_number(one['reward'])}</td>"
        f"<td><pre>{escaped(one['text'])}{'' if one['finished'] else ' …'}</pre></td></tr>"
        for one in group["answers"]
    )
    return (
        f"<pre><mark>{escaped(group['prompt'])}</mark></pre><table class=answers>"
        f"<tr><th>right</th><th>reward</th><th>answer (… is unfinished)</th></tr>{rows}</table>"
    )


def _number(reward: float | None) -> str:
    return "not judged" if reward is None else f"{reward:.3g}"
