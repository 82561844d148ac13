"""Laws of generation: what is written is what the model's probabilities and the settings say, and
depends on nothing else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import ROPE

from gptjax import generate, model
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import Sampling

TOKENIZER = tokenizers.train_tokenizer(Bytes(), [])
CONFIG = dataclasses.replace(ROPE, vocab_size=TOKENIZER.vocab_size, num_kv_heads=2, num_layers=1)
V, CONTEXT = CONFIG.vocabulary, CONFIG.context


def weights(config, seed: int = 0):
    """Weights that give a clear opinion: the best token has about a third of the probability."""
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            0.25 * draw.standard_normal(leaf.shape) + (leaf.shape[-1:] == (32,) and leaf.ndim < 3),
            jnp.float32,
        ),
        tree,
    )


PARAMS = weights(CONFIG)


@jax.jit
def log_probabilities(tokens):
    hidden = model.forward(CONFIG, PARAMS, tokens).hidden
    return jax.nn.log_softmax(model.unembed(CONFIG, PARAMS, hidden), axis=-1)


def judged(prompt: list[int], new: list[int]) -> np.ndarray:
    """ln p of all tokens after each prefix of prompt + new [M V], by one uncached layer_inputs."""
    row = np.zeros((1, CONTEXT), np.int32)
    row[0, : len(prompt) + len(new)] = [*prompt, *new]
    return np.asarray(log_probabilities(row))[0, len(prompt) - 1 : len(prompt) + len(new) - 1]


def settings(rows: int, temperature=1.0, top_k=V, top_p=1.0) -> Sampling:
    return Sampling(
        np.full(rows, temperature, np.float32),
        np.full(rows, top_k, np.int32),
        np.full(rows, top_p, np.float32),
    )


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
    return generate.generate(
        CONFIG, PARAMS, *padded(prompts), keys, sampling=sampling, new_tokens=new_tokens, **more
    )


def ragged(count: int = 8) -> list[list[int]]:
    """Prompts of 1, 3, 5 … tokens; eight of them share all compilations."""
    draw = np.random.default_rng(1)
    return [draw.integers(0, V, 1 + 2 * i).tolist() for i in range(count)]


# --- greedy and sampled ---


@pytest.mark.row(19)
def test_greedy_takes_the_most_likely_token_of_an_uncached_reading():
    prompts = ragged(8)
    out = write(prompts, settings(8, temperature=0.0))
    for prompt, ids in zip(prompts, out.ids.tolist(), strict=True):
        assert judged(prompt, ids).argmax(axis=-1).tolist() == ids


@pytest.mark.row(19)
def test_a_vanishing_temperature_becomes_greedy():
    prompts = ragged(8)
    np.testing.assert_array_equal(
        write(prompts, settings(8, temperature=1e-6)).ids,
        write(prompts, settings(8, temperature=0.0)).ids,
    )


@pytest.mark.row(19)
def test_one_candidate_is_greedy():
    prompts = ragged(8)
    np.testing.assert_array_equal(
        write(prompts, settings(8, top_k=1)).ids, write(prompts, settings(8, temperature=0.0)).ids
    )
    np.testing.assert_array_equal(
        write(prompts, settings(8, top_p=1e-9)).ids,
        write(prompts, settings(8, temperature=0.0)).ids,
    )


def test_log_probabilities_are_those_of_an_uncached_reading():
    prompts = ragged(8)
    for sampling in (settings(8), settings(8, temperature=0.3, top_k=5, top_p=0.7)):
        out = write(prompts, sampling)
        for prompt, ids, found in zip(prompts, out.ids.tolist(), out.logprobs, strict=True):
            np.testing.assert_allclose(
                found,
                np.take_along_axis(judged(prompt, ids), np.asarray(ids)[:, None], 1)[:, 0],
                atol=1e-4,
            )


def test_a_row_writes_the_same_in_any_place():
    prompts, keys, sampling = ragged(8), keys_of(8), settings(8, temperature=0.8, top_p=0.95)
    together = write(prompts, sampling, keys=keys)
    backwards = write(prompts[::-1], sampling, keys=keys[::-1])
    np.testing.assert_array_equal(together.ids, backwards.ids[::-1])


def test_rows_with_different_settings_do_not_touch_each_other():
    prompts, keys = ragged(), keys_of(8)
    kinds = [(0, V, 1), (1, 3, 1), (0.5, V, 0.4), (2, 40, 0.9)] * 2
    mixed = Sampling(
        *(
            np.asarray(field, kind)
            for field, kind in zip(
                zip(*kinds, strict=True), (np.float32, np.int32, np.float32), strict=True
            )
        )
    )
    together = write(prompts, mixed, keys=keys)
    for i, kind in enumerate(kinds[:4]):
        np.testing.assert_array_equal(
            write(prompts, settings(8, *kind), keys=keys).ids[i], together.ids[i]
        )


def test_the_seed_decides():
    prompts = ragged(8)
    first, again, other = (write(prompts, settings(8), seed=seed).ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=1).all()


def test_every_token_and_row_has_a_key_of_its_own():
    """Of a model that finds everything equally likely, equal noise would draw equal tokens."""
    indifferent = jax.tree.map(jnp.zeros_like, PARAMS)
    keys, (rows, lengths) = keys_of(8), padded(ragged(8))
    out = generate.generate(
        CONFIG, indifferent, rows, lengths, keys, sampling=settings(8), new_tokens=10
    )
    assert len(np.unique(out.ids)) > 40  # of 80 draws among 257


def test_fewer_new_tokens_are_the_beginning_of_more():
    prompts = ragged()
    few, many = (write(prompts, settings(8), new_tokens=count) for count in (4, 10))
    np.testing.assert_array_equal(few.ids[:, :4], many.ids[:, :4])
    assert (few.lengths == 4).all() and (many.lengths == 10).all()


def test_ids_past_the_vocabulary_are_never_drawn():
    out = write(ragged(8), settings(8, temperature=50.0), vocabulary=40)
    assert (out.ids < 40).all()


# --- stop, context ---


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
    prompts = ragged()
    free = write(prompts, settings(8)).ids
    out = write(prompts, settings(8), stop=(int(free[0, 3]), int(free[1, 5])))
    assert out.finished[:2].all() and out.lengths[0] <= 3 and out.lengths[1] <= 5


@pytest.mark.row(11)
def test_prompt_and_new_tokens_may_fill_the_context():
    prompt = ragged()[7]
    out = write([prompt], settings(1, temperature=0.0), new_tokens=CONTEXT - len(prompt))
    ids = out.ids[0].tolist()
    assert len(prompt) + len(ids) == CONTEXT and judged(prompt, ids).argmax(axis=-1).tolist() == ids
    np.testing.assert_array_equal(
        ids[:5], write([prompt], settings(1, temperature=0.0), new_tokens=5).ids[0]
    )


@pytest.mark.row(11)
@pytest.mark.parametrize("over", [1, 100])
def test_a_context_is_never_exceeded(over):
    with pytest.raises(
        ValueError,
        match=(
            rf"a prompt of 12 tokens and {CONTEXT - 12 + over} new ones exceed the context of"
            rf" {CONTEXT}\."
        ),
    ):
        write([[1] * 12, [1]], settings(2), new_tokens=CONTEXT - 12 + over)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty"):
        generate.generate(
            CONFIG,
            PARAMS,
            np.zeros((1, 3), np.int32),
            np.zeros(1, int),
            keys_of(1),
            sampling=settings(1),
            new_tokens=2,
        )
