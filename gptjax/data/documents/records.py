"""Records of two texts, one the answer to the other: pairs of sentences, a text and its label.

Read `Records`, then `read`, then how a line becomes a pair.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError, nearest, require
from gptjax.data.documents import files
from gptjax.data.documents.files import Document, lines_of, opened


@dataclass(frozen=True)
class Records:
    """A file with a record a line, of which two fields are read: JSON lines by name, .tsv, .csv and
    other tables by column; .gz is unpacked."""

    path: str
    """A file: .jsonl or .ndjson; .csv, whose first line names its columns; any other has columns
    between tabs, numbered from 1."""
    source: str = "1"
    """The field that is read."""
    target: str = "2"
    """The field that is answered."""
    held_out: str | None = None
    """A file of the same kind that is held out as it stands; none holds out `data.validation` of
    the records, by their source."""
    max_bad_records: int = 0
    """Records that may be passed over because nothing can be read from them."""

    def __post_init__(self) -> None:
        require(
            self.path != "", "data.source.path is empty; give a file: pass --data.source.path FILE."
        )
        require(
            self.source != self.target,
            f"data.source.source and target are both {self.source!r}; they need two fields: pass"
            " --data.source.target FIELD.",
        )
        require(
            self.max_bad_records >= 0,
            f"data.source.max_bad_records is {self.max_bad_records}; it needs 0 or more: pass"
            " --data.source.max-bad-records N.",
        )


def read(source: Records, pass_over: Callable[[str], Any] = str) -> Iterator[Document]:
    """Gives each record as a document, the answer as its text and what it answers beside it.

    Args:
      pass_over: is told of each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a file or a record can't be read, or there is none; on the way, not at the call.
    """
    bad = 0
    for file, held_out in (
        (source.path, None if source.held_out is None else False),
        (source.held_out, True),
    ):
        found = False
        for where, pair, defect in _pairs(source, Path(file)) if file else ():
            bad += bool(defect)
            allowed = (
                f"mend it, or pass --data.source.max-bad-records N (now {source.max_bad_records})"
                " to do without"
            )
            require(bad <= source.max_bad_records, f"{where} {defect}; {allowed}.")
            if defect:
                pass_over(f"{where} {defect}")
                continue
            found = True
            yield Document(
                pair[1], f"{Path(file).name}:{where.rpartition(':')[2]}", pair[0], held_out
            )
        require(
            found or not file,
            f"{file} has no records; give a file that has some with --data.source.path FILE.",
        )


def _pairs(source: Records, path: Path) -> Iterator[tuple[str, tuple[str, str], str]]:
    """Gives (file:line, the two texts, what is wrong)."""
    require(
        path.is_file(), f"{path} is not there; give a file of records with --data.source.path FILE."
    )
    name, wanted = path.name.lower().removesuffix(".gz"), (source.source, source.target)
    with opened(path) as stream:
        if name.endswith((".jsonl", ".ndjson")):
            for number, line in lines_of(stream):
                both = [files.record(line, field) for field in wanted]
                texts, defects = zip(*both, strict=True)
                yield (
                    f"{path}:{number}",
                    texts,
                    next(filter(None, defects), "") or _empty(texts, wanted),
                )
            return
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = (
            csv.reader(text, strict=True)
            if name.endswith(".csv")
            else csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        )
        try:
            columns = _columns(path, wanted, next(rows, []) if name.endswith(".csv") else None)
            for row in filter(None, rows):
                short = (
                    f"has {len(row)} columns and column {max(columns) + 1} is wanted"
                    if len(row) <= max(columns)
                    else ""
                )
                texts = ("", "") if short else tuple(row[column] for column in columns)
                yield f"{path}:{rows.line_num}", texts, short or _empty(texts, wanted)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} after line"
                f" {rows.line_num}); convert it first."
            ) from None
        except csv.Error as error:
            raise ConfigError(
                f"{path}:{rows.line_num} is no line of a table ({error}); mend it, or pass another"
                " file with --data.source.path FILE."
            ) from None


def _columns(path: Path, wanted: tuple[str, str], header: list[str] | None) -> tuple[int, ...]:
    """Where a row has the fields: by name where the first line names them, else by number."""
    if header is not None:
        for field in wanted:
            has = f"it has {', '.join(map(repr, header[:10])) or 'none'}"
            require(
                field in header,
                f"{path} has no column {field!r} ({has}); name one with --data.source.source and"
                f" target.{nearest(field, header)}",
            )
        return tuple(map(header.index, wanted))
    for field in wanted:
        numbered = field.isascii() and field.isdigit() and int(field) > 0
        require(
            numbered,
            f"{path} has no names of columns, so {field!r} is none; give their numbers, from 1"
            " (--data.source.source 1 --data.source.target 2).",
        )
    return tuple(int(field) - 1 for field in wanted)


def _empty(texts: tuple[str, ...], wanted: tuple[str, str]) -> str:
    return next(
        (
            f"has nothing in {field!r}"
            for field, text in zip(wanted, texts, strict=True)
            if not text.strip()
        ),
        "",
    )
