"""The web chat, read as text: what it must never do. A browser runs it in `benchmarks/clients`."""

from __future__ import annotations

import re

import pytest

from gptjax.serve import page

TEXTS = {name: page.page_file(name).decode() for name in page.MEDIA_TYPES}

FORBIDDEN = {
    "turns text into HTML": r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|srcdoc"
    r"|parseFromString|createContextualFragment|document\.write|DOMParser",
    "turns text into code": r"\beval\b|\bFunction\s*\(|\bimport\s*\("
    r"|setTimeout\(\s*[\"'`]|javascript:",
    "names another server": r"(?<!\w)(?:https?:)?//[\w-]+\.\w",
    "outlives the tab, or leaves the page": r"localStorage|indexedDB|cookie|serviceWorker"
    r"|sendBeacon|WebSocket|XMLHttpRequest|EventSource",
    "acts on its address": r"location\.|URLSearchParams|history\.",
}
"""What no file may hold, and why."""


@pytest.mark.parametrize("why", FORBIDDEN)
def test_the_page_never(why: str) -> None:
    namespace = ' xmlns="http://www.w3.org/2000/svg"'
    found = {
        name: hits
        for name, text in TEXTS.items()
        if (hits := re.findall(FORBIDDEN[why], text.replace(namespace, "")))
    }
    assert not found


def test_scripts_and_styles_are_files_beside_the_page() -> None:
    text = TEXTS["index.html"]
    assert not re.search(r"\s(on\w+|style)\s*=|<style|<script(?![^>]*\ssrc=)|<base|<iframe", text)
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    named += re.findall(r'from "\./([^"]*)"', TEXTS["page.js"])
    assert sorted(named) == sorted(set(TEXTS) - {"index.html"})
    assert not re.search(r"@import|url\(", TEXTS["page.css"])


def test_the_key_is_only_in_a_variable_and_the_authorization_header() -> None:
    script = TEXTS["server.js"]
    uses = [line.strip() for line in script.splitlines() if re.search(r"\bsecret\b", line)]
    kinds = ("let secret = ", "const headers = ", "if (!(await unlock(", "if (used) secret = ")
    assert [line for line in uses if not line.startswith(kinds)] == []
    assert len(uses) == len(kinds)
    assert 'field.value = lock.returnValue = "";' in script
    assert 'getElementById("key")' not in TEXTS["page.js"] and '$("key")' not in TEXTS["page.js"]
    assert re.findall(r"sessionStorage\.setItem\((.*)\);", "".join(TEXTS.values())) == [
        '"chat", JSON.stringify(chat)'
    ]


def test_the_policy_allows_nothing_inline_and_no_text_as_html() -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in page.HEADERS["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in page.HEADERS["Content-Security-Policy"]


def test_the_page_is_small() -> None:
    assert sum(len(text) for text in TEXTS.values()) < 48_000
    assert all(len(text.splitlines()) < 400 for text in TEXTS.values())
