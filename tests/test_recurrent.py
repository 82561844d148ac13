"""Laws of recurrent layers: chunks compute what single steps do, a text is alone in its row, memory
grows with the length of a text and not with its square, and what is generated does not depend on
how it is.

That they obey the laws of all layers (causality, packing, caches, rows, meshes) is in
`test_laws.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generate import CONFIG, TOKENIZER
from test_laws import difference, plain, read, read_on, tokens_of, weights
from variants import RECURRENT, VARIANTS

from gptjax import generate, model
from gptjax.api import Model
from gptjax.core.config import ConfigError
from gptjax.generate import Draft, GenerateConfig
from gptjax.generate.request import requests
from gptjax.model import DeltaNet, Layer
from gptjax.model.recurrent import recurrence
from gptjax.model.recurrent.recurrence import Tokens
from gptjax.plan.serving import plan_serving
from gptjax.plan.target import parse_target
from gptjax.serve.slots import PART
from gptjax.serve.stream import Ask
from gptjax.train.overview import model_facts

LONGEST, CHUNK = 512, 64
DELTA = pytest.mark.parametrize("delta", [True, False])
"""With the delta rule, and without."""


@functools.cache
def drawn(delta: bool, length: int = LONGEST) -> tuple[Tokens, jax.Array]:
    """Tokens of two rows and a state before them. Some decays are weak and some strong, so that
    sums of them lose the weak ones."""
    draw = np.random.default_rng(int(delta))

    def normal(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32)

    q, k = normal(2, 2, length, 2, 8)
    tokens = Tokens(
        queries=q,
        keys=k / np.linalg.norm(k, axis=-1, keepdims=True),
        values=normal(2, length, 2, 3, 4),
        decays=-np.exp(3 * normal(2, length, 2, 3)),
        rates=1 / (1 + np.exp(-normal(2, length, 2, 3))) if delta else None,
    )
    return jax.tree.map(jnp.asarray, tokens), jnp.asarray(normal(2, 2, 3, 8, 4))


@jax.jit
def step_by_step(tokens: Tokens, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each token reads, and the state after it."""

    def one(state, token):
        read, state = recurrence.one_step(token, state)
        return state, (read, state)

    apart = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), tokens)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), jax.lax.scan(one, state, apart)[1])


