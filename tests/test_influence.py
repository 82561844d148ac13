"""Influence: gradients name the rows without which retraining makes a prediction worse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from gptjax import model
from gptjax.core.arrays import Params
from gptjax.data.layouts import Batch
from gptjax.lab import influence
from gptjax.lab.audit import row_losses
from gptjax.losses import CrossEntropy

CONFIG = model.ModelConfig(vocab_size=12, context=8, width=16, num_layers=1, num_heads=2)
ROWS, QUERIES = 9, 6


def objective(params, batch, key):
    total, weight, sums = CrossEntropy().build(CONFIG)(params, {}, batch, key)
    return total, (weight, sums)


def rows_of(count: int, seed: int) -> Batch:
    """Rows of three kinds by turns, each of which counts on in four tokens of its own, but for
    slips."""
    numbers, ids = np.random.default_rng(seed), np.zeros((count, 9), np.int32)
    ids[:, 0] = numbers.integers(0, 4, count)
    for i in range(1, 9):
        slips, other = numbers.random(count) < 0.2, numbers.integers(0, 4, count)
        ids[:, i] = np.where(slips, other, ids[:, i - 1] + 1) % 4
    ids += 4 * (np.arange(count, dtype=np.int32) % 3)[:, None]
    weights = np.ones((count, 8), np.float32)
    weights[::4, 6:] = 0
    return Batch(ids[:, :-1], ids[:, 1:], weights)


@pytest.fixture(scope="module")
def rows() -> Batch:
    return rows_of(ROWS, 0)


@pytest.fixture(scope="module")
def queries() -> Batch:
    return rows_of(QUERIES, 1)


def trained(mask: jax.Array, rows: Batch) -> Params:
    """Trained on the rows whose mask is 1."""
    optimizer = optax.adam(1e-2)
    kept = rows._replace(weights=rows.weights * mask[:, None])
    params = model.init(CONFIG, jax.random.key(0))

    def loss(params):
        total, (weight, _) = objective(params, kept, None)
        return total / weight

    def step(carried, _):
        changes, state = optimizer.update(jax.grad(loss)(carried[0]), carried[1])
        return (optax.apply_updates(carried[0], changes), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=12)[0][0]


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def truth(rows, queries):
    losses = row_losses(objective)
    found = influence.left_out(
        lambda mask: trained(mask, rows), lambda params: losses(params, queries), ROWS
    )
    return np.asarray(found)


@pytest.fixture(scope="module")
def gradients(params, rows, queries):
    """Of each row's mean loss, by hand: of the rows, and of the queries."""

    def flat(batch: Batch, row: int) -> np.ndarray:
        one = jax.tree.map(lambda x: x[row : row + 1], batch)
        gradient = jax.grad(lambda p: objective(p, one, None)[0] / one.weights.sum())(params)
        return np.asarray(ravel_pytree(gradient)[0])

    return tuple(
        np.stack([flat(batch, row) for row in range(len(batch.tokens))])
        for batch in (rows, queries)
    )


@pytest.mark.parametrize("how", [{}, {"map": "vmap"}])
def test_influence_is_the_product_of_gradients_of_mean_losses(
    how, params, rows, queries, gradients
):
    own, asked = gradients
    wanted = asked @ own.T
    found = jax.jit(influence.gradient_influence(objective, **how))(params, rows, queries)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(own, axis=1)[None]
    cosine = influence.gradient_influence(objective, "cosine", **how)
    np.testing.assert_allclose(jax.jit(cosine)(params, rows, queries), wanted / lengths, atol=1e-5)


def test_sketches_have_the_products_of_gradients_without_bias(params, rows, gradients):
    own = gradients[0]
    products = own @ own.T
    sketch = jax.jit(influence.projected_gradients(objective, 256))
    sketches = [np.asarray(sketch(params, rows, jax.random.key(i))) for i in range(24)]
    found = np.stack([one @ one.T for one in sketches])
    spread = np.sqrt((np.outer(np.diag(products), np.diag(products)) + products**2) / 256)
    apart = np.abs(found.mean(0) - products) / (spread / np.sqrt(len(found)))
    assert apart.max() < 4.5
    assert (found.std(0) / spread).mean() == pytest.approx(1.0, abs=0.25)


def test_a_row_that_helps_is_one_without_which_training_is_worse(rows, queries, truth):
    params = jax.jit(lambda: trained(jnp.ones(ROWS), rows))()
    kinds = np.arange(ROWS) % 3
    same = kinds[None] == np.arange(QUERIES)[:, None] % 3
    assert truth[same].mean() > 0 and truth[same].mean() > truth[~same].mean()
    key = jax.random.key(3)
    sketch = jax.jit(influence.projected_gradients(objective, 512))
    sketches = sketch(params, rows, key), sketch(params, queries, key)
    scores = {
        "dot": jax.jit(influence.gradient_influence(objective))(params, rows, queries),
        "cosine": jax.jit(influence.gradient_influence(objective, "cosine"))(params, rows, queries),
        "projection": influence.projected_influence(*sketches),
    }
    for name, found in scores.items():
        agreed = influence.rank_agreement(np.asarray(found), truth)
        assert agreed.mean > 0.25 and agreed.low > 0.1, (name, agreed)
        turned = influence.rank_agreement(np.roll(np.asarray(found), 1, axis=1), truth)
        assert turned.mean < agreed.mean - 0.4, (name, "the rows of another kind are no worse")


def test_projected_influence_is_that_of_a_parabola_whose_curvature_is_known():
    """½ (θ − x)² with rows of unit covariance: leaving a row out moves the mean by (θ − x) / N."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 4)))[0] * 8  # rowsᵀ rows / 64 = 1
    queries = np.random.default_rng(1).normal(size=(3, 4))
    found = influence.projected_influence(jnp.asarray(rows), jnp.asarray(queries), 1e-6)
    np.testing.assert_allclose(found, queries @ rows.T / 64, atol=1e-5)


def test_agreement_is_spearmans_with_ties():
    scores, truth = np.array([[1.0, 2.0, 2.0, 4.0]]), np.array([[10.0, 30.0, 20.0, 40.0]])
    found = influence.rank_agreement(scores, truth)
    assert found.mean == pytest.approx(0.9486833)  # scipy.stats.spearmanr
    assert influence.rank_agreement(-scores, truth).mean == pytest.approx(-0.9486833)
    assert influence.rank_agreement(np.ones((1, 4)), truth).each == (0.0,)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="size is 0; a sketch needs"):
        influence.projected_gradients(objective, 0)
    with pytest.raises(ValueError, match=r"damping is 0.0; it needs a positive"):
        influence.projected_influence(jnp.ones((2, 3)), jnp.ones((1, 3)), 0.0)
