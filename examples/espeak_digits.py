"""Ten spoken words by made voices (espeak-ng), to ask what training on them is worth for recorded
ones.

    apt-get install espeak-ng
    python examples/espeak_digits.py data/digits --count 1800

Written are 8 kHz WAV files and `voices.jsonl`, with `audio` and `text`, beside what
`examples/spoken_digits.py` writes. Accent, variant of the voice, speed, pitch and the level of some
white noise are drawn anew for each word, from `--seed`; silence before and after it is cut.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np

from gptjax.model.inputs.audio import resampled
from gptjax.model.inputs.audio_files import read_sound

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
VARIANTS = tuple(f"+{kind}{number}" for kind in "mf" for number in range(1, 6))
RATE = 8000
QUIET = 0.02
"""Share of the loudest sample below which the ends are cut."""


def spoken(words: str, draw: np.random.Generator, file: Path) -> np.ndarray:
    """Says a word by a voice that is drawn, and returns it at 8 kHz."""
    voice = str(draw.choice(ACCENTS)) + str(draw.choice(VARIANTS))
    speed, pitch = str(draw.integers(110, 220)), str(draw.integers(10, 90))
    command = ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", str(file), words]
    subprocess.run(command, check=True, capture_output=True)
    samples = np.concatenate(list(resampled([read_sound(file)], 16_000, RATE)))
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1] / np.abs(samples).max()
    noise = 10.0 ** draw.uniform(-3.5, -1.5)
    return draw.uniform(0.1, 0.9) * (samples + noise * draw.normal(size=len(samples)))


def save(file: Path, samples: np.ndarray) -> None:
    """Writes 16 bits a sample."""
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes((np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes())


def write_voices(folder: Path, count: int, seed: int) -> None:
    """Writes sounds and their records."""
    if not shutil.which("espeak-ng"):
        raise SystemExit("there is no espeak-ng; install it (apt-get install espeak-ng).")
    made, draw = folder / "voices", np.random.default_rng(seed)
    made.mkdir(parents=True, exist_ok=True)
    with (folder / "voices.jsonl").open("w", encoding="utf-8") as records:
        for number in range(count):
            word, file = WORDS[number % 10], made / f"{number % 10}_espeak_{number // 10}.wav"
            save(file, spoken(word, draw, file))
            record = {"audio": str(file.relative_to(folder)), "text": word}
            records.write(json.dumps(record) + "\n")
    print(f"{folder}/voices.jsonl: {count} words")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_voices(options.folder, options.count, options.seed)


if __name__ == "__main__":
    main()
