"""Several processes that train one run, on this machine: the run of one process, and what happens when one of them goes wrong.

Read `together` first: two processes with two devices each, as a user starts them.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import pytest
from runs import ends, losses_of, start_together

from gptjax.parallel import MeshConfig
from gptjax.train.experiment import Checkpoints
from gptjax.train.loop import train


@pytest.fixture
def figure(record_property):
    """Records what a test measured."""
    return functools.partial(record_property, "figure")


@pytest.fixture(scope="module")
def sharded(tiny_experiment):
    """Six steps whose parameters are split over all four devices, with an evaluation and a sample at the third and at the end."""
    looked = dataclasses.replace(tiny_experiment.evaluation, every=3)
    return dataclasses.replace(tiny_experiment, mesh=MeshConfig(fsdp=4), steps=6, evaluation=looked, checkpoints=Checkpoints(every=3), log_every=1)


def alone(experiment, path: Path, devices: int = 4) -> dict[int, float]:
    """The losses of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda found=jax.devices(): found[:devices])
        train(experiment, path)
    return losses_of(path)


def furthest(found: dict[int, float], wanted: dict[int, float]) -> float:
    assert list(found) == list(wanted)
    return max(abs(found[step] / wanted[step] - 1) for step in wanted)


def test_two_processes_with_two_devices_train_as_one_with_four(sharded, tmp_path, figure):
    both = ends(start_together(sharded, tmp_path / "two"))
    assert [status for status, *_ in both] == [0, 0], both
    error = furthest(losses_of(tmp_path / "two"), alone(sharded, tmp_path / "one"))
    assert error <= 1e-6
    figure(f"6 steps: losses within {error:.1e}")
