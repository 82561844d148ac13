"""Laws of what a run shows and keeps."""

from __future__ import annotations

import io
import json
import math
import random
import resource
import sys
import warnings
from pathlib import Path

import pytest

from gptjax.observe import progress
from gptjax.observe.log import Log, read_metrics
from gptjax.observe.progress import Smoothed, Throughput, smooth


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def log_steps(run_dir: Path, steps, resume_step=None) -> None:
    with Log(run_dir, resume_step=resume_step, terminal=io.StringIO()) as log:
        for step in steps:
            log.record(step, {"tokens": 10 * step, "loss": 1 / step})


def steps_in(run_dir: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run_dir)]


def events_in(run_dir: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own imports
        reader = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator",
            reason="tensorboard is not installed",
        )
    events = reader.EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return events


# --- metrics.jsonl ---


def test_what_was_recorded_is_read_back_exactly(tmp_path):
    values = {"tokens": 7, "loss": 0.1 + 0.2, "learning_rate": 1e-300}
    with Log(tmp_path, resume_step=None, terminal=io.StringIO()) as log:
        log.record(3, values)
        assert read_metrics(tmp_path) == [
            {"step": 3, **values}
        ]  # before it is closed: a killed run keeps its lines
        log.sample(3, "a\n\u2028", "b\x85\ud800 <é>")
    assert read_metrics(tmp_path)[1] == {
        "step": 3,
        "sample": {"prompt": "a\n\u2028", "text": "b\x85\ud800 <é>"},
    }


def test_after_a_crash_each_step_stands_once(tmp_path):
    log_steps(tmp_path, range(1, 9))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 9, "lo')
    assert steps_in(tmp_path) == list(range(1, 9))
    log_steps(tmp_path, range(6, 11), resume_step=5)
    assert steps_in(tmp_path) == list(range(1, 11))
    assert all(line["loss"] == 1 / line["step"] for line in read_metrics(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} <= {"metrics.jsonl", "log.txt", "tensorboard"}


def test_a_torn_line_of_the_step_itself_does_not_spoil_the_next(tmp_path):
    log_steps(tmp_path, [1, 2])
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[:-1] + b"\n\0\0\0")
    log_steps(tmp_path, [3], resume_step=2)
    assert steps_in(tmp_path) == [1, 2, 3]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(whole)


def test_a_fresh_start_forgets_the_old_run(tmp_path):
    log_steps(tmp_path, [1, 2, 3])
    log_steps(tmp_path, [1])
    assert steps_in(tmp_path) == [1]


