"""Several processes that train one run, on this machine: the run of one process, and what happens
when one of them goes wrong.

Read the first test: two processes with two devices each, started as a user starts them
(`start_together`). The rows of the fault matrix follow; each waits for its own children and ends
them, whatever happens.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import CHILD, ends, fingerprint, free_port, in_time, losses_of, start_together, wait_for

from gptjax.core import processes
from gptjax.core.config import ConfigError
from gptjax.data import prepare
from gptjax.observe import goodput, stragglers
from gptjax.observe.log import read_metrics
from gptjax.runs import Run
from gptjax.sharding.mesh import MeshConfig, local_rows, make_mesh, place_batch, to_host
from gptjax.train import identity, program
from gptjax.train.experiment import Checkpoints
from gptjax.train.loop import train

HEARTBEAT = 10
"""Seconds."""


@pytest.fixture
def figure(record_property):
    """Records what a test measured."""
    return functools.partial(record_property, "figure")


@pytest.fixture
def together():
    """`start_together`, whose processes do not outlive the test."""
    begun = []

    def start(*args, **kwargs) -> list[subprocess.Popen]:
        begun.extend(found := start_together(*args, **kwargs))
        return found

    yield start
    for process in begun:
        process.kill()


@pytest.fixture(scope="module")
def sharded(tiny_experiment):
    """The tiny experiment with its parameters split over four devices, without evaluations on the
    way, at one learning rate."""
    rare = dataclasses.replace(tiny_experiment.evaluation, every=10**6)
    steady = dataclasses.replace(tiny_experiment.schedule, kind="constant")
    return dataclasses.replace(
        tiny_experiment,
        mesh=MeshConfig(fsdp=4),
        evaluation=rare,
        schedule=steady,
        checkpoints=Checkpoints(every=5),
        log_every=1,
    )


@pytest.fixture(scope="module")
def copied(sharded):
    """The same with a whole copy of the parameters on each device, whose steps speak less between
    processes."""
    return dataclasses.replace(sharded, mesh=MeshConfig())


def furthest(found: dict[int, float], wanted: dict[int, float]) -> float:
    assert list(found) == list(wanted)
    return max(abs(found[step] / wanted[step] - 1) for step in wanted)


def on_devices(count: int, monkeypatch) -> None:
    local = jax.local_devices()
    monkeypatch.setattr(jax, "devices", lambda *_: local[:count])


@pytest.mark.slow
def test_two_processes_with_two_devices_train_as_one_with_four_and_stop_together(
    sharded, together, tmp_path, monkeypatch, figure
):
    """One of them is asked to stop at the fourth step; both save the same step and end well."""
    both = ends(together(sharded, tmp_path / "two", faults="term@4:1"))
    assert [status for status, *_ in both] == [0, 0], both
    found = losses_of(tmp_path / "two")
    assert 4 <= len(found) <= 6 and Run(tmp_path / "two").steps()[-1] == len(found), (
        "a vote travels for a step"
    )
    assert (
        f"stopped at step {len(found)} and saved it" in both[0][1]
        and "4 × cpu (cpu) in 2 processes" in both[0][1]
    )
    assert both[1][1].replace("[Gloo]", "").count("step") == 0, "one process prints"

    on_devices(4, monkeypatch)
    data = prepare(sharded.data)
    built = program.build(identity.resolve(sharded, data), data)
    state, wanted = built.init()[0], {}
    for step in found:
        state, said = built.step(state, built.models, built.batch(step - 1, state))
        wanted[step] = float(said["loss"])
    error = furthest(found, wanted)
    assert error <= 1e-6
    figure(
        f"{len(found)} steps of 2 processes × 2 devices: losses within {error:.1e} of those of one"
        " process with 4"
    )


# --- one process ---


def test_one_process_alone_says_and_hears_only_itself():
    assert (
        not processes.several()
        and processes.first()
        and (processes.index(), processes.count()) == (0, 1)
    )
    assert processes.gather("a", {"b": 1}) == [{"b": 1}] and processes.by_first("a", lambda: 2) == 2
    asked = []
    votes = processes.Votes(lambda: bool(asked))
    assert not votes() and not asked.append(1) and votes(1.0, 2.0) and not votes.seen


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("10.0.0.1:80", None, 0), "--num-processes N and --process I together"),
        (("10.0.0.1", 2, 0), "HOST:PORT"),
        (("10.0.0.1:80", 2, 2), "from 0 to 1"),
    ],
)
def test_a_cluster_that_is_none_is_refused_by_flag(given, said):
    with pytest.raises(ConfigError, match=said):
        processes.join(*given, init_timeout=1, heartbeat_timeout=10)


def test_every_device_finds_its_rows_among_those_that_its_process_reads():
    for mesh in (
        {"data": 8},
        {"data": 2, "fsdp": 4},
        {"data": 2, "tensor": 4},
        {"data": 1, "tensor": 8},
    ):
        made = make_mesh(MeshConfig(**mesh))
        mine = local_rows(made, 16)
        assert mine.tolist() == list(range(16)), "of one process all"
        placed = place_batch({"a": np.arange(32).reshape(16, 2)}, made, 16)["a"]
        assert placed.shape == (16, 2) and np.array_equal(
            to_host(placed), np.arange(32).reshape(16, 2)
        )


def test_the_process_that_never_waits_is_the_one_that_holds_the_others_up():
    noise = np.random.default_rng(0).uniform(0, 2e-3, (20, 4))
    seen = np.stack(
        [
            np.asarray([1e-3, 1e-3, 1e-3, 51e-3]) + noise,
            np.asarray([80e-3, 80e-3, 80e-3, 30e-3]) - noise,
        ],
        axis=-1,
    )
    seconds = stragglers.step_seconds(seen)
    assert np.allclose(seconds, [0.031, 0.031, 0.031, 0.081], atol=4e-3)
    slowest, ratio = stragglers.straggler(seconds)
    assert slowest == 3 and ratio == pytest.approx(2.6, abs=0.2)
    assert (
        stragglers.straggler(stragglers.step_seconds(seen[:, :3])) is None
        and stragglers.straggler(seconds[3:]) is None
    )
    hidden = np.broadcast_to([[1e-3, 0.999], [51e-3, 0.949]], (20, 2, 2))
    assert stragglers.straggler(stragglers.step_seconds(hidden)) is None, (
        "50 ms of a second that the devices need anyway hold nobody up"
    )


# --- row 22: asked to stop ---


@pytest.mark.row(22)
@pytest.mark.row(33)
@pytest.mark.fault
@pytest.mark.timeout(1200)
def test_a_signal_to_one_process_ends_both_with_one_step_and_one_process_goes_on_from_it(
    sharded, together, tmp_path, monkeypatch, figure
):
    path, far = tmp_path / "run", dataclasses.replace(sharded, steps=99_999)
    both = together(far, path)
    wait_for(both[0], "step     8/")
    both[1].send_signal(signal.SIGTERM)
    begun = time.monotonic()
    told = ends(both)
    seconds = time.monotonic() - begun
    done = len(losses_of(path))
    assert [status for status, *_ in told] == [0, 0] and Run(path).steps()[-1] == done >= 8, told
    in_time(seconds, 15)
    figure(
        f"SIGTERM to one of two: both saved step {done} and were gone {seconds:.1f} s later,"
        " status 0"
    )

    on_devices(4, monkeypatch)
    train(dataclasses.replace(far, steps=done + 10), path)
    train(dataclasses.replace(far, steps=done + 10), tmp_path / "alone")
    error = furthest(losses_of(path), losses_of(tmp_path / "alone"))
    assert error <= 1e-5
    figure(
        "its checkpoint of 2 processes × 2 devices, restored by one with 4: losses to ten steps"
        f" later within {error:.1e} of a run by one"
    )


# --- row 33: other devices ---


@pytest.mark.row(33)
@pytest.mark.fault
@pytest.mark.timeout(2400)
def test_a_checkpoint_split_over_four_devices_goes_on_anywhere(
    sharded, together, tmp_path, monkeypatch, figure
):
    """On 1, 2 and 8 devices, under tensor parallelism, and in two processes: the same rows in the
    same order, the same losses to rounding."""

    def run(path: Path, count: int, steps: int, **mesh) -> None:
        with monkeypatch.context() as patch:
            on_devices(count, patch)
            train(
                dataclasses.replace(
                    sharded, steps=steps, mesh=MeshConfig(**mesh), checkpoints=Checkpoints(every=50)
                ),
                path,
            )

    run(tmp_path / "4", 4, 10, fsdp=4)
    others = {
        "1": (1, {}),
        "2": (2, {"fsdp": 2}),
        "8": (8, {"fsdp": 8}),
        "tensor": (4, {"tensor": 2, "fsdp": 2}),
        "processes": None,
    }
    for name in others:
        shutil.copytree(tmp_path / "4", tmp_path / name)
    run(tmp_path / "4", 4, 20, fsdp=4)
    for name, how in others.items():
        if how:
            run(tmp_path / name, how[0], 20, **how[1])
    told = ends(
        together(dataclasses.replace(sharded, steps=20), tmp_path / "processes"), timeout=300
    )
    assert [status for status, *_ in told] == [0, 0], told
    assert (
        "resuming at step 10" in told[0][1]
        and "devices 4 × cpu → 4 × cpu in 2 processes" in told[0][1]
    )
    assert told[0][1].count("validation loss") == 1 and "  │ The " in told[0][1], (
        "evaluated and sampled, split over processes"
    )
    wanted = losses_of(tmp_path / "4")
    errors = {name: furthest(losses_of(tmp_path / name), wanted) for name in others}
    assert max(errors.values()) <= 1e-5 and errors["processes"] <= 1e-6
    final = {
        name: [
            line["validation_loss"]
            for line in read_metrics(tmp_path / name)
            if "validation_loss" in line
        ][-1]
        for name in ("4", "processes")
    }
    assert final["processes"] == pytest.approx(final["4"], rel=1e-5)
    figure(
        "a 4-way FSDP checkpoint, ten more steps: losses within "
        + ", ".join(f"{error:.1e} ({name})" for name, error in errors.items())
    )


# --- rows 36 to 38: one fails, dies, stalls ---


def until_gone(
    both: list[subprocess.Popen], word: str, act=lambda: None
) -> tuple[float, list[tuple[int, str, str]]]:
    """Waits for a line of process 0, acts, and gives how long both took to go, and what they
    said."""
    wait_for(both[0], word)
    act()
    begun = time.monotonic()
    told = ends(both)
    return time.monotonic() - begun, told


@pytest.mark.row(36)
@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_both_and_is_told_once(
    rank, copied, together, tmp_path, figure
):
    path = tmp_path / "run"
    seconds, told = until_gone(
        together(dataclasses.replace(copied, steps=100), path, faults=f"data_error@50:{rank}"),
        "step  48/",
    )
    said = [err for *_, err in told]
    assert all(status == 1 for status, *_ in told), told
    assert "".join(said).count("the batch of step 50 can't be read") == 1
    assert "error: GPTJAX_FAULT: the batch of step 50 can't be read" in said[rank]
    assert (
        said[1 - rank].rstrip().split("\n")[-1]
        == f"error: process {rank} failed, and its own output says why; process {1 - rank} ends"
        " too."
    )
    assert Run(path).steps()[-1] in (40, 45) and fingerprint(path, Run(path).steps()[-1])
    in_time(seconds, 20)
    figure(
        f"an error in process {rank} at step 50: both gone within {seconds:.1f} s, status 1, the"
        f" cause told once; checkpoint {Run(path).steps()[-1]} restored"
    )


@pytest.mark.row(37)
@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_kill_of_one_process_ends_the_other_and_the_checkpoint_stays(
    rank, copied, together, tmp_path, figure
):
    path = tmp_path / "run"
    both = together(
        dataclasses.replace(copied, steps=99_999), path, "--heartbeat-timeout", str(HEARTBEAT)
    )
    seconds, told = until_gone(both, "step    23/", both[rank].kill)
    assert told[rank][0] == -signal.SIGKILL and told[1 - rank][0] not in (0, None), told
    newest = Run(path).steps()[-1]
    assert newest >= 15 and fingerprint(path, newest)
    in_time(seconds, HEARTBEAT + 10)
    figure(
        f"kill −9 of process {rank}: the other gone {seconds:.1f} s later (heartbeat {HEARTBEAT}"
        f" s), status {told[1 - rank][0]}; checkpoint {newest} restored"
    )


@pytest.mark.row(38)
@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_stall_of_one_process_is_dumped_by_both_and_ends_both(copied, together, tmp_path, figure):
    limit, path = 5.0, tmp_path / "run"
    both = together(
        dataclasses.replace(copied, watchdog=limit, checkpoints=Checkpoints(every=100)),
        path,
        faults="data_stall@12:1",
    )
    seconds, told = until_gone(both, "step 10/")
    assert all(status == 1 for status, *_ in told), told
    assert (
        "warning: process 1: no progress for 5 s while reading the batch of step 12" in told[1][2]
    )
    assert "warning: process 0: no progress for 5 s while" in told[0][2]
    for said, file in ((told[0][2], path / "log.txt"), (told[1][2], path / "log.1.txt")):
        assert "in _loop" in said and "in _loop" in file.read_text(), "the stack of the main thread"
    in_time(seconds, 2 * limit + 0.5)
    figure(
        f"a stall of process 1: both dumped all stacks after {limit:g} s, gone after {seconds:.1f}"
        " s, the stalled one told by what it does"
    )


@pytest.mark.row(38)
@pytest.mark.fault
@pytest.mark.timeout(900)
def test_the_watchdog_of_two_processes_is_silent_where_all_goes_well(
    copied, together, tmp_path, figure
):
    path = tmp_path / "run"
    long = dataclasses.replace(
        copied,
        steps=1000,
        watchdog=5.0,
        checkpoints=Checkpoints(every=250),
        evaluation=dataclasses.replace(copied.evaluation, every=250),
    )
    told = ends(together(long, path), timeout=800)
    assert [status for status, *_ in told] == [0, 0] and "no progress" not in told[0][2] + told[1][
        2
    ], told
    figure(
        "0 alarms in 1,000 steps with a limit of 5 s,"
        f" {goodput.read_goodput(path).seconds['compile']:.1f} s of compiling and 4 evaluations"
        " among them"
    )


# --- row 43: a straggler ---


@pytest.mark.row(43)
@pytest.mark.fault
@pytest.mark.timeout(600)
def test_a_process_that_holds_the_others_up_is_named(copied, together, tmp_path, figure):
    path = tmp_path / "run"
    told = ends(
        together(
            dataclasses.replace(copied, steps=160, checkpoints=Checkpoints(every=500)),
            path,
            faults="slow@81:1",
        ),
        timeout=300,
    )
    assert [status for status, *_ in told] == [0, 0], told
    taken = {
        line["step"]: [line["process_0/step_seconds"], line["process_1/step_seconds"]]
        for line in read_metrics(path)
        if "process_1/step_seconds" in line
    }
    assert set(taken) >= {40, 60, 80, 120, 140, 160}, "logged every twenty steps"
    alarms = [line for line in told[0][1].splitlines() if "holds the others up" in line]
    assert len(alarms) == 1 and "warning: process 1 holds the others up" in alarms[0]
    first, second = taken[140]
    figure(
        f"50 ms more in each batch of process 1: {1000 * second:.0f} ms a step against"
        f" {1000 * first:.0f}, one alarm in 80 steps, none in the 80 before"
    )


# --- row 42: nobody there ---


def alone(index: int, port: int, *flags: str) -> tuple[float, int, str]:
    """One process of two, the other of which never comes: seconds from its imports on, status,
    stderr."""
    config = Path(__file__).parents[1] / "configs/quickstart.py"
    told = [
        sys.executable,
        "-c",
        CHILD,
        str(config),
        "--distributed",
        "--coordinator",
        f"127.0.0.1:{port}",
        "--num-processes",
        "2",
        "--process",
        str(index),
        *flags,
    ]
    process = subprocess.Popen(told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(process, "meeting the other processes")
    begun = time.monotonic()
    ((status, _, said),) = ends([process])
    return time.monotonic() - begun, status, said


@pytest.mark.row(42)
@pytest.mark.fault
def test_a_coordinator_that_is_not_there_is_named_in_time(figure):
    port, limit = free_port(), 5.0
    seconds, status, said = alone(1, port, "--init-timeout", str(limit))
    assert (
        status == 2
        and said
        == f"error: the coordinator (process 0) did not answer at 127.0.0.1:{port} within 5 s; is"
        " it started, and is the port open? (--init-timeout)\n"
    )
    also, status, said = alone(0, port, "--init-timeout", str(limit))
    assert (
        status == 2
        and said.startswith(f"error: not all of 2 processes came to 127.0.0.1:{port} within 5 s")
        and said.count("\n") == 1
    )
    in_time(max(seconds, also), limit + 5)
    figure(
        f"no coordinator, no second process: status 2 with the address after {seconds:.1f} and"
        f" {also:.1f} s, with a limit of {limit:g} s"
    )


@pytest.mark.row(42)
def test_a_port_that_is_taken_is_named(figure):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError,
            match=f"can't listen at 127.0.0.1:{port} .*Address already in use.*--coordinator",
        ):
            processes.join(f"127.0.0.1:{port}", 2, 0, init_timeout=5, heartbeat_timeout=10)
    figure("a port that is taken is refused at once, with the address")


# --- row 39: a death inside a common save ---

SAVER = """
import os, random, signal, sys, threading, time
import jax, jax.numpy as jnp
from gptjax.core import processes
from gptjax.sharding import mesh as parallel
from gptjax.runs import Run, manifest
path, port, index, victim, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
processes.join("127.0.0.1:" + port, 2, index, init_timeout=60, heartbeat_timeout=10)
mesh = parallel.make_mesh(parallel.MeshConfig(fsdp=4))
where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
SIZE = {size}
make = jax.jit(lambda step: jnp.zeros(SIZE) + step, out_shardings=where)
shape = jax.ShapeDtypeStruct(SIZE, jnp.float32, sharding=where)
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
run = Run(path)
with run.lock():
    before = sum(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
    found = run.restore({{"params": {{"a": shape, "b": shape}}}}, say=lambda _: None)
    lines = [line for line in open("/proc/self/io") if line.startswith("rchar")]
    read = sum(int(line.split()[1]) for line in lines) - before
    print("read", read, "from", found and found[0], flush=True)
    begun = found[0] if found else 0
    for step in range(begun + 1, begun + 4):
        if step == begun + 3:
            run.wait()
        if index == victim and step == begun + 3:
            if seed < 0:
                manifest.written_by = lambda *_: die()
                manifest.make_manifest = lambda *_: die()
            else:
                threading.Timer(random.Random(seed).uniform(0, 0.4), die).start()
        run.save(step, {{"params": {{"a": make(step), "b": make(-step)}}}})
    run.wait()
    time.sleep(1 if index == victim else 0)
print("end", run.steps(), flush=True)
processes.leave(0, "")
"""


def save_together(
    path: Path, victim: int, seed: int, size: tuple[int, int] = (512, 256)
) -> list[tuple[int, str, str]]:
    """Two processes save three steps of a split tree after the newest one; the victim dies in the
    third save. The other is ended then."""
    path.mkdir(exist_ok=True)
    port = free_port()
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    told = [sys.executable, "-c", textwrap.dedent(SAVER).format(size=size), str(path), str(port)]
    both = [
        subprocess.Popen(
            [*told, str(i), str(victim), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(2)
    ]
    if victim < 0:
        return ends(both)
    try:
        both[victim].wait(timeout=120)
        time.sleep(0.5)
    finally:
        both[1 - victim].kill()
    return ends(both)


def whole(path: Path) -> int:
    """The newest step, all of which has the numbers of that step."""
    shape = jax.ShapeDtypeStruct((512, 256), np.float32)
    step, found = Run(path).restore({"params": {"a": shape, "b": shape}})
    assert (np.asarray(found["params"]["a"]) == step).all() and (
        np.asarray(found["params"]["b"]) == -step
    ).all(), "a mixed step"
    return step


@pytest.mark.row(39)
@pytest.mark.fault
@pytest.mark.timeout(2400)
def test_a_process_that_dies_inside_a_common_save_leaves_no_mixed_step(tmp_path, figure):
    """Between its shards and the commit, and at random times; each process in turn. The next start
    takes the run up and saves two steps."""
    path, newest, between = tmp_path / "run", 0, 0
    for number in range(20):
        told = save_together(path, number % 2, -1 if number < 6 else number)
        assert told[number % 2][0] == -signal.SIGKILL, told
        assert f"from {newest or None}" in told[0][1] and f"from {newest or None}" in told[1][1], (
            "the step before was restored by both"
        )
        found = whole(path)
        assert found == newest + 2 or (number >= 6 and found == newest + 3), (
            "the step in which one died is absent, or whole"
        )
        between += found == newest + 2
        newest = found
    figure(
        f"20 deaths in a common save of two processes: 0 mixed steps, {between} steps not"
        f" committed, {20 - between} whole; 20 of 20 restarts went on"
    )


@pytest.mark.row(33)
@pytest.mark.fault
@pytest.mark.timeout(600)
def test_each_process_reads_its_own_share_of_a_checkpoint(tmp_path, figure):
    path, size = tmp_path / "run", (4096, 2048)
    save_together(path, -1, 0, size)
    told = save_together(path, -1, 0, size)
    assert [status for status, *_ in told] == [0, 0], told
    stored = sum(f.stat().st_size for f in (path / "checkpoints/6").rglob("*") if f.is_file())
    shares = [int(out.split("read ")[1].split()[0]) / stored for _, out, _ in told]
    assert max(shares) <= 1.2, "half of it to verify, half of it to restore"
    figure(
        f"two processes restore {stored / 1e6:.0f} MB: each reads"
        f" {' and '.join(f'{share:.2f}' for share in shares)} times that, half to verify and half"
        " to restore"
    )
