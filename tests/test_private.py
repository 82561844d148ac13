"""Differentially private training: clipping, draws, noise, accounts, and what an attacker sees."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gptjax import model
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, Characters, DataConfig, Text, prepare
from gptjax.data.layouts import Batch
from gptjax.lab import accounting, audit, private, promise, secret
from gptjax.lab.examples import per_example
from gptjax.losses import CrossEntropy
from gptjax.observe.log import read_metrics
from gptjax.sharding.mesh import MeshConfig, make_mesh, place_batch, with_mesh
from gptjax.train import identity
from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import SGD

CONFIG = model.ModelConfig(vocab_size=13, context=8, width=8, num_layers=1, num_heads=2, bias=False)
LOSS = CrossEntropy().build(CONFIG)
MECHANISM = promise.Mechanism(
    noise=0.0,
    clip=0.05,
    rate=0.1,
    rows=100,
    expected=10,
    length=8,
    capacity=16,
    delta=1e-5,
    delta_of_noise=0.99e-5,
    accountant="pld",
)


def objective(params, batch, key):
    total, weight, sums = LOSS(params, {}, batch, key)
    return total, (weight, sums)


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Twelve rows, of which the last four are empty."""
    return rows_of(12, 8)


def rows_of(count: int, filled: int) -> Batch:
    ids = np.random.default_rng(0).integers(0, 13, (count, 9)).astype(np.int32)
    weights = np.broadcast_to((np.arange(count) < filled)[:, None], (count, 8)).astype(np.float32)
    words = np.broadcast_to(np.array([3, 4], np.uint32), (count, 2))
    return Batch(ids[:, :-1], ids[:, 1:], weights, columns={private.NOISE: np.array(words)})


@functools.partial(jax.jit, static_argnums=(0, 3))
def update(mechanism, params, batch, at_once=1):
    """What train_step divides by its weight: the mean gradient that an optimizer sees."""
    gradients = private.private_gradients(mechanism, at_once)
    (total, (weight, _)), grads = gradients(objective, params, batch, None)
    return total / weight, ravel_pytree(grads)[0] / weight


@jax.jit
def each_gradient(params, batch):
    return per_example(objective, lambda e: ravel_pytree(e.gradient)[0] / 8)(params, batch)


def test_each_row_moves_the_sum_by_no_more_than_the_clipping_norm(params, batch):
    _, found = update(MECHANISM, params, batch)
    plain = batch._replace(columns=None)
    each = np.asarray(each_gradient(params, plain))
    norms = np.linalg.norm(each, axis=1)
    assert (norms[:8] > MECHANISM.clip).all() and (norms[8:] == 0).all()
    clipped = each * np.minimum(1, MECHANISM.clip / np.maximum(norms, 1e-30))[:, None]
    np.testing.assert_allclose(found, clipped.sum(0) / MECHANISM.expected, atol=1e-8)
    without = batch._replace(weights=batch.weights * (np.arange(12) != 2)[:, None])
    _, less = update(MECHANISM, params, without)
    moved = np.linalg.norm(found - less) * MECHANISM.expected
    assert moved == pytest.approx(MECHANISM.clip, rel=1e-4)
    np.testing.assert_allclose(update(MECHANISM, params, batch, 4)[1], found, atol=1e-8)


def test_clipped_gradients_are_those_of_jax_privacy(params, batch):
    clipping = pytest.importorskip("jax_privacy.clipping", reason="jax-privacy is not installed")
    plain = jax.tree.map(jnp.asarray, batch._replace(columns=None))

    def mean(params, rows):
        return objective(params, rows, None)[0] / 8

    with warnings.catch_warnings():  # it calls what optax has renamed
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = clipping.clipped_grad(
            mean, l2_clip_norm=MECHANISM.clip, batch_argnums=1, keep_batch_dim=True
        )(params, plain)
    wanted = ravel_pytree(theirs)[0] / MECHANISM.expected
    np.testing.assert_allclose(update(MECHANISM, params, batch)[1], wanted, atol=1e-6)


