"""What was said and when: `Transcript` of `Segment`s, cut from the ids of a window at its times."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gptjax.data.tokenizers.tokenizer import Tokenizer

STEP = 0.02
"""Seconds between two times."""
LEAST = 0.5
"""Seconds from one window to the next, at least: a model that only writes time 0 would not end."""


class Segment(NamedTuple):
    """A piece of a transcript."""

    start: float
    """Seconds from the beginning of the sound."""
    end: float
    text: str
    ids: list[int]
    """As the model wrote them, times included."""
    logprob: float
    """Mean ln p of the window's ids."""
    no_speech: float
    """Probability that its window has no speech, as the model sees it."""
    temperature: float
    """At which its window was written."""


class Transcript(NamedTuple):
    """All that was said in a sound."""

    text: str
    segments: list[Segment]
    language: str | None
    """Its code; `None` where nothing was said."""
    seconds: float
    """Length of the sound."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "text": self.text,
            "language": self.language,
            "seconds": round(self.seconds, 3),
            "segments": [
                {
                    name: round(value, 4) if isinstance(value, float) else value
                    for name, value in one._asdict().items()
                }
                for one in self.segments
            ],
        }


class Piece(NamedTuple):
    """The ids of one segment in a window, whose times are relative to it."""

    start: float
    end: float
    ids: list[int]


def cut_ids(ids: Sequence[int], first_time: int, seconds: float) -> tuple[list[Piece], float]:
    """Cuts the ids of a window where one text's end and the next one's beginning meet.

    Args:
      first_time: id of time 0.
      seconds: length of the window's sound.

    Returns:
      The pieces, and the seconds after which the next window begins: behind the last complete text
      where another one has begun, else behind the whole window.

    Source: Radford et al. 2022, Whisper, arXiv:2212.04356, section 4.5, and its code.
    """
    whole = np.asarray(ids, np.int64)
    times = whole >= first_time
    meeting = (np.flatnonzero(times[:-1] & times[1:]) + 1).tolist()
    closed = times[-2:].tolist() == [False, True]

    def at(i: int) -> float:
        return float(whole[i] - first_time) * STEP

    if not meeting:
        last = float(whole[times][-1] - first_time) * STEP if times.any() else 0.0
        begin = at(0) if len(whole) and times[0] and times.sum() > 1 else 0.0
        return [Piece(begin, last or seconds, list(ids))], seconds
    borders = [0, *meeting, *([len(whole)] if closed else [])]
    pieces = [Piece(at(a), at(b - 1), list(ids[a:b])) for a, b in itertools.pairwise(borders)]
    ended = seconds if closed else at(borders[-1] - 1)
    return pieces, min(seconds, max(ended, LEAST))


def text_of(ids: Sequence[int], tokenizer: Tokenizer, end: int) -> str:
    """Returns what ids spell; those with a meaning spell nothing."""
    return tokenizer.decode([i for i in ids if i < end])


def repetition(text: str) -> float:
    """Returns how many times shorter the text gets when it is compressed: much more than 2 where it
    repeats itself."""
    content = text.encode()
    return len(content) / len(zlib.compress(content)) if content else 0.0
