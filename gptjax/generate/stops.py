"""Stop texts across token borders, and the part of a growing text that can be shown already."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


def find_stop(text: bytes, stops: Sequence[bytes]) -> tuple[int, int] | None:
    """Returns start and end of the stop that is complete first, of several that end together the
    longest; `None` if there is none.

    The result does not change when the text grows.
    """
    matches = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(matches)[::-1] if matches else None


def safe_length(text: bytes, stops: Sequence[bytes]) -> int:
    """The number of bytes of the text that can't become part of a stop that is not complete yet."""
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[len(text) - size :]) for stop in stops):
            return len(text) - size
    return len(text)


class Pieces:
    """Splits a growing text into pieces: whole characters only, and nothing that may belong to a
    stop."""

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops, self._shown = stops, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, text: bytes, end: bool) -> str:
        """The new piece, given the whole text so far; at the `end` all that is left."""
        upto = len(text) if end else max(self._shown, safe_length(text, self._stops))
        piece = self._decoder.decode(text[self._shown : upto], final=end)
        self._shown = upto
        return piece
