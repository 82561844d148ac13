"""Laws of the `chat` command: what is remembered, what is read again, what gives way, and how a
person talks to it."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_chat import made
from variants import ROPE

from gptjax import model
from gptjax.api import Model
from gptjax.cli import chat as command
from gptjax.cli import main as cli
from gptjax.cli.chat import ChatOptions, answer_message, run_chat, start_talk
from gptjax.core.config import ConfigError
from gptjax.data import Characters
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.data.tokenizers.chat import Message, choose_template, render
from gptjax.generate import GenerateConfig, Prefix

TOKENIZER = tokenizers.train_tokenizer(
    Characters(end_of_document=False), ["abcdefghijklmnopqrstuvwxyz .:\nUA"]
)
CONFIG = dataclasses.replace(ROPE, vocab_size=TOKENIZER.vocab_size, num_layers=1, context=128)


def weights(config: model.ModelConfig):
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * draw.standard_normal(leaf.shape), jnp.float32), tree
    )


TINY = Model(CONFIG, weights(CONFIG), TOKENIZER)
GREEDY = GenerateConfig(new_tokens=6, temperature=0.0)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    """No run is read: any path is the same tiny model."""
    monkeypatch.setattr(command, "load", lambda path, step=None, *rest, **options: TINY)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(
    capsys, monkeypatch, lines: str, settings: GenerateConfig = GREEDY, **options
) -> tuple[str, list[str]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    run_chat("run", ChatOptions(**options), settings)
    out, err = capsys.readouterr()
    return out, err.splitlines()


def alone(*messages: tuple[str, str], new_tokens: int = 6) -> str:
    """The answer to a conversation that is read at once."""
    talk = start_talk(TINY)._replace(messages=[Message(*m) for m in messages[:-1]])
    return (
        answer_message(
            TINY,
            talk,
            messages[-1][1],
            dataclasses.replace(GREEDY, new_tokens=new_tokens),
            lambda piece: None,
        )
        .messages[-1]
        .text
    )


def test_each_answer_is_that_to_the_whole_conversation_and_only_what_is_new_is_read(monkeypatch):
    read = []
    monkeypatch.setattr(
        Model,
        "prefix",
        lambda self, ids, before=None, whole=Model.prefix: (
            read.append(len(ids)) or whole(self, ids, before)
        ),
    )
    talk = start_talk(TINY, None, "be brief")
    for text in ("ab", "cd.", "e"):
        talk = answer_message(TINY, talk, text, GREEDY, lambda piece: None)
        assert talk.messages[-1] == Message("assistant", alone(*talk.messages[:-1]))
    assert talk.messages[-1].text == TINY.chat(talk.messages[:-1], new_tokens=6, temperature=0)
    whole = len(render(talk.template, talk.messages[:-1], TOKENIZER))
    assert sum(read[::2]) == whole == len(talk.read.ids) and len(read) == 6, (
        "every second is the whole, read at once"
    )


def test_lines_that_are_piped_in_are_answered_one_by_one(capsys, monkeypatch):
    out, err = outputs(
        capsys,
        monkeypatch,
        "ab\n\n--new-tokens 3 --seed 1\ncd\\\nef\n--top-p 0\n--beams 2\n--tempature"
        " 1\n!\n--forget\nab\n--system a.\nab\n--template chatml\nab",
    )
    first = alone(("user", "ab"))
    second = alone(("user", "ab"), ("assistant", first), ("user", "cd\nef"), new_tokens=3)
    third, fourth = (
        alone(("user", "ab"), new_tokens=3),
        alone(("system", "a."), ("user", "ab"), new_tokens=3),
    )
    last = alone(
        ("system", "a."), ("user", "ab"), ("assistant", fourth), ("user", "ab"), new_tokens=3
    )  # after a template that can't be used
    assert lines_of(out) == lines_of(
        f"{first}\nnew_tokens: 6 → 3\nseed: 0 → 1\n{second}\n{third}\n{fourth}\n{last}\n"
    )
    assert sum("cut after" in line for line in err) == 5
    errors = [line.partition("error: ")[2] for line in err if "error: " in line]
    words = (
        "top_p is 0.0",
        "can't be streamed",
        "tempature",
        "character '!'",
        "<|im_start|>, which this tokenizer lacks",
    )
    assert [word in line for word, line in zip(words, errors, strict=True)] == [True] * 5
    assert sum("a new conversation" in line for line in err) == 2


def lines_of(out: str) -> list[str]:
    """Lines without the white space around them, which answers lose when they are remembered, not
    when they are shown."""
    return [line.strip() for line in out.splitlines() if line.strip()]


def test_the_oldest_turns_give_way_and_a_note_says_so(capsys, monkeypatch):
    lines = "".join(f"{c * 30}\n" for c in "abcd")
    _, err = outputs(capsys, monkeypatch, lines, system="be brief")
    assert any(
        "the 2 oldest messages are forgotten: the context is 128 tokens" in line for line in err
    )
    _, err = outputs(capsys, monkeypatch, f"{'a' * 200}\nab\n")
    assert (
        "takes 217 tokens" in err[0]
        and "--context" in err[0]
        and len(err) == 2
        and "cut after 6 tokens" in err[1]
    )
    _, err = outputs(capsys, monkeypatch, f"{'a' * 40}\nab\n", context=40)
    assert "room for 34" in err[0], "a shorter context counts"


def test_ctrl_c_ends_an_answer_and_its_beginning_stays(monkeypatch):
    def interrupted(*args, **kwargs):
        yield " zz"
        yield "z "
        raise KeyboardInterrupt

    shown = []
    with monkeypatch.context() as patch:
        patch.setattr(Model, "stream", interrupted)
        talk = answer_message(TINY, start_talk(TINY), "ab", GREEDY, shown.append)
    assert (
        talk.messages == [Message("user", "ab"), Message("assistant", "zzz")]
        and "".join(shown) == "zzz "
    )
    assert answer_message(TINY, talk, "cd", GREEDY, shown.append).messages[-1].text == alone(
        *talk.messages, ("user", "cd")
    )
    with monkeypatch.context() as patch:
        patch.setattr(Model, "stream", lambda *args, **kwargs: iter(()))
        assert answer_message(TINY, start_talk(TINY), "ab", GREEDY, shown.append).messages == [], (
            "nothing was answered, so nothing was asked"
        )


def test_a_models_own_end_of_turn_ends_an_answer(monkeypatch):
    asked = []
    monkeypatch.setattr(Model, "prefix", lambda self, ids, before=None: Prefix(list(ids), None))
    monkeypatch.setattr(
        Model,
        "stream",
        lambda self, prompt, settings, **more: asked.append(settings) or iter(["Paris."]),
    )
    tokenizer = made("chatml")
    talk = start_talk(TINY._replace(tokenizer=tokenizer), system="Be brief.")
    talk = answer_message(
        TINY._replace(tokenizer=tokenizer),
        talk,
        "<|im_end|>",
        dataclasses.replace(GREEDY, stop=("x",)),
        lambda piece: None,
    )
    assert (
        talk.template.name == "own"
        and asked[0].stop_ids == (tokenizer.controls["<|im_end|>"].id,)
        and asked[0].stop == ("x",)
    )
    assert talk.messages == [
        Message("system", "Be brief."),
        Message("user", "<|im_end|>"),
        Message("assistant", "Paris."),
    ]
    assert talk.read.ids == render(
        choose_template("chatml", tokenizer), talk.messages[:2], tokenizer
    )


def test_what_can_not_talk_is_refused_in_one_line(capsys):
    for flags, words in (
        ("--beams 2", "omit beams"),
        ("--context 1", "at least 16"),
        ("--template no", "is not a template"),
        ("--tempature 1", "--temperature"),
    ):
        assert cli.main(["chat", "run", *flags.split()]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["chat"]) == 2
    with pytest.raises(ConfigError, match="is an encoder"):
        start_talk(TINY._replace(config=dataclasses.replace(CONFIG, causal=False)))


def test_a_schema_that_cannot_be_used_is_refused_once_and_changes_nothing(capsys, monkeypatch):
    out, err = outputs(capsys, monkeypatch, '--schema {"type":"boolean"}\nab\n--regex (\nab\n')
    errors = [line for line in err if line.startswith("error: ")]
    assert len(errors) == 2 and "single quotes" in errors[0]
    assert len(out.splitlines()) == 2 and "schema" not in out, "both messages are answered"
