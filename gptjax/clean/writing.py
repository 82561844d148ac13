"""The third pass: writes the records that stay, and a line for each that does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.clean.duplicates import Found
from gptjax.clean.minhash import line_hashes
from gptjax.clean.records import Item, json_line
from gptjax.clean.report import Report, Tally
from gptjax.clean.shard_files import Shards
from gptjax.clean.stage import dropped_item
from gptjax.clean.work import Job
from gptjax.data.cleaning import Cleaning, Sample
from gptjax.data.documents.writing import write_lines

DATA = "data"
"""Folder, within that of the output, of the records that stay."""


def write_all(
    job: Job,
    out: Path,
    shards: Shards,
    found: Found,
    lines: np.ndarray | None,
    passed_over: Sequence[str],
) -> Report:
    """Writes `data/` and `dropped.jsonl` and returns the report.

    Args:
      lines: places of the lines to remove, among all that were compared.
      passed_over: place and defect of records that could not be read.
    """
    (out / DATA).mkdir(exist_ok=True)
    tally, outputs = Tally(), []

    def dropped() -> Iterator[bytes]:
        for message in passed_over:
            tally.unreadable(message)
            yield json_line({"stage": "read", "rule": "unreadable", "value": message})
        writer = ShardWriter(job.cleaning, shards, found, lines)
        for number in range(len(shards.folders)):
            yield from tally.shard(shards.summary(number))
            path = out / DATA / f"{number:06d}.{job.packing}"
            count, digest = write_lines(path, writer.kept(number, tally), job.packing)
            yield from tally.later_lines()
            if count:
                outputs.append({"file": f"{DATA}/{path.name}", "records": count, "sha256": digest})
            else:
                path.unlink()

    _, digest = write_lines(out / "dropped.jsonl", dropped(), "jsonl")
    return tally.report(job, outputs, digest)


class ShardWriter:
    """Gives the records of each shard that stay, in order."""

    def __init__(self, cleaning: Cleaning, shards: Shards, found: Found, lines: np.ndarray | None):
        self.cleaning, self.shards, self.found, self.lines = cleaning, shards, found, lines
        self.line = 0
        """Number of lines that were compared in the records before."""

    def kept(self, shard: int, tally: Tally) -> Iterator[bytes]:
        """Yields the lines of a shard that stay, and tells the tally of all."""
        for at, line in enumerate(self.shards.lines_of(shard)):
            number = self.shards.starts[shard] + at
            item = Item(self.shards.place(number), json.loads(line), self.shards.fields(shard, at))
            edited = self._without_lines(item, tally)
            of = max(int(self.found.exact[number]), int(self.found.near[number]))
            if of >= 0:
                rule = "exact" if self.found.exact[number] >= 0 else "near"
                tally.later(rule, dropped_item(item, f"{rule}_duplicate", self.shards.place(of)))
            elif not edited.text.strip():
                tally.later("lines", dropped_item(item, "duplicate_lines"))
            else:
                copies = copies_of(item.place, self.cleaning.sample, self.cleaning.seed)
                if not copies:
                    tally.later("sample", dropped_item(item, "not_sampled"))
                for _ in range(copies):
                    tally.written(edited)
                    yield line if edited is item else json_line(edited.record)

    def _without_lines(self, item: Item, tally: Tally) -> Item:
        """The record without the lines that stood in an earlier one."""
        settings = self.cleaning.duplicates
        if self.lines is None:
            return item
        compared = [number for number, _ in line_hashes(item.text, settings)]
        begin, self.line = self.line, self.line + len(compared)
        inside = slice(*np.searchsorted(self.lines, [begin, self.line]))
        gone = {compared[place - begin] for place in self.lines[inside].tolist()}
        if not gone:
            return item
        tally.edits["lines"] += len(gone)
        return item.edited(_line_remover(gone))


def _line_remover(gone: set[int]) -> Any:
    """Removes lines by their number, counted through the texts of a record."""
    at = 0

    def without(text: str) -> str:
        nonlocal at
        lines = text.split("\n")
        kept = [line for number, line in enumerate(lines, at) if number not in gone]
        at += len(lines)
        return "\n".join(kept)

    return without


def copies_of(place: str, sample: Sample, seed: int) -> int:
    """Returns how often a record is written: the whole part of its source's weight, and once more
    with the probability of the rest, drawn from a hash of the seed and its place."""
    name = place.rsplit(":", 1)[0].split("@")[0]
    weight = next(
        (w for p, w in zip(sample.sources, sample.weights, strict=True) if fnmatchcase(name, p)),
        1.0,
    )
    drawn = hashlib.blake2b(f"{seed}\n{place}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int(weight) + (int.from_bytes(drawn.digest(), "little") / 2**64 < weight % 1)
