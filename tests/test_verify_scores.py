"""The proofs about reward models pass where nothing is wrong, and each notices the defect that it
is for."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from proving import outcome
from variants import PLAIN

from gptjax import model
from gptjax.data import Bytes, Comparisons, DataConfig, Preferences, prepare
from gptjax.losses import BradleyTerry, reward
from gptjax.losses.pairwise import Pair
from gptjax.losses.reward import BradleyTerryLoss
from gptjax.train.experiment import Experiment
from gptjax.verify.setting import Setting, make
from gptjax.verify.suite import SCORES, proofs_of


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    folder = tmp_path_factory.mktemp("scores")
    records = [{"prompt": f"{n}>", "chosen": "ab", "rejected": f"c{n}"} for n in range(24)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = Preferences(score=True)
    data = DataConfig(Comparisons(str(file)), Bytes(), 0.2, task, cache=str(folder))
    experiment = Experiment(
        model=replace(PLAIN, vocab_size=None, context=32, num_layers=1, pool="last"),
        data=data,
        loss=BradleyTerry(margin=0.5, centre=0.01),
    )
    return make(experiment, prepare(data))


status = functools.partial(outcome, SCORES)


def test_what_is_right_passes(setting):
    assert proofs_of(setting.experiment) is SCORES
    for proof in SCORES:
        said = status(proof.name, setting)
        wanted = "skipped" if proof.name in ("checkpoints", "adapter") else "pass"
        assert said.startswith(wanted), said


def test_a_score_of_the_mean_of_all_states_is_that_of_the_text_alone(setting):
    exact = replace(setting.exact, pool="mean")
    assert status("scores", setting._replace(exact=exact)).startswith("pass")


def test_a_score_of_another_token_or_of_a_shared_row_is_noticed(setting, monkeypatch):
    read, forward = model.class_logits, reward.forward_batch
    monkeypatch.setattr(model, "class_logits", lambda *args: jnp.roll(read(*args), 1, axis=1))
    assert status("scores", setting).startswith("fail relative")
    monkeypatch.undo()

    def blind(config, params, batch, key):
        return forward(config, params, batch._replace(segments=jnp.ones_like(batch.tokens)), key)

    monkeypatch.setattr(reward, "forward_batch", blind)
    assert status("scores", setting).startswith("fail relative")


def test_a_pair_turned_round_and_a_lost_margin_are_noticed(setting, monkeypatch):
    by_pair, loss = reward.by_pair, reward.bradley_terry
    monkeypatch.setattr(reward, "by_pair", lambda batch, x: Pair(*by_pair(batch, x)[::-1]))
    assert status("leads", setting).startswith("fail relative")
    monkeypatch.undo()
    monkeypatch.setattr(
        reward, "bradley_terry", lambda score, margin, centre: loss(score, 0.0, centre)
    )
    assert status("leads", setting).startswith("fail relative")


def test_a_mean_and_a_gradient_that_is_stopped_are_noticed(setting, monkeypatch):
    whole, read = BradleyTerryLoss.__call__, model.class_logits

    def mean(self, *args):
        total, weight, metrics = whole(self, *args)
        return total / weight, jnp.ones_like(weight), metrics

    monkeypatch.setattr(BradleyTerryLoss, "__call__", mean)
    assert status("split", setting).startswith("fail relative")
    monkeypatch.undo()

    def stopped(config, params, hidden, *places):
        return read(config, params, jax.lax.stop_gradient(hidden), *places)

    monkeypatch.setattr(model, "class_logits", stopped)
    assert status("gradients", setting).startswith("fail relative")
