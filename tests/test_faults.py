"""The fault matrix, training side: what must happen when a step, the data, the disk or the machine
goes wrong.

`@pytest.mark.row(n)` names the row that a test proves, and `figure` what it measured. Faults come
from `GPTJAX_FAULT`, as in a user's drill, or from outside. Read `uninterrupted` first: the run that
all the interrupted ones must equal.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_same_run, fingerprint, in_time, lines_of, losses_of, start, wait_for
from variants import ROPE

import gptjax
from gptjax.cli import main as cli
from gptjax.core import config, faults
from gptjax.core.config import ConfigError
from gptjax.data import Batch, Characters, Text, prepare
from gptjax.data.tokenizers import spelling
from gptjax.losses import CrossEntropy
from gptjax.model import init
from gptjax.observe import goodput, watchdog
from gptjax.observe.goodput import Stretch
from gptjax.observe.log import read_metrics
from gptjax.runs import Run
from gptjax.sharding.mesh import MeshConfig
from gptjax.train import evaluator, identity, optim, program, spikes, step
from gptjax.train.experiment import Checkpoints, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule

ROOT = Path(__file__).parents[1]


@pytest.fixture
def figure(record_property):
    """Records what a test measured."""
    return functools.partial(record_property, "figure")


@pytest.fixture
def fault(monkeypatch):
    """Sets `GPTJAX_FAULT`."""
    return functools.partial(monkeypatch.setenv, "GPTJAX_FAULT")


@pytest.fixture(autouse=True)
def no_fault(monkeypatch):
    monkeypatch.delenv("GPTJAX_FAULT", raising=False)


@pytest.fixture(scope="module")
def hard(tiny_experiment, text_folder):
    """An experiment with dropout and several documents in a row: all that a resumed run could get
    wrong."""
    return dataclasses.replace(
        tiny_experiment,
        model=dataclasses.replace(
            tiny_experiment.model,
            residual_dropout=0.1,
            attention_dropout=0.1,
            embedding_dropout=0.1,
        ),
        data=dataclasses.replace(tiny_experiment.data, source=Text(str(text_folder))),
        log_every=1,
    )


@pytest.fixture(scope="module")
def uninterrupted(hard, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(hard, path)
    return path


@pytest.fixture(scope="module")
def quiet(tiny_experiment):
    """The tiny experiment without evaluations on the way."""
    return dataclasses.replace(
        tiny_experiment,
        evaluation=dataclasses.replace(tiny_experiment.evaluation, every=10**6),
        checkpoints=Checkpoints(every=5),
    )


def built_with(experiment: Experiment, words: str = "") -> program.Program:
    """The program of an experiment with faults built in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTJAX_FAULT", words)
        data = prepare(experiment.data)
        return program.build(identity.resolve(experiment, data), data, faults.planned())


def bits(tree) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


# --- the hooks ---


def test_without_the_variable_nothing_of_a_fault_is_in_the_program():
    assert faults.planned() == () and faults.in_gradients((), len, 0) is len
    assert faults.in_batches((), bits) is bits


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("kill", "kind@step"),
        ("kill@x", "kind@step"),
        ("kil@3", "Did you mean 'kill'?"),
        ("kill@0", "first step is 1"),
        ("nan_grad@3:1", "same on every rank"),
    ],
)
def test_a_fault_that_is_none_is_refused_by_name(words, said, fault):
    fault(words)
    with pytest.raises(ConfigError, match=said):
        faults.planned()


def test_a_fault_of_another_rank_does_not_happen_here(fault):
    fault("data_error@2:1, data_error@3:0")
    read = faults.in_batches(faults.planned(), lambda finished, state: finished)
    assert read(1, None) == 1
    with pytest.raises(OSError, match="the batch of step 3"):
        read(2, None)


# --- killed, and resumed ---


def kill_at_random(experiment: Experiment, path: Path, seconds: float) -> int:
    """Starts a run, kills it a time after its loop began, and gives the exit status."""
    process = start(experiment, path)
    wait_for(
        process, "interrupt when you like", "resuming at step"
    )  # "training" alone stands in what preparing the data says
    time.sleep(seconds)
    process.kill()
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.slow
@pytest.mark.row(3)
def test_a_killed_run_ends_bitwise_as_if_it_had_not_been_killed(
    hard, uninterrupted, tmp_path, figure
):
    path = tmp_path / "run"
    assert kill_at_random(hard, path, random.Random(1).uniform(0, 3)) in (-signal.SIGKILL, 0)
    train(hard, path)
    assert_same_run(path, uninterrupted, 30)
    figure("1/1 bitwise equal; every step logged once")


@pytest.mark.row(3)
@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_a_run_killed_twenty_times_ends_bitwise_as_if_it_had_not_been_killed(
    hard, tmp_path, figure
):
    long = dataclasses.replace(hard, steps=200)
    train(long, tmp_path / "whole")
    chance, killed, finished = random.Random(0), 0, 0
    while killed < 20:
        if (
            kill_at_random(long, tmp_path / f"run {finished}", chance.uniform(0, 1.0))
            == -signal.SIGKILL
        ):
            killed += 1
        else:  # it was faster than the signal
            assert_same_run(tmp_path / f"run {finished}", tmp_path / "whole", 200)
            finished += 1
    train(long, tmp_path / f"run {finished}")
    assert_same_run(tmp_path / f"run {finished}", tmp_path / "whole", 200)
    figure(
        f"{killed} kills in {finished + 1} runs of 200 steps: {finished + 1}/{finished + 1} end in"
        " equal bits, 0 differing losses"
    )


