"""What is known of a cleaned shard until all are cleaned: a folder of files, committed by a rename,
so that it is whole or absent however a process ends.

Read `commit_shard`, then `Shards`, which reads columns over all shards.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.clean import minhash
from gptjax.clean.minhash import Hashes
from gptjax.clean.records import Item, json_line, texts_at
from gptjax.clean.stages import Judged
from gptjax.data.cleaning import Cleaning

EXAMPLES = 3
"""Dropped records of a rule that a report shows."""


def shard_folder(work: Path, number: int) -> Path:
    """Returns the folder of a shard."""
    return work / f"{number:06d}"


def commit_shard(
    work: Path, number: int, judged: Judged, settings: Cleaning, facts: dict[str, Any]
) -> None:
    """Writes a shard.

    Args:
      facts: what the report counts of it.
    """
    draft = work / f".making-{number:06d}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    offsets = [0]
    with (draft / "kept.jsonl").open("wb") as stream:
        for item in judged.kept:
            offsets.append(offsets[-1] + stream.write(json_line(item.record)))
    summary = {
        **facts,
        "counts": judged.counts,
        "dropped": [(stage, *one[:3]) for stage, one in judged.dropped],
        "examples": examples(judged),
    }
    kinds = sorted({item.fields for item in judged.kept})
    mixed = [kinds.index(item.fields) for item in judged.kept] if len(kinds) > 1 else []
    content = {
        "summary": summary,
        "places": [item.place for item in judged.kept],
        "fields": [kinds, mixed],
    }
    for name, value in content.items():
        (draft / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    for name, column in _columns(judged.kept, settings).items():
        np.save(draft / f"{name}.npy", column)
    np.save(draft / "offsets.npy", np.asarray(offsets, np.int64))
    for file in draft.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    try:
        draft.rename(shard_folder(work, number))
    except OSError:
        if not shard_folder(work, number).is_dir():
            raise
        shutil.rmtree(draft)  # another process committed the same


def examples(judged: Judged) -> dict[str, list[tuple[Any, ...]]]:
    """Returns place, measured value and snippet of the first records that each rule dropped."""
    shown: dict[str, list[tuple[Any, ...]]] = {}
    for _, one in judged.dropped:
        some = shown.setdefault(one.rule, [])
        if len(some) < EXAMPLES:
            some.append((one.place, one.value, one.snippet))
    return shown


def _columns(kept: Sequence[Item], settings: Cleaning) -> dict[str, np.ndarray]:
    """Hashes of whole texts [2 n], of bands [bands n], and of lines with the record of each."""
    functions, how = minhash.Functions(settings.duplicates, settings.seed), settings.duplicates
    exact = np.zeros((2, len(kept)), np.uint64)
    bands = np.zeros((how.bands if how.near else 0, len(kept)), np.uint64)
    lines: list[int] = []
    owners: list[int] = []
    for number, item in enumerate(kept):
        text = item.text
        words = minhash.compared_words(text)
        exact[:, number] = minhash.exact_hash(words or [text])
        if how.near:
            bands[:, number] = functions.band_hashes(minhash.ngram_hashes(words, how.ngram))
        if how.lines:
            found = [value for _, value in minhash.line_hashes(text, how)]
            lines += found
            owners += [number] * len(found)
    return {
        "exact": exact,
        "bands": bands,
        "lines": np.asarray(lines, np.uint64),
        "owners": np.asarray(owners, np.int32),
    }


class Shards:
    """All committed shards of a folder, their records numbered from 0 on."""

    def __init__(self, work: Path, count: int):
        self.folders = [shard_folder(work, number) for number in range(count)]
        sizes = [len(self._array(k, "offsets")) - 1 for k in range(count)]
        self.starts = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._fields = functools.lru_cache(maxsize=256)(functools.partial(self._read, "fields"))
        self._places = functools.lru_cache(maxsize=8)(functools.partial(self._read, "places"))

    @property
    def records(self) -> int:
        """Number of records in all shards."""
        return self.starts[-1]

    def column(self, name: str, row: int | None = None) -> Iterator[Hashes]:
        """Yields a column, or one row of it, shard by shard."""
        for number in range(len(self.folders)):
            array = self._array(number, name)
            yield np.asarray(array if row is None else array[row])

    def owners(self) -> Iterator[np.ndarray]:
        """Yields the number of the record of each line, shard by shard."""
        for start, owners in zip(self.starts, self.column("owners"), strict=False):
            yield owners + start

    def _array(self, number: int, name: str) -> np.ndarray:
        return np.load(self.folders[number] / f"{name}.npy", mmap_mode="r")

    def _read(self, name: str, shard: int) -> Any:
        return json.loads((self.folders[shard] / f"{name}.json").read_bytes())

    def summary(self, shard: int) -> dict[str, Any]:
        """What the report counts of a shard."""
        return self._read("summary", shard)

    def fields(self, shard: int, at: int) -> tuple[str, ...]:
        """Paths of the texts of a record."""
        kinds, mixed = self._fields(shard)
        return tuple(kinds[mixed[at] if mixed else 0])

    def lines_of(self, shard: int) -> Iterator[bytes]:
        """Yields the kept records of a shard, as lines of JSON."""
        with (self.folders[shard] / "kept.jsonl").open("rb") as stream:
            yield from stream

    def _where(self, record: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self.starts, record) - 1
        return shard, record - self.starts[shard]

    def place(self, record: int) -> str:
        """The place of a record in the source."""
        shard, at = self._where(record)
        return self._places(shard)[at]

    def text(self, record: int) -> str:
        """The text of a record."""
        shard, at = self._where(record)
        begin, end = self._array(shard, "offsets")[at : at + 2].tolist()
        with (self.folders[shard] / "kept.jsonl").open("rb") as stream:
            stream.seek(begin)
            line = stream.read(end - begin)
        return "\n".join(texts_at(json.loads(line), self.fields(shard, at)))
