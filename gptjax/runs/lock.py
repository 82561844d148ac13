"""One trainer per run directory: the lock, cleaning up after a trainer that died, and finishing a
save before the process ends."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 (its exit hook must come before ours)
import contextlib
import fcntl
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gptjax.core import processes
from gptjax.core.config import ConfigError

PATIENCE = 5.0
"""Seconds for which one of several processes, after a failure, waits for a pending save, which
needs the others too."""


class Lock:
    """Holds `path/lock`, which names process, host and time. The kernel releases it when the
    process dies, however it dies.

    Of several processes that train together the first holds it for all.

    Not a generator: if one is still open when Python exits, its last lines run after modules are
    gone.
    """

    def __init__(self, path: Path, finish: Callable[[float | None], Any]):
        self._path, self._finish = path, finish
        self._file: int | None = None
        self.held = False

    def __enter__(self) -> None:
        if processes.first():
            self._take()
        self.held = True

    def _take(self) -> None:
        file = _acquire(self._path)
        try:
            clean(self._path / "checkpoints")
        except OSError as error:
            os.close(file)
            raise _unwritable(self._path, error) from None
        self._file = file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._finish(PATIENCE if error is not None and processes.several() else None)
        except OSError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the user should read the first error first
        finally:
            file, self._file, self.held = self._file, None, False
            if file is not None:
                os.close(file)


def _acquire(path: Path) -> int:
    try:
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        file = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(
            file,
            f"process {os.getpid()} on {socket.gethostname()} since"
            f" {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(),
            0,
        )
        # The folder may have another owner than the lock.
        probe = path / "checkpoints" / f".saving-probe-{os.getpid()}"
        probe.mkdir(exist_ok=True)
        probe.rmdir()
    except BlockingIOError:
        holder = os.pread(file, 1000, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise ConfigError(
            f"{path} is being trained by {holder}; wait for it, stop it, or choose another"
            " directory."
        ) from None
    except OSError as error:
        os.close(file)
        raise _unwritable(path, error) from None
    return file


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} can't be written or locked ({error.strerror}); make it writable or choose another"
        " directory."
    )


@contextlib.contextmanager
def shared(file: Path) -> Iterator[None]:
    """Keeps a trainer from deleting the step of this manifest while it is read. Where files can't
    be locked, it is read without."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            fcntl.flock(stack.enter_context(open(file, "rb")), fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def unread(file: Path) -> Iterator[bool]:
    """Yields whether no process reads the step of this manifest, and keeps readers out."""
    with open(file, "rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:
            yield True
        else:
            yield True


def clean(checkpoints: Path) -> None:
    """Removes what a dead trainer left half written or half deleted, and restores a step that it
    was about to replace."""
    for place in checkpoints.glob(".replaced-*"):
        final = checkpoints / place.name.removeprefix(".replaced-")
        if not final.exists():
            place.rename(final)
    for pattern in (".saving-*", ".trash-*", ".replaced-*"):
        for place in checkpoints.glob(pattern):
            shutil.rmtree(place, ignore_errors=True)


def finish_at_exit(finish: Callable[[], Exception | None]) -> bool:
    """Makes the end of the process call `finish`, and fail if that returns an error; returns False
    if this Python cannot.

    It matters only for a lock that is never left: leaving it waits anyway. Once the main thread has
    ended, Python refuses new work for thread pools, which Orbax needs to the end; `atexit` and the
    joining of threads come too late. Hooks run last in, first out, so this one must be registered
    after that of concurrent.futures. Python 3.12.0 to 3.12.2 refuse even new threads there (CPython
    issue 113964): the save is lost then, and the exit status says so.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is not None and finish not in _finishing:
        register(finish)
        atexit.register(_exit, finish)
        _finishing.append(finish)
    return register is not None


_finishing: list[Callable[[], Exception | None]] = []


def _exit(finish: Callable[[], Exception | None]) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    if (failure := finish()) is not None:
        print(failure, file=sys.stderr, flush=True)
        os._exit(1)  # nothing else can change the status here
