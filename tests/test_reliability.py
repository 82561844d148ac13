"""The page of the fault matrix says what the tests said, no more."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("reliability", ROOT / "benchmarks/reliability.py")
reliability = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reliability)

REPORT = """<testsuites><testsuite timestamp="2026-01-02T03:04:05">
<testcase name="test_a"><properties>
  <property name="row" value="1"/><property name="figure" value="200 of 200"/>
</properties></testcase>
<testcase name="test_b"><properties>
  <property name="row" value="1"/><property name="row" value="5"/>
</properties></testcase>
<testcase name="test_c"><properties>
  <property name="row" value="7"/><property name="figure" value="a lie"/>
</properties><failure message="x"/></testcase>
<testcase name="test_d"><properties>
  <property name="row" value="24"/>
</properties><skipped message="needs root"/></testcase>
<testcase name="test_e"/>
{many}</testsuite></testsuites>"""


def test_a_row_shows_the_figures_of_its_tests_and_what_failed_or_was_skipped(tmp_path):
    case = (
        '<testcase name="test_f[{0}]"><properties><property name="row" value="19"/><property'
        ' name="figure" value="p = {0}"/></properties></testcase>'
    )
    (tmp_path / "report.xml").write_text(
        REPORT.format(many="".join(case.format(i) for i in range(7)))
    )
    proofs = reliability.proofs([tmp_path / "report.xml"])
    rows = {
        int(line.split("|")[1]): line.split("|")[4].strip()
        for line in reliability.table(proofs)
        if re.match(r"\| \d", line)
    }
    assert list(rows) == list(range(1, 72)), "every row of the matrix stands there once"
    assert rows[1] == "200 of 200; 2 of 2 tests pass" and rows[5] == "1 of 1 tests pass"
    assert rows[7] == "**fails: test_c**"
    assert rows[24] == "**not run**; skipped: needs root"
    assert rows[19] == "p = 0; p = 1; and 5 more like these; 7 of 7 tests pass"
    assert rows[60] == rows[2] == "*no test yet*"


def test_every_row_that_a_test_names_is_one_of_the_matrix():
    known = {row for rows in reliability.ROWS.values() for row in rows}
    named = {
        int(n)
        for path in (ROOT / "tests").glob("test_*.py")
        for n in re.findall(r"mark\.row\((\d+)\)", path.read_text())
    }
    assert len(named) > 25 and named <= known


def test_the_page_has_every_row_and_no_failure_without_its_reason():
    page = (ROOT / "docs/reports/reliability.md").read_text()
    for rows in reliability.ROWS.values():
        for row, (fault, must) in rows.items():
            line = next(
                (
                    line
                    for line in page.splitlines()
                    if line.startswith(f"| {row} | {fault} | {must} |")
                ),
                None,
            )
            assert line, "run python benchmarks/reliability.py"
            for name, why in reliability.MISSED.items():
                line = line.replace(f"**fails: {name} ({why})**", "")
            assert "**" not in line
    assert len(re.findall(r"\d+ of \d+ tests pass", page)) > 25
    assert re.search(r"Measured on 20\d\d-\d\d-\d\d: ", page)
