"""Laws of losses: smoothing, z, perturbations of the embedded tokens; every loss is the same
however a batch is split."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import PLAIN

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Batch
from gptjax.losses import (
    FGM,
    CrossEntropy,
    Distillation,
    FreeLB,
    FunctionLoss,
    Loss,
    per_weight,
    predict,
    token_losses,
)
from gptjax.losses.adversarial import AdversarialLoss
from gptjax.losses.cross_entropy import weighted_sum
from gptjax.train import optim, step

B, T, V = 3, 5, 11


def logits_and_targets():
    draw = np.random.default_rng(0)
    return jnp.asarray(3 * draw.standard_normal((B, T, V)), jnp.float32), jnp.asarray(
        draw.integers(0, V, (B, T)), jnp.int32
    )


def test_smoothing_shares_the_target_among_all_tokens():
    logits, targets = logits_and_targets()
    chances = np.asarray(jax.nn.log_softmax(logits), np.float64)
    wanted = 0.9 * np.eye(V)[targets] + 0.1 / V
    np.testing.assert_allclose(
        token_losses(logits, targets, 0.1), -(wanted * chances).sum(-1), rtol=1e-5
    )


def test_z_is_added_as_the_square_of_the_log_of_the_sum():
    logits, targets = logits_and_targets()
    more = token_losses(logits, targets, z=0.5) - token_losses(logits, targets)
    np.testing.assert_allclose(
        more, 0.5 * np.log(np.exp(np.asarray(logits, np.float64)).sum(-1)) ** 2, rtol=1e-4
    )


def test_an_unknown_target_is_nan_where_it_counts_and_nothing_where_not():
    logits, targets = logits_and_targets()
    batch = Batch(targets, targets, jnp.ones((B, T)).at[0].set(0.0))
    plain = weighted_sum(token_losses(logits, targets), batch)
    for unknown in (-1, V):
        wrong = token_losses(logits, targets.at[0, 0].set(unknown))
        assert np.isnan(wrong[0, 0]) and np.isfinite(wrong).sum() == B * T - 1
        assert float(weighted_sum(wrong, batch)) == float(plain)
        assert np.isnan(weighted_sum(wrong, batch._replace(weights=jnp.ones((B, T)))))


def test_held_out_losses_have_no_terms_of_training():
    trained = CrossEntropy(label_smoothing=0.1, z=0.1, ahead=2.0, vocab_parts=2)
    assert trained.build(PLAIN).held_out() == CrossEntropy(vocab_parts=2).build(PLAIN).held_out()
    assert trained.build(PLAIN).held_out() != trained.build(PLAIN)


def test_distillation_is_the_divergence_from_the_teacher():
    """KL(teacher ‖ student) of predictions at the temperature, times its square."""
    params, batch = weights_and_rows()
    teacher = jax.tree.map(lambda leaf: 20 * leaf, params)
    logits, theirs = (
        np.asarray(predict(PLAIN, tree, batch, None)[0], np.float64) for tree in (params, teacher)
    )

    def chances(x):
        p = np.exp(x / 3 - (x / 3).max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)

    def divergence(p, q):
        return 9 * ((p * np.log(p / q)).sum(-1) * np.asarray(batch.weights)).sum()

    wanted, other_way_round = (
        divergence(*map(chances, pair)) for pair in ((theirs, logits), (logits, theirs))
    )
    loss = Distillation("a run", temperature=3.0, share=0.25).build(PLAIN, teacher=PLAIN)
    total, _, sums = loss(params, {"teacher": teacher}, batch, None)
    assert float(sums["teacher"]) == pytest.approx(wanted, rel=1e-3)
    reverse = Distillation("a run", temperature=3.0, share=0.25, mixture=1.0)
    reversed_sums = reverse.build(PLAIN, teacher=PLAIN)(params, {"teacher": teacher}, batch, None)
    assert float(reversed_sums[2]["teacher"]) == pytest.approx(other_way_round, rel=1e-3)
    assert abs(other_way_round / wanted - 1) > 0.05
    plain = CrossEntropy().build(PLAIN)(params, {}, batch, None)[0]
    assert float(total) == pytest.approx(0.75 * float(plain) + 0.25 * wanted, rel=1e-4)


# --- perturbations


WELL = np.random.default_rng(1).standard_normal((B, T, 4)).astype(np.float32)


def bowl(params, frozen, batch, key):
    """A loss whose slope at a perturbation is known: half the squared distance from a place
    of each row's own."""
    perturbation = (
        jnp.zeros((*batch.tokens.shape, 4)) if batch.perturbation is None else batch.perturbation
    )
    distance = (
        perturbation
        + params["embedding"]["embedding"][None, :1]
        - batch.weights[..., None] * jnp.asarray(WELL)[: len(perturbation)]
    )
    return (
        jnp.square(distance).sum() / 2,
        jnp.asarray(float(batch.tokens.size)),
        {"far": jnp.abs(perturbation).sum()},
    )


