"""Runs and texts on an object store: whatever is killed or fails, what is there is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import fsspec
import pytest
from object_store import URL
from runs import CHILD, assert_same_run, fingerprint, start, wait_for
from saving import assert_same_bits

import gptjax
from gptjax.cli import main as cli
from gptjax.core import config, remote
from gptjax.core.config import ConfigError
from gptjax.data import Bytes, DataConfig, Records, Text, prepare
from gptjax.data.documents.sources import read_documents
from gptjax.runs import Run, manifest, mirror, mirrored
from gptjax.train.experiment import Checkpoints
from gptjax.train.loop import train


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """The folder of an object store's objects; caches are this test's own."""
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "LOOK", 0.02)
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def working_copies() -> Path:
    """Where working copies lie."""
    return Path(os.environ["XDG_CACHE_HOME"], "gptjax/runs")


# --- texts


def test_a_text_of_a_store_reads_as_the_same_text_here(store, tmp_path):
    for place in (tmp_path / "here", store / "bucket"):
        (place / "more").mkdir(parents=True)
        (place / "a.txt").write_text("the first text\n" * 40)
        (place / "more/b.jsonl").write_text('{"text": "the second"}\n{"text": "third"}\n' * 20)
        (place / ".hidden.txt").write_text("not this")
    for name in ("", "/more/b.jsonl"):
        here, there = Text(f"{tmp_path}/here{name}"), Text(f"{URL}{name}")
        assert list(read_documents(here)) == list(read_documents(there))
        found = [prepare(DataConfig(source=source, tokenizer=Bytes())) for source in (here, there)]
        assert found[0].fingerprint == found[1].fingerprint
    assert len(list(read_documents(Text(URL, pattern="*.txt")))) == 1
    (store / "bucket/pairs.tsv").write_text("one\ttwo\nthree\tfour\n")
    (document, *_) = read_documents(Records(f"{URL}/pairs.tsv"))
    assert (document.source, document.text, document.name) == ("one", "two", "pairs.tsv:1")


def test_a_version_of_a_file_is_fetched_once_and_a_new_one_anew(store, monkeypatch):
    file = store / "bucket/a.txt"
    file.parent.mkdir()
    file.write_text("old")
    fetched = []
    get_file = fsspec.get_filesystem_class("fakestore").get_file
    monkeypatch.setattr(
        fsspec.get_filesystem_class("fakestore"),
        "get_file",
        lambda self, path, to, **more: (fetched.append(path), get_file(self, path, to))[1],
    )
    copies = [remote.local_copy(f"{URL}/a.txt") for _ in range(2)]
    assert len(fetched) == 1 and copies[0] == copies[1] and copies[0].name == "a.txt"
    file.write_text("new")
    assert remote.local_copy(f"{URL}/a.txt").read_text() == "new"
    assert copies[0].read_text() == "old", "who reads the old version is not disturbed"


def test_urls_that_lead_nowhere_end_in_a_line(store, capsys, monkeypatch):
    for url, said in (
        (f"{URL}/none.txt", f"{URL}/none.txt is not there"),
        ("qs://bucket/x", "has the scheme 'qs', which no installed package reads"),
    ):
        with pytest.raises(ConfigError, match=said):
            list(read_documents(Text(url)))
    for scheme, extra in (("gs", "gcs"), ("s3", "s3")):
        monkeypatch.setitem(sys.modules, f"{extra}fs", None)
        with pytest.raises(ConfigError, match=rf"pip install 'gptjax\[{extra}\]'"):
            remote.place_of(f"{scheme}://bucket/run")
    assert cli.main(["sample", f"{URL}/none"]) == 2
    assert cli.main(["sweep", "configs/quickstart.py", "--dir", f"{URL}/sweep"]) == 2
    told = capsys.readouterr().err
    assert "none is not there" in told and "a sweep is written to a folder" in told
    assert remote.as_url("C:/runs") is None and remote.as_url("runs/a:b/c") is None
    assert remote.as_url(Path("gs://bucket/run")) == "gs://bucket/run"


# --- runs


def other_machine(monkeypatch, tmp_path, name: str) -> None:
    """Goes on with the caches of another machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


