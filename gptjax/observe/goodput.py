"""Where the wall time of a run goes, over all its starts: the clock that the loop turns, and the
record that it leaves.

Read in this order: `PARTS`; `Clock` (what one process spends); `read_goodput` and `account` (what
all of them spent, and what was lost).

`goodput.jsonl` has a line for each stretch between two saves. The last one is written over in place
after every step and four times a second, so that a killed process loses nothing; a line is as long
as a block that a kill can't tear.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE = "goodput.jsonl"
WIDTH = (
    256  # bytes of a line; it divides a page, the unit in which the kernel copies what is written
)

PARTS = {
    "start": (
        "from the start of the process to the first step: imports, reading the checkpoint or making"
        " the first weights"
    ),
    "compile": "compiling the training step",
    "data": "preparing data, and waiting for batches while the devices had nothing to do",
    "rollout": "writing answers to learn from, and judging them",
    "useful": "training",
    "evaluation": "held-out losses, samples and the report, with what they compile",
    "checkpoint": "what training waited for saves; they are written beside it",
    "lost": "training that was done again, because the process ended before a save",
}
"""What time is spent on. Every second of a process belongs to one part, `lost` is taken from
`useful` afterwards, and nothing else is."""


class Clock:
    """Divides this process's time into parts, and keeps the account in a run directory. A context
    that ends the account.

    Args:
      begun: `time.monotonic()` at the start of the process.
    """

    def __init__(self, begun: float):
        self.doing, self.watched, self.turns = "starting", False, 0
        self._part, self._since = "start", begun
        self._seconds = dict.fromkeys(PARTS, 0.0)  # of the whole process
        self._earlier = dict(self._seconds)  # of the stretches before this one
        self._lock, self._over = (
            threading.Lock(),
            threading.Event(),
        )  # a thread keeps the account through long compilations
        self._file: int | None = None
        self._place = self._session = self._first = self._last = 0

    def turn(self, part: str, doing: str, watched: bool = True, *, was: str | None = None) -> None:
        """Switches to another part of the account.

        Args:
          doing: for people: "reading the batch of step 3".
          watched: it should never take longer than the watchdog's limit.
          was: the part that the time since the last turn belongs to after all.
        """
        now = time.monotonic()
        with self._lock:
            self._seconds[was or self._part] += now - self._since
            self._part, self.doing, self.watched, self._since = part, doing, watched, now
            self.turns += 1

    @contextlib.contextmanager
    def during(self, part: str, doing: str, watched: bool = False) -> Iterator[None]:
        """Counts the time inside the context as another part."""
        before = self._part, self.doing, self.watched
        self.turn(part, doing, watched)
        yield
        self.turn(*before)

    def seconds(self) -> dict[str, float]:
        """Returns the seconds this process has spent on each part so far, without parts of no
        time."""
        with self._lock:
            return {part: spent for part, spent in self._spent().items() if spent > 0}

    def __enter__(self) -> Clock:
        def tick() -> None:
            while not self._over.wait(0.25):
                self.write()

        threading.Thread(target=tick, name="clock", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.write()
        with self._lock:
            if self._file is not None:
                os.close(self._file)
            self._file = None

    def keep(self, run_dir: Path, step: int) -> None:
        """Begins to keep the account in the run directory; `step` is where this process takes up
        the run, as far as is known."""
        with contextlib.suppress(OSError):  # a full disk stops no training
            self._file = os.open(run_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._place = os.fstat(self._file).st_size // WIDTH
        self._session = 1 + max((s.session for s in _stretches(run_dir)), default=0)
        self._first = self._last = step
        self.write()

    def resumed(self, step: int) -> None:
        """Notes which checkpoint was whole."""
        self._first = self._last = step

    def reached(self, step: int) -> None:
        """Records a finished step."""
        self._last = step
        self.write()

    def beat(self) -> None:
        """Records progress within the current part."""
        self.turns += 1

    def saving(self) -> None:
        """Begins a new stretch; the steps finished so far are about to be saved."""
        self.write()
        with self._lock:
            self._place, self._first, self._earlier = self._place + 1, self._last, self._spent()
        self.write()

    def write(self) -> None:
        """Writes the account to the run directory."""
        with self._lock, contextlib.suppress(OSError):
            if self._file is not None:
                spent = {
                    part: round(total - self._earlier[part], 3)
                    for part, total in self._spent().items()
                }
                line = json.dumps(
                    {
                        "session": self._session,
                        "first": self._first,
                        "last": self._last,
                        "seconds": {k: v for k, v in spent.items() if v},
                    }
                )
                os.pwrite(self._file, f"{line:<{WIDTH - 1}}\n".encode(), self._place * WIDTH)

    def _spent(self) -> dict[str, float]:
        return self._seconds | {
            self._part: self._seconds[self._part] + time.monotonic() - self._since
        }


# --- the account


class Stretch(NamedTuple):
    """What one process did between two saves."""

    session: int
    first: int
    """Steps that were finished before it."""
    last: int
    """Steps that were finished at its end."""
    seconds: dict[str, float]


class Goodput(NamedTuple):
    """What all processes of a run did together."""

    seconds: dict[str, float]
    """Wall time by part; parts of no time are left out."""
    starts: int
    lost_steps: int
    """Number of finished steps that had to be repeated."""

    @property
    def share(self) -> float:
        """Returns useful time divided by all time."""
        return self.seconds.get("useful", 0.0) / max(sum(self.seconds.values()), 1e-9)


def read_goodput(run_dir: Path) -> Goodput:
    """Returns the account of a run directory; an empty one if there is no record."""
    return account(_stretches(run_dir))


def account(stretches: list[Stretch]) -> Goodput:
    """Adds up stretches in their order. What a process finished beyond the step where the next one
    took up the run is lost."""
    seconds, lost_steps = dict.fromkeys(PARTS, 0.0), 0
    session, standing = None, []  # the stretches whose steps count so far
    for stretch in stretches:
        if stretch.session != session:
            session, before, standing = stretch.session, standing, []
            for old in before:
                end = min(old.last, max(old.first, stretch.first))
                again = old.last - end
                share = again / (old.last - old.first) if again else 0.0
                useful = old.seconds.get("useful", 0.0)
                lost_steps += again
                seconds["lost"] += share * useful
                seconds["useful"] -= share * useful
                standing.append(
                    old._replace(last=end, seconds=old.seconds | {"useful": (1 - share) * useful})
                )
        standing.append(stretch)
        for part, spent in stretch.seconds.items():
            seconds[part] += spent
    return Goodput(
        {part: spent for part, spent in seconds.items() if spent > 5e-4},
        len({s.session for s in stretches}),
        lost_steps,
    )


def _stretches(run_dir: Path) -> list[Stretch]:
    """The lines of the record; what a full disk or a crash of the machine made of a line is left
    out."""
    found, file = [], run_dir / FILE
    with contextlib.suppress(OSError):
        content = file.read_bytes() if file.is_file() else b""
        for start in range(0, len(content), WIDTH):
            with contextlib.suppress(ValueError, TypeError):
                stretch = Stretch(**json.loads(content[start : start + WIDTH]))
                if isinstance(stretch.seconds, dict) and set(stretch.seconds) <= set(PARTS):
                    found.append(stretch)
    return found
