"""Laws of the cache: what it costs, what 8 and 4 bits lose, and that a ring of slots forgets only
what no layer can see any more.

That reading with any cache is reading without, that what is rolled back was never read, and that
gathered rows go on as their originals is in `test_laws.py`, for all variants, whose windows keep
rings there.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_laws import difference, weights
from variants import ROPE

from gptjax import generate, model
from gptjax.cli.sample import SampleOptions
from gptjax.core import user_config
from gptjax.core.config import ConfigError, from_dict
from gptjax.data import Bytes
from gptjax.data.tokenizers import tokenizer as tokenizers
from gptjax.generate import GenerateConfig, decode
from gptjax.model import Layer
from gptjax.model.cache import allocate
from gptjax.model.cache_bits import quantise_vectors, stored_kind, widen_vectors

TOKENIZER = tokenizers.train_tokenizer(Bytes(), [])
LOCAL, GLOBAL = Layer("window", 5), Layer()
CONFIG = dataclasses.replace(
    ROPE, vocab_size=TOKENIZER.vocab_size, context=64, num_kv_heads=2, pattern=(LOCAL, GLOBAL)
)


def shapes(config, rows=1, slots=64, **how) -> list[tuple[int, int]]:
    """Layers and slots of each group."""
    return [
        group.keys.shape[:4:3]
        for group in jax.eval_shape(lambda: model.empty_cache(config, rows, slots, **how)).groups
    ]


def size(config, slots: int, **how) -> int:
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(
            jax.eval_shape(lambda: model.empty_cache(config, 3, slots, **how)).groups
        )
    )


def test_layers_with_a_window_keep_only_their_window():
    mixed = dataclasses.replace(
        CONFIG, num_layers=6, first=(GLOBAL,), pattern=(LOCAL, Layer("chunk", 4, sinks=2), GLOBAL)
    )
    assert shapes(mixed, at_once=8) == [(2, 64), (2, 5 - 1 + 8), (2, 4 + 2 - 1 + 8)]
    assert shapes(mixed) == [(2, 64), (2, 64), (2, 64)], "a ring is never longer than the text"
    assert shapes(dataclasses.replace(CONFIG, pattern=(Layer("strided", 4),)), at_once=1) == [
        (2, 64)
    ], "strides look back to the beginning"
    local = dataclasses.replace(CONFIG, pattern=(LOCAL,))
    assert size(local, 64, at_once=8) == size(local, 6400, at_once=8), "a longer text needs no more"


@pytest.mark.parametrize(
    ("kind", "compute", "share"),
    [
        ("int8", "float32", 0.27),
        ("int8", "bfloat16", 0.54),
        ("int4", "float32", 0.145),
        ("int4", "bfloat16", 0.29),
    ],
)
def test_eight_bits_are_a_quarter_of_32_and_a_half_of_16_and_four_about_half_of_eight(
    kind, compute, share
):
    config = dataclasses.replace(CONFIG, compute=compute, head_width=64)
    assert size(config, 256, kv_cache=kind) <= share * size(config, 256)


@pytest.mark.parametrize("width", [16, 37, 80])
@pytest.mark.parametrize(("kind", "largest", "group"), [("int8", 127, 128), ("int4", 7, 32)])
def test_few_bits_are_off_by_half_a_step_of_the_largest_of_their_group(kind, largest, group, width):
    """Whatever the sizes of heads and of groups; and every code comes back as it was."""
    draw, begins = np.random.default_rng(0), np.arange(0, width, group)
    sizes = np.repeat(10.0 ** draw.integers(-6, 6, (3, 7, 2, len(begins))), group, -1)[..., :width]
    x = np.float32(draw.standard_normal((3, 7, 2, width)) * sizes)
    x[0, 0] = 0
    stored, scales = quantise_vectors(jnp.asarray(x), kind)
    assert stored_kind(stored) == kind and scales.shape == (3, 7, 2, len(begins))
    bytes_of_one = width if kind == "int8" else -(-width // 2)
    assert stored.dtype.itemsize * stored.shape[-1] == bytes_of_one
    again = np.asarray(widen_vectors(stored, scales, width), np.float64)
    steps = np.repeat(np.asarray(scales, np.float64), group, -1)[..., :width]
    assert (np.abs(again - x) <= steps / 2 * (1 + 1e-5)).all() and not again[0, 0].any()
    most = np.maximum.reduceat(np.abs(x), begins, axis=-1)
    np.testing.assert_allclose(scales, most / largest, rtol=2**-8, atol=1e-30)
    codes = draw.integers(-largest, largest + 1, (5, width))
    codes[:, begins] = largest
    codes = jnp.asarray(codes, jnp.float32)
    np.testing.assert_array_equal(widen_vectors(*quantise_vectors(codes, kind), width), codes)


def test_a_ring_holds_its_sinks_and_what_a_window_still_needs():
    """By positions alone: padding takes no slot, what is rolled back is gone, whatever else a layer
    may look at is there."""
    span, sinks, at_once = 5, 2, 4
    local = dataclasses.replace(CONFIG, pattern=(Layer("window", span, sinks=sinks), GLOBAL))
    cache = model.empty_cache(local, 2, 64, at_once=at_once)
    draw, lengths = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(40):
        counts = draw.integers(0, at_once + 1, 2)
        step = np.arange(at_once)[None]
        positions = np.where(step < counts[:, None], lengths[:, None] + step, -1)
        cache, _ = allocate(cache, jnp.asarray(positions, jnp.int32))
        np.testing.assert_array_equal(cache.lengths, lengths + counts)
        back = np.minimum(draw.integers(0, at_once + 1, 2), counts)
        for forgotten in (0, back):
            held = lengths + counts - forgotten
            cache = model.rollback(cache, jnp.asarray(held, jnp.int32))
            np.testing.assert_array_equal(cache.lengths, held)
            for row, ring, everything in zip(
                held, *(np.asarray(group.positions) for group in cache.groups), strict=True
            ):
                first = max(row - (span - 1), 0)  # what the next token sees
                assert {*range(min(sinks, row)), *range(first, row)} <= {*ring.tolist()}
                assert max(ring.max(), everything.max()) < max(row, 1)
                assert sorted(everything[everything >= 0].tolist()) == [*range(row)]
        lengths = held


@pytest.fixture(scope="module")
def read():
    params = weights(CONFIG)
    return jax.jit(
        lambda ids, positions, cache: model.forward(
            CONFIG, params, ids, positions=positions, cache=cache
        )[:2]
    )


def row(first: int, count: int) -> jax.Array:
    return jnp.arange(first, first + count, dtype=jnp.int32)[None]


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("int4", 0.3)])
def test_a_cache_in_few_bits_reads_nearly_the_same_and_rolls_back_exactly(read, kind, most):
    ids = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocabulary, (1, 32)), jnp.int32)
    wanted, _ = read(ids, row(0, 32), model.empty_cache(CONFIG, 1, 64))
    cache, found = model.empty_cache(CONFIG, 1, 64, kv_cache=kind, at_once=8), []
    for begin in range(0, 32, 8):
        _, further = read(ids[:, ::-1][:, begin : begin + 8], row(begin, 8), cache)
        again = model.rollback(further, cache.lengths)
        hidden, cache_of_again = read(ids[:, begin : begin + 8], row(begin, 8), again)
        straight, cache = read(ids[:, begin : begin + 8], row(begin, 8), cache)
        np.testing.assert_array_equal(hidden, straight)
        np.testing.assert_array_equal(cache_of_again.lengths, cache.lengths)
        found.append(hidden)
    assert most / 100 < difference(np.concatenate(found, axis=1), wanted) < most


def test_rows_of_a_cache_in_few_bits_go_on_as_their_originals_wherever_padding_was(read):
    """Rings and whole groups; gathered, and put into the rows of another cache."""
    draw, rows = np.random.default_rng(1), np.asarray([2, 0, 1, 1])
    ids = jnp.asarray(draw.integers(0, CONFIG.vocabulary, (4, 24)), jnp.int32)
    places = np.stack([np.sort(draw.permutation(8)[:5]) for _ in range(4)])

    def reading(ids, cache, begin, places):
        tokens = draw.integers(0, CONFIG.vocabulary, (4, 8)).astype(np.int32)  # padding too
        where = np.full((4, 8), -1, np.int32)
        np.put_along_axis(tokens, places, np.asarray(ids[:, begin : begin + 5]), 1)
        np.put_along_axis(where, places, np.arange(begin, begin + 5)[None].repeat(4, 0), 1)
        hidden, cache = read(jnp.asarray(tokens), jnp.asarray(where), cache)
        return np.take_along_axis(np.asarray(hidden), places[..., None], 1), cache

    def empty():
        return model.empty_cache(CONFIG, 4, 64, kv_cache="int4", at_once=8)

    one, other, straight = empty(), empty(), np.arange(5)[None].repeat(4, 0)
    for begin in (0, 5, 10):
        _, one = reading(ids, one, begin, places)
        wanted, other = reading(ids[rows], other, begin, straight)
    gathered = model.take_rows(one, jnp.asarray(rows))
    inserted = model.insert_rows(other, jnp.arange(4), one, jnp.asarray(rows))
    wanted, _ = reading(ids[rows], other, 15, straight)
    for cache in (gathered, inserted):
        np.testing.assert_array_equal(reading(ids[rows], cache, 15, straight)[0], wanted)


def test_what_a_ring_can_not_do_is_refused_by_name(read):
    cache = model.empty_cache(CONFIG, 1, 64, at_once=8)
    with pytest.raises(
        ValueError,
        match=(
            "16 tokens are read at once, and a layer with a window has room for 8; read them in"
            " parts"
        ),
    ):
        model.forward(
            CONFIG,
            weights(CONFIG),
            jnp.zeros((1, 16), jnp.int32),
            positions=row(0, 16),
            cache=cache,
        )
    for begin in (0, 8):
        _, cache = read(jnp.zeros((1, 8), jnp.int32), row(begin, 8), cache)
    with pytest.raises(
        ValueError, match="9 tokens can't be rolled back: a layer with a window keeps room for 8"
    ):
        model.rollback(cache, jnp.asarray([7]))


# --- generation ---


PROMPTS = ["The cat sat on the mat and looked at the moon.", "abcabcabcabcabcabcabc", "x", ""]
WAYS = {
    "sampling": {"temperature": 1.0, "num_samples": 2},
    "look-up": {"temperature": 0.0, "lookup": True},
    "beams": {"beams": 4, "num_samples": 2},
    "contrastive": {"contrastive_alpha": 0.5, "top_k": 4},
    "a negative prompt": {"guidance": 1.5, "negative_prompt": "The dog"},
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "look-up" else pytest.mark.slow) for way in WAYS]
)
def test_every_way_of_writing_is_the_same_with_rings_and_prompts_in_parts(way, monkeypatch):
    """Prompts of up to 47 tokens are read in six parts, through rings of twelve slots; then whole,
    with a slot for every token."""
    settings, found = GenerateConfig(new_tokens=14, **WAYS[way]), []
    for chunk, layers in (
        (8, "unroll"),
        (512, "auto"),
    ):  # the same on a CPU, but another program, so that neither is taken for the other
        monkeypatch.setattr(decode, "CHUNK", chunk)
        config = dataclasses.replace(CONFIG, layers=layers)
        assert shapes(config, at_once=chunk)[0][1] == (12 if chunk == 8 else 64)
        found.append(generate.complete(config, weights(CONFIG), TOKENIZER, PROMPTS, settings))
    assert [one.ids for one in found[0]] == [one.ids for one in found[1]]
    assert max(len(one.ids) for one in found[0]) == 14
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "off"), [("int8", 0.05), ("int4", 0.5)])
def test_texts_in_few_bits_are_nearly_as_likely_and_a_prefix_must_be_kept_alike(kind, off):
    params = weights(CONFIG)

    def write(**more):
        return generate.complete(
            CONFIG,
            params,
            TOKENIZER,
            PROMPTS,
            GenerateConfig(new_tokens=14, temperature=0.0, kv_cache=kind),
            **more,
        )

    for one in write():
        ids = [TOKENIZER.end_of_document, *TOKENIZER.encode(one.prompt).tolist(), *one.ids]
        whole = np.asarray(
            generate.token_logprobs(CONFIG, params, jnp.asarray([ids]), jnp.asarray([len(ids)]))
        )[0, -len(one.ids) :]
        np.testing.assert_allclose(one.logprobs, whole, atol=off)
    kept = generate.shared_prefix(CONFIG, params, TOKENIZER, "The ", kv_cache=kind)
    assert [one.reason for one in write(prefix=kept)]
    with pytest.raises(
        ConfigError,
        match=rf"kv_cache is {kind} and the prefix was read with full; read it with the same",
    ):
        write(prefix=generate.shared_prefix(CONFIG, params, TOKENIZER, "The "))


def test_the_old_name_of_the_setting_leads_to_the_new_one():
    with pytest.raises(ConfigError, match=r"int8_cache.*Did you mean 'kv_cache'"):
        from_dict(GenerateConfig, {"int8_cache": True})
    with pytest.raises(ConfigError, match=r"--int8-cache is not a flag. Did you mean '--kv-cache'"):
        user_config.cli(SampleOptions, ["--int8-cache"], prog="x", base=GenerateConfig())
    with pytest.raises(ConfigError, match="kv_cache is int2; it needs full, int8 or int4"):
        GenerateConfig(kv_cache="int2")


@pytest.mark.slow
def test_a_long_prompt_needs_no_square_of_memory():
    """Compiled, not run: four times the prompt, about four times the memory beside the cache; read
    whole it would be sixteen times."""
    config = dataclasses.replace(CONFIG, context=16_384, num_layers=1, pattern=(GLOBAL,))

    def beside(length: int) -> int:
        args = (
            jax.ShapeDtypeStruct((1, length), jnp.int32),
            *(jax.ShapeDtypeStruct((1,), jnp.int32),) * 2,
        )
        compiled = generate.prefill.lower(
            config, jax.eval_shape(lambda: weights(config)), *args, slots=length
        ).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = beside(4096), beside(16_384)
    assert many < 5 * few and many < config.num_heads * 4 * 16_384**2 / 8, (few, many)
