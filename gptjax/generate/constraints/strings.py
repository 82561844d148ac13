"""JSON strings with the keywords that restrict them.

A string is restricted as text, before JSON escapes it: length, pattern and format are intersected.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gptjax.core.config import require
from gptjax.generate.constraints.automaton import MAX_STATES, compile_language, intersect
from gptjax.generate.constraints.languages import (
    ANY_CHARACTER,
    ANY_TEXT,
    NOTHING,
    Automaton,
    Language,
    exactly,
    repeat,
    seq,
)
from gptjax.generate.constraints.patterns import regex

_DATE = (
    r"([1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
    r"|02-(0[1-9]|1\d|2[0-8]))"
    r"|([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DAYTIME = r"T(\d{1,4}H(\d{1,4}M)?(\d{1,4}S)?|\d{1,4}M(\d{1,4}S)?|\d{1,4}S)"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,3}}\.[a-z]{{2,16}}"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_PATH = r"[A-Za-z0-9._~!$&'()*+,;=:@/-]"
_UUID = r"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{0}[0-9a-f]{{3}}-{1}[0-9a-f]{{3}}-[0-9a-f]{{12}}"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": rf"P(\d{{1,6}}D({_DAYTIME})?|\d{{1,4}}W|{_DAYTIME})",
    "email": rf"[A-Za-z0-9_+-]{{1,32}}(\.[A-Za-z0-9_+-]{{1,16}})?@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "ipv6": r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|([0-9a-f]{1,4}:){1,6}(:[0-9a-f]{1,4})|::1",
    "uri": rf"https?://{_HOST}(:[1-9]\d{{0,3}})?(/{_PATH}{{0,128}})?(\?{_PATH}{{0,128}})?",
    "uuid": _UUID.format("[0-9a-f]", "[0-9a-f]"),
    **{f"uuid{version}": _UUID.format(version, "[89ab]") for version in (1, 3, 4, 5, 6, 7, 8)},
    "base64": r"([A-Za-z0-9+/]{4})*",
    "base64url": r"([A-Za-z0-9_-]{4})*",
}
"""Formats of strings as regular expressions; none admits a text that the format forbids."""
FREE_FORMATS = {"binary", "password", "path", "file-path", "directory-path", "multi-line"}
"""Formats that hold for any text."""


def string(given: dict[str, Any], where: str) -> Language:
    """The JSON strings that satisfy `minLength`, `maxLength`, `pattern` and `format`."""
    return quoted(string_text(given, where)) if given else _any_string()


@functools.cache
def _any_string() -> Language:
    return quoted(ANY_TEXT)


def string_text(given: dict[str, Any], where: str) -> Language:
    """The texts of these strings, before JSON escapes them."""
    parts = [_format(given["format"], where)] if "format" in given else []
    patterns = given.get("pattern", [])
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        require(
            isinstance(pattern, str),
            f"{where} has the pattern {pattern!r}; it needs text (--schema).",
        )
        parts.append(regex(pattern, anywhere=True))
    low, high = bounds(given, "minLength", "maxLength", where)
    parts = [part for part in parts if part is not ANY_TEXT]
    language = functools.reduce(intersect, parts) if parts else ANY_TEXT
    if language is NOTHING or (low == 0 and high is None):
        return language
    if language is ANY_TEXT:
        return repeat(ANY_CHARACTER, low, high)
    language = compile_language(language)
    if _has_lengths(language, low, high):
        return language
    return intersect(language, repeat(ANY_CHARACTER, low, high))


def _format(name: Any, where: str) -> Language:
    if name in FREE_FORMATS:
        return ANY_TEXT
    require(
        name in FORMATS,
        f"{where} has the format {name!r}, which is not supported; known are"
        f" {', '.join(sorted(FREE_FORMATS | set(FORMATS)))} (--schema).",
    )
    return _compiled_format(name)


@functools.cache
def _compiled_format(name: str) -> Language:
    return compile_language(regex(FORMATS[name]))


def _has_lengths(automaton: Automaton, low: int, high: int | None) -> bool:
    """Whether all texts obviously have `low` to `high` characters: short ASCII texts."""
    if (automaton.table[:, 0x80:] >= 0).any():
        return False
    states = np.asarray([0])
    longest = low if high is None else min(high, len(automaton.table))
    for length in range(longest + 1):
        if automaton.accepting[states].any() and length < low:
            return False
        states = np.unique(automaton.table[states])
        states = states[states >= 0]
        if not len(states):
            return True
    return high is None


def quoted(language: Language) -> Language:
    """JSON strings of these texts: quotes and backslashes escaped, other escapes only for `bfnrt`.

    Control characters that have no short escape are not written.
    """
    if language is NOTHING:
        return NOTHING
    plain = compile_language(language)
    escapes = {'"': 0x22, "\\": 0x5C, "b": 0x08, "f": 0x0C, "n": 0x0A, "r": 0x0D, "t": 0x09}
    size = len(plain.table)
    table = np.full((2 * size, 256), -1, np.int32)  # state size + q: q after a backslash
    table[:size, 0x20:] = plain.table[:, 0x20:]
    table[:size, [0x22, 0x5C]] = -1
    for letter, value in escapes.items():
        table[size:, ord(letter)] = plain.table[:, value]
    table[:size, 0x5C] = np.where((table[size:] >= 0).any(1), size + np.arange(size), -1)
    accepting = np.append(plain.accepting, np.zeros(size, bool))
    return seq(exactly('"'), Automaton(table, accepting), exactly('"'))


def bounds(given: dict[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
    """The values of two keywords that bound a count."""
    least, most = given.get(low, 0), given.get(high)
    fits = type(least) is int and least >= 0 and (most is None or type(most) is int)
    require(
        fits and (most is None or most >= least),
        f"{where} has {low} {least!r} and {high} {most!r}; they need whole numbers from 0, the"
        " second no smaller (--schema).",
    )
    require(
        least <= MAX_STATES,
        f"{where} has {low} {least}; above {MAX_STATES} it is too large to compile (--schema).",
    )
    return least, most
