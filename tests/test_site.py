"""The pages can be read and found: short sentences, one word for one thing, each page in the
navigation of the site."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
readability = runpy.run_path(str(ROOT / ".ci/readability.py"))


def test_pages_are_short_and_have_one_word_for_one_thing() -> None:
    assert not readability["defects"]()


def test_each_term_of_the_glossary_has_one_row_with_a_chinese_word() -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    terms = readability["glossary"]()
    assert len(terms) == len(rows) >= 60
    assert list(terms) == sorted(terms, key=str.lower)
    for term, (chinese, meaning) in terms.items():
        assert re.search("[\u4e00-\u9fff]", chinese) or chinese == term, term
        assert meaning.endswith("."), term


def test_the_chinese_glossary_has_the_same_words() -> None:
    texts = [(ROOT / f"docs/glossary{end}.md").read_text("utf-8") for end in ("", ".zh")]
    row = re.compile(r"^\| \[?([^|\]]+)[^|]* \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)
    rows = [row.findall(text)[1:] for text in texts]
    assert len(rows[0]) > 60 and rows[0] == rows[1]


@pytest.mark.parametrize(
    ("text", "table", "term"),
    [
        ("An optimiser.", "VARIANTS", "optimizer"),
        ("optimisers, `optimiser`", "VARIANTS", None),
        ("省下 KV 缓存的内存。", "CHINESE_VARIANTS", "KV cache"),
        ("省下键值缓存的内存，`KV 缓存`。", "CHINESE_VARIANTS", None),
    ],
)
def test_a_second_word_for_a_thing_is_found(text: str, table: str, term: str | None) -> None:
    found = [of for _, of in readability["other_words"](text, readability[table])]
    assert found == ([term] if term else [])


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("One two three. Four five.", 3),
        ("One `a b c d` three.\n\n## A heading of many words\n\nFour.", 3),
        ("| one two | three |\n| four | five six seven |", 3),
        ("- one two\n- three four five", 3),
        ("    code code\nOne two three.", 3),
        ("```\n" + "code " * 50 + "\n```\none [two](a/b.md) three", 3),
        ("word " * 41, 41),
    ],
)
def test_sentences_are_counted_as_a_reader_reads_them(text: str, longest: int) -> None:
    sentences, words = readability["sentences"], readability["words"]
    assert max(words(sentence) for sentence in sentences(text)) == longest


def test_each_page_is_in_the_navigation_of_the_site() -> None:
    site = (ROOT / ".ci/mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"(?<= )([\w/.-]+\.md)$", site, re.MULTILINE)
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if ".zh." not in page.name}
    here = {name for name in listed if not name.startswith("repository/")}
    assert len(listed) == len(set(listed)) and here == pages
    for name in set(listed) - here:
        assert (ROOT / name.removeprefix("repository/")).exists()


def test_each_title_of_the_navigation_has_a_chinese_one() -> None:
    site = (ROOT / ".ci/mkdocs.yml").read_text(encoding="utf-8")
    translated = site.partition("nav_translations:\n")[2].partition("\n  - ")[0]
    chinese = dict(re.findall(r"^ +([\w ]+): (.*[\u4e00-\u9fff].*)$", translated, re.MULTILINE))
    titles = re.findall(r"^ *- ([\w ]+):", site.partition("\nnav:\n")[2], re.MULTILINE)
    hooks = (ROOT / ".ci/site_hooks.py").read_text(encoding="utf-8")
    reference = re.findall(r'^    "([\w ]+)": \(', hooks, re.MULTILINE)
    assert titles and reference
    assert chinese.keys() == {*titles, *reference}


def test_extras_that_pages_name_are_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    for page in ("README.md", "docs/install.md", "docs/troubleshooting.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named = re.findall(r"(?:'\.|gptjax)\[([\w,-]+)\]", text)
        assert {name for names in named for name in names.split(",")} <= extras.keys()
    table = (ROOT / "docs/install.md").read_text("utf-8").partition("## Extras")[2]
    listed = re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert set(listed) <= extras.keys()
    assert extras.keys() - set(listed) == {"benchmark", "test-parity", "test-posttrain"}
