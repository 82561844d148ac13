"""The table of docs/families.md says what is so: each family has its row, those marked as exported
are in the tables that the tests of export run over, and each architecture of GGUF is named. The
Chinese page has the same marks."""

from __future__ import annotations

import re
from pathlib import Path

from test_interop import MODELS

from gptjax.formats import picture_configs
from gptjax.formats.gguf_models import BASES
from gptjax.formats.huggingface_families import FAMILIES

PAGE = Path(__file__).parents[1] / "docs/families.md"
MARK = "✓"
INSIDE = {"gemma3", "qwen3_5"}
"""Of models that hold one of a family, as which they are read."""
PICTURES = set(picture_configs.FAMILIES)
"""Models that read pictures, whose export test_parity_pictures.py tests."""


def rows(page: Path = PAGE) -> dict[str, dict[str, str]]:
    """Each row of the table by its `model_type`, its cells by their columns."""
    lines = page.read_text(encoding="utf-8").split("| `model_type` |")[1].split("\n\n")[0]
    head, _, *rest = ("| `model_type` |" + lines).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    found = {}
    for line in rest:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == len(columns), line
        assert cells[0].strip("`") not in found, f"{cells[0]} has two rows"
        found[cells[0].strip("`")] = dict(zip(columns, cells, strict=True))
    return found


def test_every_family_has_its_row_in_the_order_of_the_alphabet() -> None:
    listed = list(rows())
    assert set(listed) == {*FAMILIES, *INSIDE}
    assert listed == sorted(listed)


def test_what_is_marked_is_tested() -> None:
    exported = {family for family, _ in MODELS.values()} | INSIDE | PICTURES
    for name, row in rows().items():
        marks = {row[column] for column in ("logits", "text", "export")}
        assert marks <= {MARK, "–"}, row
        assert (row["export"] == MARK) == (name in exported), row


def test_the_architectures_of_gguf_are_those_that_are_read() -> None:
    named = {arch for row in rows().values() for arch in re.findall(r"`([\w-]+)`", row["GGUF"])}
    assert named == set(BASES)


def test_the_chinese_page_has_the_same_rows_and_marks() -> None:
    ours, theirs = rows(PAGE.with_name("families.zh.md")), rows()
    assert list(ours) == list(theirs)
    for name, row in theirs.items():
        assert list(ours[name].values())[2:] == list(row.values())[2:], name
