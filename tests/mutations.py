"""Plants small defects, one at a time, and tells which of them a test notices.

    python tests/mutations.py                     all of `planted.ROOMS`, two at a time
    python tests/mutations.py attention moe       those of two rooms
    python tests/mutations.py rope-ntk-base       one
    python tests/mutations.py --keep found.jsonl  again, without those caught by the same test
    python tests/mutations.py --report docs/reports/mutations.md

The tree is copied to a temporary folder, one for each process. There every named test has to pass
first; then the defects are planted one at a time, each is taken away again after its test. A defect
is caught if the test fails by an assertion; one that only crashes is not, since any test would
notice that. Annotations of shapes are not executed, which halves the time: what they find is a
crash.

Read `Bench`, then `verdict`. Compilations are cached in the user's cache folder.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from planted import ROOMS, SURVIVES, Defect

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 240
"""Longest time of one test; a defect that makes a program hang is not caught."""
FOLDERS = ("gptjax", "tests", "configs", "docs", "examples", "benchmarks")
"""What tests read."""
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")


class Result(NamedTuple):
    """What became of a defect."""

    room: str
    defect: Defect
    caught: bool
    how: str
    """The beginning of the failure; otherwise why it does not count."""
    seconds: float


def whole() -> list[tuple[str, Defect]]:
    """All defects, each with its room."""
    return [(room, defect) for room, defects in ROOMS.items() for defect in defects]


def chosen(words: Sequence[str]) -> list[tuple[str, Defect]]:
    """The defects of the rooms, or with the names, that are given; all if none is."""
    known = {*ROOMS, *(defect.name for _, defect in whole())}
    if unknown := [word for word in words if word not in known]:
        raise SystemExit(
            f"{unknown[0]!r} is neither a room nor a defect; rooms: {', '.join(ROOMS)}"
        )
    return [(r, d) for r, d in whole() if not words or r in words or d.name in words]


def planted(source: str, defect: Defect) -> str:
    """The source with the defect.

    Raises:
      ValueError: its piece does not stand exactly once, or what results is not Python.
    """
    count = source.count(defect.piece)
    if count != 1:
        raise ValueError(f"{defect.name}: its piece stands {count} times in {defect.file}")
    changed = source.replace(defect.piece, defect.instead)
    try:
        ast.parse(changed)
    except SyntaxError as error:
        raise ValueError(f"{defect.name}: what is planted is not Python: {error}") from None
    return changed


class Bench:
    """A copy of the tree in which defects are planted one after another."""

    def __init__(self, folder: Path, cache: Path):
        self.tree, self.cache = folder / "tree", cache
        self.report = folder / "report.xml"
        self._changes = 0
        self.tree.mkdir(parents=True)
        for place in ROOT.iterdir():
            if place.is_file():
                shutil.copy(place, self.tree / place.name)
            elif place.name in FOLDERS:
                shutil.copytree(place, self.tree / place.name, ignore=LEFT_OUT)
        conftest = self.tree / "tests/conftest.py"
        conftest.write_text(unhooked(conftest.read_text("utf-8")), "utf-8")

    def run(self, room: str, defect: Defect) -> Result:
        """Plants a defect, runs its test, and takes the defect away."""
        begun = time.monotonic()
        file = self.tree / "gptjax" / defect.file
        sound = file.read_text("utf-8")
        try:
            self._write(file, planted(sound, defect))
            caught, how = verdict(self.pytest(defect.test), self.report)
        finally:
            self._write(file, sound)
        return Result(room, defect, caught, how, time.monotonic() - begun)

    def _write(self, file: Path, source: str) -> None:
        """Changes a file and its time, by which Python knows whether its bytecode is old."""
        self._changes += 1
        stamp = time.time() + 10 * self._changes
        file.write_text(source, "utf-8")
        os.utime(file, (stamp, stamp))

    def pytest(self, *tests: str) -> int:
        """Runs tests in a process of their own, up to the first failure; gives its exit status, −1
        if it hung."""
        self.report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += [f"--junitxml={self.report}", *(f"tests/{test}" for test in tests)]
        own = {"PYTHONPATH": str(self.tree), "XDG_CACHE_HOME": str(self.cache)}
        try:
            return subprocess.run(
                command, cwd=self.tree, env=os.environ | own, capture_output=True, timeout=SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return -1

    def failing(self, tests: Sequence[str]) -> list[str]:
        """The tests that do not pass on the tree as it is, a file's tests at a time."""
        wrong = []
        for name in sorted({test.split("::")[0] for test in tests}):
            some = [test for test in tests if test.startswith(f"{name}::")]
            if self.pytest(*some) != 0:
                wrong += [test for test in some if self.pytest(test) != 0]
        return wrong


def unhooked(conftest: str) -> str:
    """tests/conftest.py without the hook that executes annotations."""
    hooked = '[f"gptjax.{name}" for name in HOOKED]'
    if conftest.count(hooked) != 1:
        raise ValueError(f"tests/conftest.py has no longer {hooked!r}.")
    return conftest.replace(hooked, "[]")


LAWS = (
    *("AssertionError", "assert ", "Failed: DID NOT"),
    "jsonschema.exceptions.ValidationError",  # how a schema says that an answer is wrong
)
"""Beginnings of the failures that count."""


