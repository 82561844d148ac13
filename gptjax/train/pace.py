"""Which process of several holds the others up.

All processes take the same time for a step, since each waits for the slowest. What tells them apart
is how they spend it: the one that holds the others up never waits for them. Read `Pace` (measures
one process), then `step_seconds` and `straggler` (compare all).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np

ALARM = 1.5
"""A process that takes so many times the median of the others holds them up."""


class Pace:
    """Divides the time of a step into the process's own work (layer_inputs, logging) and waiting for
    devices, and with them for the others."""

    def __init__(self) -> None:
        self._begun, self._waited = math.nan, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what is inside as waiting."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def turn(self) -> tuple[float, float]:
        """Ends a step; gives its seconds (own, waited), NaN for one that began with a pause."""
        now = time.monotonic()
        whole, waited = now - self._begun, self._waited
        self._begun, self._waited = now, 0.0
        return whole - waited, waited + 0 * whole

    def pause(self) -> None:
        """Leaves the current step out of account."""
        self._begun = math.nan


def step_seconds(seen: Sequence[np.ndarray]) -> np.ndarray:
    """Seconds that each process would take for a step if it waited for nobody: its own work, and
    what the devices take in any case.

    That is what the process waits that waits least. A device that is slower than the others looks
    like all devices being slow: hosts can't tell which one a collective waits for.

    Args:
      seen: of some steps, for each process [own, waited] in seconds.
    """
    own, waited = np.median(np.asarray(seen), axis=0).T
    return own + waited.min()


def straggler(seconds: np.ndarray) -> tuple[int, float] | None:
    """The slowest process and how many times the median of the others it takes, if that is more
    than `ALARM`."""
    slowest = int(seconds.argmax())
    ratio = (
        float(seconds[slowest] / max(np.median(np.delete(seconds, slowest)), 1e-9))
        if len(seconds) > 1
        else 1.0
    )
    return (slowest, ratio) if ratio > ALARM else None


def compared(
    seen: Sequence[np.ndarray], done: int, told: int
) -> tuple[dict[str, float], str, int] | None:
    """Every so many steps as `seen` holds: what each of several processes takes for one; none at
    other steps, and for a process that is alone.

    Args:
      told: the process that was last said to hold the others up; −1 is none.

    Returns:
      Figures for the log, what to say of a process that holds the others up and is not the one that
      was `told` (or ""), and its number.
    """
    if not seen or len(seen) < seen.maxlen or done % seen.maxlen:
        return None
    seconds = step_seconds(seen)
    slow, times = straggler(seconds) or (-1, 1.0)
    longest = (
        f"{1000 * seconds[slow]:.0f} ms a step over the last {len(seen)}, {times:.1f} times the"
        " median of the others"
    )
    said = (
        ""
        if slow in (-1, told)
        else f"warning: process {slow} holds the others up: it takes {longest}"
    )
    return {f"process_{i}/step_seconds": float(s) for i, s in enumerate(seconds)}, said, slow
