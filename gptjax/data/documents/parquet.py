"""Batches of the rows of Parquet files, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gptjax.data.documents.opening import Unpacked

BATCH = 2**26
"""Bytes (64 MiB) up to which rows are read together."""


def parquet_batches(
    path: Path, fields: Sequence[str] | None, check: Callable[[list[str]], None]
) -> Iterator[Any]:
    """Yields the rows of a Parquet file, the columns of `fields` alone, as many at a time as fit
    into `BATCH`. For arguments and errors see `columns.read_columns`."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        metadata = file.metadata
        check(file.schema_arrow.names)
        names = file.schema_arrow.names if fields is None else list(fields)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    columns = [c for c in columns if fields is None or c.path_in_schema in fields]
    Unpacked(path).add(sum(column.total_uncompressed_size for column in columns))
    rows = _rows_together(path, columns)
    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=rows, columns=names)


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