def test_the_divisor_is_public_and_a_broken_row_counts_for_nothing(params, batch):
    """More rows give a larger step, not another divisor; the loss that guards see stays finite."""
    loss, of_eight = update(MECHANISM, params, batch)
    _, of_four = update(MECHANISM, params, rows_of(12, 4))
    _, of_rest = update(MECHANISM, params, batch._replace(weights=rest_of(batch)))
    np.testing.assert_allclose(of_four + of_rest, of_eight, atol=1e-8)
    targets = batch.targets.copy()
    targets[3] = 99  # no token of the vocabulary: its loss is NaN
    broken_loss, broken = update(MECHANISM, params, batch._replace(targets=targets))
    left_out = batch._replace(weights=batch.weights * (np.arange(12) != 3)[:, None])
    np.testing.assert_allclose(broken, update(MECHANISM, params, left_out)[1], atol=1e-8)
    assert np.isfinite(broken_loss) and np.isfinite(loss)


def rest_of(batch):
    return batch.weights * (np.arange(12) >= 4)[:, None]


def test_the_noise_has_the_deviation_of_the_account_and_the_key_of_the_step(params, batch):
    noisy = MECHANISM._replace(noise=2.0)
    _, clean = update(MECHANISM, params, batch)
    _, found = update(noisy, params, batch)
    drawn = (found - clean) * noisy.expected / (noisy.noise * noisy.clip)
    assert float(drawn.std()) == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(drawn)))
    assert abs(float(drawn.mean())) < 4 / math.sqrt(len(drawn))
    np.testing.assert_array_equal(update(noisy, params, batch)[1], found)
    other = batch._replace(columns={private.NOISE: batch.columns[private.NOISE] + 1})
    assert np.abs(update(noisy, params, other)[1] - found).max() > 0


def test_on_a_mesh_the_noise_is_added_once(params):
    batch, mesh, noisy = rows_of(16, 8), make_mesh(MeshConfig()), MECHANISM._replace(noise=2.0)
    _, wanted = update(noisy, params, batch)

    def step(params, batch):
        return update(noisy, params, batch)

    _, found = jax.jit(with_mesh(mesh, step))(params, place_batch(batch, mesh, 16))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


# --- draws


def test_rows_are_drawn_independently_by_the_secret_and_the_step():
    key, rate, count, steps = b"s" * 32, 0.2, 500, 400
    drawn = np.zeros((steps, count))
    for step in range(steps):
        drawn[step, secret.poisson_rows(key, step, rate, count)] = 1
    total = drawn.mean()
    assert abs(total - rate) < 4 * math.sqrt(rate * (1 - rate) / drawn.size)
    sizes = drawn.sum(1)
    assert sizes.var() == pytest.approx(count * rate * (1 - rate), rel=0.3)
    apart = np.corrcoef(drawn.T)[np.triu_indices(count, 1)]
    assert apart.std() == pytest.approx(1 / math.sqrt(steps), rel=0.05)
    again = secret.poisson_rows(key, 7, rate, count)
    np.testing.assert_array_equal(again, np.flatnonzero(drawn[7]))
    assert len(np.setxor1d(again, secret.poisson_rows(b"t" * 32, 7, rate, count))) > 50


def test_a_batch_has_room_for_nearly_every_draw():
    draws = np.random.default_rng(0).binomial(1000, 0.05, 10**6)
    room = accounting.largest_draw(0.05, 1000, 1, 1e-3)
    assert (draws > room).mean() < 1.2e-3 < (draws > room - 1).mean() * 1.6
    assert accounting.room_for_draws(8.0, 1e-5, 0.05, 1000, 100) > room


