"""Laws of products of 8-bit floats: their scales, their numbers and gradients, and that a run with
them is resumed, split and sharded like any other."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import batch_of, trained, weights_of
from runs import assert_same_run, losses_of
from variants import ROPE, VARIANTS

from gptjax import model, weights
from gptjax.core.config import ConfigError
from gptjax.core.trees import combine
from gptjax.losses import CrossEntropy, QuantisationAware
from gptjax.model import Experts
from gptjax.plan.hlo import analyse
from gptjax.runs.checkpoints import leaves
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated, use_mesh
from gptjax.train.halves import of_float8, with_float8
from gptjax.train.loop import train
from gptjax.weights import LoRA, float8
from gptjax.weights.float8 import Float8, scaled

LARGEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
SENT = dataclasses.replace(ROPE, experts=Experts(count=4, active=2, width=16, capacity=1.5))
SHARED = dataclasses.replace(ROPE, experts=Experts(count=4, active=2, width=16))


def drawn(seed: int, *shape: int, size: float = 1.0) -> jax.Array:
    return jnp.asarray(size * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def rounded(x, kind: str) -> np.ndarray:
    """The numbers of x as 8-bit floats, by NumPy, with the scale that the module promises."""
    x = np.asarray(x, np.float64)
    scale = 2.0 ** np.ceil(np.log2(np.abs(x).max() / LARGEST[kind]))
    return (x / scale).astype(np.float32).astype(kind).astype(np.float64) * scale


# --- numbers


@pytest.mark.parametrize("kind", LARGEST)
@pytest.mark.parametrize("largest", [1.0, 0.875, 0.8751, 448.0, 449.0, 3e-20, 7e8])
def test_the_scale_is_the_smallest_power_of_two_under_which_all_numbers_fit(kind, largest):
    x = jnp.asarray([-largest, largest / 3, 0.0], jnp.float32)
    values, scale = scaled(x, kind)
    assert np.frexp(float(scale))[0] == 0.5
    assert largest / scale <= LARGEST[kind] < 2 * largest / scale
    np.testing.assert_array_equal(np.asarray(values, np.float64) * float(scale), rounded(x, kind))


def test_zeros_stay_and_what_is_not_finite_is_not_hidden():
    assert not np.asarray(scaled(jnp.zeros(4), float8.FORWARD).values, np.float32).any()
    for wrong in (jnp.inf, jnp.nan):
        for kind in (float8.FORWARD, float8.BACKWARD):
            values = np.asarray(scaled(jnp.asarray([1.0, wrong]), kind).values, np.float32)
            assert not np.isfinite(values[1])


CASES = {
    "linear": ("bti,io->bto", (3, 5, 16), (16, 24)),
    "heads": ("bti,inh->btnh", (3, 5, 16), (16, 4, 6)),
    "experts": ("becd,edf->becf", (2, 4, 3, 16), (4, 16, 8)),
    "over outputs": ("btnh,rnh->btnr", (2, 3, 4, 6), (8, 4, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_products_and_gradients_are_those_of_rounded_operands(case):
    """By the formula, in float64: y = q(x) q(w), x' = q5(y') q(w)ᵀ, w' = q(x)ᵀ q5(y')."""
    spec, of_x, of_w = CASES[case]
    x, w = drawn(0, *of_x, size=3.0), drawn(1, *of_w, size=0.02)
    names = ("embed", *(None,) * (w.ndim - 1))

    def product(x, w):
        if case in ("linear", "heads"):
            return weights.linear(x, Float8(w), names=names, wide=case == "heads")
        return weights.contract(spec, x, Float8(w))

    y, back = jax.vjp(product, x, w)
    towards = drawn(2, *y.shape, size=1e-6) * jnp.exp(drawn(3, *y.shape))
    a, b = (rounded(one, "float8_e4m3fn") for one in (x, w))
    np.testing.assert_allclose(y, np.einsum(spec, a, b), rtol=1e-5, atol=1e-6)
    exact = jax.vjp(functools.partial(np_einsum, spec), jnp.asarray(a), jnp.asarray(b))[1]
    wanted = exact(jnp.asarray(rounded(towards, "float8_e5m2"), jnp.float32))
    for found, true in zip(back(towards), wanted, strict=True):
        np.testing.assert_allclose(found, true, rtol=1e-4, atol=1e-5 * float(jnp.abs(true).max()))


def np_einsum(spec, x, y):
    return jnp.einsum(spec, x.astype(jnp.float32), y.astype(jnp.float32))


def test_ragged_products_are_those_of_rounded_operands():
    x, w, counts = drawn(0, 10, 16), drawn(1, 3, 16, 8), jnp.asarray([4, 0, 6])
    y, back = jax.vjp(lambda x, w: weights.ragged(x, Float8(w), counts), x, w)
    a, b = (jnp.asarray(rounded(one, "float8_e4m3fn"), jnp.float32) for one in (x, w))
    expected, exact = jax.vjp(lambda a, b: jax.lax.ragged_dot(a, b, counts), a, b)
    towards = drawn(2, *y.shape)
    wanted = exact(jnp.asarray(rounded(towards, "float8_e5m2"), jnp.float32))
    jax.tree.map(
        lambda found, true: np.testing.assert_allclose(found, true, rtol=1e-5, atol=1e-5),
        (y, *back(towards)),
        (expected, *wanted),
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_device_with_such_products_multiplies_8_bit_floats_to_the_same_bits(
    platform, monkeypatch
):
    x, w, towards = drawn(0, 2, 4, 16), drawn(1, 16, 8), drawn(2, 2, 4, 8)

    def both(x, w):
        y, back = jax.vjp(lambda x, w: weights.linear(x, Float8(w), names=("embed", "mlp")), x, w)
        return y, back(towards)

    emulated = jax.jit(both)(x, w)
    assert "f8E4M3FN>, tensor" not in jax.jit(both).lower(x, w).as_text()
    monkeypatch.setattr(float8, "multiplies_float8", lambda: True)
    native = jax.jit(lambda x, w: both(x, w))  # noqa: PLW0108  traced anew
    text = native.trace(x, w).lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    kinds = [line.split(" : ")[1].count("f8E5M2>") for line in products]
    assert kinds == [0, 1, 1] and all("f8E4M3FN>" in line for line in products)
    jax.tree.map(np.testing.assert_array_equal, native(x, w), emulated)


@pytest.mark.parametrize(
    ("kind", "has"),
    {
        **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200", "TPU7x"), True),
        **dict.fromkeys(("NVIDIA A100-SXM4-80GB", "TPU v5p", "TPU v6 lite", "cpu"), False),
    }.items(),
)
def test_devices_with_such_products_are_known(kind, has, monkeypatch):
    monkeypatch.setattr(float8, "device_kind", lambda: kind)
    monkeypatch.setattr(float8, "platform", lambda: "tpu" if "TPU" in kind else "gpu")
    assert float8.multiplies_float8() == has


def test_a_plan_knows_which_products_are_of_8_bit_floats():
    """In a schedule as compilers write it: a product by itself, and one inside a fusion."""
    text = """HloModule m

