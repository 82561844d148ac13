"""What guards a run from outside the loop: signals that ask it to end (`abrupt`, `interruptible`,
`unless`), and a watchdog that ends it when it makes no progress."""

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
from typing import TypeVar

from gptjax.core import processes
from gptjax.observe.goodput import Clock

T = TypeVar("T")


@contextlib.contextmanager
def abrupt() -> Iterator[None]:
    """Lets SIGTERM, SIGHUP and Ctrl-C end a process that has nothing to save yet: by a
    KeyboardInterrupt, and at once where that is not heeded.

    A compilation, for one, takes no notice of exceptions. The exit status is 128 and the number of
    the signal.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number, _said(number))

    def heed(number: int, over: threading.Event) -> None:
        if not over.wait(0.5):
            if processes.several():
                processes.leave(128 + number, _said(number))
            with contextlib.suppress(OSError):
                os.write(2, f"{_said(number)}\n".encode())
            os._exit(128 + number)

    with _listening(interrupt, heed):
        yield


def _said(number: int) -> str:
    return (
        f"interrupted by {signal.Signals(number).name} before the first step; nothing is lost, the"
        " same command starts again"
    )


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGTERM, SIGHUP or Ctrl-C into a request to finish the step and save; the
    second ends the process at once."""
    asked, received = threading.Event(), []

    def heed(number: int, _: threading.Event) -> None:
        received.append(number)
        if len(received) > 1:
            if processes.several():
                processes.leave(
                    128 + number,
                    f"process {processes.index()} was asked twice to end, and ended at once",
                )
            os._exit(128 + number)
        with contextlib.suppress(OSError, ValueError):  # a closed terminal
            print(
                "\nfinishing this step and saving; once more ends at once",
                file=sys.stderr,
                flush=True,
            )

    with _listening(lambda *_: asked.set(), heed):
        yield asked.is_set


@contextlib.contextmanager
def _listening(
    handler: Callable[[int, object], None], heed: Callable[[int, threading.Event], None]
) -> Iterator[None]:
    """Sets the handler of the signals, and calls `heed` with each signal's number and the event of
    leaving this context.

    The kernel wakes a thread of ours for that, so it works even while Python waits for a step that
    never ends.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # Python gives signals to the main thread alone, with whoever runs it
        yield
        return
    over = threading.Event()
    wake, end = os.pipe()
    os.set_blocking(end, False)
    numbers = {signal.SIGTERM, signal.SIGINT} | (
        {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else set()
    )  # nohup ignores it

    def listen() -> None:
        while number := os.read(wake, 1):
            if number[0] in numbers:
                heed(number[0], over)

    old = {number: signal.signal(number, handler) for number in numbers}
    woken = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, before in old.items():
            signal.signal(number, before)
        over.set()
        os.close(end)
        listener.join()
        os.close(wake)


def unless(asked: Callable[[], bool], work: Callable[[], T]) -> T | None:
    """Returns what `work` comes to; None if the process is `asked` to end meanwhile and the work
    does not stop by itself within half a second.

    Nothing can stop a compilation. It is left behind in a thread of its own, which ends with the
    process. Of several processes none leaves anything behind, since all of them must do the same.
    """
    if processes.several():
        return work()
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    worker = threading.Thread(target=run, name="unless", daemon=True)
    worker.start()
    while worker.is_alive() and not asked():
        worker.join(0.1)
    worker.join(0.5)
    if failed:
        raise failed[0]
    return found[0] if found else None


@contextlib.contextmanager
def watchdog(clock: Clock, limit: float | None, log: Path) -> Iterator[None]:
    """Ends the process, with status 1, when the clock was not turned for twice `limit` seconds;
    none never does.

    After `limit` seconds the stacks of all threads go to stderr and to the file `log`. Time in
    which the process itself was stopped does not count.
    """
    if limit is None:
        yield
        return
    over = threading.Event()
    guard = threading.Thread(
        target=_guard, args=(clock, limit, log, over), name="watchdog", daemon=True
    )
    guard.start()
    try:
        yield
    finally:
        over.set()
        guard.join()


def _guard(clock: Clock, limit: float, log: Path, over: threading.Event) -> None:
    pause, who = (
        min(1.0, limit / 20),
        f"process {processes.index()}: " if processes.several() else "",
    )
    last = 2 * limit - min(
        processes.GRACE if processes.several() else 0.0, limit
    )  # so long the others need to hear of it
    seen, idle, warned, before = clock.turns, 0.0, False, time.monotonic()
    while not over.wait(pause):
        now = time.monotonic()
        passed, before = (
            min(now - before, 2 * pause),
            now,
        )  # a process that was stopped (Ctrl-Z) finds that much time has passed
        if not clock.watched or clock.turns != seen:
            seen, idle, warned = clock.turns, 0.0, False
            continue
        idle += passed
        if idle >= limit and not warned:
            warned = True
            said = (
                f"{who}no progress for {limit:g} s while {clock.doing}; the stacks of all threads"
                f" follow. The run ends after {last - limit:g} s more (--watchdog)."
            )
            _dump(2, f"warning: {said}")
            threading.Thread(
                target=_dump_to, args=(log, said), daemon=True
            ).start()  # the disk may be what hangs
        if idle >= last:
            said = (
                f"error: {who}no progress for {last:g} s while {clock.doing}; ended (--watchdog)."
                " The same command resumes from the last checkpoint."
            )
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
