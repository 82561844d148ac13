"""Where a text ends, and how much of it may be shown already: stop texts across token borders, and
whole UTF-8 characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


def find_stop(text: bytes, stops: Sequence[bytes]) -> tuple[int, int] | None:
    """Start and end of the stop that is complete first; of several that end together, of the
    longest. None if there is none.

    What is found stays what it is, however the text goes on.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found)[::-1] if found else None


def safe_length(text: bytes, stops: Sequence[bytes]) -> int:
    """How many bytes of the text can't become part of a stop that is not finished yet."""
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[len(text) - size :]) for stop in stops):
            return len(text) - size
    return len(text)


class Pieces:
    """Hands out a growing text piece by piece: whole characters only, and nothing that may belong
    to a stop."""

    def __init__(self, stops: Sequence[bytes]) -> None:
        self._stops, self._shown = stops, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, text: bytes, end: bool) -> str:
        """The piece that the text as it is now adds; at the `end` all that is left."""
        upto = len(text) if end else max(self._shown, safe_length(text, self._stops))
        piece = self._decoder.decode(text[self._shown : upto], final=end)
        self._shown = upto
        return piece