def perturbed(steps=1, size=0.5, radius=0.5, around=False):
    return AdversarialLoss(FunctionLoss(bowl), 4, steps, size, radius, around)


PARAMS = {"embedding": {"embedding": jnp.zeros((V, 4))}}
BATCH = Batch(jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32), jnp.ones((B, T)))
LENGTHS = np.sqrt(np.square(WELL).sum((1, 2)))


def test_half_of_fgms_loss_is_a_step_up_each_rows_own_slope():
    total, weight, sums = jax.jit(perturbed(around=True))(PARAMS, {}, BATCH, None)
    plain, up = np.square(LENGTHS).sum() / 2, np.square(LENGTHS + 0.5).sum() / 2
    assert float(total) == pytest.approx((plain + up) / 2, rel=1e-5) and float(weight) == B * T
    assert float(sums["far"]) == pytest.approx(
        np.abs(0.25 * WELL / LENGTHS[:, None, None]).sum(), rel=1e-5
    )


def test_freelb_takes_steps_up_the_slope_within_its_radius():
    asked = {"size": 0.3, "radius": 0.5}
    totals = [
        float(jax.jit(perturbed(steps=n, **asked))(PARAMS, {}, BATCH, None)[0]) for n in (2, 4)
    ]
    places = [np.square(LENGTHS + far).sum() / 2 for far in (0.0, 0.3, 0.5, 0.5)]
    np.testing.assert_allclose(totals, [np.mean(places[:n]) for n in (2, 4)], rtol=1e-5)
    one = jax.jit(perturbed(steps=1, **asked))
    begun = [float(one(PARAMS, {}, BATCH, jax.random.key(n))[0]) for n in (0, 0, 1)]
    assert (
        begun[0] == begun[1] != begun[2]
        and abs(begun[0] - places[0]) <= 0.5 * LENGTHS.sum() + B * 0.25
    )


def test_nudges_are_no_path_of_the_gradient():
    """The parameters' slope is the mean slope at the places, as if these were given."""

    def total(params):
        return perturbed(around=True)(params, {}, BATCH, None)[0]

    found = jax.jit(jax.grad(total))(PARAMS)["embedding"]["embedding"][0]
    np.testing.assert_allclose(
        found, -(WELL * (1 + 0.25 / LENGTHS[:, None, None])).sum((0, 1)), rtol=1e-4
    )


def test_a_models_rows_are_nudged_each_for_itself():
    draw = np.random.default_rng(3)
    shapes = jax.eval_shape(functools.partial(model.init, PLAIN), jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * draw.standard_normal(leaf.shape), jnp.float32), shapes
    )
    ids = jnp.asarray(draw.integers(0, PLAIN.vocabulary, (2, 9)), jnp.int32)
    batch = Batch(ids[:, :-1], ids[:, 1:], jnp.asarray(draw.random((2, 8)), jnp.float32))
    objective = jax.jit(FGM(2.0, CrossEntropy(label_smoothing=0.1)).build(PLAIN))
    whole, _, _ = objective(params, {}, batch, None)
    turned, _, _ = objective(
        params, {}, jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), batch), None
    )
    other, _, _ = objective(
        params, {}, jax.tree.map(lambda leaf: leaf.at[0].set(leaf[1]), batch), None
    )
    assert float(whole) == pytest.approx(float(turned + other) / 2, rel=1e-5)
    assert float(whole) > float(
        jax.jit(CrossEntropy(label_smoothing=0.1).build(PLAIN))(params, {}, batch, None)[0]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: CrossEntropy(label_smoothing=1.0),
        lambda: CrossEntropy(z=-1.0),
        lambda: FGM(0.0),
        lambda: FreeLB(steps=0),
    ],
)
def test_a_loss_that_can_not_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="it needs"):
        wrong()