# --- accounts


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "rdp", "pld"),
    [
        (1.5, 0.04, 2250, 7.329334702381698, 6.768787373891152),
        (1.0, 0.01, 1000, 2.101366525420273, 1.8282436455855091),
        (1.0, 128 / 60000, 4687, 1.0315705552128684, 0.7337264717102541),
    ],
)
def test_epsilon_is_that_of_other_accountants(noise, rate, steps, rdp, pld):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    assert accounting.epsilon_of(noise, rate, steps, 1e-5, "rdp") == pytest.approx(rdp, rel=1e-6)
    assert accounting.epsilon_of(noise, rate, steps, 1e-5, "pld") == pytest.approx(pld, rel=1e-4)


def test_the_noise_for_an_epsilon_is_that_of_opacus():
    """opacus/tests/accountants_test.py: 1.3562 for 2,000 steps by RDP."""
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    found = accounting.noise_for(8.0, 0.04, 2000, 1e-5, "rdp")
    assert found == pytest.approx(1.3562, rel=2e-3)
    assert accounting.epsilon_of(found, 0.04, 2000, 1e-5, "rdp") <= 8.0
    assert accounting.epsilon_of(0.0, 0.04, 2000, 1e-5) == math.inf


# --- whole runs


@pytest.fixture(scope="module")
def experiment(text_file) -> Experiment:
    return Experiment(
        model=model.ModelConfig(context=16, width=16, num_layers=1, num_heads=2),
        data=DataConfig(source=Text(str(text_file)), tokenizer=Bytes()),
        optim=SGD(peak=0.5),
        evaluation=Evaluation(every=4, rows=8),
        checkpoints=Checkpoints(every=2),
        steps=4,
        batch=32,
    )


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_private_run_resumes_with_its_bits_and_its_epsilon(experiment, tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed")
    run, settings = tmp_path / "run", promise.Privacy(epsilon=4.0, clip=0.1, accountant="rdp")
    private.train_privately(experiment, settings, run)
    promised = json.loads((run / promise.FILE).read_text("utf-8"))
    lines = [line for line in read_metrics(run) if "gradient_norm" in line]
    assert 3.9 < promised["epsilon"] <= 4.0
    shutil.rmtree(run / "checkpoints/4")
    private.train_privately(experiment, settings, run)
    again = [line for line in read_metrics(run) if "gradient_norm" in line]

    def numbers(lines):
        return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]

    assert numbers(again) == numbers(lines)
    assert json.loads((run / promise.FILE).read_text("utf-8")) == promised
    # the secret is elsewhere, for its owner only
    kept = secret.secret_path(run)
    assert kept.stat().st_mode & 0o777 == 0o600 and not kept.is_relative_to(run)
    words = kept.read_bytes()
    for file in (one for one in run.rglob("*") if one.is_file()):
        content = file.read_bytes()
        assert words not in content and words.hex().encode() not in content
    # a longer run spends more, and another promise is refused
    longer = dataclasses.replace(experiment, steps=6)
    private.train_privately(longer, settings, run)
    spent = json.loads((run / promise.FILE).read_text("utf-8"))
    assert spent["epsilon"] > promised["epsilon"]
    monkeypatch.setattr(private, "train", lambda *args, **how: None)
    private.train_privately(experiment, settings, run)  # what six steps spent, none gets back
    assert json.loads((run / promise.FILE).read_text("utf-8")) == spent
    with pytest.raises(ConfigError, match="use a divisor"):
        private.train_privately(longer, dataclasses.replace(settings, at_once=1000), run)
    with pytest.raises(ConfigError, match="begun with another epsilon"):
        private.train_privately(longer, dataclasses.replace(settings, epsilon=8.0), run)
    kept.write_bytes(os.urandom(32))
    with pytest.raises(ConfigError, match="another secret"):
        private.train_privately(longer, settings, run)
    with pytest.raises(ConfigError, match="use gptjax private"):
        train(longer, run)


