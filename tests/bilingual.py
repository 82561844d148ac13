"""What a page in Chinese has in common with the English page that it was made from: the headings in
their order, the code, as many rows of tables and items of lists, and in its first lines the hash of
the English text. Its links lead to Chinese pages, where there are any."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`+([^`]+)`+")
LINK = re.compile(r"\]\(([^)\s#:]+)\.md(#[^)\s]*)?\)")
STAMP = re.compile(r"<!-- english: sha256 (\w*) -->")
MERGE = re.compile(r"^(?:<{7} |={7}$|>{7} )", re.MULTILINE)
SHAPE = {"rows of tables": r"^\|.*\|$", "items of lists": r"^ *(?:[-*]|\d+\.) "}
FIRST_LINES = 5


def english_of(page: Path) -> Path:
    """Returns the path of the English page, `guide.md` for `guide.zh.md`."""
    return page.with_name(page.name.removesuffix(".zh.md") + ".md")


def hash_of(english: str) -> str:
    """Returns 16 hexadecimal digits that change with the English text."""
    return hashlib.sha256(english.encode()).hexdigest()[:16]


def headings_of(text: str) -> list[tuple[int, str]]:
    """Returns level and words of each heading, without the comments in code that look like one."""
    found = re.findall(r"^(#+) +(.+)$", FENCED.sub("", text), re.MULTILINE)
    return [(len(marks), words) for marks, words in found]


def anchor_of(words: str) -> str:
    """Returns the anchor that a forge makes of a heading."""
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


def inline_code_of(text: str) -> set[str]:
    """Returns the code within lines, each piece once."""
    return {" ".join(piece.split()) for piece in INLINE.findall(FENCED.sub("", text))}


def num_of(pattern: str, text: str) -> int:
    """Returns how many lines outside code a pattern of `SHAPE` matches."""
    return len(re.findall(pattern, FENCED.sub("", text), re.MULTILINE))


def stamps_of(chinese: str) -> list[str]:
    return STAMP.findall("\n".join(chinese.splitlines()[:FIRST_LINES]))


def out_of_step(chinese: str, english: str, name: str) -> str:
    """Says in which way a Chinese page does not follow the English page `name`, or nothing."""
    if MERGE.search(chinese) or MERGE.search(english):
        return f"{name}, or this page, holds marks of a merge: keep one of the two texts"
    ours, theirs = headings_of(chinese), headings_of(english)
    if len(ours) != len(theirs):
        return f"{name} has {len(theirs)} headings and this page {len(ours)}: translate all of it"
    for here, there in zip(ours, theirs, strict=True):
        if here[0] != there[0]:
            return f"{name} has {there} where this page has {here}: give both the same levels"
    if FENCED.findall(chinese) != FENCED.findall(english):
        return f"{name} has other code: copy its blocks"
    if pieces := inline_code_of(chinese) ^ inline_code_of(english):
        return f"{name} has other code in its lines, and only one page has {sorted(pieces)}"
    for what, pattern in SHAPE.items():
        if (here := num_of(pattern, chinese)) != (there := num_of(pattern, english)):
            return f"{name} has {there} {what} and this page {here}: give both the same"
    if stamps_of(chinese) != [hash_of(english)]:
        return f"{name} has moved on: translate what changed, then python tests/test_chinese.py"
    return ""


def led_to_chinese(page: Path) -> str:
    """Returns the text of a Chinese page with its links led to Chinese pages, where there are any.

    An anchor becomes that of the heading in the same place.
    """

    def link(found: re.Match) -> str:
        english = page.parent / f"{found[1]}.md"
        chinese = page.parent / f"{found[1]}.zh.md"
        if not chinese.exists() or english.resolve() == english_of(page).resolve():
            return found[0]
        ours, theirs = (headings_of(one.read_text("utf-8")) for one in (chinese, english))
        anchors = {
            anchor_of(there): anchor_of(here)
            for (_, here), (_, there) in zip(ours, theirs, strict=True)
        }
        anchor = f"#{anchors[found[2][1:]]}" if found[2] else ""
        return f"]({found[1]}.zh.md{anchor})"

    return LINK.sub(link, page.read_text(encoding="utf-8"))


def stamp(pages: Iterable[Path]) -> None:
    """Writes the hash of its English page into each Chinese page, which has a place for it, and
    leads its links to Chinese pages.

    Raises:
      SystemExit: a page differs in more than the hash; nothing is written then.
    """
    pages = list(pages)
    for page in pages:
        text, english = page.read_text("utf-8"), english_of(page)
        if len(stamps_of(text)) != 1:
            raise SystemExit(f"{page}: no line <!-- english: sha256 0 --> in its first lines.")
        wrong = out_of_step(text, english.read_text("utf-8"), english.name)
        if wrong and "moved on" not in wrong:
            raise SystemExit(f"{page}: {wrong}.")
    for page in pages:
        mark = f"<!-- english: sha256 {hash_of(english_of(page).read_text('utf-8'))} -->"
        page.write_text(STAMP.sub(mark, led_to_chinese(page), count=1), encoding="utf-8")
