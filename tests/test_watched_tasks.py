"""Laws of tasks that a run answers while it trains: the run does not notice, a resumed run logs the
same figures, which are those of `gptjax evaluate`, and what can't be answered is refused before the
first step."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
from pathlib import Path

import jax
import pytest
from runs import assert_same_run, lines_of

import gptjax
from gptjax import model
from gptjax.core import config, processes, user_config
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, Classification, DataConfig, LanguageModel, Records
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.evaluate.counting import items_of
from gptjax.evaluate.measures import measure
from gptjax.evaluate.respond import respond
from gptjax.evaluate.watched import watch_tasks
from gptjax.observe import charts
from gptjax.observe.log import history, read_metrics
from gptjax.observe.task_curves import task_charts
from gptjax.train import watched
from gptjax.train.experiment import Evaluation, Experiment, WatchedTasks
from gptjax.train.loop import train

RECORDS = {
    "sense": [
        {"query": f"The {noun}", "choices": ["is here", "eh si"], "gold": n % 2}
        for n, noun in enumerate(("cat", "dog", "sun", "sea", "king", "day"))
    ],
    "prose": [{"text": f"The {n} cats sat on the mat."} for n in range(6)],
    "order": [{"sentence_good": f"I saw {n}.", "sentence_bad": f"saw I {n}."} for n in range(6)],
    "write": [{"question": f"What is {n}?", "answer": str(n)} for n in range(3)],
}
NAMES = ("sense", "prose", "order")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a file for each task."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, records in RECORDS.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def watching(experiment: Experiment, folder: Path, *names: str, **more) -> Experiment:
    """The experiment with tasks."""
    tasks = WatchedTasks(tuple(str(folder / f"{n}.jsonl") for n in names or NAMES), **more)
    evaluation = dataclasses.replace(experiment.evaluation, tasks=tasks)
    return dataclasses.replace(experiment, evaluation=evaluation)


@pytest.fixture(scope="module")
def averaging(tiny_experiment) -> Experiment:
    """A run that keeps averaged weights beside the latest ones."""
    optim = dataclasses.replace(tiny_experiment.optim, ema=0.9)
    return dataclasses.replace(tiny_experiment, optim=optim)


@pytest.fixture(scope="module")
def runs(averaging, folder, tmp_path_factory) -> dict[str, Path]:
    """A run that watches three tasks, and the same run that does not."""
    home = tmp_path_factory.mktemp("runs")
    train(averaging, home / "plain")
    train(watching(averaging, folder), home / "watched")
    return {"plain": home / "plain", "watched": home / "watched"}


def figures_of(run: Path) -> dict[int, dict[str, float]]:
    """Step → figures of tasks."""
    found = {
        line["step"]: {name: v for name, v in line.items() if name.startswith("tasks/")}
        for line in read_metrics(run)
    }
    return {step: figures for step, figures in found.items() if figures}


# --- the run does not notice


def test_a_run_that_watches_tasks_ends_in_the_same_bits_as_one_that_does_not(runs):
    assert_same_run(runs["watched"], runs["plain"], 30)
    for one, other in zip(lines_of(runs["watched"]), lines_of(runs["plain"]), strict=True):
        for name in ("loss", "validation_loss", "validation_bits_per_byte", "gradient_norm"):
            assert one.get(name) == other.get(name), (one["step"], name)


def test_each_evaluation_logs_every_task_with_its_interval_and_chance(runs):
    found = figures_of(runs["watched"])
    assert list(found) == [10, 20, 30] and not figures_of(runs["plain"])
    for figures in found.values():
        assert {name.split("/")[1] for name in figures} == {*NAMES}
        for name, count in (("sense", 6), ("order", 6)):
            acc = figures[f"tasks/{name}/acc"]
            assert acc * count == round(acc * count)
            assert figures[f"tasks/{name}/low"] <= acc <= figures[f"tasks/{name}/high"]
            assert figures[f"tasks/{name}/chance"] == 0.5
        assert figures["tasks/sense/majority"] == 0.5
    assert len({json.dumps(figures) for figures in found.values()}) > 1, "the weights changed"
    said = (runs["watched"] / "log.txt").read_text()
    assert re.search(r"step 10: sense \d\.\d{3} acc, \d\.\d{3} to \d\.\d{3} \(chance 0\.500", said)


def answered(run: Path, experiment: Experiment, *, live: bool) -> dict[str, float]:
    """Headline figures of the last checkpoint, answered as `gptjax evaluate` does."""
    opened = gptjax.load(run, live=live)
    made = watch_tasks(
        experiment.evaluation.tasks, opened.config, opened.tokenizer, task=opened.task
    )
    found = {}
    for plan, asked in made.tasks:
        responses = respond(opened, [request for one in asked for request in one.requests])
        first = measure(plan.task, plan.items, items_of(plan.task, asked, responses)).measures[0]
        found[f"tasks/{plan.task.name}/{first.name}"] = first.figure.value
    return found


def test_the_figures_are_those_of_the_checkpoint_with_averaged_weights(runs, averaging, folder):
    experiment = watching(averaging, folder)
    logged = figures_of(runs["watched"])[30]
    found = answered(runs["watched"], experiment, live=False)
    assert len(found) == 3 and found == {name: logged[name] for name in found}
    live = answered(runs["watched"], experiment, live=True)
    assert live["tasks/prose/bits_per_byte"] != found["tasks/prose/bits_per_byte"]


# --- interrupted and resumed


def test_a_run_that_is_interrupted_and_resumed_logs_the_same_figures(
    averaging, folder, runs, tmp_path, monkeypatch
):
    """It is interrupted while a task is answered, which the next start makes up for."""
    experiment = watching(averaging, folder)
    opened = watched.tasks_of

    class Interrupted:
        def figures(self, params, stop):
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop():
                pass

    monkeypatch.setattr(watched, "tasks_of", lambda *given: Interrupted())
    train(experiment, tmp_path / "run")
    assert figures_of(tmp_path / "run") == {} and len(lines_of(tmp_path / "run")) == 10
    assert "validation_loss" not in lines_of(tmp_path / "run")[-1]
    monkeypatch.setattr(watched, "tasks_of", opened)
    train(dataclasses.replace(experiment, steps=15), tmp_path / "run")
    train(experiment, tmp_path / "run")
    found, wanted = figures_of(tmp_path / "run"), figures_of(runs["watched"])
    assert list(found) == [10, 15, 20, 30]
    assert {step: found[step] for step in wanted} == wanted
    assert_same_run(tmp_path / "run", runs["plain"], 30)


def test_tasks_may_be_added_on_a_resume_and_need_no_held_out_text(
    tiny_experiment, folder, tmp_path, monkeypatch
):
    """Those that fail cost their figures, and not the run."""

    class Broken:
        def figures(self, params, stop):
            raise ConfigError("the model gives NaN.")

    data = dataclasses.replace(tiny_experiment.data, validation=0.0)
    experiment = dataclasses.replace(tiny_experiment, data=data)
    with monkeypatch.context() as patch:
        patch.setattr(watched, "tasks_of", lambda *given: Broken())
        train(dataclasses.replace(experiment, steps=10), tmp_path / "run")
    assert "tasks are not answered: the model gives NaN" in (tmp_path / "run/log.txt").read_text()
    train(watching(experiment, folder, "sense", every=20), tmp_path / "run")
    assert list(figures_of(tmp_path / "run")) == [20, 30]
    assert history(tmp_path / "run", 20)[1] and not history(tmp_path / "run", 10)[1]
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["final"]["tasks/sense/acc"] == figures_of(tmp_path / "run")[30]["tasks/sense/acc"]


def test_answers_end_when_the_run_is_told_to_stop(tiny_experiment, folder):
    config = dataclasses.replace(tiny_experiment.model, vocab_size=257)
    tasks = watching(tiny_experiment, folder, "sense").evaluation.tasks
    made = watch_tasks(tasks, config, train_tokenizer(Bytes(), []), task=LanguageModel())
    params = model.init(config, jax.random.key(0))
    assert made.figures(params, lambda: False).keys() >= {"tasks/sense/acc"}
    assert made.figures(params, lambda: True) is None


# --- refusals


def refused(experiment: Experiment, path: Path) -> str:
    """The message with which a run is refused, before it has done anything."""
    with pytest.raises(ConfigError) as error:
        train(experiment, path)
    assert not [one for one in path.rglob("*") if one.is_file() and one.name != "lock"]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cant_be_answered_is_refused_before_the_first_step(
    tiny_experiment, folder, tmp_path, monkeypatch
):
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"query": "a", "choices": ["b" * 40, "c"], "gold": 0}) + "\n"
    )
    (tmp_path / "write.jsonl").write_text((folder / "write.jsonl").read_text())
    (tmp_path / "broken.jsonl").write_text('{"query": "a"}\n')
    path = tmp_path / "run"
    for name, words in (
        ("nowhere", "nowhere.jsonl is not there"),
        ("broken", "broken.jsonl:1 has the fields query"),
        ("long", "has 41 tokens and the context of the model is 32"),
        ("write", "an answer of 32 tokens leaves no room for a question"),
    ):
        assert words in refused(watching(tiny_experiment, tmp_path, name), path)
    said = refused(watching(tiny_experiment, folder, "sense", template="own"), path)
    assert "no chat template of its own" in said
    unknown = WatchedTasks(("arc_eezy",))
    evaluation = dataclasses.replace(tiny_experiment.evaluation, tasks=unknown)
    said = refused(dataclasses.replace(tiny_experiment, evaluation=evaluation), path)
    assert "Did you mean 'arc_easy'?" in said
    monkeypatch.setattr(processes, "several", lambda: True)
    with pytest.raises(ConfigError, match="by a run in one process"):
        watched.tasks_of(watching(tiny_experiment, folder), None, None)


def test_a_model_without_next_tokens_is_refused(tiny_experiment, folder, tmp_path):
    records = tmp_path / "records.jsonl"
    lines = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(40)]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        source=Records(str(records), "text", "label"),
        tokenizer=Characters(),
        task=Classification(),
    )
    base = dataclasses.replace(tiny_experiment, data=data)
    said = refused(watching(base, folder, "sense"), tmp_path / "run")
    assert "does not predict the next token" in said


def test_the_settings_of_tasks_are_checked():
    with pytest.raises(ConfigError, match=r"no multiple of evaluation.every, 10; use one .* 20"):
        Evaluation(every=10, tasks=WatchedTasks(every=15))
    with pytest.raises(ConfigError, match="at least 1 item"):
        WatchedTasks(limit=0)
    old = {"every": 5}
    assert config.from_dict(Evaluation, old) == Evaluation(every=5)
    assert "tasks" not in config.stable_dict(Evaluation(every=5))


def test_files_of_tasks_are_found_beside_the_config(folder, tmp_path):
    tasks = WatchedTasks(("sense.jsonl", "arc_easy"), folder="data")
    (folder / "data").mkdir(exist_ok=True)
    found = user_config.relocated(Evaluation(tasks=tasks), [folder]).tasks
    assert found.files == (str(folder / "sense.jsonl"), "arc_easy")
    assert found.folder == str(folder / "data")


# --- what people see


def test_the_report_draws_each_task_with_its_interval(runs):
    page = (runs["watched"] / "report.html").read_text()
    section = page.split("<h2>Tasks, answered while training")[1].split("</section>")[0]
    for title in ("sense, acc", "prose, bits_per_byte", "order, acc"):
        assert section.count(f"<figcaption>{title}</figcaption>") == 1
    assert section.count('class="band') == 3 and "chance 0.50" in section
    assert "tasks/" not in page.split("<h2>Config")[0].replace(section, "").split("Figures")[0]
    assert "Tasks, answered" not in (runs["plain"] / "report.html").read_text()


def test_a_band_lies_between_its_ends():
    curve = charts.Curve("a", [(0, 0.5), (10, 0.5)], "main", band=[(0, 0.4, 0.6), (10, 0.3, 0.9)])
    svg = charts.chart([curve], title="a", size=(400, 200))
    path = re.search(r'class="band main" d="M([^Z]*)Z"', svg)[1]
    ys = [float(pair.split()[1]) for pair in path.split("L")]
    line = float(re.search(r'class="main" d="M[\d.]+ ([\d.]+)', svg)[1])
    below, above = [y - line for y in ys[:2]], [line - y for y in ys[2:]]
    assert below[1] == pytest.approx(2 * below[0], abs=0.11)
    assert above[0] == pytest.approx(4 * above[1], abs=0.21) and above[1] > 5
    alone = {"tasks/<a>/acc": [(5, 0.5)], "tasks/<a>/low": [(5, 0.4)], "tasks/<a>/high": [(5, 0.6)]}
    drawn = task_charts(alone)
    assert 'class="whisker' in drawn and "&lt;a&gt;, acc" in drawn and "<a>" not in drawn


def test_tensorboard_has_the_figures(runs):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(runs["watched"] / "tensorboard"))
    events.Reload()
    logged = figures_of(runs["watched"])
    for name in ("tasks/sense/acc", "tasks/sense/low", "tasks/order/high"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == {s: pytest.approx(f[name]) for s, f in logged.items()}
