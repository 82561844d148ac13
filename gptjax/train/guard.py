"""What guards a run from outside the loop: signals that ask it to end, and a watchdog that ends it when nothing goes on."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptjax import processes
from gptjax.train.goodput import Clock


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGTERM, SIGHUP or Ctrl-C into a request to finish the step and save; the second ends the process at once.

    The kernel wakes a thread of ours, so the second signal works even while Python waits for a step that never ends.
    """
    asked = threading.Event()
    wake, end = os.pipe()
    os.set_blocking(end, False)

    def listen() -> None:
        received = 0
        while number := os.read(wake, 1):
            if number[0] not in numbers:
                continue
            received += 1
            if received > 1:
                if processes.several():
                    processes.leave(128 + number[0], f"process {processes.index()} was told twice to end, and ended at once")
                os._exit(128 + number[0])
            with contextlib.suppress(OSError, ValueError):  # a closed terminal
                print("\nfinishing this step and saving; once more ends at once", file=sys.stderr, flush=True)

    numbers = {signal.SIGTERM, signal.SIGINT} | ({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else set())  # nohup ignores it
    old = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    woken = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield asked.is_set
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(end)
        listener.join()
        os.close(wake)


@contextlib.contextmanager
def watchdog(clock: Clock, limit: float | None, log: Path) -> Iterator[None]:
    """Ends the process, with status 1, when the clock was not turned for twice `limit` seconds; none never does.

    After `limit` seconds the stacks of all threads go to stderr and to the file `log`. Time in which the process itself was stopped does not
    count.
    """
    if limit is None:
        yield
        return
    over = threading.Event()
    guard = threading.Thread(target=_guard, args=(clock, limit, log, over), name="watchdog", daemon=True)
    guard.start()
    try:
        yield
    finally:
        over.set()
        guard.join()


def _guard(clock: Clock, limit: float, log: Path, over: threading.Event) -> None:
    pause, who = min(1.0, limit / 20), f"process {processes.index()}: " if processes.several() else ""
    last = 2 * limit - min(processes.GRACE if processes.several() else 0.0, limit)  # so long the others need to hear of it
    seen, idle, warned, before = clock.turns, 0.0, False, time.monotonic()
    while not over.wait(pause):
        now = time.monotonic()
        passed, before = min(now - before, 2 * pause), now  # a process that was stopped (Ctrl-Z) finds that much time has passed
        if not clock.watched or clock.turns != seen:
            seen, idle, warned = clock.turns, 0.0, False
            continue
        idle += passed
        if idle >= limit and not warned:
            warned = True
            said = f"{who}no progress for {limit:g} s while {clock.doing}; the stacks of all threads follow. The run ends after {last - limit:g} s more (--watchdog)."
            _dump(2, f"warning: {said}")
            threading.Thread(target=_dump_to, args=(log, said), daemon=True).start()  # the disk may be what hangs
        if idle >= last:
            said = f"error: {who}no progress for {last:g} s while {clock.doing}; ended (--watchdog). The same command goes on from the last checkpoint."
            with contextlib.suppress(OSError):
                os.write(2, f"{said}\n".encode())
            if processes.several():
                processes.leave(1, "")
            os._exit(1)


def _dump_to(log: Path, said: str) -> None:
    with contextlib.suppress(OSError), open(log, "ab", buffering=0) as file:
        _dump(file.fileno(), f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {said}")


def _dump(file: int, said: str) -> None:
    with contextlib.suppress(OSError):
        os.write(file, f"{said}\n".encode())
        faulthandler.dump_traceback(file, all_threads=True)