def test_every_line_is_strict_json_even_for_nan(tmp_path):
    with Log(tmp_path, resume_step=None, terminal=io.StringIO()) as log:
        log.record(1, {"loss": math.nan, "gradient_norm": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "gradient_norm": None,
    }


def test_a_run_without_lines_reads_as_empty(tmp_path):
    assert read_metrics(tmp_path) == []
    log_steps(tmp_path, [])
    assert read_metrics(tmp_path) == []


# --- TensorBoard ---


def test_tensorboard_opens_what_was_recorded(tmp_path):
    with Log(tmp_path, resume_step=None, terminal=io.StringIO()) as log:
        log.text(0, "config", "a: 1\nb: 2")
        for step in (1, 2):
            log.record(step, {"loss": 2.0 / step, "validation_loss": 3.0, "moe/balance": math.nan})
        log.sample(2, "def ", "f(x): \ud800")
    events = events_in(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "validation/loss", "moe/balance"}
    text = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    assert text == {
        "config/text_summary": "    a: 1\n    b: 2",
        "sample/text_summary": "    def f(x): \\ud800",
    }


def test_tensorboard_shows_each_step_once_after_a_crash(tmp_path):
    log_steps(tmp_path, range(1, 9))
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.write_bytes(old.read_bytes()[:-5])
    log_steps(tmp_path, range(6, 11), resume_step=5)
    assert [e.step for e in events_in(tmp_path).Scalars("train/loss")] == list(range(1, 11))


def test_tensorboard_can_read_while_the_run_goes_on(tmp_path):
    now = [0.0]
    with Log(tmp_path, resume_step=None, terminal=io.StringIO(), clock=lambda: now[0]) as log:
        for step in range(1, 4):
            now[0] += 5
            log.record(step, {"loss": 1.0})
        assert len(events_in(tmp_path).Scalars("train/loss")) >= 2


def test_a_run_without_tensorboardx_goes_on_and_says_so_once(tmp_path, monkeypatch):
    for name in {"tensorboardX", *(n for n in sys.modules if n.startswith("tensorboardX"))}:
        monkeypatch.setitem(sys.modules, name, None)
    terminal = io.StringIO()
    with Log(tmp_path, resume_step=None, terminal=terminal) as log:
        log.record(1, {"loss": 1.0})
        log.record(2, {"loss": 1.0})
    assert terminal.getvalue().count("tensorboardX") == 2  # one line, which names it twice
    assert steps_in(tmp_path) == [1, 2]


# --- a full disk ---


def test_a_full_disk_delays_lines_and_warns_once_a_minute(tmp_path):
    now, terminal = [0.0], io.StringIO()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Log(tmp_path, resume_step=None, terminal=terminal, clock=lambda: now[0]) as log:
        log.record(1, {"loss": 1.0})
        try:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (60, limits[1])
            )  # files end in the middle of a line
            for step in range(2, 122):
                now[0] += 1
                log.record(step, {"loss": 1.0})
                log.say("x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert 2 <= terminal.getvalue().count("warning: ") <= 3
        log.record(122, {"loss": 1.0})
    assert steps_in(tmp_path) == list(range(1, 123))
    assert (tmp_path / "log.txt").read_text().count("x" * 100 + "\n") == 120
    assert 122 in [e.step for e in events_in(tmp_path).Scalars("train/loss")]


def test_a_run_directory_that_cant_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    terminal = io.StringIO()
    with Log(tmp_path / "file" / "run", resume_step=4, terminal=terminal) as log:
        log.record(5, {"loss": 1.0})
    assert terminal.getvalue().count("warning: ") == 1


# --- the terminal ---


def test_a_terminal_line_is_rewritten_in_place_and_kept_at_an_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    with Log(tmp_path, resume_step=None, terminal=terminal) as log:
        log.progress("step 1 " + "." * 50)
        log.progress("step 2")
        log.progress("step 3 " + "." * 50, keep=True)
        log.progress("step 4")
        log.say("a\nb")
    screen = terminal.getvalue()
    assert (
        screen == f"\rstep 1 {'.' * 12}\x1b[K\rstep 2\x1b[K\r\x1b[Kstep 3 {'.' * 50}\n\rstep"
        " 4\x1b[K\r\x1b[Ka\nb\n"
    )
    assert [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "step 3 " + "." * 50,
        "a",
        "b",
    ]


def test_elsewhere_each_call_is_one_line(tmp_path):
    terminal = io.StringIO()
    with Log(tmp_path, resume_step=None, terminal=terminal) as log:
        log.progress("step 1")
        log.progress("step 2", keep=True)
    assert terminal.getvalue() == "step 1\nstep 2\n"


def test_a_model_cannot_command_the_terminal_nor_forge_a_log_line(tmp_path):
    terminal = io.StringIO()
    with Log(tmp_path, resume_step=None, terminal=terminal) as log:
        log.say("\x1b[2J\ta\rb\x9b")
    assert terminal.getvalue() == "\\x1b[2J\ta\\x0db\\x9b\n"
    assert len((tmp_path / "log.txt").read_bytes().splitlines()) == 1


def test_a_terminal_that_cant_print_or_is_gone_stops_nothing(tmp_path):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    gone = io.StringIO()
    gone.close()
    for terminal in (ascii_only, gone):
        with Log(tmp_path, resume_step=None, terminal=terminal) as log:
            log.say("é \ud800")
    assert ascii_only.buffer.getvalue() == b"\\xe9 \\ud800\n"


# --- numbers as text ---


def test_a_progress_line_fits_in_100_columns():
    usual = {
        "loss": 2.412,
        "smoothed": 2.45,
        "learning_rate": 9.9e-4,
        "gradient_norm": 0.71,
        "tokens_per_second": 41234.0,
        "eta": 92.0,
    }
    assert (
        progress.progress_line(250, 2000, **usual)
        == "step  250/2000  12%  loss 2.412 (2.450)  lr 9.9e-04  grad 0.71  41.2k tok/s  mfu n/a "
        " eta 1m 32s"
    )
    for step, steps, mfu in [(1, 10, None), (2000, 2000, 0.412), (50_000, 600_000, 0.4)]:
        assert len(progress.progress_line(step, steps, mfu=mfu, **usual)) <= 100


def test_a_progress_line_shows_non_finite_values_as_such():
    line = progress.progress_line(
        1,
        2,
        loss=math.nan,
        smoothed=math.inf,
        gradient_norm=-math.inf,
        tokens_per_second=math.nan,
        eta=math.inf,
    )
    assert line == "step 1/2  50%  loss nan (inf)  grad -inf  nan tok/s  mfu n/a  eta ?"


def test_human_is_short_and_within_half_a_percent():
    assert [progress.human(n) for n in (0, 950, 41234, 1.24e6, 999_999)] == [
        "0",
        "950",
        "41.2k",
        "1.24M",
        "1.00M",
    ]
    draw = random.Random(0)
    for n in (round(10 ** draw.uniform(0, 17)) for _ in range(500)):
        text = progress.human(n)
        power = " kMGTP".find(text[-1]) if text[-1].isalpha() else 0
        assert abs(float(text.rstrip("kMGTP")) * 1000**power - n) <= 0.00501 * n
        assert len(text) <= 5
    assert progress.human(math.nan) == "nan"


def test_durations_never_say_sixty_and_never_shrink():
    assert [progress.duration(s) for s in (0.004, 8.4, 42, 92, 7380, 273_600)] == [
        "4ms",
        "8.4s",
        "42s",
        "1m 32s",
        "2h 03m",
        "3d 04h",
    ]
    unit = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}
    last = 0.0
    for seconds in (1.013**i / 100 for i in range(1300)):
        words = [
            (float(w.rstrip("mshd")), w.lstrip("0123456789."))
            for w in progress.duration(seconds).split()
        ]
        value = sum(n * unit[u] for n, u in words)
        assert value >= last and abs(value - seconds) <= 0.06 * seconds
        assert all(n < {"m": 60, "s": 60, "h": 24}.get(u, 1e9) for n, u in words)
        last = value


