"""Writes tests/deep.txt and tests/deepest.txt, the tests that the default suite leaves to
`pytest -m deep` and `pytest -m deepest`.

    python -m pytest -n 2 --dist loadfile -m "not slow and not fault and not mutation" tests \\
        --junitxml report.xml
    python tests/tiers.py report.xml

The default suite should take at most eight minutes on two cores, and all of `.ci/run` forty; it
runs the second tier and leaves out the third, which is run before a release.
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, nargs="+", help="JUnit reports of all tests")
    parser.add_argument("--seconds", type=float, default=3.0, help="shortest of the second tier")
    parser.add_argument("--longest", type=float, default=5.0, help="shortest of the third tier")
    options = parser.parse_args()
    took = {
        f"{Path(case.attrib['file']).name}::{case.attrib['name']}": float(case.attrib["time"])
        for report in options.report
        for case in ET.parse(report).iter("testcase")
    }
    tiers = {
        "deep": [name for name, s in took.items() if options.seconds <= s < options.longest],
        "deepest": [name for name, s in took.items() if s >= options.longest],
    }
    for tier, names in tiers.items():
        path = Path(__file__).with_name(f"{tier}.txt")
        path.write_text("".join(f"{name}\n" for name in sorted(names)), encoding="utf-8")
        sums = f"{sum(took[name] for name in names):.0f} of {sum(took.values()):.0f} s"
        print(f"{len(names)} of {len(took):,} tests, {sums}: {path}")


if __name__ == "__main__":
    main()
