"""Programs that a model wrote, in processes of their own. Read `run_python`, then `run_arithmetic`.

This keeps mistakes of a model from harming the run: loops, floods of output, forks, deleted files.
It is no security boundary against someone who means harm: a program reads whatever the user may
read, and the system's kernel and Python itself are within its reach.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from gptjax.core.config import require
from gptjax.rewards import arithmetic, confine

OUTPUT = 1 << 16
"""Bytes that a program may print."""
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""Nothing of the user's. Sets come in the same order in every run."""


class Limits(NamedTuple):
    """What a program may use."""

    seconds: int = 2
    """Of CPU time."""
    wall_seconds: float = 10.0
    memory: int = 512
    """MiB of address space."""


def run_python(program: str, limits: Limits) -> str | None:
    """Returns what a Python program printed; `None` if it failed, or was ended by a limit.

    It has an empty environment, no input, no site packages and a folder of its own. On Linux it
    can start no process or thread, open no socket and change no file.
    """
    with tempfile.TemporaryDirectory(prefix="gptjax-") as folder, tempfile.TemporaryFile() as out:
        path = Path(folder) / "program.py"
        path.write_bytes(program.encode("utf-8", "surrogatepass"))
        numbers = (limits.seconds, limits.memory << 20, OUTPUT)
        process = subprocess.Popen(
            [*_python(confine), *map(str, numbers), str(path)],
            cwd=folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it may have left behind
            process.wait()
        out.seek(0)
        return out.read(OUTPUT).decode("utf-8", "replace") if process.returncode == 0 else None


@functools.cache
def require_confined() -> None:
    """Tries the sandbox out.

    Raises:
      ConfigError: a program does not run in it, or can start processes.
    """
    said = run_python(
        "import os\ntry:\n    os.fork()\nexcept OSError:\n    print('alone')\n", Limits()
    )
    require(
        said == "alone\n",
        "Python programs can't be confined here"
        f" ({'they do not run' if said is None else 'they can start processes'}); use Linux, or an"
        " ordinary user instead of root, or a reward Program with language arithmetic.",
    )


def run_arithmetic(texts: Sequence[str]) -> list[Fraction | None]:
    """Returns the value of each expression, all evaluated by one process; see
    `arithmetic.calculate`.

    An expression with which the process ends has no value, and another process goes on after it.
    """
    values: list[Fraction | None] = []
    while len(values) < len(texts):
        rest = list(texts[len(values) :])
        done = subprocess.run(
            _python(arithmetic),
            input=json.dumps(rest).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )
        lines = [line for line in done.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
        written = map(json.loads, lines)
        values += [None if value is None else Fraction(value) for value in written]
        values += [None] * (len(lines) < len(rest))
    return values


@functools.cache
def require_arithmetic() -> None:
    """Tries `run_arithmetic` out.

    Raises:
      ConfigError: it does not run.
    """
    require(
        run_arithmetic(["1+1"]) == [2],
        f"{sys.executable} can't run {arithmetic.__file__}; repair the installation.",
    )


def _python(module: object) -> list[str]:
    return [sys.executable, *confine.ARGUMENTS, str(getattr(module, "__file__", ""))]
