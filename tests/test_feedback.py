"""Laws of judgements and scores: what a person says of answers is kept and can be learned, and a
reward model scores as it was trained."""

from __future__ import annotations

import dataclasses
import io
import json
import sys

import jax
import numpy as np
import pytest
from test_chat_command import GREEDY, TINY
from variants import PLAIN

from gptjax import model
from gptjax.api import Model
from gptjax.cli import chat as command
from gptjax.cli import feedback
from gptjax.cli import main as cli
from gptjax.cli.chat import ChatOptions, run_chat
from gptjax.cli.score import score_file
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Comparisons, DataConfig, Feedback, Preferences, batches, prepare
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.chat import Message
from gptjax.losses.reward import pair_scores
from gptjax.train import start as starts
from gptjax.train.experiment import Experiment

TALK = [Message("user", "ab"), Message("assistant", "xyz")]


def test_judgements_of_a_conversation_are_kept_and_both_tasks_read_them(
    tmp_path, capsys, monkeypatch
):
    file = tmp_path / "judged.jsonl"
    file.write_text('{"torn')  # by a kill
    monkeypatch.setattr(command, "load", lambda *_, **__: TINY)
    lines = "/bad\nab\n/bad\n/better c d.\n/goood\n/good\n/better\n/bad x\nef\n/bad\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    run_chat("run", ChatOptions(feedback=str(file)), GREEDY)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    for said, words in zip(
        errors,
        ("there is none yet", "/good, /bad or /better", "was cut", "needs the better", "alone"),
        strict=True,
    ):
        assert words in said
    torn, *kept = file.read_text().splitlines()
    assert torn == '{"torn' and file.read_text().endswith("\n")
    bad, better, later = map(json.loads, kept)
    assert bad["label"] is False and bad["prompt"] == [{"role": "user", "content": "ab"}]
    assert better["rejected"] == bad["completion"] and better["chosen"][0]["content"] == "c d."
    assert [m["content"] for m in later["prompt"]] == ["ab", "c d.", "ef"]
    file.write_text("".join(line + "\n" for line in kept))
    source = Comparisons(str(file))
    for task, only, count in (
        (Feedback("zephyr"), "all", 4),
        (Preferences("zephyr"), "pairs", 1),
    ):
        chosen = dataclasses.replace(source, only=only)
        data = DataConfig(chosen, Bytes(), 0, task, cache=str(tmp_path / "cache"))
        assert prepare(data).train.header.num_examples == count
    with pytest.raises(ConfigError, match="only pairs"):
        prepare(DataConfig(source=Comparisons(str(file)), tokenizer=Bytes(), task=Preferences()))


def test_a_whole_answer_can_be_good_and_a_line_without_a_file_is_refused(tmp_path):
    good = feedback.judged("/good", TALK, cut=False)
    assert good.record["label"] is True and good.messages == TALK
    assert good.record["completion"] == [{"role": "assistant", "content": "xyz"}]
    with pytest.raises(ConfigError, match="the answer that the model gave"):
        feedback.judged("/better xyz", TALK, cut=False)
    with pytest.raises(ConfigError, match="feedback FILE"):
        feedback.is_judgement("/good", keeping=False)
    assert not feedback.is_judgement("/etc is a folder", keeping=False)
    assert not feedback.is_judgement(" /good", keeping=True)
    with pytest.raises(ConfigError, match="can't be written"):
        feedback.require_writable(tmp_path / "absent" / "file.jsonl")


# --- scores


def scorer(context: int = 48) -> Model:
    tokenizer = tokenizers.train_tokenizer(Bytes(), [])
    config = dataclasses.replace(
        PLAIN, vocab_size=tokenizer.vocab_size, classes=1, num_layers=1, context=context
    )
    params = model.init(config, jax.random.key(0))
    return Model(config, params, tokenizer, task=Preferences(score=True))


def test_a_pair_has_the_scores_that_training_gave_it(tmp_path):
    pairs = [{"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": f"{n}!!"} for n in range(12)]
    file = tmp_path / "pairs.jsonl"
    lines = [*pairs, {"prompt": "a", "completion": "b", "label": 1}, {"text": "c" * 99}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scoring, out = scorer(), io.StringIO()
    says = score_file(scoring, Comparisons(str(file)), 8, out)
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    assert found[12]["label"] is True and np.isfinite(found[12]["score"])
    assert found[13] == {"record": 14, "score": None} and "1 are longer than 48" in says

    file.write_text("".join(json.dumps(line) + "\n" for line in pairs))
    task = Preferences(score=True)
    data = prepare(DataConfig(Comparisons(str(file)), Bytes(), 0, task, cache=str(tmp_path)))
    plan = batches.plan(data.train, length=48, rows=8, seed=None, task=data.task)
    batch = batches.batch(data.train, plan, 0)
    trained = pair_scores(scoring.config, scoring.params, batch, None)
    real = batch.columns["pairs"] > 0
    for name, scores in trained._asdict().items():
        mine = [line[name] for line in found[:12]]
        np.testing.assert_allclose(np.asarray(scores)[real], mine, rtol=1e-5, atol=1e-6)
    leads = np.mean([line["chosen"] > line["rejected"] for line in found[:12]])
    assert f"leads in {leads:.1%}" in says and 0 < leads < 1


def test_misuses_of_score_end_in_one_line(tmp_path, capsys, monkeypatch):
    file, scoring = tmp_path / "pairs.jsonl", scorer()
    file.write_text('{"prompt": "a", "chosen": "b"}\n')
    talks = scoring._replace(config=dataclasses.replace(scoring.config, classes=None))
    for opened, args, words in (
        (scoring, [], "the first argument is missing"),
        (scoring, ["runs/x"], "the first argument is missing"),
        (scoring, ["runs/x", str(tmp_path / "absent.jsonl")], "is not there"),
        (scoring, ["runs/x", str(file)], "pairs.jsonl:1 has 'prompt', 'chosen'"),
        (scoring, ["runs/x", str(file), "--batch", "0"], "at least 1"),
        (scoring, ["runs/x", str(file), "--out", str(tmp_path)], "can't be written"),
        (talks, ["runs/x", str(file)], "gives no score"),
    ):
        monkeypatch.setattr("gptjax.api.load", lambda path, step, opened=opened: opened)
        assert cli.main(["score", *args]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_model_that_writes_gets_a_fresh_score_for_its_output():
    config = dataclasses.replace(PLAIN, tied=False, num_layers=1)
    begun = starts.Start(config, model.init(config, jax.random.key(1)))
    data = DataConfig(Comparisons("x.jsonl"), Bytes(), task=Preferences(score=True))
    from gptjax.losses import BradleyTerry

    experiment = Experiment(
        start="runs/a",
        model=dataclasses.replace(config, classes=1),
        data=data,
        loss=BradleyTerry(),
    )
    params = starts.with_classes(experiment, begun).params
    shapes = model.shapes(experiment.model)
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    assert params["embedding"] is begun.params["embedding"]
    assert float(abs(params["classes"]["kernel"]).sum()) > 0
