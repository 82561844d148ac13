"""Files of records, one file or two of which one is held out: what all kinds of records share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gptjax.core.config import require
from gptjax.data.documents.arrow import saved_files
from gptjax.data.documents.document import Document, Quota, require_quota
from gptjax.data.documents.encodings import require_encoding


class RecordFiles(Protocol):
    """The settings of a source of records."""

    @property
    def path(self) -> str:
        """The file, or the folder of a data set that `datasets` saved."""
        ...

    @property
    def held_out(self) -> str | None:
        """A file that is held out as a whole."""
        ...

    @property
    def max_bad_records(self) -> int:
        """Records that may be left out."""
        ...

    @property
    def encoding(self) -> str:
        """Encoding of the files."""
        ...


class Entry(NamedTuple):
    """A record of a file: what becomes a document, or what is wrong with it."""

    number: int
    """Its line, or its place in an array, from 1."""
    text: str = ""
    source: str = ""
    """What the text answers; records of one source are in one part of the split."""
    defect: str = ""


def require_record_files(source: RecordFiles) -> None:
    """Refuses settings that name no file, a negative quota or an unknown encoding."""
    require(
        source.path != "", "data.source.path is empty; give a file: pass --data.source.path FILE."
    )
    require_quota(source.max_bad_records)
    require_encoding(source.encoding)


def read_record_files(
    source: RecordFiles,
    entries: Callable[[Path], Iterable[Entry]],
    kind: str,
    pass_over: Callable[[str], Any],
) -> Iterator[Document]:
    """Yields each record of a source as a document.

    Args:
      entries: reads one file.
      kind: what to give where a file has none, such as "a file of conversations".
      pass_over: called with each record that the quota lets pass, by file, line and defect.

    Raises:
      ConfigError: a record can't be read, or there is none; on the way, not at the call.
    """
    quota = Quota(source.max_bad_records, pass_over)
    files = [(Path(source.path), None if source.held_out is None else False)]
    if source.held_out is not None:
        files.append((Path(source.held_out), True))
    for path, held_out in files:
        any_record = False
        for file in (saved_files(path) if path.is_dir() else None) or [path]:
            for number, text, asked, defect in entries(file):
                if defect:
                    quota.spend(f"{file}:{number}", defect)
                    continue
                any_record = True
                yield Document(text, f"{file.name}:{number}", source=asked, held_out=held_out)
        require(any_record, f"{path} has no records; give {kind} with --data.source.path FILE.")
