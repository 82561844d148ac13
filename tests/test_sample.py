"""Laws of the `sample` command: what it prints, what it writes to files and goes on with, and how a
person talks to it."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import ROPE

from gptjax import model
from gptjax.api import Model
from gptjax.cli import main as cli
from gptjax.cli import sample
from gptjax.cli.sample import SampleOptions, run_sample
from gptjax.core.config import ConfigError
from gptjax.data import Characters
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import GenerateConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = tokenizers.train_tokenizer(Characters(end_of_document=False), [LETTERS])
CONFIG = dataclasses.replace(ROPE, vocab_size=TOKENIZER.vocab_size, num_layers=1)


def weights(seed: int):
    tree = jax.eval_shape(lambda: model.init(CONFIG, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * draw.standard_normal(leaf.shape), jnp.float32), tree
    )


TINY = Model(CONFIG, weights(0), TOKENIZER)
PLAIN = GenerateConfig(new_tokens=6)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    """No run is read: any path is the same tiny model, but for `other`."""
    monkeypatch.setattr(
        sample,
        "load",
        lambda path, step=None, *rest, **options: (
            TINY._replace(params=weights(1)) if str(path) == "other" else TINY
        ),
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, settings: GenerateConfig = PLAIN, path: str = "run", **options) -> str:
    run_sample(Path(path), SampleOptions(**options), settings)
    return capsys.readouterr().out


# --- the terminal ---


def test_one_prompt_is_streamed_and_several_stand_apart(capsys):
    text = TINY.complete(["ab"], PLAIN)[0].text
    assert len(text) == 6 and said(capsys, prompt=("ab",)) == f"ab{text}\n"
    assert said(capsys, prompt=("ab", "ab")) == f"ab{text}\n{'─' * 40}\n" * 2


def test_a_prompt_is_not_printed_before_it_is_checked(capsys):
    for options, words in (
        ({"prompt": ("x" * 40,)}, "a prompt has 40 tokens"),
        ({"prompt": ("x", "x" * 40)}, "a prompt has 40 tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            said(capsys, **options)
        assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="top_k is 999"):
        said(capsys, GenerateConfig(top_k=999), prompt=("x",))
    assert capsys.readouterr().out == ""


def test_json_says_all_that_was_asked_for(capsys):
    lines = said(
        capsys,
        GenerateConfig(new_tokens=4, num_samples=2, top_logprobs=2, prompt_logprobs=True),
        prompt=("ab",),
        json=True,
    ).splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 2
    for one in found:
        assert set(one) == {
            "prompt",
            "text",
            "ids",
            "logprobs",
            "reason",
            "alternatives",
            "prompt_logprobs",
        }
        assert len(one["prompt_logprobs"]) == 1 and all(
            len(place) == 2 for place in one["alternatives"]
        )


@pytest.mark.slow
def test_json_of_beams_has_their_score(capsys):
    (beam,) = said(
        capsys, GenerateConfig(new_tokens=4, beams=2), prompt=("ab",), json=True
    ).splitlines()
    assert set(json.loads(beam)) == {"prompt", "text", "ids", "logprobs", "reason", "score"}


def test_progress_says_tokens_and_the_time_to_the_first(capsys):
    run_sample(Path("run"), SampleOptions(prompt=("ab",), progress=True), PLAIN)
    progress = capsys.readouterr().err
    assert (
        progress.startswith("6 tokens in ")
        and ", the first after " in progress
        and progress.endswith(" tokens/s\n")
    )
    run_sample(Path("run"), SampleOptions(prompt=("ab", "cd"), progress=True), PLAIN)
    assert capsys.readouterr().err.startswith("12 tokens in ")
    run_sample(Path("run"), SampleOptions(prompt=("ab",)), PLAIN)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_prefix_and_a_draft_change_no_text(capsys):
    greedy = GenerateConfig(new_tokens=6, temperature=0)
    whole = said(capsys, greedy, prompt=("abcd",))
    assert "ab" + said(capsys, greedy, prompt=("cd",), prefix="ab") == whole
    assert said(capsys, greedy, prompt=("abcd",), draft="other") == whole


# --- prompts ---


def test_prompts_come_from_a_file_or_from_standard_input(capsys, monkeypatch, home):
    (home / "p.txt").write_text("ab\n\ncd")
    apart = f"\n{'─' * 40}\n"
    wanted = "".join(one.prompt + one.text + apart for one in TINY.complete(["ab", "cd"], PLAIN))
    assert said(capsys, prompt_file="p.txt") == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\ncd\n")))
    assert said(capsys, prompt_file="-") == wanted


def test_a_line_of_json_has_settings_of_its_own(capsys, home):
    (home / "p.jsonl").write_text(
        '{"prompt": "ab", "new_tokens": 3}\n{"prompt": "ab", "seed": 7}\n{"prompt": "ab"}\n'
    )
    found = [
        json.loads(line) for line in said(capsys, prompt_file="p.jsonl", json=True).splitlines()
    ]
    alone = [
        TINY.complete(["ab"], new_tokens=n, seed=s)[0].ids for n, s in ((3, 0), (6, 7), (6, 0))
    ]
    assert [one["ids"] for one in found] == alone


def test_one_stop_text_of_a_line_needs_no_list(capsys, home):
    (whole,) = TINY.complete(["ab"], PLAIN)
    line = {"prompt": "ab", "stop": whole.text[3]}
    (home / "p.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = said(capsys, prompt_file="p.jsonl", json=True).splitlines()
    assert json.loads(found)["text"] == whole.text.split(whole.text[3])[0]


BAD = {
    "no JSON": ('{"prompt": ', "p.jsonl:1 is not JSON"),
    "no prompt": ('{"text": "x"}', "p.jsonl:1 has no text in 'prompt'"),
    "a wrong name": (
        '{"prompt": "x", "top_q": 1}',
        "p.jsonl:1: top_q is not a setting of GenerateConfig. Did you mean 'top_p'",
    ),
    "a schema for a tokenizer without an end": (
        '{"prompt": "x", "schema": {"type": "text"}}',
        "an answer under a schema ends with the end-of-document id, which this tokenizer lacks",
    ),
    "a name of another program": (
        '{"prompt": "x", "max_tokens": 5}',
        "max_tokens is not a setting of GenerateConfig. Did you mean 'new_tokens'",
    ),
    "a wrong value": ('{"prompt": "x", "top_p": 0}', "p.jsonl:1: top_p is 0.0"),
    "nothing": ("\n", "p.jsonl is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_can_not_be_used_is_named(name, capsys, home):
    line, words = BAD[name]
    (home / "p.jsonl").write_text(line)
    with pytest.raises(ConfigError, match=words):
        said(capsys, prompt_file="p.jsonl")


# --- to a file ---

PROMPTS = tuple("abcdefghij")


def test_a_file_goes_on_after_its_last_whole_line(capsys, home):
    out, several = home / "out.jsonl", GenerateConfig(new_tokens=4, num_samples=2)
    said(capsys, several, prompt=PROMPTS, out=str(out), batch=4)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [(json.loads(line)["index"], json.loads(line)["sample"]) for line in lines] == [
        (i, j) for i in range(10) for j in range(2)
    ]
    for size in (0, 10, len(lines[0]), len(b"".join(lines[:7])), len(whole) - 1, len(whole)):
        out.write_bytes(whole[:size])
        said(capsys, several, prompt=PROMPTS, out=str(out), batch=4)
        again = out.read_bytes()
        assert [told(line) for line in again.splitlines()] == [told(line) for line in lines], (
            f"cut after {size} bytes"
        )
        assert again.startswith(
            whole[: whole[:size].rfind(b"\n") + 1][
                : len(b"".join(lines[: whole[:size].count(b"\n") // 2 * 2]))
            ]
        )


def test_a_file_is_named_with_the_number_of_its_answers(capsys, home):
    asked, out = SampleOptions(prompt=("ab", "cd"), out=str(home / "out.jsonl")), home / "out.jsonl"
    for new in (2, 0):
        run_sample(Path("run"), asked, PLAIN)
        assert capsys.readouterr().err == f"{out}: {new} new answers, {2 - new} kept\n"


def told(line: bytes) -> dict:
    """All but the last bits of the log-probabilities, which the neighbours of a prompt can
    change."""
    return json.loads(line) | {"logprobs": None}


def test_a_file_of_other_answers_is_left_alone(capsys, home):
    out = home / "out.jsonl"
    said(capsys, prompt=("a", "b"), out=str(out))
    whole = out.read_bytes()
    others = (
        {"prompt": ("a", "c")},
        {"prompt": ("a",)},
        {"prompt": ("a", "b"), "path": "other"},
        {"prompt": ("a", "b"), "prefix": "x"},
        {"prompt": ("a", "b"), "settings": GenerateConfig(seed=1)},
    )
    for other in others:
        with pytest.raises(
            ConfigError,
            match=r"out.jsonl:\d is no answer to prompt \d with this model and these settings",
        ):
            said(capsys, out=str(out), **other)
    out.write_bytes(b"hello\n" + whole)
    with pytest.raises(ConfigError, match=r"out.jsonl:1 is no answer"):
        said(capsys, prompt=("a", "b"), out=str(out))
    assert out.read_bytes() == b"hello\n" + whole


def test_a_judge_chooses_among_several_answers(capsys, home, monkeypatch):
    """The judge is read once, and its name is part of what a file's answers depend on."""
    settings, built = dataclasses.replace(PLAIN, best_of=5, temperature=2.0), []

    def build(reward):
        built.append(reward.path)
        return lambda answers: [float(ord(one.answer[0])) for one in answers]

    monkeypatch.setattr("gptjax.rewards.RewardModel.build", build)
    asked, out = ("a", "b"), home / "out.jsonl"
    drawn = TINY.complete(asked, dataclasses.replace(settings, best_of=0, num_samples=5))
    said(capsys, settings, prompt=asked, judge="score", out=str(out))
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    for n, one in enumerate(kept):
        firsts = [ord(each.text[0]) for each in drawn[5 * n : 5 * n + 5]]
        assert one["score"] == ord(one["text"][0]) == max(firsts) > min(firsts)
    assert built == ["score"]
    with pytest.raises(ConfigError, match="is no answer to prompt"):
        said(capsys, settings, prompt=asked, judge="other", out=str(out))
    with pytest.raises(ConfigError, match="nothing to choose from"):
        said(capsys, prompt=asked, judge="score")