%fused (p0: f8e5m2[8,16], p1: KIND[16,4]) -> f32[8,4] {
  %p0 = f8e5m2[8,16]{1,0} parameter(0)
  %p1 = KIND[16,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,4]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: f8e5m2[8,16], b: KIND[16,4]) -> f32[8,4] {
  %a = f8e5m2[8,16]{1,0} parameter(0)
  %b = KIND[16,4]{1,0} parameter(1)
  %dot.2 = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %one = f32[8,4]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused
  ROOT %sum = f32[8,4]{1,0} add(%dot.2, %one)
}
"""
    for kind, narrow in (("f8e4m3fn", [True, True, False]), ("bf16", [False, False, False])):
        found = analyse(text.replace("KIND", kind), {}).operations
        assert [one.narrow for one in found] == narrow
        assert [one.flops for one in found] == [1024.0, 1024.0, 0.0]


# --- parts of a batch, and meshes


def test_parts_of_a_batch_are_rounded_to_the_numbers_of_the_whole():
    """Each has another largest number and so another scale, but scales are powers of two."""
    x, w = (
        drawn(0, 8, 16) * jnp.asarray([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0])[:, None],
        drawn(1, 16, 8),
    )
    x = jnp.where(jnp.abs(x) < 0.1, 0.1, x)  # none too small for the type

    def product(x):
        return weights.linear(x, Float8(w), names=("embed", "mlp"))

    assert scaled(x, float8.FORWARD).scale != scaled(x[:4], float8.FORWARD).scale
    np.testing.assert_array_equal(product(x), jnp.concatenate([product(x[:4]), product(x[4:])]))


def test_products_on_a_mesh_are_those_of_one_device():
    """Values and gradients, of kernels whose columns `tensor` splits, and of one whose rows."""
    shapes = {"up": (16, 24), "gate": (16, 24), "down": (24, 16)}
    params = {name: drawn(n, *size, size=10.0**-n) for n, (name, size) in enumerate(shapes.items())}
    x = drawn(9, 8, 4, 16)

    def total(params, x):
        eight = {name: Float8(one) for name, one in params.items()}
        pair = (eight["up"], eight["gate"])
        up, gate = weights.linears(x, pair, names=(("embed", "mlp"),) * 2)
        y = weights.linear(up + gate, eight["down"], names=("mlp", "embed"))
        return (y * drawn(8, *y.shape)).sum(), (up, gate, y)

    both = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    wanted, mesh = both(params, x), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh):
        placed = jax.device_put((params, x), replicated(mesh))
        found = jax.jit(both)(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max())),
        found,
        wanted,
    )


@pytest.mark.parametrize(
    ("config", "devices", "mesh"),
    [
        (ROPE, 4, {"data": 1, "fsdp": 2, "tensor": 2}),
        (SENT, 2, {"data": 1, "expert": 2}),
        (SHARED, 2, {"data": 1, "expert": 2}),
    ],
    ids=["dense", "experts with places", "experts without"],
)
def test_a_mesh_changes_less_than_8_bit_floats_do(config, devices, mesh):
    """A sum in another order may round an operand up that was rounded down, so not to the bit."""
    changes = {"steps": 1, "fp8": ("layers",)}
    (_, [exact]), (_, [alone]), (_, [shared]) = (
        trained(config, devices=1, steps=1),
        trained(config, devices=1, **changes),
        trained(config, devices=devices, mesh=mesh, **changes),
    )
    assert abs(shared - alone) < 0.02 * abs(alone - exact)


# --- models


@pytest.mark.parametrize("name", ["gpt2", "gqa", "deepseek", "experts_by_group", "scanned"])
def test_every_kernel_of_the_layers_multiplies_8_bit_floats_and_trains(name):
    config = dataclasses.replace(VARIANTS[name], num_layers=2)
    params, batch = jax.tree.map(jnp.asarray, weights_of(config)), batch_of(config, 0)
    kernels = [
        path for path, _, _ in weights.kernels.kernels_of(params, model.roles(config), ("layers",))
    ]
    eight = with_float8(config, params, ("layers",))
    found = [one for one in jax.tree.leaves(eight, is_leaf=is_float8) if is_float8(one)]
    assert len(found) == len(kernels) > 0
    plain = CrossEntropy().build(config)
    narrow = of_float8(plain, config, ("layers",))

    def gradient(loss):
        return jax.jit(jax.value_and_grad(lambda p: loss(p, {}, batch, None)[0]))(params)

    (wanted, true), (value, grads) = gradient(plain), gradient(narrow)
    assert 0 < abs(value / wanted - 1) < 0.02
    for path, leaf, _ in weights.kernels.kernels_of(grads, model.roles(config), ("layers",)):
        exact = functools.reduce(lambda tree, key: tree[key], path.split("/"), true)
        apart = jnp.linalg.norm(leaf - exact) / jnp.linalg.norm(exact)
        assert 1e-3 < apart < 0.5, (path, apart)


def is_float8(leaf) -> bool:
    return isinstance(leaf, Float8)


def test_a_pattern_that_matches_no_kernel_is_refused():
    params = jax.tree.map(jnp.asarray, weights_of(ROPE))
    quantised = weights.store(params, model.roles(ROPE), "int8")
    for given, pattern in ((params, "layer"), (quantised, "layers")):
        with pytest.raises(ConfigError, match=rf"fp8 names '{pattern}', which matches no kernel"):
            with_float8(ROPE, given, (pattern,))


def test_a_base_and_kernels_on_a_grid_multiply_8_bit_floats_too():
    """An adapter's own factors do not, and what QAT rounds is rounded before."""
    params, path = jax.tree.map(jnp.asarray, weights_of(ROPE)), ("layers", "mlp", "up", "kernel")
    adapted = model.add_adapter(ROPE, LoRA(rank=2), params, jax.random.key(0))
    both = with_float8(ROPE, combine({"params": adapted[1]}, adapted[0]), ("layers",))
    up = functools.reduce(lambda tree, key: tree[key], path, both)
    assert isinstance(up.base, Float8) and not isinstance(up.a, Float8)
    settings = QuantisationAware()
    loss = settings.build(ROPE)
    found, wanted = (loss.rounded(one) for one in (with_float8(ROPE, params, ("layers",)), params))
    up, true = (functools.reduce(lambda tree, key: tree[key], path, one) for one in (found, wanted))
    assert isinstance(up, Float8) and bool((up.base == true).all())
    assert not bool((true == params["layers"]["mlp"]["up"]["kernel"]).all())


