"""Laws of products of 8-bit activations with 8-bit weights: they are those of whole numbers to the
bit, wherever they are computed, and only where they were asked for."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from variants import VARIANTS

from gptjax import model, weights
from gptjax.core.config import ConfigError
from gptjax.plan import compiled
from gptjax.plan import target as targets
from gptjax.sharding.mesh import MeshConfig, make_mesh
from gptjax.weights import Quantized
from gptjax.weights.kernels import leaves_of
from gptjax.weights.w8a8 import PREFILL, W8A8, integer_product, round_activations

ROLE = weights.Role(inputs=2)


def drawn(tokens: int, dtype: str = "float32") -> tuple[jax.Array, W8A8]:
    """Activations of tokens of very different sizes, one of them zeros, and a kernel [2 24 40]."""
    draw = np.random.default_rng(tokens)
    x = draw.standard_normal((2, tokens, 2, 24)) * 10.0 ** draw.integers(-4, 4, (2, tokens, 1, 1))
    x[0, 0] = 0
    kernel = jnp.asarray(draw.standard_normal((2, 24, 40)), jnp.float32)
    whole = weights.store(kernel, ROLE, "w8a8")
    assert isinstance(whole, W8A8)
    return jnp.asarray(x, dtype), whole


def product(x: jax.Array, weight: weights.Weight) -> jax.Array:
    return weights.linear(x, weight, names=("heads", None, "embed"), inputs=2, wide=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_those_of_the_same_whole_numbers_in_numpy(dtype):
    x, weight = drawn(20, dtype)
    wide = np.asarray(x, np.float32).reshape(2, 20, 48)
    steps = np.abs(wide).max(-1, keepdims=True) * np.float32(1 / 127)
    whole = np.rint(wide / np.maximum(steps, np.float32(1e-30))).astype(np.int64)
    assert np.abs(whole).max() == 127
    sums = whole @ np.asarray(weight.values, np.int64).reshape(48, 40)
    ours, ours_steps = jax.jit(round_activations)(x.reshape(2, 20, 48))
    found = jax.jit(integer_product)(ours, weight.values.reshape(48, 40))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, sums)
    scaled = sums.astype(np.float32) * steps * np.asarray(weight.scales).reshape(40)
    np.testing.assert_allclose(product(x, weight), scaled, rtol=1e-6, atol=1e-30)
    exact = wide @ np.asarray(weights.dense(weight)).reshape(48, 40)
    off = np.abs(scaled - exact).max(-1) / np.maximum(np.abs(exact).max(-1), 1e-30)
    assert 0 < off.max() < 0.05 and (np.asarray(ours_steps)[1:] > 1e-30).all()


def test_only_readings_of_many_tokens_round_where_only_these_were_asked_for():
    for tokens, rounds in ((PREFILL - 1, False), (PREFILL, True)):
        x, always = drawn(tokens)
        plain = Quantized(always.values, always.scales)
        prefill = weights.store(plain, ROLE, "w8a8-prefill")
        same, other = (always, plain) if rounds else (plain, always)
        np.testing.assert_array_equal(product(x, prefill), product(x, same))
        assert np.abs(product(x, prefill) - product(x, other)).max() > 0
        one = jnp.tile(x[:, 1], (PREFILL, 1, 1))  # a token of each of many texts
        np.testing.assert_array_equal(product(one, prefill), product(one, plain))


def test_what_is_no_int8_by_columns_stays_as_it_is():
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((64, 8)), jnp.float32)
    role = weights.Role(inputs=1)
    for plain in (
        weights.quantize(kernel, "int8", role=role, group=32),
        weights.quantize(kernel, "int4", role=role),
        weights.quantize(kernel, "bfloat16", role=role),
    ):
        assert weights.store(plain, role, "w8a8") is plain
    whole = weights.quantize(kernel, "int8", role=role)
    assert isinstance(weights.store(whole, role, "w8a8"), W8A8)


@pytest.mark.parametrize("split", [{"tensor": 4}, {"fsdp": 2, "tensor": 2}])
def test_devices_that_share_a_product_give_the_bits_of_one(split):
    x, weight = drawn(20)
    mesh = make_mesh(MeshConfig(**split), jax.devices()[:4])
    wanted = jax.jit(product)(x, weight)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
    own = weights.on_mesh(mesh, {"one": weight}, {"one": (None, "heads", "embed")})["one"]
    values = jax.device_put(weight.values, place)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        for one in (own, W8A8(values, weight.scales)):
            np.testing.assert_array_equal(jax.jit(product)(x, one), wanted)


@pytest.mark.parametrize("name", ["gqa", "gpt2"])
def test_every_kernel_of_a_prepared_model_multiplies_so_and_its_answers_are_near(name):
    config = VARIANTS[name]
    params = model.init(config, jax.random.key(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, config.vocabulary, (2, PREFILL)))
    logits = {}
    for stored in ("int8", "w8a8", "w8a8-prefill"):
        own, narrow = model.prepare_weights(config, params, stored)
        kinds = {type(leaf) for _, leaf in leaves_of({"head": narrow["head"]})}
        layers = jax.tree.leaves(narrow["layers"], is_leaf=lambda x: isinstance(x, Quantized))
        kinds |= {type(leaf) for leaf in layers if isinstance(leaf, Quantized)}
        assert kinds == ({Quantized} if stored == "int8" else {W8A8})
        hidden = model.forward(own, narrow, ids)[0]
        logits[stored] = np.asarray(model.unembed(own, narrow, hidden))
    np.testing.assert_array_equal(logits["w8a8"], logits["w8a8-prefill"])
    off = np.abs(logits["w8a8"] - logits["int8"]).max() / np.abs(logits["int8"]).max()
    assert 0 < off < 0.1


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_program_for_a_device_holds_products_of_8_bits_with_32_bit_sums(platform):
    x, weight = drawn(20, "bfloat16")
    text = jax.jit(product).trace(x, weight).lower(lowering_platforms=(platform,)).as_text()
    (line,) = [line for line in text.splitlines() if "dot_general" in line]
    assert re.search(r"xi8>, tensor<\S+xi8>\) -> tensor<\S+xi32>", line), line


@pytest.mark.parametrize(
    ("name", "package"), [("v5e:2x4", "libtpu"), ("h100:1x8", "jax_plugins.xla_cuda13")]
)
def test_a_compiled_program_keeps_them(name, package):
    """The compiler widens neither operand."""
    if not targets._installed(package):
        pytest.skip(f"needs {package}, the compiler for {name}")
    machine = targets.parse_target(name)
    try:
        device = targets.stand_in_devices(machine)[0]
    except ConfigError as error:
        pytest.skip(str(error))
    x, weight = jnp.ones((1, 128, 2, 128), jnp.bfloat16), jnp.ones((2, 128, 384), jnp.int8)
    args = x, W8A8(weight, jnp.ones((1, 1, 384)))
    place = SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), args)
    with compiled._compiling(machine, fast=True):
        text = jax.jit(product).lower(*shapes).compile().as_text()
    kinds = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", text)) | dict(
        re.findall(r"([\w.\-]+): (\w+)\[", text)
    )
    found = re.findall(
        r"= \(?(\w+)\[.* (?:convolution|dot|custom-call)\(%?([\w.\-]+), %?([\w.\-]+)", text
    )
    products = [(out, kinds[a], kinds[b]) for out, a, b in found if a in kinds and b in kinds]
    assert ("s32", "s8", "s8") in products, products
    assert all(out == "s32" for out, a, b in products)
