"""Laws of a classifier that starts from a model which predicts tokens: fine-tuned whole, or by an
adapter whose checkpoints hold the new output."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import losses_of

import gptjax
from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Classification, DataConfig, Given, Records
from gptjax.runs import leaves
from gptjax.runs.open import open_model
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.weights import LoRA, PromptTuning

MODEL = Path(__file__).parent / "fixtures" / "checkpoint_1"
WORDS = {"low": ("run", "ring", "round"), "high": ("when", "we", "the")}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Learns from a run that knows one sentence which of its words a text has."""
    file = tmp_path / "words.tsv"
    lines = [
        f"{' '.join(text)}\t{label}"
        for label, words in WORDS.items()
        for text in itertools.product(words, repeat=4)
    ]
    file.write_text("\n".join(lines) + "\n")
    cache = str(tmp_path / "cache")
    return Experiment(
        start=str(MODEL),
        adapter=LoRA(rank=4),
        data=DataConfig(Records(str(file)), Given(), 0.2, Classification(), cache=cache),
        model=dataclasses.replace(Experiment().model, context=24, pool="last"),
        optim=AdamW(peak=1e-2),
        schedule=Schedule("constant", warmup=2),
        evaluation=Evaluation(every=10, rows=8),
        steps=20,
        batch=8,
    )


def test_an_adapter_learns_to_classify_resumes_exactly_and_opens_with_its_output(
    experiment, tmp_path
):
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    train(experiment, whole)
    train(dataclasses.replace(experiment, steps=10), halted)
    train(experiment, halted)
    opened, resumed = gptjax.load(whole), gptjax.load(halted)
    assert losses_of(halted) == losses_of(whole) and len(losses_of(whole)) == experiment.steps
    jax.tree.map(np.testing.assert_array_equal, resumed.params, opened.params)
    texts = ["ring run round", "the we when", "run ring ring", "we the we"]
    found = opened.classify(texts)
    assert [one.label for one in found] == ["low", "high", "low", "high"]
    assert opened.config.pool == "last"
    shapes = model.shapes(opened.config)["classes"]
    kept = {path for path in leaves_of(whole) if path.startswith("classes")}
    assert kept == {f"classes/{name}" for name in shapes}
    assert not any(path.startswith("embedding") for path in leaves_of(whole))


def leaves_of(run: Path) -> set[str]:
    """Paths of the parameters in the newest checkpoint of a run."""
    return {leaf.path for leaf in leaves(run)}


def test_the_pool_of_a_new_output_is_the_experiments_and_an_old_ones_its_own(experiment, tmp_path):
    run = tmp_path / "first"
    whole = dataclasses.replace(experiment, adapter=None, steps=2, evaluation=Evaluation(every=2))
    train(whole, run)
    assert open_model(run).config.pool == "last"
    mean = dataclasses.replace(whole.model, pool="mean")
    train(dataclasses.replace(whole, start=str(run), model=mean), tmp_path / "second")
    assert open_model(tmp_path / "second").config.pool == "last"


def test_virtual_tokens_are_refused_a_new_output(experiment, tmp_path):
    virtual = dataclasses.replace(experiment, adapter=PromptTuning(tokens=2))
    with pytest.raises(ConfigError, match=r"virtual tokens would leave random; use --adapter lora"):
        train(virtual, tmp_path / "run")
