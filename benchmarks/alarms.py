"""False alarms and delays of examples/sentiment_alarm.py over labels that are drawn at random.

python benchmarks/alarms.py
"""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

ALARM = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "sentiment_alarm.py"))
RATE = 1e-3
SHIFT = 1000
"""Line after which the share rises from 30 to 50 %."""


def known(usual: float, lines: int = 400_000) -> float:
    """Returns false alarms in 1,000 lines where the usual share is known."""
    watched, alarms = ALARM["watch"](usual, 2.0, RATE), 0
    for has_label in np.random.default_rng(0).random(lines) < usual:
        watched, passed = ALARM["add"](watched, bool(has_label))
        alarms += any(passed)
    return 1000 * alarms / lines


def learned(learn: int, streams: int = 200, lines: int = 2000) -> float:
    """Returns false alarms in 1,000 lines after 30 % was learned from `learn` lines."""
    alarms = 0
    for seed in range(streams):
        labels = np.random.default_rng(seed).random(learn + lines) < 0.3
        alarms += len(list(ALARM["alarms"](labels.tolist(), learn=learn, rate=RATE)))
    return 1000 * alarms / (streams * lines)


def delays(accuracy: float, streams: int = 300) -> np.ndarray:
    """Returns the lines from the shift to the next alarm, infinity without one, where a classifier
    is right with this probability."""
    found = []
    for seed in range(streams):
        draw = np.random.default_rng(seed)
        true = np.concatenate([draw.random(SHIFT) < 0.3, draw.random(SHIFT) < 0.5])
        labels = (true ^ (draw.random(2 * SHIFT) > accuracy)).tolist()
        alarms = ALARM["alarms"](labels, learn=500, rate=RATE)
        found.append(next((one.line - SHIFT for one in alarms if one.line > SHIFT), np.inf))
    return np.asarray(found)


def main() -> None:
    for usual in (0.2, 0.3, 0.5):
        print(f"{known(usual):.3f} false alarms in 1,000 lines, {usual:.0%} known")
    for learn in (300, 1000):
        print(f"{learned(learn):.3f} false alarms in 1,000 lines, 30% learned from {learn}")
    for accuracy in (1.0, 0.8):
        median, most = np.quantile(delays(accuracy), (0.5, 0.9), method="lower")
        print(f"{median:.0f} lines to the alarm, nine tenths {most:.0f}, {accuracy:.0%} right")


if __name__ == "__main__":
    main()