# --- runs


@pytest.fixture(scope="module")
def short(tiny_experiment):
    """A run of bfloat16 with products of 8-bit floats."""
    return dataclasses.replace(
        tiny_experiment,
        model=dataclasses.replace(tiny_experiment.model, compute="bfloat16"),
        fp8=("layers",),
    )


def test_a_run_learns_as_one_of_bfloat16_and_resumes_to_the_same_bits(short, tmp_path):
    whole, parts, plain = (tmp_path / name for name in ("whole", "parts", "plain"))
    train(short, whole)
    train(dataclasses.replace(short, steps=15), parts)
    train(short, parts)
    assert_same_run(parts, whole, 30)
    train(dataclasses.replace(short, fp8=()), plain)
    found, wanted = (np.mean([losses_of(run)[n] for n in range(26, 31)]) for run in (whole, plain))
    assert losses_of(whole) != losses_of(plain)
    assert found == pytest.approx(wanted, rel=0.01)
    # scales are those of the numbers at hand: there is nothing to keep of them
    kept = [
        {leaf.path for tree in ("params", "opt_state") for leaf in leaves(run, tree=tree)}
        for run in (whole, plain)
    ]
    assert kept[0] == kept[1]
    assert "products    e4m3 forward, e5m2 for gradients: layers" in (whole / "log.txt").read_text()
