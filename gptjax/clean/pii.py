"""Replaces what identifies a person or opens a door by the name of its type, such as `<EMAIL>`.

Read `find_pii`, which goes through the types in order, then the finders: e-mail addresses and
names here, numbers with a checksum in `pii_numbers`, addresses of machines in `pii_addresses`,
phone numbers in `pii_phones`, keys and tokens in `pii_secrets`.

Patterns find what has a form. Names without a list, postal addresses and what a reader infers
stay.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.clean.pii_addresses import find_ips
from gptjax.clean.pii_numbers import find_cards, find_ibans
from gptjax.clean.pii_phones import phone_finder
from gptjax.clean.pii_secrets import find_secrets
from gptjax.clean.records import Item, everywhere
from gptjax.clean.stage import Outcome, Stage
from gptjax.core.config import ConfigError, require
from gptjax.data.cleaning import PII_TYPES, Pii

Range = tuple[int, int]
Finder = Callable[[str], Iterator[Range]]


class Span(NamedTuple):
    """A piece of a text and what it is."""

    begin: int
    end: int
    type: str


def pii_stage(settings: Pii) -> Stage | None:
    """Returns the stage that replaces PII in every text of a record; it drops none."""
    if not settings.types:
        return None
    finders = pii_finders(settings)

    def stage(items: Sequence[Item]) -> Outcome:
        counts: Counter[str] = Counter()

        def scrubbed(text: str) -> str:
            return scrub(text, finders, settings.placeholder, counts)

        kept = [item._replace(record=_scrubbed_record(item, scrubbed)) for item in items]
        return Outcome(kept, [], counts)

    return stage


def _scrubbed_record(item: Item, scrubbed: Callable[[str], str]) -> dict[str, Any]:
    """The record, scrubbed but for the place of a plain text, which is ours."""
    record = everywhere(item.record, scrubbed)
    if record.keys() == {"text", "source"} and item.record["source"] == item.place:
        record["source"] = item.place
    return record


def scrub(
    text: str,
    finders: dict[str, Finder],
    placeholder: str = Pii.placeholder,
    counts: Counter[str] | None = None,
) -> str:
    """Returns the text with a placeholder for each piece of PII.

    Args:
      counts: incremented by the number of pieces of each type.
    """
    parts, at = [], 0
    for span in find_pii(text, finders):
        parts += [text[at : span.begin], placeholder.replace("{type}", span.type.upper())]
        at = span.end
        if counts is not None:
            counts[span.type] += 1
    return "".join([*parts, text[at:]])


def scrubber(settings: Pii) -> Callable[[str], str]:
    """Returns `scrub` with these settings, whose files are read once."""
    finders = pii_finders(settings)
    return lambda text: scrub(text, finders, settings.placeholder)


def find_pii(text: str, finders: dict[str, Finder]) -> list[Span]:
    """Returns the pieces of PII in a text from left to right; none overlap: what was
    found first stays."""
    found: list[Span] = []
    for name, finder in finders.items():
        for begin, end in finder(text):
            span = Span(begin, end, name)
            at = bisect.bisect(found, span)
            after_the_one_before = at == 0 or found[at - 1].end <= begin
            if after_the_one_before and (at == len(found) or end <= found[at].begin):
                found.insert(at, span)
    return found


def pii_finders(settings: Pii) -> dict[str, Finder]:
    """Returns the finders of the types, in the order in which they are asked.

    Raises:
      ConfigError: a type needs a package or a file that is not there.
    """
    makers: dict[str, Callable[[], Finder]] = {
        "secret": lambda: find_secrets,
        "email": lambda: find_emails,
        "iban": lambda: find_ibans,
        "card": lambda: find_cards,
        "ip": lambda: find_ips,
        "phone": lambda: phone_finder(settings.regions),
        "name": lambda: name_finder(str(settings.names)),
    }
    return {name: makers[name]() for name in PII_TYPES if name in settings.types}


# --- e-mail addresses

_LOCAL = r"[^\W_](?:[\w.+%'-]{0,63}[\w+-])?"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_AT = r"(?:\s?@\s?|\s*[\[({<]\s*(?:at|@)\s*[\])}>]\s*|＠)"
_DOT = r"(?:\.|\s*[\[({<]\s*(?:dot|\.)\s*[\])}>]\s*|\s+dot\s+|．)"
_EMAIL = re.compile(
    rf"(?<![\w.+%-])(?:mailto:)?(?P<mail>{_LOCAL}{_AT}{_LABEL}(?:{_DOT}{_LABEL}){{1,8}})(?![\w@])",
    re.IGNORECASE,
)
_SPOKEN = re.compile(
    r"(?<![\w.+%-])(?P<mail>[^\W_][\w.+-]{0,63}(?:\s+dot\s+[\w+-]{1,63}){0,3}\s+at\s+"
    rf"{_LABEL}(?:(?:\s+dot\s+|\.){_LABEL}){{0,4}}\s+dot\s+[a-z]{{2,10}})(?!\w)",
    re.IGNORECASE,
)
"""As one says it: name at host dot com."""
_FILES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "bmp",
        "css",
        "scss",
        "js",
        "mjs",
        "ts",
        "jsx",
        "tsx",
        "json",
        "html",
        "htm",
        "xml",
        "pdf",
        "py",
        "txt",
        "md",
        "yml",
        "yaml",
        "toml",
        "lock",
        "log",
        "exe",
        "dll",
        "zip",
        "gz",
    ]
)
"""Endings of files, as in logo@2x.png, of which none is a top-level domain that has mail."""
_VERBS = frozenset(
    [
        "is",
        "are",
        "was",
        "be",
        "look",
        "looked",
        "looking",
        "arrive",
        "meet",
        "find",
        "found",
        "see",
        "us",
        "me",
        "it",
        "me",
        "available",
        "online",
        "website",
        "site",
        "page",
        "live",
        "shop",
        "buy",
        "read",
        "more",
        "here",
        "there",
        "them",
        "you",
        "hosted",
        "work",
        "works",
        "working",
        "visit",
        "check",
        "stay",
        "order",
        "starts",
        "start",
    ]
)
"""What stands before "at" in a sentence, where it says where rather than whose."""


def find_emails(text: str) -> Iterator[Range]:
    """Yields e-mail addresses, also as people hide them: name [at] host [dot] com, name at host dot
    com, NAME(AT)HOST.COM."""
    lower = text.lower()
    if "@" in text or "＠" in text or re.search(r"[\[({<]\s*at\s*[\])}>]", lower):
        for match in _EMAIL.finditer(text):
            begin, end = match.span("mail")
            mail = match["mail"]
            local, host = re.split(_AT, mail, maxsplit=1, flags=re.IGNORECASE)
            top = re.split(_DOT, host, flags=re.IGNORECASE)[-1]
            if not _is_top_level(top) or _is_repository(local, text, end):
                continue
            if re.search(r"\s@|@\s", mail) and not _is_hidden(mail):
                continue
            yield begin, end
    if " dot " in lower:
        for match in _SPOKEN.finditer(text):
            first = re.split(r"\s", match["mail"], maxsplit=1)[0].lower()
            if first not in _VERBS and not _EMAIL.search(match["mail"]):
                yield match.span("mail")


def _is_top_level(label: str) -> bool:
    """Whether a label may end the name of a host that has mail."""
    letters = label.replace("-", "")
    named = letters.isalpha() or label.lower().startswith("xn--")
    return named and len(label) >= 2 and label.lower() not in _FILES


def _is_repository(local: str, text: str, end: int) -> bool:
    """git@host:path names a repository, no person."""
    return local.lower() in ("git", "hg") and text[end : end + 1] in (":", "/")


def _is_hidden(mail: str) -> bool:
    """White space around the sign is a disguise only where it stands on both sides."""
    return bool(re.search(r"\w\s@\s\w", mail)) and not re.search(r"\s(?:dot)\s", mail)


# --- names


def name_finder(path: str) -> Finder:
    """Returns a finder of the names in a file, one a line, whole and in any case.

    Raises:
      ConfigError: the file can't be read or has no names.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read as names ({error}); give a file of UTF-8 with --pii.names."
        ) from None
    names = sorted({line.strip() for line in lines if line.strip()}, key=lambda n: (-len(n), n))
    require(bool(names), f"{path} has no names; put one on a line (--pii.names).")
    known = re.compile(
        r"(?<!\w)(?:"
        + "|".join(r"\s+".join(map(re.escape, n.split())) for n in names)
        + r")(?!\w)",
        re.IGNORECASE,
    )
    return lambda text: (match.span() for match in known.finditer(text))
