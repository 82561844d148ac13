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
from contextlib import nullcontext
from typing import NamedTuple

import gptjax


class Watch(NamedTuple):
    """Two sums, their bound, and what each adds for a line with the label and for one without."""

    gains: tuple[tuple[float, float], ...]
    bound: float
    sums: tuple[float, ...] = (0.0, 0.0)


class Alarm(NamedTuple):
    """A change, the line at which it was noticed, from 1, and the share in the last 100 lines."""

    line: int
    change: str
    share: float


def watch(usual: float, odds: float, rate: float) -> Watch:
    """A watch over a usual share, for a change of its odds by a factor."""
    scales = [(factor, 1 - usual + usual * factor) for factor in (odds, 1 / odds)]
    gains = tuple((math.log(factor / scale), -math.log(scale)) for factor, scale in scales)
    return Watch(gains, math.log(2 / rate))


def add(watched: Watch, has_label: bool) -> tuple[Watch, tuple[bool, ...]]:
    """Adds one line; says which of the sums (more, less) have passed the bound and begin again."""
    sums = [
        max(0.0, total + gain[not has_label])
        for total, gain in zip(watched.sums, watched.gains, strict=True)
    ]
    passed = tuple(total > watched.bound for total in sums)
    left = tuple(total * (total <= watched.bound) for total in sums)
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
    for line in filter(str.strip, lines):
        yield model.classify([line.strip()], batch=1)[0].label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run that classifies, such as runs/polarity")
    parser.add_argument("file", nargs="?", help="lines; standard input without it")
    parser.add_argument("--label", default="negative", help="the label whose share is watched")
    parser.add_argument("--learn", type=int, default=300, help="lines that say what is usual")
    parser.add_argument("--rate", type=float, default=1e-3, help="false alarms in a line, at most")
    args = parser.parse_intermixed_args()
    with open(args.file) if args.file else nullcontext(sys.stdin) as lines:
        found = (label == args.label for label in labels_of(lines, gptjax.load(args.run)))
        for one in alarms(found, learn=args.learn, rate=args.rate):
            print(
                f"line {one.line}: {one.change} {args.label}, {one.share:.0%} of late", flush=True
            )


if __name__ == "__main__":
    main()
