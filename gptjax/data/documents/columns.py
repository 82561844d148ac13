"""Rows of files whose columns have types.

Read `read_columns`, then a format's own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptjax.core.config import ConfigError
from gptjax.data.documents.arrow import arrow_batches
from gptjax.data.documents.parquet import parquet_batches

BATCHES = {"parquet": parquet_batches, "arrow": arrow_batches}
"""Format → what yields the batches of a file's rows."""


def read_columns(
    path: Path, kind: str, fields: Sequence[str] | None, check: Callable[[list[str]], None]
) -> Iterator[tuple[Any, ...]]:
    """Yields the values of `fields` in each row.

    Args:
      kind: the format, of `BATCHES`.
      fields: names of columns; `None` is all.
      check: called with the names of all columns before anything is read.

    Raises:
      ConfigError: the file can't be read, or holds more than a file of its size can; on the way,
        not at the call.
    """
    try:
        from pyarrow import ArrowException

        try:
            for batch in BATCHES[kind](path, fields, check):
                names = batch.schema.names if fields is None else fields
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        except (ArrowException, OSError) as error:
            raise ConfigError(
                f"{path} can't be read as {kind.title()} ({' '.join(str(error).split())}); fetch it"
                " again, or pass another with --data.source.path FILE."
            ) from None
    except ImportError:
        raise ConfigError(f"reading {path} needs pyarrow; run `pip install pyarrow`.") from None
