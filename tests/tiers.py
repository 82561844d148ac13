"""Writes tests/deep.txt, the tests that the default suite leaves to `pytest -m deep`.

    python -m pytest -n 2 --dist loadfile -m "not slow and not fault and not mutation" tests \\
        --junitxml report.xml
    python tests/tiers.py report.xml --seconds 5

The default suite should take at most eight minutes on two cores; what takes longest goes to the
second tier, which `.ci/run` runs after it.
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path

DEEP = Path(__file__).with_name("deep.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="JUnit report of a run of all files of tests")
    parser.add_argument("--seconds", type=float, default=5.0, help="shortest test of the list")
    options = parser.parse_args()
    took = {
        f"{Path(case.attrib['file']).name}::{case.attrib['name']}": float(case.attrib["time"])
        for case in ET.parse(options.report).iter("testcase")
    }
    deep = sorted(name for name, seconds in took.items() if seconds >= options.seconds)
    DEEP.write_text("".join(f"{name}\n" for name in deep), encoding="utf-8")
    moved = sum(took[name] for name in deep)
    print(f"{len(deep)} of {len(took):,} tests, {moved:.0f} of {sum(took.values()):.0f} s: {DEEP}")


if __name__ == "__main__":
    main()
