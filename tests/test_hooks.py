"""Hooks that follow a run: a profile, other people's loggers, one that fails."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from gptjax import data, model
from gptjax.core.config import ConfigError
from gptjax.observe import loggers, profile
from gptjax.observe.hook import Hook
from gptjax.train import forecast
from gptjax.train.experiment import Experiment
from gptjax.train.loop import train

TINY = model.ModelConfig(num_layers=1, width=32, num_heads=2, context=32, vocab_size=257)


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 40)
    source = data.DataConfig(source=data.Text(str(tmp_path / "text.txt")), tokenizer=data.Bytes())
    return Experiment(model=TINY, data=source, steps=6, batch=8)


class Recorded(Hook):
    """Remembers what it is told."""

    def __init__(self):
        self.told = []

    def start(self, path, config, step):
        self.told.append(("start", path.name, config["steps"], step))

    def begin(self, step):
        self.told.append(("begin", step))

    def finished(self, step, values):
        self.told.append(("finished", step, values))

    def close(self):
        self.told.append(("close",))


class Broken(Hook):
    """Fails at the third step."""

    name = "broken"

    def finished(self, step, values):
        if step == 3:
            raise RuntimeError("the network is gone\nTraceback")


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_hooks_hear_what_the_log_holds_and_cannot_end_a_run(experiment, tmp_path, capsys):
    plain, hooked = tmp_path / "plain", tmp_path / "hooked"
    train(experiment, plain)
    recorded = Recorded()
    train(experiment, hooked, hooks=(Broken(), recorded))
    said = capsys.readouterr().out
    assert said.count("warning: broken is left out from here on: the network is gone") == 1
    assert recorded.told[0] == ("start", "hooked", 6, 0) and recorded.told[-1] == ("close",)
    assert [one[1] for one in recorded.told if one[0] == "begin"] == [1, 2, 3, 4, 5, 6]
    heard = {one[1]: one[2] for one in recorded.told if one[0] == "finished"}
    logged = {line["step"]: line for line in lines_of(hooked) if "loss" in line}
    assert heard.keys() == logged.keys() == set(range(1, 7))
    assert all(heard[step]["loss"] == logged[step]["loss"] for step in heard)
    assert heard[6]["validation_loss"] == logged[6]["validation_loss"]
    assert [line["loss"] for line in lines_of(plain) if "loss" in line] == [
        heard[step]["loss"] for step in sorted(heard)
    ]


def test_a_profile_names_the_costliest_operations(experiment, tmp_path, capsys):
    run = tmp_path / "run"
    train(experiment, run, hooks=(profile.Profile(3, 4),))
    said = capsys.readouterr().out
    traced = said.index(f"profile of steps 3 to 4: xprof --logdir {run}/profile")
    summed = said.index("ms a step under the profiler")
    assert traced < said.index("done: ") < summed, "no step waits until it is summed up"
    trace = profile.newest(run / "profile")
    lines = profile.summary(trace, 5, steps=2)
    assert "\n".join(lines[:5]) in said
    share = [float(line.split("ms a step")[1].split("%")[0]) for line in lines[1:]]
    assert len(share) == 5 and share == sorted(share, reverse=True) and 0 < sum(share) <= 100.1
    idle = float(lines[0].split("no operation ran in")[1].split("%")[0])
    assert 0 <= idle < 100
    assert len(list(trace.parent.glob("*.xplane.pb"))) == 1, "what XProf and TensorBoard read"
    # a resumed run whose steps are past profiles nothing, and says which it could
    longer = profile.Profile(2, 3)
    told = longer.start(run, {}, 6)
    assert "--profile 8:12" in told
    longer.begin(2)
    assert longer.close() is None


def test_xprof_opens_the_profile(experiment, tmp_path):
    convert = pytest.importorskip("xprof.convert.raw_to_tool_data", reason="xprof is not installed")
    run = tmp_path / "run"
    train(experiment, run, hooks=(profile.Profile(2, 4),))
    planes = [str(path) for path in (run / "profile").rglob("*.xplane.pb")]
    names = convert.xspace_to_tool_names(planes)
    assert "trace_viewer" in " ".join(names) and "hlo_stats" in names


def test_the_share_of_idle_time_is_what_no_operation_covers(tmp_path):
    import gzip

    def event(name, begin, length):
        return {"ph": "X", "name": name, "ts": begin, "dur": length, "args": {"hlo_op": name}}

    ran = [event("dot.1", 0, 40), event("dot.2", 20, 30), event("add.7", 90, 10)]
    path = tmp_path / "x.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": [*ran, {"ph": "M"}]}).encode()))
    first, *kinds = profile.summary(path, 5)
    assert first == "0.1 ms a step under the profiler; no operation ran in 40.0 %"
    assert [line.split()[-1] for line in kinds] == ["dot", "add"] and "87.5 %" in kinds[0]


@pytest.mark.parametrize("text", ["", "a:b", "5:3", "0:2", "3:4:5"])
def test_a_profile_of_other_steps_is_refused(text):
    with pytest.raises(ConfigError, match="--profile 20:25"):
        profile.steps_of(text)


def test_a_logger_that_is_not_known_or_not_there_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="use some of wandb, mlflow, trackio"):
        loggers.loggers(("tensorbored",), "p")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        loggers.loggers(("wandb",), "p")


def project_of(folder: Path) -> str:
    """A project of its own: trackio keeps all in one place."""
    return f"test-{hashlib.sha256(f'{folder}{os.getpid()}'.encode()).hexdigest()[:8]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_logger_of_others_holds_the_losses_of_a_resumed_run(
    name, experiment, tmp_path, monkeypatch
):
    pytest.importorskip(name, reason=f"{name} is not installed")
    run = tmp_path / "run"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # all that mlflow-skinny can do offline
    for steps in (3, 6):
        train(
            dataclasses.replace(experiment, steps=steps),
            run,
            hooks=loggers.loggers((name,), project_of(tmp_path)),
        )
    wanted = {line["step"]: line["loss"] for line in lines_of(run) if "loss" in line}
    found = STORED[name](run, tmp_path)
    np.testing.assert_allclose([found[step] for step in sorted(wanted)], list(wanted.values()))


def _of_mlflow(run, folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    name = (run / "mlflow.id").read_text()
    assert client.get_run(name).data.params["model.width"] == "32"
    return {one.step: one.value for one in client.get_metric_history(name, "loss")}


def _of_trackio(run, folder):
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs(project_of(folder))
    return {
        line["step"]: line["loss"]
        for line in SQLiteStorage.get_logs(project_of(folder), name)
        if "loss" in line
    }


def _of_wandb(run, _):
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for raw in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(raw)
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "loss" in items:
                found[items["_step"]] = items["loss"]
    return found


def _records(data):
    """The records of a .wandb file, LevelDB's log format behind a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            yield whole
            whole = b""


STORED = {"wandb": _of_wandb, "mlflow": _of_mlflow, "trackio": _of_trackio}


def test_a_full_memory_leaves_its_profile(tmp_path):
    held = jax.numpy.ones((256, 256))
    with (
        pytest.raises(ConfigError, match=r"go tool pprof -top .*memory\.prof lists what held it"),
        forecast.explained(None, tmp_path),
    ):
        raise MemoryError
    assert (tmp_path / "memory.prof").stat().st_size > 100 and held.size
