"""A mesh of devices computes what one device does, whatever its axes split; what it is told wrongly
it refuses in one line."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import apart, batch_of, trained, weights_of
from variants import ROPE, VARIANTS

from gptjax import weights
from gptjax.core.config import ConfigError
from gptjax.losses import CrossEntropy, losses_in_parts
from gptjax.model import Experts, Layer, ModelConfig
from gptjax.model.attention import kernels
from gptjax.model.attention.layer import attend
from gptjax.model.attention.mask import MaskInputs, ScoreConfig
from gptjax.sharding.constrain import ROWS, partition_spec, use_mesh
from gptjax.sharding.mesh import (
    MeshConfig,
    ShardingRules,
    in_host_memory,
    make_mesh,
    replicated,
    row_sharding,
    with_mesh,
)
from gptjax.train import optim, placement, step

PLAIN = dataclasses.replace(ROPE, num_kv_heads=2, num_layers=4, layers="scan", context=16)
SENT = dataclasses.replace(PLAIN, experts=Experts(count=4, active=2, width=16, capacity=1.5))
SMALL = dataclasses.replace(SENT, num_layers=2)
SHARED = dataclasses.replace(PLAIN, experts=Experts(count=4, active=2, width=16, shared=1))
BLOCKS = dataclasses.replace(PLAIN, attention="blockwise", pattern=(Layer("window", 5), Layer()))


def close(
    config: ModelConfig,
    devices: int,
    mesh: dict,
    alone,
    record_property,
    steps: int = 10,
    **changes,
) -> None:
    loss, state = apart(trained(config, devices=devices, steps=steps, mesh=mesh, **changes), alone)
    record_property(
        "figure", f"{mesh} of {devices}: loss within {loss:.1e}, state within {state:.1e}"
    )
    assert loss <= 1e-6 and state <= 1e-5, (mesh, loss, state)


# --- sharded is unsharded ---


@pytest.fixture(scope="module")
def alone():
    """Two steps of experts with places, on one device."""
    return trained(SMALL, devices=1, steps=2)


@pytest.mark.row(13)
@pytest.mark.parametrize(
    "mesh",
    [
        {"stage": 2, "expert": 2, "tensor": 2},
        pytest.param({"fsdp": 2, "expert": 2, "context": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mesh_with_every_axis_computes_what_one_device_does(mesh, alone, record_property):
    close(SMALL, 8, mesh, alone, record_property, steps=2)


def ways(config: ModelConfig) -> list[tuple[int, dict]]:
    """Every axis alone on 2, 4 and 8 devices, and the useful pairs on 4 and 8."""
    axes = ["data", "fsdp", "tensor", "context", "stage", *(["expert"] if config.experts else [])]
    pairs = [
        ("data", "fsdp"),
        ("fsdp", "tensor"),
        ("fsdp", "context"),
        ("stage", "fsdp"),
        *([("fsdp", "expert"), ("expert", "tensor")] if config.experts else []),
    ]
    one = [
        (n, {axis: n} | ({} if axis == "data" else {"data": 1}))
        for n in (2, 4, 8)
        for axis in axes
        if n <= 4 or axis in ("data", "fsdp", "context", "tensor")
    ]
    two = [
        (2 * n, {a: n, b: 2, "data": n if a == "data" else 1})
        for n in (2, 4)
        for a, b in pairs
        if not (a == "stage" and n == 8)
    ]
    further = [
        (8, {"slices": 2, "fsdp": 2, "tensor": 2}),
        (8, {"fsdp": 2, "context": 2, "tensor": 2}),
        (8, {"stage": 2, "context": 2, "tensor": 2}),
    ]

    def fits(mesh):
        return config.num_layers % (mesh.get("stage", 1) * len(config.pattern)) == 0

    return [(n, mesh) for n, mesh in one + two + further if fits(mesh)]


TABLE = {
    "plain": PLAIN,
    "experts with places": SENT,
    "experts without": SHARED,
    "blocks and windows": BLOCKS,
}


@pytest.fixture(scope="module")
def singles():
    """What each model becomes on one device."""
    found: dict = {}
    return lambda name: (
        found.setdefault(name, None)
        or found.update({name: trained(TABLE[name], devices=1)})
        or found[name]
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.row(13)
@pytest.mark.parametrize(
    ("name", "devices", "mesh"),
    [(name, *way) for name, config in TABLE.items() for way in ways(config)],
    ids=str,
)
def test_ten_steps_on_any_mesh_are_those_of_one_device(
    name, devices, mesh, singles, record_property
):
    close(TABLE[name], devices, mesh, singles(name), record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "mqa",
        "alibi",
        "t5",
        "attention_sink",
        "latent",
        "deepseek",
        "prefix_lm",
        "encoder",
        "beside_an_encoder_t5",
        "ahead",
        "ahead_chained",
        "gpt_oss",
        "llama4",
        "local_and_global",
    ],
)
@pytest.mark.parametrize(
    "mesh", [{"fsdp": 2, "context": 2, "tensor": 2}, {"data": 2, "tensor": 4}], ids=str
)
def test_variants_on_a_mesh_are_those_of_one_device(name, mesh, record_property):
    config = dataclasses.replace(VARIANTS[name], attention_dropout=0.0)
    close(config, 8, mesh, trained(config, devices=1, steps=3), record_property, steps=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_same_program_over_as_many_devices_gives_the_same_bits():
    """Compiled anew. Two slices with half of `data` each sum in another order: one loss of three
    was another by a unit in the last place."""
    one, again = (trained(PLAIN, devices=4, steps=3, mesh={"data": 4}) for _ in range(2))
    assert one[1] == again[1]
    jax.tree.map(np.testing.assert_array_equal, one[0], again[0])


@pytest.mark.slow
def test_the_step_runs_under_pmap():
    """On two devices with a batch of unequal weights each, as one device with both."""
    batch, rate = batch_of(SMALL, 0), lambda number: 1e-3
    optimizer = optim.build_optimizer(optim.AdamW(epsilon=1e-4), rate)
    begun = step.init(jax.tree.map(jnp.asarray, weights_of(SMALL)), optimizer)
    told = {
        "loss": CrossEntropy().build(SMALL),
        "optimizer": optimizer,
        "rate": rate,
        "seed": 0,
        "dropout": False,
    }
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(
        functools.partial(step.train_step, **told, axis="rows"),
        axis_name="rows",
        in_axes=(None, None, 0),
        devices=jax.devices()[:2],
    )
    state, metrics = mapped(begun, {}, halves)
    wanted, alike = jax.jit(functools.partial(step.train_step, **told))(begun, {}, batch)
    assert (
        float(metrics["loss"][0])
        == float(metrics["loss"][1])
        == pytest.approx(float(alike["loss"]), rel=1e-6)
    )
    assert (
        apart(
            (jax.tree.map(lambda leaf: leaf[1], jax.device_get(state)), [1.0]),
            (jax.device_get(wanted), [1.0]),
        )[1]
        <= 1e-5
    )


@pytest.mark.parametrize("length", [4, 3], ids=["divided", "whole"])
def test_products_and_look_ups_on_a_mesh_are_those_of_one_device(length):
    """Values and gradients of a look-up, a product whose columns `tensor` splits, and one whose
    rows; with positions that it splits between them, and that it does not."""
    draw = np.random.default_rng(0)
    shapes = {"table": (64, 16), "up": (16, 24), "gate": (16, 24), "down": (24, 16)}
    params = {n: jnp.asarray(draw.normal(size=size), jnp.float32) for n, size in shapes.items()}
    drawn = draw.integers(0, 64, (8, 4)).astype(np.int32)
    drawn[0] = 0, 31, 32, 63
    ids = jnp.asarray(drawn[:, -length:])

    def total(params, ids):
        x = weights.embed(params["table"], ids)
        pair = (params["up"], params["gate"])
        up, gate = weights.linears(x, pair, names=(("embed", "mlp"),) * 2)
        y = weights.linear(up * jnp.tanh(gate), params["down"], names=("mlp", "embed"))
        return jnp.square(y).mean(), y

    wanted = jax.value_and_grad(total, has_aux=True)(params, ids)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with use_mesh(mesh):
        placed = jax.device_put((params, ids), replicated(mesh))
        found = jax.jit(jax.value_and_grad(total, has_aux=True))(*placed)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(b).max())),
        found,
        wanted,
    )


# --- memory levers ---


def test_the_loss_by_parts_of_the_vocabulary_is_the_loss():
    """With a vocabulary that the parts do not divide, smoothing, z, a cap and a bias; and the
    logits of all tokens are never held."""
    config, draw = (
        dataclasses.replace(VARIANTS["untied"], logit_bias=True, logit_cap=3.0),
        np.random.default_rng(0),
    )
    hidden, kernel, bias = (
        jnp.asarray(draw.normal(size=size), jnp.float32) for size in ((2, 5, 32), (32, 61), (61,))
    )
    targets, weights = (
        jnp.asarray(draw.integers(0, 61, (2, 5))),
        jnp.asarray(draw.random((2, 5)), jnp.float32),
    )
    given = hidden, {"head": {"kernel": kernel}, "logits": {"bias": bias}}

    def both(parts: int):
        def losses(hidden, params):
            return losses_in_parts(config, params, parts, hidden, targets, 0.1, 1e-2)

        return jax.jit(
            jax.value_and_grad(lambda *given: (losses(*given) * weights).sum(), argnums=(0, 1))
        ).lower(*given)

    whole, parts = both(1), both(4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        parts.compile()(*given),
        whole.compile()(*given),
    )
    assert ["f32[2,5,61]" in lowered.as_text(dialect="hlo") for lowered in (whole, parts)] == [
        True,
        False,
    ]
    assert np.isnan(losses_in_parts(config, given[1], 4, hidden, targets.at[0, 0].set(61))[0, 0]), (
        "an unknown target is told"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("changes", "told"),
    {
        "names": ({"remat": "names", "remat_names": ("attention", "mlp")}, {"mesh": {"tensor": 2}}),
        "what the kernel keeps": (
            {"remat": "names", "attention": "blockwise"},
            {"mesh": {"fsdp": 2}},
        ),
        "the stream on the host": (
            {"remat": "offload", "remat_names": ("stream",)},
            {"mesh": {"fsdp": 2}},
        ),
        "the optimizer on the host": ({}, {"mesh": {"fsdp": 2, "offload_optimizer": True}}),
        "parts of the vocabulary": ({}, {"mesh": {"fsdp": 2}, "loss": CrossEntropy(vocab_parts=3)}),
    }.values(),
    ids=str,
)
def test_a_memory_lever_changes_no_numbers(changes, told, singles, record_property):
    close(
        dataclasses.replace(PLAIN, **changes),
        2,
        told.pop("mesh"),
        singles("plain"),
        record_property,
        **told,
    )


def test_a_smaller_moment_is_kept_in_its_type():
    for config in (
        optim.AdamW(moment="bfloat16"),
        optim.Lion(moment="bfloat16"),
        optim.Muon(moment="bfloat16"),
    ):
        state = jax.eval_shape(
            optim.build_optimizer(config, lambda step: 1e-3).init,
            {"layers": {"up": {"kernel": jax.ShapeDtypeStruct((2, 8, 8), jnp.float32)}}},
        )
        assert "bfloat16" in {str(leaf.dtype) for leaf in jax.tree.leaves(state)}


def test_what_a_device_can_not_offload_is_refused():
    class Small:
        platform = "toy"

        def addressable_memories(self):
            return [type("Memory", (), {"kind": "device"})()]

    where = replicated(make_mesh(MeshConfig(fsdp=8)))
    with pytest.raises(
        ConfigError, match=r"toy has only device; leave out --mesh.offload-optimizer"
    ):
        in_host_memory(where, Small())
    assert in_host_memory(row_sharding(where.mesh), jax.devices()[0]).memory_kind == "pinned_host"


# --- attention by each device for itself ---


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"context": 2, "tensor": 4}], ids=str)
def test_splash_on_a_mesh_is_the_reference(mesh, monkeypatch):
    """With fewer key/value heads than parts, windows, segments and padding."""
    from gptjax.model.attention import layer as attention
    from gptjax.model.attention import sharded

    made = make_mesh(MeshConfig(**mesh))
    draw, shape = np.random.default_rng(0), (4, 256, 4, 128)
    q, k, v = (
        jnp.asarray(draw.normal(size=(*shape[:2], heads, 128)), jnp.float32) for heads in (4, 2, 2)
    )
    segments = jnp.asarray(np.repeat(np.arange(4), 64)[None].repeat(4, 0), jnp.int32)
    where = jnp.broadcast_to(jnp.arange(256), (4, 256))
    mask_inputs, how = (
        MaskInputs(where, where, segments // 2, segments // 2),
        ScoreConfig(Layer("window", 100)),
    )

    def over(q, k, v):
        kernel = (
            kernels.split_splash(q, how, interpret=True) if mesh.get("context") else (None, None)
        )

        def own(q, k, v, mask_inputs, table, sink, begin, kernel):
            return kernels.splash(q, k, v, mask_inputs, how, sink, kernel, interpret=True)

        return sharded.over_mesh(own, q, k, v, mask_inputs, None, None, *kernel)

    def place(x):
        return jax.device_put(x, jax.sharding.NamedSharding(made, jax.sharding.PartitionSpec(ROWS)))

    def total(f):
        return jax.jit(jax.value_and_grad(lambda *x: jnp.square(f(*x)).sum(), argnums=(0, 1, 2)))

    found = total(with_mesh(made, over))(*map(place, (q, k, v)))
    wanted = total(lambda q, k, v: attend(q, k, v, mask_inputs, how))(q, k, v)
    assert attention.over_mesh is sharded.over_mesh
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        jax.device_get(found),
        jax.device_get(wanted),
    )


def test_heads_are_repeated_until_each_part_has_its_own():
    k = jnp.arange(2.0).reshape(1, 1, 2, 1)
    assert (
        sharded_heads(k, 8, 2) == [0, 1]
        and sharded_heads(k, 8, 4) == [0, 0, 1, 1]
        and sharded_heads(k, 8, 8) == [0, 0, 0, 0, 1, 1, 1, 1]
    )
    assert sharded_heads(jnp.arange(3.0).reshape(1, 1, 3, 1), 6, 2) == [0, 0, 1, 1, 2, 2]


def sharded_heads(k, num_heads: int, parts: int) -> list[int]:
    from gptjax.model.attention.sharded import repeated

    return np.asarray(repeated(k, num_heads, parts)).reshape(-1).astype(int).tolist()


# --- meshes and rules ---


def test_no_axis_splits_two_dimensions_of_one_parameter():
    sizes = {"fsdp": 2, "expert": 2, "tensor": 2}
    rules = ShardingRules()

    def of(*names):
        return [() if name is None else getattr(rules, name) for name in names]

    assert tuple(partition_spec(sizes, (4, 8, 8), of("experts", "embed", "mlp"))) == (
        "expert",
        "fsdp",
        "tensor",
    )
    assert tuple(partition_spec(sizes, (8, 8), of("embed", "mlp"))) == (
        ("fsdp", "expert"),
        "tensor",
    )
    assert tuple(partition_spec(sizes, (6, 7), of("embed", "mlp"))) == (
        "fsdp",
        None,
    ), "what does not divide stays whole"
    with pytest.raises(ConfigError, match="takes tensor as the heads"):
        ShardingRules(embed=("tensor",))
    with pytest.raises(ConfigError, match="Did you mean 'tensor'"):
        ShardingRules(mlp=("tensors",))


def test_slices_are_the_outermost_axis_and_are_never_mixed():
    class Device:
        platform, device_kind, process_index = "toy", "toy", 0

        def __init__(self, number, of):
            self.id, self.slice_index = number, of

    devices = [Device(n, n % 2) for n in range(8)]
    made = make_mesh(MeshConfig(fsdp=2, tensor=2), devices)
    assert made.shape["slice"] == 2 and all(
        len({d.slice_index for d in part.flat}) == 1 for part in made.devices
    )
    with pytest.raises(ConfigError, match="the devices are 2 slices"):
        make_mesh(MeshConfig(slices=1, fsdp=8), devices)


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ({"context": 8}, {"context": 20}, "--model.context 24"),
        ({"stage": 4, "fsdp": 2}, {"num_layers": 6}, "--model.num-layers 8"),
        ({"stage": 2}, {"first": (Layer(),)}, "--mesh.stage 1"),
        ({"stage": 2, "fsdp": 4}, {"stage_parts": 3}, "--model.stage-parts"),
    ],
)
def test_a_mesh_that_the_model_does_not_fit_is_refused_with_what_does(mesh, changes, words):
    from meshes import experiment_of

    experiment = experiment_of(dataclasses.replace(PLAIN, **changes), MeshConfig(**mesh))
    with pytest.raises(ConfigError, match=words):
        placement.require_divides(experiment, make_mesh(experiment.mesh))
