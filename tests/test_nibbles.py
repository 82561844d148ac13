"""Laws of kernels of four bits whose codes lie in bytes, and of activations that are rounded in
blocks: both compute what the numbers that they stand for compute."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import VARIANTS

from gptjax import model, weights
from gptjax.model.decoding import prepare_weights
from gptjax.weights import Quantized, Role, dense, multiply
from gptjax.weights.block_rounded import BlockRounded, round_blocks, rounds_blocks
from gptjax.weights.narrow import BLOCK
from gptjax.weights.nibbles import Nibbles, in_bytes
from gptjax.weights.rounding import Rounding, rounded

GRIDS = {
    "int4": Rounding("int4"),
    "int4 in groups of 64": Rounding("int4", 64),
    "int4 in columns": Rounding("int4", None),
    "int4 in groups of 16": Rounding("int4", 16),
    "int4 zero": Rounding("int4", offset="zero"),
    "int4 minimum": Rounding("int4", offset="minimum"),
}


def drawn(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def narrow(name: str, shape: tuple[int, ...], role: Role) -> Quantized:
    found = rounded(GRIDS[name], drawn(shape), role)
    assert isinstance(found, Quantized)
    return found


def product(x: jax.Array, weight: weights.Weight) -> jax.Array:
    return jax.jit(lambda x, weight: multiply(weight, x, wide=True))(x, weight)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("outputs", [(5, 20), (192,)])
def test_codes_in_bytes_multiply_as_the_array_that_they_stand_for(name, outputs):
    role = Role(inputs=2)
    plain = narrow(name, (2, 64, *outputs), role)
    laid = in_bytes(plain, role)
    assert isinstance(laid, Nibbles) and laid.shape == plain.shape
    wide = np.asarray(dense(plain), np.float64).reshape(128, -1)
    np.testing.assert_allclose(np.asarray(dense(laid)).reshape(128, -1), wide, atol=2e-6)
    for rows in (1, 3):  # one is streamed
        x = drawn((rows, 128), rows)
        exact = np.asarray(x, np.float64) @ wide
        found = product(x[:, None], laid)
        assert found.shape == (rows, 1, exact.shape[1])
        np.testing.assert_allclose(found[:, 0], exact, atol=1e-4)


def test_a_large_kernel_is_widened_in_blocks_for_several_rows():
    plain, role = narrow("int4 minimum", (64, BLOCK // 64 + 100), Role(inputs=1)), Role(inputs=1)
    x = drawn((3, 64))
    exact = np.asarray(x, np.float64) @ np.asarray(dense(plain), np.float64)
    np.testing.assert_allclose(product(x, in_bytes(plain, role)), exact, atol=1e-4)


def test_a_number_takes_half_a_byte():
    role = Role(stacked=1, inputs=1)
    laid = in_bytes(narrow("int4", (3, 64, 128), role), role)
    assert isinstance(laid, Nibbles)
    assert laid.values.nbytes == 3 * 64 * 128 // 2
    first = jax.tree.map(lambda leaf: leaf[1], laid)  # one layer of a stack
    np.testing.assert_array_equal(dense(first), dense(laid)[1])


def test_other_codes_kernels_of_experts_and_odd_groups_stay_as_they_are():
    for kind, shape, role in (
        ("int4", (3, 2, 64, 8), Role(2, 1)),
        ("int4", (9, 8), Role(0, 1)),
        ("int4", (64, 8), Role()),
        ("int8", (64, 8), Role(0, 1)),
    ):
        scales = jnp.ones((*shape[:-2], 1, 8), jnp.float32)
        plain = Quantized(jnp.ones(shape, kind), scales)
        assert in_bytes(plain, role) is plain
    assert in_bytes(Quantized(jnp.ones((64, 8), "int4")), Role(0, 1)).scales is None


# --- activations in blocks


def test_rounded_activations_are_the_very_blocks_of_q8_0():
    gguf = pytest.importorskip("gguf")
    x = drawn((6, 96)) * 10.0 ** jnp.arange(-3, 3)[:, None]
    x = x.at[0, :32].set(0.0).at[1, :4].set(jnp.asarray([127.0, 2.5, -2.5, 0.5])).at[1, 4:32].set(0)
    raw = gguf.quants.quantize(np.asarray(x), gguf.GGMLQuantizationType.Q8_0).reshape(6, 3, 34)
    codes, scales = jax.jit(round_blocks)(x)
    np.testing.assert_array_equal(codes, raw[..., 2:].view(np.int8))
    np.testing.assert_array_equal(scales, raw[..., :2].copy().view("<f2").astype(np.float32))


@pytest.mark.parametrize("laid", [False, True])
def test_a_product_that_rounds_is_that_of_the_rounded_numbers(laid):
    role, x = Role(inputs=1), drawn((2, 1, 96))
    plain = narrow("int4", (96, 40), role)
    weight = rounds_blocks(in_bytes(plain, role) if laid else plain, role)
    assert isinstance(weight, BlockRounded) and weight.shape == (96, 40)
    codes, scales = round_blocks(x)
    wide = (np.asarray(codes, np.float64) * np.asarray(scales)).reshape(2, 1, 96)
    exact = wide @ np.asarray(dense(plain), np.float64)
    for rows in (1, 2):
        np.testing.assert_allclose(product(x[:rows], weight), exact[:rows], atol=1e-4)
    assert 1e-3 < np.abs(np.asarray(x) @ np.asarray(dense(weight)) - exact).max() < 0.2


def test_what_is_not_narrow_and_what_blocks_do_not_divide_round_nothing():
    kernel = drawn((96, 40))
    for plain, role in (
        (kernel, Role(inputs=1)),
        (weights.quantize(kernel, "bfloat16"), Role(inputs=1)),
        (weights.quantize(drawn((48, 40)), "int8"), Role(inputs=1)),
        (weights.quantize(drawn((2, 3, 96, 40)), "int8", role=Role(2, 1)), Role(2, 1)),
    ):
        assert rounds_blocks(plain, role) is plain


@pytest.mark.parametrize("stored", ["int4", "q8_0"])
def test_a_prepared_model_gives_the_logits_of_the_same_numbers(stored):
    config = dataclasses.replace(VARIANTS["gqa"], width=64, compute="float32")
    params = model.init(config, jax.random.key(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, config.vocabulary, (2, 9)))
    own, ready = model.prepare_weights(config, params, stored)
    kernels = jax.tree.leaves(ready["layers"], is_leaf=lambda leaf: hasattr(leaf, "shape"))
    assert any(isinstance(leaf, Nibbles) for leaf in kernels) == (stored == "int4")
    assert any(isinstance(leaf, BlockRounded) for leaf in kernels) == (stored == "q8_0")

    def logits(params, ids):
        return model.unembed(own, params, model.forward(own, params, ids).hidden)

    kinds = Quantized | BlockRounded
    wide = jax.tree.map(
        lambda leaf: dense(leaf) if isinstance(leaf, kinds) else leaf,
        ready,
        is_leaf=lambda leaf: isinstance(leaf, kinds),
    )
    same, found = jax.jit(logits)(wide, ids), jax.jit(logits)(ready, ids)
    off = float(jnp.abs(found - same).max() / jnp.abs(same).max())
    assert (1e-4 < off < 0.1) if stored == "q8_0" else off < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_whose_embedding_has_a_width_of_its_own_is_prepared_too(tied):
    config = dataclasses.replace(VARIANTS["embedding_projected"], tied=tied)
    params, ids = model.init(config, jax.random.key(0)), jnp.arange(8)[None]
    wanted = model.unembed(config, params, model.forward(config, params, ids).hidden)
    ready, stored = prepare_weights(config, params, "float32", None)
    found = model.unembed(ready, stored, model.forward(ready, stored, ids).hidden)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
