"""Laws of generation: what is written is what the model's probabilities and the settings say, and depends on nothing else."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import ROPE

from gptjax import generate, model
from gptjax.config import ConfigError
from gptjax.data import Bytes
from gptjax.data import tokenizer as tokenizers
from gptjax.generate import SampleConfig, Sampling, choose

TOKENIZER = tokenizers.train(Bytes(), [])
CONFIG = dataclasses.replace(ROPE, vocab_size=TOKENIZER.vocab_size, num_kv_heads=2)
V, CONTEXT = CONFIG.vocabulary, CONFIG.context


def weights(config, seed: int = 0):
    """Weights that give a clear opinion: the best token has about a third of the probability."""
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.25 * draw.standard_normal(leaf.shape) + (leaf.shape[-1:] == (32,) and leaf.ndim < 3), jnp.float32), tree)


PARAMS = weights(CONFIG)


@jax.jit
def log_probabilities(tokens):
    hidden = model.forward(CONFIG, PARAMS, tokens).hidden
    return jax.nn.log_softmax(model.unembed(CONFIG, PARAMS, hidden), axis=-1)


def judged(prompt: list[int], new: list[int]) -> np.ndarray:
    """ln p of all tokens after each prefix of prompt + new [M V], by one uncached reading."""
    row = np.zeros((1, CONTEXT), np.int32)
    row[0, : len(prompt) + len(new)] = [*prompt, *new]
    return np.asarray(log_probabilities(row))[0, len(prompt) - 1 : len(prompt) + len(new) - 1]


def settings(rows: int, temperature=1.0, top_k=V, top_p=1.0) -> Sampling:
    return Sampling(np.full(rows, temperature, np.float32), np.full(rows, top_k, np.int32), np.full(rows, top_p, np.float32))


def keys_of(rows: int, seed: int = 0):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(rows))


def padded(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.asarray([len(p) for p in prompts])
    rows = np.full((len(prompts), lengths.max()), 7, np.int32)  # padding is anything
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    return rows, lengths


def write(prompts, sampling, new_tokens=10, seed=0, keys=None, **more):
    keys = keys_of(len(prompts), seed) if keys is None else keys
    return generate.generate(CONFIG, PARAMS, *padded(prompts), keys, sampling=sampling, new_tokens=new_tokens, **more)


def ragged(count: int, longest: int = 16) -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(0, V, 1 + i % longest).tolist() for i in range(count)]


# --- greedy and sampled ------------------------------------------------------------------------------------------


@pytest.mark.row(19)
def test_greedy_takes_the_most_likely_token_of_an_uncached_reading():
    prompts = ragged(8)
    out = write(prompts, settings(8, temperature=0.0))
    for prompt, ids in zip(prompts, out.ids.tolist(), strict=True):
        assert judged(prompt, ids).argmax(axis=-1).tolist() == ids


@pytest.mark.row(19)
def test_a_vanishing_temperature_becomes_greedy():
    prompts = ragged(8)
    np.testing.assert_array_equal(write(prompts, settings(8, temperature=1e-6)).ids, write(prompts, settings(8, temperature=0.0)).ids)


@pytest.mark.row(19)
def test_one_candidate_is_greedy():
    prompts = ragged(8)
    np.testing.assert_array_equal(write(prompts, settings(8, top_k=1)).ids, write(prompts, settings(8, temperature=0.0)).ids)
    np.testing.assert_array_equal(write(prompts, settings(8, top_p=1e-9)).ids, write(prompts, settings(8, temperature=0.0)).ids)


def test_log_probabilities_are_those_of_an_uncached_reading():
    prompts = ragged(8)
    for sampling in (settings(8), settings(8, temperature=0.3, top_k=5, top_p=0.7)):
        out = write(prompts, sampling)
        for prompt, ids, found in zip(prompts, out.ids.tolist(), out.logprobs, strict=True):
            np.testing.assert_allclose(found, np.take_along_axis(judged(prompt, ids), np.asarray(ids)[:, None], 1)[:, 0], atol=1e-4)


def test_a_row_writes_the_same_alone_and_beside_any_neighbours():
    prompts, keys, sampling = ragged(20), keys_of(20), settings(20, temperature=0.8, top_p=0.95)
    together = write(prompts, sampling, keys=keys)
    backwards = write(prompts[::-1], sampling, keys=keys[::-1])
    np.testing.assert_array_equal(together.ids, backwards.ids[::-1])
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(write([prompt], settings(1, temperature=0.8, top_p=0.95), keys=keys[i : i + 1]).ids[0], together.ids[i])


def test_rows_with_different_settings_do_not_touch_each_other():
    prompts, keys = ragged(4), keys_of(4)
    mixed = Sampling(np.asarray([0, 1, 0.5, 2], np.float32), np.asarray([V, 3, V, 40], np.int32), np.asarray([1, 1, 0.4, 0.9], np.float32))
    together = write(prompts, mixed, keys=keys)
    for i in range(4):
        alone = write([prompts[i]], Sampling(*(field[i : i + 1] for field in mixed)), keys=keys[i : i + 1])
        np.testing.assert_array_equal(alone.ids[0], together.ids[i])


def test_the_seed_decides():
    prompts = ragged(8)
    first, again, other = (write(prompts, settings(8), seed=seed).ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=1).all()


def test_fewer_new_tokens_are_the_beginning_of_more():
    prompts = ragged(6)
    np.testing.assert_array_equal(write(prompts, settings(6), new_tokens=4).ids, write(prompts, settings(6), new_tokens=10).ids[:, :4])


def test_ids_past_the_vocabulary_are_never_drawn():
    out = write(ragged(8), settings(8, temperature=50.0), vocabulary=40)
    assert (out.ids < 40).all()


# --- stop, context -----------------------------------------------------------------------------------------------


def test_a_row_ends_before_its_stop_token_and_the_others_go_on():
    prompts = ragged(8)
    free = write(prompts, settings(8)).ids
    stop = int(free[0, 4])
    out = write(prompts, settings(8), stop=(stop,))
    for row, ids in enumerate(free.tolist()):
        length = ids.index(stop) if stop in ids else len(ids)
        assert out.lengths[row] == length and out.finished[row] == (stop in ids)
        assert out.ids[row, :length].tolist() == ids[:length]
    assert out.finished[0] and not out.finished.all()


def test_several_stop_tokens_all_stop():
    prompts = ragged(2)
    free = write(prompts, settings(2)).ids
    out = write(prompts, settings(2), stop=(int(free[0, 3]), int(free[1, 5])))
    assert out.finished.all() and out.lengths[0] <= 3 and out.lengths[1] <= 5


@pytest.mark.row(11)
def test_prompt_and_new_tokens_may_fill_the_context():
    prompt = ragged(16)[15]
    out = write([prompt], settings(1, temperature=0.0), new_tokens=CONTEXT - len(prompt))
    ids = out.ids[0].tolist()
    assert len(prompt) + len(ids) == CONTEXT and judged(prompt, ids).argmax(axis=-1).tolist() == ids
    np.testing.assert_array_equal(ids[:5], write([prompt], settings(1, temperature=0.0), new_tokens=5).ids[0])


@pytest.mark.row(11)
@pytest.mark.parametrize("over", [1, 100])
def test_a_context_is_never_exceeded(over):
    with pytest.raises(ValueError, match=rf"a prompt of 12 tokens and {CONTEXT - 12 + over} new ones exceed the context of {CONTEXT}\."):
        write([[1] * 12, [1]], settings(2), new_tokens=CONTEXT - 12 + over)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty"):
        generate.generate(CONFIG, PARAMS, np.zeros((1, 3), np.int32), np.zeros(1, int), keys_of(1), sampling=settings(1), new_tokens=2)


# --- the transforms ----------------------------------------------------------------------------------------------


LOGITS = jnp.asarray(3 * np.random.default_rng(0).standard_normal((50, 40)), jnp.float32)


def column(value, dtype=np.float32):
    return jnp.full(50, value, dtype)


def test_all_candidates_change_nothing():
    for same in (
        generate.top_k(LOGITS, column(40, np.int32)),
        generate.top_k(LOGITS, column(10**9, np.int32)),
        generate.top_p(LOGITS, column(1.0)),
        generate.temperature(LOGITS, column(1.0)),
        generate.temperature(LOGITS, column(0.0)),
    ):
        np.testing.assert_array_equal(same, LOGITS)


@pytest.mark.parametrize("count", [1, 2, 7, 39])
def test_top_k_keeps_the_largest_as_they_are(count):
    kept = np.asarray(generate.top_k(LOGITS, column(count, np.int32)))
    assert (np.isfinite(kept).sum(axis=1) == count).all()
    np.testing.assert_array_equal(np.sort(kept, axis=1)[:, -count:], np.sort(LOGITS, axis=1)[:, -count:])


@pytest.mark.parametrize("mass", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass(mass):
    kept = np.isfinite(np.asarray(generate.top_p(LOGITS, column(mass))))
    chance = np.asarray(jax.nn.softmax(LOGITS, axis=-1), np.float64)
    assert kept.any(axis=1).all()
    for row, share in zip(kept, chance, strict=True):
        assert share[row].sum() >= mass - 1e-5
        assert share[row].sum() - share[row].min() < mass + 1e-5, "one token fewer would have done"
        assert share[row].min() >= share[~row].max(initial=0)


def test_ties_at_the_border_are_all_kept():
    logits = jnp.asarray([[2.0, 1.0, 1.0, 0.0]])
    assert np.isfinite(generate.top_k(logits, jnp.asarray([2]))).tolist() == [[True, True, True, False]]
    assert np.isfinite(generate.top_p(logits, jnp.asarray([0.7]))).tolist() == [[True, True, True, False]]


@pytest.mark.row(19)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 16, 1.0), (0.5, 16, 1.0), (2.0, 16, 1.0), (1.0, 5, 1.0), (1.0, 16, 0.8), (0.7, 9, 0.9), (1.5, 16, 0.3)]
)
def test_draws_follow_the_distribution(temperature, top_k, top_p, record_property):
    """Chi-square of 100,000 draws against the distribution computed by hand: top-k, then top-p, then temperature."""
    draws, logits = 100_000, np.random.default_rng(5).standard_normal(16) * 1.5
    order = np.argsort(-logits)[:top_k]
    chance = np.exp(logits[order]) / np.exp(logits[order]).sum()
    order = order[: 1 + int((np.cumsum(chance) < top_p).sum())] if top_p < 1 else order
    wanted = np.zeros(16)
    wanted[order] = np.exp(logits[order] / temperature) / np.exp(logits[order] / temperature).sum()
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, 16))
    sampling = jax.tree.map(jnp.asarray, settings(draws, temperature, top_k, top_p))
    keys = jax.random.split(jax.random.key(11), draws)
    found = np.bincount(np.asarray(jax.jit(choose)(rows, sampling, keys)), minlength=16)
    assert found[wanted == 0].sum() == 0
    expected = draws * wanted[wanted > 0]
    statistic = float(((found[wanted > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    p = float(jax.scipy.special.gammaincc(freedom / 2, statistic / 2)) if freedom else 1.0
    record_property("figure", f"100,000 draws at {temperature}, {top_k}, {top_p}: p = {p:.2f}")
    assert p > 0.001, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"


# --- text --------------------------------------------------------------------------------------------------------


def test_pieces_of_a_stream_are_the_whole_text_and_each_is_utf8():
    for seed in range(6):
        sample = SampleConfig(new_tokens=20, temperature=1.0, top_p=1.0, seed=seed)
        *pieces, last = generate.stream_text(CONFIG, PARAMS, TOKENIZER, "Zoë", sample)
        (whole,) = generate.complete(CONFIG, PARAMS, TOKENIZER, ["Zoë"], sample)
        assert "".join(pieces) == whole.text == last.text and last == whole
        assert all(piece.encode("utf-8") for piece in pieces)
        assert TOKENIZER.decode(whole.ids) == whole.text and len(whole.logprobs) == len(whole.ids)
        assert whole.reason == ("length" if len(whole.ids) == 20 else "stop")


def test_a_character_is_never_cut_by_a_stream(monkeypatch):
    """Bytes of "€" come out in separate chunks; no piece may hold half of one."""
    text = "a€b😀c" * 2
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)[None]

    def one_by_one(*args, **kwargs):
        for n in range(1, ids.shape[1] + 1):
            yield generate.Generated(ids[:, :n], np.zeros((1, n), np.float32), np.asarray([n]), np.asarray([False]))

    monkeypatch.setattr("gptjax.generate.text.stream", one_by_one)
    *pieces, last = generate.stream_text(CONFIG, PARAMS, TOKENIZER, "x", SampleConfig(new_tokens=20))
    assert "".join(pieces) == text == last.text and "\ufffd" not in "".join(pieces)


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(ConfigError, match=rf"a prompt has \d+ tokens and the context is {CONTEXT}"):
        generate.complete(CONFIG, PARAMS, TOKENIZER, ["x" * CONTEXT], SampleConfig())


@pytest.mark.row(11)
def test_a_text_ends_where_the_context_does(record_property):
    """Prompt and new tokens up to the context, one past it, and far past it: the same tokens, and the reason said."""
    room = CONTEXT - 21  # the end-of-document id stands before the prompt
    texts = [generate.complete(CONFIG, PARAMS, TOKENIZER, ["x" * 20], SampleConfig(new_tokens=n, temperature=0))[0] for n in (room, room + 1, room + 100)]
    assert [(len(done.ids), done.reason) for done in texts] == [(room, "length")] * 3
    assert texts[0].ids == texts[1].ids == texts[2].ids
    record_property("figure", "context, one and 100 tokens past it: the same tokens, reason `length`, nothing written past the end")


def test_more_candidates_than_tokens_are_refused():
    with pytest.raises(ConfigError, match=r"top_k is 258, the vocabulary has 257 tokens"):
        generate.complete(CONFIG, PARAMS, TOKENIZER, ["x"], SampleConfig(top_k=258))


def test_a_model_of_nan_is_refused():
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    with pytest.raises(ConfigError, match="NaN"):
        generate.complete(CONFIG, broken, TOKENIZER, ["x"], SampleConfig(new_tokens=2))


VALID = [
    *({"temperature": t} for t in (0, 0.0, 1e-6, 1.0, 100.0)),
    *({"top_k": k} for k in (0, 1, 257)),
    *({"top_p": p} for p in (1e-9, 0.5, 1.0)),
    {"new_tokens": 1},
    {"seed": 2**32 - 1},
]
INVALID = [
    *(("temperature", t) for t in (-1e-6, -1, math.nan, math.inf)),
    ("top_k", -1),
    *(("top_p", p) for p in (0, -0.1, 1.0001, math.nan, math.inf)),
    *(("new_tokens", n) for n in (0, -5)),
    *(("seed", s) for s in (-1, 2**32)),
]


@pytest.mark.row(19)
@pytest.mark.parametrize("setting", VALID, ids=str)
def test_settings_in_their_range_are_taken(setting):
    SampleConfig(**setting)


@pytest.mark.row(19)
@pytest.mark.parametrize(("name", "value"), INVALID)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is .*--{name.replace('_', '-')}"):
        SampleConfig(**{name: value})


# --- compilations ------------------------------------------------------------------------------------------------


def test_no_prompt_and_no_setting_compiles_more_than_the_buckets():
    config = dataclasses.replace(CONFIG, width=16, num_layers=1, feed_forward=16)  # seen nowhere else, so that it begins with nothing compiled
    params, draw = weights(config), np.random.default_rng(0)

    def compiled() -> tuple[int, int]:
        return generate.prefill._cache_size(), generate.decode._cache_size()

    def ask(length: int, sample: SampleConfig) -> None:
        generate.complete(config, params, TOKENIZER, ["x" * (length - 1)], sample)

    buckets = {16, CONTEXT}
    before = compiled()
    for length in range(1, CONTEXT):
        ask(length, SampleConfig(new_tokens=40, temperature=0))
    grown = [now - then for now, then in zip(compiled(), before, strict=True)]
    assert max(grown) <= len(buckets) ** 2, "a bucket for the prompt and one for what is written"
    warm = compiled()
    for _ in range(30):
        length, count = int(draw.integers(1, CONTEXT)), int(draw.integers(1, 40))
        top_k, top_p, seed = int(draw.integers(0, V)), float(draw.uniform(0.01, 1)), int(draw.integers(0, 999))
        ask(length, SampleConfig(count, float(draw.uniform(0, 2)), top_k, top_p, seed))
    assert [now - then for now, then in zip(compiled(), before, strict=True)] <= [len(buckets) ** 2] * 2
    assert max(now - then for now, then in zip(compiled(), warm, strict=True)) <= 1  # short answers to long prompts come first here
