"""Laws of weights that are stored for decoding, and what programs cost where no clock is asked:
products, bytes, compilations."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import ROPE

from gptjax import generate, model
from gptjax.generate import Sampling
from gptjax.weights import Quantized, dense, multiply, quantize
from gptjax.weights.narrow import BLOCK, streamed

CONFIG = dataclasses.replace(ROPE, num_kv_heads=2, num_layers=2, tied=True, compute="float32")
PARAMS = model.init(CONFIG, jax.random.key(0))
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 12), np.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens):
    return model.unembed(config, params, model.forward(config, params, tokens).hidden)


def widened(params):
    """The stored weights as a tree of float32 arrays, stacked."""
    arrays = jax.tree.map(dense, params, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    return arrays | {"layers": jax.tree.map(lambda *layers: jnp.stack(layers), *arrays["layers"])}


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_stored_weights_compute_what_the_same_numbers_in_float32_compute(stored):
    config, params = model.prepare_weights(CONFIG, PARAMS, stored)
    found = logits(config, params, TOKENS)  # many rows
    np.testing.assert_allclose(
        found,
        logits(dataclasses.replace(config, layers="auto"), widened(params), TOKENS),
        atol=2e-5,
    )
    for few in (1, 5):  # one is streamed
        np.testing.assert_allclose(
            logits(config, params, TOKENS[:1, :few]), found[:1, :few], atol=2e-5
        )
    if stored == "float32":
        np.testing.assert_allclose(found, logits(CONFIG, PARAMS, TOKENS), atol=1e-5)


def test_stored_weights_are_as_small_as_their_type_says():
    def size(params):
        return sum(
            leaf.nbytes
            for leaf in jax.tree.leaves(
                {name: leaf for name, leaf in params.items() if name != "embedding"}
            )
        )

    whole, half, quarter = (
        size(model.prepare_weights(CONFIG, PARAMS, stored)[1])
        for stored in ("float32", "bfloat16", "int8")
    )
    assert half < 0.52 * whole
    assert quarter < 0.32 * whole  # with a scale for each of a few inputs


def test_eight_bits_are_off_by_half_a_unit_at_most():
    kernel = jax.random.normal(jax.random.key(1), (64, 3, 8))
    found = quantize(kernel)
    assert jnp.all(jnp.abs(dense(found) - kernel) <= 0.5001 * found.scales)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("inputs", [8, 30, 47, 1021])
def test_narrow_products_are_products(rows, inputs):
    x, kernel = (
        jax.random.normal(jax.random.key(2), (rows, inputs)),
        jax.random.randint(jax.random.key(3), (inputs, 40), -127, 127, jnp.int8),
    )
    right = np.asarray(x) @ np.asarray(kernel, np.float32)
    np.testing.assert_allclose(multiply(Quantized(kernel), x), right, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(streamed(x[0], kernel), right[0], rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU widens weights in blocks")
def test_a_large_narrow_kernel_is_widened_in_blocks():
    x, kernel = (
        jax.random.normal(jax.random.key(2), (3, 1021)),
        jax.random.randint(jax.random.key(3), (1021, 5 * BLOCK // 1021 // 2), -127, 127, jnp.int8),
    )
    compiled = jax.jit(lambda x, kernel: multiply(Quantized(kernel), x)).lower(x, kernel).compile()
    np.testing.assert_allclose(
        compiled(x, kernel), np.asarray(x) @ np.asarray(kernel, np.float32), rtol=1e-4, atol=2e-2
    )
    assert compiled.memory_analysis().temp_size_in_bytes < kernel.size * 4 * 0.7


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only a CPU streams weights")
def test_a_narrow_product_holds_no_wide_kernel():
    """Neither inside the program, nor made before a loop over tokens that reads the same kernel
    each time."""
    x, kernel = jnp.ones((1, 256)), jnp.ones((256, 256), jnp.int8)

    def loop(x, kernel):
        return jax.lax.fori_loop(0, 9, lambda _, x: multiply(Quantized(kernel), x) / 256, x)

    compiled = (
        jax.jit(loop)
        .lower(x, kernel)
        .compile(compiler_options={"xla_backend_optimization_level": 2})
    )
    assert compiled.memory_analysis().temp_size_in_bytes < kernel.size * 4


def test_gradients_of_products_transpose_no_activations():
    """XLA's CPU backend would write one operand of a kernel's gradient anew, value by value, if
    rows had two dimensions."""
    x, kernel = jnp.ones((3, 40, 16)), jnp.ones((16, 24))
    text = (
        jax.jit(jax.grad(lambda kernel: jnp.tanh(multiply(kernel, jnp.tanh(x))).sum()))
        .lower(kernel)
        .compile()
        .as_text()
    )
    assert "f32[24,3,40]" not in text
    assert "f32[24,120]" not in text


def test_longer_prompts_and_answers_of_one_bucket_compile_once():
    config, params = model.prepare_weights(CONFIG, PARAMS, "int8")
    greedy = Sampling(
        np.zeros(1, np.float32), np.full(1, CONFIG.vocab_size, np.int32), np.ones(1, np.float32)
    )
    keys, before = jax.random.split(jax.random.key(0), 1), generate.programs()["advance"]
    for length, new in ((3, 4), (5, 6), (7, 8)):
        out = generate.generate(
            config,
            params,
            TOKENS[:1, :length],
            np.full(1, length),
            keys,
            sampling=greedy,
            new_tokens=new,
        )
        assert out.lengths.tolist() == [new]
    assert generate.programs()["advance"] == before + 1
