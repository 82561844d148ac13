"""The course: every block of code runs and draws its picture, every page obeys the course's form,
and every Chinese page is of the English one that is there.

    python tests/test_chinese.py     writes the hashes of the English pages into the Chinese ones

`faults` says what is wrong with the text of a page. Each of its rules is shown to fail: `PLANTED`
breaks a sound page in one way after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bilingual import english_of, hash_of, headings_of, out_of_step

COURSE = Path(__file__).parents[1] / "docs/course"
ENGLISH = sorted(p for p in COURSE.glob("*.md") if not p.name.endswith(".zh.md"))
CHAPTERS = [page for page in ENGLISH if page.name[:2].isdigit()]
SECTIONS = {
    "The idea": "思路",
    "The formula": "公式",
    "Run it": "动手运行",
    "Measured": "实测",
    "Exercise": "练习",
    "What the articles get wrong": "常见误解",
    "Where it is in the code": "代码在哪里",
}
"""The sections of a chapter, in this order; others may stand between them."""
WORDS, IDEA, SENTENCE, LINES, BYTES = 2_500, 900, 40, 40, 40_000
"""Longest page, its idea and a sentence, in words; longest block, in lines; largest picture."""
DATE = "2026-12-01"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
readability = runpy.run_path(str(COURSE.parents[1] / ".ci/readability.py"))


def chinese_of(page: Path) -> Path:
    return page.with_name(f"{page.stem}.zh.md")


def python_blocks(text: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == "python"]


def section(text: str, name: str) -> str:
    """What stands under a heading of the second level."""
    return f"\n{text}\n## ".partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(pictures/([^)\s]+)\)", text)


def faults(text: str, chapter: bool = True, sections: bool = True) -> Iterator[str]:
    """Says what breaks the form of a page, in either language.

    Args:
      chapter: it is one; the index has no code.
      sections: they have their English names.
    """
    if len(text.split()) > WORDS:
        yield f"the page has {len(text.split())} words"
    for one in readability["sentences"](text):
        if (count := readability["words"](one)) > SENTENCE:
            yield f"a sentence has {count} words: {one}"
    if not chapter:
        return
    names = SECTIONS if sections else SECTIONS.values()
    if [words for _, words in headings_of(text) if words in names] != list(names):
        yield f"its sections are not {', '.join(names)}"
    idea, _, _, measured, exercise, _, code = (section(text, name) for name in names)
    if len(idea.split()) > IDEA:
        yield f"the idea has {len(idea.split())} words"
    if text.count("$$") < 2:
        yield "no formula"
    if len(python_blocks(text)) != 1:
        yield f"{len(python_blocks(text))} blocks of Python"
    yield from (
        f"a block has {block.count(chr(10))} lines"
        for block in python_blocks(text)
        if block.count("\n") > LINES
    )
    if not pictures(text):
        yield "no picture"
    if DATE not in measured:
        yield "no date of what was measured"
    if "<details>" not in exercise or "</details>" not in exercise:
        yield "no hidden answer"
    if "](../../gptjax/" not in code:
        yield "no link to the code"


def differences(english: str, chinese: str) -> Iterator[str]:
    """Says where a Chinese page does not correspond to its English one."""
    if wrong := out_of_step(chinese, english, "it"):
        yield wrong
    if pictures(english) != pictures(chinese):
        yield "other pictures"
    if len(re.findall("[\u4e00-\u9fff]", chinese)) < 0.6 * len(english.split()):
        yield "hardly any Chinese"


def test_every_page_obeys_the_form_of_the_course() -> None:
    assert ENGLISH, "docs/course has no page"
    wrong = [
        f"{page.name}: {fault}"
        for english in ENGLISH
        for page in (english, chinese_of(english))
        for fault in faults(
            page.read_text(encoding="utf-8"), english in CHAPTERS, sections=page is english
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_every_chinese_page_is_of_the_english_one() -> None:
    wrong = [
        f"{page.name}: {fault}"
        for page in ENGLISH
        for fault in differences(
            page.read_text(encoding="utf-8"), chinese_of(page).read_text(encoding="utf-8")
        )
    ]
    wrong += [
        f"{page.name}: no English page"
        for page in COURSE.glob("*.zh.md")
        if not english_of(page).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_every_link_leads_to_a_file_and_the_index_to_every_chapter() -> None:
    links = {
        page.name: re.findall(
            r"\]\(([^)\s#]+)[^)]*\)", FENCE.sub("", page.read_text(encoding="utf-8"))
        )
        for page in COURSE.glob("*.md")
    }
    wrong = [
        f"{page}: {link}"
        for page, targets in links.items()
        for link in targets
        if not link.startswith(("http://", "https://")) and not (COURSE / link).exists()
    ]
    for index, ends in (("index.md", ""), ("index.zh.md", ".zh")):
        wrong += [
            f"{index} leaves out {chapter.stem}{ends}.md"
            for chapter in CHAPTERS
            if f"{chapter.stem}{ends}.md" not in links[index]
        ]
    assert not wrong, "\n".join(wrong)


def test_every_picture_is_small_named_on_a_page_and_has_colours_for_the_dark() -> None:
    named = {name for page in CHAPTERS for name in pictures(page.read_text(encoding="utf-8"))}
    assert {path.name for path in COURSE.glob("pictures/*")} == named
    for name in sorted(named):
        svg = (COURSE / "pictures" / name).read_bytes()
        assert ET.fromstring(svg).tag.endswith("svg"), name
        assert len(svg) <= BYTES, f"{name} has {len(svg):,} bytes"
        assert b"prefers-color-scheme" in svg, f"{name} has one set of colours"


SHELL = """
import json, os, sys, traceback
answers, sys.stdout = sys.stdout, sys.stderr
import jax, gptjax.model
for folder, code in map(json.loads, iter(sys.stdin.readline, "")):
    os.chdir(folder)
    try:
        error = exec(code, {"__name__": "__main__"}) or ""
    except Exception:
        error = traceback.format_exc()
    print(json.dumps(error), file=answers, flush=True)
