"""Records of two texts, one the answer to the other: pairs of sentences, a text and its label.

Read `Records`, then `read_records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.core.config import require
from gptjax.data.documents.document import Document
from gptjax.data.documents.record_files import Entry, read_record_files, require_record_files
from gptjax.data.documents.structured import Row, format_of, read_rows


@dataclass(frozen=True)
class Records:
    """A file of records, of which two fields are read: JSON lines, a JSON array, CSV and Parquet by
    name, other tables by column; .gz, .bz2, .xz and .zst are unpacked."""

    path: str
    """A file: .jsonl, .ndjson, .json or .parquet; .csv, whose first line names its columns; any
    other has columns between tabs, numbered from 1."""
    source: str = "1"
    """The field that is read; a.b is field b of field a."""
    target: str = "2"
    """The field that is the answer: text, or a whole number."""
    held_out: str | None = None
    """A file of the same kind that is held out as a whole; `None` holds out `data.validation` of
    the records, by their source."""
    max_bad_records: int = 0
    """Records that may be left out because they cannot be read."""
    encoding: str = "utf-8"
    """Encoding of the files, as Python names it."""

    def __post_init__(self) -> None:
        require(
            self.source != self.target,
            f"data.source.source and target are both {self.source!r}; they need two fields: pass"
            " --data.source.target FIELD.",
        )
        require_record_files(self)


def read_records(source: Records, pass_over: Callable[[str], Any] = str) -> Iterator[Document]:
    """Yields each record as a document: the answer as its text, what it answers as its source.

    Args:
      pass_over: called with each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a file or a record can't be read, or there is none; on the way, not at the call.
    """
    fields = (source.source, source.target)

    def entries(file: Path) -> Iterator[Entry]:
        require(
            file.is_file(),
            f"{file} is not there; give a file of records with --data.source.path FILE.",
        )
        kind = format_of(file, source.encoding, otherwise="tsv")
        for row in read_rows(file, kind, fields, source.encoding, numbers=True):
            if defect := row.defect or _empty(row, fields):
                yield Entry(row.number, defect=defect)
            else:
                text, answer = row.values
                yield Entry(row.number, answer, text)

    return read_record_files(source, entries, "a file that has some", pass_over)


def _empty(row: Row, fields: tuple[str, str]) -> str:
    """A defect, if one of the texts is blank."""
    blank = (field for field, text in zip(fields, row.values, strict=True) if not text.strip())
    return next((f"has nothing in {field!r}" for field in blank), "")
