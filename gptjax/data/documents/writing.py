"""Writes lines of JSON to a file, packed or not, or as the rows of a Parquet file. The bytes are a
function of the lines: they hold no time and no name."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gptjax.core.config import ConfigError

Packing = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
LEVEL = 6
"""Of gzip, which is what most programs write."""


def write_lines(path: Path, lines: Iterable[bytes], packing: Packing) -> tuple[int, str]:
    """Writes a file at once or not at all, and returns the number of lines and its sha256 in hex.

    Args:
      lines: objects of JSON, each ended by \\n.

    Raises:
      ConfigError: the file can't be written, or a package is missing.
    """
    partial = path.with_name(f".{path.name}.partial")
    write = _write_parquet if packing == "parquet" else _write_stream
    try:
        count = write(partial, lines, packing)
        digest = file_hash(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(
            f"{path} can't be written ({error.strerror or error}); make room, or choose another"
            " folder."
        ) from None
    return count, digest


def file_hash(path: Path) -> str:
    """Returns the sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _packed(path: Path, packing: Packing) -> Iterator[BinaryIO | Any]:
    with path.open("wb") as file:
        if packing == "jsonl.gz":
            with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as stream:
                yield stream
        elif packing == "jsonl.zst":
            with _pyarrow(path).CompressedOutputStream(file, "zstd") as stream:
                yield stream
        else:
            yield file


def _write_stream(path: Path, lines: Iterable[bytes], packing: Packing) -> int:
    count = 0
    with _packed(path, packing) as stream:
        for line in lines:
            stream.write(line)
            count += 1
    return count


def _write_parquet(path: Path, lines: Iterable[bytes], packing: Packing) -> int:
    """Writes one column of text for each field; what is no text is in JSON."""
    pa = _pyarrow(path)
    from pyarrow import parquet

    records = [json.loads(line) for line in lines]
    names = sorted({name for record in records for name in record}) or ["text"]
    columns = {name: [_cell(record.get(name)) for record in records] for name in names}
    schema = pa.schema([(name, pa.string()) for name in names])
    parquet.write_table(pa.table(columns, schema=schema), path, compression="zstd")
    return len(records)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigError(
            f"writing {path.suffix[1:]} needs pyarrow; run `pip install 'gptjax[clean]'`, or write"
            " jsonl: pass --packing jsonl."
        ) from None
    return pa
