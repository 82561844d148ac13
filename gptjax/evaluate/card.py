"""A model card made of what a run wrote down: its data and how they were cleaned, its training,
its figures, and its limits. Nothing in it is typed by hand, so nothing in it can be forgotten.

`run_sections` gives the parts for a card that somebody else heads; `run_card` a whole one. Both
read the run directory and files of evaluations, and nothing else; what is not known is said to be
unknown. Source: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax.core import config
from gptjax.core.config import ConfigError, require
from gptjax.evaluate.report import Measure, Report, read_evaluation
from gptjax.observe.charts import short_number
from gptjax.observe.progress import duration

SECTIONS = ("Data", "Cleaning", "Training", "Evaluation", "Limits")


def run_card(run: Path | str, evaluations: Sequence[Path | str] = ()) -> str:
    """Returns the card of a run as Markdown.

    Args:
      evaluations: files or folders of `gptjax evaluate` and files of `gptjax probe --out`, besides
        an `eval.json` in the run itself.

    Raises:
      ConfigError: there is no run, or a file is none of these.
    """
    run = Path(run)
    report = _read(run / "report.json")
    parts = run_sections(run, evaluations)
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in parts.items())
    lead = report.get("headline", "The run has no report yet: it has not finished a step.")
    return f"# {run.resolve().name}\n\n{lead}\n\n{body}\n"


def run_sections(run: Path | str, evaluations: Sequence[Path | str] = ()) -> dict[str, str]:
    """Returns heading → Markdown for each of `SECTIONS`; arguments and errors as of
    `run_card`."""
    run = Path(run)
    require(
        (run / "config.json").is_file(),
        f"{run} holds no config.json, so it is not a run; give a run directory.",
    )
    settings = config.load_config(dict, run / "config.json")
    report, identity = _read(run / "report.json"), _read(run / "identity.json")
    own = [run] if (run / "eval.json").is_file() else []
    found = [_evaluation(Path(one)) for one in (*own, *evaluations)]
    data = settings.get("data") or {}
    texts = {
        "Data": _data(data, report, identity),
        "Cleaning": _cleaning(data, report),
        "Training": _training(settings, report),
        "Evaluation": _figures(report, found),
        "Limits": _limits(settings, report, found),
    }
    return {name: texts[name] for name in SECTIONS}


def model_sections(source: Path | str, evaluations: Sequence[Path | str] = ()) -> dict[str, str]:
    """Returns heading → Markdown for a model that is no run: what its files cannot say, the figures
    of evaluations, and limits.

    Args:
      evaluations: as of `run_card`; an `eval.json` beside the model counts too.
    """
    source = Path(source)
    own = [source] if source.is_dir() and (source / "eval.json").is_file() else []
    found = [_evaluation(Path(one)) for one in (*own, *evaluations)]
    unknown = "Who trained the model, on which text and under which licence, its files do not say."
    lines = [
        "It states what is false as fluently as what is true; check what it says.",
        not found and "Its ability was not measured here (`gptjax evaluate`, `gptjax probe`).",
        "What its training data held, bias and personal data included, is not known here.",
    ]
    return {
        "Training": f"{unknown} Add it.",
        "Evaluation": _figures({}, found),
        "Limits": "\n".join(f"- {line}" for line in lines if line),
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where the file is not there or damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _rows(facts: Mapping[str, Any]) -> str:
    return "\n".join(
        f"- {name}: {value}" for name, value in facts.items() if value not in (None, "", {}, [])
    )


# --- data and how they were cleaned


def _data(data: Mapping[str, Any], report: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    source = data.get("source") or {}
    facts = {
        "source": _named(source),
        "file or folder": source.get("path") and f"`{Path(source['path']).name}`",
        "task": _named(data.get("task") or {}) or "LanguageModel",
        "held out": f"{data.get('validation', 0.1):.0%}",
        "SHA-256 of text and settings": identity.get("data") and f"`{identity['data']}`",
        "records left out as unreadable": report.get("passed_over_records"),
    }
    for name, share in (("swap", "share"), ("noise", "words")):
        if (value := data.get(name) or {}).get(share):
            facts[f"changed by data.{name}"] = f"`{json.dumps(value, sort_keys=True)}`"
    known = _rows(facts)
    return f"{known}\n\nWho made the text, and under which licence, the run does not know: add it."


def _cleaning(data: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What the run's report says of each text that was cleaned, without the user's folders."""
    noted = report.get("cleaning")
    if noted:
        return "\n\n".join(
            f"`{Path(text).name}`:\n\n"
            + _rows({k: _short(v) for k, v in facts.items() if v and k not in ("text", "page")})
            for text, facts in noted.items()
        )
    if data.get("clean") is not None:
        return "The config asks for cleaning (`data.clean`), and the run has no report of it."
    return (
        "The run cleaned nothing: no duplicates, personal data or harmful text were looked for. If"
        " the text was cleaned before, say so here."
    )