# --- running figures ---


def test_a_smoothed_constant_is_that_constant_from_the_first_value():
    average = Smoothed()
    assert math.isnan(average.value)
    for _ in range(5):
        average = smooth(average, 3.0, 0.98)
        assert average.value == pytest.approx(3.0)


def test_a_nan_leaves_the_smoothed_value_as_it_is():
    average = smooth(Smoothed(), 2.0, 0.9)
    for bad in (math.nan, math.inf, None):
        assert smooth(average, bad, 0.9) == average


def test_throughput_leaves_out_the_pauses_and_the_eta_counts_them():
    speed, now = Throughput().at(0.0, 0, 0), 0.0
    assert speed.tokens_per_second is None and speed.eta(5) is None
    for step in range(1, 41):
        now += 0.5
        speed = speed.at(now, step, 100 * step)
        if step % 10 == 0:
            now += 7.0
            speed = speed.pause("evaluation", 7.0)
    assert speed.tokens_per_second == pytest.approx(200)
    assert speed.eta(20) == pytest.approx(10)
    assert speed.eta(20, evaluation=2, checkpoint=1) == pytest.approx(24)


def test_throughput_forgets_what_is_older_than_its_window_and_stays_small():
    speed, now, tokens = Throughput(window=10.0), 0.0, 0
    for step, (seconds, more) in enumerate([(0.01, 1)] * 2000 + [(0.01, 5)] * 1100):
        now, tokens = now + seconds, tokens + more
        speed = speed.at(now, step, tokens)
        assert len(speed.marks) <= 60
    assert speed.tokens_per_second == pytest.approx(500, rel=0.01)


def test_memory_is_a_plausible_number_of_bytes():
    assert 4 * 2**20 < progress.memory() < 2**45
