"""Laws of checkpoints: what is restored is bit for bit what was saved, and what is not whole does
not exist."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from saving import (
    PARAMS,
    SAVES,
    assert_same_bits,
    files_below,
    kill_while_saving,
    params,
    python,
    saved,
    shapes,
    state,
)

from gptjax.core.config import ConfigError
from gptjax.runs import Run, leaves, lock, manifest, payload

# --- what is restored is what was saved -----------------------------------------------------------


def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    run = saved(tmp_path, 7)
    step, trees = run.restore(shapes(state(7)))
    assert step == 7
    assert_same_bits(trees, state(7))


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "uint16",
        "int32",
        "uint32",
        "float16",
        "bfloat16",
        "float32",
        "float8_e4m3fn",
    ],
)
def test_every_dtype_and_shape_comes_back(tmp_path, dtype):
    values = jax.random.bits(jax.random.key(0), (3, 5), jnp.uint8).astype(dtype)
    trees = {
        "params": {
            "some": values,
            "one": values[0, 0],
            "none": values[:0],
            "long": jnp.tile(values.ravel(), 70),
        }
    }
    run = saved(tmp_path, 1, trees=lambda _: trees)
    assert_same_bits(run.restore(shapes(trees))[1], trees)


def test_leaves_come_back_in_their_own_order_and_not_in_that_of_their_names(tmp_path):
    tree = {"params": [np.full(2, n, np.float32) for n in range(12)]}
    run = Run(tmp_path)
    with run.lock():
        run.save(1, tree)
    assert_same_bits(run.restore(shapes(tree))[1], tree)


def test_a_state_without_any_array_comes_back(tmp_path):
    trees = {"params": params(), "opt_state": optax.sgd(0.1).init(params())}
    run = saved(tmp_path, 1, trees=lambda _: trees)
    assert_same_bits(run.restore(shapes(trees))[1], trees)
    only_empty = {"opt_state": trees["opt_state"]}
    run = saved(tmp_path / "other", 1, trees=lambda _: only_empty)
    assert_same_bits(run.restore(shapes(only_empty))[1], only_empty)


def test_numpy_leaves_come_back_as_device_arrays(tmp_path):
    run = saved(tmp_path, 1, trees=lambda _: {"params": PARAMS})
    assert_same_bits(run.restore(shapes({"params": PARAMS}))[1], {"params": PARAMS})


def test_arrays_may_be_donated_or_changed_as_soon_as_save_returns(tmp_path):
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    run = Run(tmp_path, keep_newest=None)
    host = {}
    with run.lock():
        for step in range(1, 4):
            tree = {
                "big": jax.random.normal(jax.random.key(step), (1000, 1000)),
                "host": np.full((500, 500), step, np.float32),
            }
            host[step] = jax.tree.map(lambda x: np.array(x, copy=True), tree)
            run.save(step, {"params": tree})
            jax.block_until_ready(spoil({"big": tree["big"]}))
            tree["host"][:] = -1
    for step, wanted in host.items():
        assert_same_bits(run.restore(shapes({"params": wanted}), step=step)[1]["params"], wanted)


def test_a_tree_comes_back_under_another_sharding(tmp_path):
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, columns = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        for spec in (("data",), (None, "data"))
    )
    table = jnp.arange(1024.0).reshape(32, 32)
    run = saved(tmp_path, 1, trees=lambda _: {"params": {"table": jax.device_put(table, rows)}})
    found = run.restore(
        {"params": {"table": jax.ShapeDtypeStruct(table.shape, table.dtype, sharding=columns)}}
    )[1]["params"]["table"]
    assert found.sharding == columns
    assert_same_bits(found, table)


def test_sampling_reads_the_parameters_alone(tmp_path):
    run = saved(tmp_path, 3)
    shutil.rmtree(tmp_path / "checkpoints/3/opt_state")
    assert_same_bits(run.restore(shapes({"params": params()}))[1], {"params": params(3)})
    with pytest.raises(ConfigError, match="no whole step: 3: opt_state/"):
        run.restore(shapes(state()), say=lambda _: None)


def test_a_run_without_steps_restores_nothing(tmp_path):
    assert Run(tmp_path / "never").restore(shapes(state())) is None
    assert Run(tmp_path / "never").steps() == []
    assert not (tmp_path / "never").exists()


def test_leaves_are_listed_without_reading_arrays(tmp_path):
    saved(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints/2/params")
    assert [leaf[:3] for leaf in leaves(tmp_path)] == [
        ("embed/table", (12, 8), "float32"),
        ("layers/attention/query", (8, 8), "float32"),
        ("layers/scale", (4,), "float32"),
    ]
    assert "1/0/mu/embed/table" in [
        leaf.path for leaf in leaves(tmp_path, step=1, tree="opt_state")
    ]
    for wrong in ({"step": 9}, {"tree": "ema"}):
        with pytest.raises(ConfigError, match="it has"):
            leaves(tmp_path, **wrong)


# --- what does not fit is refused -----------------------------------------------------------------


@pytest.mark.row(14)
def test_every_mismatch_is_listed_by_name(tmp_path):
    run = saved(tmp_path, 1)
    wanted = shapes({"params": params()})["params"]
    wanted["embed"]["table"] = jax.ShapeDtypeStruct((12, 9), jnp.float32)
    wanted["layers"]["attention"] = {"qwery": wanted["layers"]["attention"]["query"]}
    wanted["layers"]["scale"] = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
    with pytest.raises(ConfigError) as refused:
        run.restore({"params": wanted})
    shape = "embed/table has shape [12, 8], wanted [12, 9]"
    for part in (
        shape,
        "layers/attention/query is only in",
        "attention/qwery is not in",
        "scale is float32, wanted bfloat16",
    ):
        assert part in str(refused.value)


def test_a_long_list_of_mismatches_is_cut_at_twenty(tmp_path):
    run = saved(tmp_path, 1, trees=lambda _: {"params": {"a": jnp.zeros(1)}})
    wanted = {f"b{i:02}": jax.ShapeDtypeStruct((), jnp.float32) for i in range(30)}
    with pytest.raises(ConfigError, match=r"; and 11 more\.") as refused:
        run.restore({"params": wanted})
    assert str(refused.value).count(" is ") == 20
    with pytest.raises(ConfigError, match="has no 'ema'; it has params"):
        run.restore({"ema": wanted})


@pytest.mark.row(15)
def test_ambiguous_names_are_refused_before_anything_is_written(tmp_path, record_property):
    run = Run(tmp_path)
    x = jnp.zeros(2)
    with run.lock():
        with pytest.raises(ConfigError, match=r"\['a'\]\['b'\] and \['a.b'\]"):
            run.save(1, {"params": {"a": {"b": x}, "a.b": x}})
        for tree in ({"a.b": x}, {"a/b": x}, {"": x}, x):
            with pytest.raises(ConfigError, match="can't be saved"):
                run.save(1, {"params": tree})
    assert list((tmp_path / "checkpoints").iterdir()) == []
    record_property(
        "figure", "5 of 5 ambiguous trees refused at save with both names, nothing written"
    )


@pytest.mark.row(34)
def test_an_unknown_format_is_refused_and_not_skipped(tmp_path):
    run = saved(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints/2"
    text = json.dumps(
        {**json.loads((folder / "manifest.json").read_text()), "version": 99}
    ).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")
    with pytest.raises(ConfigError, match="format 99"):
        run.restore(shapes(state()))


# --- damage ---------------------------------------------------------------------------------------


def truncate(folder):
    file = max(files_below(folder), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def zero(folder):
    file = max(files_below(folder), key=lambda p: p.stat().st_size)
    file.write_bytes(bytes(file.stat().st_size))


DAMAGES = {
    "truncated payload": truncate,
    "zeroed payload": zero,
    "payload gone": (
        lambda folder: max(files_below(folder), key=lambda p: p.stat().st_size).unlink()
    ),
    "tree gone": lambda folder: shutil.rmtree(folder / "params"),
    "metadata empty": lambda folder: (folder / "params/_METADATA").write_bytes(b""),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "seal gone": lambda folder: (folder / "manifest.sha256").unlink(),
    "another step": lambda folder: (
        shutil.rmtree(folder),
        shutil.copytree(folder.parent / "1", folder),
    ),
}


@pytest.mark.row(27)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_gives_way_to_the_one_before_with_one_line(tmp_path, damage):
    run = saved(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "checkpoints/2")
    said = []
    step, trees = run.restore(shapes(state()), say=said.append)
    assert (
        step == 1
        and len(said) == 1
        and "checkpoints/2 is damaged: " in said[0]
        and "\n" not in said[0]
    )
    assert_same_bits(trees, state(1))
    with pytest.raises(ConfigError, match="checkpoints/2 is damaged"):
        run.restore(shapes(state()), fall_back=False)


def test_a_trainer_moves_damaged_steps_aside_and_saves_them_anew(tmp_path):
    run = saved(tmp_path, 1, 2, keep_newest=1, keep_best=0)
    saved(tmp_path, 3)
    truncate(tmp_path / "checkpoints/3")
    with run.lock():
        assert run.restore(shapes(state()), say=lambda _: None)[0] == 2
        assert run.steps() == [2]
        run.save(3, state(3))
        assert run.wait() == 3
    assert (tmp_path / "checkpoints/damaged-1/3").is_dir()
    assert_same_bits(run.restore(shapes(state()))[1], state(3))


def test_a_run_with_only_damaged_steps_is_an_error_and_not_a_fresh_start(tmp_path):
    run = saved(tmp_path, 1, 2)
    for step in (1, 2):
        truncate(tmp_path / f"checkpoints/{step}")
    with pytest.raises(ConfigError, match=r"no whole step: 2: .*; 1: "):
        run.restore(shapes(state()), say=lambda _: None)


@pytest.mark.row(28)
def test_stray_names_are_ignored_with_a_note(tmp_path, record_property):
    run = saved(tmp_path, 1, 2)
    for name in ("best", "-3", "03", "9"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints/7").write_text("a file")
    (tmp_path / "checkpoints/best/manifest.json").write_text("{}")
    said = []
    assert run.steps() == [1, 2] and run.wait() == 2
    assert run.restore(shapes(state()), say=said.append)[0] == 2
    assert len(said) == 1 and "ignoring -3, 03, 7, 9, best" in said[0]
    record_property("figure", "5 of 5 stray names ignored with one note, the newest step unchanged")


# --- which steps stay -----------------------------------------------------------------------------


@pytest.mark.row(10)
def test_the_newest_and_the_best_stay_and_a_nan_is_never_best(tmp_path, record_property):
    losses = dict(enumerate([3.0, 1.0, 2.0, math.nan, -math.inf, 5.0, None], start=1))
    metrics = {
        step: {} if loss is None else {"validation_loss": loss} for step, loss in losses.items()
    }
    run = saved(
        tmp_path,
        *losses,
        metrics=metrics,
        trees=lambda s: {"params": {"a": jnp.full(3, s)}},
        keep_newest=1,
        keep_best=2,
    )
    assert run.steps() == [2, 3, 7]
    assert run.best() == 2
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3", "7"]
    record_property(
        "figure",
        "of the losses 3, 1, 2, NaN, -inf, 5 and none, the steps with 1 and 2 are kept as best",
    )


@pytest.mark.row(32)
def test_keeping_nothing_is_refused(tmp_path):
    for wrong in ({"keep_newest": 0}, {"keep_newest": -1}, {"keep_best": -1}):
        with pytest.raises(ConfigError, match="keep_"):
            Run(tmp_path, **wrong)
    run = saved(
        tmp_path, *range(5), trees=lambda s: {"params": {"a": jnp.full(3, s)}}, keep_newest=None
    )
    assert run.steps() == [0, 1, 2, 3, 4]


@pytest.mark.row(32)
def test_nothing_is_deleted_before_the_new_step_is_committed(
    tmp_path, monkeypatch, record_property
):
    run = saved(tmp_path, 1, keep_newest=1)
    monkeypatch.setattr(
        manifest,
        "write_manifest",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with run.lock():
        run.save(2, state(2))
        with pytest.raises(
            OSError,
            match=(
                r"step 2 could not be saved in .*: No space left on device \(it needs 0\.0 MB, .*"
                r" MB are free\)"
            ),
        ):
            run.wait()
        assert os.listdir(tmp_path / "checkpoints") == ["1"]
        monkeypatch.undo()
        run.save(2, state(2))
        assert run.wait() == 2
    assert run.steps() == [2]
    record_property(
        "figure", "keep 0 and less refused; nothing is deleted before the new step is committed"
    )


@pytest.mark.row(16)
def test_after_a_rollback_steps_are_saved_again(tmp_path):
    run = saved(tmp_path, 50, 75, 100, keep_newest=None)
    with run.lock():
        assert run.rollback(50) == [75, 100]
        assert run.restore(shapes(state()))[0] == 50
        run.save(60, state(60))
        assert run.wait() == 60
        assert run.rollback(50) == [60] and run.rollback(50) == []
    assert (tmp_path / "checkpoints/rolled-back-1/100/manifest.json").is_file()
    assert run.restore(shapes(state()), say=pytest.fail)[0] == 50


def test_saving_a_step_again_keeps_equal_bits_and_replaces_others(tmp_path):
    run = saved(tmp_path, 1)
    folder = tmp_path / "checkpoints/1"
    identity = folder.stat().st_ino
    with run.lock():
        run.save(1, state(1))
        run.wait()
        assert folder.stat().st_ino == identity
        run.save(1, state(1), {"validation_loss": 2.0})
        run.wait()
        assert run.best() == 1
        run.save(1, state(2))
        run.wait()
        assert_same_bits(run.restore(shapes(state()))[1], state(2))
        truncate(folder)
        run.save(1, state(2))
        run.wait()
    assert_same_bits(run.restore(shapes(state()))[1], state(2))
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


def test_a_step_that_is_replaced_is_there_until_the_new_one_has_its_name(tmp_path, monkeypatch):
    """As if the process had died between the two renames."""
    run, rename = saved(tmp_path, 1), Path.rename

    def dies(path, target):
        if path.name == ".saving-1":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with pytest.raises(OSError, match="step 1 could not be saved"), run.lock():
        monkeypatch.setattr(Path, "rename", dies)
        run.save(1, state(2))
        run.wait()
    monkeypatch.undo()
    again = Run(tmp_path)
    with again.lock():
        assert again.steps() == [1]
        assert_same_bits(again.restore(shapes(state()))[1], state(1))


@pytest.mark.row(29)
def test_what_a_dead_trainer_left_is_cleaned_up_under_the_lock(tmp_path):
    run = saved(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    for name in (".saving-3", ".saving-3.orbax-checkpoint-tmp", ".trash-1"):
        shutil.copytree(folder / "1", folder / name)
    (folder / "2").rename(folder / ".replaced-2")  # killed between the two renames of a replacement
    assert run.steps() == [1]
    with run.lock():
        assert sorted(os.listdir(folder)) == ["1", "2"]


def test_a_step_is_sealed_after_its_last_byte_is_written(tmp_path, monkeypatch):
    """By a writer that is not done before it has been waited for."""

    class Late:
        def __init__(self, folder: Path):
            self.file = folder / "params" / "late"

        def wait_until_finished(self) -> None:
            self.file.parent.mkdir(parents=True)
            self.file.write_bytes(b"late")

        def close(self) -> None:
            pass

    monkeypatch.setattr(payload, "start_writing", lambda folder, trees: Late(folder))
    saved(tmp_path, 1)
    assert "params/late" in manifest.read_manifest(tmp_path / "checkpoints/1").files


@pytest.mark.row(31)
def test_every_file_and_folder_of_a_step_is_brought_to_the_disk(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda f: (synced.add(os.readlink(f"/proc/self/fd/{f}").replace(".saving-", "")), fsync(f)),
    )
    saved(tmp_path, 4)
    folder = tmp_path / "checkpoints"
    assert {str(p) for p in folder.rglob("*")} | {str(folder)} <= synced


# --- one trainer, and its end ---------------------------------------------------------------------


def test_saving_needs_the_lock(tmp_path):
    with pytest.raises(RuntimeError, match="lock"):
        Run(tmp_path).save(1, state())


@pytest.mark.row(2)
def test_a_second_trainer_is_refused_by_name_and_a_dead_one_is_replaced(tmp_path):
    other = python(
        "with run.lock():\n    print('held', flush=True)\n    sys.stdin.read()",
        tmp_path,
        stdin=subprocess.PIPE,
    )
    assert other.stdout.readline() == "held\n"
    start = time.monotonic()
    with (
        pytest.raises(
            ConfigError, match=rf"is being trained by process {other.pid} on .*; wait for it"
        ) as refused,
        Run(tmp_path).lock(),
    ):
        pass
    assert time.monotonic() - start < 1 and "\n" not in str(refused.value)
    other.kill()
    other.communicate()
    with Run(tmp_path).lock():
        assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()


def test_a_directory_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    code = """
    import os
    from gptjax.core.config import ConfigError
    if os.getuid() == 0: os.setuid(65534)  # root may write everywhere
    try:
        with run.lock(): pass
    except ConfigError as error: print(error)
    """
    for closed in (tmp_path, tmp_path / "checkpoints"):
        tmp_path.chmod(0o777)
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "lock").unlink(missing_ok=True)
        closed.chmod(0o555)
        out, err = python(code, ".", cwd=tmp_path).communicate(timeout=20)
        assert (
            out
            == ". can't be written or locked (Permission denied); make it writable or choose"
            " another directory.\n"
            and not err
        )
    with pytest.raises(ConfigError, match="can't be written"), Run("/proc/no/run").lock():
        pass


@pytest.mark.row(23)
@pytest.mark.parametrize(
    ("end", "status"), [("pass", 0), ("sys.exit(3)", 3), ("raise KeyError('boom')", 1)]
)
def test_a_step_saved_just_before_the_end_is_on_disk(tmp_path, end, status, record_property):
    child = python(
        SAVES
        + f"\n    with run.lock():\n        run.save(1, {{'params': tree(1)}})\n        {end}\n",
        tmp_path,
    )
    out, err = child.communicate(timeout=60)
    assert child.returncode == status and out == ""
    assert err == "" if status != 1 else "KeyError: 'boom'" in err
    manifest.verify(tmp_path / "checkpoints/1")
    record_property("figure", f"status {status}: the step is on disk, whole")


@pytest.mark.row(23)
def test_a_process_never_succeeds_without_the_step_that_it_saved(tmp_path):
    """The lock is not even left here. Python 3.12.0 to 3.12.2 can't finish the save then (CPython
    issue 113964) and must say so."""
    child = python(
        SAVES
        + "\n    lock = run.lock()\n    lock.__enter__()\n    run.save(1, {'params': tree(1)})\n",
        tmp_path,
    )
    _, err = child.communicate(timeout=60)
    whole = Run(tmp_path).steps() == [1]
    assert (child.returncode == 0) == whole
    if not (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3):
        assert whole and err == ""


@pytest.mark.row(24)
def test_a_save_that_does_not_fit_on_the_disk_leaves_the_old_step_and_says_what_it_needs(tmp_path):
    code = (
        SAVES
        + """
    import os, resource
    with run.lock():
        run.save(1, {"params": tree(1)})
        run.wait()
        # the kernel refuses larger files, as a full disk would
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        for _ in range(2):
            try:
                run.save(2, {"params": tree(2)})
                run.wait()
            except OSError as error:
                print(error)
        print(os.listdir(run.checkpoints), run.steps())
    """
    )
    child = python(code, tmp_path)
    start = time.monotonic()
    out, _ = child.communicate(timeout=60)
    first, second, listing = out.splitlines()
    assert first == second or "step 2 could not be saved" in second
    assert (
        f"step 2 could not be saved in {tmp_path}/checkpoints: " in first
        and "it needs 1.2 MB" in first
    )
    assert listing == "['1'] [1]"
    assert child.returncode == 0 and time.monotonic() - start < 30


@pytest.mark.row(24)
def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    run = saved(tmp_path, 1)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    )
    with run.lock():
        with pytest.raises(
            OSError,
            match=(
                r"step 2 could not be saved in .*: the disk is full \(it needs .* MB, 1\.0 MB are"
                r" free\)"
            ),
        ):
            run.save(2, state(2))
        assert run.wait() == 1


@pytest.mark.row(29)
def test_a_kill_during_a_save_leaves_only_whole_steps(tmp_path):
    kill_while_saving(tmp_path, 0)


@pytest.mark.row(29)
@pytest.mark.fault
def test_twenty_kills_leave_only_whole_steps(tmp_path, record_property):
    for seed in range(20):
        kill_while_saving(tmp_path, 100 + seed)
    record_property(
        "figure",
        "20 of 20 kills in a save: only whole steps, 0 temporary folders after the next start",
    )


def test_readers_see_whole_steps_while_a_trainer_saves_and_deletes(tmp_path):
    run, done, seen = Run(tmp_path, keep_newest=1, keep_best=0), threading.Event(), []
    tree = {"a": jax.ShapeDtypeStruct((100,), jnp.int32)}

    def read():
        while not done.is_set():
            if found := Run(tmp_path).restore({"params": tree}, say=lambda _: None):
                seen.append(set(np.asarray(found[1]["params"]["a"]).tolist()) == {found[0]})

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with run.lock():
            for step in range(1, 11):
                run.save(step, {"params": {"a": jnp.full(100, step)}})
    finally:
        done.set()
        reader.join()
    assert seen and all(seen)


def test_a_step_that_is_being_read_is_deleted_later(tmp_path):
    run, tree = saved(tmp_path, 1, keep_newest=1), shapes(state())
    with run.lock():
        with lock.shared(tmp_path / "checkpoints/1/manifest.json"):
            run.save(2, state(2))
            run.wait()
        assert run.steps() == [1, 2]
        assert run.restore(tree, step=1)[0] == 1
        run.save(3, state(3))
        run.wait()
    assert run.steps() == [3]


def test_importing_the_room_imports_neither_jax_nor_orbax():
    child = python("print([m for m in ('jax', 'orbax') if m in sys.modules])", "unused")
    assert child.communicate()[0] == "[]\n"
