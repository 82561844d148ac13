"""A model card says what a run and its evaluations wrote down, and names what nobody measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluations import made_report

from gptjax.cli import main as cli
from gptjax.core.config import ConfigError
from gptjax.evaluate.card import SECTIONS, run_card, run_sections
from gptjax.evaluate.report import write_evaluation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory as training leaves it."""
    folder = tmp_path / "small"
    folder.mkdir()
    data = {
        "source": {"kind": "Text", "path": "/somewhere/private/books.txt"},
        "task": {"kind": "LanguageModel"},
        "validation": 0.25,
        "clean": None,
        "swap": {"share": 0.5, "keep": "one"},
        "noise": {"words": 0.0},
    }
    settings = {"start": "smollm2", "model": {"context": 32}, "data": data, "seed": 3}
    report = {
        "headline": "Trained 2.1k parameters.",
        "parameters": 2100,
        "final": {"step": 7, "validation_loss": 1.25},
        "unit": "pair",
        "skipped_steps": 2,
    }
    for name, content in (
        ("config", settings),
        ("report", report),
        ("identity", {"data": "ab" * 32}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def probe(name: str) -> dict:
    finding = {"name": "refused, plain", "value": 12.5, "low": 4.0, "high": 29.0, "n": 32}
    return {"probe": name, "sections": [{"title": "refusals", "findings": [finding]}]}


def test_a_card_says_what_the_run_wrote_and_what_nobody_measured(run: Path):
    card = run_card(run)
    headings = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert tuple(headings) == SECTIONS == tuple(run_sections(run))
    for told in (
        *("Trained 2.1k parameters.", "`books.txt`", "ab" * 32, "held out: 25%", "`smollm2`"),
        *("held-out loss, nats per pair | 1.25", "steps: 7", "seed: 3", "The run cleaned nothing"),
        *("changed by data.swap",),
        *("2 training steps were not finite", "refusals`", "bias`", "memorisation`"),
    ):
        assert told in card, told
    assert "/somewhere" not in card


def test_a_card_has_the_figures_of_evaluations_and_then_no_limit_that_says_otherwise(run: Path):
    probed = run.parent / "refusals.json"
    probed.write_text(json.dumps(probe("refusals")))
    write_evaluation(made_report(), run / "eval.json")
    parts = run_sections(run, [probed])
    assert "| refusals: refused, plain | 12.5 | 4 … 29 | 32 |" in parts["Evaluation"]
    (task, *_), text = made_report().tasks, parts["Evaluation"]
    assert f"| {task.name}, {task.measures[0].name}" in text
    assert "refusals`" not in parts["Limits"] and "any task" not in parts["Limits"]
    assert "bias`" in parts["Limits"]
    with pytest.raises(ConfigError, match=r"config\.json is not there|can't be read"):
        run_sections(run, [run / "config.json"])


def test_a_card_says_how_each_text_was_cleaned_but_not_where_it_lies(run: Path):
    noted = {
        f"/somewhere/private/{name}.txt": {
            "text": f"/somewhere/private/{name}.txt",
            "headline": f"{kept} of 40 records",
            "page": "/somewhere/private/cache/clean.html",
            "written sha256": "cd" * 32,
            "dropped": {"exact_duplicate": 40 - kept} if kept < 40 else {},
            "replaced": {},
        }
        for name, kept in (("books", 36), ("poems", 40))
    }
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"cleaning": noted}))
    books, poems = run_sections(run)["Cleaning"].split("`poems.txt`")
    assert books.startswith("`books.txt`") and "- headline: 36 of 40 records" in books
    assert '- dropped: {"exact_duplicate": 4}' in books and "cd" * 32 in books
    assert "40 of 40" in poems and "dropped" not in poems and "replaced" not in books
    assert "somewhere" not in run_card(run) and "clean.html" not in books


def test_the_command_writes_a_card_or_says_what_is_missing(run: Path, capsys, tmp_path: Path):
    out = tmp_path / "README.md"
    assert cli.main(["card", str(run)]) == 0
    assert cli.main(["card", str(run), "--out", str(out)]) == 0
    assert out.read_text() == capsys.readouterr().out == run_card(run)
    assert cli.main(["card", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
