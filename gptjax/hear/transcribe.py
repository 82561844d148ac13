"""Whole sounds to transcripts, window after window: several sounds in turns, each behind what it
said before, warmer where a text repeats itself or is unlikely, nothing where nobody speaks.

Read `Hearing` (the settings), then `transcribe_sounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from gptjax.core.config import ConfigError, require
from gptjax.hear.decode import (
    Encoded,
    Hearer,
    Written,
    frames_of,
    hearer,
    read_windows,
    write_windows,
)
from gptjax.hear.segments import Segment, Transcript, cut_ids, repetition, text_of
from gptjax.hear.vocabulary import Marks, lead
from gptjax.hear.windows import Windows, silent, spoken_part
from gptjax.model.inputs.audio import RATE
from gptjax.model.inputs.audio_files import Sound

if TYPE_CHECKING:
    from gptjax.api import Model

REST = RATE // 10
"""Samples at the end of a sound that are too few to say something: a tenth of a second."""


@dataclass(frozen=True)
class Hearing:
    """How sound is transcribed. The defaults of thresholds and temperatures are Whisper's."""

    language: str | None = None
    """Code of the language (en, de, zh, …); `None` asks a model of several languages."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Write the language that is spoken, or English, where the model can."""
    timestamps: bool = False
    """When each text begins and ends. Sound longer than a window has times anyway."""
    vad: bool = False
    """Leave out what is silent or steady noise, by its energy, before the model hears it."""
    choices: tuple[str, ...] = ()
    """The only texts that a window can say; empty is any text."""
    prompt: str = ""
    """A text that could have come before: names, spelling, style."""
    previous: bool = True
    """Each window of a long sound is read behind the text before it."""
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Tried one after the other until a window's text is likely and does not repeat itself."""
    max_repetition: float = 2.4
    """A text that compresses better than this many times repeats itself."""
    min_logprob: float = -1.0
    """Least mean ln p of a likely text's ids."""
    max_no_speech: float = 0.6
    """An unlikely text is left out where no speech is more probable than this."""
    seed: int = 0
    """Of what is drawn above temperature 0."""

    def __post_init__(self) -> None:
        require(
            len(self.temperatures) > 0 and all(t >= 0 for t in self.temperatures),
            f"temperatures is {self.temperatures}; it needs at least one, each 0 or more"
            " (--temperatures 0).",
        )
        require(
            not (self.choices and self.timestamps),
            "choices have no times in them; omit --timestamps.",
        )
        empty = [c for c in self.choices if not c.strip()]
        require(not empty, f"choices has the empty text {empty[:1]}; leave it out (--choices).")


class _Session(NamedTuple):
    """A sound that is being heard."""

    number: int
    seconds: float
    windows: Windows
    begin: int = 0
    """The sample where the next window begins."""
    said: tuple[int, ...] = ()
    """Ids of the text so far, for the next window."""
    segments: tuple[Segment, ...] = ()
    language: str | None = None


Watch = Callable[[int, float, Sequence[Segment]], None]
"""Gets the number of a sound, the seconds of it that were heard, and the segments of its latest
window."""


def transcribe_sounds(
    opened: Model,
    sounds: Iterable[Sound],
    how: Hearing = Hearing(),
    batch: int = 1,
    watch: Watch = lambda number, seconds, segments: None,
) -> Iterator[Transcript | ConfigError]:
    """Yields the transcript of each sound, in their order, or why it can't be read.

    Args:
      sounds: from `open_sound`; each is read once, a window (30 seconds) at a time.
      batch: number of sounds that are heard together.
      watch: called after each window.

    Raises:
      ConfigError: the model reads no sound, or not in this language.
    """
    ready, waiting = hearer(opened), enumerate(sounds)
    if how.language is not None or not ready.marks.languages:
        lead(ready.marks, how.language, how.task, how.timestamps)  # refused before sound is read
    done: dict[int, Transcript | ConfigError] = {}
    active: list[_Session] = []
    first, over = 0, False
    while active or not over:
        while len(active) < batch and not over:
            number, sound = next(waiting, (0, None))
            over = sound is None
            if sound is not None:
                windows = Windows(sound.blocks, ready.size)
                active.append(_Session(number, sound.seconds, windows, said=_prompt(ready, how)))
        turn: list[tuple[_Session, np.ndarray]] = []
        for before in active:
            try:
                session, samples = _next_window(before, how)
            except ConfigError as error:
                done[before.number] = error
                continue
            if samples is None:
                done[session.number] = _transcript(session)
            else:
                turn.append((session, samples))
        active = _heard(ready, how, turn, batch) if turn else []
        for (session, _), after in zip(turn, active, strict=True):
            new = after.segments[len(session.segments) :]
            watch(after.number, min(after.begin / RATE, after.seconds), new)
        while first in done:
            yield done.pop(first)
            first += 1


def _prompt(hearer: Hearer, how: Hearing) -> tuple[int, ...]:
    """The ids of the text that could have come before."""
    return tuple(hearer.tokenizer.encode(f" {how.prompt.strip()}").tolist()) if how.prompt else ()


def _transcript(session: _Session) -> Transcript:
    text = "".join(one.text for one in session.segments).strip()
    language = session.language if session.segments else None
    return Transcript(text, list(session.segments), language, session.seconds)


