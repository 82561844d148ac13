"""Sound piece by piece: `Windows` holds as much as a model reads at once, `voiced` says where
someone speaks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gptjax.model.inputs.audio import RATE

PIECE = RATE * 30 // 1000
"""Samples of a piece of 30 ms, whose energy is compared."""
SILENT = 1e-4
"""Sound whose samples are all below this (−80 dB) is silence, which is not read."""
ABOVE_NOISE = 4.0
"""A voiced piece has this many times (6 dB) the energy of the quiet tenth of its window."""
LEAST_ENERGY = 1e-7
"""Mean square of a voiced piece, at least (−70 dB)."""
BEFORE, AFTER = RATE // 5, RATE * 2 // 5
"""Samples that are kept before and after what is voiced: a fifth and two fifths of a second."""
PAUSE = 2 * RATE
"""Silence after which a window may end early."""


class Windows:
    """Sound that is read forward, of which one window is held at a time.

    Args:
      blocks: 16 kHz mono, any lengths.
      size: samples of a window; Whisper's has 30 seconds.
    """

    def __init__(self, blocks: Iterable[np.ndarray], size: int) -> None:
        self._blocks, self._held, self._first = iter(blocks), np.zeros(0, np.float32), 0
        self._size = size

    def at(self, begin: int) -> np.ndarray:
        """Returns up to a window from a sample on; what lies before is forgotten.

        Raises:
          ValueError: it was forgotten already.
        """
        if begin < self._first:
            raise ValueError(f"the sound before sample {self._first} is not held any more.")
        while self._first + len(self._held) < begin + self._size:
            block = next(self._blocks, None)
            if block is None:
                break
            self._held = np.concatenate([self._held, block])
            self._forget(begin)
        self._forget(begin)
        return self._held[: self._size]

    def _forget(self, begin: int) -> None:
        count = min(begin - self._first, len(self._held))
        self._held, self._first = self._held[count:], self._first + count


def silent(samples: np.ndarray) -> bool:
    """Says whether there is nothing to hear."""
    return not len(samples) or float(np.abs(samples).max()) < SILENT


def voiced(samples: np.ndarray) -> np.ndarray:
    """Says of each 30 ms whether its energy stands out of the noise. Steady noise does not, however
    loud it is; a melody does, so this tells speech from silence and not from music."""
    pieces = samples[: len(samples) // PIECE * PIECE].reshape(-1, PIECE).astype(np.float64)
    energy = np.square(pieces).mean(1)
    if len(energy) >= 3:  # one loud piece is a click
        energy = np.median(sliding_window_view(np.pad(energy, 1, mode="edge"), 3), axis=1)
    floor = np.percentile(energy, 10) if len(energy) else 0.0
    return energy > max(ABOVE_NOISE * floor, LEAST_ENERGY)


def spoken_part(samples: np.ndarray) -> tuple[int, int]:
    """Returns where the voiced part of a window begins, and where it ends or a long pause begins;
    both are 0 where nothing is voiced."""
    pieces = np.flatnonzero(voiced(samples)) * PIECE
    if not len(pieces):
        return 0, 0
    gaps = np.flatnonzero(np.diff(pieces) > PAUSE)
    last = int(pieces[gaps[0]] if len(gaps) else pieces[-1])
    return max(0, int(pieces[0]) - BEFORE), min(len(samples), last + PIECE + AFTER)
