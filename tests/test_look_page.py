"""Laws of the page of `gptjax look`: it asks for nothing and runs nothing, whatever a token says;
what it draws is where the numbers are; and the command draws decoders and encoders."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import numpy as np
import pytest
from test_evaluate_page import ATTACK, Read

from gptjax import model
from gptjax.cli.convert import write_run
from gptjax.cli.main import main
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, MaskedLanguageModel
from gptjax.data.tokenizers.tokenizer import train_tokenizer
from gptjax.formats import OpenedModel
from gptjax.generate import GenerateConfig, complete
from gptjax.lab.look.looking import look_at, token_names
from gptjax.lab.look.page import Look, look_page
from gptjax.lab.look.pictures import attention_map, heat_map, shaded_tokens, standalone

TOKENIZER = train_tokenizer(Bytes(), [])
DECODER = model.llama(
    vocab_size=260,
    context=32,
    width=32,
    num_layers=2,
    num_heads=4,
    feed_forward=64,
    num_kv_heads=2,
)
ENCODER = dataclasses.replace(
    DECODER, causal=False, norm_placement="post", positions="learned", num_kv_heads=None
)
"""An id beyond the bytes hides a token."""


def opened(config: model.ModelConfig, **more) -> OpenedModel:
    config = dataclasses.replace(config, init_std=0.3)
    return OpenedModel(config, model.init(config, jax.random.key(0)), TOKENIZER, **more)


def made(seed: int = 0) -> Look:
    """A page's content, without a model."""
    draw = np.random.default_rng(seed)
    return Look(
        model="toy",
        tokens=["The", " cat", " sat"],
        answer=" down",
        foil=" up",
        at=2,
        chances=(0.75, 0.25),
        lens=[
            [[(f"t{level}{place}", 0.5), ("x", 0.1)] for place in range(3)] for level in range(3)
        ],
        answer_chances=np.asarray([0.1, 0.2, 0.75]),
        attributions={"integrated gradients": draw.standard_normal(3), "occlusion": np.zeros(3)},
        completeness=(0.001, 1.5),
        direct=(draw.standard_normal((2, 4)), draw.standard_normal(2)),
        patterns=np.tril(np.ones((2, 4, 3, 3))) / np.arange(1, 4)[:, None],
        layers=(0, 1),
        kinds={"previous": draw.random((2, 4)), "induction": np.full((2, 4), 0.01)},
        rollout=np.eye(3),
        against=["The", " dog", " sat"],
        patched=(draw.random((2, 3)), draw.random((2, 4))),
        differences=(1.5, -0.5),
    )


def poisoned(look: Look) -> Look:
    """The same, whose every text is an attack."""
    return dataclasses.replace(
        look,
        model=ATTACK,
        tokens=[ATTACK] * 3,
        answer=ATTACK,
        foil=ATTACK,
        against=[ATTACK, "b", "c"],
        lens=[[[(ATTACK, 0.5)]] * 3] * 3,
        attributions={ATTACK: np.ones(3)},
        kinds={ATTACK: np.ones((2, 4))},
    )


@pytest.mark.parametrize("look", [made(), poisoned(made())], ids=["own", "attack"])
def test_a_page_runs_nothing_and_asks_for_nothing(look):
    page = look_page(look)
    read = Read(page)
    assert not read.open
    assert not {tag for tag, _ in read.elements} & {"script", "img", "link", "iframe", "object"}
    names = [(name, value) for _, attributes in read.elements for name, value in attributes.items()]
    assert not [name for name, _ in names if name.startswith("on") or name in ("src", "href")]
    policy = read.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"@import|url\(|https?:", page)
    page.encode("utf-8", "xmlcharrefreplace")


def test_a_page_says_what_was_found():
    page = look_page(made())
    text = " ".join(one for texts in Read(page).texts.values() for one in texts)
    for said in ("·down", "0.750", "+0.0010 of +1.5000", "before layer 0", "head 1.3", "t20"):
        assert said in text, said
    assert text.index("t20") < text.index("t10") < text.index("t00")  # the output is on top
    assert page.count('class="pattern"') == 8
    for part in ({"direct": None}, {"patched": None}, {"rollout": None}, {"kinds": {}}):
        assert len(look_page(dataclasses.replace(made(), **part))) < len(page)


def test_a_heat_map_shades_each_cell_by_its_number():
    table = np.asarray([[1.0, -0.5], [np.nan, 0.0]])
    svg = heat_map(table, ["a", "b"], ["left", "right"], title="toy", unit="nats")
    root = ET.fromstring(svg)
    cells = {one[0].text: one.attrib for one in root.iter("rect")}
    assert set(cells) == {"a, left: 1.000 nats", "a, right: -0.500 nats", "b, right: 0.000 nats"}
    first, second, third = cells.values()
    assert [one["fill-opacity"] for one in (first, second, third)] == ["1.000", "0.500", "0.000"]
    assert (first["class"], second["class"]) == ("above", "below")
    assert first["y"] == second["y"] and second["x"] == third["x"]
    assert float(third["y"]) > float(first["y"]) and float(second["x"]) > float(first["x"])
    half = heat_map(table, ["a", "b"], ["left", "right"], title="toy", largest=2.0)
    assert 'fill-opacity="0.500"' in half


