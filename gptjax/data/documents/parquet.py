"""Columns of Parquet files, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gptjax.core.config import ConfigError
from gptjax.data.documents.opening import Unpacked

BATCH = 2**26
"""Bytes (64 MiB) up to which rows are read together."""


def read_columns(
    path: Path, fields: Sequence[str], check: Callable[[list[str]], None]
) -> Iterator[tuple[Any, ...]]:
    """Yields the values of `fields` in each row.

    Args:
      check: called with the names of all columns before anything is read.

    Raises:
      ConfigError: the file can't be read, or holds more than a file of its size can; on the way,
        not at the call.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(f"reading {path} needs pyarrow; run `pip install pyarrow`.") from None
    try:
        with parquet.ParquetFile(path) as file:
            metadata = file.metadata
            check(file.schema_arrow.names)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        columns = [column for column in columns if column.path_in_schema in fields]
        Unpacked(path).add(sum(column.total_uncompressed_size for column in columns))
        rows = _rows_together(path, columns)
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=list(fields)):
                yield from zip(*(batch.column(field).to_pylist() for field in fields), strict=True)
    except (ArrowException, OSError) as error:
        raise ConfigError(
            f"{path} can't be read as Parquet ({' '.join(str(error).split())}); fetch it again, or"
            " pass another with --data.source.path FILE."
        ) from None


def _rows_together(path: Path, columns: Sequence[Any]) -> int:
    """The number of rows that surely fit into `BATCH`.

    Rows may all refer to the longest value of a dictionary, which a file holds once.
    """
    with path.open("rb") as stream:
        longest = [_dictionary_size(stream, column) for column in columns]
    longest += [c.total_uncompressed_size // max(1, c.num_values) for c in columns]
    return max(1, min(1024, BATCH // max(1, *longest, 0)))


def _dictionary_size(stream: BinaryIO, column: Any) -> int:
    """Bytes of a column chunk's dictionary, unpacked; 0 without one.

    Its page comes first. A page's header begins with its type and this size, both as integers of
    variable length in Thrift's compact protocol.
    """
    offsets = (column.dictionary_page_offset, column.data_page_offset)
    stream.seek(min((offset for offset in offsets if offset), default=0))
    header = io.BytesIO(stream.read(12))
    kind, size = (_thrift_integer(header) for _ in range(2))
    return size if kind == 2 else 0


def _thrift_integer(header: BinaryIO) -> int:
    """The next field of a Thrift structure, an integer."""
    header.read(1)  # the field's number and type
    value = shift = 0
    while byte := header.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    return value >> 1 ^ -(value & 1)
