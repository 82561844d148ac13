"""A profile of a few steps: a trace for XProf, TensorBoard and Perfetto, and the operations that
cost most.

Read `Profile`, the hook, then `summary`, which reads the trace.
"""

from __future__ import annotations

import collections
import gzip
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from gptjax.core.config import ConfigError, require
from gptjax.observe.hook import Hook

LARGEST = 2**30
"""Bytes of a trace that are read: Python needs ten times that. A longer one is left to XProf."""


class Profile(Hook):
    """Traces steps `first` to `last`, both included, into the run's `profile` folder.

    Times under the profiler are longer than without; compare them with each other.
    """

    name = "the profile (--profile)"

    def __init__(self, first: int, last: int, top: int = 10):
        self._first, self._last, self._top = first, last, top
        self._folder, self._tracing, self._steps = Path("profile"), False, 0

    def start(self, path: Path, config: Mapping[str, Any], step: int) -> str | None:
        """Says so where the steps are past."""
        self._folder = path / "profile"
        if step >= self._first:
            self._first = 0
            return (
                f"warning: nothing is profiled: the run resumes after step {step}; use later"
                f" steps (--profile {step + 2}:{step + 6})"
            )
        return None

    def begin(self, step: int) -> None:
        """Begins the trace before the first of its steps."""
        if step == self._first:
            jax.block_until_ready(jax.live_arrays())  # the step before may still run
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def finished(self, step: int, values: Mapping[str, float]) -> str | None:
        """Ends the trace after the last of its steps. It is summed up when the run ends, since
        reading it takes many steps' time."""
        return self._stop(step) if self._tracing and step >= self._last else None

    def close(self) -> str | None:
        """Sums the trace up; ends that of a run that ended before."""
        said = [self._stop(self._last)] if self._tracing else []
        if self._steps:
            said += summary(newest(self._folder), self._top, steps=self._steps)
        return "\n".join(said) or None

    def _stop(self, step: int) -> str:
        self._tracing, self._steps = False, step - self._first + 1
        jax.profiler.stop_trace()
        return f"profile of steps {self._first} to {step}: xprof --logdir {self._folder}"


def steps_of(text: str) -> tuple[int, int]:
    """Reads `20:25` as the first and the last step of a profile, and `20` as one step.

    Raises:
      ConfigError: it is neither.
    """
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    wanted = "use FIRST:LAST (--profile 20:25)"
    require(match is not None, f"--profile is {text!r}; {wanted}.")
    first = int(match[1])  # type: ignore[index]
    last = int(match[2] or first)  # type: ignore[index]
    require(1 <= first <= last, f"--profile is {text!r}; steps count from 1 upwards; {wanted}.")
    return first, last


def newest(folder: Path) -> Path:
    """Returns the newest trace under a folder.

    Raises:
      ConfigError: there is none.
    """
    traces = sorted(folder.rglob("*.trace.json.gz"), key=os.path.getmtime)
    if not traces:
        raise ConfigError(f"{folder} has no trace (*.trace.json.gz).")
    return traces[-1]


def summary(trace: Path, top: int, steps: int = 1) -> list[str]:
    """Returns lines on a trace: the share of the time in which the devices did nothing, and the
    costliest kinds of operations.

    Milliseconds are summed over all devices and threads.
    """
    size = trace.stat().st_size
    if 10 * size > LARGEST:  # it unpacks to about ten times that
        return [f"the trace has {size / 2**20:.0f} MiB, too much to sum up here; open it in XProf"]
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    ran = [event for event in events if event.get("ph") == "X" and _operation(event)]
    if not ran:
        return ["the trace has no operations of a device: it ended before the steps were done"]
    spent, calls = collections.Counter(), collections.Counter()
    for event in ran:
        spent[_operation(event)] += event["dur"]
        calls[_operation(event)] += 1
    total = sum(spent.values())
    busy, whole = _busy((event["ts"], event["ts"] + event["dur"]) for event in ran)
    idle = 100 * (1 - busy / whole)
    return [
        f"{whole / 1e3 / steps:.1f} ms a step under the profiler; no operation ran in {idle:.1f} %",
        *(
            f"{us / 1e3 / steps:9.2f} ms a step {100 * us / total:5.1f} %"
            f"  {calls[name] / steps:6.0f} calls  {name}"
            for name, us in spent.most_common(top)
        ),
    ]


def _operation(event: Mapping[str, Any]) -> str:
    """The kind of operation of an event: its name without number; "" where it is none."""
    if "hlo_op" not in event.get("args", {}):
        return ""
    if "onednn" in event["name"]:
        return "oneDNN product"
    return re.sub(r"[.\d]+$", "", event["name"])


def _busy(intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Returns the length of the union of intervals, and that from the first to the last."""
    ordered = sorted(intervals)
    first = reached = ordered[0][0]
    busy = 0.0
    for begin, end in ordered:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy, max(reached - first, 1e-9)
