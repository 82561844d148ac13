"""Measuring in turns: each contestant is a process of its own, and they run one after the other
while the rest wait.

The speed of a shared machine drifts, by half within a minute, so a single figure says little. The
result is the median of the ratios of neighbouring turns, with the smallest and the largest. This
file imports only the standard library, because the peer's interpreter reads it too. A worker calls
`serve`; the command calls `in_turns`, `told` and `write`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


def parser(doc: str) -> argparse.ArgumentParser:
    """The flags that all of these commands have."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--peer-python",
        default=sys.executable,
        help="the interpreter that has PyTorch and transformers",
    )
    found.add_argument("--turns", type=int, default=5)
    found.add_argument("--out", type=Path, help="write the figures here, as JSON")
    found.add_argument("--worker", help=argparse.SUPPRESS)
    return found


# --- in a worker


def serve(once: Callable[[], float], **facts: Any) -> None:
    """Says that the worker is ready, then takes a turn for each line that is read, and at the end
    says what memory it took.

    Args:
      once: takes a turn; gives seconds of what is measured.
      facts: about the way, for the record.
    """

    def say(**what):
        return print("@" + json.dumps(what), flush=True)

    say(
        **facts,
        **{
            f"version_{name}": metadata.version(name)
            for name in ("jax", "torch", "transformers")
            if name in sys.modules
        },
    )
    for _ in sys.stdin:
        say(seconds=once())
    say(
        peak_bytes=1024
        * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    )


# --- in the command


class Way(NamedTuple):
    """One way to do what is measured."""

    python: str
    script: Path
    told: Any
    """What the worker is told, as JSON in `--worker`."""
    env: dict[str, str] = {}  # noqa: RUF012 it is never changed


class Found(NamedTuple):
    """What a way took."""

    seconds: list[float]
    facts: dict[str, Any]


class _Worker:
    def __init__(self, way: Way):
        env = {**os.environ, "PYTHONPATH": str(ROOT), **way.env}
        self.process = subprocess.Popen(
            [way.python, str(way.script), "--worker", json.dumps(way.told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.facts = self.hear()

    def hear(self) -> dict[str, Any] | None:
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        return None

    def turn(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()["seconds"]

    def end(self) -> dict[str, Any]:
        self.process.stdin.close()
        last = self.hear() or {}
        self.process.wait()
        return {**self.facts, **last}


def in_turns(ways: dict[str, Way], turns: int, patience: float = 6.0) -> dict[str, Found]:
    """Seconds of each way, a figure a turn; a first turn of each does not count, and one that is
    `patience` times slower in it than the fastest gets no more.

    A way that does not start at all is told of and left out.
    """
    workers, first = {}, {}
    for name, way in ways.items():
        worker = _Worker(way)
        if worker.facts is None:
            print(
                f"{name}: does not run: {worker.process.stderr.read().strip().splitlines()[-1:]}",
                file=sys.stderr,
            )
            continue
        workers[name], first[name] = worker, worker.turn()
    seconds = {name: [] for name in workers}
    fit = [name for name in workers if first[name] <= patience * min(first.values())]
    for _ in range(turns):
        for name in fit:
            seconds[name].append(workers[name].turn())
    return {
        name: Found(seconds[name] or [first[name]], worker.end() | {"turns": len(seconds[name])})
        for name, worker in workers.items()
    }


class Ratio(NamedTuple):
    """How many times as long the one takes as the other."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def ratio(over: Found, under: Found) -> Ratio:
    """The ratios of turns that stand beside each other."""
    count = min(len(over.seconds), len(under.seconds))
    found = sorted(
        a / b for a, b in zip(over.seconds[-count:], under.seconds[-count:], strict=True)
    )
    return Ratio(statistics.median(found), found[0], found[-1])


def best(found: dict[str, Found], names: list[str]) -> str:
    """The way with the least median."""
    return min(
        (name for name in names if name in found),
        key=lambda name: statistics.median(found[name].seconds),
    )


def told(found: dict[str, Found], unit: Callable[[float], str]) -> list[str]:
    """A line a way: its median in a unit, the spread, and the most memory its process held."""
    lines = []
    for name, (seconds, facts) in found.items():
        spread = (
            f"{unit(min(seconds))} to {unit(max(seconds))}, {facts['turns']} turns"
            if facts["turns"]
            else "one turn: too slow for more"
        )
        lines.append(
            f"  {name:30} {unit(statistics.median(seconds)):>12}  ({spread}; peak memory"
            f" {facts.get('peak_bytes', 0) / 2**30:.2f} GiB)"
        )
    return lines


def machine() -> dict[str, Any]:
    """Date, processor and Python."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*:\s*(.*)", cpu)
    wide = [
        flag
        for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if re.search(rf"\b{flag}\b", cpu)
    ]
    versions = {
        package: metadata.version(package) for package in ("jax", "jaxlib", "flax", "optax")
    }
    return {
        "date": dt.date.today().isoformat(),
        "processor": name[1] if name else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": wide,
        "python": platform.python_version(),
        **versions,
    }


def write(out: Path | None, result: Any) -> None:
    """Keeps figures as JSON, with the machine they are of."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        asked = [
            "PY" if before == "--peer-python" else word
            for before, word in zip(["", *sys.argv], sys.argv, strict=False)
        ]  # whose files lie where is no matter
        out.write_text(
            json.dumps(
                {"machine": machine(), "command": " ".join(["python", *asked]), "result": result},
                indent=1,
            )
            + "\n"
        )
