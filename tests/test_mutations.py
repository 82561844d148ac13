"""The planted defects of `mutations.py`: each has its place in the source and its test, which the
default run checks; whether the test notices it takes a process each, with `-m mutation`."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
from mutations import ROOT, Bench, Defect, chosen, planted, unhooked, verdict, whole
from planted import ROOMS, SURVIVES


@functools.cache
def functions_of(name: str) -> set[str]:
    file = ROOT / "tests" / name
    body = ast.parse(file.read_text("utf-8")).body if file.is_file() else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_defect_has_its_place_and_its_test():
    """A list that no longer fits the source would plant nothing, and say that all is caught."""
    names = [defect.name for _, defect in whole()]
    assert len(names) == len({*names, *ROOMS}) - len(ROOMS) >= 60
    assert {*SURVIVES} <= {*names}
    wrong = []
    for _, defect in whole():
        try:
            planted((ROOT / "gptjax" / defect.file).read_text("utf-8"), defect)
        except ValueError as error:
            wrong.append(str(error))
        file, function = defect.test.split("[")[0].split("::")
        if function not in functions_of(file):
            wrong.append(f"{defect.name}: {file} has no {function}")
    assert not wrong, "\n".join(wrong)
    assert "HOOKED" in unhooked((ROOT / "tests/conftest.py").read_text("utf-8"))


@pytest.mark.parametrize(
    ("status", "part", "caught"),
    [
        (1, '<failure message="AssertionError: assert 1 == 2"/>', True),
        (1, '<failure message="assert 1 == 2"/>', True),
        (1, '<failure message="Failed: DID NOT RAISE ConfigError"/>', True),
        (1, '<failure message="Failed: Timeout (&gt;240.0s) from pytest-timeout."/>', False),
        (1, '<failure message="TypeError: no such argument"/>', False),
        (1, '<error message="failed on setup with AssertionError"/>', False),
        (2, '<error message="collection failure"/>', False),
        (4, "", False),
        (0, "", False),
        (-1, "", False),
    ],
)
def test_only_a_broken_assertion_catches_a_defect(status, part, caught, tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text(
        f"<testsuites><testsuite><testcase>{part}</testcase></testsuite></testsuites>"
    )
    assert verdict(status, report)[0] == caught


def test_rooms_and_names_choose_defects():
    room, (first, *_) = next(iter(ROOMS.items()))
    assert [d for _, d in chosen([room])] == [*ROOMS[room]] and chosen([first.name]) == [
        (room, first)
    ]
    assert chosen([]) == whole()
    with pytest.raises(SystemExit, match="neither a room nor a defect"):
        chosen(["no such room"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench(folder, folder / "cache")


@pytest.mark.mutation
@pytest.mark.parametrize(("room", "defect"), whole(), ids=[d.name for _, d in whole()])
def test_a_planted_defect_is_caught(room: str, defect: Defect, bench: Bench):
    result = bench.run(room, defect)
    assert result.caught or defect.name in SURVIVES, result.how
