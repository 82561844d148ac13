"""Laws of weights as values: every kind reads as the array that it stands for, adapters change what
they say and nothing else, and a kind from outside the package needs one rule."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from variants import PLAIN, ROPE, VARIANTS

from gptjax import model, weights
from gptjax.core.config import ConfigError
from gptjax.data import Side
from gptjax.sharding.constrain import use_mesh
from gptjax.sharding.mesh import MeshConfig, make_mesh, param_shardings
from gptjax.train import optim
from gptjax.weights import Quantized, Role, dense, linear, quantize
from gptjax.weights.lora import adaptable

TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (4, 6), np.int32))
KINDS = ("gqa", "experts_every_second", "experts_by_group", "deepseek", "beside_an_encoder_t5")

SMALL = {
    name: dataclasses.replace(VARIANTS[name], num_layers=2) for name in (*KINDS, "gpt2", "scanned")
}
"""Each with one layer of every sort that it has: reading is compiled for each kind of weight."""


def few(names, among) -> list:
    """All of `among` as parameters; those that are not in `names` are slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in among]


@functools.cache
def params_of(config):
    return model.init(dataclasses.replace(config, init_std=0.2), jax.random.key(0))


def memory_of(config, params):
    if not config.encoder_layers:
        return None
    return model.encode(
        config, params, Side(TOKENS, jnp.broadcast_to(jnp.arange(6)[None], TOKENS.shape))
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params):
    memory = memory_of(config, params)
    return model.unembed(
        config, params, model.forward(config, params, TOKENS, memory=memory).hidden
    )


@functools.partial(jax.jit, static_argnums=0)
def cached_logits(config, params):
    """Logits of the same tokens, read in two parts."""
    cache, outputs = model.empty_cache(config, *TOKENS.shape), []
    cache = cache._replace(memory=memory_of(config, params))
    for part in (slice(0, 5), slice(5, 6)):
        where = jnp.broadcast_to(jnp.arange(6)[None, part], TOKENS[:, part].shape)
        out = model.forward(config, params, TOKENS[:, part], positions=where, cache=cache)
        cache = out.cache
        outputs.append(model.unembed(config, params, out.hidden))
    return jnp.concatenate(outputs, axis=1)


def close(found, wanted, tolerance=2e-5):
    np.testing.assert_allclose(found, wanted, atol=tolerance * float(np.abs(wanted).max()))


def prepared_for(config, stored):
    """What `prepare_weights` gives, by one compiled program."""
    changed = []

    @jax.jit
    def prepare(params):
        other, params = model.prepare_weights(config, params, stored)
        changed.append(other)
        return params

    params = prepare(params_of(config))
    return changed[0], params


@jax.jit
def as_arrays(params):
    """The tree with the array that each weight stands for."""

    def is_weight(leaf):
        return isinstance(leaf, Quantized)

    def stacked(layers):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    arrays = dict(jax.tree.map(dense, params, is_leaf=is_weight))
    for tree in (arrays, arrays.get("encoder", {})):
        layers = tree.get("layers", {})
        if isinstance(layers, dict):
            for kind in layers:
                layers[kind] = stacked(layers[kind])
        else:
            tree["layers"] = stacked(layers)
    return arrays


# --- quantised ---


@pytest.mark.parametrize("name", few(("gqa", "experts_by_group"), KINDS))
def test_every_model_reads_quantised_weights_as_the_arrays_that_they_stand_for(name):
    config = SMALL[name]
    stored = "int4" if name == "gqa" else "int8"
    prepared, params = prepared_for(config, stored)
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    assert sum(isinstance(leaf, Quantized) for leaf in leaves) >= 5 * config.num_layers
    wanted = logits(dataclasses.replace(prepared, layers="auto"), as_arrays(params))
    close(logits(prepared, params), wanted)
    close(cached_logits(prepared, params), wanted, 1e-4)


