"""Documents from text files, folders, JSON lines and the standard library's source, in bounded
memory.

Read `Document` and `Text`, then `read`; then how a file is opened, cut into pieces or lines, and a
line becomes a text.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptjax.core.config import ConfigError, nearest, require


class Document(NamedTuple):
    """A whole text, and where it was found."""

    text: str
    name: str
    """`file`, `file@byte` of a later piece, `file:line` or `data set:split:index`; the same on
    every machine."""
    source: str | None = None
    """What the text answers, where it is an answer."""
    held_out: bool | None = None
    """Whether it is held out, where its source says so."""


@dataclass(frozen=True)
class Text:
    """Text files. A .jsonl (or .ndjson) file has one document a line, any other file is one (or
    several, of 8 MiB); .gz is unpacked."""

    path: str | None = None
    """A file or a folder; without it, the source text of the Python standard library."""
    field: str = "text"
    """Where a line of JSONL has its text."""
    pattern: str = "**/*"
    """Which files of a folder are read; hidden and binary ones never are."""
    max_bad_records: int = 0
    """Lines of JSONL that may be passed over because nothing can be read from them."""

    def __post_init__(self) -> None:
        require(
            self.path != "",
            "data.source.path is empty; give a file or a folder: pass --data.source.path FILE.",
        )
        relative = (
            bool(self.pattern)
            and not Path(self.pattern).is_absolute()
            and ".." not in Path(self.pattern).parts
        )
        require(
            relative,
            f"data.source.pattern is {self.pattern!r}; it needs a pattern below the folder, for"
            " example '**/*.txt': pass --data.source.pattern.",
        )
        require(
            self.max_bad_records >= 0,
            f"data.source.max_bad_records is {self.max_bad_records}; it needs 0 or more: pass"
            " --data.source.max-bad-records N.",
        )


PIECE = 2**23
"""Bytes (8 MiB). A longer text is read as several documents of about this size, so that memory does
not grow with it."""
LINE = 2**24
"""Bytes (16 MiB). A longer line of JSONL can't be read: half of it is no JSON, and all of it may
not fit into memory."""
UNPACKED, RATIO = 2**26, 100
"""A .gz file that unpacks to more bytes than this, and to so many times its size, is no text but a
trap. Prose packs to a third."""


def read(source: Text, pass_over: Callable[[str], Any] = str) -> Iterator[Document]:
    """Gives every document that isn't empty: files sorted by name, lines in their order.

    Args:
      pass_over: is told of each record that the source's quota lets pass, by file, line and defect.

    Raises:
      ConfigError: something can't be read, or there is no document at all; on the way, not at the
        call.
    """
    found = False
    for document in (
        _standard_library()
        if source.path is None
        else _read_path(source, Path(source.path), pass_over)
    ):
        if document.text:
            found = True
            yield document
    require(
        found, f"{source.path} is empty; give a source that has text with --data.source.path FILE."
    )


def _read_path(source: Text, path: Path, pass_over: Callable[[str], Any]) -> Iterator[Document]:
    if path.is_dir():
        files = _files_below(path, source.pattern)
        require(
            bool(files),
            f"{path} has no text file that matches {source.pattern!r}; pass --data.source.path"
            " FILE, or --data.source.pattern '**/*'.",
        )
    else:
        near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        require(
            path.exists(),
            f"{path} is not there; give a text file or a folder with --data.source.path"
            f" FILE.{near}",
        )
        require(
            path.is_file(),
            f"{path} is neither a file nor a folder; copy what it gives to a file and pass"
            " --data.source.path FILE.",
        )
        files = [(path.name, path)]
    bad = 0
    for name, file in files:
        with opened(file) as stream:
            if not _is_jsonl(file):
                for at, piece in _pieces(stream):
                    yield Document(_decode(piece, file, at), f"{name}@{at}" if at else name)
                continue
            for number, line in lines_of(stream):
                text, defect = record(line, source.field)
                bad += bool(defect)
                allowed = (
                    "mend it, or pass --data.source.max-bad-records N (now"
                    f" {source.max_bad_records}) to do without"
                )
                require(bad <= source.max_bad_records, f"{file}:{number} {defect}; {allowed}.")
                if defect:
                    pass_over(f"{file}:{number} {defect}")
                else:
                    yield Document(text, f"{name}:{number}")


def _is_jsonl(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A binary stream of a file, unpacked if it is .gz, whose failures are told as
    `ConfigError`."""
    try:
        with _Unpacked(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{path} is not a whole gzip file ({error}); fetch it again, or pass another with"
            " --data.source.path FILE."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read ({error.strerror}); mend that, or pass another with"
            " --data.source.path FILE."
        ) from None


