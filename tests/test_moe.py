"""Laws of mixtures of experts: the choice, the two ways to bring tokens to experts, dropping, and
what keeps experts busy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import model
from gptjax.data import Batch
from gptjax.losses import CrossEntropy
from gptjax.model import Experts, Layer, ModelConfig
from gptjax.model.activations import Probe
from gptjax.model.moe import router as moe
from gptjax.train import optim, step

B, T, D = 3, 12, 16
EXPERTS = Experts(count=4, active=2)
CONFIG = ModelConfig(
    vocab_size=31,
    context=16,
    width=D,
    num_layers=2,
    num_heads=2,
    feed_forward=24,
    activation="swiglu",
    bias=False,
    experts=EXPERTS,
)
KINDS = {
    "softmax": EXPERTS,
    "sigmoid, shared, scaled": Experts(
        count=4, active=2, shared=2, scores="sigmoid", scale=2.5, width=8
    ),
    "not normalised": Experts(count=4, active=3, normalised=False),
    "groups": Experts(
        count=8, active=2, groups=4, active_groups=2, scores="sigmoid", bias_step=0.1
    ),
    "one": Experts(count=4, active=1, normalised=False),
}


def of(experts: Experts, **changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, experts=experts, **changes)


def weights(config: ModelConfig, seed: int = 0):
    """Parameters large enough that the router decides; its biases too."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * draw.standard_normal(leaf.shape), jnp.float32), shapes
    )


def layer_of(config: ModelConfig):
    return jax.tree.map(lambda leaf: leaf[0], weights(config)["layers"]["moe"])


def tokens(seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((B, T, D)), jnp.float32)


REAL = jnp.ones((B, T), bool)


def mixed(config: ModelConfig, x, real=REAL):
    y, told, _ = moe.MoE(config).apply({"params": layer_of(config)}, x, real, Probe(), {})
    return y, told


def mlp(params, x, which=...) -> np.ndarray:
    gate, up, down = (
        np.asarray(params[name]["kernel"], np.float64)[which] for name in ("gate", "up", "down")
    )
    hidden = x @ gate
    return hidden / (1 + np.exp(-hidden)) * (x @ up) @ down


def by_hand(config: ModelConfig, x: np.ndarray) -> np.ndarray:
    """One token at a time, in float64."""
    e, params = config.experts, layer_of(config)
    out = np.zeros(x.shape)
    for b, t in np.ndindex(x.shape[:2]):
        logits = x[b, t] @ np.asarray(params["router"]["kernel"], np.float64)
        found = (
            np.exp(logits) / np.exp(logits).sum()
            if e.scores == "softmax"
            else 1 / (1 + np.exp(-logits))
        )
        rank = found + np.asarray(params["router"]["bias"]) if e.bias_step else found
        groups = rank.reshape(e.groups, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(1))[: e.active_groups]
        allowed = [i for i in range(e.count) if i // groups.shape[1] in best]
        chosen = sorted(allowed, key=lambda i: -rank[i])[: e.active]
        share = found[chosen] / (found[chosen].sum() if e.normalised else 1) * e.scale
        out[b, t] = sum(
            w * mlp(params["experts"], x[b, t], i) for w, i in zip(share, chosen, strict=True)
        )
        if e.shared:
            out[b, t] += mlp(params["shared"], x[b, t])
    return out


def difference(found, wanted) -> float:
    def one(a, b):
        return float(
            np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()
            / max(np.abs(np.asarray(b)).max(), 1e-30)
        )

    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("softmax", "groups") else pytest.param(name, marks=pytest.mark.slow)
        for name in KINDS
    ],
)
def test_a_token_gets_the_weighted_sum_of_what_its_experts_make_of_it(name):
    x = tokens()
    found, _ = mixed(of(KINDS[name]), x)
    assert difference(found, by_hand(of(KINDS[name]), np.asarray(x, np.float64))) <= 1e-5