def _short(value: Any, most: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- training


def _training(settings: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    seconds, final = report.get("seconds") or {}, report.get("final") or {}
    here = report.get("environment") or {}
    facts = {
        "parameters": report.get("parameters") and f"{report['parameters']:,}",
        "started from": settings.get("start") and f"`{settings['start']}`",
        "adapter": _named(settings.get("adapter") or {}),
        "loss": _named(settings.get("loss") or {}),
        "steps": final.get("step"),
        "positions read": report.get("tokens") and short_number(report["tokens"]),
        "seed": settings.get("seed"),
        "time": seconds.get("total") is not None and duration(seconds["total"]),
        "machine": here.get("processor"),
        "software": ", ".join(
            f"{name} {here[name]}" for name in ("gptjax", "jax", "python") if name in here
        ),
    }
    return _rows(facts | {"time": facts["time"] or None}) or "Nothing is known of it yet."


def _named(value: Any) -> str | None:
    """The class of a setting, as config.json names it."""
    if not isinstance(value, Mapping):
        return str(value) if value else None
    return value.get("kind")


# --- figures


def _evaluation(path: Path) -> Report | dict[str, Any]:
    """An evaluation, or what a probe wrote.

    Raises:
      ConfigError: it is neither.
    """
    probed = _read(path) if path.is_file() else {}
    if isinstance(probed.get("sections"), list) and "probe" in probed:
        return probed
    try:
        return read_evaluation(path)
    except ConfigError as error:
        raise ConfigError(f"{error} Files of gptjax probe --out do as well.") from None


def _figures(report: Mapping[str, Any], found: Sequence[Report | dict[str, Any]]) -> str:
    final, unit = report.get("final") or {}, report.get("unit", "token")
    names = {
        "validation_loss": f"held-out loss, nats per {unit}",
        "validation_bits_per_byte": "held-out bits per byte",
        "validation_accuracy": "held-out accuracy",
        "validation_exact_match": "held-out answers met exactly",
    }
    rows = [
        f"| {text} | {final[name]:.4g} | | |"
        for name, text in names.items()
        if isinstance(final.get(name), int | float)
    ]
    for one in found:
        rows += _task_rows(one) if isinstance(one, Report) else _probe_rows(one)
    if not rows:
        return "Nothing was measured."
    return "| figure | value | 95 % interval | n |\n|---|---|---|---|\n" + "\n".join(rows)


def _task_rows(report: Report) -> list[str]:
    return [
        _row(f"{task.name}, {one.name}{_chance(one)}", one.figure._asdict())
        for task in report.tasks
        for one in task.measures
    ]


def _chance(measure: Measure) -> str:
    return "" if measure.chance is None else f" (chance {measure.chance:.3g})"


def _probe_rows(probed: Mapping[str, Any]) -> list[str]:
    return [
        _row(f"{section['title']}: {one['name']}", one)
        for section in probed["sections"]
        for one in section.get("findings", ())
    ]


def _row(name: str, figure: Mapping[str, Any]) -> str:
    low, high = figure.get("low"), figure.get("high")
    between = "" if low is None or high is None else f"{low:.3g} … {high:.3g}"
    value = figure.get("value")
    shown = "none" if value is None else f"{value:.3g}"
    return f"| {name.replace('|', '/')} | {shown} | {between} | {figure.get('n', '')} |"


# --- limits


def _limits(
    settings: Mapping[str, Any],
    report: Mapping[str, Any],
    found: Sequence[Report | dict[str, Any]],
) -> str:
    """What was not measured, and what follows from how the run was made."""
    probes = {str(one["probe"]) for one in found if isinstance(one, dict)}
    context = (settings.get("model") or {}).get("context")
    lines = [
        "It states what is false as fluently as what is true; check what it says.",
        context and f"It was trained on rows of {context} tokens; it knows nothing before those.",
        not any(isinstance(one, Report) for one in found)
        and "Its ability was not measured on any task (`gptjax evaluate`).",
        "bias" not in probes and "Bias between groups was not measured (`gptjax probe RUN bias`).",
        "refusals" not in probes
        and "Whether it declines harmful requests, and harmless ones, was not measured"
        " (`gptjax probe RUN refusals`).",
        "memorisation" not in probes
        and "Whether it repeats its training text was not measured"
        " (`gptjax probe RUN memorisation`).",
        settings.get("start")
        and f"What `{settings['start']}` learned before, it has kept, its faults included.",
        report.get("skipped_steps")
        and f"{report['skipped_steps']} training steps were not finite and were left out.",
        "It was trained without differential privacy: text of its data may be drawn from it.",
    ]
    return "\n".join(f"- {line}" for line in lines if line)