@pytest.mark.parametrize("url", [f"{URL}/run", "memory://runs/run"])
def test_a_run_at_a_url_trains_resumes_opens_and_samples_as_one_here(
    url, store, tiny_experiment, tmp_path, monkeypatch, capsys
):
    config.save_config(tmp_path / "tiny.json", tiny_experiment)
    train(tiny_experiment, tmp_path / "whole")
    given = ["train", str(tmp_path / "tiny.json"), "--dir", url]
    assert cli.main([*given, "--steps", "15", "--schedule.steps", "30"]) == 0
    other_machine(monkeypatch, tmp_path, "other")
    assert cli.main(["train", f"{url}/config.json", "--steps", "30"]) == 0
    assert "fetched " in capsys.readouterr().out
    (copy,) = working_copies().glob("*/run")
    assert_same_run(copy, tmp_path / "whole", 30)
    other_machine(monkeypatch, tmp_path, "third")
    model, here = gptjax.load(url), gptjax.load(tmp_path / "whole")
    assert_same_bits(model.params, here.params)
    assert model.generate("The ", new_tokens=8, temperature=0.0) == here.generate(
        "The ", new_tokens=8, temperature=0.0
    )
    files = [p.name for p in Path(os.environ["XDG_CACHE_HOME"]).rglob("*")]
    assert "params" in files and "opt_state" not in files, "only what is opened is fetched"
    first = min(Run(copy).steps())
    capsys.readouterr()
    assert cli.main(["sample", url, "--step", str(first), "--new-tokens", "4"]) == 0
    assert cli.main(["sample", url, "--step", "7"]) == 2
    assert "has no step 7" in capsys.readouterr().err


class Killed(BaseException):
    """The process ends here."""


def seal_step(run: Path, step: int, content: int) -> None:
    """A step as a run publishes it, whose files hold some bytes in place of arrays."""
    draft = run / f"checkpoints/.saving-{step}"
    for name in ("params/d/0a", "params/d/1b", "params/_METADATA", "opt_state/d/2c"):
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes(f"{name} {step} {content} ".encode() * 50)
    manifest.write_manifest(draft, manifest.make_manifest(draft, step, {}, {"params": ()}))
    draft.rename(run / f"checkpoints/{step}")


@pytest.fixture(scope="module")
def history(tmp_path_factory) -> list[Path]:
    """A run directory at four moments: each later one has a further step and lacks the oldest."""
    path, moments = tmp_path_factory.mktemp("history"), []
    for step in range(1, 5):
        seal_step(path / "run", step, 0)
        shutil.rmtree(path / f"run/checkpoints/{step - 2}", ignore_errors=True)
        (path / "run/metrics.jsonl").write_text("".join(f'{{"step": {s}}}\n' for s in range(step)))
        (path / "run/config.json").write_text("{}")
        (path / "run/tokenizer").mkdir(exist_ok=True)
        (path / "run/tokenizer/tokenizer.json").write_text("{}")
        moments.append(Path(shutil.copytree(path / "run", path / f"moment {step}")))
    return moments


def pushed(moment: Path) -> mirror.Mirror:
    """Mirrors a run as it is at a moment."""
    one = mirror.Mirror(f"{URL}/run", str)
    one.begin()
    shutil.rmtree(one.path)
    shutil.copytree(moment, one.path)
    one.push(everything=True)
    return one


