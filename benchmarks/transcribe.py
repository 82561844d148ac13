"""What a Whisper hears: spoken digits freely and among ten choices, and how fast it is.

    python benchmarks/transcribe.py digits ../shared/data/speech/speech.tar.xz --clips 300
    python benchmarks/transcribe.py digits ../shared/data/speech/speech.tar.xz --clips 500 \\
        --speaker lucas --model runs/without_lucas --batch 40
    python benchmarks/transcribe.py speed ../shared/data/speech/jfk.flac --repeats 5 --other

`digits` transcribes clips named DIGIT_SPEAKER_NUMBER, evenly over digits and speakers, greedily,
freely and with `choices`; accuracies have 95 % intervals of their score. A free transcript counts
if, without signs and case, it is the digit as a word or as a figure.

`speed` measures the real-time factor (seconds of work for a second of sound): cold, in a process of
its own with the model read and everything compiled, with an empty and a filled compile cache; and
warm. With `--other` faster-whisper reads the same sound with the same files in turns (`pip install
faster-whisper`). A quiet machine is needed for that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gptjax.evaluate.figure import score_interval

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def clips(archive: Path, folder: Path, count: int, speaker: str = "") -> list[Path]:
    """Unpacks the WAV files of an archive into a folder and returns as many as are wanted, evenly
    over digits and speakers, or of one speaker alone."""
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    files = [file for file in folder.rglob("*.wav") if speaker in file.stem.split("_")[1]]
    return sorted(files, key=lambda file: (number_of(file), file.name))[:count]


def number_of(file: Path) -> int:
    """The number of a recording among those of its digit and speaker."""
    return int(file.stem.split("_")[2])


def digit_of(text: str) -> str:
    """A transcript without signs and case, figures as words."""
    plain = "".join(c for c in text.lower() if c.isalnum() or c == " ").strip()
    return WORDS[int(plain)] if plain.isdigit() and len(plain) == 1 else plain


def measure_digits(options: argparse.Namespace) -> None:
    """Prints the accuracy of both ways, and what was heard instead."""
    import gptjax
    from gptjax.hear.decode import frames_of, hearer, read_windows, write_windows
    from gptjax.hear.segments import text_of
    from gptjax.hear.vocabulary import lead
    from gptjax.model.inputs.audio_files import read_sound

    ready = hearer(gptjax.load(options.model))
    prompt = lead(ready.marks, "en" if ready.marks.languages else None, "transcribe", False)
    found: dict[str, list[tuple[str, str]]] = {"free": [], "ten choices": []}
    with tempfile.TemporaryDirectory() as folder:
        files = clips(options.sound, Path(folder), options.clips, options.speaker)
        for first in range(0, len(files), options.batch):
            some = files[first : first + options.batch]
            encoded = read_windows(ready, frames_of(ready, [read_sound(file) for file in some]))
            for name, choices in (("free", ()), ("ten choices", WORDS)):
                prompts = [prompt] * len(some)
                written = write_windows(ready, encoded, prompts, timed=False, choices=choices)
                for file, one in zip(some, written, strict=True):
                    text = text_of(one.ids, ready.tokenizer, ready.marks.end)
                    found[name].append((WORDS[int(file.name[0])], text.strip()))
            if (first + len(some)) % 40 == 0 or some[-1] == files[-1]:
                print_accuracy(found)


def print_accuracy(found: dict[str, list[tuple[str, str]]]) -> None:
    """Prints how many transcripts of each way are the right word, and some of the others."""
    for name, pairs in found.items():
        wrong = [f"{word}: {text!r}" for word, text in pairs if digit_of(text) != word]
        share = 1 - len(wrong) / len(pairs)
        low, high = score_interval(share, len(pairs))
        print(
            f"{name}: {len(pairs) - len(wrong)} of {len(pairs)} right, {share:.1%} ({low:.1%} to"
            f" {high:.1%}); for example {', '.join(wrong[:12])}",
            flush=True,
        )


def measure_speed(options: argparse.Namespace) -> None:
    """Prints real-time factors, those of both programs in turns."""
    from gptjax.model.inputs.audio_files import open_sound

    seconds = open_sound(options.sound).seconds
    with tempfile.TemporaryDirectory() as cache:
        for name in ("empty", "filled"):
            spent = cold(options, cache)
            print(f"cold, {name} compile cache: {spent:.2f} s, {spent / seconds:.2f} × real time")
    ours, others = ours_on(options), theirs_on(options) if options.other else None
    texts, spent = set(), {"gptjax": [], "faster-whisper": []}
    for _ in range(options.repeats):
        for name, one in (("gptjax", ours), ("faster-whisper", others)):
            if one is not None:
                begun = time.perf_counter()
                texts.add(one().strip())
                spent[name].append(time.perf_counter() - begun)
    for name, times in spent.items():
        if times:
            middle = statistics.median(times)
            print(
                f"{name}, warm: {middle:.3f} s ({min(times):.3f} to {max(times):.3f}),"
                f" {middle / seconds:.3f} × real time"
            )
    print(f"{len(texts)} transcript{'s' * (len(texts) > 1)}: {' | '.join(texts)}")


def cold(options: argparse.Namespace, cache: str) -> float:
    """Seconds of the whole command in a process of its own."""
    command = [sys.executable, "-m", "gptjax", "transcribe", str(options.sound)]
    begun = time.perf_counter()
    subprocess.run(
        [*command, "--model", options.model, "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": cache},
    )
    return time.perf_counter() - begun


def ours_on(options: argparse.Namespace) -> Callable[[], str]:
    """Transcribes the sound once, so that all is compiled, and returns what does it again."""
    import gptjax

    model = gptjax.load(options.model)
    found = model.transcribe(options.sound)
    print(json.dumps([i for segment in found.segments for i in segment.ids]))
    return lambda: model.transcribe(options.sound).text


def theirs_on(options: argparse.Namespace) -> Callable[[], str]:
    """The same by faster-whisper, greedily, on as many threads as there are cores."""
    import faster_whisper

    from gptjax.formats import located
    from gptjax.model.inputs.audio_files import read_sound

    model = faster_whisper.WhisperModel(
        str(located(options.model)),
        device="cpu",
        compute_type="float32",
        cpu_threads=os.cpu_count(),
    )

    def again() -> str:
        settings = {"beam_size": 1, "without_timestamps": True, "language": "en"}
        segments, _ = model.transcribe(read_sound(options.sound), **settings)
        return "".join(segment.text for segment in segments)

    again()
    return again


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("digits", "speed"))
    parser.add_argument("sound", type=Path)
    parser.add_argument("--model", default="whisper")
    parser.add_argument("--clips", type=int, default=200, help="a multiple of 40")
    parser.add_argument("--speaker", default="", help="clips of this one alone")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--other", action="store_true")
    options = parser.parse_args()
    measure_digits(options) if options.what == "digits" else measure_speed(options)


if __name__ == "__main__":
    main()