class _Unpacked(gzip.GzipFile):
    """Reads a .gz file as far as it can be text."""

    def read(self, size: int | None = -1) -> bytes:
        return self._plausible(super().read(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._plausible(super().readline(size))

    def _plausible(self, content: bytes) -> bytes:
        if self.tell() > UNPACKED and self.tell() > RATIO * os.fstat(self.fileno()).st_size:
            found = (
                f"{self.name} unpacks to more than {RATIO} times its size, at least"
                f" {self.tell() >> 20} MiB, as no text does"
            )
            raise ConfigError(
                f"{found}; if you trust it, unpack it with gunzip, or pass another with"
                " --data.source.path FILE."
            )
        return content


def _pieces(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Gives (offset, bytes): all, if that is at most `PIECE`; else pieces that end behind a
    newline, or at least behind a character."""
    at, content = 0, stream.read(PIECE + 1)
    while content:
        end = len(content)
        if end > PIECE:
            end = content.rfind(b"\n", PIECE // 2, PIECE) + 1 or PIECE
            while content[end] & 0xC0 == 0x80 and end > PIECE - 4:  # inside a character of UTF-8
                end -= 1
        yield at, content[:end]
        at, content = at + end, content[end:]
        content += stream.read(PIECE + 1 - len(content))


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Gives (number, line) of lines that aren't blank; of a line longer than `LINE`, that many
    bytes and one."""
    for number in itertools.count(
        1
    ):  # a binary stream ends lines at \n only, where str.splitlines also does at U+2028
        line = rest = stream.readline(LINE + 1)
        while len(rest) > LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LINE + 1)
        if not line:
            return
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if line.strip():
            yield number, line


def record(line: bytes, field: str) -> tuple[str, str]:
    """Gives (text, "") of a line of JSON, or ("", what is wrong with it)."""
    if len(line) > LINE:
        return "", f"is longer than {LINE >> 20} MiB"
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        return (
            "",
            f"is not UTF-8 (byte 0x{line[error.start]:02x} at offset {error.start} of the line)",
        )
    except RecursionError:
        return "", "is nested too deeply"
    except ValueError as error:
        return "", f"is not JSON ({error})"
    if not isinstance(value, dict):
        return "", f"is not a JSON object but a {type(value).__name__}"
    if field not in value:
        return (
            "",
            (
                f"has no field {field!r} (it has"
                f" {', '.join(map(repr, list(value)[:10])) or 'none'}; --data.source.field chooses"
                " one)"
            ),
        )
    text = value[field]
    if not isinstance(text, str):
        return "", f"has no text in {field!r} but a {type(text).__name__}"
    lone = re.search("[\ud800-\udfff]", text)
    return (
        (
            "",
            f"has a lone surrogate, U+{ord(lone[0]):04X}, at character {lone.start()} of {field!r}",
        )
        if lone
        else (text, "")
    )


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return found


def _decode(content: bytes, path: Path, at: int) -> str:
    """The text of a piece that begins at byte `at`; a byte order mark at the beginning is no
    text."""
    mark = b"\xef\xbb\xbf" if at == 0 else b""
    try:
        return content.removeprefix(mark).decode("utf-8")
    except UnicodeDecodeError as error:
        wide = at == 0 and content.startswith((b"\xff\xfe", b"\xfe\xff"))
        offset = error.start + len(mark) * content.startswith(mark)
        convert = f"iconv -f {'UTF-16' if wide else 'ISO-8859-1'} -t UTF-8 {path} > new.txt"
        mend = (
            f"convert it, for example with `{convert}` and --data.source.path new.txt, or choose"
            " other files with --data.source.pattern"
        )
        raise ConfigError(
            f"{path} is not UTF-8 (byte 0x{content[offset]:02x} at offset {at + offset}); {mend}."
        ) from None


def _files_below(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    found = []
    for path in folder.glob(pattern):
        name = path.relative_to(folder)
        if (
            path.is_file()
            and not any(part.startswith(".") for part in name.parts)
            and not _is_binary(path)
        ):
            found.append((name.as_posix(), path))
    return sorted(found)


def _is_binary(path: Path) -> bool:
    """A NUL near the start tells binary from text, as in git; UTF-16 has NULs too, but its user
    should hear of it."""
    with opened(path) as stream:
        start = stream.read(8192)
    return b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff"))


def _standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = False
    for name in sorted(_sources(root)):
        try:
            yield Document((root / name).read_bytes().decode("utf-8"), name)
            found = True
        except (UnicodeDecodeError, OSError):  # a few sources are in another encoding, on purpose
            continue
    require(
        found,
        f"{root} has no .py files (this Python packs its library otherwise); give a text with"
        " --data.source.path FILE.",
    )


def _sources(root: Path) -> Iterator[str]:
    """Sources by name, without tests, what was installed, and tables that a program wrote
    (`encodings`, `pydoc_data`, build settings), which do not read like Python."""
    skipped = {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "__pycache__",
        "encodings",
        "pydoc_data",
    }
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name for name in folders if name not in skipped and not name.startswith("config-")
        ]
        yield from (
            Path(folder, name).relative_to(root).as_posix()
            for name in files
            if name.endswith(".py") and not name.startswith("_sysconfigdata")
        )
