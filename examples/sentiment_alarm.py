"""Reads a stream of lines, classifies each, and sounds an alarm when the share of one label has
changed: news of a company that turn bad, answers of customers that turn angry.

    tail -f news.txt | python examples/sentiment_alarm.py runs/polarity --label negative
    python examples/sentiment_alarm.py runs/polarity --label negative reviews.txt

The first `--learn` lines say what share is usual. From then on two cumulative sums (CUSUM) add each
line's log-likelihood ratio of twice or half the usual odds against the usual ones; below zero they
begin again. One that passes ln(2 / rate) is an alarm, and begins again: false alarms are one in
1 / rate lines or fewer on average, if lines are independent and the usual share is known (Lorden
1971, Procedures for Reacting to a Change in Distribution); learned from few lines, it is not.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import gptjax


class Watch(NamedTuple):
    """Two sums and their bound."""

    gains: tuple[tuple[float, float], ...]
    """What a sum adds for a line that has the label, and for one that has not."""
    bound: float
    sums: tuple[float, ...] = (0.0, 0.0)


class Alarm(NamedTuple):
    """A change, and the line at which it was noticed, counted from 1."""

    line: int
    change: str
    share: float
    """Of the label, in the last 100 lines."""


def watch(usual: float, odds: float, rate: float) -> Watch:
    """A watch over a usual share, for a change of its odds by a factor."""
    gains = []
    for factor in (odds, 1 / odds):
        other = usual * factor / (1 - usual + usual * factor)
        gains.append((math.log(other / usual), math.log((1 - other) / (1 - usual))))
    return Watch(tuple(gains), math.log(2 / rate))


def add(watched: Watch, has_label: bool) -> tuple[Watch, tuple[bool, ...]]:
    """Adds one line; says which of the sums (more, less) have passed the bound and begin again."""
    sums = [
        max(0.0, total + gain[not has_label])
        for total, gain in zip(watched.sums, watched.gains, strict=True)
    ]
    passed = tuple(total > watched.bound for total in sums)
    left = tuple(0.0 if over else total for total, over in zip(sums, passed, strict=True))
    return watched._replace(sums=left), passed


def alarms(
    labels: Iterable[bool], *, learn: int = 300, odds: float = 2.0, rate: float = 1e-3
) -> Iterator[Alarm]:
    """Yields each change of the share of lines that have the label."""
    told, recent = iter(labels), deque(maxlen=100)
    known = list(itertools.islice(told, learn))
    watched = watch((sum(known) + 1) / (len(known) + 2), odds, rate)  # neither 0 nor 1
    for line, has_label in enumerate(told, len(known) + 1):
        watched, passed = add(watched, has_label)
        recent.append(has_label)
        for change, over in zip(("more", "less"), passed, strict=True):
            if over:
                yield Alarm(line, change, sum(recent) / len(recent))


def labels_of(lines: Iterable[str], model: gptjax.Model) -> Iterator[str]:
    """Yields the label of each line that is not empty, as soon as it is there."""
    for line in lines:
        if line.strip():
            yield model.classify([line.strip()], batch=1)[0].label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run that classifies, such as runs/polarity")
    parser.add_argument("file", nargs="?", type=argparse.FileType("r"), default=sys.stdin)
    parser.add_argument("--label", default="negative")
    parser.add_argument("--learn", type=int, default=300, help="lines that say what is usual")
    parser.add_argument("--rate", type=float, default=1e-3, help="false alarms in a line, at most")
    args = parser.parse_args()
    labels = labels_of(args.file, gptjax.load(args.run))
    found = (label == args.label for label in labels)
    for one in alarms(found, learn=args.learn, rate=args.rate):
        print(f"line {one.line}: {one.change} {args.label}, {one.share:.0%} of late", flush=True)


if __name__ == "__main__":
    main()
