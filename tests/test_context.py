"""Zig-zag order of positions over devices: the same losses and gradients as on one device, as much
work for each of them, and refused in one line where it can't be."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import differences, experiment_of, loss_and_gradients
from small_plans import llama
from variants import ROPE, VARIANTS

from gptjax.core.config import ConfigError
from gptjax.model import Experts, Layer, Shortcuts
from gptjax.model.attention import kernels
from gptjax.model.attention.blockwise import visited
from gptjax.model.attention.layer import attend
from gptjax.model.attention.mask import MaskInputs, ScoreConfig
from gptjax.model.attention.order import context_order, zigzag_lacks
from gptjax.model.attention.sharded import over_mesh
from gptjax.model.config import Mamba2
from gptjax.plan import target as targets
from gptjax.plan.plan import plan_step
from gptjax.plan.report import format_plan
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated
from gptjax.sharding.zigzag import part_starts, zigzag_positions
from gptjax.train import placement

PLAIN = dataclasses.replace(ROPE, num_layers=2, context=32, attention="blockwise")
SHARED = Experts(count=4, active=2, width=16, shared=1, balance=0.1, router_z=0.1)
MODELS = {
    "plain": PLAIN,
    "groups, windows": dataclasses.replace(
        PLAIN, num_kv_heads=2, pattern=(Layer("window", 5), Layer())
    ),
    "latent": dataclasses.replace(VARIANTS["latent"], context=32, attention="blockwise"),
    "chunks, sinks, a loop": dataclasses.replace(
        PLAIN,
        pattern=(Layer("chunk", 8), Layer("window", 6, sinks=2)),
        attention_sink=True,
        layers="scan",
    ),
    "ALiBi": dataclasses.replace(VARIANTS["alibi"], context=32, attention="blockwise"),
    "experts": dataclasses.replace(PLAIN, experts=SHARED),
    "further tokens": dataclasses.replace(PLAIN, ahead=1),
    "shortcuts": dataclasses.replace(PLAIN, shortcuts=Shortcuts(values="table")),
}


@functools.cache
def alone(name: str, packed: bool):
    return loss_and_gradients(MODELS[name], packed)


def assert_those_of_one_device(name: str, packed: bool, mesh: dict):
    config = dataclasses.replace(MODELS[name], context_order="zigzag")
    loss, gradients = differences(loss_and_gradients(config, packed, mesh), alone(name, packed))
    assert loss <= 1e-6 and gradients <= 1e-5, (loss, gradients)


# --- the same numbers ---

QUICK = [("plain", False), ("groups, windows", True), ("latent", True), ("shortcuts", True)]


@pytest.mark.parametrize(("name", "packed"), QUICK, ids=str)
def test_losses_and_gradients_are_those_of_one_device(name, packed):
    assert_those_of_one_device(name, packed, {"context": 4})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("mesh", "packed"),
    [({"context": 4}, False), ({"context": 4}, True), ({"context": 2, "tensor": 2}, True)],
    ids=str,
)
def test_losses_and_gradients_on_any_mesh_are_those_of_one_device(name, mesh, packed):
    assert_those_of_one_device(name, packed, mesh)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["plain", "latent", "ALiBi", "shortcuts"])
def test_stages_in_zigzag_order_are_one_device(name):
    assert_those_of_one_device(name, True, {"context": 2, "stage": 2})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layer", [Layer(), Layer("window", 100)], ids=lambda layer: layer.sees)
def test_splash_in_zigzag_order_is_the_reference(layer):
    """Values and gradients, with pieces and padding."""
    parts, length = 2, 512
    made = make_mesh(MeshConfig(data=1, context=parts), jax.devices()[:parts])
    draw, order = np.random.default_rng(0), zigzag_positions(length, parts)
    shape = (1, length, 2, 128)
    q, k, v = (jnp.asarray(draw.normal(size=shape), jnp.float32) for _ in range(3))
    where = np.where(np.arange(length) < length - 9, np.arange(length), -1)[None]
    pieces = (np.arange(length) // 200)[None]
    seen, how = MaskInputs(*map(jnp.asarray, (where, where, pieces, pieces))), ScoreConfig(layer)
    counted = jnp.asarray(where[0] >= 0)[None, :, None, None]

    def over(q, k, v):
        q, k, v, mask_inputs = jax.tree.map(lambda x: x[:, order], (q, k, v, seen))
        kernel = kernels.split_splash(q, how, interpret=True, zigzag=True)

        def own(q, k, v, mask_inputs, table, sink, starts, kernel):
            return kernels.splash(q, k, v, mask_inputs, how, sink, kernel, interpret=True)

        mixed = over_mesh(own, q, k, v, mask_inputs, None, None, *kernel, zigzag=True)
        return mixed[:, np.argsort(order)]

    def total(f):
        def squares(*x):
            return jnp.square(jnp.where(counted, f(*x), 0)).sum()

        return jax.jit(jax.value_and_grad(squares, argnums=(0, 1, 2)))

    wanted = total(lambda q, k, v: attend(q, k, v, seen, how))(q, k, v)
    with use_mesh(made):
        found = total(over)(*jax.device_put((q, k, v), replicated(made)))
    for a, b in zip(*map(jax.tree.leaves, jax.device_get((found, wanted))), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


# --- the same work ---


@pytest.mark.parametrize("devices", [8, 32])
@pytest.mark.parametrize(
    "layer", [Layer(), Layer("window", 700), Layer("chunk", 3000)], ids=lambda layer: layer.sees
)
def test_every_device_visits_as_many_blocks_as_another_and_none_in_vain(layer, devices):
    """Of a blockwise kernel; all visits together are those of one device, and in contiguous order
    the last device has almost twice the mean."""
    length, size = 1024 * devices, 256

    def blocks(starts, parts=devices):
        bounds = visited(layer, starts, length // parts, size, length, True)
        return np.diff(bounds).sum((1, 2))

    even = blocks(part_starts(length, devices, zigzag=True))
    late = blocks(part_starts(length, devices, zigzag=False))
    (alone,) = blocks(((0,),), 1)
    assert even.sum() == late.sum() == alone
    assert even.max() <= 1.05 * even.mean()
    if layer.sees != "window":
        assert late.max() > 1.8 * late.mean()
        assert alone == (length // size) * (length // size + 1) // 2, "nothing above the diagonal"


@pytest.mark.parametrize("zigzag", [True, False])
def test_splash_skips_what_no_query_sees_on_each_device(zigzag):
    """By the blocks of its mask, of eight devices."""
    devices, size = 8, 128
    kernel = kernels._splash(devices * 2 * size, 1, ScoreConfig(), devices, True, zigzag)
    blocks = np.asarray(kernel.fwd_mask_info.block_mask)[0]
    of_devices = (blocks > 0).reshape(devices, -1).sum(1)
    assert of_devices.sum() == len(blocks) * (len(blocks) + 1) // 2
    assert (of_devices.max() <= 1.05 * of_devices.mean()) == zigzag


def planned(devices: int, order: str, target: str) -> dict:
    """What a plan says of Llama blocks with rows of 512 positions for each device."""
    one = llama(
        {"data": 1, "context": devices},
        attention="blockwise",
        context=512 * devices,
        num_layers=2,
        layers="scan",
        context_order=order,
    )
    return plan_step(one, targets.parse_target(target))


@pytest.mark.parametrize("order", ["auto", "contiguous"])
def test_a_plan_counts_the_slowest_device(order):
    """FLOPs of the compiled program: those of the model as often as it is computed, where the
    device with most to do has no more than the mean."""
    facts = planned(8, order, "cpu:8")
    even = order == "auto"
    assert facts["context"]["order"] == ("zigzag" if even else "contiguous")
    assert (facts["context"]["slowest"] <= 1.05) == even, facts["context"]
    assert "the slowest computes" in format_plan(facts)
    ratio = facts["flops"]["hardware"] / facts["flops"]["model"]
    assert (ratio <= 1.6) == even, ratio


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not targets._installed("libtpu"), reason="needs the extra plan-tpu")
@pytest.mark.parametrize(("devices", "target"), [(8, "v5p:2x2x2"), (32, "v5p:2x4x4")])
def test_the_slowest_tpu_takes_no_longer_than_the_mean(devices, target):
    one = llama({"data": 1, "context": devices}, context=1024 * devices, num_layers=2)
    facts = plan_step(one, targets.parse_target(target), fast=True)
    assert facts["context"]["order"] == "zigzag" and facts["context"]["slowest"] <= 1.05


# --- which order ---


@pytest.mark.parametrize(
    ("changes", "order", "why"),
    [
        ({}, "zigzag", "early and late"),
        ({"context_order": "contiguous"}, "contiguous", "config says"),
        ({"attention": "reference"}, "contiguous", "no device has more"),
        ({"attention": "reference", "context_order": "zigzag"}, "zigzag", "config says"),
        ({"pattern": (Layer("window", 4),)}, "contiguous", "no device has more"),
        ({"residual_dropout": 0.1}, "contiguous", "dropout"),
        ({"context": 36}, "contiguous", "8 chunks"),
        ({"prefix_lm": True}, "contiguous", "see later ones"),
        ({"experts": dataclasses.replace(SHARED, capacity=1.5)}, "contiguous", "capacity"),
        (
            {"recurrent": Mamba2(), "pattern": (Layer(recurrent=True), Layer())},
            "contiguous",
            "recurrent",
        ),
    ],
    ids=str,
)
def test_the_order_is_zigzag_where_that_evens_out_work(changes, order, why):
    config = dataclasses.replace(PLAIN, **changes)
    made = make_mesh(MeshConfig(data=1, context=4), jax.devices()[:4])
    with use_mesh(made):
        found, reason = context_order(config, config.context)
        lacks = zigzag_lacks(config, config.context)
    assert found == order and why in reason
    if lacks is not None:
        asked = dataclasses.replace(config, context_order="zigzag")
        experiment = experiment_of(asked, MeshConfig(data=1, context=4))
        with pytest.raises(ConfigError, match=r"^model\.context_order is zigzag.*-order auto\.$"):
            placement.require_divides(experiment, made)


def test_positions_in_zigzag_order_are_those_of_the_paper():
    assert zigzag_positions(16, 2).tolist() == [*range(4), *range(12, 16), *range(4, 12)]
    assert part_starts(16, 2, zigzag=True) == ((0, 12), (4, 8))
