"""`gptjax transcribe`: files and folders to transcripts on the terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjax.api import load
from gptjax.core.config import ConfigError, require
from gptjax.data.documents.folders import files_below
from gptjax.hear.segments import Segment, Transcript
from gptjax.hear.transcribe import Hearing, transcribe_sounds
from gptjax.model.inputs.audio_files import SUFFIXES, Sound, open_sound


@dataclass(frozen=True)
class TranscribeOptions(Hearing):
    """Flags of `transcribe`: how sound is heard, and how that is shown."""

    model: str = "whisper"
    """A Whisper: a directory of Hugging Face or CTranslate2, a run, or the name of a packaged one:
    whisper is tiny.en, of English alone."""
    batch: int = 1
    """Number of files of a folder that are heard together."""
    json: bool = False
    """Print one JSON object for each file: text, language, and segments with times, ids and
    probabilities."""
    quiet: bool = False
    """Do not say on standard error how far it is and how long it will take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch >= 1, f"batch is {self.batch}; it needs at least 1 (--batch 1).")


def run_transcribe(path: Path, options: TranscribeOptions) -> None:
    """Transcribes a file or a folder and prints what is said.

    Raises:
      ConfigError: there is no sound, or the file can't be read.
      SystemExit: a file of a folder can't be read; the others were.
    """
    files = _files(path)
    failed: dict[Path, ConfigError] = {}
    sounds = dict(_opened(files, failed))
    if failed and not path.is_dir():
        raise failed[path]
    model = load(options.model)
    names = [field.name for field in dataclasses.fields(Hearing)]
    how = Hearing(**{name: getattr(options, name) for name in names})
    shown = _Shown(list(sounds.values()), options, path.is_dir())
    heard = transcribe_sounds(model, sounds.values(), how, options.batch, shown.window)
    for file, outcome in zip(sounds, heard, strict=True):
        if isinstance(outcome, ConfigError):
            if not path.is_dir():
                raise outcome
            failed[file] = outcome
        else:
            shown.file(file, outcome)
    shown.end()
    for file, error in failed.items():
        if options.json:
            print(json.dumps({"file": str(file), "error": str(error)}), flush=True)
        print(f"error: {error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _files(path: Path) -> list[Path]:
    """The file, or the sound files below a folder, by name."""
    if not path.is_dir():
        return [path]
    files = [file for _, file in files_below(path, "**/*") if file.suffix.lower() in SUFFIXES]
    require(
        bool(files),
        f"{path} has no sound files; their names end with {', '.join(SUFFIXES)}.",
    )
    return files


def _opened(files: list[Path], failed: dict[Path, ConfigError]) -> Iterator[tuple[Path, Sound]]:
    """The files that can be opened; why the others can't goes to `failed`."""
    for file in files:
        try:
            yield file, open_sound(file)
        except ConfigError as error:
            failed[file] = error


class _Shown:
    """Prints transcripts on standard output, and progress on standard error."""

    def __init__(self, sounds: list[Sound], options: TranscribeOptions, several: bool) -> None:
        self.options, self.several = options, several
        self.seconds = [sound.seconds for sound in sounds]
        self.heard = [0.0] * len(sounds)
        self.begun, self.said = time.monotonic(), 0.0

    def window(self, number: int, seconds: float, segments: Sequence[Segment]) -> None:
        """Shows what the latest window of a sound says."""
        self.heard[number] = seconds
        if not self.several and not self.options.json:
            for one in segments:
                print(_line(one, self.options), flush=True)
        self._progress()

    def file(self, file: Path, found: Transcript) -> None:
        """Shows a whole transcript."""
        if self.options.json:
            record: dict[str, Any] = {"file": str(file), **found.to_json()}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        elif self.several:
            print(f"{file}: {found.text}", flush=True)
            if self.options.timestamps:
                print("\n".join(_line(one, self.options) for one in found.segments), flush=True)

    def end(self) -> None:
        """Says the last word on progress."""
        self.heard = self.seconds
        self._progress(last=True)

    def _progress(self, last: bool = False) -> None:
        spent, done, whole = time.monotonic() - self.begun, sum(self.heard), sum(self.seconds)
        if self.options.quiet or not (last or spent - self.said >= 5):
            return
        self.said = spent
        left = "" if last or not done else f", {_span((whole - done) * spent / done)} left"
        print(
            f"heard {_span(done)} of {_span(whole)} in {_span(spent)}{left}",
            file=sys.stderr,
            flush=True,
        )


def _line(one: Segment, how: Hearing) -> str:
    """A segment as a line; with times if they are asked for."""
    times = f"[{_clock(one.start)} --> {_clock(one.end)}] " if how.timestamps else ""
    return f"{times}{one.text.strip()}"


def _clock(seconds: float) -> str:
    """A time as 01:02:03.456."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def _span(seconds: float) -> str:
    """A length of time in a few letters."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
