"""Sound files, read block by block: memory does not grow with the file, whatever its header says.

WAV is read here; FLAC, OGG, MP3 and others need the package `soundfile` (extra `audio`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.model.inputs.audio import RATE, resampled

BLOCK = 1 << 16
"""Samples of each channel that are read at once."""
RATES = (1_000, 384_000)
"""The least and the largest number of samples a second."""
CHANNELS = 32
PARTS = 1_000
"""Parts of a WAV file before its sound."""
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")
"""Files of a folder that are taken for sound."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_TYPES = {
    (_PCM, 8): "u1",
    (_PCM, 16): "<i2",
    (_PCM, 24): "24",
    (_PCM, 32): "<i4",
    (_FLOAT, 32): "<f4",
    (_FLOAT, 64): "<f8",
}
"""Kinds of samples in a WAV file by format and bits."""


class Sound(NamedTuple):
    """An open sound file."""

    seconds: float
    """Its length, as far as the file goes."""
    blocks: Iterator[np.ndarray]
    """The mean of its channels at 16 kHz, float32 in [−1, 1], block by block; to be read once."""


class _Wav(NamedTuple):
    """What the header of a WAV file says, checked against the file."""

    rate: int
    channels: int
    kind: str
    begin: int
    """The byte where its samples begin."""
    length: int
    """Samples of each channel that are there."""


def open_sound(path: Path | str) -> Sound:
    """Opens a sound file.

    Raises:
      ConfigError: there is none, it is damaged or of an unknown kind, or its samples are no
        numbers (then while its blocks are read).
    """
    path = Path(path)
    require(path.is_file(), f"{path} is not a file; give a sound file, such as speech.wav.")
    require(path.stat().st_size > 0, f"{path} is empty; give a sound file, such as speech.wav.")
    with path.open("rb") as file:
        head = file.read(12)
        wav = _wav(file, path) if head[:4] == b"RIFF" and head[8:] == b"WAVE" else None
    if wav is None:
        return _by_soundfile(path)
    blocks = resampled(_finite(_samples(path, wav), path), wav.rate)
    return Sound(wav.length / wav.rate, blocks)


def read_sound(path: Path | str, seconds: float = 600.0) -> np.ndarray:
    """Returns the sound of a file as `Sound.blocks` has it, in one array.

    Raises:
      ConfigError: as `open_sound`; or it is longer than `seconds`.
    """
    sound = open_sound(path)
    require(
        sound.seconds <= seconds,
        f"{path} has {sound.seconds:.0f} seconds of sound, and at most {seconds:.0f} are read at"
        " once; cut it.",
    )
    return np.concatenate([np.zeros(0, np.float32), *sound.blocks])


def sound_of(samples: np.ndarray) -> Sound:
    """Returns samples [n], mono at 16 kHz in [−1, 1], as an open sound.

    Raises:
      ConfigError: they have another shape, or are no numbers.
    """
    require(
        samples.ndim == 1 and samples.dtype.kind == "f" and bool(np.isfinite(samples).all()),
        f"sound is {samples.dtype} {list(samples.shape)}; it needs one dimension of real numbers in"
        " [-1, 1], mono at 16 kHz.",
    )
    parts = range(0, len(samples), BLOCK)
    return Sound(len(samples) / RATE, (samples[i : i + BLOCK].astype(np.float32) for i in parts))


def _check(path: Path, rate: int, channels: int) -> None:
    low, high = RATES
    require(
        low <= rate <= high,
        f"{path} says that it has {rate} samples a second; it needs {low} to {high}. Get it again.",
    )
    require(
        1 <= channels <= CHANNELS,
        f"{path} says that it has {channels} channels; it needs 1 to {CHANNELS}. Get it again.",
    )


