"""Laws of on-policy distillation: the divergence of GKD on the model's own answers."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import lines_of
from test_rollouts import experiment, one_device, resolved, whole  # noqa: F401
from variants import PLAIN

from gptjax import model
from gptjax.cli import evaluate
from gptjax.cli.arguments import read_experiment
from gptjax.core.config import ConfigError
from gptjax.data import Batch
from gptjax.losses import GKD
from gptjax.rewards import Solved
from gptjax.train.loop import train
from gptjax.train.optim import Schedule
from gptjax.train.rollout import Rollout

ROWS, LENGTH = 3, 8


@functools.cache
def weights(seed: int):
    return model.init(PLAIN, jax.random.key(seed))


def answers() -> Batch:
    """Rows of which 3, 5 and no tokens count."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, PLAIN.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    counted = np.zeros((ROWS, LENGTH), np.float32)
    counted[0, 2:5] = counted[1, 1:6] = 1
    return Batch(ids, ids, counted, columns={"finished": np.array([1, 0, 1], np.float32)})


def mean_of(settings: GKD, batch: Batch):
    """(value, gradient) of the mean loss of a student and another model."""
    loss = settings.build(PLAIN, teacher=PLAIN)

    def mean(student, teacher):
        total, weight, sums = loss(student, {"teacher": teacher}, batch, None)
        return total / weight, {name: r(sums, weight) for name, r in loss.metrics().items()}

    return jax.value_and_grad(mean, has_aux=True)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_loss_is_the_mean_divergence_of_counted_tokens_at_the_temperature(share):
    """Of equation 1 written out; `test_preferences` compares the divergence with TRL."""
    batch = answers()

    def written_out(student, teacher):
        probs = []
        for one in (student, teacher):
            hidden = model.forward(PLAIN, one, jnp.asarray(batch.tokens)).hidden
            logits = model.unembed(PLAIN, one, hidden)
            probs.append(jax.nn.softmax(logits / 0.7))
        p, q = probs
        m = share * q + (1 - share) * p

        def kl(a, b):
            return jnp.sum(a * (jnp.log(a) - jnp.log(b)), axis=-1)

        ends = {0.0: kl(q, p), 1.0: kl(p, q)}
        each = ends.get(share, share * kl(q, m) + (1 - share) * kl(p, m))
        return jnp.sum(each * batch.weights) / 8

    wanted, slope = jax.value_and_grad(written_out)(weights(1), weights(2))
    (found, metrics), grad = mean_of(GKD("t", share, 0.7), batch)(weights(1), weights(2))
    assert float(found) == pytest.approx(float(wanted), rel=3e-5)
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), slope, grad)
    assert max(jax.tree.leaves(gap)) <= 1e-5
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grad)) > 1e-3
    assert float(metrics["unfinished"]) == pytest.approx(1 / 3)
    assert float(metrics["answer_length"]) == 4  # of the rows that count


def test_a_teacher_that_is_the_student_teaches_nothing():
    for share in (0.0, 0.5, 1.0):
        (value, _), grad = mean_of(GKD("t", share), answers())(weights(1), weights(1))
        assert abs(float(value)) <= 1e-6
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grad)) <= 1e-6


def test_a_run_learns_a_teachers_predictions_without_rewards(whole, tmp_path):  # noqa: F811
    """With rewards the same steps, and their figures are measured."""
    settings = experiment(
        loss=GKD(str(whole)),
        rollout=Rollout(answers=2, new_tokens=6, top_k=12),  # no policy gradient: any sampler
        schedule=Schedule("constant"),
        steps=8,
        seed=3,
    )
    train(settings, tmp_path / "plain")
    steps = lines_of(tmp_path / "plain")
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"] and "reward" not in steps[0]
    assert 0 < steps[-1]["validation_loss"] < 0.7 * steps[0]["loss"]
    assert "validation_reward" not in steps[-1]
    own, _ = read_experiment(tmp_path / "plain")
    found = evaluate.measured(tmp_path / "plain", evaluate.EvaluateOptions(), own, whole=False)
    assert found["loss"] == pytest.approx(steps[-1]["validation_loss"], abs=1e-6)
    lines = (tmp_path / "plain" / "rollouts.jsonl").read_text().splitlines()
    kept = json.loads(lines[0])
    assert len(lines) == 8 * 8 and kept["label"] is kept["reward"] is None
    assert "nats per token" in (tmp_path / "plain" / "report.html").read_text()
    judged = dataclasses.replace(settings.rollout, rewards=(Solved(),))
    train(dataclasses.replace(settings, rollout=judged, steps=2), tmp_path / "judged")
    again = lines_of(tmp_path / "judged")
    assert [one["loss"] for one in again] == [one["loss"] for one in steps[:2]]
    assert 0 <= again[-1]["validation_pass_rate"] <= 1 and again[-1]["validation_loss"] > 0


def test_settings_outside_their_bounds_are_refused():
    for bad, says in ((1.5, "loss.share is 1.5"), (-0.1, "loss.share is -0.1")):
        with pytest.raises(ConfigError, match=says):
            GKD("t", bad)
    with pytest.raises(ConfigError, match=r"loss\.temperature is 0"):
        GKD("t", temperature=0.0)
