"""What the scheduler is told and what it tells: events and actions, as values of numbers and names
without any text of a prompt or an answer."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Arrival(NamedTuple):
    """A request, as far as the scheduler knows it."""

    id: int
    """Never used twice."""
    tokens: int
    """To be read before the first is written: those of the prompt but the last. 0 or more."""
    limit: int
    """Most tokens to be written; with 0 the request is finished when it is read."""
    tenant: str = ""
    deadline: float | None = None
    """When it ends, whether it waits, is read or writes; on the clock of `schedule`."""


class Arrived(NamedTuple):
    """A request waits; `offer` applies it, unless the queue is full."""

    arrival: Arrival


class Cancelled(NamedTuple):
    """A client wants no more of its request."""

    id: int


class Placed(NamedTuple):
    """A row is ready; `hit` tokens of its prompt came from the prefix cache."""

    row: int
    hit: int
    """A multiple of `part`, or all."""


class Read(NamedTuple):
    """A part of a prompt has been read."""

    row: int
    tokens: int


class Wrote(NamedTuple):
    """A write is over."""

    rows: tuple[tuple[int, int, bool], ...]
    """(row, tokens written, whether the answer is complete)."""


class Failed(NamedTuple):
    """The request in a row cannot go on."""

    row: int
    why: str


class Reset(NamedTuple):
    """The state of the device was lost, and with it every row."""

    why: str = "the state of the device was lost"


class Tick(NamedTuple):
    """`schedule` is asked at this time. It changes nothing; a log needs it."""

    now: float


Event = Arrived | Cancelled | Placed | Read | Wrote | Failed | Reset | Tick

Outcome = Literal["finished", "cancelled", "expired", "failed"]


class Reject(NamedTuple):
    """The queue is full; nothing was kept of the request."""

    id: int
    why: Literal["requests", "tokens"]
    """Which limit the request would have exceeded."""
    waiting: int
    """Requests that wait."""
    waiting_tokens: int
    """Tokens to read of all that wait."""


class Expire(NamedTuple):
    """The time of a request is over; its `Release` or `Drop` follows."""

    id: int


class Drop(NamedTuple):
    """A request has ended while it waited."""

    id: int
    outcome: Outcome


class Release(NamedTuple):
    """A request has ended and its row is to be cleared."""

    row: int
    id: int
    outcome: Outcome
    why: str = ""
    """Of a failed one."""


class Place(NamedTuple):
    """A row is to be made ready for a request."""

    row: int
    id: int


class ReadPart(NamedTuple):
    """Tokens `start` to `start + tokens` of the prompt are to be read."""

    row: int
    id: int
    start: int
    tokens: int


class Write(NamedTuple):
    """All of these rows are to write 1 to `steps` tokens; the program may leave early when one of
    them is complete."""

    rows: tuple[int, ...]
    steps: int


Action = Reject | Expire | Drop | Release | Place | ReadPart | Write
