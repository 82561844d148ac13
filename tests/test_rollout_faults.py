"""Runs that learn from rewards, killed where only they can be: in the middle of an answer, of a
reward and of an update. And such a run on another number of devices."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import CHILD, assert_same_run, fingerprint, losses_of, start
from variants import PLAIN

from gptjax.data import Characters, DataConfig, Prompts, Puzzles
from gptjax.losses import Policy
from gptjax.rewards import Function
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Checkpoints, Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule
from gptjax.train.rollout import Rollout

STEPS = 6

DYING = f"""
import os, signal, threading
from gptjax.generate import schedule
from gptjax.rewards import function
from gptjax.train import program

place, last = os.environ.get("DIES", "nowhere 0").split()
calls = 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def mortal(work, name):
    def until(*args, **kwargs):
        global calls
        calls += name == place
        if (name, calls) == (place, int(last)):
            threading.Timer(2e-4, die).start()  # while the devices work
            work(*args, **kwargs)
            die()
        return work(*args, **kwargs)

    return until


def built(*args, build=program.build):
    done = build(*args)
    return done._replace(step=mortal(done.step, "update"))


def loaded(name, load=function.load_function):
    return mortal(load(name), "reward")


schedule.engine.advance = mortal(schedule.engine.advance, "rollout")
program.build, function.load_function = built, loaded
{CHILD}"""
"""`gptjax train` in a process that may end before its time."""


REWARD = '''
def vowels(prompt, answer, record):
    """A reward that random models get too."""
    return None if answer.startswith("z") else sum(c < "m" for c in answer) / 8
'''


def experiment(folder: Path, **changes) -> Experiment:
    reward = folder / "reward.py"
    reward.write_text(REWARD)
    settings = {
        "data": DataConfig(
            Puzzles("reversal", count=200, length=3), Characters(), task=Prompts(), validation=0.1
        ),
        "model": dataclasses.replace(PLAIN, vocab_size=None, context=16),
        "loss": Policy("group"),
        "rollout": Rollout((Function(f"{reward}:vowels"),), answers=4, new_tokens=6),
        "optim": AdamW(peak=1e-2),
        "schedule": Schedule("constant", warmup=0, steps=STEPS),
        "evaluation": Evaluation(every=STEPS, rows=8),
        "checkpoints": Checkpoints(every=2),
        "batch": 8,
        "steps": STEPS,
        "log_every": 1,
    }
    return Experiment(**settings | changes)


def ended(path: Path, dies: str = "") -> int:
    """Starts the one command, on one device, and returns its exit status."""
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    env = {"XLA_FLAGS": " ".join(kept)} | ({"DIES": dies} if dies else {})
    process = start(experiment(path.parent), path, env=env, child=DYING)
    told = process.communicate(timeout=240)[1]
    assert process.returncode in (0, -signal.SIGKILL), told
    return process.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_a_rollout_a_reward_and_an_update_a_run_ends_in_the_same_bits(tmp_path):
    """Each kill is of the process that resumed after the one before, wherever it resumes: a step
    that is not saved yet is taken again."""
    assert ended(tmp_path / "whole") == 0
    path = tmp_path / "killed"
    for dies in ("rollout 4", "reward 11", "update 3"):
        assert ended(path, dies) == -signal.SIGKILL
        assert 0 < len(losses_of(path)) < STEPS, dies
    assert ended(path) == 0
    assert_same_run(path, tmp_path / "whole", STEPS)
    written = [(tmp_path / name / "rollouts.jsonl").read_bytes() for name in ("killed", "whole")]
    assert written[0] == written[1] and written[0].count(b"\n") == 8 * STEPS
    assert fingerprint(path, STEPS) != fingerprint(path, STEPS - 2)


@pytest.mark.slow
def test_on_two_devices_a_run_goes_on_with_the_same_answers_and_losses(tmp_path, monkeypatch):
    """To rounding; no tie flips in these answers, so that all ids are the same."""
    all_devices = jax.devices()

    def on(count: int) -> None:
        devices = functools.partial(lambda devices, *_: devices, all_devices[:count])
        monkeypatch.setattr(jax, "devices", devices)

    on(1)
    train(experiment(tmp_path), tmp_path / "one")
    train(experiment(tmp_path, steps=2), tmp_path / "two")
    on(2)
    train(experiment(tmp_path, mesh=MeshConfig(data=2)), tmp_path / "two")
    one, two = (losses_of(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(list(two.values()), list(one.values()), atol=1e-5)
    lines = [
        (tmp_path / name / "rollouts.jsonl").read_text().splitlines() for name in ("one", "two")
    ]
    ids = [[json.loads(line)["ids"] for line in written] for written in lines]
    assert ids[0] == ids[1] and len(ids[0]) == 8 * STEPS