"""
"""Runs each block that it reads, in a folder, and answers with what went wrong."""


@contextlib.contextmanager
def opened() -> Iterator[Callable[[Path, str], str]]:
    """A process that has imported jax, set up as a user's is: runs a block in a folder, and says
    what went wrong."""
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_NUMPY_RANK_PROMOTION")
    shell = subprocess.Popen(
        [sys.executable, "-c", SHELL],
        env={name: value for name, value in os.environ.items() if name not in ours},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def pasted(folder: Path, code: str) -> str:
        print(json.dumps([str(folder), code]), file=shell.stdin, flush=True)
        return json.loads(shell.stdout.readline())

    yield pasted
    shell.communicate(timeout=60)


@pytest.fixture(scope="module")
def paste() -> Iterator[Callable[[Path, str], str]]:
    """Runs a block in a folder, and says what went wrong."""
    with opened() as shared:

        def pasted(folder: Path, code: str) -> str:
            if "XLA_FLAGS" not in code:
                return shared(folder, code)
            with opened() as fresh:  # XLA reads its flags once in a process
                return fresh(folder, code)

        yield pasted


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda page: page.stem)
def test_the_block_of_a_chapter_draws_its_pictures(
    chapter: Path, paste: Callable, tmp_path: Path
) -> None:
    text = chapter.read_text(encoding="utf-8")
    assert paste(tmp_path, python_blocks(text)[0]) == ""
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert sorted(drawn) == sorted(pictures(text))
    for name, svg in drawn.items():
        assert ET.fromstring(svg).tag.endswith("svg"), name
        assert len(svg) <= BYTES, f"{name} has {len(svg):,} bytes"


# --- each rule is broken once


SOUND = """# A chapter

## The idea

A word. Another word, and a few more.

## The formula

$$x = 1$$

## Run it

```python
x = 1
```

![x](pictures/x.svg)

## Measured

One, on 2026-12-01.

## Exercise

<details><summary>Answer</summary>One.</details>

## What the articles get wrong

Nothing.

## Where it is in the code

[The package](../../gptjax/__init__.py).
"""
CHINESE = SOUND.replace(
    "# A chapter", f"# 一章\n\n<!-- english: sha256 {hash_of(SOUND)} -->"
).replace(
    "Another word, and a few more.", "这一章什么也没有讲，只有一个公式和一张图，仅供测试之用。"
)
for there, here in SECTIONS.items():
    CHINESE = CHINESE.replace(f"## {there}\n", f"## {here}\n")
LONG = "word " * (SENTENCE + 1)
PLANTED = {
    "a sentence has": ("Nothing.", f"{LONG}."),
    "the idea has": ("A word.", "A word. " * IDEA),
    "the page has": ("Nothing.", "No. " * WORDS),
    "its sections": ("## Measured", "## Figures"),
    "no formula": ("$$x = 1$$", "x = 1"),
    "2 blocks": ("Nothing.", "```python\ny = 1\n```"),
    "a block has": ("x = 1\n```", "x = 1\n" * (LINES + 1) + "```"),
    "no picture": ("![x](pictures/x.svg)", "[x](pictures/x.svg)"),
    "no date": (DATE, "some day"),
    "no hidden answer": ("<details>", ""),
    "no link to the code": ("](../../gptjax/", "](../"),
}
ASTRAY = {
    "it has moved on": ("english: sha256 ", "english: sha256 0"),
    "it has other code": ("x = 1\n```", "x = 2\n```"),
    "it has (2, 'Exercise')": ("## 练习", "### 练习"),
    "other pictures": ("pictures/x.svg", "pictures/y.svg"),
    "hardly any Chinese": ("这一章什么也没有讲，只有一个公式和一张图，仅供测试之用。", "A word."),
}


def test_a_sound_page_has_no_fault() -> None:
    assert not [*faults(SOUND), *faults(CHINESE, sections=False), *differences(SOUND, CHINESE)]


@pytest.mark.parametrize("fault", PLANTED)
def test_what_breaks_the_form_is_noticed(fault: str) -> None:
    piece, instead = PLANTED[fault]
    assert piece in SOUND
    assert any(found.startswith(fault) for found in faults(SOUND.replace(piece, instead)))


@pytest.mark.parametrize("fault", ASTRAY)
def test_a_chinese_page_that_does_not_correspond_is_noticed(fault: str) -> None:
    piece, instead = ASTRAY[fault]
    assert piece in CHINESE
    found = list(differences(SOUND, CHINESE.replace(piece, instead)))
    assert any(one.startswith(fault) for one in found)
