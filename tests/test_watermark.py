"""Laws of watermarks: who has the key finds them, nobody else does, and what is not marked is not
called so more often than it says."""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generate import CONFIG, PARAMS, TOKENIZER
from test_sample import TINY

from gptjax import generate
from gptjax.cli import main as cli
from gptjax.cli import sample
from gptjax.core.config import ConfigError
from gptjax.generate import GenerateConfig, History, Sampling, neutral, shape
from gptjax.generate.watermark import (
    Watermark,
    binomial_tail,
    detect_watermark,
    encrypt,
    favour_green,
    green_tokens,
    marks_of,
    read_watermark,
    round_keys,
    watermark_of,
)

KEY = Watermark("000102030405060708090a0b0c0d0e0f", gamma=0.5, delta=4.0)
OTHER = Watermark("f00102030405060708090a0b0c0d0e0f", gamma=0.5, delta=4.0)
V = 60
DRAW = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(1), 2)


def history_of(rows: np.ndarray) -> History:
    length = np.full(len(rows), rows.shape[1], np.int32)
    return History(jnp.asarray(rows, jnp.int32), jnp.asarray(length - 4), jnp.asarray(length))


def test_the_cipher_is_speck_64_128():
    """The test vector of eprint 2013/404, appendix C."""
    keys = round_keys("1b1a1918131211100b0a090803020100")
    left = encrypt(keys, *(np.asarray([w], np.uint32) for w in (0x3B726574, 0x7475432D)))
    assert left.tolist() == [0x8C6FA548]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_exactly_the_tokens_that_the_detector_calls_green_gain_delta(width):
    mark = Watermark(KEY.key, gamma=0.3, delta=1.5, width=width)
    rows = DRAW.integers(0, V, (4, 6))
    logits = jnp.asarray(DRAW.standard_normal((4, V)), jnp.float32).at[0, :7].set(-jnp.inf)
    marks = marks_of([mark, None, OTHER, mark])
    found = np.asarray(favour_green(logits, history_of(rows), marks))
    for row, one in ((0, mark), (2, OTHER), (3, mark)):
        texts = [[*rows[row].tolist(), token] for token in range(V)]
        green = np.asarray([green_tokens(text, one)[-1] for text in texts])
        assert 0.05 < green.mean() < 0.95
        added = np.where(green, np.float32(one.delta), 0)
        np.testing.assert_array_equal(found[row], np.asarray(logits[row]) + added)
    np.testing.assert_array_equal(found[1], np.asarray(logits[1]))
    assert np.isneginf(found[0, :7]).all()


def test_a_row_without_a_watermark_beside_one_that_has_it_is_unchanged():
    marks = marks_of([None, KEY, None])
    assert (np.asarray(marks.least) > 0).tolist() == [False, True, False]
    assert np.asarray(marks.delta).tolist() == [0.0, KEY.delta, 0.0]


def test_a_mark_comes_after_truncation_and_temperature_and_before_what_is_forced():
    rows = history_of(DRAW.integers(0, V, (2, 6)))
    logits = jnp.asarray(DRAW.standard_normal((2, V)), jnp.float32)
    forced = jnp.full((2, 9), -1).at[1, 4].set(7)
    quiet = neutral(2, V)._replace(forced=forced)
    sampling = Sampling(jnp.full(2, 0.5), jnp.full(2, 9), jnp.ones(2), quiet)
    stop = jnp.full((2, 1), -1)
    whole = jax.jit(shape)
    before = whole(logits, sampling, rows, KEYS, stop)
    marked = sampling._replace(shaping=quiet._replace(watermark=marks_of([KEY, KEY])))
    found = whole(logits, marked, rows, KEYS, stop)
    kept = np.isfinite(before[0])
    assert kept.sum() == 9 and (np.isfinite(found[0]) == kept).all()
    assert set(np.asarray(found - before)[0, kept].round(4).tolist()) == {0.0, 4.0}
    np.testing.assert_array_equal(found[1], before[1])


def written(**settings) -> list[generate.Completion]:
    more = {"new_tokens": 40, "min_new_tokens": 40, "temperature": 1.0, **settings}
    return generate.complete(CONFIG, PARAMS, TOKENIZER, ["ab", "xyz"], GenerateConfig(**more))