def verdict(status: int, report: Path) -> tuple[bool, str]:
    """Whether a run of pytest caught a defect, and how: by a test that failed in its own body, by
    an assertion or because something was not refused."""
    if status == 0:
        return False, "passed"
    if status < 0 or not report.is_file():
        return False, "hung" if status < 0 else f"no report; pytest ended with {status}"
    found = [
        (part.tag, " ".join(part.get("message", "").split()))
        for case in ET.parse(report).iter("testcase")
        for part in case
        if part.tag in ("failure", "error")
    ]
    for tag, message in found:
        if tag == "failure" and message.startswith(LAWS):
            return True, message[:100]
    return False, f"crashed: {found[0][1][:100]}" if found else f"pytest ended with {status}"


def run_all(
    defects: Sequence[tuple[str, Defect]],
    jobs: int,
    cache: Path,
    *,
    baseline: bool = True,
    file: Path | None = None,
) -> list[Result]:
    """Runs the named tests as they are, then with each defect; says how it goes.

    Args:
      file: where results are kept.
    """
    with tempfile.TemporaryDirectory(prefix="gptjax-mutations-") as folder:
        benches: queue.SimpleQueue[Bench] = queue.SimpleQueue()
        for job in range(jobs):
            benches.put(Bench(Path(folder, f"{job}"), cache / f"{job}"))

        def on_a_bench(task: Callable[..., Any], *given: Any) -> Any:
            bench = benches.get()
            try:
                return task(bench, *given)
            finally:
                benches.put(bench)

        with ThreadPoolExecutor(jobs) as pool:
            tests = sorted({defect.test for _, defect in defects}) if baseline else []
            files = sorted({test.split("::")[0] for test in tests})
            parts = [[t for t in tests if t.startswith(f"{file}::")] for file in files]
            print(f"{len(tests)} tests, as they are", flush=True)
            wrong = pool.map(lambda part: on_a_bench(Bench.failing, part), parts)
            if listed := ", ".join(test for part in wrong for test in part):
                raise SystemExit(f"without any defect these fail or are not there: {listed}")
            begun, results = time.monotonic(), []
            waiting = [pool.submit(on_a_bench, Bench.run, *each) for each in defects]
            for done in as_completed(waiting):
                results.append(done.result())
                keep(file, results[-1])
                say(results, len(defects), time.monotonic() - begun)
    return results


def kept(file: Path | None, defects: Sequence[tuple[str, Defect]]) -> list[Result]:
    """The results in a file of those defects that were caught by the test that they name now."""
    lines = file.read_text("utf-8").splitlines() if file and file.is_file() else []
    found = {line["name"]: line for line in map(json.loads, lines) if line["caught"]}
    return [
        Result(room, defect, caught=True, how=line["how"], seconds=line["seconds"])
        for room, defect in defects
        if (line := found.get(defect.name)) and line["test"] == defect.test
    ]


def keep(file: Path | None, result: Result) -> None:
    """Appends a result to a file, if there is one."""
    if file is not None:
        told = {"name": result.defect.name, "test": result.defect.test, "caught": result.caught}
        line = json.dumps(told | {"how": result.how, "seconds": round(result.seconds, 1)})
        with file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")


def say(results: Sequence[Result], total: int, seconds: float) -> None:
    """Prints a line about the latest result, and when the last one may come."""
    last, left = results[-1], seconds / len(results) * (total - len(results))
    print(
        f"[{len(results)}/{total}] {last.room} {last.defect.name}:"
        f" {'caught' if last.caught else 'SURVIVED'} in {last.seconds:.0f} s ({last.how});"
        f" about {left / 60:.0f} min left",
        flush=True,
    )


# --- the report


def table(results: Sequence[Result]) -> str:
    """Caught of tried by room, in Markdown."""
    lines = ["| room | planted | caught | seconds |", "|---|---|---|---|"]
    for room in [*dict.fromkeys(result.room for result in results), "all"]:
        mine = [result for result in results if room in (result.room, "all")]
        caught = sum(result.caught for result in mine)
        seconds = sum(result.seconds for result in mine)
        lines.append(f"| {room} | {len(mine)} | {caught} | {seconds:,.0f} |")
    return "\n".join(lines)


def survivors(results: Sequence[Result]) -> str:
    """Each defect that no test caught, with the reason where one is known."""
    return "\n".join(
        f"- `{name}` ({result.room}, {result.how}): {SURVIVES.get(name, 'not yet looked at')}"
        for result in results
        if not result.caught
        for name in [result.defect.name]
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="ROOM|NAME")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--report", type=Path, help="put the table between the marks of this page")
    parser.add_argument("--keep", type=Path, help="keep results in this file, and go on from it")
    parser.add_argument("--no-baseline", action="store_true", help="trust that all tests pass")
    told = parser.parse_args()
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    defects = chosen(told.words)
    results = kept(told.keep, defects)
    left = [each for each in defects if each not in [(r.room, r.defect) for r in results]]
    results += run_all(
        left,
        told.jobs,
        home / "gptjax-mutations",
        baseline=not told.no_baseline,
        file=told.keep,
    )
    results.sort(key=lambda result: defects.index((result.room, result.defect)))
    text = f"{table(results)}\n\n{survivors(results) or 'Nothing survived.'}"
    print("\n" + text)
    if told.report:
        publish(told.report, text)
    return 0 if all(r.caught or r.defect.name in SURVIVES for r in results) else 1


def publish(page: Path, text: str) -> None:
    """Puts the results between the marks of a page."""
    begin, end = "<!-- results -->", "<!-- /results -->"
    old = page.read_text("utf-8")
    before, after = old.split(begin)[0], old.split(end)[1]
    command = f"`python tests/mutations.py --report {page}`"
    made = f"{command}, {date.today().isoformat()}:\n\n{text}"
    page.write_text(f"{before}{begin}\n{made}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