# --- with a person ---


def test_a_conversation_answers_changes_settings_and_outlives_errors(capsys, monkeypatch):
    lines = [
        "ab",
        "--new-tokens 3 --seed 1",
        "ab",
        "--top-p 0",
        "--beams 4",
        "--stop 'x",
        "",
        "y" * 40,
        "cd",
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    run_sample(Path("run"), SampleOptions(interactive=True), PLAIN)
    out, err = capsys.readouterr()
    texts = [
        TINY.generate(prompt, new_tokens=n, seed=s)
        for prompt, n, s in (("ab", 6, 0), ("ab", 3, 1), ("cd", 3, 1))
    ]
    assert out == f"ab{texts[0]}\nnew_tokens: 6 → 3\nseed: 0 → 1\nab{texts[1]}\ncd{texts[2]}\n"
    errors = err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    assert [
        word in line
        for word, line in zip(
            ("top_p is 0.0", "can't be streamed", "quotation", "a prompt has 40 tokens"),
            errors,
            strict=True,
        )
    ] == [True] * 4


def test_ctrl_c_ends_an_answer_and_not_the_conversation(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        yield "zzz"
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\ncd\n")))
    monkeypatch.setattr(Model, "stream", interrupted)
    run_sample(Path("run"), SampleOptions(interactive=True), PLAIN)
    assert capsys.readouterr().out == "abzzz\n\ncdzzz\n\n"


# --- the door in Python ---


def test_settings_may_be_named_and_wrong_names_are_refused():
    assert TINY.generate("ab", new_tokens=6) == TINY.complete(["ab"], PLAIN)[0].text
    assert TINY.generate("ab", new_tokens=2, temperature=np.float64(0.0)) == TINY.generate(
        "ab", new_tokens=2, temperature=0
    )
    for wrong, words in (
        (
            {"temprature": 1},
            "temprature is not a setting of GenerateConfig. Did you mean 'temperature'",
        ),
        ({"stop": 5}, "stop is 5; it needs a list"),
    ):
        with pytest.raises(ConfigError, match=words):
            TINY.generate("ab", **wrong)
    with pytest.raises(ConfigError, match="give settings, or seed by name, not both"):
        TINY.complete(["ab"], PLAIN, seed=1)


def test_a_draft_with_another_tokenizer_is_refused():
    other = tokenizers.train_tokenizer(tokenizers.Characters(), ["abc"])
    with pytest.raises(ConfigError, match="another tokenizer"):
        TINY.generate("ab", draft=TINY._replace(tokenizer=other))


def test_flags_that_can_not_be_joined_are_refused(capsys):
    for flags, words in (
        ("--out x --interactive", "out and interactive"),
        ("--batch 0", "batch is 0"),
        ("--beams 4 --lookup True", "beams and lookup"),
    ):
        assert cli.main(["sample", "run", *flags.split()]) == 2
        assert words in capsys.readouterr().err
