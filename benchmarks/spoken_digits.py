"""What a spoken digit is without learning a network: ridge regression and the nearest neighbour on
log-mel frames, by recording and by a speaker who is left out.

    python benchmarks/spoken_digits.py ../shared/data/speech/speech.tar.xz

Each clip becomes 32 frames, interpolated over its length, of 40 bands; each band has mean 0 and
deviation 1 within the clip. Ridge (strength 1,000) is fitted to one column for each digit; the
neighbour is the nearest by Euclid's distance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from transcribe import clips, number_of

from gptjax.evaluate.figure import score_interval
from gptjax.model.inputs.audio import log_mel
from gptjax.model.inputs.audio_files import read_sound

FRAMES, MELS, STRENGTH = 32, 40, 1000.0
HELD_OUT = 5
"""Recordings of each digit and speaker with a smaller number are held out."""


def features(file: Path) -> np.ndarray:
    """A clip as one vector."""
    frames = log_mel(np.pad(read_sound(file), (0, 400)), MELS).astype(np.float64)
    place = np.linspace(0, len(frames) - 1, FRAMES)
    columns = [np.interp(place, np.arange(len(frames)), band) for band in frames.T]
    bands = np.stack(columns, 1)
    return ((bands - bands.mean(0)) / (bands.std(0) + 1e-3)).ravel()


def ridge(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Labels of `asked` by regression on one column for each label."""
    mean = x.mean(0)
    a, b = x - mean, np.eye(10)[y] - 0.1
    weights = a.T @ np.linalg.solve(a @ a.T + STRENGTH * np.eye(len(a)), b)
    return ((asked - mean) @ weights).argmax(1)


def nearest(x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Labels of `asked` by the nearest of x."""
    distance = (x * x).sum(1)[None] - 2 * asked @ x.T
    return y[distance.argmin(1)]


def main() -> None:
    """Reads the command line and prints both baselines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = clips(options.archive, Path(folder), 10**9)
        x = np.stack([features(file) for file in files])
    y = np.asarray([int(file.name[0]) for file in files])
    speakers = np.asarray([file.stem.split("_")[1] for file in files])
    numbers = np.asarray([number_of(file) for file in files])
    parts = {"by recording": numbers < HELD_OUT}
    parts |= {f"without {name}": speakers == name for name in sorted(set(speakers))}
    for name, held in parts.items():
        for kind, method in (("ridge", ridge), ("nearest neighbour", nearest)):
            share = float((method(x[~held], y[~held], x[held]) == y[held]).mean())
            low, high = score_interval(share, int(held.sum()))
            print(f"{name}, {kind}: {share:.1%} ({low:.1%} to {high:.1%}) of {held.sum()}")


if __name__ == "__main__":
    main()