# --- any split of a batch


@dataclass(frozen=True)
class Whitened(Loss):
    """A policy gradient, defined outside the package: advantages are a column, whitened over
    the whole batch, and have both signs."""

    model: model.ModelConfig

    def foresee(self, params, frozen, batch):
        reward = batch.positions.astype(jnp.float32)
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        return batch._replace(columns={"advantage": advantage})

    def __call__(self, params, frozen, batch, key):
        logits, _ = predict(self.model, params, batch._replace(columns=None), key)
        losses = token_losses(logits, batch.targets)
        sums = {"entropy": jnp.sum(batch.weights * jax.nn.logsumexp(logits, axis=-1))}
        advantage = batch.columns["advantage"]
        return jnp.sum(losses * advantage * batch.weights), jnp.sum(batch.weights), sums

    def metrics(self):
        return {"entropy": per_weight("entropy")}


LOSSES = {
    "cross-entropy": CrossEntropy(label_smoothing=0.1, z=1e-3),
    "in parts of the vocabulary": CrossEntropy(vocab_parts=3),
    "distillation": Distillation("a run", share=0.3),
    "FGM": FGM(0.5),
    "FGM around distillation": FGM(0.5, Distillation("a run")),
    "FreeLB": FreeLB(steps=2),
    "policy gradient": SimpleNamespace(build=Whitened),
}


def weights_and_rows(rows: int = 4, length: int = 8):
    params = jax.jit(functools.partial(model.init, PLAIN))(jax.random.key(1))
    draw = np.random.default_rng(4)
    ids = draw.integers(0, PLAIN.vocabulary, (rows, length + 1), np.int32)
    weights = (draw.random((rows, length)) < np.linspace(0.2, 1, rows)[:, None]).astype(np.float32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1)) + draw.integers(
        0, 9, (rows, 1)
    )
    batch = Batch(ids[:, :-1], ids[:, 1:], weights, positions=positions.astype(np.int32))
    return params, jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("FGM around") else ())
        for name in LOSSES
    ],
)
def test_any_loss_is_the_same_in_any_number_of_micro_batches(name):
    params, batch = weights_and_rows()
    teacher = jax.tree.map(lambda leaf: 2 * leaf, params)
    needs = {"teacher": PLAIN} if "istillation" in name else {}
    loss, rate = LOSSES[name].build(PLAIN, **needs), lambda step: 1.0
    optimizer = optim.build_optimizer(optim.SGD(peak=1.0, momentum=0.0, clip_norm=None), rate)
    ends = []
    for parts in (1, 4):
        run = functools.partial(
            step.train_step, loss=loss, optimizer=optimizer, rate=rate, seed=0, dropout=False,
            micro_batches=parts,
        )  # fmt: skip
        begun = step.init(params, optimizer)
        ends.append(jax.jit(run)(begun, dict.fromkeys(needs, teacher), batch))
    (whole, metrics), (split, same) = ends
    assert float(metrics["loss"]) == pytest.approx(float(same["loss"]), rel=1e-5)
    assert set(metrics) >= {"loss", "weight", *loss.metrics()}
    for one, other, old in zip(
        *(jax.tree.leaves(t) for t in (whole.trainable, split.trainable, params)), strict=True
    ):
        moved = float(jnp.abs(one - old).max())
        np.testing.assert_allclose(one - old, other - old, rtol=1e-4, atol=1e-4 * moved + 1e-8)


def test_a_batch_of_which_nothing_counts_is_a_marked_step_that_changes_nothing():
    params, batch = weights_and_rows()

    def rate(step):
        return 1.0

    optimizer = optim.build_optimizer(optim.AdamW(ema=0.9), rate)
    run = jax.jit(functools.partial(
        step.train_step, loss=CrossEntropy().build(PLAIN), optimizer=optimizer, rate=rate, seed=0,
        dropout=False,
    ))  # fmt: skip
    before, _ = run(step.init(params, optimizer), {}, batch)
    empty = batch._replace(weights=jnp.zeros_like(batch.weights))
    after, metrics = run(before, {}, empty)
    assert int(metrics["skipped"]) == 1 and np.isnan(metrics["loss"])
    assert int(after.step) == 2 and float(metrics["weight"]) == 0
    for old, new in zip(
        jax.tree.leaves((before.trainable, before.opt_state)),
        jax.tree.leaves((after.trainable, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