@jax.jit
def in_chunks(tokens: Tokens, state: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    real = jnp.arange(LONGEST)[None] < length
    whole = recurrence.masked(tokens, jnp.broadcast_to(real, (2, LONGEST)))
    return recurrence.read_tokens(whole, state, None, chunk=CHUNK)


@DELTA
@pytest.mark.parametrize(
    "lengths",
    [
        (1, 2, 63, 64, 65, 128, 200, 511, LONGEST),
        pytest.param(range(1, LONGEST + 1), marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_chunks_compute_what_steps_do_at_any_length(delta, lengths, record_property):
    """Of all lengths one program, in which what is behind a text is masked."""
    tokens, state = drawn(delta)
    read, states = step_by_step(tokens, state)
    worst = 0.0
    for length in lengths:
        found, after = in_chunks(tokens, state, length)
        worst = max(worst, difference(found[:, :length], read[:, :length]))
        worst = max(worst, difference(after, states[:, length - 1]))
    record_property("figure", f"lengths 1 to {max(lengths)}: within {worst:.0e}")
    assert worst <= 1e-5


@DELTA
def test_chunks_of_texts_in_one_row_are_those_texts_alone(delta):
    tokens, state = drawn(delta)
    borders = np.asarray([0, 1, 50, 64, 90, 300, 301, LONGEST])
    texts = np.repeat(np.arange(7), np.diff(borders))
    texts = jnp.broadcast_to(jnp.asarray(texts, jnp.int32), (2, LONGEST))
    read, after = jax.jit(functools.partial(recurrence.chunked, chunk=CHUNK))(tokens, state, texts)
    for number, (begin, end) in enumerate(itertools.pairwise(borders)):
        own = jax.tree.map(lambda leaf, b=begin: jnp.roll(leaf, -b, axis=1), tokens)
        wanted, states = step_by_step(own, state if number == 0 else jnp.zeros_like(state))
        assert difference(read[:, begin:end], wanted[:, : end - begin]) <= 1e-5
    assert difference(after, states[:, end - begin - 1]) <= 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "mamba",
        pytest.param("delta_and_attention", marks=pytest.mark.slow),
        pytest.param("convolution_and_attention", marks=pytest.mark.slow),
    ],
)
def test_padding_before_a_text_changes_nothing(name):
    config, tokens = VARIANTS[name], tokens_of(VARIANTS[name])
    before = 5
    where = np.arange(tokens.shape[1], dtype=np.int32) - before
    where = np.broadcast_to(np.where(where < 0, -1, where), tokens.shape)
    ones = np.ones_like(tokens)
    found = read(config, weights(config), tokens, where, ones)[:, before:]
    wanted = plain(config, np.roll(tokens, -before, axis=1))[:, : tokens.shape[1] - before]
    assert difference(found, wanted) <= 1e-6


def test_a_strong_decay_forgets_and_none_keeps():
    tokens, state = drawn(False)
    one = jax.tree.map(lambda leaf: leaf[:, 0], tokens)
    for decay, left in ((0.0, 1.0), (-np.log(2), 0.5), (-200.0, 0.0)):
        decayed = one._replace(decays=jnp.full_like(one.decays, decay), keys=0 * one.keys)
        np.testing.assert_allclose(recurrence.one_step(decayed, state)[1], left * state, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delta", "mamba"])
def test_memory_of_training_grows_with_the_length_of_a_text_and_not_with_its_square(
    name, record_property
):
    """Compiled, not run."""
    sizes = [training_bytes(VARIANTS[name], length) for length in (1024, 2048, 4096, 8192)]
    told = ", ".join(f"{size / 2**20:.1f}" for size in sizes)
    record_property("figure", f"MiB at 1,024, 2,048, 4,096 and 8,192 tokens: {told}")
    assert sizes[3] <= 2.2 * sizes[2] and sizes[3] <= 10 * sizes[0]  # squares: 4 and 64 times


def training_bytes(variant: model.ModelConfig, length: int) -> int:
    """What the gradient of one row needs beside the parameters."""
    config = dataclasses.replace(
        variant, context=length, recurrent=dataclasses.replace(variant.recurrent, chunk=64)
    )
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(params, tokens):
        hidden = model.forward(config, params, tokens).hidden
        return jnp.square(hidden).mean()

    compiled = jax.jit(jax.grad(loss)).lower(model.shapes(config), row).compile()
    return compiled.memory_analysis().temp_size_in_bytes


# --- generation


HYBRID = dataclasses.replace(
    CONFIG,
    num_layers=2,
    context=64,
    recurrent=DeltaNet(2, 4, key_width=8, value_width=6, chunk=8),
    pattern=(RECURRENT, Layer()),
)
PROMPTS = ["The cat sat on the mat and looked at the moon.", "abcabcabcabcabcabcabc", "x", ""]


def greedy_without_a_cache(config, params, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens after some ids, each of a reading of all before it."""
    read = jax.jit(
        lambda row: model.unembed(config, params, model.forward(config, params, row).hidden)
    )
    row, end = np.zeros((1, len(ids) + count), np.int32), len(ids)
    row[0, :end] = ids
    for place in range(end, end + count):
        row[0, place] = int(np.asarray(read(row))[0, place - 1, : TOKENIZER.vocab_size].argmax())
    return row[0, end:].tolist()


@functools.cache
def written(**settings) -> list:
    told = {"new_tokens": 12, "temperature": 0.0} | settings
    return generate.complete(
        HYBRID, weights(HYBRID), TOKENIZER, PROMPTS, GenerateConfig(**told), batch=2
    )


def test_a_hybrid_writes_what_it_would_predict_whoever_is_in_the_batch():
    """Four prompts of other lengths in two rows: they are admitted into rows that others leave."""
    for one in written():
        ids = [TOKENIZER.end_of_document, *TOKENIZER.encode(one.prompt).tolist()]
        wanted = greedy_without_a_cache(HYBRID, weights(HYBRID), ids, 12)
        assert one.ids == wanted[: len(one.ids)]


def test_guesses_that_are_rolled_back_change_nothing():
    """Look-up guesses several tokens, and a draft reads its own one by one."""
    assert [one.ids for one in written(lookup=True)] == [one.ids for one in written()]
    draft = Draft(HYBRID, weights(dataclasses.replace(HYBRID, init_std=0.5)))
    found = generate.complete(
        HYBRID,
        weights(HYBRID),
        TOKENIZER,
        PROMPTS,
        GenerateConfig(new_tokens=12, temperature=0.0, draft_tokens=3),
        draft=draft,
    )
    assert [one.ids for one in found] == [one.ids for one in written()]


def test_what_a_state_can_not_do_is_refused_by_name():
    params, ids = weights(HYBRID), jnp.zeros((1, 4), jnp.int32)
    where = jnp.arange(4, dtype=jnp.int32)[None]
    for undo, back in ((0, 1), (2, 3)):
        cache = model.with_undo(model.empty_cache(HYBRID, 1, 8), undo)
        _, cache = read_on(HYBRID, params, ids, where, cache)
        model.rollback(cache, jnp.asarray([4 - undo]))
        with pytest.raises(ValueError, match=f"{back} tokens can't be .* keeps the last {undo} "):
            model.rollback(cache, jnp.asarray([4 - back]))
    for changes, why in (
        ({"recurrent": None}, "it needs such layers in model.pattern"),
        ({"pattern": (Layer(),)}, "it needs such layers in model.pattern"),
        ({"causal": False}, "reads from left to right"),
        ({"encoder_layers": 1}, "reads from left to right"),
    ):
        with pytest.raises(ConfigError, match=why):
            dataclasses.replace(HYBRID, **changes)
    with pytest.raises(ConfigError, match="value_heads is 3; it needs a multiple of the 2"):
        DeltaNet(2, 3)
    with pytest.raises(ConfigError, match="needs 'all' and none"):
        Layer("window", 4, recurrent=True)


def test_a_server_writes_the_same_whoever_was_in_the_row_and_keeps_no_prefixes():
    config = dataclasses.replace(HYBRID, context=PART + 32)
    prompt = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size - 1, PART + 9).tolist()
    whole = Model(config, weights(config), TOKENIZER)
    settings = GenerateConfig(new_tokens=6, temperature=0.0)
    with whole.engine(slots=1, context=config.context, cache_gib=0.1) as engine:
        answers = []
        for ids in (prompt[:2], prompt, prompt[:2]):
            wanted = greedy_without_a_cache(config, weights(config), ids, 6)
            (one,) = requests(config, TOKENIZER, [ids], settings)
            pieces = list(engine.submit(Ask(one)))
            found = [i for piece in pieces for i in piece.ids]
            assert found == wanted[: len(found)] and len(found) >= 1
            answers.append((found, [x for piece in pieces for x in piece.logprobs]))
        assert answers[0] == answers[2]
        assert not engine.device.keeps_prefixes


def test_the_planner_counts_states_once_and_keys_for_each_token():
    config, one = HYBRID, HYBRID.recurrent
    kept = 3 * 2 * (8 + 8 + 2 * 6)  # what the convolution of 4 taps still needs
    state = 2 * 2 * 8 * 6
    facts = model_facts(config)
    assert facts["state_bytes"] == 4 * (kept + state) + 4  # and a length
    assert facts["cache_per_token"] == 2 * 4 * config.kv_heads * config.head_dim + 4
    alone = dataclasses.replace(config, pattern=(RECURRENT,))
    assert model_facts(alone)["cache_per_token"] == 0
    weighed = sum(
        np.prod(row["shape"][1:]) * row["shape"][0]
        for row in model_facts(alone)["table"]
        if row["path"].endswith(("kernel", "taps"))
    )
    assert one.products(config.width)[1] == 3 * state
    wanted = 6 * (weighed + 2 * 3 * state)
    assert model.flops_per_token(alone, 16) == model.flops_per_token(alone, 60) == wanted
    plan = plan_serving(config, parse_target("cpu:1"), context=64)
    assert plan["row_bytes"] == 64 * facts["cache_per_token"] + facts["state_bytes"]
    assert plan["cache_bytes"] == 0, "beginnings are not kept"
