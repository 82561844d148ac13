"""Writes docs/reports/reliability.md, the fault matrix with its measured figures.

    python benchmarks/reliability.py [--reports FOLDER] [--rows FIRST-LAST]

It runs every test marked `@pytest.mark.row(N)`, the long ones too, one file after another, and
prints the figure that each recorded with `record_property("figure", …)`. With `--reports FOLDER` it
keeps pytest's JUnit XML of each file there and does not run a file again whose report exists: so it
can be interrupted, and a file is repeated by deleting its report. Reports of single tests may lie
there too; of a test in several reports the newest counts. With `--rows` only those rows are
measured, and the others stay as they are on the page.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reports" / "reliability.md"

ROWS = {
    "Results that are wrong without a word": {
        1: (
            "a bit flips in a saved checkpoint",
            (
                "that step is refused by file, the one before comes back bitwise; verifying costs ≤"
                " 15 % of a restore"
            ),
        ),
        2: (
            "two trainers on one run directory",
            "the second leaves within 5 s, naming the first; the lock of a dead one is taken over",
        ),
        3: (
            "kill −9 at any time, then the same command",
            "the bits and the log of a run that was never killed",
        ),
        4: (
            "data, seed, batch or tokenizer change under a resumed run",
            "refused with field, old and new value, and the flag that allows it",
        ),
        5: (
            "a token id outside the vocabulary",
            "refused on the host with file and byte; ≤ 0.1 ms for 64 × 1024",
        ),
        6: (
            "a label outside the vocabulary",
            "only padding is left out of the loss, anything else is refused",
        ),
        7: (
            "one batch with a NaN gradient",
            "that step changes nothing and is counted; the next is taken",
        ),
        8: (
            "nothing but NaN",
            "stops after five steps, the last good checkpoint intact, and says how to go back",
        ),
        9: ("one finite gradient of 1e30", "skipped as a spike, the moments stay sane"),
        10: ("a NaN among the validation losses", "never counts as best; the best steps stay"),
        11: (
            "a prompt and its answer longer than the context",
            "ends there and says so; nothing is written past the end",
        ),
        12: (
            "decoding drifts from reading whole",
            "equal at every length: float32 ≤ 1e-6, bfloat16 ≤ 1e-2",
        ),
        13: (
            "sharded against single",
            "equal within rounding; bitwise on the same number of devices",
        ),
        14: (
            "shape, type or name differs from the checkpoint's",
            "refused with a list of leaves; no cast unless --cast",
        ),
        15: ("names that one checkpoint can't tell apart", "refused at save, with both"),
        16: (
            "saving after going back to an older step",
            "later steps are moved aside, new ones are written",
        ),
        17: ("a token file read as another", "header and seal refuse it"),
        18: ("labels of another shape", "refused when the step is traced, with both shapes"),
        19: (
            "sampling settings at their borders and beyond",
            "temperature 0 is greedy, draws follow the distribution, the rest is refused",
        ),
        20: (
            "another length or learning rate at resume",
            "the schedule stays the run's own unless a flag says otherwise",
        ),
    },
    "Work that is lost": {
        21: (
            "SIGTERM or Ctrl-C",
            "the step is finished and saved, exit 0; a second signal ends at once",
        ),
        22: ("SIGTERM to one of several processes", "all save the same step"),
        23: (
            "the program ends right after a save",
            "the step is on disk, or the exit status says that it is not",
        ),
        24: (
            "the disk is full while saving",
            "steps before stay whole, the space comes back, path and MB are named",
        ),
        25: ("the disk is full for logs alone", "training goes on, one warning a minute"),
        26: (
            "a run directory that can't be written",
            "refused at the start, before anything is compiled",
        ),
        27: (
            "the newest step cut, emptied, zeroed or gone",
            "the one before is used, with one line of reason",
        ),
        28: ("foreign names among the steps", "ignored with a note"),
        29: (
            "leftovers of a process killed while saving",
            "removed at the next start; disk use stays bounded",
        ),
        30: ("kill −9 while old steps are deleted", "a step is whole or gone"),
        31: (
            "power cut",
            "all is synced before the name appears; what is empty is not taken for a step",
        ),
        32: (
            "retention at its borders",
            "keeping none is refused; after the first save there is always a whole step",
        ),
        33: (
            "resuming on another number of devices",
            "the same data, the same losses to rounding, and it says: not bitwise",
        ),
        34: (
            "a checkpoint of another version",
            "every released format is read, an unknown one refused",
        ),
        35: ("the clock jumps", "steps are ordered by number"),
    },
    "Hangs and stragglers": {
        36: ("one process of several fails", "all end, the first cause is shown"),
        37: ("one process of several is killed", "the others end, the checkpoint is intact"),
        38: ("one process of several stalls", "stacks are dumped, then all end"),
        39: ("a process dies inside a common save", "the step is not committed"),
        40: ("reading data stalls", "an error that says so, never a silent wait"),
        41: ("a record can't be read", "named by file and record; a quota may pass over some"),
        42: ("the coordinator is absent", "an error with its address"),
        43: ("a straggler", "step times of each process, and an alarm"),
        44: ("where the time of a run went", "parts that add up to the wall time, across restarts"),
    },
    "Bad inputs": {
        45: ("odd lines of JSONL", "read, counted or refused by line, as documented"),
        46: ("one document or line of a gigabyte", "split or refused in ≤ 300 MB"),
        47: ("a gzip bomb, half a gzip file", "stops at a bound within 100 MB; the file is named"),
        48: ("a data file cut short while training", "an error that names it, no SIGBUS"),
        49: ("a damaged or exchanged tokenizer", "refused by its hash"),
        50: (
            "typos and wrong types in a config",
            "refused by key within a second, the nearest right one named",
        ),
        51: (
            "impossible shapes, too little memory",
            "refused with numbers and flags before anything is allocated; on the way too",
        ),
        52: ("any Unicode text through a tokenizer", "comes back as it was"),
    },
    "Security": {
        53: ("code in a loaded file", "is never executed"),
        54: ("a hostile safetensors header", "refused in bounded time and memory"),
        55: ("paths that lead out of a folder", "refused"),
        56: ("special tokens in a user's text", "are plain text"),
        57: ("a missing or wrong API key", "401 on every route"),
        58: ("a server with default settings", "listens on this machine alone"),
        59: ("secrets and prompts in logs", "absent; line breaks escaped"),
        60: ("personal data in training text", "scrubbed by a stage of its own"),
    },
    "Serving": {
        61: ("a client that leaves", "its slot is free at once"),
        62: ("many long requests that time out", "the next is answered"),
        63: ("overload", "a bounded queue, then 429"),
        64: ("slow and malformed requests", "closed, others are served meanwhile"),
        65: ("wrong values in a request", "400 with the field"),
        66: ("an error inside a model step", "only its requests fail"),
        67: ("SIGTERM while serving", "drains, then ends"),
        68: ("the same seed beside other requests", "the same tokens"),
        69: ("hours of mixed load", "no drift of memory or latency"),
        70: ("prompts of every length", "a bounded number of compilations"),
        71: ("a damaged compile cache", "a warning, and it is compiled again"),
    },
}
"""Section → row → (what goes wrong, what must happen)."""

LATER: dict[int, str] = {}
"""Why a row may have no test yet; any other row without one is marked as missing."""

MISSED = {
    "test_verifying_costs_at_most_15_percent_of_a_restore": (
        "a restore keeps both of two cores busy, so that hashing beside it is not free"
    ),
}
"""Test → why what it asks can't be met; any other failure is a defect."""


