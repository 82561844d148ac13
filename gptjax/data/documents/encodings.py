"""Encodings of text: which one a file seems to have, and what to say if it is not UTF-8."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from gptjax.core.config import ConfigError, require

SAMPLE = 2**16
"""Bytes that a guess looks at."""
WESTERN = frozenset("àâäçéèêëîïôöùûüÿœæñáíóúßåøãõÀÂÄÇÉÈÊÎÔÖÜŒÆÑÅØ¿¡“”‘’–—…€«»°£§")
CENTRAL = frozenset("ąćęłńóśźżčďěňřšťůžáíéýőűâăîșțĄĆĘŁŃÓŚŹŻČĎĚŇŘŠŤŮŽÁÍÉÝŐŰ„“”–—…")
TURKISH = frozenset("çğıöşüâîûÇĞİÖŞÜ“”‘’–—…")
BALTIC = frozenset("ąčęėįšųūžāēģīķļņõäöüĄČĘĖĮŠŲŪŽĀĒĢĪĶĻŅÕÄÖÜ„“”–—…")
LATIN = (
    ("cp1252", WESTERN),
    ("cp1254", TURKISH),
    ("cp1250", CENTRAL),
    ("iso8859_2", CENTRAL),
    ("cp1257", BALTIC),
)
"""Code pages of Latin letters and the usual ones in them, the commonest code page first."""
SEVEN_BITS = (
    ("iso2022_jp", re.compile(rb"\x1b\$[@B]|\x1b\(J")),
    ("iso2022_kr", re.compile(rb"\x1b\$\)C")),
    ("hz", re.compile(rb"~\{(?:[!-w][!-~]){4,}~\}")),
)
"""Encodings whose bytes are all ASCII, and what only they have."""


def require_encoding(encoding: str) -> None:
    """Refuses a name that is not one of Python's encodings."""
    try:
        codecs.lookup(encoding)
        "".encode(encoding)
    except (LookupError, ValueError):
        raise ConfigError(
            f"data.source.encoding is {encoding!r}, which is not the name of an encoding; for"
            " example --data.source.encoding gb18030, shift_jis, cp1251, cp1252 or utf-16."
        ) from None


def decode(content: bytes, path: Path, at: int) -> str:
    """Decodes UTF-8 from byte `at` of a file, without a byte order mark at the beginning.

    Raises:
      ConfigError: it is not UTF-8, or seems to be UTF-16 without a mark; names the encoding that
        the file seems to have.
    """
    mark = codecs.BOM_UTF8 if at == 0 else b""
    try:
        text = content.removeprefix(mark).decode("utf-8")
    except UnicodeDecodeError as error:
        skipped = len(mark) if mark and content.startswith(mark) else 0
        raise ConfigError(explain(path, error, at + skipped, "utf-8", content)) from None
    if at == 0 and (wide := _wide(content)):
        raise ConfigError(
            f"{path} seems to be {wide} without a byte order mark; pass --data.source.encoding"
            f" {wide}."
        )
    if at == 0 and (escaped := _seven_bits(content[:SAMPLE])):
        raise ConfigError(
            f"{path} seems to be {escaped}, whose letters are written as ASCII; pass"
            f" --data.source.encoding {escaped}, or choose other files with --data.source.pattern."
        )
    return text


def explain(
    path: Path, error: UnicodeDecodeError, at: int, encoding: str, content: bytes = b""
) -> str:
    """Returns the message about bytes that are not in `encoding`.

    Args:
      at: place in the file where decoding began.
      content: bytes from which the encoding is guessed; empty guesses nothing.
    """
    place = f"byte 0x{error.object[error.start]:02x} at offset {at + error.start}"
    name = "UTF-8" if encoding == "utf-8" else encoding
    likely = guess(content) if content else None
    seems = f"it seems to be {likely}: pass --data.source.encoding {likely}"
    unknown = "pass its encoding with --data.source.encoding NAME (gb18030, shift_jis, cp1251, …)"
    return (
        f"{path} is not {name} ({place}); {seems if likely else unknown}, or choose other files"
        " with --data.source.path or --data.source.pattern."
    )


def guess(content: bytes) -> str | None:
    """Returns the encoding that text which is not UTF-8 seems to have, or `None`."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if wide := _wide(content):
        return wide
    content = content[:SAMPLE]
    if latin := _latin(content):
        return latin
    if _is_hebrew(content):
        return "cp1255"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    best = from_bytes(content).best()
    return best and best.encoding


def _latin(content: bytes) -> str | None:
    """The code page of Latin letters in which most are usual ones; `None` if the text is in another
    script or none fits. Detectors take one for the other."""
    if sum(byte < 128 for byte in content) < 0.6 * len(content):
        return None
    shares = {}
    for encoding, letters in LATIN:
        text = content.decode(encoding, "replace")
        beyond = [character for character in text if character > "\x7f"]
        shares[encoding] = sum(character in letters for character in beyond) / max(1, len(beyond))
    best = max(shares, key=shares.__getitem__)
    return best if shares[best] > 0.8 else None


def _is_hebrew(content: bytes) -> bool:
    """Whether all letters beyond ASCII are those of Hebrew; Russian ones would reach further."""
    beyond = [byte for byte in content if byte > 127]
    return len(beyond) >= 20 and all(0xE0 <= byte <= 0xFA for byte in beyond)


def _seven_bits(content: bytes) -> str | None:
    """The encoding of text whose bytes are all ASCII, but which is not ASCII."""
    for encoding, mark in SEVEN_BITS:
        if mark.search(content):
            try:
                if not content.decode(encoding).isascii():
                    return encoding
            except UnicodeDecodeError:
                continue
    return None


def _wide(content: bytes) -> str | None:
    """`utf-16-le` or `utf-16-be` for text in which nearly every other byte is NUL."""
    start = content[: min(8192, len(content) // 2 * 2)]
    if len(start) < 8:
        return None
    halves = start[0::2], start[1::2]
    for zero, letters, name in ((1, 0, "utf-16-le"), (0, 1, "utf-16-be")):
        printable = sum(byte in PRINTABLE for byte in halves[letters])
        if halves[zero].count(0) > 0.9 * len(halves[zero]) and printable > 0.9 * len(halves[0]):
            return name
    return None


PRINTABLE = frozenset(b"\t\n\r\f") | frozenset(range(32, 127))


def is_binary(start: bytes, strictly: bool = True) -> bool:
    """Whether the first bytes of a file are not those of text.

    Args:
      strictly: control characters have to abound; otherwise one NUL is enough, as for git.
    """
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _wide(start):
        return False  # text, though in another encoding
    if not strictly:
        return b"\0" in start
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x0b\x1b" for byte in start)
    return controls > max(4, len(start) // 10)


def require_text(start: bytes, path: Path) -> None:
    """Refuses a binary file."""
    require(
        not is_binary(start),
        f"{path} is binary, not text (control characters abound in its first {len(start)} bytes);"
        " give a text file with --data.source.path FILE. Tokens of another program can't be read.",
    )