# --- another run in the same directory ---

OTHER = {
    "seed": (("seed", 0, 7), lambda e, other: dataclasses.replace(e, seed=7)),
    "batch": (("batch", 8, 16), lambda e, other: dataclasses.replace(e, batch=16)),
    "context": (
        ("model.context", 32, 16),
        lambda e, other: dataclasses.replace(e, model=dataclasses.replace(e.model, context=16)),
    ),
    "rate": (
        ("optim.peak", 0.01, 0.005),
        lambda e, other: dataclasses.replace(e, optim=AdamW(peak=5e-3)),
    ),
    "tokenizer": (
        ("data.tokenizer.kind", "Bytes", "Characters"),
        lambda e, other: _reading(e, tokenizer=Characters()),
    ),
    "file": (
        ("data.source.path", None, None),
        lambda e, other: _reading(e, source=Text(str(other))),
    ),
    "one byte of the file": (("data (its content)", None, None), None),
}


def _reading(experiment: Experiment, **changes) -> Experiment:
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **changes))


@pytest.fixture(scope="module")
def begun(quiet, tmp_path_factory):
    """A run of two steps with a text of its own."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "text.txt").write_text(Path(quiet.data.source.path).read_text())
    (folder / "other.txt").write_text(Path(quiet.data.source.path).read_text().upper())
    experiment = dataclasses.replace(
        _reading(quiet, source=Text(str(folder / "text.txt"))), steps=2
    )
    train(experiment, folder / "run")
    return experiment, folder


@pytest.mark.row(4)
@pytest.mark.parametrize("name", OTHER)
def test_another_run_in_the_same_directory_is_refused_by_field_old_and_new_value(
    name, begun, figure, monkeypatch
):
    experiment, folder = begun
    (field, old, new), change = OTHER[name]
    files = {
        file: (folder / "run" / file).read_bytes()
        for file in ("config.json", "identity.json", "metrics.jsonl")
    }
    monkeypatch.setattr(
        program, "build", lambda *_: pytest.fail("it was not refused before the step is compiled")
    )
    text = (folder / "text.txt").read_text()
    if change is None:
        (folder / "text.txt").write_text(text.replace("moon", "noon", 1))
    try:
        with pytest.raises(ConfigError, match="holds another run: ") as error:
            train(
                change(experiment, folder / "other.txt") if change else experiment, folder / "run"
            )
    finally:
        (folder / "text.txt").write_text(text)
    said = str(error.value)
    assert (f"{field} was {old!r}, now {new!r}" if old is not None else f"{field} was '") in said
    assert "\n" not in said and "--allow-changes" in said and "--dir" in said
    assert files == {file: (folder / "run" / file).read_bytes() for file in files}
    figure("refused before the step is compiled, with field, old and new value")


def test_other_software_is_noted_and_not_refused(begun, monkeypatch, capsys):
    experiment, folder = begun
    monkeypatch.setattr(
        identity, "versions", lambda versions=identity.versions: versions() | {"jax": "99"}
    )
    monkeypatch.setattr(identity, "backend", lambda: {"devices": "8 × other", "flags": "--other"})
    before = fingerprint(folder / "run", 2)
    train(experiment, folder / "run")
    said = capsys.readouterr().out
    assert "note        not bitwise from here" in said
    assert f"jax {jax.__version__} → 99" in said and "→ 8 × other" in said and "→ --other" in said
    assert fingerprint(folder / "run", 2) == before


def test_changes_that_are_allowed_are_made(begun, tmp_path, capsys):
    experiment, _ = begun
    train(experiment, tmp_path / "run")
    train(dataclasses.replace(experiment, seed=7, steps=3), tmp_path / "run", allow_changes=True)
    assert "seed 0 → 7" in capsys.readouterr().out
    assert (
        config.load_config(Experiment, tmp_path / "run/config.json").seed == 7
        and len(losses_of(tmp_path / "run")) == 3
    )


@pytest.mark.row(20)
@pytest.mark.fault
def test_a_longer_run_keeps_earlier_rates_and_adds_a_cycle_or_is_stretched(
    quiet, fault, tmp_path, capsys, figure
):
    """The run is stopped at step 12 of 20 and goes on to 28, and then to 30 with the schedule
    stretched."""
    short, path = (
        dataclasses.replace(
            quiet, steps=20, schedule=dataclasses.replace(quiet.schedule, steps=None)
        ),
        tmp_path / "run",
    )
    fault("term@12")
    train(short, path)
    fault("")
    train(dataclasses.replace(short, steps=28), path)
    said = capsys.readouterr().out
    assert "steps 20 → 28" in said and "cosine schedule ends at step 20 and begins again" in said
    train(short, tmp_path / "uninterrupted")
    wanted = [line["learning_rate"] for line in lines_of(tmp_path / "uninterrupted")]
    longer = optim.lengthened(dataclasses.replace(short.schedule, steps=20), 28, done=12)
    rate = optim.learning_rate(longer, 1e-2, 28)
    wanted += [float(rate(jnp.asarray(step))) for step in range(20, 28)]
    found = [line["learning_rate"] for line in lines_of(path)]
    assert found[:20] == wanted[:20]
    assert found[20:] == pytest.approx(wanted[20:], rel=1e-6)  # one is compiled, the other not
    assert wanted[20] == pytest.approx(1e-2)

    stretched = dataclasses.replace(
        short, steps=30, schedule=dataclasses.replace(short.schedule, steps=30)
    )
    with pytest.raises(ConfigError, match=r"schedule\.steps was 28, now 30.*--allow-changes"):
        train(stretched, path)
    train(stretched, path, allow_changes=True)
    assert "note        the cosine schedule now stretches over 30 steps" in capsys.readouterr().out
    assert [line["learning_rate"] for line in lines_of(path)][:28] == found
    figure("28/28 learning rates equal to 0 ulp without the flag; a note with it")


# --- steps that go wrong ---


@pytest.mark.row(7)
def test_a_step_with_a_nan_gradient_changes_nothing_and_the_next_is_taken(quiet, figure):
    """The first step, one inside the warm-up, one behind it."""
    built, bad = built_with(quiet, "nan_grad@1,nan_grad@3,nan_grad@12"), {1, 3, 12}
    state, skipped = built.init()[0], []
    for number in range(1, 14):
        before = jax.device_get((state.trainable, state.opt_state))
        state, found = built.step(state, built.models, built.batch(number - 1, state))
        skipped += [number] * int(found["skipped"])
        assert (bits((state.trainable, state.opt_state)) == bits(before)) == (number in bad)
        assert int(state.step) == number and np.isfinite(found["loss"])
    assert skipped == sorted(bad)
    figure(
        "3/3 steps skipped with all bits of parameters and optimizer state unchanged; 3 counted;"
        " the next is taken"
    )


@pytest.mark.row(7)
@pytest.mark.fault
def test_a_skipped_step_is_named_with_its_batch_and_counted_over_all_starts(
    quiet, fault, tmp_path, capsys
):
    fault("nan_grad@4,term@6")
    train(dataclasses.replace(quiet, steps=10), tmp_path / "run")
    fault("scale_grad@8")
    train(dataclasses.replace(quiet, steps=10), tmp_path / "run")
    said = capsys.readouterr().out
    assert re.search(
        r"step 4 \(batch 3\) skipped: loss \d\.\d+, gradient norm nan; parameters unchanged", said
    )
    assert re.search(
        r"step 8 \(batch 7\) skipped: loss \d\.\d+, gradient norm inf; parameters unchanged", said
    )
    assert "GPTJAX_FAULT: nan_grad at step 4" in said, "a drill is told from a fault"
    assert [line["step"] for line in lines_of(tmp_path / "run") if line.get("skipped")] == [4, 8]
    assert json.loads((tmp_path / "run/report.json").read_text())["skipped_steps"] == 2


@pytest.mark.row(8)
def test_five_bad_steps_in_a_row_end_a_run_and_leave_its_last_checkpoint(
    quiet, fault, tmp_path, figure
):
    fault("nan_from@11")
    with pytest.raises(
        FloatingPointError,
        match=(
            r"5 steps in a row up to step 15 had no finite loss.*The last whole checkpoint is step"
            r" 10;.*--optim.peak"
        ),
    ):
        train(quiet, tmp_path / "run")
    assert [line["step"] for line in lines_of(tmp_path / "run") if line.get("skipped")] == [
        11,
        12,
        13,
        14,
        15,
    ]
    assert Run(tmp_path / "run").steps()[-1] == 10
    trained = gptjax.load(tmp_path / "run")
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(trained.params))
    figure("stopped 5 steps after the first NaN; checkpoint 10 of 11 restored, finite")


def test_bad_steps_are_counted_on_over_an_interruption(quiet, fault, tmp_path):
    fault("nan_from@11,term@13")
    train(quiet, tmp_path / "run")
    fault("nan_from@11")
    with pytest.raises(FloatingPointError, match="5 steps in a row up to step 15"):
        train(quiet, tmp_path / "run")


@pytest.mark.row(9)
@pytest.mark.fault
def test_a_huge_finite_gradient_is_skipped_and_forgotten(quiet, figure):
    after, moments = [], []
    for words in ("", "scale_grad@10"):
        built = built_with(quiet, words)
        state = built.init()[0]
        for number in range(30):
            state, found = built.step(state, built.models, built.batch(number, state))
            assert int(found["skipped"]) == (bool(words) and number == 9)
        after.append(float(found["loss"]))
        moments.append(max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(state.opt_state)))
    clean, hit = after
    assert moments[1] < 1e6 and abs(hit / clean - 1) < 0.02
    figure(
        f"loss 20 steps later {100 * (hit / clean - 1):+.2f} % of the clean run's; largest"
        f" optimizer value {moments[1]:.2g}"
    )


def test_the_score_of_a_spike_is_that_of_the_books():
    draw = np.random.default_rng(0)
    losses, norms = 3 + 0.3 * draw.standard_normal(100), np.exp(0.5 * draw.standard_normal(100))
    watch, scores = spikes.watch(), []
    state = watch.init(None)
    assert float(spikes.score((), 1.0, 1.0)) == 0, "an optimizer that does not watch"
    for loss, norm in zip(losses, norms, strict=True):
        scores.append(float(spikes.score((state,), jnp.float32(loss), jnp.float32(norm))))
        _, state = watch.update(None, state, loss=jnp.float32(loss), norm=jnp.float32(norm))
    for i in range(100):
        past = [x[i - spikes.WINDOW : i] for x in (losses, np.log(norms))]
        wanted = (
            [
                (x - np.median(p)) / (1.4826 * np.median(np.abs(p - np.median(p))))
                for x, p in zip((losses[i], np.log(norms[i])), past, strict=True)
            ]
            if i >= 64
            else [0]
        )
        assert scores[i] == pytest.approx(max(wanted), rel=1e-3, abs=1e-4)
    assert (
        float(spikes.score((state,), jnp.float32(10.0), jnp.float32(1.0)))
        > 8
        < float(spikes.score((state,), jnp.float32(3.0), jnp.float32(1e3)))
    )
    assert float(spikes.score((state,), jnp.float32(0.1), jnp.float32(1e-3))) < 0, (
        "falling is no fault"
    )


@pytest.mark.row(9)
@pytest.mark.fault
def test_a_spike_is_skipped_on_wish_and_exactly_so_after_an_interruption(
    quiet, fault, tmp_path, capsys, figure
):
    experiment = dataclasses.replace(
        quiet,
        steps=76,
        skip_spikes=True,
        schedule=Schedule("constant", warmup=4),
        checkpoints=Checkpoints(every=50),
    )
    for name, words in (
        ("whole", "spike_grad@72"),
        ("parts", "spike_grad@72,term@68"),
        ("parts", "spike_grad@72"),
    ):
        fault(words)
        train(experiment, tmp_path / name)
    assert "step 72 (batch 71) skipped" in capsys.readouterr().out
    assert [line["step"] for line in lines_of(tmp_path / "whole") if line.get("skipped")] == [72]
    assert_same_run(tmp_path / "parts", tmp_path / "whole", 76)

    train(dataclasses.replace(experiment, skip_spikes=False), tmp_path / "taken")
    assert "step 72 (batch 71) is a spike" in capsys.readouterr().out
    report = json.loads((tmp_path / "taken/report.json").read_text())
    assert (report["spikes"], report["skipped_steps"]) == (1, 0)
    scores = [line["spike"] for line in lines_of(tmp_path / "taken")]
    figure(
        f"a gradient 100 times too large scores {scores[71]:.0f}, the others at most"
        f" {max(scores[:71]):.1f}; skipped alike after a resume, bitwise"
    )


@pytest.mark.row(6)
@pytest.mark.parametrize("wrong", [-1, -100, 64])
def test_a_label_that_is_no_class_never_counts_as_one(wrong, figure):
    """Weight 0 is how a position is left out; a weighted label outside the vocabulary makes the
    step be skipped."""
    draw = np.random.default_rng(0)
    tokens, targets = (draw.integers(0, 64, (4, 16), np.int32) for _ in range(2))
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    params, objective = (
        quick(functools.partial(init, ROPE))(jax.random.key(0)),
        quick(CrossEntropy().build(ROPE)),
    )
    weights = np.ones((4, 16), np.float32)
    weights[:, 5:9] = 0
    kept, marked = Batch(tokens, targets, weights), targets.copy()
    marked[:, 5:9] = wrong
    loss, weight, _ = objective(params, {}, kept, None)
    found, same, _ = objective(params, {}, kept._replace(targets=marked), None)
    error = abs(float(found / same) - float(loss / weight))
    assert error <= 1e-6 and float(same) == 48

    optimizer = optim.build_optimizer(AdamW(), lambda step: 1e-3)
    before = step.init(params, optimizer)
    told = {
        "loss": CrossEntropy().build(ROPE),
        "optimizer": optimizer,
        "rate": lambda step: 1e-3,
        "seed": 0,
        "dropout": False,
    }
    counted = kept._replace(targets=marked, weights=np.ones_like(weights))
    after, said = quick(functools.partial(step.train_step, **told))(before, {}, counted)
    assert int(said["skipped"]) == 1 and bits(after.trainable) == bits(before.trainable)
    figure(
        f"left out: the loss differs by {error:.0e} from that of the kept labels; counted: the step"
        " is skipped"
    )


# --- asked to stop ---


@pytest.mark.slow
@pytest.mark.row(21)
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_to_the_same_bits(
    hard, uninterrupted, fault, tmp_path, capsys, figure
):
    path = tmp_path / "run"
    fault("term@13")
    train(hard, path)
    assert "stopped at step 13 and saved it" in capsys.readouterr().out
    assert Run(path).steps()[-1] == 13 and len(losses_of(path)) == 13
    fault("")
    train(hard, path)
    assert_same_run(path, uninterrupted, 30)
    figure("SIGTERM inside a step: that step is saved, and the run resumed bitwise")


def deaf(setting: str, *signals: int) -> tuple[int, list[float], str]:
    """Signals, a moment apart, to a process in which Python sees none of them: its status, seconds
    from each signal to its end, and stderr.

    What it computes takes minutes and notices nothing, like a compilation. Without jax, so it
    starts at once.
    """
    code = (
        "import hashlib, signal\nfrom gptjax.observe import watchdog\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # tests may run under nohup
        f"{setting}\n"
        "    print('now', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "now\n"
            sent = []
            for number in signals:
                time.sleep(0.2)
                process.send_signal(number)
                sent.append(time.monotonic())
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, [time.monotonic() - moment for moment in sent], err


@pytest.mark.row(21)
def test_a_second_signal_ends_a_process_at_once_whatever_it_computes(figure):
    status, (_, seconds), err = deaf(
        "with watchdog.interruptible():", signal.SIGINT, signal.SIGTERM
    )
    assert status == 128 + signal.SIGTERM and err.count("once more ends at once") == 1
    in_time(seconds, 1)
    figure(f"gone {seconds:.2f} s after the second signal")


@pytest.mark.row(21)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_the_process_with_one_line(number, figure):
    status, (seconds,), err = deaf("with watchdog.abrupt():", number)
    said = (
        f"interrupted by {number.name} before the first step; nothing is lost, the same command"
        " starts again\n"
    )
    assert (status, err) == (128 + number, said)
    in_time(seconds, 1)
    figure(
        f"{number.name} while compiling: gone after {seconds:.2f} s with one line and status"
        f" {status}"
    )


def test_a_signal_that_python_sees_unwinds_what_was_begun():
    with pytest.raises(KeyboardInterrupt) as seen, watchdog.abrupt():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert seen.value.args[0] == signal.SIGTERM
    assert cli.guarded(lambda _: (_ for _ in ()).throw(seen.value), []) == 128 + signal.SIGTERM


def test_work_that_can_not_be_stopped_is_left_behind():
    over, begun = threading.Event(), time.monotonic()
    assert watchdog.unless(lambda: False, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        watchdog.unless(lambda: False, lambda: 1 / 0)
    assert watchdog.unless(lambda: True, lambda: time.sleep(0.1) or 8) == 8, (
        "what ends by itself is waited for"
    )
    assert (
        watchdog.unless(lambda: time.monotonic() - begun > 0.3, over.wait) is None
        and time.monotonic() - begun < 3
    )
    over.set()


@pytest.mark.row(21)
@pytest.mark.fault
def test_a_terminated_run_saves_its_step_and_ends_bitwise_as_if_it_had_not_stopped(
    hard, uninterrupted, tmp_path, figure
):
    path = tmp_path / "run"
    out, err = (process := start(hard, path, fault="term@13")).communicate(timeout=120)
    assert process.returncode == 0, err
    assert "stopped at step 13 and saved it" in out and "finishing this step and saving" in err
    assert Run(path).steps()[-1] == 13 and len(losses_of(path)) == 13
    train(hard, path)
    assert_same_run(path, uninterrupted, 30)
    figure("status 0, checkpoint of the step that was running, resumed bitwise")


def interrupt(experiment: Experiment, path: Path, seconds: float) -> tuple[int, float, float]:
    """Starts a run, sends SIGTERM a time after its loop began; gives the exit status, seconds until
    it was gone, and of its longest save."""
    process = start(experiment, path)
    wait_for(process, "interrupt when you like", "resuming at step")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    process.communicate(timeout=60)
    gone = time.monotonic() - begun
    return (
        process.returncode,
        gone,
        max(
            json.loads(line)["seconds"].get("checkpoint", 0.0)
            for line in (path / goodput.FILE).read_text().splitlines()
        ),
    )


@pytest.mark.row(21)
@pytest.mark.fault
def test_a_run_that_is_asked_to_stop_is_gone_within_two_seconds_and_a_save(quiet, tmp_path, figure):
    status, seconds, save = interrupt(
        dataclasses.replace(quiet, steps=10**6), tmp_path / "run", 1.0
    )
    done = len(losses_of(tmp_path / "run"))
    assert status == 0 and Run(tmp_path / "run").steps()[-1] == done > 0
    in_time(seconds, 2 + save)
    figure(
        f"gone {seconds:.2f} s after the signal, with a save of {save:.2f} s; checkpoint of step"
        f" {done}, the last finished one"
    )


@pytest.mark.row(21)
@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_a_run_that_is_asked_to_stop_at_random_times_ends_in_the_same_bits(hard, tmp_path, figure):
    """During evaluations and saves too."""
    long, path = dataclasses.replace(hard, steps=300), tmp_path / "run"
    train(long, tmp_path / "whole")
    chance, times = random.Random(1), []
    while not Run(path).steps() or Run(path).steps()[-1] < 300:
        status, seconds, save = interrupt(long, path, chance.uniform(0, 1.0))
        assert status == 0 and Run(path).steps()[-1] == len(losses_of(path))
        times.append((seconds, save))
        in_time(seconds, 2 + save)
    train(long, path)  # the last signal may have met the last evaluation
    assert_same_run(path, tmp_path / "whole", 300)
    assert len(times) >= 3
    assert sorted(line["step"] for line in read_metrics(path) if "validation_loss" in line) == list(
        range(10, 301, 10)
    )
    longest, save = max(times)
    figure(
        f"{len(times)} signals at random times: gone after at most {longest:.2f} s, with a save of"
        f" {save:.2f} s; bitwise equal at the end"
    )


@pytest.mark.row(21)
@pytest.mark.fault
def test_a_second_signal_ends_a_run_at_once_even_if_its_step_never_ends(quiet, tmp_path, figure):
    process = start(dataclasses.replace(quiet, log_every=1), tmp_path / "run", fault="stall@7")
    wait_for(process, "step  6/30")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - begun
    assert process.returncode == 128 + signal.SIGTERM and err.count("once more ends at once") == 1
    in_time(seconds, 1)
    figure(f"gone {seconds:.2f} s after the second signal, though the step never ends")


@pytest.mark.fault
def test_an_evaluation_that_an_interruption_left_out_is_made_up(tiny_experiment, fault, tmp_path):
    fault("term@10")
    train(tiny_experiment, tmp_path / "run")
    assert not [line for line in lines_of(tmp_path / "run") if "validation_loss" in line]
    fault("")
    train(tiny_experiment, tmp_path / "run")
    evaluated = [
        line["step"] for line in read_metrics(tmp_path / "run") if "validation_loss" in line
    ]
    assert evaluated == [10, 20, 30]


@pytest.mark.row(21)
@pytest.mark.fault
def test_an_evaluation_that_is_interrupted_once_more_is_made_up_by_the_start_after(
    tiny_experiment, fault, tmp_path, monkeypatch
):
    path, real = tmp_path / "run", evaluator.unless
    fault("term@10")
    train(tiny_experiment, path)
    fault("")
    with monkeypatch.context() as patched:
        patched.setattr(
            evaluator,
            "unless",
            lambda interrupted, what: (
                signal.raise_signal(signal.SIGTERM) or real(interrupted, what)
            ),
        )
        train(tiny_experiment, path)
    assert Run(path).steps()[-1] == 10
    train(tiny_experiment, path)
    assert [line["step"] for line in read_metrics(path) if "validation_loss" in line] == [
        10,
        20,
        30,
    ]


# --- nothing goes on ---


def test_a_process_in_which_nothing_goes_on_is_ended(tmp_path):
    """Without jax; below the same of whole runs."""
    code = """