WAYS = {
    "sampled": {},
    "lookup": {"lookup": True},
    "beams": {"beams": 2, "no_repeat_ngram": 2},
    "regex": {"regex": "[a-z]{28}"},
}


@pytest.mark.parametrize("name", WAYS)
def test_marked_texts_are_found_with_their_key_alone_however_they_are_written(name):
    way = WAYS[name]
    for one in written(watermark=KEY.text, **way):
        found, other = detect_watermark(one.ids, KEY), detect_watermark(one.ids, OTHER)
        assert found.p_value < 1e-3 < other.p_value, (way, found, other)
        if "regex" in way:
            assert one.text.islower() and one.text.isalpha()


def test_a_text_without_a_mark_is_called_marked_as_often_as_its_p_value_says():
    ids = DRAW.integers(0, 5000, (1500, 60))
    values = np.asarray([detect_watermark(row.tolist(), KEY).p_value for row in ids])
    for level in (0.01, 0.05, 0.3):
        spread = 3 * math.sqrt(level * (1 - level) / len(ids))
        assert (values <= level).mean() <= level + spread
    assert (values <= 0.3).mean() > 0.15


def test_what_is_repeated_counts_once_and_the_figures_are_their_formulas():
    once = DRAW.integers(0, 5000, 50).tolist()
    found = detect_watermark(once, KEY)
    green = int(green_tokens(once, KEY).sum())
    assert found[:2] == (49, green)
    assert found.z == pytest.approx((green - 49 / 2) / math.sqrt(49 / 4))
    again = detect_watermark(once * 5, KEY)
    assert again.tokens == 50 and again.green - green in (0, 1)
    for k, n, p in ((3, 7, 0.25), (0, 4, 0.5), (9, 9, 0.1), (40, 60, 0.5)):
        tail = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        assert binomial_tail(k, n, p) == pytest.approx(tail, rel=1e-9)
    assert detect_watermark([1], KEY) == (0, 0, 0.0, 1.0)


def test_a_key_is_made_once_marks_a_sample_and_finds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "load", lambda *_, **__: TINY)
    monkeypatch.setattr("gptjax.runs.open.open_tokenizer", lambda _: TINY.tokenizer)
    # A key of chance calls a thousandth of unmarked texts marked, and a test must not.
    monkeypatch.setattr("gptjax.generate.watermark.secrets.token_hex", lambda _: KEY.key)
    make = ["detect-watermark", "--new-key", "k.json", "--delta", "9"]
    assert cli.main(make) == 0 and cli.main(make) == 2
    assert (tmp_path / "k.json").stat().st_mode & 0o77 == 0
    asked = ["--prompt", "ab", "--temperature", "1", "--new-tokens", "60", "--json"]
    capsys.readouterr()
    assert cli.main(["sample", "run", *asked, "--watermark", "k.json"]) == 0
    (tmp_path / "marked.jsonl").write_text(capsys.readouterr().out)
    assert cli.main(["sample", "run", *asked]) == 0
    (tmp_path / "plain.jsonl").write_text(capsys.readouterr().out)
    for name, marked in (("marked", True), ("plain", False)):
        detect = ["detect-watermark", f"{name}.jsonl", "--key", "k.json", "--model", "run"]
        assert cli.main([*detect, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["marked"] is marked
        assert cli.main(detect) == 0
        assert (": marked" in capsys.readouterr().out) is marked
    assert cli.main(["sample", "run", "--watermark", "absent.json"]) == 2
    assert "absent.json is not there" in capsys.readouterr().err


def test_what_is_no_key_is_refused_without_being_quoted(tmp_path):
    wrong = ('{"key": "SECRET"}', "SECRET", '{"key": "SECRET", "size": 1}', "[1]", '"SECRET"')
    for text, way in itertools.product(wrong, ("file", "text")):
        file = tmp_path / "key.json"
        file.write_text(text)
        with pytest.raises(ConfigError) as refused:
            read_watermark(file) if way == "file" else watermark_of(text)
        assert "SECRET" not in str(refused.value) and "watermark" in str(refused.value)
    with pytest.raises(ConfigError, match="gamma"):
        Watermark(KEY.key, gamma=1.0)
    with pytest.raises(ConfigError, match="width"):
        Watermark(KEY.key, width=5)
    with pytest.raises(ConfigError, match="--new-key"):
        written(watermark="SECRET")
