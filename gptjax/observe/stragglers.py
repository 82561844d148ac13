"""Finds the process that slows the others down.

All processes take the same time for a step, since each waits for the slowest. What differs is how
they spend it: the one that holds the others up never waits. Read `Pace`, which measures one
process, then `Stragglers`, which compares all.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np

from gptjax.observe.log import Log

ALARM = 1.5
"""A process slower than this multiple of the others' median is a straggler."""


class Pace:
    """Divides the time of a step into the process's own work (reading, logging) and waiting for
    devices, and with them for the others."""

    def __init__(self) -> None:
        self._begun, self._waited = math.nan, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the context as waiting."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def turn(self) -> tuple[float, float]:
        """Ends a step; returns its seconds (own, waited), NaN for one that began with a pause."""
        now = time.monotonic()
        whole, waited = now - self._begun, self._waited
        self._begun, self._waited = now, 0.0
        return whole - waited, waited + 0 * whole

    def pause(self) -> None:
        """Excludes the current step from the measurement."""
        self._begun = math.nan


class Stragglers:
    """Logs the seconds that each of several processes takes for a step, and warns of a straggler.

    Args:
      seen: seconds [process (own, waited)] of the last steps; it grows during the run.
    """

    def __init__(self, log: Log, seen: Sequence[np.ndarray]):
        self._log, self._seen, self._warned = log, seen, -1

    def compare(self, done: int) -> None:
        """Compares the processes, each time that as many steps as `seen` holds are finished."""
        seen = self._seen
        if not seen or len(seen) < seen.maxlen or done % seen.maxlen:
            return
        seconds = step_seconds(seen)
        self._log.record(
            done, {f"process_{i}/step_seconds": float(s) for i, s in enumerate(seconds)}
        )
        slowest, times = straggler(seconds) or (-1, 1.0)
        if slowest not in (-1, self._warned):
            self._log.say(
                f"warning: process {slowest} holds the others up: it takes"
                f" {1000 * seconds[slowest]:.0f} ms a step over the last {len(seen)},"
                f" {times:.1f} times the median of the others"
            )
        self._warned = slowest


def step_seconds(seen: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the seconds that each process would take for a step if it never waited for another:
    its own work, and what the devices take in any case.

    The latter is what the process waits that waits least. A device that is slower than the others
    looks like all devices being slow: hosts cannot know which one a collective waits for.

    Args:
      seen: of some steps, [process (own, waited)] in seconds.
    """
    own, waited = np.median(np.asarray(seen), axis=0).T
    return own + waited.min()


def straggler(seconds: np.ndarray) -> tuple[int, float] | None:
    """Returns the slowest process and its multiple of the others' median; `None` if that is at most
    `ALARM`."""
    if len(seconds) == 1:
        return None
    slowest = int(seconds.argmax())
    median = max(np.median(np.delete(seconds, slowest)), 1e-9)
    ratio = float(seconds[slowest] / median)
    return (slowest, ratio) if ratio > ALARM else None