def test_a_stack_of_quantised_weights_is_scanned_as_it_is_unrolled():
    params = params_of(ROPE)

    def one(weight, role):
        return quantize(weight, role=role) if role.inputs else weight

    mixed = jax.tree.map(one, params, model.roles(ROPE), is_leaf=lambda x: isinstance(x, Role))
    scanned = logits(dataclasses.replace(ROPE, layers="scan"), mixed)
    close(scanned, logits(dataclasses.replace(ROPE, layers="unroll"), mixed))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("group", [None, 8, 16, 32])
def test_groups_of_inputs_have_scales_of_their_own(group, rows):
    """Kernels of two dimensions of inputs too, as attention's output has."""
    role = Role(stacked=1, inputs=2)
    kernel = jax.random.normal(jax.random.key(1), (2, 4, 16, 6))
    stack = quantize(kernel, role=role, group=group)
    assert stack.scales.size == 2 * 6 * (1 if group is None else 64 // group)
    assert jnp.all(jnp.abs(dense(stack) - kernel) <= 0.5001 * stack.scales.max())
    one = jax.tree.map(lambda leaf: leaf[1], stack)
    x = jax.random.normal(jax.random.key(2), (rows, 4, 16))
    found = linear(x, one, names=("heads", "head", "embed"), inputs=2)
    close(found, jnp.einsum("bnh,nhd->bd", x, dense(one)))


def test_offsets_are_added_and_groups_must_divide_the_inputs():
    values = jnp.arange(24, dtype=jnp.int8).reshape(6, 4)
    weight = Quantized(values, jnp.full((3, 1), 0.5), jnp.ones((3, 4)))
    np.testing.assert_array_equal(dense(weight), values * 0.5 + 1)
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    close(linear(x, weight, names=("embed", "mlp")), x @ dense(weight))
    with pytest.raises(ValueError, match="do not divide"):
        quantize(jnp.ones((12, 4)), group=8)


def test_a_quantised_table_gives_its_rows_and_its_transpose():
    table = quantize(jax.random.normal(jax.random.key(1), (16, 64)).T, group=8)
    table = weights.transposed(table)
    np.testing.assert_array_equal(weights.embed(table, TOKENS % 16), dense(table)[TOKENS % 16])
    np.testing.assert_array_equal(dense(weights.transposed(table)), dense(table).T)


@pytest.mark.parametrize("group", [None, 8])
def test_gradients_pass_through_a_quantised_weight(group):
    weight = quantize(jax.random.normal(jax.random.key(1), (32, 5)), group=group)
    x = jax.random.normal(jax.random.key(2), (3, 32))

    def squared(x, weight):
        return jnp.square(linear(x, weight, names=("embed", "mlp"))).sum()

    close(jax.grad(squared)(x, weight), jax.grad(squared)(x, dense(weight)))


# --- adapted ---


def test_adapters_begin_within_their_bounds_and_scale_by_alpha_over_rank():
    """`a` uniform in ± 1/√inputs, of heads those of all, `b` zero."""
    lora, roles = weights.LoRA(rank=4, alpha=8.0), model.roles(PLAIN)
    adapters = lora.init(params_of(PLAIN), roles, jax.random.key(0))
    for name, inputs in (("query", PLAIN.width), ("out", PLAIN.num_heads * PLAIN.head_dim)):
        one = adapters["layers"]["attention"][name]["kernel"]
        bound, scaled = inputs**-0.5, np.abs(np.asarray(one.a))
        assert one.scale == 2.0 and not one.b.any()
        assert 0.95 * bound < scaled.max() <= bound and abs(scaled.mean() / bound - 0.5) < 0.05


def adapters_of(config, seed=1, **settings):
    """Adapters whose product is not zero."""
    made, params = weights.LoRA(**settings), params_of(config)
    zero = jax.eval_shape(
        lambda key: made.init(params, model.roles(config), key), jax.random.key(0)
    )
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * draw.normal(size=leaf.shape), leaf.dtype), zero
    )