class Proof(NamedTuple):
    """What one test said."""

    name: str
    outcome: str
    """`passed`, `failed` or `skipped: why`."""
    figure: str | None


def proofs(reports: list[Path]) -> dict[int, list[Proof]]:
    """Reads JUnit reports: row → what its tests said, each in the last report that has it."""
    found: dict[int, list[Proof]] = defaultdict(list)
    cases = {
        (case.get("classname"), case.get("name")): case
        for report in reports
        for case in ET.parse(report).iter("testcase")
    }
    for case in cases.values():
        told = [(p.get("name"), p.get("value", "")) for p in case.iter("property")]
        skipped, broken = (
            case.find("skipped"),
            case.find("failure") is not None or case.find("error") is not None,
        )
        outcome = (
            "failed"
            if broken
            else "passed"
            if skipped is None
            else f"skipped: {skipped.get('message', '')}"
        )
        figures = "; ".join(value for name, value in told if name == "figure") or None
        for row in {int(value) for name, value in told if name == "row"}:
            found[row].append(
                Proof(
                    case.get("name", ""),
                    outcome,
                    None if broken and case.get("name") not in MISSED else figures,
                )
            )
    return found


def table(found: dict[int, list[Proof]]) -> list[str]:
    """The matrix as lines of Markdown."""
    lines = []
    for section, rows in ROWS.items():
        lines += [
            f"## {section}",
            "",
            "| | when this happens | this must | measured |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {row} | {fault} | {must} | {_measured(found.get(row, []), row)} |"
            for row, (fault, must) in rows.items()
        ]
        lines.append("")
    return lines


