"""What a cleaning did, as counts: `clean.json`, from which `clean.html` is made. It has no times,
so that it too is a function of source and settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptjax.clean.page import clean_page
from gptjax.clean.records import Item, json_line
from gptjax.clean.shard_files import EXAMPLES
from gptjax.clean.stage import Dropped
from gptjax.clean.stages import LATER, ORDER
from gptjax.core.config import to_dict
from gptjax.data.documents.writing import write_lines

if TYPE_CHECKING:
    from gptjax.clean.work import Job

Report = dict[str, Any]
STAGES = ("read", *(name for name, _ in ORDER), *(LATER[:2]), "lines", "sample")


class Tally:
    """Counts what is read, dropped and written."""

    def __init__(self) -> None:
        self.rules: dict[str, Counter[str]] = {name: Counter() for name in STAGES}
        self.counts: dict[str, Counter[str]] = {}
        self.edits: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self.digest = hashlib.sha256()
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.lengths: dict[str, Counter[int]] = {"read": Counter(), "written": Counter()}
        self.waiting: list[tuple[str, Dropped]] = []

    def unreadable(self, message: str) -> None:
        """Counts a record that could not be read."""
        self.rules["read"]["unreadable"] += 1
        self.read["records"] += 1
        self._show("unreadable", Dropped("", "unreadable", message))

    def shard(self, summary: dict[str, Any]) -> Iterator[bytes]:
        """Counts what the stages did with a shard, and yields a line for each dropped record."""
        self.digest.update(summary["digest"].encode())
        for name in ("records", "characters"):
            self.read[name] += summary[name]
        for power, number in summary["lengths"].items():
            self.lengths["read"][int(power)] += number
        for stage, counts in summary["counts"].items():
            self.counts.setdefault(stage, Counter()).update(counts)
        for rule, some in summary["examples"].items():
            for place, value, snippet in some:
                self._show(rule, Dropped(place, rule, value, snippet))
        for stage, place, rule, value in summary["dropped"]:
            self.rules[stage][rule] += 1
            yield _line(stage, Dropped(place, rule, value))

    def later(self, stage: str, one: Dropped) -> None:
        """Counts a record that was dropped when all were known."""
        self.rules[stage][one.rule] += 1
        self._show(one.rule, one)
        self.waiting.append((stage, one))

    def later_lines(self) -> Iterator[bytes]:
        """Yields the lines of the records that `later` was told of since."""
        waiting, self.waiting = self.waiting, []
        return (_line(stage, one) for stage, one in waiting)

    def written(self, item: Item) -> None:
        """Counts a record that is written."""
        text = item.text
        self.kept["records"] += 1
        self.kept["characters"] += len(text)
        self.lengths["written"][int(math.log2(max(1, len(text))))] += 1

    def _show(self, rule: str, one: Dropped) -> None:
        some = self.examples.setdefault(rule, [])
        if len(some) < EXAMPLES:
            some.append({"place": one.place, "value": one.value, "text": one.snippet})

    def report(self, job: Job, outputs: list[dict[str, Any]], dropped: str) -> Report:
        """Returns the report.

        Args:
          outputs: name, number of records and sha256 of each file.
          dropped: sha256 of the list of dropped records.
        """
        together = hashlib.sha256("".join(one["sha256"] for one in outputs).encode()).hexdigest()
        number = sum(map(Counter.total, self.rules.values()))
        report = {
            "name": Path(str(job.source.path)).name,
            "headline": "",
            "source": {**self.read, "sha256": self.digest.hexdigest()},
            "written": {**self.kept, "sha256": together},
            "dropped": {"records": number, "sha256": dropped},
            "stages": [
                {"stage": name, "dropped": dict(sorted(rules.items()))}
                for name, rules in self.rules.items()
            ],
            "counts": {
                name: dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))
                for name, counts in self.counts.items()
                if counts
            },
            "edits": dict(self.edits),
            "lengths": {
                name: {str(k): counts[k] for k in sorted(counts)}
                for name, counts in self.lengths.items()
            },
            "examples": self.examples,
            "outputs": outputs,
            "seed": job.cleaning.seed,
            "config": to_dict(job.cleaning),
        }
        report["headline"] = share_left(report)
        return report


def share_left(report: Report) -> str:
    """Returns a line that says how much is left."""
    read, written = report["source"], report["written"]
    share = written.get("characters", 0) / max(1, read.get("characters", 0))
    return (
        f"{written.get('records', 0):,} of {read.get('records', 0):,} records,"
        f" {share:.1%} of the characters"
    )


def _line(stage: str, one: Dropped) -> bytes:
    """A line of dropped.jsonl."""
    return json_line({"place": one.place, "stage": stage, "rule": one.rule, "value": one.value})


def write_clean_report(out: Path, report: Report) -> None:
    """Writes clean.html, then clean.json, which says that all is there.

    Raises:
      ConfigError: they can't be written.
    """
    content = {
        "clean.html": clean_page(report),
        "clean.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in content.items():
        write_lines(out / name, [text.encode("utf-8", "backslashreplace")], "jsonl")
