"""Changes that the `gptjax` command makes to its own process. `import gptjax` makes none of them.

| change | why | where |
|---|---|---|
| freed memory is kept | page faults were a third of a small training step | `keep_freed_memory` |
| garbage is collected rarely | collections took 0.4 s of the start | `console` in main.py |
| the end skips Python's teardown | freeing JAX's objects takes up to a second | `leave_quickly` |
| XLA flags, compile cache | oneDNN doubles the speed of bfloat16 steps | `core/backend.py` |

docs/reports/performance.md has the measurements, with dates and machines.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import time


def _start_time() -> float:
    """When this program started, on the monotonic clock: the CPU time spent so far ago, or now in
    a process with a past, such as a notebook.

    The age of the process says less: a shell may have become this program by `exec`.
    """
    spent = time.process_time()
    return time.monotonic() - (spent if spent < 60 else 0)


STARTED = _start_time()

GARBAGE_THRESHOLD = 100_000
"""New objects between two collections of garbage. Imports and tracing make a million objects that
stay; Python's default is to look through the new ones every 700."""


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    XLA frees the buffers of a step and allocates them again in the next one. Returned in between,
    they cost a page fault for each 4 KiB.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: take large blocks from the heap too
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not shrink the heap


class ExitStatus:
    """The status with which `leave_quickly` ends the process."""

    value = 1


def leave_quickly() -> ExitStatus:
    """Registers an exit that skips Python's teardown, and returns the status that it will use.

    Call it before jax is imported: exit handlers run in reverse order, so all others run first.
    """
    status = ExitStatus()

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status.value)

    atexit.register(leave)
    return status