def _measured(tests: list[Proof], row: int) -> str:
    if not tests:
        return f"*{LATER.get(row, 'no test yet')}*"
    ran = [test for test in tests if not test.outcome.startswith("skipped")]
    failed = [test.name for test in ran if test.outcome == "failed"]
    skipped = sorted({test.outcome for test in tests if test.outcome.startswith("skipped")})
    told = [f"{name} ({MISSED[name]})" if name in MISSED else name for name in failed]
    verdict = (
        f"**fails: {', '.join(told)}**"
        if failed
        else f"{len(ran)} of {len(ran)} tests pass"
        if ran
        else "**not run**"
    )
    figures = _gathered([test for test in ran if test.figure])
    return "; ".join([*figures, verdict, *skipped]).replace("|", "\\|").replace("\n", " ")


def _gathered(tests: list[Proof]) -> list[str]:
    """The figures, once each; of a test with many parameters the first two and how many more there
    are."""
    by_test: dict[str, list[str]] = defaultdict(list)
    for test in tests:
        by_test[test.name.split("[")[0]].append(test.figure or "")
    shown = {name: list(dict.fromkeys(figures)) for name, figures in by_test.items()}
    return [
        figure
        for figures in shown.values()
        for figure in (
            figures
            if len(figures) <= 4
            else [*figures[:2], f"and {len(figures) - 2} more like these"]
        )
    ]


def machine() -> str:
    """Processor, Python and the packages that decide."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("jax", "orbax-checkpoint", "numpy")
    )
    return (
        f"{len(os.sched_getaffinity(0))} cores of {(names or [platform.processor()])[0]}, Python"
        f" {platform.python_version()}, {versions}"
    )


def run(tests: Path, report: Path) -> int:
    """Runs the tests of one file that prove rows, with the optimised programs that users run; gives
    pytest's status."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "row",
        f"--junitxml={report.absolute()}",
        str(tests),
    ]
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "GPTJAX_TEST_DEADLINES": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reports", type=Path, help="folder of JUnit XML; what is in it is not run again"
    )
    parser.add_argument("--rows", help="measure only these, FIRST-LAST")
    options = parser.parse_args()
    first, _, last = (options.rows or "1-999").partition("-")
    wanted, status = range(int(first), int(last or first) + 1), 0
    with tempfile.TemporaryDirectory() as folder:
        kept = options.reports or Path(folder)
        for tests in sorted((ROOT / "tests").glob("test_*.py")):
            marked = re.findall(r"mark\.row\((\d+)\)", tests.read_text())
            report = kept / f"{tests.stem}.xml"
            if any(int(row) in wanted for row in marked) and not report.is_file():
                status = run(tests, report) or status  # one that ends the interpreter leaves none
        reports = sorted(kept.glob("*.xml"), key=lambda report: report.stat().st_mtime)
        found = proofs(reports)
        suites = [next(ET.parse(report).iter("testsuite")) for report in reports]
        date = max(suite.get("timestamp", "")[:10] for suite in suites)
    measured = f"Measured on {date}: {machine()}."
    text = (
        whole_page(found, measured) if options.rows is None else _renewed(found, wanted, measured)
    )
    PAGE.write_text(text, encoding="utf-8")
    print(
        f"{len(found)} of {sum(map(len, ROWS.values()))} rows have tests; wrote"
        f" {PAGE.relative_to(ROOT)}"
    )
    return status


def whole_page(found: dict[int, list[Proof]], measured: str) -> str:
    """The page, made anew."""
    head = [
        "# Reliability",
        "",
        (
            "What happens when things go wrong: each row is a fault, what must happen, and what was"
            " measured when a test made it happen."
        ),
        (
            "This page is re-made by `python benchmarks/reliability.py`, which runs those tests,"
            " the long ones too."
        ),
        "",
        measured,
        "",
    ]
    return "\n".join([*head, *table(found)]).rstrip() + "\n"


def _renewed(found: dict[int, list[Proof]], wanted: range, measured: str) -> str:
    """The page that stands, with these rows anew."""
    fresh = {line.split("|")[1]: line for line in table(found) if line.startswith("| ")}
    note = f"Rows {wanted.start} to {wanted.stop - 1}: {measured[0].lower()}{measured[1:]}"
    lines = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        row = line.split("|")[1] if line.startswith("| ") else ""
        again = row.strip().isdigit() and int(row) in wanted
        if not line.startswith(note.split(":")[0]):
            lines.append(fresh[row] if again else line)
        if line.startswith("Measured on"):
            lines.append(note)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