def test_a_map_of_attention_has_a_square_for_each_weight_that_can_be_seen():
    pattern = np.asarray([[1.0, 0.0, 0.0], [0.34, 0.66, 0.0], [0.02, 0.0, 0.98]])
    svg = attention_map(pattern, title="toy")
    shades = {
        float(path.attrib["fill-opacity"]): re.findall(r"M(\d) (\d)", path.attrib["d"])
        for path in ET.fromstring(svg).iter("path")
        if path.attrib["class"] == "cells"
    }
    assert shades == {
        0.33: [("0", "1")],
        0.67: [("1", "1")],
        1.0: [("0", "0"), ("2", "2")],
    }
    root = ET.fromstring(standalone(svg))
    assert root.tag.endswith("svg") and "--main" in root[0].text
    assert not re.search(r"^svg\{", root[0].text, re.MULTILINE)  # it would stretch parts


def test_tokens_are_shaded_by_sign_and_size():
    spans = Read(shaded_tokens([" a", "b\n", ""], [2.0, -1.0, 0.0])).all("span")
    assert [one["class"] for one in spans] == ["tone a9", "tone b4", "tone a0"]
    assert [one["title"] for one in spans] == ["+2.000", "-1.000", "+0.000"]


# --- a model


def test_a_look_at_a_decoder_asks_the_model_what_the_page_says():
    look = look_at(opened(DECODER), "toy", "abcabc", against="abdabd", points=8)
    assert look.tokens == token_names(TOKENIZER, [256, *b"abcabc"]) and look.at == 6
    assert look.answer == look.lens[-1][look.at][0][0]
    assert look.chances[0] == pytest.approx(look.lens[-1][look.at][0][1], rel=1e-4)
    assert look.answer_chances[-1] == pytest.approx(look.chances[0], rel=1e-4)
    assert look.patched[0].shape == (2, 7) and look.patched[1].shape == (2, 4)
    np.testing.assert_allclose(look.patched[0][:, :3], 0.0, atol=1e-4)  # both begin alike
    assert look.differences[0] > 0 and look.differences[0] != look.differences[1]
    assert sum(map(np.sum, look.direct)) != 0 and set(look.kinds) == {
        "previous",
        "duplicate",
        "induction",
    }
    np.testing.assert_allclose(look.patterns.sum(-1), 1.0, atol=1e-5)
    chosen = look_at(opened(DECODER), "toy", "ab", answer="x", foil="y", points=4)
    assert (chosen.answer, chosen.foil) == ("x", "y")
    turned = look_at(opened(DECODER), "toy", "ab", answer="y", foil="x", points=4)
    for name in ("gradient × input", "occlusion"):
        np.testing.assert_allclose(
            turned.attributions[name], -chosen.attributions[name], rtol=1e-3, atol=1e-4
        )


def test_a_look_at_a_prefix_lm_reads_the_prompt_as_sampling_does():
    given = opened(dataclasses.replace(DECODER, prefix_lm=True, vocab_size=257))
    look = look_at(given, "toy", "abcabc", points=2)
    (said,) = complete(
        *(given.config, given.params, TOKENIZER, ["abcabc"]),
        GenerateConfig(new_tokens=1, temperature=0.0),
    )
    assert [look.answer] == token_names(TOKENIZER, said.ids)
    assert look.patterns[:, :, 1, 2].max() > 0  # a token sees what is after it


def test_a_look_at_a_broken_model_is_refused_in_one_line():
    given = opened(DECODER)
    broken = given._replace(params=jax.tree.map(lambda x: x * np.nan, given.params))
    with pytest.raises(ConfigError, match="no numbers"):
        look_at(broken, "toy", "abc", points=2)


def test_a_look_at_an_encoder_is_at_its_mask_and_rolls_attention_out():
    look = look_at(opened(ENCODER, task=MaskedLanguageModel()), "toy", "ab[MASK]d", points=4)
    assert look.tokens[look.at] == "<257>" and look.direct is None and not look.kinds
    np.testing.assert_allclose(look.rollout.sum(-1), 1.0, atol=1e-5)
    look_page(look)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "toy", opened(DECODER))
    return folder / "toy"


def test_the_command_writes_a_page_and_says_what_the_model_answers(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    told = ["--prompt", "abab", "--against", "acac", "--points", "4", "--out", str(page)]
    assert main(["look", str(run), *told]) == 0
    assert "with probability" in capsys.readouterr().out
    assert "What brings it back" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prompt", "abc", "--against", "ab"], "4 tokens and --against 3"),
        (["--prompt", "abc", "--answer", "no"], "is 2 tokens ('n', 'o')"),
        (["--prompt", "abc", "--answer", "x", "--foil", "x"], "give two different"),
        (["--prompt", "a" * 60], "2 to 32"),
        (["--prompt", "abc", "--points", "0"], "at least 1"),
        (["--prompt", "abc", "--points", "2", "--out", "no/such/page.html"], "--out"),
        (["--prompt", "abc", "--answer", "x", "--foil", "x"], "the same token 'x'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(flags, said, run, capsys):
    assert main(["look", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