@pytest.mark.parametrize("before", [0, 2])
def test_whatever_write_is_the_last_another_machine_finds_whole_steps(
    before, history, store, tmp_path, monkeypatch
):
    """The process ends before the n-th change of the store, for every n, while a run is uploaded
    for the first time, and while a step is added and another deleted."""
    fake, left = fsspec.get_filesystem_class("fakestore"), 0
    originals = {name: getattr(fake, name) for name in ("pipe_file", "rm_file")}

    def dying(name):
        def do(self, *args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return originals[name](self, *args, **kwargs)

        return do

    for moment in history[:before]:
        pushed(moment)
    kept = [
        shutil.copytree(tmp_path / n, tmp_path / f"{n} 0") for n in ("store", "cache") if before
    ]
    turns, finished = 0, False
    while not finished:
        for copy in kept:
            shutil.rmtree(str(copy)[:-2])
            shutil.copytree(copy, str(copy)[:-2])
        other_machine(monkeypatch, tmp_path, "cache")
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            left = turns
            for name in originals:
                patched.setattr(fake, name, dying(name))
            pushed(history[before])
            finished = True
        other_machine(monkeypatch, tmp_path, f"other {turns}")
        there = mirror.Mirror(f"{URL}/run", str)
        there.begin()
        run = Run(there.path)
        for step in run.steps():
            manifest.verify(run.checkpoints / str(step))
        newest = max(run.steps(), default=0)
        assert newest >= before + finished, "what was uploaded before is there"
        lines = (there.path / "metrics.jsonl").read_text().splitlines() if newest else []
        assert len(lines) >= newest, "the log of all steps of a checkpoint is there before it"
        if not before:
            for folder in (store, tmp_path / "cache"):
                shutil.rmtree(folder, ignore_errors=True)
            store.mkdir()
        turns += 1
    assert turns > 12


def names(folder: Path) -> dict[str, str]:
    """The files of a run and their hashes."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("lock", "lease.json")
    }


def test_the_mirror_holds_what_the_run_holds_and_nothing_else(history, store, tmp_path):
    for moment in history:
        pushed(moment)
        assert names(store / "bucket/run") == names(moment)
    half = store / "bucket/run/checkpoints/9/params"
    half.mkdir(parents=True)
    (half / "data").write_text("of an upload that was killed")
    last = pushed(history[3])
    assert names(store / "bucket/run") == names(history[3])
    shutil.copytree(last.path / "checkpoints/4", tmp_path / "4")
    run = Run(last.path)
    with run.lock():
        run.rollback(3)
    seal_step(last.path, 4, 1)  # again, with other bits
    last.push()
    assert names(store / "bucket/run") == names(last.path)
    assert "checkpoints/rolled-back-1/4/manifest.sha256" in names(store / "bucket/run")
    before = names(store / "bucket/run")
    shutil.rmtree(last.path / "checkpoints/4")
    shutil.copytree(tmp_path / "4", last.path / "checkpoints/4")
    flipped = next((last.path / "checkpoints/4").rglob("*/d/*"))
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\0")
    last.push()
    assert names(store / "bucket/run") == before, "a damaged step does not replace a whole one"


def lease(store: Path, **changes) -> None:
    content = {"copy": "x", "process": 1, "host": "elsewhere", "renewed": time.time()}
    (store / "bucket/run").mkdir(parents=True, exist_ok=True)
    (store / "bucket/run/lease.json").write_text(
        json.dumps(content | {"released": False} | changes)
    )


def test_one_trainer_at_a_time_writes(history, store, tmp_path, monkeypatch):
    here = os.uname().nodename
    for alive in ({}, {"host": here, "process": os.getppid()}):
        lease(store, **alive)
        with pytest.raises(ConfigError, match=r"is being trained by process .* s ago; wait"):
            pushed(history[0])
        assert os.listdir(store / "bucket/run") == ["lease.json"]
    for gone in (
        {"renewed": time.time() - 130},
        {"released": True},
        {"host": here, "process": 2**30},  # which is no process
    ):
        lease(store, **gone)
        one = pushed(history[0])
    assert one.path.is_dir()
    lease(store)
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    shutil.rmtree(one.path)
    shutil.copytree(history[1], one.path)
    with pytest.raises(mirror.TakenOver, match="taken over by process 1 on elsewhere"):
        one.push()
    assert before == {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_a_working_copy_gives_way_to_what_another_machine_has_trained(
    history, store, tmp_path, monkeypatch
):
    first = pushed(history[1])
    shutil.copytree(history[2], first.path, dirs_exist_ok=True)  # and never uploaded
    other_machine(monkeypatch, tmp_path, "other")
    pushed(history[3])
    other_machine(monkeypatch, tmp_path, "cache")
    with mirrored(f"{URL}/run", str) as path:
        assert Run(path).steps() == [3, 4]
    shutil.rmtree(store / "bucket")  # whoever deletes a run wants a new one
    with mirrored(f"{URL}/run", str) as path:
        assert Run(path).steps() == []


def test_the_lease_is_renewed_however_long_an_upload_takes(history, store, monkeypatch):
    monkeypatch.setattr(mirror, "RENEW", 0.01)
    monkeypatch.setattr(mirror, "LOOK", 60.0)  # so that all is sent in the end
    put = fsspec.get_filesystem_class("fakestore").put_file
    renewed = []

    def slow(self, *args, **kwargs):
        time.sleep(0.1)
        renewed.append(json.loads((store / "bucket/run/lease.json").read_text())["renewed"])
        return put(self, *args, **kwargs)

    monkeypatch.setattr(fsspec.get_filesystem_class("fakestore"), "put_file", slow)
    with mirrored(f"{URL}/run", str) as path:
        shutil.copytree(history[0], path, dirs_exist_ok=True)
    assert len({*renewed}) == len(renewed) == 4
    assert json.loads((store / "bucket/run/lease.json").read_text())["released"]


def test_training_goes_on_without_the_network_and_is_uploaded_in_the_end(
    store, tiny_experiment, tmp_path, monkeypatch, capsys
):
    failing = Path(f"{store}.failing")
    monkeypatch.setattr(mirror, "PATIENCE", (0.0, 0.0))
    monkeypatch.setattr(mirror, "REFRESH", 0.0)
    config.save_config(tmp_path / "tiny.json", tiny_experiment)
    command = ["train", str(tmp_path / "tiny.json"), "--dir", f"{URL}/run"]
    begin = mirror.Mirror.begin

    def begun(self):
        begin(self)
        failing.write_text("1000000")

    with monkeypatch.context() as patched:
        patched.setattr(mirror.Mirror, "begin", begun)
        assert cli.main(command) == 1
    told = capsys.readouterr()
    assert "is not up to date (the network is down); training continues in" in told.out
    assert "the run is whole in" in told.err and "the same command uploads it" in told.err
    failing.write_text("0")
    assert cli.main(command) == 0
    (copy,) = working_copies().glob("*/run")
    assert sorted(p.name for p in (store / "bucket/run/checkpoints").iterdir()) == sorted(
        map(str, Run(copy).steps())
    )
    assert 30 in Run(store / "bucket/run").steps()


def test_a_trainer_that_was_taken_over_saves_and_leaves(store, tiny_experiment, monkeypatch):
    monkeypatch.setattr(mirror, "REFRESH", 0.0)
    from gptjax.observe.hook import Hook

    class Another(Hook):
        def finished(self, step, values):
            time.sleep(0.05)
            if step >= 3:
                lease(store)

    with pytest.raises(mirror.TakenOver), mirrored(f"{URL}/run") as path:
        train(dataclasses.replace(tiny_experiment, steps=100), path, hooks=(Another(),))
    assert 3 <= max(Run(path).steps()) < 100


AT_STORE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import object_store
from gptjax.runs import mirror
mirror.LOOK = 0.05
"""


@pytest.mark.fault
@pytest.mark.timeout(3600)
def test_a_run_at_a_store_that_is_killed_ten_times_ends_as_if_it_had_not_been(
    store, tiny_experiment, tmp_path, monkeypatch, record_property
):
    """After every other kill the machine is another one, which has nothing but what was
    uploaded; uploads take longer than steps, so that kills meet them."""
    long = dataclasses.replace(tiny_experiment, steps=300, checkpoints=Checkpoints(every=5))
    train(long, tmp_path / "whole")
    chance, resumed = random.Random(0), []
    monkeypatch.setenv("FAKE_STORE_SECONDS", "0.003")
    for turn in range(10):
        if turn % 2:
            other_machine(monkeypatch, tmp_path, f"machine {turn}")
        before = newest(store)
        process = start(long, tmp_path / "run", "--dir", f"{URL}/run", child=AT_STORE + CHILD)
        line = wait_for(process, "interrupt when you like", "resuming at step")
        resumed += [int(word) for word in line.split()[3:4] if "resuming" in line]
        while newest(store) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "300 steps take longer"
    assert len(resumed) == 9 and resumed == sorted(resumed), "each goes on from a step"
    with mirrored(f"{URL}/run") as path:
        train(long, path)
    assert_same_run(path, tmp_path / "whole", 300)
    other_machine(monkeypatch, tmp_path, "last")
    with mirrored(f"{URL}/run") as path:
        assert fingerprint(path, 300) == fingerprint(tmp_path / "whole", 300)
    record_property(
        "figure", f"10 kills, machine lost at 5, resumed at {resumed}: equal bits and losses"
    )


def newest(store: Path) -> int:
    """The newest step that is sealed in the store."""
    sealed = store.glob("bucket/run/checkpoints/*/manifest.sha256")
    return max((int(seal.parent.name) for seal in sealed), default=0)