@pytest.mark.parametrize(
    "name", ["softmax", pytest.param("sigmoid, shared, scaled", marks=pytest.mark.slow)]
)
def test_all_ways_to_bring_tokens_to_experts_are_one(name, monkeypatch):
    """In groups, ragged as on other backends, and with places enough for all; forward and
    backward."""
    config = of(KINDS[name])
    roomy = of(
        dataclasses.replace(config.experts, capacity=config.experts.count / config.experts.active)
    )

    def both_ways(config):
        out, back = jax.vjp(
            lambda params, x: moe.MoE(config).apply({"params": params}, x, REAL, Probe(), {})[0],
            layer_of(config),
            tokens(),
        )
        return out, back(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    grouped, by_row = both_ways(config), both_ways(roomy)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    ragged = both_ways(config)
    assert difference(ragged, grouped) <= 1e-5 and difference(by_row, grouped) <= 1e-5


def test_many_tokens_of_one_expert_find_their_places():
    """All tokens choose alike, so that one group is full and the others are empty."""
    config, x = (
        of(dataclasses.replace(EXPERTS, active=1)),
        jnp.broadcast_to(tokens()[:1, :1], (B, T, D)),
    )
    found, told = mixed(config, x)
    assert difference(found, by_hand(config, np.asarray(x, np.float64))) <= 1e-5
    assert sorted(told["load"].tolist()) == [0, 0, 0, B * T]


# --- capacity ---


def test_beyond_its_capacity_an_expert_drops_the_last_tokens_of_a_row_and_they_are_counted():
    config = of(
        Experts(count=4, active=1, normalised=False, capacity=1.0)
    )  # three places for each expert in a row of twelve
    x = jnp.broadcast_to(tokens()[:1, :1], (B, T, D))
    found, told = mixed(config, x)
    assert told["dropped"] == B * (T - 3)
    wanted = by_hand(config, np.asarray(x, np.float64))
    assert difference(found[:, :3], wanted[:, :3]) <= 1e-5 and not found[:, 3:].any()


def test_a_later_token_never_takes_an_earlier_ones_place():
    config, x = of(dataclasses.replace(EXPERTS, capacity=0.75)), tokens()
    before, told = mixed(config, x)
    assert told["dropped"] > 0
    for t in (1, 4, T - 1):
        after, _ = mixed(config, x.at[:, t].set(tokens(5)[:, t]))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])


def test_dropless_drops_nobody():
    assert mixed(CONFIG, tokens())[1]["dropped"] == 0


# --- balance ---


def routes(e: Experts, logits, bias=None, real=None):
    logits = jnp.asarray(logits, jnp.float32)
    return moe.route(e, logits, bias, jnp.ones(logits.shape[:2], bool) if real is None else real)


def test_the_balance_loss_is_one_for_equal_load_and_more_for_unequal():
    one = Experts(count=4, active=1)
    even = 20.0 * np.eye(4)[np.arange(8) % 4][None]
    assert routes(one, even).balance == pytest.approx(np.ones((1, 8)), rel=1e-6)
    alike = 20.0 * np.eye(4)[np.zeros(8, int)][None]
    assert routes(one, alike).balance == pytest.approx(4 * np.ones((1, 8)), rel=1e-6)
    pairs = 20.0 * (np.eye(4)[np.arange(8) % 4] + np.eye(4)[(np.arange(8) + 1) % 4])[None]
    two = routes(Experts(count=4, active=2), pairs)
    assert two.balance == pytest.approx(np.ones((1, 8)), rel=1e-6)


def test_the_balance_losss_slope_leads_to_equal_load():
    e, logits = (
        Experts(count=4, active=1),
        jnp.asarray(
            np.random.default_rng(0).standard_normal((2, 64, 4)) + np.eye(4)[0] * 2, jnp.float32
        ),
    )

    def loss(logits):
        return routes(e, logits).balance.mean()

    begun = float(loss(logits))
    slope = jax.jit(jax.grad(loss))
    for _ in range(20):
        logits = logits - 100.0 * slope(logits)
    assert float(loss(logits)) < 0.7 * begun and routes(e, logits).load.max() < 60


def test_rows_are_balanced_one_by_one():
    logits = np.random.default_rng(0).standard_normal((3, 8, 4))
    whole = routes(EXPERTS, logits).balance
    np.testing.assert_allclose(
        whole, np.concatenate([routes(EXPERTS, row[None]).balance for row in logits]), rtol=1e-6
    )


def test_padding_counts_for_nothing():
    logits = np.random.default_rng(0).standard_normal((1, 8, 4))
    padded = np.concatenate([logits, 9.0 * np.ones((1, 3, 4))], axis=1)
    alone, beside = routes(EXPERTS, logits), routes(EXPERTS, padded, real=jnp.arange(11)[None] < 8)
    np.testing.assert_allclose(beside.load, alone.load)
    np.testing.assert_allclose(beside.balance[:, :8], alone.balance, rtol=1e-6)
    assert alone.load.sum() == 16


def test_z_is_the_squared_log_of_the_sum():
    logits = np.random.default_rng(0).standard_normal((2, 5, 4))
    np.testing.assert_allclose(
        routes(EXPERTS, logits).z, np.log(np.exp(logits).sum(-1)) ** 2, rtol=1e-5
    )


def test_a_bias_chooses_but_does_not_weigh():
    e, logits = (
        Experts(count=4, active=1, normalised=False, bias_step=0.1),
        np.tile((3.0, 2.0, 1.0, 0.0), (1, 2, 1)),
    )
    found = routes(e, logits, bias=jnp.asarray([0.0, 0.0, 0.0, 5.0]))
    assert (found.chosen == 3).all()
    assert found.weights == pytest.approx(
        np.full((1, 2, 1), np.exp(0) / np.exp([3, 2, 1, 0]).sum()), rel=1e-5
    )


