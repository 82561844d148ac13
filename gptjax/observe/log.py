"""The log of a run: lines on the terminal, `metrics.jsonl`, `log.txt` and TensorBoard's files.

Read `Log`, which writes them, then `read_metrics` and `history`, which read metrics.jsonl.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

FLUSH_EVERY = 10.0  # seconds; what TensorBoard may lose in a crash
WARN_EVERY = 60.0  # seconds
WAITING = 10_000  # lines kept in memory while the disk is full


class Log:
    """Writes `metrics.jsonl`, `log.txt` and TensorBoard's event files in a run directory, and
    speaks to the terminal.

    A full disk never stops training: lines wait in memory until there is room, and a warning is
    printed at most once a minute. Every line is with the operating system when the call returns, so
    a killed process loses none.

    Args:
      run_dir: made if absent.
      resume_step: the step whose state was restored; all that was logged after it is forgotten, so
        that each step stands once. None starts afresh.
      terminal: where `say` and `progress` print; `sys.stdout` if not given.
      clock: gives seconds.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        resume_step: int | None,
        terminal: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        run_dir = Path(run_dir)
        self._terminal = sys.stdout if terminal is None else terminal
        self._clock, self._warned, self._flushed = clock, -math.inf, clock()
        self._metrics, self._text, self._rollouts = (
            _Appended(run_dir / name) for name in ("metrics.jsonl", "log.txt", "rollouts.jsonl")
        )
        self._events: _Events | None = _Events(
            run_dir / "tensorboard", 0 if resume_step is None else resume_step + 1
        )
        self._in_place = False
        with self._forgiving():
            run_dir.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "rollouts.jsonl"):
                _forget(run_dir / name, -1 if resume_step is None else resume_step)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def record(self, step: int, values: dict[str, float | int]) -> None:
        """Logs the metrics of a step: a line of metrics.jsonl and TensorBoard scalars. NaN and
        infinity become null in the line."""
        values = {name: v.item() if hasattr(v, "item") else v for name, v in values.items()}
        line = {"step": int(step)} | {
            name: v if math.isfinite(v) else None for name, v in values.items()
        }
        self._append(self._metrics, json.dumps(line, ensure_ascii=False))
        self._event(step, lambda events: events.scalars(step, values))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Logs `text`, which the model generated from `prompt`. Prints nothing."""
        self._append(
            self._metrics,
            json.dumps(
                {"step": int(step), "sample": {"prompt": prompt, "text": text}}, ensure_ascii=False
            ),
        )
        self.text(step, "sample", prompt + text)

    def rollout(self, step: int, answers: Iterable[Mapping[str, Any]]) -> None:
        """Logs answers that `step` learns from: a line of rollouts.jsonl each. Prints nothing."""
        lines = (json.dumps({"step": int(step), **one}, ensure_ascii=False) for one in answers)
        self._append(self._rollouts, "\n".join(lines))

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a text, such as the config, in TensorBoard, in a fixed-width font."""
        self._event(step, lambda events: events.text(step, name, text))

    def say(self, text: str) -> None:
        """Prints whole lines and appends them to log.txt."""
        self._print(text)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        for line in text.split("\n"):
            self._append(self._text, f"{stamp}  {_visible(line)}".rstrip())

    def progress(self, line: str, keep: bool = False) -> None:
        """Prints a progress line.

        On a terminal the next one replaces it, unless `keep`, which an evaluation asks for.
        Elsewhere each is a whole line.
        """
        if keep or not _is_terminal(self._terminal):
            self.say(line)
            return
        cut = shutil.get_terminal_size((100, 24)).columns - 1
        self._write("\r" + _visible(line)[:cut] + "\x1b[K")
        self._in_place = True

    def flush(self) -> None:
        """Flushes everything to disk. Call it before a checkpoint, so that a crash loses nothing
        that a resumed run will not repeat."""
        self._flushed = self._clock()
        for retry in (
            lambda: self._metrics.append(""),
            lambda: self._text.append(""),
            self._rollouts.retry,
            lambda: self._events and self._events.flush(),
        ):
            with self._forgiving():
                retry()

    def close(self) -> None:
        """Flushes and ends the progress line. May be called twice."""
        self.flush()
        if self._in_place:
            self._write("\n")
            self._in_place = False
        for file in (self._metrics, self._text, self._rollouts, self._events):
            if file is not None:
                with self._forgiving():
                    file.close()

    def _append(self, file: _Appended, line: str) -> None:
        with self._forgiving():
            file.append(line + "\n")

    def _event(self, step: int, write: Callable[[_Events], None]) -> None:
        if self._events is None:
            return
        try:
            with self._forgiving():
                write(self._events)
        except ImportError:
            self._events = None
            self.say(
                "TensorBoard files are not written, since tensorboardX is not installed; pip"
                " install tensorboardX mends it."
            )
        if self._clock() - self._flushed >= FLUSH_EVERY:
            self.flush()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._clock() - self._warned >= WARN_EVERY:
                self._warned = self._clock()
                self._print(
                    f"warning: logging fails ({error}); training continues, and the last {WAITING}"
                    " lines are kept until there is room."
                )

    def _print(self, text: str) -> None:
        erase = "\r\x1b[K" if self._in_place else ""
        self._write(erase + "\n".join(_visible(line) for line in text.split("\n")) + "\n")
        self._in_place = False

    def _write(self, text: str) -> None:
        encoding = getattr(self._terminal, "encoding", None) or "utf-8"
        with contextlib.suppress(
            OSError, ValueError
        ):  # a closed pipe or terminal is no reason to stop training
            self._terminal.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._terminal.flush()