import sys, threading, time
from pathlib import Path
from gptjax.observe import goodput, watchdog
with goodput.Clock(time.monotonic()) as clock, watchdog.watchdog(clock, 0.4, Path(sys.argv[1])):
    clock.turn("data", "compiling", watched=False)
    time.sleep(1)
    for number in range(4):
        clock.turn("useful", f"taking step {number}")
        time.sleep(0.25)
    threading.Event().wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log.txt")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    for said in (done.stderr, (tmp_path / "log.txt").read_text()):
        assert (
            said.count(
                "no progress for 0.4 s while taking step 3; the stacks of all threads follow"
            )
            == 1
            and "in wait" in said
        )
    assert (
        done.stderr.rstrip()
        .split("\n")[-1]
        .startswith("error: no progress for 0.8 s while taking step 3; ended (--watchdog).")
    )


@pytest.mark.row(40)
@pytest.mark.fault
@pytest.mark.parametrize(
    ("kind", "doing", "frame"),
    [
        ("data_stall", "reading the batch of step 8", "in spoiled"),
        ("stall", "(waiting for step 8|beginning step 9)", "in _loop"),
    ],
)
def test_a_run_that_stalls_says_where_and_ends(kind, doing, frame, quiet, tmp_path, figure):
    """A step that never ends is waited for when its metrics are fetched or, by an older jax, when
    the next is handed over."""
    limit, path = 3.0, tmp_path / "run"
    watched = dataclasses.replace(
        quiet, log_every=1, watchdog=limit, checkpoints=Checkpoints(every=50)
    )
    process = start(watched, path, fault=f"{kind}@8")
    wait_for(process, "step  6/30")
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    seconds = time.monotonic() - begun
    assert process.returncode == 1
    assert re.search(f"warning: no progress for 3 s while {doing}", err)
    assert re.match(f"error: no progress for 6 s while {doing}", err.rstrip().split("\n")[-1])
    for said in (err, (path / "log.txt").read_text()):
        assert "Current thread" in said or "Thread 0x" in said
        assert frame in said, "the stack of the main thread"
    in_time(seconds, 2 * limit + 0.5)
    figure(
        f"{kind}: stacks of all threads after {limit:g} s, gone {seconds:.2f} s after the last"
        " progress, status 1, names the step"
    )


