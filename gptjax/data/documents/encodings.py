"""Encodings of text: which one a file seems to have, and what to say if it is not UTF-8."""

from __future__ import annotations

import codecs
import re
import unicodedata
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
    ("mac_roman", WESTERN),
)
"""Code pages of Latin letters and the usual ones in them, the commonest code page first."""
UPPER = frozenset(range(9)) | {0x0E}
"""Upper bytes of alphabets in UTF-16, from Latin to Arabic and Thai, which ASCII text never has."""
SURROGATES = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
"""A character beyond U+FFFF as some programs write it, in twice three bytes."""
SEVEN_BITS = (
    ("iso2022_jp", re.compile(rb"\x1b\$[@B]|\x1b\(J")),
    ("iso2022_kr", re.compile(rb"\x1b\$\)C")),
    ("hz", re.compile(rb"~\{(?:[!-w][!-~]){4,}~\}")),
    ("utf-7", re.compile(rb"\+[A-Za-z0-9+/]{3,}")),
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


def decode(content: bytes, path: Path, at: int, encoding: str = "utf-8") -> str:
    """Decodes UTF-8 from byte `at` of a file, without a byte order mark at the beginning.

    Args:
      encoding: what the file was read as; text that only seems to be ASCII is looked for in UTF-8.

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
    if at == 0 and encoding == "utf-8":
        require_utf8(content[:SAMPLE], path)
    return text


def require_utf8(start: bytes, path: Path) -> None:
    """Refuses a beginning that can be read as UTF-8 but seems to be in another encoding."""
    if wide := _wide(start):
        raise ConfigError(
            f"{path} seems to be {wide} without a byte order mark; pass --data.source.encoding"
            f" {wide}."
        )
    if escaped := _seven_bits(start):
        raise ConfigError(
            f"{path} seems to be {escaped}, whose letters are written as ASCII; pass"
            f" --data.source.encoding {escaped}, or ascii if it is that, or choose other files with"
            " --data.source.pattern."
        )


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
    return (
        f"{path} is not {name} ({place}); {advice(content)}, or choose other files with"
        " --data.source.path or --data.source.pattern."
    )


def advice(content: bytes) -> str:
    """Returns what to do about bytes that are not UTF-8; without any bytes, in general."""
    if _is_nearly_utf8(content):
        return (
            "the rest seems to be UTF-8, so it is damaged: remove such bytes, for example with"
            " iconv -c -f UTF-8 -t UTF-8"
        )
    if likely := guess(content) if content else None:
        return f"it seems to be {likely}: pass --data.source.encoding {likely}"
    return "pass its encoding with --data.source.encoding NAME (gb18030, shift_jis, cp1251, …)"


def _is_nearly_utf8(content: bytes) -> bool:
    """Whether most characters beyond ASCII are those of UTF-8, or surrogate pairs written in it."""
    text = SURROGATES.sub("é".encode(), content[:SAMPLE]).decode("utf-8", "replace")
    beyond = sum(character > "\x7f" for character in text)
    bad = text.count("\ufffd")
    return 4 * bad < beyond - bad


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
                text = content.decode(encoding)
            except UnicodeDecodeError:
                continue
            beyond = [character for character in text if character > "\x7f"]
            # a key in base64 may decode as UTF-7 by chance, but hardly to letters alone
            least = 2 if encoding == "utf-7" else 1
            if len(beyond) >= least and all(map(_is_usual, beyond)):
                return encoding
    return None


def _is_usual(character: str) -> bool:
    """Whether this is a letter, a mark, a digit, punctuation, a sign or a space, not a
    control character nor a private or unknown one."""
    return unicodedata.category(character)[0] in "LMNPSZ"


def _wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32 in one of both orders, for text without a mark in an alphabet: nearly all
    its upper bytes are one of two, and small."""
    start = content[: min(8192, len(content) // 4 * 4)] or content
    for upper, order in ((1, "le"), (0, "be")):
        if len(start) < 8:
            continue
        zeros = start[3::4] + start[2::4] if order == "le" else start[0::4] + start[1::4]
        width = "16" if any(zeros) else "32"
        above = start[upper::2] if any(zeros) else start[1::4] if upper else start[2::4]
        common = sum(sorted(above.count(value) for value in UPPER & set(above))[-2:])
        if common > 0.9 * len(above) and _is_printable(start, f"utf-{width}-{order}"):
            return f"utf-{width}-{order}"
    return None


def _is_printable(content: bytes, encoding: str) -> bool:
    """Whether nearly all characters are letters, digits, punctuation or white space."""
    text = content.decode(encoding, "replace")
    usual = sum(character in "\t\n\r\f" or _is_usual(character) for character in text)
    return usual > 0.95 * len(text)


SIGNATURES = (b"%PDF-", b"\x89PNG", b"PK\x03\x04", b"\xff\xd8\xff", b"7z\xbc\xaf", b"\x89HDF")
"""First bytes of PDF, PNG, zip, JPEG, 7z and HDF5, some of which have few control characters."""


def is_binary(start: bytes, strictly: bool = True) -> bool:
    """Whether the first bytes of a file are not those of text.

    Args:
      strictly: control characters have to abound; otherwise one NUL is enough, as for git.
    """
    if start.startswith(SIGNATURES):
        return True
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _wide(start):
        return False  # text, though in another encoding
    if not strictly:
        return b"\0" in start
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x0b\x1b" for byte in start)
    return controls > max(4, len(start) // 10)


def require_text(start: bytes, path: Path) -> None:
    """Refuses a binary file."""
    hint = "give a text file with --data.source.path FILE. Tokens of another program can't be read."
    if start.startswith((b"PK\x03\x04", b"7z\xbc\xaf")) or start[257:262] == b"ustar":
        hint = (
            "it is an archive: unpack it, and give the folder with --data.source.path FOLDER; of a"
            " docx, odt or epub save the text to a file."
        )
    elif start.startswith(b"%PDF-"):
        hint = "it is a PDF: save its text to a file, and give that with --data.source.path FILE."
    found = f"{path} is binary, not text (by its first {len(start)} bytes)"
    require(not is_binary(start), f"{found}; {hint}")