@pytest.mark.parametrize("name", few(("gpt2",), ("gpt2", *KINDS)))
def test_a_zero_adapter_changes_no_bit_and_merged_is_unmerged(name):
    config, params = SMALL[name], params_of(SMALL[name])
    zero = weights.LoRA(rank=4, targets=("*",)).init(params, model.roles(config), jax.random.key(1))
    plain = logits(config, params)
    np.testing.assert_array_equal(logits(config, weights.attach(params, zero)), plain)
    adapted = weights.attach(params, adapters_of(config, rank=4, alpha=8.0, targets=("*",)))
    merged = jax.jit(weights.merge)(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    wanted = logits(config, merged)
    assert float(jnp.abs(wanted - plain).max()) > 1e-2
    close(logits(config, adapted), wanted, 1e-4)
    close(cached_logits(config, adapted), wanted, 1e-4)


@pytest.mark.parametrize(
    "name", few(("gqa",), ("gqa", "deepseek", "beside_an_encoder_t5", "scanned"))
)
def test_each_row_is_read_with_its_own_adapter_as_alone(name):
    config, params, roles = SMALL[name], params_of(SMALL[name]), model.roles(SMALL[name])
    able = adaptable(params, roles)
    settings = {"rank": 3, "targets": tuple(path for path in able if "experts" not in path)}
    both = [adapters_of(config, seed, **settings) for seed in (1, 2)]
    served = jnp.asarray([1, -1, 0, 1])
    together = weights.attach(params, weights.side_by_side(both, roles), served)
    found, cached = logits(config, together), cached_logits(config, together)
    for row, number in enumerate(served.tolist()):
        alone = params if number < 0 else weights.attach(params, both[number])
        wanted = logits(config, alone)[row]
        close(found[row], wanted, 1e-4)
        close(cached[row], wanted, 1e-4)


@pytest.mark.parametrize(("layers", "stored"), [("scan", None), ("unroll", "int8")])
def test_gradients_of_adapters_are_those_of_the_merged_weights(layers, stored):
    config = dataclasses.replace(ROPE, layers=layers)
    params, roles = params_of(ROPE), model.roles(config)
    if stored:
        params = jax.tree.map(
            lambda w, role: quantize(w, role=role) if role.inputs and not role.exact else w,
            params,
            roles,
            is_leaf=lambda x: isinstance(x, Role),
        )
    adapters = adapters_of(ROPE, rank=2)

    def loss(adapters, merged):
        whole = weights.attach(params, adapters)
        return jnp.square(logits(config, weights.merge(whole) if merged else whole)).mean()

    found, wanted = (
        jax.jit(jax.grad(loss), static_argnums=1)(adapters, merged) for merged in (False, True)
    )
    jax.tree.map(lambda a, b: close(a, b, 1e-3), found, wanted)


@pytest.mark.parametrize("first", few((), ("data", "stage")))
def test_adapters_read_and_learn_on_a_mesh_as_on_one_device(first):
    config = dataclasses.replace(VARIANTS["gqa"], vocab_size=64, num_layers=2)
    mesh = make_mesh(MeshConfig(**{first: 2}, fsdp=2, tensor=2))
    whole = weights.attach(params_of(config), adapters_of(config, rank=2))
    where = param_shardings(mesh, weights.axes_within(whole, model.axes(config)), whole)
    up, layers = where["layers"]["mlp"]["up"]["kernel"], "stage" if first == "stage" else None
    assert (up.a.spec, up.b.spec) == (P(layers, "fsdp", None), P(layers, None, "tensor"))

    def loss(params):
        out = model.forward(config, params, TOKENS)
        return jnp.square(model.unembed(config, params, out.hidden)).mean()

    wanted = jax.value_and_grad(loss)(whole)
    with use_mesh(mesh):
        found = jax.jit(jax.value_and_grad(loss))(jax.device_put(whole, where))
    jax.tree.map(lambda a, b: close(a, b, 1e-4), found, wanted)


@pytest.mark.parametrize(
    ("name", "sizes", "who"),
    [("experts", {}, "experts"), ("gqa", {"stage": 2}, "layers in stages")],
)
def test_what_no_adapter_of_each_row_can_serve_is_refused_in_one_line(name, sizes, who):
    config = dataclasses.replace(VARIANTS[name], num_layers=2)
    both = weights.side_by_side([adapters_of(config, rank=2)] * 2, model.roles(config))
    together = weights.attach(params_of(config), both, jnp.zeros(len(TOKENS), jnp.int32))
    with (
        use_mesh(make_mesh(MeshConfig(**sizes)) if sizes else None),
        pytest.raises(ConfigError, match=f"^{who}.* can't have an adapter for each row"),
    ):
        jax.eval_shape(lambda params: model.forward(config, params, TOKENS).hidden, together)


# --- from outside ---


@functools.partial(jax.tree_util.register_dataclass, data_fields=["signs", "size"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Signs:
    """A kernel [*inputs *outputs] of ±1 times one size."""

    signs: jax.Array
    size: jax.Array

    @property
    def shape(self):
        return self.signs.shape


@weights.multiply.register
def _(weight: Signs, x, *, wide=False):
    y = weight.size.astype(x.dtype) * (x @ weight.signs.reshape(x.shape[-1], -1).astype(x.dtype))
    return y.astype(jnp.float32) if wide else y


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_a_kind_of_weight_from_outside_the_package_is_read_and_has_gradients(layers):
    config, params = dataclasses.replace(PLAIN, layers=layers), params_of(PLAIN)
    kernels = params["layers"]["mlp"]["up"]["kernel"]

    def loss(sizes, kernels):
        up = params["layers"]["mlp"]["up"] | {"kernel": kernels(sizes)}
        mlp = params["layers"]["mlp"] | {"up": up}
        return jnp.square(
            logits(config, params | {"layers": params["layers"] | {"mlp": mlp}})
        ).mean()

    sizes = jnp.asarray([0.1, 0.3])
    found = jax.value_and_grad(loss)(sizes, lambda s: Signs(jnp.sign(kernels).astype("int8"), s))
    wanted = jax.value_and_grad(loss)(sizes, lambda s: jnp.sign(kernels) * s[:, None, None])
    jax.tree.map(close, found, wanted)
    assert jnp.abs(found[1]).min() > 0


# --- initialisation and roles ---


def test_parameters_are_initialised_while_a_mesh_is_traced():
    with use_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found = jax.jit(functools.partial(model.init, ROPE))(jax.random.key(0))
    wanted = model.init(ROPE, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", few(("gqa", *KINDS), VARIANTS))
def test_roles_say_what_names_say(name):
    """Names end in what they are, and only outputs of heads read two dimensions."""

    def one(path, leaf, role):
        names = [key.key for key in path]
        assert role.decays == (names[-1] in ("kernel", "embedding"))
        of_heads = names[-2:-1] == ["out"] and "convolution" not in names
        assert role.inputs == (names[-1] == "kernel") * (1 + of_heads)
        assert role.stacked == ("layers" in names or "ahead" in names) + ("experts" in names)
        assert role.exact == (names[-2:] == ["router", "kernel"])

    jax.tree_util.tree_map_with_path(one, model.shapes(VARIANTS[name]), model.roles(VARIANTS[name]))


@pytest.mark.parametrize("config", [optim.AdamW(weight_decay=0.5), optim.Muon(weight_decay=0.5)])
def test_optimizers_take_adapters_whose_weights_decay_as_their_base(config):
    roles = model.roles(ROPE)
    adapters = adapters_of(ROPE, rank=2, targets=("layers*query", "layers*out"))
    assert all(jax.tree.leaves(optim.decayed(adapters, roles)))
    optimizer = optim.build_optimizer(config, lambda step: 1e-2, roles)
    still = jax.tree.map(jnp.zeros_like, adapters)
    updates, _ = optimizer.update(still, optimizer.init(adapters), adapters)
    jax.tree.map(lambda u, p: close(u, -0.005 * p), updates, adapters)
