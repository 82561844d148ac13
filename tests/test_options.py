"""Laws of the choices that single families make: each is its formula, in float64, and a config.json
that asks for another is refused.

`test_laws.py` holds a model of each family to what all models obey.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_interop import MODELS, OPTIONS, altered, randomly, rewritten
from variants import RECURRENT, ROPE, VARIANTS

from gptjax import formats, model
from gptjax.core.config import ConfigError
from gptjax.formats import OpenedModel, families, huggingface, layout, scaled
from gptjax.formats.huggingface_families import FAMILIES
from gptjax.formats.keys import Keys
from gptjax.model import Experts, Layer, QueryGrowth, ShortConvolution, cost
from gptjax.model.activations import Probe
from gptjax.model.attention.layer import LayerInputs, grown
from gptjax.model.attention.mask import MaskInputs
from gptjax.model.layers import XIELU, Norm, gated
from gptjax.model.moe.router import MoE
from gptjax.model.positions import rotate
from gptjax.sharding.mesh import MeshConfig, make_mesh, replicated, with_mesh


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_clamped_gate_is_that_of_gpt_oss():
    gate, up = np.meshgrid(np.linspace(-12, 12, 25), np.linspace(-12, 12, 25))
    below = np.minimum(gate, 7)
    wanted = below * sigmoid(1.702 * below) * (np.clip(up, -7, 7) + 1)
    found = gated("swiglu_clamped", jnp.float32(gate), jnp.float32(up))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_the_learned_nonlinearity_is_that_of_its_paper():
    x, raw = np.linspace(-4, 4, 33), {"positive": 0.3, "negative": -0.4}
    above, below = (np.log1p(np.exp(value)) for value in raw.values())
    wanted = np.where(
        x > 0, above * x**2 + 0.5 * x, (0.5 + below) * (np.expm1(np.minimum(x, 0)) - x) + 0.5 * x
    )
    params = {name: jnp.full((1,), value) for name, value in raw.items()}
    found = XIELU().apply({"params": params}, jnp.float32(x))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    first = XIELU().init(jax.random.key(0), jnp.ones((1,)))["params"]
    sizes = {name: float(np.log1p(np.exp(box.value[0]))) for name, box in first.items()}
    assert sizes == pytest.approx({"positive": 0.8, "negative": 0.3}, rel=1e-5)


def test_a_norm_without_scale_has_no_parameters():
    x = np.random.default_rng(0).standard_normal((3, 8))
    found = Norm("rmsnorm", 8, 1e-3, bias=False, scaled=False).apply({}, jnp.float32(x))
    wanted = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes("nanochat"))}
    assert names == {"kernel", "embedding"}


@functools.cache
def shapes(name: str) -> Any:
    return model.shapes(VARIANTS[name])


@pytest.mark.parametrize("first", [0, 1])
def test_queries_grow_with_their_position(first: int):
    where = np.asarray([[-1, 0, 3, 4, 7, 8, 40]], np.int32)
    growth = QueryGrowth(span=4, strength=0.5, first=first, unrotated_only=bool(first))
    config = dataclasses.replace(ROPE, query_growth=growth)
    inputs = LayerInputs(MaskInputs(jnp.asarray(where), jnp.asarray(where)), {}, {})
    q = np.random.default_rng(0).standard_normal((1, 7, 4, 8)).astype(np.float32)
    factor = 1 + 0.5 * np.log1p(np.floor((np.maximum(where, 0) + first) / 4))
    found = grown(config, Layer(positions="none"), inputs, jnp.asarray(q))
    np.testing.assert_allclose(found, q * factor[:, :, None, None], rtol=1e-6)
    turned = grown(config, Layer(), inputs, jnp.asarray(q))
    np.testing.assert_array_equal(turned, q if first else found)


def test_multipliers_could_be_inside_the_weights():
    """A model whose embedding and output projections are as much larger computes the same."""
    config = VARIANTS["granite"]
    params = randomly(config)
    tokens = jnp.arange(12)[None] % config.vocabulary
    plain = dataclasses.replace(config, embedding_scale=1.0, residual_scale=1.0)

    def folded(path: tuple, leaf: Any) -> Any:
        keys = [key.key for key in path]
        by = config.residual_scale if {"out", "down"} & {*keys} else 1.0
        return leaf * (config.embedding_scale if keys[0] == "embedding" else by)

    read = jax.jit(lambda c, p: model.forward(c, p, tokens).hidden, static_argnums=0)
    wanted = read(plain, jax.tree_util.tree_map_with_path(folded, params))
    np.testing.assert_allclose(read(config, params), wanted, atol=1e-5)


def test_heads_are_normalised_after_they_are_turned_and_only_where_they_are():
    config = dataclasses.replace(VARIANTS["llama4"], query_growth=None)
    tokens = jnp.arange(12)[None] % config.vocabulary
    read = jax.jit(lambda p: model.forward(config, p, tokens, observe=("query",)).observed["query"])
    size = np.square(read(randomly(config))).mean((1, 2, 3, 4))
    turned = np.asarray([config.positions_in(layer) == "rope" for layer in config.stack])
    np.testing.assert_allclose(size[turned], 1.0, atol=0.01)
    assert (np.abs(size[~turned] - 1) > 0.03).all(), size


@pytest.mark.parametrize(
    "changes",
    [
        {"biases": True},
        {"weighs": "input", "scores": "sigmoid", "normalised": False},
        {"shared": 2, "shared_gate": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("way", ["grouped", "ragged", "by row"])
def test_experts_are_what_each_token_would_make_of_its_own(
    changes: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
):
    """Token by token, in float64."""
    e = Experts(count=3, active=2, width=6, capacity=4.0 if way == "by row" else None, **changes)
    if way == "ragged":
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mixed, params, x = experts_of(e)
    found, wanted = mixed(params, x), jax.device_get(params)
    for row, column in np.ndindex(2, 8):
        own = one_token(e, wanted, np.asarray(x[row, column], np.float64))
        np.testing.assert_allclose(found[row, column], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("capacity", [None, 2.0])
def test_experts_with_biases_on_a_mesh_are_those_of_one_device(capacity: float | None):
    """Each device adds its part of a product; a bias is added once."""
    e = Experts(count=4, active=2, width=6, capacity=capacity, biases=True)
    mixed, params, x = experts_of(e)

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = mixed(params, x)
        return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    wanted, gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, x)
    for axes in ({"expert": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "context": 2, "tensor": 2}):
        mesh = make_mesh(MeshConfig(**{"data": 1, **axes}))
        over_mesh = with_mesh(mesh, jax.value_and_grad(loss, has_aux=True))
        found, own = jax.jit(over_mesh)(*jax.device_put((params, x), replicated(mesh)))
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), own, gradients
        )


def experts_of(e: Experts) -> tuple[Any, Any, jax.Array]:
    """A layer of experts as a function of parameters and tokens, its parameters, some tokens."""
    layer, draw = MoE(dataclasses.replace(ROPE, width=8, num_heads=2, experts=e)), RANDOM()
    x, real = jnp.float32(draw.standard_normal((2, 8, 8))), jnp.ones((2, 8), bool)
    boxes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, real, Probe(), {}))["params"]
    params = jax.tree.map(
        lambda leaf: jnp.float32(draw.standard_normal(leaf.shape)), nn.meta.unbox(boxes)
    )
    return lambda params, x: layer.apply({"params": params}, x, real, Probe(), {})[0], params, x


RANDOM = functools.partial(np.random.default_rng, 0)


def one_token(e: Experts, params: Any, x: np.ndarray) -> np.ndarray:
    """What the experts make of one token."""

    def mlp(part: Any, x: np.ndarray, at: Any = ...) -> np.ndarray:
        def product(name: str, x: np.ndarray) -> np.ndarray:
            bias = part[name]["bias"][at] if "bias" in part[name] else 0
            return x @ part[name]["kernel"][at].astype(np.float64) + bias

        gate = product("gate", x)
        return product("down", gate * sigmoid(gate) * product("up", x))

    logits = x @ params["router"]["kernel"] + params["router"].get("bias", 0)
    scores = sigmoid(logits) if e.scores == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
    chosen = np.argsort(-scores)[: e.active]
    weights = scores[chosen] / (scores[chosen].sum() if e.normalised else 1)
    own = params["experts"]
    if e.weighs == "input":
        total = sum(mlp(own, w * x, i) for w, i in zip(weights, chosen, strict=True))
    else:
        total = sum(w * mlp(own, x, i) for w, i in zip(weights, chosen, strict=True))
    if e.shared:
        total = total + sigmoid(x @ params["shared_gate"]["kernel"]) * mlp(params["shared"], x)
    return total


def test_the_gate_of_a_shared_expert_is_counted():
    config = VARIANTS["qwen2_moe"]
    without = dataclasses.replace(
        config, experts=dataclasses.replace(config.experts, shared_gate=False)
    )
    more = cost.products_per_token(config) - cost.products_per_token(without)
    assert more == config.num_layers * config.width


# --- chained blocks of further tokens -------------------------------------------------------------


def further(params: Any, tokens: jax.Array, following: jax.Array) -> list[np.ndarray]:
    config = VARIANTS["ahead_chained"]
    hidden = model.forward(config, params, tokens).hidden
    return model.look_ahead(config, params, hidden, None, None, None, None, following=following)


def test_a_chained_block_reads_the_block_before_and_the_token_after():
    config, read = VARIANTS["ahead_chained"], jax.jit(further)
    params = randomly(config)
    text = np.random.default_rng(0).integers(0, config.vocabulary, (1, 13)).astype(np.int32)
    tokens, following = jnp.asarray(text[:, :-1]), jnp.asarray(text[:, 1:])
    first, second = read(params, tokens, following)
    for t in (0, 5, 11):  # the token after t is read by the first block at t, by the next before it
        moved = read(params, tokens, following.at[0, t].set((following[0, t] + 1) % 60))
        changed = [
            np.flatnonzero(np.asarray(new != old).any(-1)[0]).tolist()
            for new, old in zip(moved, (first, second), strict=True)
        ]
        assert changed == [list(range(t, 12)), list(range(max(t - 1, 0), 12))]
    silent = jax.tree.map(lambda leaf: jnp.asarray(leaf).at[0].set(0), params["ahead"])
    blind = {**params, "ahead": silent}
    assert not np.allclose(read(blind, tokens, following)[1], second, atol=1e-3)


def test_the_balance_of_experts_moves_no_bias_of_a_chained_block():
    config = VARIANTS["ahead_chained"]
    params = jax.tree.map(jnp.asarray, randomly(config))
    moved = model.rebalance(config, params, jnp.asarray([[1.0, 2.0, 3.0, 4.0]] * 2))
    jax.tree.map(np.testing.assert_array_equal, moved["ahead"], params["ahead"])
    bias = [tree["layers"]["sparse"]["moe"]["router"]["bias"] for tree in (params, moved)]
    assert (np.abs(bias[0] - bias[1]) > 0).all()


def test_a_chained_block_costs_its_layer_its_joint_and_an_output():
    config = VARIANTS["ahead_chained"]
    alone = dataclasses.replace(config, ahead=0)
    one = dataclasses.replace(alone, num_layers=1, first=(), pattern=(config.stack[-1],))
    more = model.flops_per_token(config, 16) - model.flops_per_token(alone, 16)
    joint = 6 * 2 * config.width**2
    assert more == pytest.approx(2 * (model.flops_per_token(one, 16) + joint))


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("last", [Layer(), RECURRENT], ids=["attention", "recurrent"])
def test_the_blocks_of_a_hybrid_are_like_its_last_layer_and_know_no_other(last, chained):
    other = RECURRENT if last == Layer() else Layer()
    mixer = ShortConvolution()
    config = dataclasses.replace(
        ROPE, recurrent=mixer, pattern=(other, last), ahead=2, ahead_chained=chained
    )
    alone = {"pattern": (last,), "recurrent": mixer if last.recurrent else None}
    plain = dataclasses.replace(config, **alone)
    assert config.further == plain.further
    params, of_plain = (jax.tree.map(jnp.asarray, randomly(c)) for c in (config, plain))
    tokens = jnp.arange(12)[None]

    def ahead(config: model.ModelConfig, params: Any) -> list[jax.Array]:
        hidden = jax.random.normal(jax.random.key(0), (1, 12, config.width))
        return model.look_ahead(config, params, hidden, *[None] * 4, following=tokens + 1)

    shared = {name: params[name] for name in ("ahead", "norm", "embedding")}
    for found, wanted in zip(
        ahead(config, params), ahead(plain, {**of_plain, **shared}), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    without = dataclasses.replace(config, ahead=0)
    one = dataclasses.replace(without, num_layers=1, **alone)
    more = model.flops_per_token(config, 16) - model.flops_per_token(without, 16)
    joint = 6 * 2 * config.width**2 if chained else 0
    assert more == pytest.approx(2 * (model.flops_per_token(one, 16) + joint))


def test_the_balance_moves_each_router_by_the_load_of_its_own_layer():
    """Experts in recurrent and in attention layers, whose routers lie in two stacks."""
    config = dataclasses.replace(
        VARIANTS["experts_and_recurrent"],
        num_layers=4,
        first=(),
        pattern=(RECURRENT, Layer()),
        experts=Experts(count=4, active=2, bias_step=0.5),
    )
    params = jax.tree.map(jnp.asarray, randomly(config))
    load = np.random.default_rng(0).permutation(16).reshape(4, 4).astype(np.float32)
    moved = model.rebalance(config, params, jnp.asarray(load))
    step = 0.5 * np.sign(load.mean(1, keepdims=True) - load)
    for stack, rows in (("recurrent_sparse", [0, 2]), ("sparse", [1, 3])):
        was, now = (t["layers"][stack]["moe"]["router"]["bias"] for t in (params, moved))
        np.testing.assert_allclose(now - was, step[rows], atol=1e-6)


def test_a_copy_in_a_file_must_be_the_tensor_that_it_repeats(tmp_path: Path):
    config = MODELS["deepseek v3 with further tokens"][1]
    saved, count = tmp_path / "saved", config.num_layers
    formats.save_model(saved, OpenedModel(config, randomly(config), None))
    copies = [f"model.layers.{count + 1}.{name}.weight" for name in _COPIES]
    lacking = altered(saved, tmp_path / "lacking")
    rewritten(lacking, lambda values: [values.pop(name) for name in copies])
    found = formats.load_model(lacking)
    assert (found.config.ahead, found.config.ahead_chained) == (2, True)
    other = altered(saved, tmp_path / "other")
    rewritten(other, lambda values: values.update({copies[0]: values[copies[0]] + 1}))
    with pytest.raises(ConfigError, match=r"embed_tokens\.weight that is not its model\.embed"):
        formats.load_model(other)


_COPIES = ("embed_tokens", "shared_head.head")


# --- tensors --------------------------------------------------------------------------------------


def turned_by(x: np.ndarray, angles: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """A head whose pairs of numbers are turned, each by its angle."""
    result = x.copy()
    for (a, b), angle in zip(pairs, angles, strict=True):
        turn = (x[..., a] + 1j * x[..., b]) * np.exp(1j * angle)
        result[..., a], result[..., b] = turn.real, turn.imag
    return result


@pytest.mark.parametrize(
    ("order", "pairs", "sign"),
    [
        (
            families.interleaved(dataclasses.replace(ROPE, head_width=8)),
            [(2 * i, 2 * i + 1) for i in range(4)],
            1,
        ),
        (scaled.swapped_halves(8), [(i, i + 4) for i in range(4)], -1),
    ],
    ids=["neighbours", "backwards"],
)
def test_heads_in_another_order_are_turned_as_their_model_turns_them(order, pairs, sign):
    """Cohere and Llama 4 turn neighbours of a head, nanochat its halves the other way round."""
    draw, angles = np.random.default_rng(0), np.asarray([1.0, 0.5, 0.1, 0.02])
    theirs = draw.standard_normal(8)
    ours = theirs[np.argsort(order)]
    wanted = turned_by(theirs, sign * angles, pairs)[np.argsort(order)]
    found = rotate(jnp.float32(ours)[None, None, None], jnp.float32(angles)[None, None])
    np.testing.assert_allclose(found[0, 0, 0], wanted, atol=1e-6)


def test_gate_and_up_of_gpt_oss_alternate():
    config = VARIANTS["gpt_oss"]
    params = randomly(config)
    theirs = dict(layout.tensors(params, FAMILIES["gpt_oss"].places(config)))
    for name, part in (("gate_up_proj", "kernel"), ("gate_up_proj_bias", "bias")):
        whole = theirs[f"model.layers.1.mlp.experts.{name}"]
        for begin, ours in enumerate(("gate", "up")):
            own = params["layers"]["moe"]["experts"][ours][part][1]
            np.testing.assert_array_equal(whole[..., begin::2], own)


def test_the_family_of_a_model_is_the_one_that_computes_the_same():
    fits = {name: huggingface.family_of(VARIANTS[name]) for name in (*OPTIONS, "llama4")}
    assert fits == {name: name for name in OPTIONS} | {"llama4": "llama4_text"}


# --- configs --------------------------------------------------------------------------------------


IMPOSSIBLE = {
    "xielu in experts": ({"activation": "xielu", "experts": Experts()}, "experts"),
    "a gate of nobody": ({"experts": lambda: Experts(shared_gate=True)}, "experts.shared"),
    "two biases": ({"experts": lambda: Experts(biases=True, bias_step=0.1)}, "bias-step 0"),
    "norms of what is not normalised": ({"qk_norm_after_rope": True}, "--model.qk-norm"),
    "scales that some layers lack": (
        {
            "qk_norm": True,
            "qk_norm_after_rope": True,
            "pattern": (Layer(), Layer(positions="none")),
        },
        "qk-norm-scale False",
    ),
    "growth of nothing": ({"query_growth": lambda: QueryGrowth(span=0)}, "span 0"),
    "a multiplier of 0": ({"residual_scale": 0.0}, "residual_scale is 0.0"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_model_that_can_not_be_is_refused_in_one_line(name: str):
    changes, said = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        made = {key: value() if callable(value) else value for key, value in changes.items()}
        dataclasses.replace(ROPE, **made)
    assert "\n" not in str(caught.value)


REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "gpt_oss": [
        ({"swiglu_limit": 6.0}, "'swiglu_limit': 6.0"),
        ({"swiglu_alpha": 1.0}, "'swiglu_alpha': 1.0"),
        ({"hidden_act": "gelu"}, "'hidden_act': 'gelu'"),
        ({"experts_per_token": 3}, "'experts_per_token': 3"),
        ({"initial_context_length": 5}, "'initial_context_length': 5"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"mlp_bias": True}, "'mlp_bias': True"),
    ],
    "nanochat": [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "xielu"}, "'hidden_act': 'xielu'"),
    ],
    "granite": [
        ({"residual_multiplier": -1.0}, "'residual_multiplier': -1.0"),
        ({"hidden_act": "quick_gelu"}, "'hidden_act': 'quick_gelu'"),
    ],
    "ministral3": [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'llama_4_scaling_beta'"),
        ({"attention_bias": True}, "'attention_bias': True"),
    ],
    "apertus": [
        ({"hidden_act": "relu2"}, "'hidden_act': 'relu2'"),
        ({"post_norm": True}, "'post_norm': True"),
        ({"qk_norm": False}, "'qk_norm': False"),
    ],
    "qwen2_moe": [
        ({"shared_expert_intermediate_size": 100}, "a multiple of 32"),
        ({"attention_bias": True}, "'attention_bias': True"),
        ({"shared_expert_scale": 2.0}, "'shared_expert_scale': 2.0"),
    ],
    "llama4_text": [
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"no_rope_layers": [1]}, "no_rope_layers [1]"),
        ({"mlp_bias": True}, "'mlp_bias': True"),
    ],
    "cohere": [({"use_qk_norm": True}, "'use_qk_norm': true")],
    "cohere2": [
        ({"use_parallel_block": False}, "'use_parallel_block': False"),
        ({"rotary_pct": 0.5}, "'rotary_pct': 0.5"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types"),
    ],
    "granitemoeshared": [({"shared_intermediate_size": 65}, "a multiple of 64")],
}
"""Changes of a config.json that alter what is computed, and the beginning of what is said."""


@pytest.mark.parametrize("family", REFUSED)
def test_what_a_family_can_not_compute_is_refused_in_one_line(family: str):
    own = next(config for name, config in MODELS.values() if name == family)
    data = {"model_type": family, **json.loads(json.dumps(FAMILIES[family].write(own)))}
    for changes, said in REFUSED[family]:
        keys = Keys({**data, **changes}, "config.json")
        with pytest.raises(ConfigError, match=re.escape(said)) as caught:
            FAMILIES[family].read(keys)
            keys.finish()
        assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


def test_a_constant_of_the_files_must_be_the_one_that_is_computed_with(tmp_path: Path):
    config = dataclasses.replace(MODELS["apertus"][1], num_layers=1)
    saved = tmp_path / "saved"
    formats.save_model(saved, OpenedModel(config, randomly(config), None))
    beta, eps = (f"model.layers.0.mlp.act_fn.{name}" for name in ("beta", "eps"))
    rewritten(saved, lambda values: values.update({eps: np.float32(-9.98e-7)}))  # as in bfloat16
    formats.load_model(saved)
    other = altered(saved, tmp_path / "other")
    rewritten(other, lambda values: values.update({beta: np.float32(0.6)}))
    with pytest.raises(ConfigError, match=rf"{re.escape(beta)} 0.6; .* 0.5 only"):
        formats.load_model(other)


SHORT: dict[str, tuple[dict[str, Any], Any]] = {
    "gpt_oss": (
        {"rope_parameters": ..., "layer_types": ..., "sliding_window": ...},
        lambda c: (
            (c.rope_base, c.rope_scaling.factor, c.rope_scaling.truncate, c.pattern[0].span)
            == (150_000.0, 32.0, False, 128)
        ),
    ),
    "apertus": (
        {"rope_parameters": ...},
        lambda c: (c.rope_base, c.rope_scaling.factor) == (12e6, 8.0),
    ),
    "llama4_text": (
        {"no_rope_layers": ..., "layer_types": ..., "moe_layers": ..., "floor_scale": ...},
        lambda c: (
            [x.positions for x in c.stack] == [None] * 3 + ["none"]
            and c.query_growth.span == 8192
            and all(map(c.sparse, c.stack))
        ),
    ),
    "cohere2": (
        {"layer_types": ..., "logit_scale": ..., "tie_word_embeddings": ...},
        lambda c: c.stack[0].sees == "window" and c.logit_scale == 0.0625 and c.tied,
    ),
    "qwen2_moe": (
        {"layer_types": ..., "qkv_bias": ..., "mlp_only_layers": ..., "decoder_sparse_step": 2},
        lambda c: c.qkv_bias and [x.dense for x in c.stack] == [True, False],
    ),
}
"""Keys that a published file leaves out, and what their class says instead."""


@pytest.mark.parametrize("family", SHORT)
def test_keys_that_are_left_out_have_the_defaults_of_their_class(family: str):
    changes, holds = SHORT[family]
    own = next(config for name, config in MODELS.values() if name == family)
    data = {"model_type": family, **json.loads(json.dumps(FAMILIES[family].write(own))), **changes}
    keys = Keys({key: value for key, value in data.items() if value is not ...}, "config.json")
    found = FAMILIES[family].read(keys)
    keys.finish()
    assert holds(found)
