"""Sound as numbers: log-mel frames as Whisper reads them, and sound at another rate. numpy alone.

Read `log_mel`, then `resampled`. Files are read in `audio_files`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gptjax.core.config import require

RATE = 16_000
"""Samples a second of the sound that frames are made of."""
HOP = 160
"""Samples from one frame to the next: 10 ms."""
SPAN = 400
"""Samples that one frame looks at: 25 ms."""
WINDOW = 30 * RATE
"""Samples of the 30 seconds that Whisper reads at once."""

_LINEAR = 200 / 3
"""Hertz of one mel of Slaney's scale below 1 kHz; above, mels grow as logarithms."""
_KNEE = 1000 / _LINEAR
_OCTAVE = 27 / math.log(6.4)


def log_mel(samples: np.ndarray, mels: int = 80) -> np.ndarray:
    """Returns the log-mel frames of sound, float32 [n // 160, mels].

    Values are log10 of energy, at most 8 below the largest of these frames, as (x + 4) / 4.

    Args:
      samples: mono, 16 kHz, in [−1, 1]; at least one.
      mels: bands; Whisper has 80, large-v3 128.

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, section 2.2, and its code.
    """
    padded = np.pad(samples.astype(np.float64), SPAN // 2, mode="reflect")
    spans = sliding_window_view(padded, SPAN)[::HOP][: len(samples) // HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SPAN) / SPAN)
    energy = np.square(np.abs(np.fft.rfft(spans * hann)))
    logs = np.log10(np.maximum(energy @ mel_filters(mels), 1e-10))
    logs = np.maximum(logs, logs.max(initial=-10.0) - 8)
    return ((logs + 4) / 4).astype(np.float32)


@functools.lru_cache(maxsize=4)
def mel_filters(mels: int) -> np.ndarray:
    """Returns the triangular filters [201 mels] from the frequencies of a frame to bands of equal
    width in mels, each of the same area. Source: Slaney 1998, Auditory Toolbox, as in librosa."""
    require(mels >= 1, f"a frame has {mels} bands; it needs at least 1.")
    top = _KNEE + _OCTAVE * math.log(RATE / 2 / 1000)
    edges = _hertz(np.linspace(0.0, top, mels + 2))
    frequencies = np.arange(SPAN // 2 + 1)[:, None] * RATE / SPAN
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


def _hertz(mel: np.ndarray) -> np.ndarray:
    """Frequencies of places on Slaney's scale."""
    return np.where(mel < _KNEE, mel * _LINEAR, 1000 * np.exp((mel - _KNEE) / _OCTAVE))


# --- another rate

CROSSINGS = 16
"""Zero crossings of the sinc on each side; with `BETA`, what folds back is 80 dB below."""
BETA = 8.0
AT_ONCE = 16_384
"""New samples that are computed together, which bounds memory."""


def resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int = RATE) -> Iterator[np.ndarray]:
    """Yields sound at another rate, float32, block by block; ⌈n · wanted / rate⌉ samples in all.

    Each new sample is a weighted mean of the old ones around its time (a sinc under a Kaiser
    window, cut off at the lower of the two rates), so how the sound is cut into blocks changes
    nothing. A constant stays that constant.

    Args:
      blocks: float32 [n], any lengths.
      rate: samples a second of the blocks.

    Source: Smith and Gossett 1984, A flexible sampling-rate conversion method.
    """
    if rate == wanted:
        yield from blocks
        return
    up, down = wanted // math.gcd(rate, wanted), rate // math.gcd(rate, wanted)
    weights = _weights(up, down)
    half = weights.shape[1] // 2
    # `held` begins at old sample `first`; new sample k stands at old sample k · down / up.
    held, first, number, total = np.zeros(half, np.float32), -half, 0, 0
    for block in itertools.chain(blocks, [None]):
        total += 0 if block is None else len(block)
        held = np.concatenate([held, np.zeros(half, np.float32) if block is None else block])
        ready = max(0, -(-(first + len(held) - half) * up // down))
        ready = min(ready, -(-total * up // down))
        while number < ready:
            k = np.arange(number, min(ready, number + AT_ONCE))
            place, phase = np.divmod(k * down, up)
            spans = sliding_window_view(held, 2 * half)[place - half + 1 - first]
            yield np.einsum("kt,kt->k", spans, weights[phase])
            number = int(k[-1]) + 1
        dropped = max(0, min(number * down // up - half + 1 - first, len(held)))
        held, first = held[dropped:], first + dropped


def _weights(up: int, down: int) -> np.ndarray:
    """The weights [up taps] of the old samples around a new one, for each of its places between
    two old ones: tap t is that of the old sample t − taps / 2 + 1 after it."""
    cutoff = min(1.0, up / down)
    half = math.ceil(CROSSINGS / cutoff)
    away = np.arange(2 * half)[None] - (half - 1) - np.arange(up)[:, None] / up
    inside = np.sqrt(np.maximum(0.0, 1 - np.square(away / half)))
    weights = np.sinc(cutoff * away) * np.i0(BETA * inside) * (np.abs(away) < half)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
