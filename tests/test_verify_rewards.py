"""The proofs about learning from rewards pass where nothing is wrong, and each notices the defect
that it is for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest
from proving import outcome
from variants import PLAIN

from gptjax.data import Characters, DataConfig, Prompts, Puzzles, prepare
from gptjax.losses import Policy, policy, policy_presets
from gptjax.rewards import Solved
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import rollouts
from gptjax.train.experiment import Experiment
from gptjax.train.rollout import Rollout
from gptjax.verify.setting import Setting, make
from gptjax.verify.suite import REWARDS, proofs_of

OWN = ("sampler", "on-policy", "rollout", "groups")


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Iterator[Setting]:
    source = Puzzles("reversal", count=200, length=3)
    folder = str(tmp_path_factory.mktemp("data"))
    data = DataConfig(source, Characters(), task=Prompts(), validation=0.1, cache=folder)
    experiment = Experiment(
        model=replace(PLAIN, vocab_size=None, context=16, num_layers=1),
        data=data,
        loss=Policy("group", temperature=0.8, kl=0.1, ratio="sequence"),
        rollout=Rollout((Solved(),), answers=4, new_tokens=6, updates=2),
        steps=4,
        batch=8,
        mesh=MeshConfig(data=1),
    )
    with pytest.MonkeyPatch.context() as patch:  # eight devices would write a row each
        devices = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *_: devices)
        yield make(experiment, prepare(data))


status = functools.partial(outcome, REWARDS)


def test_what_is_right_passes(setting):
    assert proofs_of(setting.experiment) is REWARDS
    for name in ("tokenizer", *OWN):
        assert status(name, setting).startswith("pass"), status(name, setting)
    alone = replace(setting.small, loss=Policy("reward"))
    assert status("groups", setting._replace(small=alone)).startswith("skipped")


def test_each_proof_notices_its_defect(setting, monkeypatch):
    rows_of, ratios, found = (
        rollouts.rows_of,
        policy.surrogates.ratios,
        policy_presets.advantages_of,
    )
    counter = itertools.count()

    def late(*args):
        batch = rows_of(*args)
        return batch._replace(positions=np.where(batch.segments > 0, batch.positions + 1, -1))

    def mixed(settings, rewards, *facts):
        return found(settings, rewards.T.reshape(rewards.shape), *facts)

    defects = (
        ("sampler", rollouts, "rows_of", late),
        ("on-policy", policy.surrogates, "ratios", lambda log_ratio: 1.001 * ratios(log_ratio)),
        ("rollout", rollouts, "seeds_of", lambda *args: [next(counter) for _ in range(args[2])]),
        ("groups", policy_presets, "advantages_of", mixed),
    )
    for name, module, function, defect in defects:
        with monkeypatch.context() as patch:
            patch.setattr(module, function, defect)
            assert status(name, setting).startswith("fail"), status(name, setting)
