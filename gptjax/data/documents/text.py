"""Documents from text files, folders of them and structured files, in bounded memory.

Read `Text`, then `read_text_files`; then how a plain file is cut into pieces or at a separator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.documents.arrow import saved_files
from gptjax.data.documents.document import Document, Quota, require_quota
from gptjax.data.documents.encodings import decode, is_binary, require_encoding, require_text
from gptjax.data.documents.folders import files_below, leads_nowhere
from gptjax.data.documents.opening import opened
from gptjax.data.documents.standard_library import read_standard_library
from gptjax.data.documents.structured import Format, format_of, read_rows


@dataclass(frozen=True)
class Text:
    """Text files. JSON lines, a JSON array, CSV, tables with a header, Parquet and Arrow have one
    document a row, any other file is one document (or several, of 8 MiB); .gz, .bz2, .xz and .zst
    are unpacked."""

    path: str | None = None
    """A file or a folder, also as a URL (gs://, s3://), or a data set that `datasets` saved; `None`
    is the source text of the Python standard library."""
    field: str = "text"
    """Field of a row that has the text; a.b is field b of field a."""
    pattern: str = "**/*"
    """Which files of a folder are read; hidden and binary ones never are."""
    max_bad_records: int = 0
    """Rows, and files of a folder, that may be left out because they cannot be read."""
    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""
    format: Format = "auto"
    """Format of the files; `auto` goes by name and content."""
    separator: str | None = None
    """Text between the documents of a plain file: <|endoftext|>, `\\n` (a line a document) or
    `\\n\\n` (blank lines between them); `None` makes a file one document."""

    def __post_init__(self) -> None:
        require(
            self.path != "",
            "data.source.path is empty; give a file or a folder: pass --data.source.path FILE.",
        )
        pattern = Path(self.pattern)
        require(
            bool(self.pattern) and not pattern.is_absolute() and ".." not in pattern.parts,
            f"data.source.pattern is {self.pattern!r}; it needs a pattern below the folder, for"
            " example '**/*.txt': pass --data.source.pattern.",
        )
        require_quota(self.max_bad_records)
        require_encoding(self.encoding)
        require(
            self.separator != "",
            "data.source.separator is empty; give the text between documents, or null.",
        )


PIECE = 2**23
"""Bytes (8 MiB). A longer text is read as several documents of about this size, so that memory does
not grow with it."""


def read_text_files(
    source: Text,
    pass_over: Callable[[str], Any] = str,
    leave_out: Callable[[str], Any] = str,
) -> Iterator[Document]:
    """Yields every document that isn't empty: files sorted by name, rows in their order.

    Args:
      pass_over: called with each record that the quota lets pass, by file, line and defect.
      leave_out: called with the name of each file of a folder that is binary, and of each link that
        leads nowhere.

    Raises:
      ConfigError: something can't be read, or there is no document at all; on the way, not at the
        call.
    """
    if source.path is None:
        yield from (document for document in read_standard_library() if document.text)
        return
    path, any_text, structured = Path(source.path), False, False
    quota = Quota(source.max_bad_records, pass_over)
    for name, file in text_files(path, source.pattern):
        if leads_nowhere(file):
            leave_out(str(file))
            continue
        kind = format_of(file, source.encoding) if source.format == "auto" else source.format
        structured |= kind != "text"
        documents = file_documents(source, name, file, kind, quota, leave_out, alone=file == path)
        for document in documents:
            if document.text:
                any_text = True
                yield document
    require(any_text, f"{path} is empty; give a source that has text with --data.source.path FILE.")
    require(
        structured or source.field == Text.field,
        f"data.source.field is {source.field!r}, and {path} is plain text, which has no fields;"
        " omit --data.source.field, or name the format with --data.source.format.",
    )


def file_documents(
    source: Text,
    name: str,
    file: Path,
    kind: Format,
    quota: Quota,
    leave_out: Callable[[str], Any] = str,
    *,
    alone: bool,
) -> Iterator[Document]:
    """Yields the documents of one file, empty ones too.

    Args:
      alone: the file is not one of a folder, so it has to be text.
    """
    if kind != "text":
        yield from _read_structured(source, name, file, kind, quota)
    elif _check(file, source, leave_out, alone=alone):
        yield from _read_plain(source, name, file, quota, alone=alone)


def text_files(path: Path, pattern: str) -> list[tuple[str, Path]]:
    """Returns name and path of each file, sorted by name.

    Raises:
      ConfigError: there is none.
    """
    if path.is_dir():
        saved = saved_files(path)
        if saved is not None:
            return [(file.name, file) for file in saved]
        files = files_below(path, pattern)
        require(
            bool(files),
            f"{path} has no file that matches {pattern!r}; pass --data.source.path FILE, or"
            " --data.source.pattern '**/*'.",
        )
        return files
    near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    require(
        path.exists(),
        f"{path} is not there; give a text file or a folder with --data.source.path FILE.{near}",
    )
    require(
        path.is_file(),
        f"{path} is neither a file nor a folder; copy what it gives to a file and pass"
        " --data.source.path FILE.",
    )
    return [(path.name, path)]


def _check(file: Path, source: Text, leave_out: Callable[[str], Any], alone: bool) -> bool:
    """Whether a plain file is text. A binary one is left out of a folder, and refused alone."""
    with opened(file, source.encoding) as stream:
        start = stream.read(8192)
    if alone:
        require_text(start, file)
    elif is_binary(start, strictly=False):
        leave_out(str(file))
        return False
    return True


def _read_structured(
    source: Text, name: str, file: Path, kind: Format, quota: Quota
) -> Iterator[Document]:
    for row in read_rows(file, kind, [source.field], source.encoding):
        if row.defect:
            quota.spend(f"{file}:{row.number}", row.defect)
        else:
            yield Document(row.values[0], f"{name}:{row.number}")


def _read_plain(
    source: Text, name: str, file: Path, quota: Quota, alone: bool
) -> Iterator[Document]:
    with opened(file, source.encoding) as stream:
        pieces = _decoded(_pieces(stream), file, source.encoding)
        try:
            if source.separator is None:
                for at, text in pieces:
                    yield Document(text, f"{name}@{at}" if at else name)
            else:
                for number, text in enumerate(_parts(pieces, typed(source.separator)), 1):
                    yield Document(text, f"{name}:{number}")
        except ConfigError as error:
            if alone or not quota.most:
                raise
            message = str(error).removeprefix(str(file)).rstrip(".")
            quota.spend(str(file), message.strip())


def typed(text: str) -> str:
    r"""Returns a text of a flag with the `\n` and `\t` that a shell gives as two characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _decoded(
    pieces: Iterator[tuple[int, bytes]], file: Path, encoding: str
) -> Iterator[tuple[int, str]]:
    for at, piece in pieces:
        yield at, decode(piece, file, at, encoding)


def _pieces(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, bytes): all, if that is at most `PIECE`; else pieces that end after a
    newline, or at least after a character."""
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


def _parts(pieces: Iterator[tuple[int, str]], separator: str) -> Iterator[str]:
    """The texts between separators; one that is longer than two pieces is given in parts."""
    waiting = ""
    for _, text in pieces:
        *whole, waiting = (waiting + text).split(separator)
        yield from whole
        if len(waiting) > PIECE:
            yield waiting[: -len(separator)]
            waiting = waiting[-len(separator) :]
    yield waiting