@pytest.mark.row(40)
@pytest.mark.fault
def test_the_watchdog_is_silent_where_all_goes_well(hard, tmp_path, figure):
    limit, path = 2.0, tmp_path / "run"
    often = dataclasses.replace(hard.evaluation, every=100)
    process = start(
        dataclasses.replace(
            hard, steps=1000, evaluation=often, checkpoints=Checkpoints(every=50), watchdog=limit
        ),
        path,
    )
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0 and "no progress" not in err + (path / "log.txt").read_text()
    compiling = goodput.read_goodput(path).seconds["compile"]
    figure(
        f"0 alarms in 1,000 steps with a limit of {limit:g} s, {compiling:.1f} s of compiling and"
        " 10 evaluations among them"
    )


@pytest.mark.row(40)
@pytest.mark.fault
def test_a_batch_that_can_not_be_read_ends_the_run_with_all_steps_before_saved(
    hard, uninterrupted, tmp_path
):
    path = tmp_path / "run"
    _, err = (process := start(hard, path, fault="data_error@13")).communicate(timeout=120)
    assert process.returncode == 1 and err.count("\n") == 1
    assert err.startswith(
        "error: GPTJAX_FAULT: the batch of step 13 can't be read. It happened while the batch of"
        " step 13 was read; all steps before are saved."
    )
    assert Run(path).steps()[-1] == 12
    train(hard, path)
    assert_same_run(path, uninterrupted, 30)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Sixty records, of which the thirteenth is none."""
    file = tmp_path_factory.mktemp("records") / "records.jsonl"
    lines = [
        json.dumps(
            {
                "text": (
                    f"document {i} says that {i} squared is {i * i}, and that is"
                    f" {'odd' if i % 2 else 'even'}. " * 3
                )
            }
        )
        for i in range(1, 61)
    ]
    file.write_text("\n".join([*lines[:12], lines[12][:30], *lines[13:]]) + "\n")
    return file


@pytest.mark.row(41)
def test_a_record_that_can_not_be_read_is_named_and_left_out_on_wish(
    quiet, records, tmp_path, capsys, figure
):
    experiment = dataclasses.replace(_reading(quiet, source=Text(str(records))), steps=2)
    with pytest.raises(
        ConfigError, match=rf"{records}:13 is not JSON .*--data\.source\.max-bad-records"
    ):
        train(experiment, tmp_path / "run")
    data = prepare(_reading(experiment, source=Text(str(records), max_bad_records=1)).data, print)
    assert "passed over 1 bad record" in capsys.readouterr().out and data.passed_over[0].startswith(
        f"{records}:13"
    )
    figure(
        "names records.jsonl:13; with --data.source.max-bad-records 1 reads the others and counts 1"
    )


@pytest.mark.row(41)
@pytest.mark.fault
def test_a_run_counts_the_records_that_it_left_out(quiet, records, tmp_path, capsys, figure):
    train(
        dataclasses.replace(_reading(quiet, source=Text(str(records), max_bad_records=1)), steps=2),
        tmp_path / "run",
    )
    assert "passed over 1 bad record" in capsys.readouterr().out
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["passed_over_records"] == 1 and f"{records}:13" in report["warnings"][0]
    assert len(losses_of(tmp_path / "run")) == 2
    figure("the run trains, and its report counts 1")


@pytest.mark.row(41)
def test_a_record_that_can_not_be_tokenised_is_named_beside_the_error_itself(
    quiet, records, tmp_path, monkeypatch
):
    original = spelling.Tokenizer.encode_all

    def broken(self, texts):
        if any("document 14 " in text for text in texts):
            raise ValueError("no such word")
        return original(self, texts)

    monkeypatch.setattr(spelling.Tokenizer, "encode_all", broken)
    source = Text(str(records), max_bad_records=1)
    with pytest.raises(ValueError, match="no such word") as error:
        prepare(dataclasses.replace(quiet.data, source=source, cache=str(tmp_path)))
    assert error.value.__notes__ == ["It happened in records.jsonl:14."]


# --- the disk ---


@pytest.mark.row(25)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.fault
def test_a_full_disk_for_the_logs_stops_no_training(quiet, tmp_path, capsys, figure):
    path, begun = tmp_path / "run", time.monotonic()
    path.mkdir()
    for name in ("metrics.jsonl", "log.txt", goodput.FILE):
        (path / name).symlink_to("/dev/full")
    train(dataclasses.replace(quiet, steps=200, checkpoints=Checkpoints(every=100)), path)
    said, minutes = capsys.readouterr().out, (time.monotonic() - begun) / 60
    assert 1 <= said.count("warning: logging fails (") <= 1 + minutes
    assert Run(path).steps()[-1] == 200 and (path / "report.html").is_file()
    figure(
        f"200 steps, 0 crashes, {said.count('warning: logging fails')} warning in"
        f" {60 * minutes:.0f} s"
    )


def test_a_report_that_can_not_be_written_loses_no_training(quiet, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("gptjax.observe.report.write_run_report", full)
    train(dataclasses.replace(quiet, steps=2), tmp_path / "run")
    assert (
        "warning: the report can't be written (No space left on device)" in capsys.readouterr().out
    )
    assert Run(tmp_path / "run").steps()[-1] == 2


@pytest.mark.row(26)
def test_a_directory_that_can_not_be_written_ends_the_start(tiny_experiment, tmp_path, figure):
    """Root may write everywhere, unless it gives up that right (capability 1, DAC_OVERRIDE) for the
    program that it becomes."""
    config.save_config(tmp_path / "tiny.json", tiny_experiment)
    become = (
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.executable,"
        " [sys.executable, *sys.argv[1:]])"
    )
    tmp_path.chmod(0o555)
    begun = time.monotonic()
    told = [sys.executable, "-c", become, str(ROOT / "train.py"), "tiny.json", "--dir", "."]
    done = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - begun
    tmp_path.chmod(0o755)
    assert (done.returncode, done.stdout) == (2, "tiny.json: loading JAX\n")
    assert (
        done.stderr
        == "error: . can't be written or locked (Permission denied); make it writable or choose"
        " another directory.\n"
    )
    in_time(seconds, 3)
    figure(
        f"status 2 and one line; the process is gone {seconds:.1f} s after its start, before"
        " anything is compiled"
    )


# --- where the time went ---


def test_what_a_process_did_beyond_the_step_where_the_next_one_began_is_lost():
    def useful(session, first, last, seconds, **more):
        return Stretch(session, first, last, {"useful": seconds, **more})

    found = goodput.account([
        # saved at 50, killed after 80
        useful(1, 0, 50, 5.0, start=1.0, compile=2.0), useful(1, 50, 80, 3.0),
        useful(2, 50, 100, 5.0, start=1.0), useful(2, 100, 101, 0.5),  # the save of 100 never ended
        useful(3, 50, 100, 6.0), useful(3, 100, 120, 2.0), useful(3, 120, 120, 0.0, evaluation=1.0),
        useful(4, 110, 120, 1.0),  # from a step inside a stretch: half of it is lost
    ])  # fmt: skip
    assert found.lost_steps == 30 + 51 + 10 and found.starts == 4
    assert found.seconds == pytest.approx(
        {
            "start": 2.0,
            "compile": 2.0,
            "useful": 5 + 6 + 1 + 1,
            "lost": 3 + 5.5 + 1,
            "evaluation": 1.0,
        }
    )
    assert goodput.account([]) == goodput.Goodput({}, 0, 0)


def test_every_second_of_a_process_belongs_to_one_part(tmp_path):
    begun = time.monotonic() - 1
    with goodput.Clock(begun) as clock:
        clock.keep(tmp_path, 0)
        with clock.during("compile", "compiling"):
            time.sleep(0.02)
        for step_number in range(1, 4):
            clock.turn("data", "reading")
            time.sleep(0.01)
            clock.turn("useful", "training", was="useful" if step_number == 2 else None)
            time.sleep(0.03)
            clock.reached(step_number)
            if step_number == 2:
                clock.saving()
    total = time.monotonic() - begun
    found = goodput.read_goodput(tmp_path)
    assert sum(found.seconds.values()) == pytest.approx(total, rel=0.01)
    assert (
        found.seconds["start"] >= 1
        and found.seconds["compile"] >= 0.02
        and found.seconds["data"] >= 0.02
        and found.seconds["useful"] >= 0.1
    )
    assert found.seconds["data"] < 0.02 + 0.1 * total and found.lost_steps == 0


def test_a_torn_record_is_read_around(tmp_path):
    for _ in range(2):
        with goodput.Clock(time.monotonic()) as clock:
            clock.keep(tmp_path, 0)
            clock.reached(2)
    file = tmp_path / goodput.FILE
    whole = file.read_bytes()
    assert len(whole) == 2 * goodput.WIDTH and goodput.read_goodput(tmp_path)[1:] == (2, 2)
    for damage in (
        whole[:-100],
        b"\0" * goodput.WIDTH + whole,
        whole.replace(b'"first"', b'"fisrt"', 1),
        b"",
        b"[1]\n" + whole,
        b"\xff" * 300,
    ):
        file.write_bytes(damage)
        assert goodput.read_goodput(tmp_path).starts <= 2
        with goodput.Clock(time.monotonic()) as clock:
            clock.keep(tmp_path, 2)
        assert goodput.read_goodput(tmp_path).starts >= 1


@pytest.mark.row(44)
@pytest.mark.fault
@pytest.mark.timeout(900)
def test_wall_time_and_lost_steps_are_counted_over_three_kills(hard, tmp_path, figure):
    """Wall time is taken outside, from each process's start to its end; lost steps from what the
    log said when it was killed."""
    path, wall, lost, ends = tmp_path / "run", 0.0, 0, []
    long = dataclasses.replace(
        hard,
        steps=1000,
        evaluation=dataclasses.replace(hard.evaluation, every=200),
        checkpoints=Checkpoints(every=100),
    )
    for words in ("kill@290", "kill@555", "kill@820", ""):
        ends.append(len(lines_of(path)) if path.exists() else 0)
        begun = time.monotonic()
        process = start(long, path, fault=words)
        line = wait_for(process, "interrupt when you like", "resuming at step")
        resumed = int(line.split("resuming at step ")[1].split()[0]) if "resuming" in line else 0
        _, err = process.communicate(timeout=300)
        wall += time.monotonic() - begun
        lost += max(0, ends[-1] - resumed)
        assert process.returncode == (-signal.SIGKILL if words else 0), err
    found, said = goodput.read_goodput(path), json.loads((path / "report.json").read_text())
    assert found.lost_steps == lost == said["goodput"]["lost_steps"] > 0 and found.starts == 4
    total = sum(found.seconds.values())
    assert abs(total / wall - 1) <= 0.01
    assert said["seconds"]["total"] == pytest.approx(
        sum(s for part, s in said["seconds"].items() if part != "total")
    )
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found.seconds.items())
    figure(
        f"3 kills: {parts}; together {100 * (total / wall - 1):+.2f} % of the wall time;"
        f" {found.lost_steps} of {lost} lost steps counted"
    )


# --- devices ---

MESHES = {
    1: [{"data": 1}],
    2: [{"data": 2}, {"data": 1, "fsdp": 2}, {"data": 1, "tensor": 2}],
    4: [
        {"data": 4},
        {"data": 1, "fsdp": 4},
        {"data": 1, "tensor": 4},
        {"data": 2, "fsdp": 2},
        {"data": 1, "fsdp": 2, "tensor": 2},
    ],
    8: [
        {"data": 8},
        {"data": 1, "fsdp": 8},
        {"data": 2, "tensor": 4},
        {"data": 2, "fsdp": 2, "tensor": 2},
    ],
}


@pytest.mark.row(13)
@pytest.mark.fault
@pytest.mark.timeout(1800)
def test_ten_steps_on_any_mesh_are_those_of_one_device(quiet, figure):
    devices, found = jax.devices(), {}
    smooth = AdamW(
        peak=1e-3, epsilon=1e-4
    )  # a gradient that is zero but for rounding, as a key's bias has, must not become a step
    for count, meshes in MESHES.items():
        for mesh in meshes:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(jax, "devices", lambda count=count: devices[:count])
                built = built_with(
                    dataclasses.replace(quiet, optim=smooth, mesh=MeshConfig(**mesh))
                )
                state, losses = (
                    (
                        jax.device_put(
                            jax.device_get(found["begun"]),
                            jax.tree.map(lambda leaf: leaf.sharding, built.state),
                        )
                        if found
                        else built.init()[0]
                    ),
                    [],
                )
                found.setdefault("begun", jax.device_get(state))
                for number in range(10):
                    state, said = built.step(state, built.models, built.batch(number, state))
                    losses.append(float(said["loss"]))
                found[count, tuple(mesh)] = losses, jax.device_get(state)
    begun = found.pop("begun")
    alone, wanted = found[1, ("data",)]
    loss = max(
        abs(a / b - 1) for losses, _ in found.values() for a, b in zip(losses, alone, strict=True)
    )
    errors = [
        np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)
        for _, state in found.values()
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True)
    ]
    same = [bits(found[n, ("data",)][1]) == bits(found[n, ("data", "fsdp")][1]) for n in (2, 8)]
    assert loss <= 1e-6 and max(errors) <= 1e-5 and begun is not None
    figure(
        f"{len(found)} meshes of 1, 2, 4, 8 devices, 10 steps: loss within {loss:.1e}, state within"
        f" {max(errors):.1e}; data = fsdp bitwise on {sum(same)} of {len(same)} counts"
    )