def _next_window(session: _Session, how: Hearing) -> tuple[_Session, np.ndarray | None]:
    """The samples that are read next, and the session that begins there; `None` at its end."""
    while True:
        samples = session.windows.at(session.begin)
        if len(samples) < REST:
            return session, None
        skipped = len(samples)
        if not silent(samples):
            begin, end = spoken_part(samples) if how.vad else (0, len(samples))
            if begin == 0 and end:
                return session, samples[:end]
            skipped = begin if end else skipped
        session = session._replace(begin=session.begin + skipped)


def _heard(
    ready: Hearer, how: Hearing, turn: list[tuple[_Session, np.ndarray]], batch: int
) -> list[_Session]:
    """The sessions after one window of each."""
    windows = [samples for _, samples in turn]
    rows = len(windows) if batch == 1 else batch
    padding = [np.zeros(0, np.float32)] * (rows - len(windows))
    heard = read_windows(ready, frames_of(ready, [*windows, *padding]))
    sessions = [
        session._replace(language=_language(session, how, ready.marks, heard.chances[row]))
        for row, (session, _) in enumerate(turn)
    ]
    timed = [_timed(ready, how, session) for session in sessions]
    results: dict[int, tuple[Written, float]] = {}
    for kind in sorted(set(timed)):
        wanted = [row for row in range(len(sessions)) if timed[row] == kind]
        results |= _written(ready, how, sessions, wanted, heard, kind)
    return [
        _after(ready, how, session, samples, *results[row], float(_silence(ready, heard, row)))
        for row, (session, (_, samples)) in enumerate(zip(sessions, turn, strict=True))
    ]


def _timed(ready: Hearer, how: Hearing, session: _Session) -> bool:
    """Whether times are written: where they are asked for, and where windows follow."""
    able = ready.marks.first_time < ready.config.vocabulary and not how.choices
    return able and (how.timestamps or session.seconds * RATE > ready.size)


def _language(session: _Session, how: Hearing, marks: Marks, chances: np.ndarray) -> str | None:
    """The language of a session: that of the settings, or the likeliest of its first window."""
    if session.language or how.language:
        return session.language or how.language
    if not marks.languages:
        return "en" if marks.untimed is not None else None
    return max(marks.languages, key=lambda name: chances[marks.languages[name]])


def _silence(ready: Hearer, heard: Encoded, row: int) -> float:
    """The probability that a window has no speech."""
    return 0.0 if ready.marks.silent is None else heard.chances[row, ready.marks.silent]


def _written(
    ready: Hearer,
    how: Hearing,
    sessions: list[_Session],
    wanted: list[int],
    heard: Encoded,
    timed: bool,
) -> dict[int, tuple[Written, float]]:
    """What each wanted row says, and the temperature at which it was written."""
    marks, results = ready.marks, {}
    rows = heard.memory.positions.shape[0]
    temperatures = (0.0,) if how.choices else how.temperatures
    for attempt, temperature in enumerate(temperatures):
        prompts: list[list[int]] = [[] for _ in range(rows)]
        for row in wanted:
            known = None if not marks.languages else sessions[row].language
            before = (
                [marks.previous, *sessions[row].said[1 - ready.most :]] if marks.previous else []
            )
            before = before if len(before) > 1 else []
            prompts[row] = [*before, *lead(marks, known, how.task, timed)]
        begins = [(how.seed, s.begin) for s in sessions]
        written = write_windows(
            ready,
            heard,
            prompts,
            timed=timed,
            temperature=temperature,
            choices=how.choices,
            seeds=[(seed, begin + attempt) for seed, begin in begins],
        )
        results |= {row: (written[row], temperature) for row in wanted}
        wanted = [row for row in wanted if _is_poor(ready, how, written[row], heard, row)]
        if not wanted:
            break
    return results


def _is_poor(ready: Hearer, how: Hearing, written: Written, heard: Encoded, row: int) -> bool:
    """Whether a text repeats itself or is unlikely, though someone speaks."""
    unlikely = written.logprob < how.min_logprob
    if unlikely and _silence(ready, heard, row) > how.max_no_speech:
        return False
    text = text_of(written.ids, ready.tokenizer, ready.marks.end)
    return unlikely or repetition(text) > how.max_repetition


def _after(
    ready: Hearer,
    how: Hearing,
    session: _Session,
    samples: np.ndarray,
    written: Written,
    temperature: float,
    no_speech: float,
) -> _Session:
    """The session behind a window."""
    marks, seconds = ready.marks, len(samples) / RATE
    if no_speech > how.max_no_speech and written.logprob <= how.min_logprob:
        return session._replace(begin=session.begin + len(samples))
    pieces, ended = cut_ids(written.ids, marks.first_time, seconds)
    begin = session.begin / RATE
    segments = []
    for piece in pieces:
        text = text_of(piece.ids, ready.tokenizer, marks.end)
        if text.strip() and piece.end > piece.start:
            segments.append(
                Segment(
                    start=begin + piece.start,
                    end=begin + min(piece.end, seconds),
                    text=text if session.segments or segments else text.lstrip(),
                    ids=piece.ids,
                    logprob=written.logprob,
                    no_speech=no_speech,
                    temperature=temperature,
                )
            )
    ids = [i for piece in segments for i in piece.ids if i < marks.end]
    kept = how.previous and temperature <= 0.5
    return session._replace(
        begin=session.begin + round(ended * RATE),
        said=(*session.said, *ids)[-ready.most :] if kept else (),
        segments=(*session.segments, *segments),
    )
