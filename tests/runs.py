"""Runs looked at from outside: what their directory says, and processes that train, as a user
starts them."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

from gptjax import model
from gptjax.core import config
from gptjax.observe.log import read_metrics
from gptjax.runs import Run
from gptjax.train import optim, step
from gptjax.train.experiment import Experiment


def in_time(seconds: float, limit: float) -> None:
    """A deadline, which is asserted where the tests have the machine to themselves:
    benchmarks/reliability.py says so."""
    assert seconds <= limit or "GPTJAX_TEST_DEADLINES" not in os.environ


def lines_of(path: Path) -> list[dict]:
    """What metrics.jsonl says of each step; samples left out."""
    return [line for line in read_metrics(path) if "gradient_norm" in line]


def losses_of(path: Path) -> dict[int, float]:
    """Loss by step; each step stands once."""
    lines = lines_of(path)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


def fingerprint(path: Path, at: int) -> str:
    """sha256 of all parameters and optimizer state of a step, read back from the disk."""
    experiment = config.load_config(Experiment, path / "config.json")
    state = abstract_state(experiment)
    found = Run(path).restore({"params": state.trainable, "opt_state": state.opt_state}, step=at)
    assert found is not None and found[0] == at
    digest = hashlib.sha256()
    for where, leaf in jax.tree_util.tree_leaves_with_path(found[1]):
        leaf = np.asarray(leaf)  # noqa: PLW2901
        digest.update(
            f"{jax.tree_util.keystr(where)} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes()
        )
    return digest.hexdigest()


def abstract_state(experiment: Experiment) -> step.TrainState:
    """Shapes of the state that an experiment trains."""
    optimizer = optim.build_optimizer(
        experiment.optim,
        optim.learning_rate(experiment.schedule, experiment.optim.peak, experiment.steps),
        model.roles(experiment.model),
    )
    return jax.eval_shape(
        lambda: step.init(model.init(experiment.model, jax.random.key(0)), optimizer)
    )


def assert_same_run(found: Path, wanted: Path, steps: int) -> None:
    """All losses and all bits of the last state are equal."""
    assert losses_of(found) == losses_of(wanted) and len(losses_of(found)) == steps
    assert fingerprint(found, steps) == fingerprint(wanted, steps)


CHILD = """
import sys
from gptjax.cli import main as cli
from gptjax.core import backend
backend._choose_flags = lambda: backend.Choice((), "the parent has none")
sys.argv[:1] = ["gptjax", "train"]
cli.console()
"""


def start(
    experiment: Experiment,
    path: Path,
    *flags: str,
    fault: str = "",
    child: str = CHILD,
    env: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen:
    """A process that trains, and meets a fault."""
    path.mkdir(parents=True, exist_ok=True)
    given = path.parent / f"{path.name}.json"
    config.save_config(given, experiment)
    told = [sys.executable, "-c", child, str(given), "--dir", str(path), *flags]
    return subprocess.Popen(
        told,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "GPTJAX_FAULT": fault} | dict(env),
    )


def start_together(
    experiment: Experiment,
    path: Path,
    *flags: str,
    count: int = 2,
    devices: int = 2,
    faults: str = "",
    child: str = CHILD,
) -> list[subprocess.Popen]:
    """Processes that train one run together on this machine, each with so many devices."""
    given = path.parent / f"{path.name}.json"
    config.save_config(given, experiment)
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    env = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "GPTJAX_FAULT": faults,
        "XLA_FLAGS": " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"]),
    }
    address = (
        "--distributed",
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--num-processes",
        str(count),
        "--init-timeout",
        "60",
    )
    told = [sys.executable, "-c", child, str(given), "--dir", str(path), *address, *flags]
    return [
        subprocess.Popen(
            [*told, "--process", str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(count)
    ]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ends(processes: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str, str]]:
    """Waits for all of them and gives (status, stdout, stderr) of each; none outlives this."""
    try:
        with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
            said = list(pool.map(lambda process: process.communicate(timeout=timeout), processes))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *both) for process, both in zip(processes, said, strict=True)]


def wait_for(process: subprocess.Popen, *words: str) -> str:
    """Reads what a process prints until a line has one of the words, and gives that line."""
    for line in process.stdout:
        if any(word in line for word in words):
            return line
    raise AssertionError(f"the process ended before it said {words}: {process.communicate()[1]}")
