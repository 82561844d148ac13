"""Laws of weights in bfloat16 with stochastic rounding: no update is lost on average, the optimizer
is that of float32 weights, and a run resumes to the same bits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import trained
from runs import losses_of
from variants import ROPE

import gptjax
from gptjax.core.config import ConfigError
from gptjax.runs.checkpoints import leaves
from gptjax.train import optim
from gptjax.train.loop import train
from gptjax.train.stochastic import keep_narrow, round_stochastically, widen_gradients
from gptjax.weights import LoRA

NUMBERS = [1.001, -3.3e-5, 1.99999, 2.0**-126 * 1.3, 6.6e30, -1.0, 0.0]


def neighbours(x: np.float32) -> tuple[float, float]:
    """The bfloat16 numbers around x, in order of their size."""
    bits = np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)
    return tuple(float((bits + np.uint32(n << 16)).view(np.float32)) for n in (0, 1))


@pytest.mark.parametrize("x", NUMBERS)
def test_the_mean_of_many_roundings_is_the_number(x):
    """Each is one of the two neighbours, and the share of the farther is what the mean asks for."""
    count, x = 20_000, np.float32(x)
    rounded = round_stochastically(jnp.full(count, x), jax.random.key(0))
    low, high = neighbours(x)
    found = np.asarray(rounded, np.float64)
    assert set(found) <= ({low, high} if low != float(x) else {low})
    share = (float(x) - low) / (high - low)
    assert abs((found == high).mean() - share) <= 4 * (share * (1 - share) / count) ** 0.5


def test_what_is_not_finite_stays():
    rounded = round_stochastically(jnp.asarray([jnp.inf, -jnp.inf, jnp.nan]), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), [np.inf, -np.inf, np.nan])


def test_updates_below_half_a_step_of_bfloat16_add_up():
    """A hundred times 10⁻³ of a step: to the nearest none would be seen."""
    params = {"w": jnp.ones(4000, jnp.bfloat16)}
    optimizer = keep_narrow(optax.sgd(1.0), seed=0)
    state = optimizer.init(params)
    grads = {"w": jnp.full(4000, -(2.0**-7) / 1000)}
    for number in range(100):
        updates, state = optimizer.update(grads, state, params, step=jnp.int32(number))
        params = optax.apply_updates(params, updates)
    assert params["w"].dtype == jnp.bfloat16
    risen = np.asarray(params["w"], np.float64) - 1
    spread = 2.0**-7 * (0.1 * 0.9 / 4000) ** 0.5
    assert abs(risen.mean() - 0.1 * 2.0**-7) <= 4 * spread


def test_an_update_is_that_of_float32_weights_rounded():
    """The optimizer remembers float32, and changes a weight to one of the neighbours of its sum."""
    wide = {"w": jnp.asarray([0.5, -1.0, 3.0, 1e-3]), "scale": jnp.ones(2)}
    params = wide | {"w": wide["w"].astype(jnp.bfloat16)}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    plain = optim.build_optimizer(optim.AdamW(peak=0.1), lambda step: 0.1)
    grads = {"w": jnp.asarray([0.3, -0.2, 1.0, 0.1]), "scale": jnp.asarray([0.1, 0.2])}
    facts = {"step": jnp.int32(3)}
    narrow = keep_narrow(plain, seed=0)
    updates, state = narrow.update(grads, narrow.init(params), params, **facts)
    exact, wanted = optax.with_extra_args_support(plain).update(
        grads, plain.init(wide), wide, **facts
    )
    jax.tree.map(np.testing.assert_array_equal, state, wanted)
    np.testing.assert_array_equal(updates["scale"], exact["scale"])
    after = np.asarray(optax.apply_updates(params, updates)["w"], np.float64)
    for found, true in zip(after, np.asarray(wide["w"] + exact["w"]), strict=True):
        assert found in neighbours(true)


def test_gradients_of_micro_batches_are_added_up_in_float32():
    def gradients(objective, trainable, part, key):
        return 0.0, {"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}

    _, grads = widen_gradients(gradients)(None, {}, None, None)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}


def test_weights_are_rounded_alike_on_a_mesh():
    """Of the two, the rounding of a sum that differs in its last bit may differ."""
    narrow = optim.AdamW(peak=1e-3, epsilon=1e-4, weights="bfloat16")
    (alone, losses), (shared, others) = (
        begun(narrow, devices, mesh) for devices, mesh in ((1, {}), (4, {"fsdp": 2, "tensor": 2}))
    )
    assert others == pytest.approx(losses, rel=1e-5)
    pairs = zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True)
    same = [np.mean(np.asarray(a == b)) for a, b in pairs if a.dtype == jnp.bfloat16]
    assert len(same) == 9 and min(same) > 0.99


def begun(settings, devices: int, mesh: dict):
    state, losses = trained(ROPE, devices=devices, steps=2, mesh=mesh, optim=settings)
    return state.trainable, losses


# --- runs


@pytest.fixture(scope="module")
def short(tiny_experiment):
    narrow = dataclasses.replace(tiny_experiment.optim, weights="bfloat16")
    return dataclasses.replace(tiny_experiment, optim=narrow, batch=16, micro_batch=8)


def kinds(path, tree):
    return {leaf.path: leaf.dtype for leaf in leaves(path, tree=tree)}


def test_a_run_resumes_to_the_same_bits_learns_and_opens(short, tmp_path):
    whole, parts, plain = (tmp_path / name for name in ("whole", "parts", "plain"))
    train(short, whole)
    train(dataclasses.replace(short, steps=15), parts)
    train(short, parts)
    assert losses_of(parts) == losses_of(whole)
    for tree in ("params", "opt_state"):
        assert sorted(map(str, leaves(parts, tree=tree))) == sorted(
            map(str, leaves(whole, tree=tree))
        )
    matrices = {path for path, kind in kinds(whole, "params").items() if kind == "bfloat16"}
    assert {"embedding/embedding", "layers/mlp/up/kernel"} <= matrices
    assert not [path for path in matrices if "norm" in path or "bias" in path]
    assert "bfloat16" not in kinds(whole, "opt_state").values()
    opened = gptjax.load(whole)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.params)} == {"float32"}
    train(
        dataclasses.replace(short, optim=dataclasses.replace(short.optim, weights="float32")), plain
    )
    found, wanted = (np.mean([losses_of(run)[n] for n in range(26, 31)]) for run in (whole, plain))
    assert found == pytest.approx(wanted, rel=0.02)


def test_an_adapter_trains_in_float32_alone(short):
    with pytest.raises(
        ConfigError, match=r"optim\.weights is bfloat16, and what an adapter trains"
    ):
        dataclasses.replace(short, start="smollm2", adapter=LoRA())