def test_two_runs_with_one_secret_share_no_noise(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(private, "train", lambda *args, source, **how: source(None)(0, None))
    settings, key = promise.Privacy(noise=1.0, accountant="rdp"), tmp_path / "key"
    first, second = (
        private.train_privately(experiment, settings, tmp_path / name, key=key).columns
        for name in "ab"
    )
    assert not np.any(first[private.NOISE] == second[private.NOISE])


def test_a_run_that_starts_from_a_model_has_its_tokenizer_and_shape(experiment, tmp_path):
    train(dataclasses.replace(experiment, steps=1), tmp_path / "base")
    tuned = dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, context=8, width=32),
        data=dataclasses.replace(experiment.data, tokenizer=Characters()),
        start=str(tmp_path / "base"),
        steps=1,
    )
    private.train_privately(tuned, promise.Privacy(noise=1.0, accountant="rdp"), tmp_path / "run")
    known = json.loads((tmp_path / "run" / promise.FILE).read_text("utf-8"))
    plain = json.loads((tmp_path / "run/config.json").read_text("utf-8"))["model"]
    assert known["mechanism"]["length"] == plain["context"] and plain["width"] == 16
    (line,) = (one for one in read_metrics(tmp_path / "run") if "gradient_norm" in one)
    assert line["loss"] == pytest.approx(math.log(plain["vocab_size"]), rel=0.2)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"micro_batch": 16}, {}, "micro_batch"),
        ({"skip_spikes": True}, {}, "skip_spikes"),
        ({}, {"delta": 0.1}, "delta is 0.1"),
        ({"batch": 10**6}, {}, "use fewer"),
    ],
)
def test_what_voids_the_promise_is_refused(experiment, tmp_path, changes, settings, message):
    given = dataclasses.replace(experiment, **changes)
    with pytest.raises(ConfigError, match=message):
        private.train_privately(given, promise.Privacy(noise=0.0, **settings), tmp_path / "run")


def test_a_secret_in_the_run_directory_is_refused(experiment, tmp_path):
    with pytest.raises(ConfigError, match="may be given away"):
        private.train_privately(
            experiment, promise.Privacy(noise=0.0), tmp_path, key=tmp_path / "key"
        )


def test_rows_of_a_private_run_are_the_same_in_every_step(experiment):
    """The unit of privacy: without the shift of other runs, each pair of tokens is in one row."""
    data = prepare(experiment.data)
    resolved = identity.resolve(experiment, data)
    plan = private.fixed_rows(resolved, data.train)
    mechanism = MECHANISM._replace(rate=0.5, rows=plan.rows_per_epoch, capacity=plan.rows_per_epoch)
    source = private.poisson_source(data.train, plan, mechanism, b"s" * 32)
    seen: dict[int, np.ndarray] = {}
    for step in range(6):
        drawn = secret.poisson_rows(b"s" * 32, step, 0.5, plan.rows_per_epoch)
        made = source(step, None)
        assert (made.weights[len(drawn) :] == 0).all()
        for row, tokens in zip(drawn, made.tokens, strict=False):
            np.testing.assert_array_equal(seen.setdefault(int(row), tokens), tokens)
    assert len(seen) > 0.9 * plan.rows_per_epoch


# --- audits


def test_exposure_and_membership_of_known_ranks():
    others = np.arange(1.0, 16.0)
    found = audit.exposures(np.array([0.0, 7.5, 20.0]), others)
    np.testing.assert_allclose(found, [4.0, 1.0, 0.0])
    roc = audit.membership(np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0, 5.0]))
    assert roc.area == pytest.approx(8 / 9)
    assert audit.membership(others, others).area == pytest.approx(0.5)


