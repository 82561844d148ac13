"""The fault matrix of checkpoints: whatever happens to a disk or a process, what is read is what
was saved, or is refused by name."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import in_time
from saving import (
    assert_same_bits,
    files_below,
    flip,
    kill_while_saving,
    python,
    saved,
    shapes,
    state,
)

import gptjax
from gptjax.cli import main as cli
from gptjax.core import config
from gptjax.core.config import ConfigError
from gptjax.generate import SampleConfig
from gptjax.observe.log import read_metrics
from gptjax.runs import Run, leaves, manifest, steps
from gptjax.train.loop import train

ROOT = Path(__file__).parents[1]


def large(step: int):
    """A state with a file above `manifest.LARGE`, which is hashed while it is read, and a small
    one."""
    return {**state(step), "ema": {"w": jnp.full((700, 1000), step, jnp.float32)}}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files_below(folder)
    }


# --- damaged bytes ---


@pytest.mark.row(1)
def test_two_hundred_flipped_bits_are_all_detected(tmp_path, record_property):
    """In every file, and in the large ones at any depth. Every fortieth is restored from, and the
    step before comes back."""
    run = saved(tmp_path, 1, 2, trees=large)
    folder, wanted = tmp_path / "checkpoints/2", shapes(large(1))
    files, silent, back = [file for file in files_below(folder) if file.stat().st_size], 0, 0
    assert max(file.stat().st_size for file in files) > manifest.LARGE
    for seed in range(200):
        dice = random.Random(seed)
        file = (
            files[seed]
            if seed < len(files)
            else dice.choices(files, [f.stat().st_size for f in files])[0]
        )
        bit = dice.randrange(8 * file.stat().st_size)
        flip(file, bit)
        try:
            manifest.verify(folder)
            silent += 1
        except manifest.Damaged as damage:
            assert file.name.split(".")[0] in str(damage)
        if seed % 40 == 0:
            said: list[str] = []
            step, trees = run.restore(wanted, say=said.append)
            assert step == 1 and len(said) == 1 and "checkpoints/2 is damaged" in said[0]
            assert_same_bits(trees, large(1))
            back += 1
        flip(file, bit)
    assert silent == 0
    assert run.restore(wanted, say=pytest.fail)[0] == 2
    record_property(
        "figure",
        f"200 of 200 flipped bits detected, {silent} silent; {back} of {back} fall-backs bitwise",
    )


@pytest.mark.row(1)
@pytest.mark.fault
def test_verifying_costs_at_most_15_percent_of_a_restore(tmp_path, record_property, monkeypatch):
    """Files are hashed beside the reading, on a core that must be free, so this is a deadline like
    others. In turns, so that other work meets both alike."""
    keys = jax.random.split(jax.random.key(0), 48)
    tree = {"params": {f"w{i}": jax.random.normal(key, (10_000, 64)) for i, key in enumerate(keys)}}
    run, whole, bare = saved(tmp_path, 1, trees=lambda _: tree), [], []
    for _ in range(15):
        whole.append(_seconds(lambda: run.restore(shapes(tree))))
        with monkeypatch.context() as patched:
            patched.setattr(manifest, "_try_measure", lambda path: None)
            patched.setattr(manifest, "_require_unchanged", lambda *_: None)
            bare.append(_seconds(lambda: run.restore(shapes(tree))))
    share = statistics.median(whole) / statistics.median(bare) - 1
    content = np.ones(123 * 10**6, np.uint8)
    alone = _seconds(lambda: hashlib.sha256(content).digest())
    record_property(
        "figure",
        f"verification adds {100 * share:.0f} % to restoring 123 MB"
        f" ({1e3 * statistics.median(bare):.0f} ms without, on {os.cpu_count()} cores, all of which"
        f" reading uses; SHA-256 alone: {1e3 * alone:.0f} ms on one)",
    )
    in_time(share, 0.15)


def _seconds(call) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


@pytest.mark.row(31)
def test_a_power_cut_that_empties_what_was_not_synced_costs_one_step(
    tmp_path, record_property, monkeypatch
):
    order: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda f: (order.append(os.readlink(f"/proc/self/fd/{f}")), fsync(f))
    )
    monkeypatch.setattr(
        os, "rename", lambda a, b, **k: (order.append(f"rename to {b}"), rename(a, b, **k))
    )
    run = saved(tmp_path, 1, 2)
    monkeypatch.undo()
    folder = tmp_path / "checkpoints"
    at = next(i for i, what in enumerate(order) if what == f"rename to {folder / '2'}")
    draft = str(folder / ".saving-2")
    synced, inside = (
        {name.replace(draft, str(folder / "2")) for name in order[:at]},
        {str(p) for p in (folder / "2").rglob("*")},
    )
    assert inside | {str(folder / "2")} <= synced, "every file and folder before the rename"
    assert str(folder) in order[at:], "and the folder that holds the name after it"
    metadata = [
        f
        for f in files_below(folder / "2")
        if f.name.startswith("_") or f.name in ("manifest.json", "manifest.sha256")
    ]
    for emptied in ([f] for f in metadata):
        contents = {f: f.read_bytes() for f in emptied}
        for file in emptied:
            file.write_bytes(b"")
        said: list[str] = []
        step, trees = run.restore(shapes(state()), say=said.append)
        assert step == 1 and len(said) == 1
        assert_same_bits(trees, state(1))
        for file, content in contents.items():
            file.write_bytes(content)
    record_property(
        "figure",
        f"{len(inside)} of {len(inside)} files and folders and their parent synced; {len(metadata)}"
        f" of {len(metadata)} emptied metadata files fall back",
    )


# --- two trainers ---


@pytest.mark.row(2)
def test_a_second_trainer_leaves_at_once_and_touches_nothing(
    tiny_experiment, tmp_path, record_property
):
    """As a user would start it: a whole `gptjax train`, imports and all."""
    config.save_config(tmp_path / "tiny.json", tiny_experiment)
    path = tmp_path / "run"
    saved(path, 3)
    first = python(
        "with run.lock():\n    print('held', flush=True)\n    sys.stdin.read()",
        path,
        stdin=subprocess.PIPE,
    )
    try:
        assert first.stdout.readline() == "held\n"
        before = hashes(path)
        begun = time.monotonic()
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            str(tmp_path / "tiny.json"),
            "--dir",
            str(path),
        ]
        second = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        seconds = time.monotonic() - begun
        assert (
            second.returncode == 2
            and f"is being trained by process {first.pid} on " in second.stderr
        )
        assert hashes(path) == before and first.poll() is None
        record_property(
            "figure",
            f"the second left after {seconds:.1f} s, imports included, naming process and host; the"
            " first's files unchanged",
        )
        in_time(seconds, 5)
    finally:
        first.kill()
        first.communicate()


# --- killed while saving or deleting ---


KILLED_IN_RMTREE = """
    import os, signal
    from gptjax.runs import steps
    unlink = os.unlink
    def dying(*args, **options):
        global left
        left -= 1
        if left < 0: os.kill(os.getpid(), signal.SIGKILL)
        return unlink(*args, **options)
    for turn in range(20):
        left = turn * int(sys.argv[2]) // 20
        if (child := os.fork()) == 0:
            run = Run(f"{sys.argv[1]} {turn}", keep_newest=1, keep_best=0)
            with run.lock():
                os.unlink = dying
                steps.retain(run.checkpoints, max(run.steps()), 1, 0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


@pytest.mark.row(30)
def test_a_kill_while_steps_are_deleted_leaves_no_half_step(tmp_path, record_property):
    """Twenty kills, each at another file of what is deleted. Nothing of jax is needed, so one
    process forks them all."""
    saved(tmp_path / "whole", 1, 2, 3, 4, keep_newest=None)
    files, remains = (
        sum(len(files_below(tmp_path / f"whole/checkpoints/{step}")) for step in (1, 2, 3)),
        0,
    )
    paths = [shutil.copytree(tmp_path / "whole", tmp_path / f"run {turn}") for turn in range(20)]
    child = python(KILLED_IN_RMTREE, tmp_path / "run", files)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    for path in paths:
        run = Run(path)
        for step in run.steps():
            manifest.verify(run.checkpoints / str(step))
        assert 4 in run.steps() and steps.strays(run.checkpoints) == []
        remains += any(run.checkpoints.glob(".trash-*"))
        with run.lock():
            assert not list(run.checkpoints.glob(".*"))
        shutil.rmtree(path)
    assert remains > 10
    record_property(
        "figure",
        f"20 kills in the deletion, 0 half steps listed, {remains} half-deleted folders cleaned up"
        " at the next start",
    )


@pytest.mark.row(29)
@pytest.mark.row(32)
@pytest.mark.fault
@pytest.mark.timeout(900)
def test_kills_while_saving_leave_a_whole_step_and_nothing_half_under_any_retention(
    tmp_path, record_property
):
    over = 0.0
    for newest, best in ((1, 0), (1, 1), (2, 1), (None, 0)):
        path = tmp_path / f"{newest} {best}"
        for seed in range(5):
            kill_while_saving(path, 300 + seed, keep_newest=newest, keep_best=best)
            run = Run(path)
            assert run.steps(), "after the first save there is always one"
            sizes = [
                sum(f.stat().st_size for f in files_below(run.checkpoints / str(step)))
                for step in run.steps()
            ]
            held = sum(f.stat().st_size for f in files_below(run.checkpoints)) / max(sizes)
            over = max(over, held - newest - best) if newest else over
    assert over <= 1
    record_property(
        "figure",
        f"20 kills under 4 retentions: always a whole step, 0 leftovers, at most {over:.1f} steps"
        " of disk beyond those kept",
    )


# --- a full disk ---


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB, in memory."""
    if os.getuid() != 0:
        pytest.skip("mounting a file system needs root")
    libc, folder = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    folder.mkdir()
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=12m") != 0:
        pytest.skip(f"this machine mounts no tmpfs: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(str(folder).encode(), 2)  # lazily: whatever the test left open


@pytest.mark.row(24)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # TensorStore may fail once more when Orbax has given up
def test_a_step_that_the_disk_cannot_hold_leaves_the_one_before(
    small_disk, tmp_path, record_property, monkeypatch
):
    def tree(step):
        return {"params": {"w": jnp.full((1750, 1000), step, jnp.float32)}}

    run = Run(small_disk / "run", keep_newest=1, keep_best=0)
    need = (
        rf"step 2 could not be saved in {small_disk}/run/checkpoints: .* \(it needs 7\.0 MB, [\d.]+"
        r" MB are free\)\. Earlier steps are intact\."
    )
    with run.lock():
        run.save(1, tree(1))
        run.wait()
        free = shutil.disk_usage(small_disk).free
        with pytest.raises(OSError, match=need):  # noticed before anything is written
            run.save(2, tree(2))
        with monkeypatch.context() as patched:  # and if it fills up only on the way
            patched.setattr(
                shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9)
            )
            with pytest.raises(OSError, match=r"step 2 could not be saved"):
                run.save(2, tree(2))
                run.wait()
        assert os.listdir(run.checkpoints) == ["1"] and run.steps() == [1]
        assert shutil.disk_usage(small_disk).free >= free - 10_000, "what was begun is gone again"
        assert_same_bits(run.restore(shapes(tree(1)), say=pytest.fail)[1], tree(1))
        run.save(3, {"params": {"w": jnp.zeros(1000)}})
        assert run.wait() == 3
    record_property(
        "figure",
        "12 MB tmpfs, 7 MB step: 2 of 2 failed saves leave the step before, its listing and the"
        " free space; path and MB named",
    )


# --- what is wanted is not what is there ---


@pytest.mark.row(14)
def test_every_kind_of_mismatch_is_refused_by_leaf_and_only_asked_for_casts_happen(
    tmp_path, record_property
):
    run, weights = saved(tmp_path, 1), shapes(state())["params"]

    def other(leaf, **changes):
        return jax.ShapeDtypeStruct(**{"shape": leaf.shape, "dtype": leaf.dtype, **changes})

    def with_table(**changed):
        return {**weights, "embed": {"table": other(table, **changed)}}

    table = weights["embed"]["table"]
    query = weights["layers"]["attention"]["query"]
    cases = {
        "embed/table has shape [12, 8], wanted [12, 9]": with_table(shape=(12, 9)),
        "embed/table is float32, wanted bfloat16 (--cast": with_table(dtype=jnp.bfloat16),
        "embed/table is float32, wanted int8 (--cast": with_table(dtype=jnp.int8),
        "embed/table is only in the checkpoint": {"layers": weights["layers"]},
        "layers/attention/qwery is not in the checkpoint. Did you mean 'layers/attention/query'?": {
            **weights,
            "layers": {"attention": {"qwery": query}, "scale": weights["layers"]["scale"]},
        },
    }
    for said, wanted in cases.items():
        with pytest.raises(ConfigError) as refused:
            run.restore({"params": wanted})
        assert said in str(refused.value) and "\n" not in str(refused.value)
    wanted = jax.tree.map(lambda leaf: other(leaf, dtype=jnp.bfloat16), weights)
    found = run.restore({"params": wanted}, cast=True)[1]["params"]
    assert_same_bits(
        found, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state(1)["params"])
    )
    with pytest.raises(ConfigError, match="has shape"):
        run.restore(
            {
                "params": {
                    **weights,
                    "embed": {"table": other(table, shape=(8, 12), dtype=jnp.bfloat16)},
                }
            },
            cast=True,
        )
    record_property(
        "figure", f"{len(cases)} of {len(cases)} mismatches refused by leaf, 0 silent casts"
    )


@pytest.mark.row(34)
@pytest.mark.parametrize(
    "fixture", sorted((ROOT / "tests/fixtures").glob("checkpoint_*")), ids=lambda path: path.name
)
def test_every_format_there_ever_was_is_read(fixture, record_property):
    assert sum(file.stat().st_size for file in files_below(fixture)) < 50_000
    step = Run(fixture).steps()[-1]
    for tree in manifest.read_manifest(fixture / f"checkpoints/{step}").trees:
        known = leaves(fixture, step, tree)
        names = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in known}
        found = Run(fixture).restore({tree: _nested(names)}, say=pytest.fail)[1][tree]
        assert [manifest.crc32(leaf) for leaf in jax.tree.leaves(found)] == [
            crc for _, crc in sorted((leaf.path.split("/"), leaf.crc32) for leaf in known)
        ]
    expected = json.loads((fixture / "expected.json").read_text())
    assert (
        gptjax.load(fixture)
        .complete([expected["prompt"]], SampleConfig(new_tokens=5, temperature=0))[0]
        .ids
        == expected["ids"]
    )
    record_property("figure", f"{fixture.name} restored bit for bit; unknown versions refused")


def _nested(names: dict) -> dict:
    tree: dict = {}
    for name, leaf in names.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


@pytest.mark.row(34)
def test_the_present_format_has_its_fixture():
    assert (ROOT / f"tests/fixtures/checkpoint_{manifest.VERSION}").is_dir(), (
        "run python tests/fixtures/make.py"
    )


@pytest.mark.row(35)
def test_steps_are_told_apart_by_number_whatever_the_clock_says(
    tmp_path, monkeypatch, record_property
):
    run = saved(tmp_path, 90, keep_newest=2)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda now=time.time: now() - 3600)
        with run.lock():
            run.save(100, state(100))
            run.wait()
    for step, hours in ((90, 0), (100, -50)):
        then = time.time() + 3600 * hours
        os.utime(tmp_path / f"checkpoints/{step}", (then, then))
        os.utime(tmp_path / f"checkpoints/{step}/manifest.json", (then, then))
    assert run.steps() == [90, 100] and run.restore(shapes(state()))[0] == 100
    with run.lock():
        run.save(101, state(101))
        run.wait()
    assert run.steps() == [100, 101]
    record_property(
        "figure", "clock one hour back and files fifty hours old: order and retention unchanged"
    )


# --- rollback and resume as a user types them ---


@pytest.fixture(scope="module")
def trained(tiny_experiment, tmp_path_factory) -> Path:
    """A run of twelve steps with a checkpoint at every fourth."""
    path = tmp_path_factory.mktemp("trained") / "run"
    checkpoints = dataclasses.replace(tiny_experiment.checkpoints, every=4, keep_newest=4)
    train(
        dataclasses.replace(tiny_experiment, steps=12, checkpoints=checkpoints, log_every=1), path
    )
    return path


def losses(path: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(path) if "loss" in line}


@pytest.mark.row(16)
def test_rolling_back_trains_the_same_steps_again_and_keeps_the_old_ones_aside(
    trained, tmp_path, capsys, record_property
):
    path = shutil.copytree(trained, tmp_path / "run")
    before, told = losses(path), ["train", str(path / "config.json"), "--checkpoints.every", "3"]
    assert cli.main([*told, "--rollback-to", "4"]) == 0
    assert (
        "rolled back to step 4; set aside: 8, 12" in (said := capsys.readouterr().out)
        and "resuming at step 4 of 12" in said
    )
    assert Run(path).steps() == [4, 6, 9, 12] and losses(path) == before
    for step in (8, 12):
        manifest.verify(path / f"checkpoints/rolled-back-1/{step}")
    assert (
        manifest.read_manifest(path / "checkpoints/12").trees
        == manifest.read_manifest(path / "checkpoints/rolled-back-1/12").trees
    )
    os.truncate(max(files_below(path / "checkpoints/6"), key=lambda f: f.stat().st_size), 10)
    for step, why in ((5, "has no step 5; it has 4, 6, 9, 12"), (6, "6 is damaged")):
        assert cli.main([*told, "--rollback-to", str(step)]) == 2
        assert why in (said := capsys.readouterr().err) and "--rollback-to" in said
    misfit = ["--allow-changes", "--model.num-layers", "5", "--rollback-to", "4"]
    assert cli.main([*told, *misfit]) == 2 and "does not fit" in capsys.readouterr().err
    assert steps.folders(Run(path).checkpoints) == [4, 6, 9, 12], (
        "nothing is moved by a refused rollback"
    )
    os.truncate(max(files_below(path / "checkpoints/12"), key=lambda f: f.stat().st_size), 10)
    assert cli.main([*told, "--no-fall-back"]) == 2
    assert (
        "12 is damaged" in (said := capsys.readouterr().err)
        and "--no-fall-back" in said
        and steps.folders(Run(path).checkpoints) == [4, 6, 9, 12]
    )
    record_property(
        "figure",
        "saves after a rollback from 12 to 4: 3 of 3 on disk; the repeated step 12 has the bits of"
        " the old one, which is kept",
    )


@pytest.mark.slow
@pytest.mark.row(14)
def test_a_run_whose_checkpoint_has_other_types_resumes_only_with_cast(trained, tmp_path, capsys):
    path = shutil.copytree(trained, tmp_path / "run")
    run = Run(path)
    trees = {
        t: _nested(
            {
                leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                for leaf in leaves(path, 12, t)
            }
        )
        for t in ("params", "opt_state")
    }
    whole = run.restore(trees)[1]
    whole["params"] = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole["params"])
    with run.lock():
        run.save(12, whole)
    told = ["train", str(path / "config.json"), "--steps", "13"]
    assert (
        cli.main(told) == 2
        and "is bfloat16, wanted float32 (--cast allows that)" in capsys.readouterr().err
    )
    assert cli.main([*told, "--cast"]) == 0
    assert {leaf.dtype for leaf in leaves(path, 13)} == {"float32"}


@pytest.mark.row(33)
@pytest.mark.fault
@pytest.mark.timeout(900)
def test_a_run_goes_on_with_another_number_of_devices(
    tiny_experiment, tmp_path, record_property, monkeypatch, capsys
):
    """Four devices for ten steps, then ten steps with 4, 1, 2 and 8: the same rows in the same
    order, the same losses to rounding."""
    devices = jax.devices()

    def run(path: Path, count: int, steps: int) -> str:
        monkeypatch.setattr(jax, "devices", lambda *_: devices[:count])
        train(
            dataclasses.replace(
                tiny_experiment,
                steps=steps,
                schedule=dataclasses.replace(tiny_experiment.schedule, kind="constant"),
                log_every=1,
            ),
            path,
        )
        return capsys.readouterr().out

    run(tmp_path / "4", 4, 10)
    for count in (1, 2, 8):
        shutil.copytree(tmp_path / "4", tmp_path / str(count))
    run(tmp_path / "4", 4, 20)
    worst, wanted = 0.0, losses(tmp_path / "4")
    for count in (1, 2, 8):
        said = run(tmp_path / str(count), count, 20)
        change = f"devices 4 × cpu → {count} × cpu"
        note = f"not bitwise from here, since the run was made with others: {change}"
        assert "resuming at step 10" in said and note in said
        found = losses(tmp_path / str(count))
        assert list(found) == list(wanted)
        worst = max(worst, *(abs(found[step] / wanted[step] - 1) for step in wanted))
    record_property(
        "figure", f"from 4 devices to 1, 2 and 8: losses of ten more steps within {worst:.1e}"
    )
    assert worst <= 1e-5
