"""A Chinese page stays in step with the English one that it was made from: the same headings in the
same order, the same code, and the hash of the English text in its first lines.

    python tests/test_chinese.py     writes the hashes, once what changed has been translated, and
                                     leads links to the Chinese pages that there are

That holds for docs/course too, whose pages `test_course.py` compares.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bilingual import english_of, hash_of, led_to_chinese, out_of_step, stamp

ROOT = Path(__file__).parents[1]
CHINESE = sorted([*ROOT.glob("*.zh.md"), *(ROOT / "docs").glob("*.zh.md")])
COURSE = sorted((ROOT / "docs/course").glob("*.zh.md"))


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_chinese_page_is_in_step_with_its_english_page(page: Path) -> None:
    english = english_of(page)
    assert english.exists(), "rename or remove the Chinese page"
    original = english.read_text(encoding="utf-8")
    wrong = out_of_step(page.read_text("utf-8"), original, english.relative_to(ROOT).as_posix())
    assert not wrong, wrong


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_chinese_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", page.read_text(encoding="utf-8"))
    inside = [target for target in targets if ":" not in target]
    assert not [target for target in inside if not (page.parent / target).exists()]
    to_english = [t for t in inside if not t.endswith(".zh.md") and t != english_of(page).name]
    chinese = [t for t in to_english if (page.parent / t.replace(".md", ".zh.md")).exists()]
    assert not [t for t in chinese if t.endswith(".md")], "there is a Chinese page to link to"


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_in_two_languages_leads_to_the_other(page: Path) -> None:
    english = english_of(page)
    assert f"]({english.name})" in page.read_text(encoding="utf-8")
    assert f"]({page.name})" in english.read_text(encoding="utf-8")


ENGLISH = "# A\n\n## B\n\n```bash\n# no heading\nls\n```\n\n```\nout\n```\n"
ENGLISH += "\n### C `--flag`\n\n| a |\n\n- i\n"
SOUND = ENGLISH.replace("A", f"甲\n<!-- english: sha256 {hash_of(ENGLISH)} -->").replace("B", "乙")


@pytest.mark.parametrize(
    ("ours", "theirs", "wrong"),
    [
        ("### C", "## C", "levels"),
        ("\n### C `--flag`\n", "", "translate all"),
        ("--flag", "--flags", "only one page has ['--flag', '--flags']"),
        ("ls", "ls -l", "other code"),
        ("```\nout\n```\n", "", "other code"),
        ("| a |", "| a |\n| a |", "1 rows of tables and this page 2"),
        ("- i\n", "", "1 items of lists and this page 0"),
        ("- i\n", "<<<<<<< HEAD\n- i\n=======\n- i\n>>>>>>> theirs\n", "marks of a merge"),
        ("sha256 ", "sha256 0", "moved on"),
        (f"<!-- english: sha256 {hash_of(ENGLISH)} -->", "", "moved on"),
    ],
)
def test_a_page_that_is_out_of_step_is_told_what_to_do(ours: str, theirs: str, wrong: str) -> None:
    assert not out_of_step(SOUND, ENGLISH, "page.md")
    assert wrong in out_of_step(SOUND.replace(ours, theirs), ENGLISH, "page.md")
    assert "moved on" in out_of_step(SOUND, ENGLISH + "More.\n", "page.md")


def test_a_link_is_led_to_the_chinese_page_and_its_heading(tmp_path: Path) -> None:
    for name, text in {
        "one.zh.md": "[one](one.md) [two](two.md) [B](two.md#the-b) [three](three.md) [x](http://a.md)",
        "one.md": "",
        "two.md": "# Two\n## The b\n",
        "two.zh.md": "# 二\n## 乙，`b`\n",
        "three.md": "",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert led_to_chinese(tmp_path / "one.zh.md") == (
        "[one](one.md) [two](two.zh.md) [B](two.zh.md#乙b) [three](three.md) [x](http://a.md)"
    )


if __name__ == "__main__":
    stamp(CHINESE + COURSE)