def test_an_audit_stays_below_the_promise_it_is_given():
    """Randomised response answers truly with e^ε / (1 + e^ε): nothing is closer to its epsilon."""
    rng, epsilon, count = np.random.default_rng(0), 1.0, 1000
    bounds = []
    for _ in range(200):
        inserted = rng.random(count) < 0.5
        true = rng.random(count) < 1 / (1 + math.exp(-epsilon))
        scores = np.where(true == inserted, 0.0, 1.0) + rng.random(count) / 2
        bounds.append(audit.audited_epsilon(scores, inserted, 0.0, 800))
    assert (np.array(bounds) > epsilon).mean() <= 0.09
    assert np.mean(bounds) > 0.8
    clean = np.concatenate([np.zeros(500), np.ones(500)])
    assert audit.audited_epsilon(clean, clean == 0, 1e-5, 1000) > 4
    assert audit.audited_epsilon(rng.random(count), clean == 0, 1e-5, 800) < 0.4


def test_the_intervals_of_an_audit_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for right, n in ((0, 20), (3, 20), (20, 20), (130, 400)):
        wanted = stats.binomtest(right, n).proportion_ci(0.95, "exact")
        assert audit.clopper_pearson(right, n) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_without_noise_a_canary_is_exposed_and_with_it_less(tmp_path, params):
    """The audit sees something, or its low bound under noise would prove nothing."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 13, (120, 9)).astype(np.int32)
    inserted = rng.random(120) < 0.5
    ones = np.ones((120, 8), np.float32)
    losses = jax.jit(audit.row_losses(objective))

    def trained(noise: float) -> np.ndarray:
        mechanism = MECHANISM._replace(noise=noise, clip=1.0, expected=30)
        gradients = private.private_gradients(mechanism, 8)

        @jax.jit
        def step(params, batch):
            (_, (weight, _)), grads = gradients(objective, params, batch, None)
            return jax.tree.map(lambda p, g: p - 3.0 * g / weight, params, grads)

        now, members = params, np.flatnonzero(inserted)
        for number in range(150):
            drawn = members[secret.poisson_rows(b"s" * 32, number, 0.5, len(members))][:40]
            drawn = np.concatenate([drawn, np.zeros(40 - len(drawn), int)])
            weights = ones[:40] * (np.arange(40) < len(np.unique(drawn)))[:, None]
            words = np.broadcast_to(secret.noise_words(b"s" * 32, number), (40, 2))
            rows = ids[drawn]
            batch = Batch(
                rows[:, :-1], rows[:, 1:], weights, columns={private.NOISE: np.array(words)}
            )
            now = step(now, batch)
        return np.asarray(losses(now, Batch(ids[:, :-1], ids[:, 1:], ones)))

    clean, noisy = trained(0.0), trained(20.0)
    exposed = [audit.exposures(x[inserted], x[~inserted]).mean() for x in (clean, noisy)]
    assert exposed[0] > 3.5 and exposed[1] < 2.5, exposed
    assert audit.audited_epsilon(clean, inserted, 1e-5, 80) > 0.8
    assert audit.audited_epsilon(noisy, inserted, 1e-5, 80) < 0.8
    assert audit.membership(clean[inserted], clean[~inserted]).area > 0.9


def test_the_command_reads_privacy_of_the_config_and_its_flags(tmp_path):
    from gptjax.cli.private import PrivateOptions, privacy_of

    file = tmp_path / "c.py"
    file.write_text("from gptjax.lab.promise import Privacy\nprivacy = Privacy(3.0, clip=0.5)\n")
    found = privacy_of(file, PrivateOptions(delta=1e-6), Path("runs/none"))
    assert found == promise.Privacy(epsilon=3.0, delta=1e-6, clip=0.5)
    assert privacy_of(tmp_path, PrivateOptions(), tmp_path) == promise.Privacy()
    file.write_text("x = 1\n")
    assert privacy_of(file, PrivateOptions(), tmp_path) == promise.Privacy()
    file.write_text("privacy = 3.0\n")
    with pytest.raises(ConfigError, match="must define `privacy`, a Privacy"):
        privacy_of(file, PrivateOptions(), tmp_path)
    (tmp_path / promise.FILE).write_text('{"privacy": {"epsilom": 3}}')
    with pytest.raises(ConfigError, match="epsilon"):
        privacy_of(tmp_path, PrivateOptions(), tmp_path)
