"""A directory that is ready to be published has a card that says what the model is, what a run
wrote down of it, and under which licence it stands; without a licence there is none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import flax_shapes
import jax
import pytest
from conftest import documents
from evaluations import made_report
from test_interop import randomly

from gptjax import formats
from gptjax.cli import main as cli
from gptjax.cli.convert import write_run
from gptjax.cli.push_ready import USES, use_of
from gptjax.data.tokenizers import tokenizer as tok
from gptjax.evaluate.report import write_evaluation
from gptjax.formats import OpenedModel
from gptjax.model import gpt2

READY = ("--push-ready", "--license", "apache-2.0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation beside it."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    letters = tok.train_tokenizer(tok.Characters(), documents(20))
    config = gpt2(**flax_shapes.SMALL | {"vocab_size": letters.vocab_size})
    write_run(folder, OpenedModel(config, randomly(config), letters))
    write_evaluation(made_report(), folder / "eval.json")
    return folder


def headings(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.MULTILINE)


def test_the_card_of_a_run_says_what_it_is_and_how_it_was_made(run: Path, tmp_path: Path, capsys):
    out = tmp_path / "mine"
    assert cli.main(["convert", str(run), str(out), *READY]) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    assert metadata.splitlines() == [
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *("tags:", "- gptjax", "- gpt2"),
    ]
    own = ["Data", "Cleaning", "Training", "Evaluation", "Limits"]
    assert headings(body) == ["Model", "Use", *own, "Conversion", "License"]
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    opened = formats.load_model(out)
    size = sum(leaf.size for leaf in jax.tree.leaves(opened.params))
    task = made_report().tasks[0]
    for told in (
        *("`GPT2LMHeadModel`", f"parameters: {size:,}", digest, "AutoModelForCausalLM"),
        *(f"| {task.name}, {task.measures[0].name}", "mean KL divergence", "context: 32 tokens"),
    ):
        assert told in body, told
    assert str(tmp_path) not in card and str(run.parent) not in card, "no path of this machine"
    settings = json.loads((out / "generation_config.json").read_text())
    assert {"bos_token_id", "eos_token_id"} <= settings.keys()


@pytest.mark.parametrize(
    ("name", "use"),
    [("marian", "text2text-generation"), ("roberta", "fill-mask")],
)
def test_the_card_of_a_published_model_does_not_invent_its_training(
    name: str, use: str, tmp_path: Path
):
    family, config = flax_shapes.MODELS[name]
    about = formats.About(family=family, pad=1)
    formats.save_model(tmp_path / "theirs", OpenedModel(config, randomly(config), None, about))
    assert cli.main(["convert", str(tmp_path / "theirs"), str(tmp_path / "mine"), *READY]) == 0
    card = (tmp_path / "mine" / "README.md").read_text()
    assert f"pipeline_tag: {use}\n" in card and USES[use][0] in card
    own = ["Training", "Evaluation", "Limits"]
    assert headings(card) == ["Model", "Use", *own, "Conversion", "License"]
    assert "its files do not say" in card and "Nothing was measured" in card
    bare = dataclasses.replace(config, head_transform=False)
    assert use_of(bare) == ("feature-extraction" if name == "roberta" else use)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--push-ready",), "--license apache-2.0"),
        (("--license", "mit"), "add --push-ready"),
        (("--push-ready", "--license", "My License!"), "short name"),
        (("--push-ready", "--license", "mit", "--to", "run"), "omit --push-ready"),
    ],
)
def test_without_a_licence_there_is_no_card(flags, reason, run: Path, tmp_path: Path, capsys):
    assert cli.main(["convert", str(run), str(tmp_path / "mine"), *flags]) == 2
    message = capsys.readouterr().err
    assert reason in message and not (tmp_path / "mine").exists()