def batch(rows: int = 4) -> Batch:
    draw = np.random.default_rng(3)
    ids = draw.integers(0, 31, (rows, T + 1)).astype(np.int32)
    where = np.broadcast_to(np.arange(T, dtype=np.int32), (rows, T))
    return Batch(
        ids[:, :-1],
        ids[:, 1:],
        draw.random((rows, T)).astype(np.float32),
        np.ones_like(where),
        where,
    )


def trained(config: ModelConfig, params, steps: int, micro_batches: int = 1):
    rate = optim.learning_rate(optim.Schedule("constant", warmup=0), 1e-3, 10)
    optimizer = optim.build_optimizer(optim.SGD(peak=1e-3), rate)
    settle = (
        (lambda params, sums: model.rebalance(config, params, sums["load"]))
        if config.experts.bias_step
        else None
    )
    told = {
        "loss": CrossEntropy().build(config),
        "optimizer": optimizer,
        "rate": rate,
        "seed": 0,
        "dropout": False,
        "post_update": settle,
        "micro_batches": micro_batches,
    }
    run, state, metrics = (
        jax.jit(functools.partial(step.train_step, **told)),
        step.init(params, optimizer),
        [],
    )
    for _ in range(steps):
        state, found = run(state, {}, batch())
        metrics.append(jax.device_get(found))
    return state, metrics


def test_the_bias_moves_by_its_step_against_the_load_and_evens_it():
    config = of(
        Experts(count=4, active=1, scores="sigmoid", balance=0.0, bias_step=0.02), num_layers=1
    )
    params = weights(config)
    params["layers"]["moe"]["router"]["bias"] = jnp.asarray([[0.5, 0, 0, 0]], jnp.float32)
    state, metrics = trained(config, params, 40)
    moves = (
        state.trainable["layers"]["moe"]["router"]["bias"]
        - params["layers"]["moe"]["router"]["bias"]
    )
    np.testing.assert_allclose(moves / 0.02, np.round(moves / 0.02), atol=1e-3)
    assert metrics[0]["expert_load_max"] > 2.5 > 1.7 > metrics[-1]["expert_load_max"]


def test_metrics_say_how_busy_experts_are_and_how_much_was_dropped():
    dropping = of(dataclasses.replace(EXPERTS, capacity=0.5, router_z=1e-3), num_layers=1)
    (_, [once]), (_, [in_parts]) = (trained(dropping, weights(dropping), 1, k) for k in (1, 4))
    for name in (
        "balance_loss",
        "router_z_loss",
        "expert_load_max",
        "expert_load_min",
        "dropped_share",
        "loss",
    ):
        assert once[name] == pytest.approx(in_parts[name], rel=1e-5), name
    assert (
        0.4 < once["dropped_share"] < 0.7
        and once["expert_load_max"] > 1 > once["expert_load_min"]
        and once["balance_loss"] >= 1
    )


def test_the_losses_that_balance_are_added_in_training_and_not_in_evaluation():
    config = of(dataclasses.replace(EXPERTS, balance=0.3, router_z=0.2))
    params, b = weights(config), jax.tree.map(jnp.asarray, batch())
    loss = CrossEntropy().build(config)
    total, weight, sums = loss(params, {}, b, None)
    plain, _, nothing = loss.held_out()(params, {}, b, None)
    assert float(total - plain) == pytest.approx(
        float(0.3 * sums["balance"] + 0.2 * sums["router_z"]), rel=1e-3
    )
    assert nothing == {} == loss.held_out().metrics()
    mean = loss.metrics()["balance_loss"](sums, weight)
    assert float(mean) * 2 * float(weight) == pytest.approx(float(sums["balance"]), rel=1e-5)
    _, _, half = loss(params, {}, b._replace(weights=b.weights / 2), None)
    for name in ("balance", "router_z"):
        assert float(half[name]) == pytest.approx(float(sums[name]) / 2, rel=1e-5)


# --- which layers ---


def test_every_second_layer_may_have_experts():
    config = of(EXPERTS, num_layers=5, pattern=(Layer(dense=True), Layer()))
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))["layers"]
    assert shapes["dense"]["mlp"]["up"]["kernel"].shape == (3, D, 24) and shapes["sparse"]["moe"][
        "experts"
    ]["up"]["kernel"].shape == (2, 4, D, 24)


def test_what_layers_tell_is_in_the_order_of_depth_however_they_are_run():
    config = of(EXPERTS, num_layers=6, first=(Layer(),), pattern=(Layer(dense=True), Layer()))
    ids = jnp.asarray(batch().tokens)
    loads = [
        model.forward(dataclasses.replace(config, layers=layers), weights(config), ids).aux["load"]
        for layers in ("unroll", "scan")
    ]
    assert loads[0].shape == (3, 4) and (loads[0].sum(1) == 2 * ids.size).all()
    np.testing.assert_array_equal(*loads)
    assert (loads[0][0] != loads[0][1]).any()
