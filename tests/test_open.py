"""Laws of the one door: a model is the same in whatever format it is opened from, on one device or
on a mesh."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import gptjax
from gptjax import formats, model
from gptjax.cli.convert import write_run
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, LanguageModel, MaskedLanguageModel, SequenceToSequence
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.formats import About, OpenedModel
from gptjax.model import ModelConfig, bert, llama, t5
from gptjax.runs import Run
from gptjax.runs.open import open_model
from gptjax.sharding.mesh import MeshConfig, make_mesh, param_shardings

ROOT = Path(__file__).parents[1]
SHAPE = {"context": 32, "width": 32, "num_layers": 2, "num_heads": 4, "feed_forward": 64}
CONFIG = llama(**SHAPE, vocab_size=257, num_kv_heads=2)
TOKENIZER = tokenizers.train_tokenizer(Bytes(), ())


def drawn(c: ModelConfig) -> OpenedModel:
    """A model with random parameters."""
    params = jax.tree.map(np.asarray, model.init(c, jax.random.key(0)))
    return OpenedModel(c, params, TOKENIZER, About(notes={"made": "here"}))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """One model in every format that is written."""
    folder, opened = tmp_path_factory.mktemp("written"), drawn(CONFIG)
    paths = {"run": folder / "run", "huggingface": folder / "hf", "gguf": folder / "m.gguf"}
    write_run(paths["run"], opened)
    formats.save_model(paths["huggingface"], opened)
    formats.save_model(paths["gguf"], opened)
    return paths


def assert_equal(one: OpenedModel, other: OpenedModel) -> None:
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("name", ["run", "huggingface", "gguf"])
def test_a_model_is_the_same_from_every_format(name, written):
    opened = open_model(written[name])
    assert_equal(opened, drawn(CONFIG))
    assert opened.task == LanguageModel()
    assert opened.about.notes["made"] == "here"
    text = "one, two: three"
    np.testing.assert_array_equal(opened.tokenizer.encode(text), TOKENIZER.encode(text))


@pytest.mark.parametrize("name", ["run", "huggingface", "gguf"])
def test_on_a_mesh_parameters_lie_where_their_logical_axes_say(name, written):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    opened = open_model(written[name], mesh=mesh)
    assert_equal(opened, drawn(CONFIG))
    wanted = param_shardings(mesh, model.axes(opened.config), model.shapes(opened.config))
    placed = jax.tree.map(
        lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim),
        opened.params,
        wanted,
    )
    assert all(jax.tree.leaves(placed)), placed


def test_averaged_weights_are_opened_where_the_run_kept_them(written, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(written["run"], run)
    average = jax.tree.map(lambda leaf: leaf / 2, drawn(CONFIG).params)
    averaging = Run(run)
    with averaging.lock():
        averaging.save(3, {"params": drawn(CONFIG).params, "ema": average})
    data = json.loads((run / "config.json").read_text())
    data["optim"]["ema"] = 0.9
    (run / "config.json").write_text(json.dumps(data))
    assert_equal(open_model(run), drawn(CONFIG)._replace(params=average))


def test_a_step_of_a_run_is_opened_and_another_is_refused(written):
    assert_equal(open_model(written["run"], step=0), drawn(CONFIG))
    with pytest.raises(ConfigError, match="has no step 7"):
        open_model(written["run"], step=7)
    with pytest.raises(ConfigError, match=r"not a run, so it has no step 0; omit --step"):
        open_model(written["gguf"], step=0)


@pytest.mark.parametrize("name", ["data", "optim", "schedule"])
def test_what_a_run_says_of_anything_but_its_model_is_not_needed(name, written, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(written["run"], run)
    data = config.load_config(dict, run / "config.json") | {"of another version": {"a": 1}}
    del data[name]
    (run / "config.json").write_text(json.dumps(data))
    assert_equal(open_model(run), drawn(CONFIG))


def test_a_model_without_a_task_of_its_own_has_that_of_its_shape(tmp_path):
    shape = {**SHAPE, "vocab_size": 61}
    quiet = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
    masked, answering = bert("base", **shape, **quiet), t5("small", **shape, **quiet)
    answering = dataclasses.replace(answering, encoder_layers=2, logit_scale=32**-0.5)
    for name, c, task in (
        ("bert", masked, MaskedLanguageModel()),
        ("t5", answering, SequenceToSequence(begin=0, closed=True)),
    ):
        formats.save_model(tmp_path / name, drawn(c)._replace(tokenizer=None))
        assert open_model(tmp_path / name).task == task


@dataclasses.dataclass(frozen=True)
class Mine(LanguageModel):
    """A task from outside of gptjax."""


def test_a_run_of_any_task_is_opened(tmp_path):
    write_run(tmp_path / "mine", drawn(CONFIG)._replace(task=Mine()))
    with pytest.raises(ConfigError, match="Mine"):
        gptjax.load(tmp_path / "mine")
    assert gptjax.load(tmp_path / "mine", known=(Mine,)).task == Mine()
    write_run(tmp_path / "pairs", drawn(CONFIG)._replace(task=SequenceToSequence()))
    assert gptjax.load(tmp_path / "pairs").task == SequenceToSequence()


def test_opening_a_run_imports_nothing_of_the_trainer(written):
    program = (
        "import sys; from gptjax.runs.open import open_model; open_model(sys.argv[1]);"
        " print([name for name in sys.modules if name.startswith(('gptjax.train', 'optax'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(written["run"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]"
