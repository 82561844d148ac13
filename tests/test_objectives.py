"""Laws of what training makes small: smoothing, z, and perturbations of the embedded tokens."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import PLAIN

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Batch
from gptjax.losses import cross_entropy as objectives
from gptjax.losses.cross_entropy import (
    FGM,
    FreeLB,
    Loss,
    adversarial,
    cross_entropy,
    token_losses,
    training,
)

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


# --- perturbations
# ------------------------------------------------------------------------------------------------------


WELL = np.random.default_rng(1).standard_normal((B, T, 4)).astype(np.float32)


def bowl(params, batch, key):
    """A loss whose slope at a perturbation is known: half the squared distance from a place of each row's
    own."""
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


PARAMS = {"embedding": {"embedding": jnp.zeros((V, 4))}}
BATCH = Batch(jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32), jnp.ones((B, T)))
LENGTHS = np.sqrt(np.square(WELL).sum((1, 2)))


def test_half_of_fgms_loss_is_a_step_up_each_rows_own_slope():
    total, weight, sums = jax.jit(adversarial(bowl, steps=1, size=0.5, radius=0.5, around=True))(
        PARAMS, BATCH, None
    )
    plain, up = np.square(LENGTHS).sum() / 2, np.square(LENGTHS + 0.5).sum() / 2
    assert float(total) == pytest.approx((plain + up) / 2, rel=1e-5) and float(weight) == B * T
    assert float(sums["far"]) == pytest.approx(
        np.abs(0.25 * WELL / LENGTHS[:, None, None]).sum(), rel=1e-5
    )


def test_freelb_takes_steps_up_the_slope_within_its_radius():
    asked = {"size": 0.3, "radius": 0.5}
    totals = [
        float(jax.jit(adversarial(bowl, steps=n, **asked))(PARAMS, BATCH, None)[0]) for n in (2, 4)
    ]
    places = [np.square(LENGTHS + far).sum() / 2 for far in (0.0, 0.3, 0.5, 0.5)]
    np.testing.assert_allclose(totals, [np.mean(places[:n]) for n in (2, 4)], rtol=1e-5)
    one = jax.jit(adversarial(bowl, steps=1, **asked))
    begun = [float(one(PARAMS, BATCH, jax.random.key(n))[0]) for n in (0, 0, 1)]
    assert (
        begun[0] == begun[1] != begun[2]
        and abs(begun[0] - places[0]) <= 0.5 * LENGTHS.sum() + B * 0.25
    )


def test_nudges_are_no_path_of_the_gradient():
    """The parameters' slope is the mean slope at the places, as if these were given."""

    def total(params):
        return adversarial(bowl, steps=1, size=0.5, radius=0.5, around=True)(params, BATCH, None)[0]

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
    objective = jax.jit(training(PLAIN, Loss(adversarial=FGM(2.0), label_smoothing=0.1)))
    whole, weight, _ = objective(params, batch, None)
    turned, _, _ = objective(
        params, jax.tree.map(lambda leaf: leaf.at[1].set(leaf[0]), batch), None
    )
    other, _, _ = objective(params, jax.tree.map(lambda leaf: leaf.at[0].set(leaf[1]), batch), None)
    assert float(whole) == pytest.approx(float(turned + other) / 2, rel=1e-5)
    assert float(whole) > float(
        jax.jit(cross_entropy(PLAIN, Loss(label_smoothing=0.1)))(params, batch, None)[0]
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Loss(label_smoothing=1.0),
        lambda: Loss(z=-1.0),
        lambda: FGM(0.0),
        lambda: FreeLB(steps=0),
    ],
)
def test_a_loss_that_can_not_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="it needs"):
        wrong()


def test_without_settings_the_loss_is_cross_entropy():
    assert training(PLAIN, Loss()).__qualname__ == objectives.cross_entropy(PLAIN).__qualname__