class Silent(Log):
    """A log that discards everything, for all processes but the first."""

    def __init__(self) -> None:
        super().__init__(os.devnull, resume_step=None)

    def _append(self, file: _Appended, line: str) -> None: ...

    def _event(self, step: int, write: Callable[[_Events], None]) -> None: ...

    def _write(self, text: str) -> None: ...

    def flush(self) -> None:
        """Does nothing."""


def _is_terminal(terminal: Any) -> bool:
    return bool(getattr(terminal, "isatty", lambda: False)())


def _visible(line: str) -> str:
    """Control characters, which a model may write and a terminal would obey, as escapes."""
    return re.sub(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", lambda m: f"\\x{ord(m[0]):02x}", line)


# --- files


class _Appended:
    """A file that grows by whole lines. What can't be written now waits and is tried again with the
    next line."""

    def __init__(self, path: Path):
        self._path, self._file = path, None
        self._waiting: collections.deque[str] = collections.deque(maxlen=WAITING)

    def append(self, line: str) -> None:
        self._waiting.append(line)
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 it stays open
        data = "".join(self._waiting).encode(
            "utf-8", "backslashreplace"
        )  # a lone surrogate becomes a JSON escape
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            self._file.truncate(end)
            raise
        self._waiting.clear()

    def retry(self) -> None:
        if self._waiting:
            self.append("")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Events:
    """TensorBoard event files, by tensorboardX's formats but in the calling thread.

    Its `SummaryWriter` writes in a thread, which a full disk kills; after ten more events the full
    queue then blocks training for ever.
    """

    def __init__(self, folder: Path, purge_step: int):
        self._folder, self._purge_step = folder, purge_step
        self._file: Any = None

    def scalars(self, step: int, values: dict[str, float | int]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        self._write(
            step,
            summary=Summary(
                value=[Summary.Value(tag=_tag(n), simple_value=float(v)) for n, v in values.items()]
            ),
        )

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboardX.summary import text as summary

        shown = "\n".join(
            "    " + line for line in text.split("\n")
        )  # TensorBoard reads Markdown: four spaces mean verbatim
        self._write(step, summary=summary(name, shown.encode("utf-8", "backslashreplace").decode()))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        try:
            if self._file is None:
                self._open()
            self._file.write(
                Event(wall_time=time.time(), step=int(step), **content).SerializeToString()
            )
        except OSError:
            # its end may be torn; TensorBoard reads up to there and continues with the next file
            self.close()
            raise

    def _open(self) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()  # TensorBoard reads the files in the order of their names
        self._file = RecordWriter(str(self._folder / f"events.out.tfevents.{now // 10**9}.{now}"))
        self._file.write(
            Event(wall_time=now / 1e9, file_version="brain.Event:2").SerializeToString()
        )
        if self._purge_step is not None:  # older files' events from this step on are superseded
            start = Event(
                wall_time=now / 1e9,
                step=self._purge_step,
                session_log=SessionLog(status=SessionLog.START),
            )
            self._file.write(start.SerializeToString())
        self._file.flush()
        self._purge_step = None

    def flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _tag(name: str) -> str:
    """`loss` → `train/loss`, `validation_loss` → `validation/loss`; a name that has a slash
    stays."""
    if "/" in name:
        return name
    return name.replace("_", "/", 1) if name.startswith("validation_") else f"train/{name}"


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl; none if there is no such file. Torn lines are left
    out."""
    return [line for _, line in _lines(Path(run_dir) / "metrics.jsonl")]


def history(path: Path, step: int | None) -> tuple[int, bool]:
    """What the log says of a step that was restored: how many up to it were skipped in a row, and
    whether it was evaluated."""
    lines = read_metrics(path) if step else []
    steps = [line for line in lines if "gradient_norm" in line]
    in_a_row = next(
        (n for n, line in enumerate(reversed(steps)) if not line.get("skipped")), len(steps)
    )
    return in_a_row, any(line["step"] == step and any(map(is_evaluated, line)) for line in lines)


def is_evaluated(name: str) -> bool:
    """Whether a metric comes from an evaluation: of held-out text or of a task."""
    return name.startswith(("validation_", "tasks/"))


def validation_losses(path: Path, step: int) -> list[float]:
    """Returns the validation losses of a run up to a step; what was not finite is infinite."""
    lines = [line for line in read_metrics(path) if line["step"] <= step]
    known = (line["validation_loss"] for line in lines if "validation_loss" in line)
    return [math.inf if loss is None else loss for loss in known]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for raw in path.read_bytes().split(b"\n") if path.is_file() else []:
        with contextlib.suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield raw + b"\n", line


def _forget(path: Path, last_step: int) -> None:
    """Removes torn lines and those of steps after `last_step`; the file is replaced at once or not
    at all."""
    kept = b"".join(raw for raw, line in _lines(path) if line["step"] <= last_step)
    if path.is_file() and path.stat().st_size != len(kept):
        partial = path.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                file.write(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
