"""Laws of sound: frames are Whisper's, another rate is the same sound, files are read in bounded
memory or refused in one line."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hearing import speech, write_wav

from gptjax.core.config import ConfigError
from gptjax.model.inputs.audio import RATE, log_mel, mel_filters, resampled
from gptjax.model.inputs.audio_files import open_sound, read_sound, sound_of

DATA = Path(__file__).parents[1].parent / "shared/data/speech"


def test_filters_are_whispers():
    file = DATA / "mel_filters.npz"
    if not file.is_file():
        pytest.skip("needs ../shared/data/speech")
    theirs = np.load(file)
    assert np.abs(mel_filters(80).T - theirs["mel_80"]).max() <= 1e-7
    if "mel_128" in theirs:
        assert np.abs(mel_filters(128).T - theirs["mel_128"]).max() <= 1e-7


def test_filters_have_equal_areas():
    """A triangle of Slaney's has the area 1 in hertz; narrow ones meet few frequencies."""
    areas = mel_filters(40).sum(0) * RATE / 400
    np.testing.assert_allclose(areas[12:], 1, atol=0.05)


def test_a_frame_is_the_energy_of_its_bands():
    """By the formula, frame by frame: reflected ends, Hann's window, log10, eight below the top."""
    samples = speech(0.3)
    wide = np.concatenate([samples[200:0:-1], samples, samples[-2:-202:-1]]).astype(np.float64)
    hann = np.sin(np.pi * np.arange(400) / 400) ** 2
    angle = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    rows = []
    for i in range(len(samples) // 160):
        energy = np.abs(angle @ (hann * wide[160 * i : 160 * i + 400])) ** 2
        rows.append(np.log10(np.maximum(energy @ mel_filters(80), 1e-10)))
    wanted = (np.maximum(rows, np.max(rows) - 8) + 4) / 4
    np.testing.assert_allclose(log_mel(samples), wanted, atol=1e-6)
    assert np.unique(log_mel(np.zeros(480, np.float32))).tolist() == [-1.5]


@pytest.mark.parametrize("rate", [8000, 44_100, 22_050, 11_025, 48_000])
def test_another_rate_is_the_same_sound_however_it_is_cut(rate: int):
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 700 * time).astype(np.float32)
    whole = np.concatenate(list(resampled([tone], rate)))
    assert len(whole) == RATE
    wanted = np.sin(2 * np.pi * 700 * np.arange(RATE) / RATE)
    assert np.abs(whole - wanted)[200:-200].max() < 1e-3
    parts = np.split(tone, np.sort(np.random.default_rng(0).integers(0, rate, 40)))
    again = np.concatenate(list(resampled(parts, rate)))
    assert np.array_equal(again, whole)
    flat = np.concatenate(list(resampled([np.ones(rate, np.float32)], rate)))
    np.testing.assert_allclose(flat[200:-200], 1, atol=1e-5)
    if rate > 2 * RATE:  # what 16 kHz cannot hold is gone, not folded back
        high = np.sin(2 * np.pi * 11_000 * time).astype(np.float32)
        assert np.abs(np.concatenate(list(resampled([high], rate)))[200:-200]).max() < 2e-3


@pytest.mark.parametrize(
    ("bits", "form", "tolerance"),
    [(8, 1, 8e-3), (16, 1, 4e-5), (24, 1, 2e-7), (32, 1, 2e-7), (32, 3, 0), (64, 3, 1e-7)],
)
@pytest.mark.parametrize("extensible", [False, True])
def test_every_kind_of_wav_is_the_same_sound(bits, form, tolerance, extensible, tmp_path: Path):
    samples = speech(0.2)
    file = write_wav(tmp_path / "a.wav", samples, bits=bits, form=form, extensible=extensible)
    sound = open_sound(file)
    assert sound.seconds == pytest.approx(0.2)
    assert np.abs(np.concatenate(list(sound.blocks)) - samples).max() <= tolerance
    stereo = np.stack([samples, np.zeros_like(samples)], axis=1)
    halved = read_sound(write_wav(tmp_path / "b.wav", stereo, bits=bits, form=form))
    assert np.abs(halved - samples / 2).max() <= tolerance + 1e-7


def test_wrong_files_are_refused_in_one_line(tmp_path: Path):
    samples = speech(0.1)
    good = write_wav(tmp_path / "good.wav", samples).read_bytes()
    broken = {
        "empty": (b"", "is empty"),
        "no sound": (good[:30], "cut off"),
        "header alone": (good[:12], "cut off"),
        "text": (b"these are words, not sound" * 9, "soundfile|not a sound file"),
        "many parts": (good[:12] + b"LIST\x00\x00\x00\x00" * 2000, "cut off"),
    }
    for name, (content, reason) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=reason) as caught:
            open_sound(tmp_path / name)
        assert "\n" not in str(caught.value)
    for change in ({"channels": 0}, {"channels": 500}, {"rate": 3}, {"rate": 2**31}):
        with pytest.raises(ConfigError, match=r"channels|samples a second"):
            open_sound(write_wav(tmp_path / "wrong.wav", samples, **change))
    with pytest.raises(ConfigError, match="not numbers"):
        bad = np.where(np.arange(len(samples)) == 99, np.nan, samples)
        read_sound(write_wav(tmp_path / "nan.wav", bad, bits=32, form=3))
    with pytest.raises(ConfigError, match="is not a file"):
        open_sound(tmp_path)
    with pytest.raises(ConfigError, match="mono at 16 kHz"):
        sound_of(np.zeros((2, 2), np.float32))


def test_what_a_cut_file_still_has_is_read(tmp_path: Path):
    samples = speech(1.0)
    whole = write_wav(tmp_path / "whole.wav", samples).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: 44 + 2 * 5000 + 1])
    np.testing.assert_allclose(read_sound(tmp_path / "cut.wav"), samples[:5000], atol=4e-5)
    streamed = write_wav(tmp_path / "streamed.wav", samples, length=2**32 - 1)
    assert len(read_sound(streamed)) == RATE


def test_memory_does_not_grow_with_a_file(tmp_path: Path):
    file = tmp_path / "long.wav"
    head = write_wav(file, np.zeros(0, np.float32), rate=48_000, length=400_000_000).read_bytes()
    with file.open("wb") as out:  # a sparse file of more than an hour
        out.write(head)
        out.truncate(len(head) + 400_000_000)
    sound = open_sound(file)
    assert sound.seconds == pytest.approx(400_000_000 / 2 / 48_000)
    tracemalloc.start()
    for _, block in zip(range(40), sound.blocks, strict=False):
        assert len(block) <= 2 * 65_536
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    with pytest.raises(ConfigError, match="at most 600 are read"):
        read_sound(file)


def test_a_compressed_file_is_the_sound_of_its_wav(tmp_path: Path):
    soundfile = pytest.importorskip("soundfile", reason="pip install 'gptjax[audio]'")
    samples = speech(0.5)
    soundfile.write(tmp_path / "a.flac", samples, RATE, subtype="PCM_16")
    np.testing.assert_allclose(read_sound(tmp_path / "a.flac"), samples, atol=4e-5)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:40])
    with pytest.raises(ConfigError) as caught:
        read_sound(tmp_path / "cut.flac")
    assert re.fullmatch(r"[^\n]+", str(caught.value))