def _finite(blocks: Iterator[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """The blocks; refuses samples that are no numbers."""
    for block in blocks:
        require(
            bool(np.isfinite(block).all()),
            f"{path} has samples that are not numbers; get it again.",
        )
        yield block


# --- WAV


def _wav(file: BinaryIO, path: Path) -> _Wav | None:
    """The header of a WAV file; `None` if its samples are of a kind that is not read here."""
    layout, size = None, os.fstat(file.fileno()).st_size
    for _ in range(PARTS):
        part = file.read(8)
        if len(part) < 8:
            break
        name, length = part[:4], int.from_bytes(part[4:], "little")
        begin = file.tell()
        if name == b"data" and layout is not None:
            return _described(layout, begin, min(length or size, size - begin), path)
        if name == b"fmt ":
            layout = file.read(min(length, 40))
        file.seek(begin + length + length % 2)
    raise ConfigError(f"{path} is a WAV file without sound: it is damaged or cut off.")


def _described(layout: bytes, begin: int, num_bytes: int, path: Path) -> _Wav | None:
    """A header of its parts: the layout of a sample, and where the samples lie."""
    require(len(layout) >= 16, f"{path} has a damaged WAV header; get it again.")
    form, channels, rate = (
        int.from_bytes(layout[a:b], "little") for a, b in ((0, 2), (2, 4), (4, 8))
    )
    bits = int.from_bytes(layout[14:16], "little")
    if form == _EXTENSIBLE and len(layout) >= 26:
        form = int.from_bytes(layout[24:26], "little")
    kind = _TYPES.get((form, bits))
    if kind is None:
        return None
    _check(path, rate, channels)
    return _Wav(rate, channels, kind, begin, num_bytes // (channels * bits // 8))


def _samples(path: Path, wav: _Wav) -> Iterator[np.ndarray]:
    """The mean of the channels, block by block, float32 in [−1, 1]."""
    width = 3 if wav.kind == "24" else np.dtype(wav.kind).itemsize
    with path.open("rb") as file:
        file.seek(wav.begin)
        for first in range(0, wav.length, BLOCK):
            wanted = min(BLOCK, wav.length - first) * wav.channels * width
            content = file.read(wanted)
            require(len(content) == wanted, f"{path} became shorter while it was read.")
            yield _numbers(content, wav.kind).reshape(-1, wav.channels).mean(1, dtype=np.float32)


def _numbers(content: bytes, kind: str) -> np.ndarray:
    """The samples of a part of a file, float32; whole numbers as shares of the largest."""
    if kind == "24":
        high = np.zeros((len(content) // 3, 4), np.uint8)
        high[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return high.view("<i4")[:, 0].astype(np.float32) / 2**31
    values = np.frombuffer(content, kind)
    if kind == "u1":
        return (values.astype(np.float32) - 128) / 128
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        scale = 1.0 if values.dtype.kind == "f" else 2.0 ** (8 * values.dtype.itemsize - 1)
        return values.astype(np.float32) / np.float32(scale)


# --- others


def _by_soundfile(path: Path) -> Sound:
    try:
        import soundfile
    except ImportError:
        raise ConfigError(
            f"{path} is not a WAV file of plain samples, and others need the package soundfile: pip"
            " install 'gptjax[audio]', or write it as WAV."
        ) from None
    with _one_line(path, soundfile.LibsndfileError), soundfile.SoundFile(path) as file:
        rate, channels, count = file.samplerate, file.channels, file.frames
    _check(path, rate, channels)
    blocks = _finite(_decoded(path, soundfile), path)
    return Sound(count / rate, resampled(blocks, rate))


def _decoded(path: Path, soundfile: Any) -> Iterator[np.ndarray]:
    """The mean of the channels of a compressed file, block by block."""
    with _one_line(path, soundfile.LibsndfileError), soundfile.SoundFile(path) as file:
        for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
            yield block.mean(1)


@contextlib.contextmanager
def _one_line(path: Path, kind: type[Exception]) -> Iterator[None]:
    """Turns errors of the library into one line."""
    try:
        yield
    except kind as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{path} is not a sound file that can be read ({why}).") from None
